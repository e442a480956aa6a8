//! What is counted: subscribers, what they were told and refused, certificates, and how good the configuration is.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use mesh_api::proto::discovery::DeltaDiscoveryResponse;
use mesh_listen::{Reason, Refusals};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text::encode},
    metrics::{MetricType, counter::ConstCounter, counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TypeLabel {
    r#type: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabel {
    reason: String,
}

/// All metrics of the daemon.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    subscribers: Gauge,
    pushes: Family<TypeLabel, Counter>,
    resources: Family<TypeLabel, Counter>,
    removals: Family<TypeLabel, Counter>,
    nacks: Family<TypeLabel, Counter>,
    /// Certificates issued to agents.
    pub certificates_issued: Counter,
    refusals: Family<ReasonLabel, Counter>,
    streams_refused: Family<ReasonLabel, Counter>,
    /// Problems in the configuration now.
    pub config_errors: Gauge,
    /// Parts of the configuration that have no effect now.
    pub config_warnings: Gauge,
    /// Times that the configuration was read.
    pub config_reads: Counter,
    /// Generation of the state that is published.
    pub state_version: Gauge<u64, AtomicU64>,
    /// What listeners refused.
    pub listeners: Listeners,
    lists: Family<KindLabel, Counter>,
    watch_failures: Family<KindLabel, Counter>,
    writes: Family<KindLabel, Counter>,
    is_ready: AtomicBool,
}

/// One for each listener, by its port.
#[derive(Clone, Debug)]
pub struct Listeners {
    /// 15012: configuration and certificates.
    pub agents: Arc<Refusals>,
    /// 15014: metrics and readiness.
    pub pages: Arc<Refusals>,
    /// The debug address.
    pub debug: Arc<Refusals>,
}

impl Default for Listeners {
    fn default() -> Self {
        let of = |listener| Arc::new(Refusals::of(listener));
        Self { agents: of("15012"), pages: of("15014"), debug: of("debug") }
    }
}

