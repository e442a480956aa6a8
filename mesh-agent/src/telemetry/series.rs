//! Istio's TCP metrics: one set of counters per combination of labels, kept while a pod of this node contributes to it.

use std::{
    cell::Cell,
    collections::{HashMap, HashSet},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use super::labels::{Flagged, Labels};
use crate::path::Flag;

/// The counters of one combination of labels.
#[derive(Debug, Default)]
pub struct Series {
    opened: AtomicU64,
    /// Bytes from source to destination: Istio's *received* at both reporters.
    to_destination: AtomicU64,
    /// Bytes from destination to source: Istio's *sent*.
    to_source: AtomicU64,
    /// Connections that ended, by flag.
    closed: [AtomicU64; Flag::COUNT],
}

impl Series {
    /// A connection was accepted.
    pub fn open(&self) {
        self.opened.fetch_add(1, Relaxed);
    }

    /// Bytes have passed.
    pub fn add(&self, to_destination: u64, to_source: u64) {
        self.to_destination.fetch_add(to_destination, Relaxed);
        self.to_source.fetch_add(to_source, Relaxed);
    }

    /// A connection has ended.
    pub fn close(&self, flag: Flag) {
        self.closed[flag as usize].fetch_add(1, Relaxed);
    }

    fn closed(&self) -> u64 {
        self.closed.iter().map(|closed| closed.load(Relaxed)).sum()
    }
}

/// What of a connection's bytes its series have been told.
#[derive(Debug, Default)]
pub struct Unreported {
    to_destination: Cell<u64>,
    to_source: Cell<u64>,
}

impl Unreported {
    /// Tells the series what has passed since the last time.
    pub fn flush(&self, series: &[Arc<Series>], to_destination: u64, to_source: u64) {
        let news = (to_destination - self.to_destination.get(), to_source - self.to_source.get());
        if news != (0, 0) {
            self.to_destination.set(to_destination);
            self.to_source.set(to_source);
            series.iter().for_each(|series| series.add(news.0, news.1));
        }
    }
}

#[derive(Debug, Default)]
struct Row {
    series: Arc<Series>,
    /// Numbers of the pods that have contributed and live.
    pods: HashSet<u32>,
}

/// All series.
#[derive(Debug, Default)]
pub(super) struct Table(Mutex<HashMap<Arc<Labels>, Row>>);

impl Table {
    fn rows(&self) -> MutexGuard<'_, HashMap<Arc<Labels>, Row>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn find(&self, labels: Labels, pod: u32) -> Arc<Series> {
        let mut rows = self.rows();
        let row = rows.entry(Arc::new(labels)).or_default();
        row.pods.insert(pod);
        row.series.clone()
    }

    /// The rows of now, so that who writes them holds no lock that a worker may wait for.
    fn copy(&self) -> Vec<(Arc<Labels>, Arc<Series>)> {
        self.rows().iter().map(|(labels, row)| (labels.clone(), row.series.clone())).collect()
    }

    /// Holds the lock, as another thread would.
    #[cfg(test)]
    pub(super) fn hold(&self) -> impl Drop {
        self.rows()
    }

    /// Whether nobody holds the lock.
    #[cfg(test)]
    pub(super) fn is_free(&self) -> bool {
        self.0.try_lock().is_ok()
    }

    pub(super) fn forget(&self, pod: u32) {
        self.rows().retain(|_, row| {
            row.pods.remove(&pod);
            !row.pods.is_empty()
        });
    }
}

/// Writes the table to the metrics page.
#[derive(Debug)]
pub(super) struct Collect(pub(super) Arc<Table>);

impl Collector for Collect {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let rows = self.0.copy();
        let counter = |encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, of: fn(&Series) -> u64| {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (labels, series) in &rows {
                let labels = Flagged(labels, Flag::None.label());
                ConstCounter::new(of(series)).encode(family.encode_family(&labels)?)?;
            }
            Ok(())
        };
        counter(&mut encoder, "istio_tcp_connections_opened", "Connections opened", |s| s.opened.load(Relaxed))?;
        counter(&mut encoder, "istio_tcp_received_bytes", "Bytes from source to destination", |s| {
            s.to_destination.load(Relaxed)
        })?;
        counter(&mut encoder, "istio_tcp_sent_bytes", "Bytes from destination to source", |s| {
            s.to_source.load(Relaxed)
        })?;
        by_flag(&mut encoder, &rows, "istio_tcp_connections_closed", "Connections closed", |_| true)?;
        let failed = "Connections that ended otherwise than by both ends";
        by_flag(&mut encoder, &rows, "istio_tcp_connections_failed", failed, |flag| flag != Flag::None)?;
        let help = "Connections that are open now";
        let mut family = encoder.encode_descriptor("istio_tcp_sockets_open", help, None, MetricType::Gauge)?;
        for (labels, series) in &rows {
            let open = series.opened.load(Relaxed).saturating_sub(series.closed());
            let open = i64::try_from(open).unwrap_or(i64::MAX);
            ConstGauge::new(open).encode(family.encode_family(&Flagged(labels, Flag::None.label()))?)?;
        }
        Ok(())
    }
}

fn by_flag(
    encoder: &mut DescriptorEncoder<'_>,
    rows: &[(Arc<Labels>, Arc<Series>)],
    name: &str,
    help: &str,
    counts: fn(Flag) -> bool,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, series) in rows {
        for flag in Flag::ALL.into_iter().filter(|flag| counts(*flag)) {
            let closed = series.closed[flag as usize].load(Relaxed);
            if closed > 0 {
                ConstCounter::new(closed).encode(family.encode_family(&Flagged(labels, flag.label()))?)?;
            }
        }
    }
    Ok(())
}
