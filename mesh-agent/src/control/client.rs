//! The loop around the stream: dial, ask, take in, publish; wait and dial again when it ends. Runs until it is dropped.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use mesh_api::proto::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node,
    aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
};
use mesh_api::proto::wellknown::{Struct, Value, value::Kind};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::{
    cache::{CacheError, Contents, SharedResources},
    view::{DemandRequest, SharedView},
};

use super::{
    Backoff, ControlAddress, ControlStatus, DialError, SharedControlStatus,
    dial::{Line, causes},
    exchange::State,
    report::{Fields, TrustReporter},
};

/// Largest message that is taken. Source: ztunnel's limit.
const MESSAGE_LIMIT: usize = 200 << 20;
/// Requests on their way to control; more make the client wait, which makes control wait.
const REQUEST_QUEUE: usize = 64;
/// While answers follow each other without a pause, a View is published at least this often.
const PUBLISH_AT_LEAST: Duration = Duration::from_millis(50);
/// First and longest wait after a failure: control's return is noticed within the longer.
const WAITS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(4));
/// How often the root file is compared with the one the connection was verified against, and what nobody asks for any more
/// is given up.
const LOOK: Duration = Duration::from_secs(1);
/// A stream that lived this long is a success: the next failure waits the shortest time again.
const STABLE: Duration = Duration::from_secs(10);

/// Where Views go.
#[derive(Debug)]
pub struct Published {
    /// The View of now.
    pub view: SharedView,
    /// Its generation; every change wakes those who judge again.
    pub changes: watch::Sender<u64>,
}

/// The client; [`Client::run`] it on the control thread.
#[derive(Debug)]
pub struct Client {
    address: ControlAddress,
    node: Node,
    state: State,
    published: Published,
    status: SharedControlStatus,
    demands: mpsc::Receiver<DemandRequest>,
    line: watch::Sender<Option<Line>>,
    last_publication: Option<Instant>,
    reporter: Option<TrustReporter>,
}

/// Why a stream is over.
#[derive(Debug, thiserror::Error)]
enum StreamEnd {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("stream refused or broken: {}", causes(.0))]
    Broken(#[from] Status),
    #[error("control ended the stream")]
    Ended,
    #[error("the file of control's root changed")]
    RootChanged,
}

impl Client {
    /// A client of control at `address` for the node `node`. `line` carries the connection while there is one, for the
    /// certificate service.
    pub fn new(
        address: ControlAddress,
        node: &str,
        published: Published,
        demands: mpsc::Receiver<DemandRequest>,
        line: watch::Sender<Option<Line>>,
    ) -> Self {
        let state = State::new();
        let status =
            ControlStatus { types: state.types(), away_since: Some(SystemTime::now()), ..ControlStatus::default() };
        Self {
            address,
            node: describe_node(node),
            state,
            published,
            status: Arc::new(arc_swap::ArcSwap::from_pointee(status)),
            demands,
            line,
            last_publication: None,
            reporter: None,
        }
    }

    /// Tells control what this node trusts, when control publishes roots.
    pub fn reporting(mut self, reporter: TrustReporter) -> Self {
        self.reporter = Some(reporter);
        self
    }

    /// What operators are shown; stays current while the client runs.
    pub fn status(&self) -> SharedControlStatus {
        self.status.clone()
    }

    /// What is in force, as control sent it; stays current while the client runs.
    pub fn resources(&self) -> SharedResources {
        self.state.resources()
    }

    /// Publishes what an earlier run was told, before there is a stream; control is then asked for changes only.
    ///
    /// # Errors
    /// This version of the agent would not take it from control: nothing is published.
    pub fn restore(&mut self, contents: &Contents) -> Result<(), CacheError> {
        self.state.restore(contents)?;
        let (types, trust_bundle) = (self.state.types(), self.state.trust_bundle());
        self.note(|status| {
            status.types = types;
            status.trust_bundle = trust_bundle;
        });
        self.publish();
        self.note(|status| status.view_cached = Some(contents.saved()));
        Ok(())
    }