impl Collector for Listeners {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let help = "What came to a listener and was refused or cut, by reason";
        let mut family = encoder.encode_descriptor("mesh_listener_refused", help, None, MetricType::Counter)?;
        for refusals in [&self.agents, &self.pages, &self.debug] {
            for (reason, count) in refusals.counts() {
                let labels = [("listener", refusals.listener), ("reason", reason.label())];
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

impl Metrics {
    /// Metrics at zero.
    pub fn new() -> Arc<Metrics> {
        let mut metrics = Metrics {
            registry: Registry::default(),
            subscribers: Gauge::default(),
            pushes: Family::default(),
            resources: Family::default(),
            removals: Family::default(),
            nacks: Family::default(),
            certificates_issued: Counter::default(),
            refusals: Family::default(),
            streams_refused: Family::default(),
            config_errors: Gauge::default(),
            config_warnings: Gauge::default(),
            config_reads: Counter::default(),
            state_version: Gauge::default(),
            listeners: Listeners::default(),
            lists: Family::default(),
            watch_failures: Family::default(),
            writes: Family::default(),
            is_ready: AtomicBool::new(false),
        };
        metrics.register();
        Arc::new(metrics)
    }

    fn register(&mut self) {
        let to = &mut self.registry;
        to.register_collector(Box::new(self.listeners.clone()));
        to.register("mesh_xds_subscribers", "Agents connected", self.subscribers.clone());
        to.register("mesh_xds_pushes", "Responses sent to agents", self.pushes.clone());
        to.register("mesh_xds_sent_resources", "Resources sent to agents", self.resources.clone());
        to.register("mesh_xds_sent_removals", "Removals of resources sent to agents", self.removals.clone());
        to.register("mesh_xds_nacks", "Responses that agents refused", self.nacks.clone());
        to.register("mesh_certificates_issued", "Certificates issued to agents", self.certificates_issued.clone());
        to.register("mesh_certificates_refused", "Certificate requests refused", self.refusals.clone());
        let streams = "Streams of configuration refused or ended: no token, another node's, too much asked";
        to.register("mesh_xds_refused", streams, self.streams_refused.clone());
        to.register("mesh_config_errors", "Problems in the configuration", self.config_errors.clone());
        to.register("mesh_config_warnings", "Parts of the configuration without effect", self.config_warnings.clone());
        to.register("mesh_config_reads", "Times the configuration was read", self.config_reads.clone());
        to.register("mesh_state_version", "Generation of the published state", self.state_version.clone());
        to.register("mesh_kubernetes_lists", "Times that all objects of a kind were listed", self.lists.clone());
        let failures = self.watch_failures.clone();
        to.register("mesh_kubernetes_watch_failures", "Lists and watches that failed", failures);
        to.register("mesh_kubernetes_writes", "Conditions and events written to objects", self.writes.clone());
    }

    /// An agent has connected; it counts until the answer is dropped.
    pub fn subscriber(self: &Arc<Self>) -> Subscriber {
        self.subscribers.inc();
        Subscriber { metrics: self.clone() }
    }

    /// A certificate request was refused.
    pub fn refused(&self, reason: &str) {
        self.refusals.get_or_create(&ReasonLabel { reason: reason.to_owned() }).inc();
    }

    /// A stream of configuration was refused or ended.
    pub fn stream_refused(&self, reason: &str) {
        self.streams_refused.get_or_create(&ReasonLabel { reason: reason.to_owned() }).inc();
    }

    /// Somebody without a token asked for something. Anybody may, so that the log is not given a line for each.
    pub fn no_token(&self, caller: Option<SocketAddr>, asked: &str) {
        let caller = caller.map_or_else(|| "unknown".to_owned(), |caller| caller.to_string());
        self.listeners.agents.refuse(
            Reason::Token,
            caller,
            format_args!("no token of a node with a request for {asked}"),
        );
    }

    /// All objects of a kind were listed.
    pub fn kubernetes_listed(&self, kind: &'static str) {
        self.lists.get_or_create(&KindLabel { kind }).inc();
    }

    /// A kind could not be listed or watched.
    pub fn kubernetes_failed(&self, kind: &'static str) {
        self.watch_failures.get_or_create(&KindLabel { kind }).inc();
    }

    /// A condition or an event was written to an object.
    pub fn kubernetes_written(&self, kind: &'static str) {
        self.writes.get_or_create(&KindLabel { kind }).inc();
    }

    /// The first state is published: from now on agents get an answer.
    pub fn set_ready(&self) {
        self.is_ready.store(true, Ordering::Release);
    }

    /// True once a state was published.
    pub fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Acquire)
    }

    /// All of it in Prometheus' text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a String does not fail");
        text
    }
}

/// One connected agent.
#[derive(Debug)]
pub struct Subscriber {
    metrics: Arc<Metrics>,
}

impl Subscriber {
    /// It was sent a response.
    pub fn pushed(&self, response: &DeltaDiscoveryResponse) {
        let (label, metrics) = (label(&response.type_url), &self.metrics);
        metrics.pushes.get_or_create(&label).inc();
        metrics.resources.get_or_create(&label).inc_by(response.resources.len() as u64);
        metrics.removals.get_or_create(&label).inc_by(response.removed_resources.len() as u64);
    }

    /// It refused one.
    pub fn nacked(&self, type_url: &str) {
        self.metrics.nacks.get_or_create(&label(type_url)).inc();
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.metrics.subscribers.dec();
    }
}

/// Types we know by their last part; a caller's own text must not make new series.
fn label(type_url: &str) -> TypeLabel {
    let known = crate::publish::snapshot::Kind::of_url(type_url).map(crate::publish::snapshot::Kind::url);
    let name = known.and_then(|url| url.rsplit('.').next()).unwrap_or("other");
    TypeLabel { r#type: name.to_owned() }
}
