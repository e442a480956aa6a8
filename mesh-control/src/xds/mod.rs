//! The discovery service: one delta stream for each agent. Everything it says is decided by the stream's `Session`;
//! here are only the stream, its token and its counters.

use std::{pin::Pin, sync::Arc, time::Duration};

use mesh_api::proto::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node,
    aggregated_discovery_service_server::AggregatedDiscoveryService,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    metrics::{Metrics, Subscriber},
    publish::{
        Snapshot,
        session::{Nack, Session},
    },
};

pub mod caller;
pub mod listen;
pub mod roster;
#[cfg(test)]
pub mod tests;
pub mod token;

/// Responses that wait for one subscriber. When it reads no further, nothing more is made for it.
const WAITING: usize = 4;
/// Time between two looks at whether the agent of a stream is still there, and its token still good.
const LOOK: Duration = Duration::from_secs(5);

/// The service.
pub struct DiscoveryService {
    /// What is told.
    pub state: watch::Receiver<Arc<Snapshot>>,
    /// Who asks.
    pub callers: Arc<caller::Callers>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Who is connected.
    pub roster: Arc<roster::Roster>,
    /// Becomes true when the daemon stops.
    pub stopping: watch::Receiver<bool>,
}

type Responses = Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for DiscoveryService {
    type DeltaAggregatedResourcesStream = Responses;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let caller = request.remote_addr();
        let agent = match self.callers.caller(request.metadata()).await {
            Ok(agent) => agent,
            Err(error) => {
                self.metrics.stream_refused(error.reason());
                match error {
                    caller::CallerError::Token => self.metrics.no_token(caller, "a stream of configuration"),
                    _ => tracing::warn!(?caller, reason = %error, "stream refused"),
                }
                return Err(error.status());
            }
        };
        let (responses, receiver) = mpsc::channel(WAITING);
        let node = agent.node.clone();
        let stream = SubscriberStream {
            presence: Presence::of(agent, self.callers.clone()),
            session: Session::new(node.as_str()),
            state: self.state.clone(),
            stopping: self.stopping.clone(),
            subscriber: self.metrics.subscriber(),
            seat: self.roster.seat(&node, caller),
            metrics: self.metrics.clone(),
            node,
            responses,
        };
        tracing::info!(node = stream.node, ?caller, "agent connected");
        tokio::spawn(stream.run(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// One agent's stream while it lasts.
struct SubscriberStream {
    node: String,
    presence: Presence,
    session: Session,
    state: watch::Receiver<Arc<Snapshot>>,
    stopping: watch::Receiver<bool>,
    subscriber: Subscriber,
    metrics: Arc<Metrics>,
    seat: roster::Seat,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
}

impl SubscriberStream {
    async fn run(mut self, mut requests: Streaming<DeltaDiscoveryRequest>) {
        let mut look = tokio::time::interval(LOOK);
        let end = loop {
            let told = tokio::select! {
                _ = look.tick() => self.look().await,
                request = requests.next() => match request {
                    Some(Ok(request)) => self.take(request).await,
                    Some(Err(status)) => break status.message().to_owned(),
                    None => break "closed by the agent".to_owned(),
                },
                changed = self.state.changed() => match changed {
                    Ok(()) => self.advance().await,
                    Err(_) => break "stopping".to_owned(),
                },
                () = stopped(&mut self.stopping) => break "stopping".to_owned(),
                () = self.responses.closed() => break "closed by the agent".to_owned(),
            };
            if let Err(reason) = told {
                break reason;
            }
        };
        tracing::info!(node = self.node, reason = end, "agent disconnected");
    }

    async fn take(&mut self, request: DeltaDiscoveryRequest) -> Result<(), String> {
        if let Some(other) = request.node.as_ref().and_then(named_node).filter(|other| *other != self.node) {
            let reason = format!("the stream says it is of node {other}");
            return self.refuse("node", Status::permission_denied("the token is of another node"), reason).await;
        }
        if let Some(node) = &request.node {
            self.seat.hears(node);
        }
        let state = self.state.borrow_and_update().clone();
        let (type_url, is_answer) = (request.type_url.clone(), !request.response_nonce.is_empty());
        match self.session.request(request, &state) {
            Ok((responses, nack)) => {
                nack.iter().for_each(|nack| self.record(nack));
                self.seat.note(&self.session, state.generation, is_answer.then_some((&type_url, nack.as_ref())));
                self.send(responses).await
            }
            Err(error) => {
                self.refuse("request", Status::resource_exhausted(error.to_string()), error.to_string()).await
            }
        }
    }

    /// Ends the stream of an agent that has gone.
    async fn look(&mut self) -> Result<(), String> {
        if !self.presence.has_ended() {
            return Ok(());
        }
        let reason = "its token was withdrawn, or its pod has gone".to_owned();
        self.refuse("token", Status::unauthenticated("not authenticated"), reason).await
    }

    async fn advance(&mut self) -> Result<(), String> {
        let state = self.state.borrow_and_update().clone();
        let responses = self.session.advance(&state);
        self.seat.note(&self.session, state.generation, None);
        self.send(responses).await
    }

    async fn send(&mut self, responses: Vec<DeltaDiscoveryResponse>) -> Result<(), String> {
        for response in responses {
            self.subscriber.pushed(&response);
            self.responses.send(Ok(response)).await.map_err(|_| "closed by the agent".to_owned())?;
        }
        Ok(())
    }

    async fn refuse(&mut self, label: &str, status: Status, reason: String) -> Result<(), String> {
        self.metrics.stream_refused(label);
        tracing::warn!(node = self.node, reason, "stream refused");
        // A subscriber that is gone needs no reason.
        let _ = self.responses.send(Err(status)).await;
        Err(reason)
    }

    fn record(&self, nack: &Nack) {
        self.subscriber.nacked(&nack.type_url);
        tracing::error!(node = self.node, r#type = nack.type_url, reason = nack.message, "agent refused a response");
    }
}

/// Whether the agent is still there: by its token, or by the pods that are known. One that they do not show yet has just
/// started.
struct Presence {
    callers: Arc<caller::Callers>,
    agent: caller::Caller,
    was_seen: bool,
}

impl Presence {
    fn of(agent: caller::Caller, callers: Arc<caller::Callers>) -> Self {
        let was_seen = agent.token.is_some();
        Self { callers, agent, was_seen }
    }

    fn has_ended(&mut self) -> bool {
        let is_there = self.callers.is_there(&self.agent);
        let has_ended = self.was_seen && !is_there;
        self.was_seen |= is_there;
        has_ended
    }
}

async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // A sender that is gone has stopped too.
    let _ = stopping.wait_for(|is_stopping| *is_stopping).await;
}

/// `NODE_NAME` of a ztunnel's or an agent's metadata.
pub(crate) fn named_node(node: &Node) -> Option<&str> {
    let value = node.metadata.as_ref()?.fields.get("NODE_NAME")?;
    match value.kind.as_ref()? {
        prost_types::value::Kind::StringValue(name) if !name.is_empty() => Some(name),
        _ => None,
    }
}
