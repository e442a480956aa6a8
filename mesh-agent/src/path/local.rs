//! What one worker owns: its pods' tunnels and tasks, its live connections, its caches. Never leaves its thread.

use std::{
    cell::RefCell,
    collections::HashMap,
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use mesh_api::Identity;
use rustls::ServerConfig;
use tokio::{
    net::TcpListener,
    time::{Instant, timeout_at},
};

use super::{context::Context, live::Table};
use crate::{
    drain::Drain,
    enrol::Pod,
    hbone::{Baggage, Pool},
    telemetry::{ConnectionRecord, Party, Refusals, Refused, Reporter, Security, Series},
    tls::{self, Credentials, TlsError},
    view::{ServiceName, Uid, View},
};

/// How long a connection is held for what the agent does not know yet: a View with the pod, a certificate, an answer.
pub(super) const HOLD: Duration = Duration::from_secs(5);

/// Series that a worker keeps under one View before the words of peers that the View does not know are left out of new
/// ones: these may invent words without end, and every new one costs a lock and a row of the metrics page.
const CLAIMING_SERIES: usize = 1024;

/// One enrolled pod on this worker.
#[derive(Debug)]
pub(super) struct PodState {
    pub pod: Arc<Pod>,
    /// Those that are accepted on; the accept loops own them.
    pub listeners: RefCell<Vec<Weak<TcpListener>>>,
    /// Tunnels from the pod.
    pub pool: Pool,
    /// Every task that works for the pod.
    pub drain: Drain,
    /// Under way and open on port 15008: one more clone for each.
    pub handshakes: Rc<()>,
    pub tunnels: Rc<()>,
}

impl PodState {
    /// `dialled` counts what servers send to the pod's tunnels beyond the limits.
    pub fn new(pod: Arc<Pod>, drain: Drain, dialled: Arc<Refusals>) -> Self {
        let pool = Pool::new(drain.clone(), dialled);
        Self { pod, listeners: RefCell::default(), pool, drain, handshakes: Rc::default(), tunnels: Rc::default() }
    }
}

/// A worker's own.
#[derive(Debug)]
pub(super) struct Local {
    pub index: u32,
    pub context: Arc<Context>,
    pub live: Table,
    pub random: RefCell<fastrand::Rng>,
    pub pods: RefCell<HashMap<Arc<str>, Rc<PodState>>>,
    /// What it refused lately.
    pub refused: RefCell<Refused>,
    servers: RefCell<HashMap<Identity, CachedServer>>,
    series: RefCell<HashMap<SeriesKey, Arc<Series>>>,
}

#[derive(Debug)]
struct CachedServer {
    credentials: Credentials,
    trust_domain: String,
    config: Arc<ServerConfig>,
}

/// What the labels of a series follow from, while the View stays.
#[derive(Debug, PartialEq, Eq, Hash)]
struct SeriesKey {
    reporter: Reporter,
    pod: u32,
    source: (Option<Uid>, Option<Identity>),
    destination: (Option<Uid>, Option<Identity>),
    service: Option<ServiceName>,
    security: Security,
    /// What the source says about itself, where the View does not know it.
    claimed: Option<Baggage>,
}

impl SeriesKey {
    fn new(reporter: Reporter, record: &ConnectionRecord, pod: u32) -> Self {
        let uid = |party: &Party| party.workload.as_ref().map(|workload| workload.uid.clone());
        let (source, destination) = (&record.source, &record.destination);
        Self {
            reporter,
            pod,
            source: (uid(source), source.identity.clone()),
            destination: (uid(destination), destination.identity.clone()),
            service: record.service.as_ref().map(|service| service.name.clone()),
            security: record.security,
            claimed: source.claimed.clone(),
        }
    }
}

impl Local {
    pub fn new(index: u32, context: Arc<Context>) -> Rc<Self> {
        Rc::new(Self {
            index,
            context,
            live: Table::default(),
            random: RefCell::new(fastrand::Rng::new()),
            pods: RefCell::default(),
            refused: RefCell::default(),
            servers: RefCell::default(),
            series: RefCell::default(),
        })
    }

    /// The View of now; none while the agent is starting.
    pub fn view(&self) -> Option<Arc<View>> {
        self.context.view.load_full()
    }

    /// Tries, and tries again on each change of View, wallet or pods, at most for [`HOLD`], while the error is one that
    /// waiting may mend.
    ///
    /// # Errors
    /// The last one.
    pub async fn hold<T, E>(
        &self,
        mut attempt: impl FnMut() -> Result<T, E>,
        may_mend: impl Fn(&E) -> bool,
    ) -> Result<T, E> {
        let mut changes = self.context.view_changes.clone();
        let until = Instant::now() + HOLD;
        loop {
            changes.mark_unchanged();
            match attempt() {
                Err(error) if may_mend(&error) => match timeout_at(until, changes.changed()).await {
                    Ok(Ok(())) => (),
                    Ok(Err(_)) | Err(_) => return Err(error),
                },
                result => return result,
            }
        }
    }

    /// A workload's certificate and the roots; waited for when they are still being issued.
    ///
    /// # Errors
    /// They did not come.
    pub async fn credentials(&self, identity: &Identity) -> Result<Credentials, TlsError> {
        let attempt = || Credentials::of(&self.context.wallet.load(), identity);
        self.hold(attempt, |error| matches!(error, TlsError::NoCertificate(_) | TlsError::NoTrust)).await
    }

    /// A server's configuration, made once per certificate, bundle and trust domain.
    ///
    /// # Errors
    /// The bundle or the certificate cannot be used.
    pub fn server_config(
        &self,
        identity: &Identity,
        credentials: &Credentials,
        trust_domain: &str,
    ) -> Result<Arc<ServerConfig>, TlsError> {
        let mut servers = self.servers.borrow_mut();
        let is_current =
            |cached: &&CachedServer| cached.credentials.are_same(credentials) && cached.trust_domain == trust_domain;
        if let Some(cached) = servers.get(identity).filter(is_current) {
            return Ok(cached.config.clone());
        }
        let config = tls::server(credentials, trust_domain)?;
        let trust_domain = trust_domain.to_owned();
        let cached = CachedServer { credentials: credentials.clone(), trust_domain, config: config.clone() };
        servers.insert(identity.clone(), cached);
        Ok(config)
    }

    /// The counters of a connection. Asks the shared table, which locks, only for the first of its kind under this View.
    pub fn series(&self, reporter: Reporter, record: &ConnectionRecord, pod: u32) -> Arc<Series> {
        let mut known = self.series.borrow_mut();
        let mut key = SeriesKey::new(reporter, record, pod);
        if let Some(series) = known.get(&key) {
            return series.clone();
        }
        let mut source = record.source.clone();
        if key.claimed.is_some() && known.len() >= CLAIMING_SERIES {
            (key.claimed, source.claimed) = (None, None);
        }
        let find = || {
            let ends = (&source, &record.destination);
            self.context.telemetry.series(reporter, ends, record.service.as_deref(), record.security, pod)
        };
        known.entry(key).or_insert_with(find).clone()
    }

    /// A new View, wallet or set of pods: connections are judged again, caches that follow from the old ones are dropped.
    pub fn changed(&self) {
        self.series.borrow_mut().clear();
        let wallet = self.context.wallet.load();
        self.servers.borrow_mut().retain(|identity, _| wallet.certificates.contains_key(identity));
        if let Some(view) = self.view() {
            self.live.judge_again(&view);
        }
    }

    /// Lets no pod make the agent hold more than it may.
    pub fn relieve(&self) {
        let cut = self.live.relieve(self.context.pod_memory);
        if cut > 0 {
            tracing::warn!(worker = self.index, cut, "connections cut: their pod's hold too much memory");
        }
    }

    /// Tells the hooks that this worker lives, while there is a View.
    pub fn beat(&self) {
        if self.context.view.load().is_some() {
            self.context.steering.heartbeat(self.index);
        }
    }

    /// A pod's series are no longer asked for under its number.
    pub fn forget_series(&self, pod: u32) {
        self.series.borrow_mut().retain(|key, _| key.pod != pod);
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc::channel, thread, time::Duration};

    use super::*;
    use crate::{
        certificates::Wallet,
        proving::{Node, address},
    };

    fn foreign(workload: usize) -> ConnectionRecord {
        let mut record = ConnectionRecord::new("inbound");
        record.source.claimed = Some(Baggage { workload: format!("far-{workload}"), ..Baggage::default() });
        record
    }

    /// Another thread that holds the table, a scrape or a worker, must not hold up connections of a known kind.
    #[test]
    fn a_peer_that_the_view_does_not_know_costs_a_lock_only_the_first_time() {
        let context = Node::start(None, &[], Wallet::default(), (address(), 1).into()).context;
        let telemetry = context.telemetry.clone();
        let (met, is_met) = channel();
        let (go, gone) = channel::<()>();
        let worker = thread::spawn(move || {
            let worker = Local::new(0, context);
            let first = worker.series(Reporter::Destination, &foreign(0), 1);
            met.send(()).unwrap();
            gone.recv().unwrap();
            let second = worker.series(Reporter::Destination, &foreign(0), 1);
            met.send(()).unwrap();
            assert!(Arc::ptr_eq(&first, &second));
        });
        is_met.recv().unwrap();
        let held = telemetry.hold_series();
        go.send(()).unwrap();
        is_met.recv_timeout(Duration::from_secs(5)).expect("it waits for the lock");
        drop(held);
        worker.join().unwrap();
    }

    #[test]
    fn invented_words_do_not_fill_the_table() {
        let context = Node::start(None, &[], Wallet::default(), (address(), 1).into()).context;
        let worker = Local::new(0, context.clone());
        for number in 0..CLAIMING_SERIES + 100 {
            worker.series(Reporter::Destination, &foreign(number), 1);
        }
        let rows = context.telemetry.encode().unwrap().matches("istio_tcp_connections_opened_total{").count();
        assert_eq!(rows, CLAIMING_SERIES + 1);
    }
}
