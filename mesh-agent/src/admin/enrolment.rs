//! The enrolment service: the registry's door for runtimes.

use std::pin::Pin;

use mesh_api::proto::admin::{
    EnrolRequest, EnrolResponse, ListRequest, ListResponse, PodEvent, WatchRequest, WithdrawRequest, WithdrawResponse,
    enrolment_server, pod_event::Kind,
};
use tokio::sync::{broadcast::error::RecvError, mpsc};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

use crate::{
    drain::{Drain, Phase},
    enrol::{Enrolment, FailOpen},
};

/// Events on their way to one watcher.
const WATCH_QUEUE: usize = 64;

/// The service.
#[derive(Debug)]
pub struct EnrolmentService {
    registry: Enrolment,
    drain: Drain,
}

impl EnrolmentService {
    /// Asks this registry.
    pub fn new(registry: Enrolment, drain: Drain) -> Self {
        Self { registry, drain }
    }
}

#[tonic::async_trait]
impl enrolment_server::Enrolment for EnrolmentService {
    async fn enrol(&self, request: Request<EnrolRequest>) -> Result<Response<EnrolResponse>, Status> {
        self.registry.enrol(request.into_inner(), FailOpen::OrRefuse).await?;
        Ok(Response::new(EnrolResponse {}))
    }

    async fn withdraw(&self, request: Request<WithdrawRequest>) -> Result<Response<WithdrawResponse>, Status> {
        self.registry.withdraw(request.into_inner().uid).await?;
        Ok(Response::new(WithdrawResponse {}))
    }

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let (pods, _) = self.registry.list().await?;
        Ok(Response::new(ListResponse { pods }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<PodEvent, Status>> + Send>>;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (pods, mut changes) = self.registry.list().await?;
        let (events, stream) = mpsc::channel(WATCH_QUEUE);
        let closing = self.drain.clone();
        let forward = async move {
            for pod in pods {
                let event = PodEvent { kind: Kind::Enrolled.into(), pod: Some(pod) };
                if events.send(Ok(event)).await.is_err() {
                    return;
                }
            }
            loop {
                let event = match changes.recv().await {
                    Ok(event) => Ok(event),
                    Err(RecvError::Lagged(missed)) => {
                        Err(Status::data_loss(format!("{missed} events missed; watch again")))
                    }
                    Err(RecvError::Closed) => return,
                };
                let is_last = event.is_err();
                if events.send(event).await.is_err() || is_last {
                    return;
                }
            }
        };
        self.drain.spawn(async move {
            tokio::select! {
                () = forward => {}
                () = closing.reached(Phase::Draining) => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}
