//! What happened, as numbers and as lines: Istio's TCP metrics, the mesh's own counters, one access-log line per connection.
//! Never on the way of a byte: a connection finds its counters once, and a log that cannot keep up is dropped and counted.
//!
//! Two locks are left. The table of series is locked when a worker meets a combination of labels that it has not met under
//! this View (it keeps what it found), by the control thread for connections that the kernel tells of, when a pod goes, and
//! while a scrape copies the rows (not while it writes them). The refusals that the kernel tells of are locked by the control
//! thread alone.

mod access;
mod counters;
mod labels;
mod line;
mod listeners;
mod record;
mod refused;
mod series;

use std::sync::{Arc, Mutex, PoisonError};

pub use access::{AccessFormat, AccessLog};
pub use labels::{Party, Reporter, Security};
pub use line::{Own, Template};
pub use listeners::{Listeners, Reason, Refusals};
use prometheus_client::{encoding::text, registry::Registry};
pub use record::ConnectionRecord;
pub use refused::Refused;
pub use series::{Series, Unreported};

use self::{counters::Counters, labels::Labels, series::Table};
use crate::{
    path::{Flag, PlaintextReason, Verdict},
    view::Service,
};

/// All that the agent counts and logs; one for all threads.
#[derive(Debug)]
pub struct Telemetry {
    /// What listeners refused.
    pub listeners: Listeners,
    series: Arc<Table>,
    counters: Counters,
    access: AccessLog,
    /// What the kernel refused; what workers refuse, they keep.
    refused: Mutex<Refused>,
    registry: Mutex<Registry>,
}

impl Telemetry {
    /// Starts the access log's thread, if there is a log.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn new(access: AccessFormat) -> std::io::Result<Self> {
        let access = AccessLog::start(access, std::io::stdout())?;
        let mut registry = Registry::default();
        let series = Arc::new(Table::default());
        registry.register_collector(Box::new(series::Collect(series.clone())));
        let counters = Counters::register(&mut registry, access.dropped());
        let listeners = Listeners::default();
        Ok(Self { listeners, series, counters, access, refused: Mutex::default(), registry: Mutex::new(registry) })
    }

    /// Adds other metrics to the same page.
    pub fn register(&self, add: impl FnOnce(&mut Registry)) {
        add(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// All metrics, in the OpenMetrics text format 1.0.0.
    ///
    /// # Errors
    /// A collector failed to write.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut page = String::new();
        text::encode(&mut page, &self.registry.lock().unwrap_or_else(PoisonError::into_inner))?;
        Ok(page)
    }

    /// The counters of connections between these two. Takes a lock: callers keep what they get. `pod` is the number of the
    /// pod of this node that the connection belongs to.
    pub fn series(
        &self,
        reporter: Reporter,
        ends: (&Party, &Party),
        service: Option<&Service>,
        security: Security,
        pod: u32,
    ) -> Arc<Series> {
        self.series.find(Labels::new(reporter, ends, service, security), pod)
    }

    /// Holds the lock of the series, as another thread would.
    #[cfg(test)]
    pub(crate) fn hold_series(&self) -> impl Drop {
        self.series.hold()
    }

    /// A pod is gone: series to which no other pod contributes go too.
    pub fn forget(&self, pod: u32) {
        self.series.forget(pod);
    }

    /// A connection that the agent carries in the clear from a pod.
    pub fn count_plaintext_outbound(&self, reason: PlaintextReason) {
        self.counters.plaintext_outbound(reason);
    }

    /// A connection that reached a pod in the clear and was let in.
    pub fn count_plaintext_inbound(&self) {
        self.counters.plaintext_inbound();
    }

    /// A connection that policy denied.
    pub fn count_denied(&self, verdict: Verdict) {
        self.counters.denied(verdict);
    }

    /// A connection that was reset at accept because descriptors had run out.
    pub fn count_shed(&self) {
        self.counters.shed();
    }

    /// Writes a connection's line. Never waits.
    pub fn log(&self, record: ConnectionRecord) {
        self.access.write(record);
    }

    /// Waits until the lines of before are written, at most a second: the last thing that a process does.
    pub fn flush_log(&self) {
        self.access.flush();
    }

    /// Connections that the kernel refused in the last minutes, oldest first.
    pub fn refused_by_kernel(&self) -> Vec<ConnectionRecord> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).list()
    }

    /// The counters of a connection that is not the agent's: one that the kernel let pass directly, or refused. `reporters`
    /// are the ends on this node, each with its pod's number. Takes a lock.
    pub fn direct_series(
        &self,
        record: &ConnectionRecord,
        reporters: impl IntoIterator<Item = (Reporter, u32)>,
    ) -> Vec<Arc<Series>> {
        let ends = (&record.source, &record.destination);
        let one = |(reporter, pod)| self.series(reporter, ends, record.service.as_deref(), record.security, pod);
        reporters.into_iter().map(one).collect()
    }

    /// Counts connections of one kind that have ended in order.
    pub fn count_direct(&self, series: &[Arc<Series>], to_destination: u64, to_source: u64) {
        for series in series {
            series.open();
            series.add(to_destination, to_source);
            series.close(Flag::None);
        }
    }

    /// The access log, for who formats its lines.
    pub fn access(&self) -> &AccessLog {
        &self.access
    }

    /// Counts and logs such a connection, which has ended.
    pub fn record_direct(&self, record: ConnectionRecord, series: &[Arc<Series>]) {
        for series in series {
            series.open();
            series.add(record.to_destination, record.to_source);
            series.close(record.flag);
        }
        if let Some(verdict) = record.verdict.filter(|verdict| !verdict.is_allowed()) {
            self.count_denied(verdict);
        }
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).add(&record);
        self.log(record);
    }
}

#[cfg(test)]
mod tests;