    /// Keeps a stream open, for ever.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new(WAITS.0, WAITS.1);
        loop {
            let started = Instant::now();
            let end = match self.stream().await {
                Ok(never) => match never {},
                Err(end) => end,
            };
            let was_connected = self.status.load().is_connected;
            self.line.send_replace(None);
            self.note(|status| {
                status.is_connected = false;
                if was_connected {
                    status.away_since = Some(SystemTime::now());
                }
                status.last_error = end.to_string();
                status.terminations += u64::from(was_connected);
            });
            if was_connected && started.elapsed() >= STABLE {
                backoff.reset();
            }
            let wait = backoff.next_wait();
            tracing::warn!(error = %end, retry_ms = wait.as_millis() as u64, "control connection lost");
            self.wait(wait).await;
        }
    }

    /// Waits while questions are still taken in: they are asked on the next stream.
    async fn wait(&mut self, time: Duration) {
        let pause = tokio::time::sleep(time);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => return,
                Some(demand) = self.demands.recv() => drop(self.state.demand(demand)),
            }
        }
    }

    async fn stream(&mut self) -> Result<std::convert::Infallible, StreamEnd> {
        let line = self.address.dial().await?;
        let (requests, outgoing) = mpsc::channel(REQUEST_QUEUE);
        let mut client = AggregatedDiscoveryServiceClient::with_interceptor(line.channel.clone(), line.bearer.clone())
            .max_decoding_message_size(MESSAGE_LIMIT);
        // Some servers answer with headers only once they have read something: the first request goes ahead.
        let mut opening = self.state.open(Instant::now()).into_iter();
        if let Some(first) = opening.next() {
            say(&requests, DeltaDiscoveryRequest { node: Some(self.node.clone()), ..first }).await?;
        }
        let mut answers = client.delta_aggregated_resources(ReceiverStream::new(outgoing)).await?.into_inner();
        for request in opening {
            say(&requests, request).await?;
        }
        self.line.send_replace(Some(line.clone()));
        self.converse(&line, &requests, &mut answers).await
    }

    async fn converse(
        &mut self,
        line: &Line,
        requests: &mpsc::Sender<DeltaDiscoveryRequest>,
        answers: &mut Streaming<DeltaDiscoveryResponse>,
    ) -> Result<std::convert::Infallible, StreamEnd> {
        let mut look = tokio::time::interval(LOOK);
        self.reporter.iter_mut().for_each(|reporter| reporter.begin(&line.root_pem));
        loop {
            let publishable = self.state.publishable_at();
            let is_overdue = self.last_publication.is_some_and(|last| last.elapsed() >= PUBLISH_AT_LEAST);
            if is_overdue && publishable.is_some_and(|at| at <= Instant::now()) {
                self.publish();
                continue;
            }
            let publication = async {
                match publishable {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            // A control plane of another make, which publishes no roots, waits for no report.
            let reporter = self.reporter.as_mut().filter(|_| !self.state.trust_bundle().is_empty());
            let report = async {
                match reporter {
                    Some(reporter) => reporter.next().await,
                    None => std::future::pending().await,
                }
            };
            // Answers before publication: one View for all that has already arrived.
            tokio::select! {
                biased;
                answer = answers.message() => {
                    let answer = answer?.ok_or(StreamEnd::Ended)?;
                    self.receive(answer, requests).await?;
                }
                Some(demand) = self.demands.recv() => {
                    if let Some(name) = self.state.demand(demand) {
                        for request in self.state.ask(name, Instant::now()) {
                            say(requests, request).await?;
                        }
                    }
                }
                () = publication => self.publish(),
                fields = report => say(requests, self.state.report(with_fields(self.node.clone(), fields))).await?,
                _ = look.tick() => {
                    if let Some(request) = self.state.expire(Instant::now()) {
                        say(requests, request).await?;
                    }
                    // An unreadable file is no new root: the connection stays, the next dial will say so.
                    if self.address.read_root().await.is_ok_and(|root| root != line.root_pem) {
                        return Err(StreamEnd::RootChanged);
                    }
                }
            }
        }
    }

    async fn receive(
        &mut self,
        answer: DeltaDiscoveryResponse,
        requests: &mpsc::Sender<DeltaDiscoveryRequest>,
    ) -> Result<(), StreamEnd> {
        let type_url = answer.type_url.clone();
        let reply = self.state.receive(answer);
        let (types, trust_bundle) = (self.state.types(), self.state.trust_bundle());
        self.note(|status| {
            status.is_connected = true;
            status.away_since = None;
            status.types = types;
            status.trust_bundle = trust_bundle;
        });
        let Some(reply) = reply else {
            tracing::debug!(type_url, "answer of a type that was not asked for");
            return Ok(());
        };
        if let Some(refusal) = &reply.error_detail {
            tracing::warn!(type_url, reason = refusal.message, "resources of control refused");
        }
        say(requests, reply).await
    }

    fn publish(&mut self) {
        let (view, answered) = self.state.publish();
        let generation = view.generation;
        self.published.view.store(Some(view));
        self.published.changes.send_replace(generation);
        for asker in answered {
            // Whoever gave up waiting has already refused its connection.
            let _ = asker.send(());
        }
        let now = Instant::now();
        self.last_publication = Some(now);
        self.note(|status| {
            status.view_published = Some(now);
            status.view_cached = None;
        });
    }

    fn note(&self, change: impl FnOnce(&mut ControlStatus)) {
        let mut status = ControlStatus::clone(&self.status.load());
        change(&mut status);
        self.status.store(Arc::new(status));
    }
}

async fn say(requests: &mpsc::Sender<DeltaDiscoveryRequest>, request: DeltaDiscoveryRequest) -> Result<(), StreamEnd> {
    requests.send(request).await.map_err(|_| StreamEnd::Ended)
}

fn with_fields(mut node: Node, fields: Fields) -> Node {
    let metadata = node.metadata.get_or_insert_default();
    let texts = fields.into_iter().map(|(name, text)| (name.to_owned(), Value { kind: Some(Kind::StringValue(text)) }));
    metadata.fields.extend(texts);
    node
}

/// The node as control planes of Istio's kind want it named.
fn describe_node(node: &str) -> Node {
    let texts = [("NAME", node), ("NAMESPACE", "mesh-system"), ("NODE_NAME", node)];
    let fields = texts
        .into_iter()
        .map(|(key, text)| (key.to_owned(), Value { kind: Some(Kind::StringValue(text.into())) }))
        .collect();
    Node {
        id: format!("ztunnel~127.0.0.1~{node}.mesh-system~mesh-system.svc.cluster.local"),
        cluster: String::new(),
        metadata: Some(Struct { fields }),
    }
}
