//! A node agent's admin service, as blocking calls over its Unix socket.

use std::path::{Path, PathBuf};

use mesh_api::proto::admin::{self, enrolment_client::EnrolmentClient, inspect_client::InspectClient, pod_event::Kind};
use tokio::{runtime::Runtime, time::timeout};
use tonic::{Response, Status, Streaming, transport::Channel};

use crate::eventually::LIMIT;

/// A client of one agent; connects for every call, so that it survives restarts.
#[derive(Debug, Clone)]
pub struct Admin {
    socket: PathBuf,
}

impl Admin {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// The agent's Unix socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    fn call<T>(&self, ask: impl AsyncFnOnce(Channel) -> Result<Response<T>, Status>) -> Result<T, Status> {
        self.call_on(&runtime(), ask)
    }

    fn call_on<T>(
        &self,
        runtime: &Runtime,
        ask: impl AsyncFnOnce(Channel) -> Result<Response<T>, Status>,
    ) -> Result<T, Status> {
        runtime.block_on(async {
            let address = format!("unix:{}", self.socket.display());
            let endpoint = tonic::transport::Endpoint::from_shared(address).expect("a path");
            let endpoint = endpoint.timeout(std::time::Duration::from_secs(20));
            let channel = endpoint.connect().await.map_err(|error| Status::unavailable(format!("{error:?}")))?;
            ask(channel).await.map(Response::into_inner)
        })
    }

    /// Enrols a pod; answers when steering is in force.
    ///
    /// # Errors
    /// As the agent answers, for all of these calls; `Unavailable` when it is not there.
    pub fn enrol(&self, request: admin::EnrolRequest) -> Result<(), Status> {
        self.call(async |channel| EnrolmentClient::new(channel).enrol(request).await).map(drop)
    }

    /// Withdraws a pod.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub fn withdraw(&self, uid: &str) -> Result<(), Status> {
        let request = admin::WithdrawRequest { uid: uid.to_owned() };
        self.call(async |channel| EnrolmentClient::new(channel).withdraw(request).await).map(drop)
    }

    /// The enrolled pods.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub fn list(&self) -> Result<Vec<admin::Pod>, Status> {
        let answer = self.call(async |channel| EnrolmentClient::new(channel).list(admin::ListRequest {}).await)?;
        Ok(answer.pods)
    }

    /// Watches pods come, change and go.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub fn watch(&self) -> Result<Watch, Status> {
        let runtime = runtime();
        let ask = async |channel| EnrolmentClient::new(channel).watch(admin::WatchRequest {}).await;
        let events = self.call_on(&runtime, ask)?;
        Ok(Watch { events, runtime })
    }

    /// The workloads of the agent's View.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub fn workloads(&self) -> Result<Vec<admin::WorkloadRow>, Status> {
        let request = admin::WorkloadsRequest {};
        Ok(self.call(async |channel| InspectClient::new(channel).workloads(request).await)?.workloads)
    }

    /// The services of the agent's View.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub fn services(&self) -> Result<Vec<admin::ServiceRow>, Status> {
        let request = admin::ServicesRequest {};
        Ok(self.call(async |channel| InspectClient::new(channel).services(request).await)?.services)
    }

    /// The policies of the agent's View.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub fn policies(&self) -> Result<Vec<admin::PolicyRow>, Status> {
        let request = admin::PoliciesRequest {};
        Ok(self.call(async |channel| InspectClient::new(channel).policies(request).await)?.policies)
    }

    /// The connections of the agent's pods.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub fn sockets(&self) -> Result<Vec<admin::SocketRow>, Status> {
        let request = admin::SocketsRequest {};
        Ok(self.call(async |channel| InspectClient::new(channel).sockets(request).await)?.sockets)
    }

    /// The certificates that the agent holds.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub fn certificates(&self) -> Result<Vec<admin::CertificateRow>, Status> {
        let request = admin::CertificatesRequest {};
        Ok(self.call(async |channel| InspectClient::new(channel).certificates(request).await)?.certificates)
    }

    /// What would become of a connection.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub fn explain(&self, source: &str, destination: &str, port: u16) -> Result<admin::ExplainResponse, Status> {
        let request =
            admin::ExplainRequest { source: source.to_owned(), destination: destination.to_owned(), port: port.into() };
        self.call(async |channel| InspectClient::new(channel).explain(request).await)
    }

    /// What the agent finds wrong with its node.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub fn check(&self) -> Result<Vec<admin::CheckRow>, Status> {
        Ok(self.call(async |channel| InspectClient::new(channel).check(admin::CheckRequest {}).await)?.checks)
    }

    /// The agent's own state.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub fn status(&self) -> Result<admin::StatusResponse, Status> {
        self.call(async |channel| InspectClient::new(channel).status(admin::StatusRequest {}).await)
    }

    /// Sets the agent's log filter; an empty one only reads it.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub fn log(&self, filter: &str) -> Result<String, Status> {
        let request = admin::LogRequest { filter: filter.to_owned() };
        Ok(self.call(async |channel| InspectClient::new(channel).log(request).await)?.filter)
    }
}

/// Events of an agent's pods, one after the other.
pub struct Watch {
    events: Streaming<admin::PodEvent>,
    runtime: Runtime,
}

impl Watch {
    /// The next event: what happened, to which pod, and the pod's state then.
    ///
    /// # Panics
    /// When none comes, or the agent ends the watch.
    #[track_caller]
    pub fn event(&mut self) -> (Kind, String, String) {
        let message = self.runtime.block_on(async { timeout(LIMIT, self.events.message()).await });
        let event = message.expect("an event in time").expect("the watch goes on").expect("the watch has no end");
        let pod = event.pod.clone().expect("an event is one of a pod");
        (event.kind(), pod.name, pod.state)
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}
