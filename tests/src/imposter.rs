//! A control daemon gone wrong: it has the mesh's name and certificate, and says what a story tells it to. In place of the real
//! one, which has been killed.

use std::{
    io::Write,
    net::{SocketAddr, TcpListener, TcpStream},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use mesh_api::proto::{
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
        aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
    },
    wellknown::Any,
};
use tokio::sync::{broadcast, oneshot};
use tonic::{
    Request, Response, Status, Streaming,
    codegen::tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream},
    transport::{Identity, Server, ServerTlsConfig, server::TcpIncoming},
};

use crate::{control::Control, forge::Authority, namespace::Namespace};

type Heard = Arc<Mutex<Vec<DeltaDiscoveryRequest>>>;

/// Speaks TLS and gRPC; gone when dropped.
pub struct Imposter {
    says: broadcast::Sender<DeltaDiscoveryResponse>,
    heard: Heard,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Discovery {
    says: broadcast::Sender<DeltaDiscoveryResponse>,
    heard: Heard,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Discovery {
    type DeltaAggregatedResourcesStream = Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (mut requests, heard) = (request.into_inner(), self.heard.clone());
        tokio::spawn(async move {
            while let Some(Ok(request)) = requests.next().await {
                heard.lock().unwrap_or_else(PoisonError::into_inner).push(request);
            }
        });
        let (sender, responses) = tokio::sync::mpsc::channel(16);
        let mut says = self.says.subscribe();
        tokio::spawn(async move {
            while let Ok(response) = says.recv().await {
                if sender.send(Ok(response)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }
}

impl Imposter {
    /// Takes the place of a control daemon that does not run.
    ///
    /// # Panics
    /// When its address is still taken.
    pub fn of(control: &Control) -> Self {
        let (certificate, key) = Authority::of_mesh(&control.state()).server("mesh-control");
        let (says, heard) = (broadcast::Sender::new(16), Heard::default());
        let service = Discovery { says: says.clone(), heard: heard.clone() };
        let (stop, stopped) = oneshot::channel::<()>();
        let (namespace, address) = (control.place().namespace.clone(), control.address());
        let serve = async move {
            let incoming = TcpIncoming::bind(address).expect("the daemon has gone");
            let server =
                Server::builder().tls_config(ServerTlsConfig::new().identity(Identity::from_pem(certificate, key)));
            let server =
                server.expect("our own certificate").add_service(AggregatedDiscoveryServiceServer::new(service));
            let served = server.serve_with_incoming(incoming);
            tokio::select! {
                result = served => result.expect("it serves"),
                _ = stopped => {}
            }
        };
        let thread = thread::spawn(move || {
            namespace.inside(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                runtime.block_on(serve);
            });
        });
        Self { says, heard, stop: Some(stop), thread: Some(thread) }
    }

    /// How many agents listen.
    pub fn listeners(&self) -> usize {
        self.says.receiver_count()
    }

    /// Says this to every agent.
    ///
    /// # Panics
    /// When none listens.
    pub fn says(&self, response: &DeltaDiscoveryResponse) {
        self.says.send(response.clone()).expect("an agent listens");
    }

    /// What agents have refused, and why.
    pub fn refusals(&self) -> Vec<String> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.iter().filter_map(|request| Some(request.error_detail.as_ref()?.message.clone())).collect()
    }
}

impl Drop for Imposter {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().map(JoinHandle::join);
    }
}

/// An answer with one resource: bytes that say they are of `is`, in an answer of `of`.
pub fn answer(of: &str, name: &str, is: &str, value: &[u8]) -> DeltaDiscoveryResponse {
    let any = Any { type_url: is.to_owned(), value: value.to_vec() };
    let resource = Resource { version: "1".to_owned(), resource: Some(any), name: name.to_owned() };
    DeltaDiscoveryResponse {
        type_url: of.to_owned(),
        nonce: format!("{:x}", fastrand::u32(..)),
        resources: vec![resource],
        ..DeltaDiscoveryResponse::default()
    }
}

/// Answers every connection with bytes that are nothing; gone when dropped.
pub struct Babbler {
    place: (Namespace, SocketAddr),
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Babbler {
    /// Takes the place of a control daemon that does not run.
    ///
    /// # Panics
    /// When its address is still taken.
    pub fn of(control: &Control) -> Self {
        let place = (control.place().namespace.clone(), control.address());
        let listener = place.0.inside(|| TcpListener::bind(place.1).expect("the daemon has gone"));
        let is_over = Arc::<AtomicBool>::default();
        let over = is_over.clone();
        let thread = thread::spawn(move || {
            for connection in listener.incoming() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let bytes: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(4096).collect();
                // Who hangs up has heard enough.
                let _ = connection.and_then(|mut connection| connection.write_all(&bytes));
            }
        });
        Self { place, is_over, thread: Some(thread) }
    }
}

impl Drop for Babbler {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        // Wakes its thread.
        drop(self.place.0.inside(|| TcpStream::connect(self.place.1)));
        self.thread.take().map(JoinHandle::join);
    }
}
