//! Connections of this node that went without the agent and have ended. What is the same for all between the same ends is
//! worked out once: names, verdict, series. Each gets its own ports, times and bytes.

use std::{collections::HashMap, sync::Arc};

use mesh_common::abi::{Endpoint, Ip16};

use crate::{
    enrol::PodTable,
    kernel::{Direction, FlowFlags, Record},
    path::Flag,
    telemetry::{ConnectionRecord, Own, Reporter, Series, Telemetry, Template},
    view::View,
};

use super::witness;

/// Bytes of lines that are handed to the log at once.
const BATCH: usize = 64 << 10;

/// Room for the line that fills a batch.
const LINE: usize = 4 << 10;

/// Kinds that are kept; a pod that is dialled from everywhere would add to them without end.
const KINDS: usize = 4096;

/// What all that is worked out follows from, while View and pods stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Kind {
    pod: u32,
    direction: Direction,
    /// The way, without how it ended.
    way: u16,
    local: Ip16,
    remote: Ip16,
    /// What was dialled; of a client its address alone.
    original: Endpoint,
    /// The one that the server listens on.
    port: u16,
}

impl Kind {
    fn of(record: &Record) -> Self {
        let flow = &record.flow;
        let ends = FlowFlags::FIN_SENT.with(FlowFlags::FIN_RECEIVED);
        let (server, original) = match flow.direction() {
            Direction::Outbound => (flow.remote, flow.original),
            Direction::Inbound => (flow.local, Endpoint::new(flow.original.ip(), 0)),
        };
        Self {
            pod: flow.pod,
            direction: flow.direction(),
            way: flow.flags().bits() & !ends.bits(),
            local: flow.local.ip(),
            remote: flow.remote.ip(),
            original,
            port: server.port(),
        }
    }
}

/// What connections of a kind have in common.
#[derive(Debug)]
struct Told {
    record: ConnectionRecord,
    series: Vec<Arc<Series>>,
    /// None without an access log.
    line: Option<Template>,
}

/// Tells of them.
#[derive(Debug, Default)]
pub(super) struct Closed {
    /// What the kinds follow from.
    view: Option<Arc<View>>,
    pods: Option<Arc<PodTable>>,
    /// None: no end is in a pod that is known.
    kinds: HashMap<Kind, Option<Told>>,
    /// Lines for the access log, and how many.
    lines: (String, u64),
}

impl Closed {
    /// Forgets what followed from another View or other pods.
    pub(super) fn follow(&mut self, view: &Arc<View>, pods: &Arc<PodTable>) {
        let is_same = self.view.as_ref().is_some_and(|known| Arc::ptr_eq(known, view))
            && self.pods.as_ref().is_some_and(|known| Arc::ptr_eq(known, pods));
        if !is_same {
            (self.view, self.pods) = (Some(view.clone()), Some(pods.clone()));
            self.kinds.clear();
        }
    }

    /// Counts and logs one.
    pub(super) fn tell(&mut self, telemetry: &Telemetry, record: &Record) {
        let (Some(view), Some(pods)) = (&self.view, &self.pods) else { return };
        let kind = Kind::of(record);
        if self.kinds.len() >= KINDS && !self.kinds.contains_key(&kind) {
            self.kinds.clear();
        }
        let told = self.kinds.entry(kind).or_insert_with(|| work_out(view, pods, telemetry, record));
        let Some(told) = told else { return };
        let (sent, received) = (record.bytes_sent, record.bytes_received);
        let is_outbound = record.flow.direction() == Direction::Outbound;
        let (to_destination, to_source) = if is_outbound { (sent, received) } else { (received, sent) };
        if told.record.flag != Flag::None {
            let mut row = ConnectionRecord { to_destination, to_source, ..told.record.clone() };
            witness::retell(&mut row, &record.flow, record.at_ns);
            return telemetry.record_direct(row, &told.series);
        }
        telemetry.count_direct(&told.series, to_destination, to_source);
        let Some(line) = &told.line else { return };
        if self.lines.0.capacity() == 0 {
            // It is given away when it is full: what grows from nothing each time is copied as often again.
            self.lines.0.reserve(BATCH + LINE);
        }
        let (started, duration) = witness::times(&record.flow, record.at_ns);
        let source_port = if is_outbound { record.flow.local.port() } else { record.flow.original.port() };
        line.fill(&Own { started, duration, source_port, to_destination, to_source }, &mut self.lines.0);
        self.lines.1 += 1;
        if self.lines.0.len() >= BATCH {
            self.flush(telemetry);
        }
    }

    /// Hands over the lines of those that were told.
    pub(super) fn flush(&mut self, telemetry: &Telemetry) {
        let (lines, count) = std::mem::take(&mut self.lines);
        if count > 0 {
            telemetry.access().write_lines(lines, count);
        }
    }
}

/// One line per connection: that of the end that dialled speaks for both. When its pod has been withdrawn since, it is told
/// as the other end would.
fn work_out(view: &View, pods: &PodTable, telemetry: &Telemetry, record: &Record) -> Option<Told> {
    let own = || witness::tell(view, pods, &record.flow, record.at_ns);
    let far = || witness::tell(view, pods, &witness::far_end(pods, &record.flow)?, record.at_ns);
    let mut witness = own().or_else(far)?;
    if witness.record.verdict.is_some_and(|verdict| !verdict.is_allowed()) {
        // It was let in and then ended by a policy that came later.
        witness.record.flag = Flag::Deny;
        witness.record.error = "ended by policy".into();
    }
    let is_source = witness.record.direction == "outbound";
    let own = if is_source { Reporter::Source } else { Reporter::Destination };
    let other = witness.other.as_ref().filter(|_| is_source).map(|other| (Reporter::Destination, other.id));
    let reporters = [Some((own, witness.own.id)), other];
    let series = telemetry.direct_series(&witness.record, reporters.into_iter().flatten());
    let line = telemetry.access().template(&witness.record);
    Some(Told { record: witness.record, series, line })
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use mesh_common::abi::{Flow, RecordKind, Totals};

    use super::*;
    use crate::{proving, telemetry::AccessFormat, view::fixtures};

    fn record(direction: Direction, local: &str, remote: &str, bytes: u64) -> Record {
        let at = |text: &str| Endpoint::from(text.parse::<SocketAddr>().unwrap());
        let pod = if direction == Direction::Outbound { 1 } else { 2 };
        let mut flow = Flow::new(direction, pod, 0, at(local), at(remote));
        flow.add(FlowFlags::DIRECT);
        let totals = Totals { bytes_sent: bytes, ..Totals::default() };
        Record::new(RecordKind::Closed, 0, 1, flow, 2_000_000, totals)
    }

    /// Over all series of a reporter.
    fn count(telemetry: &Telemetry, name: &str, reporter: &str) -> u64 {
        let page = telemetry.encode().unwrap();
        let start = format!("{name}{{reporter=\"{reporter}\"");
        let rows = page.lines().filter(|line| line.starts_with(&start));
        rows.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    }

    #[test]
    fn connections_of_one_kind_are_each_counted_once_at_both_ends() {
        let telemetry = Telemetry::new(AccessFormat::Off).unwrap();
        let pods = proving::table(&[
            proving::pod(1, "web", "10.1.0.1".parse().unwrap()),
            proving::pod(2, "db", "10.1.0.2".parse().unwrap()),
        ]);
        let view = fixtures::view([fixtures::pod("web", &["10.1.0.1"]), fixtures::pod("db", &["10.1.0.2"])], [], []);
        let mut closed = Closed::default();
        closed.follow(&view, &Arc::new(pods));
        for (port, bytes) in [(40_000, 10), (40_001, 20), (40_002, 30)] {
            let client = format!("10.1.0.1:{port}");
            closed.tell(&telemetry, &record(Direction::Outbound, &client, "10.1.0.2:80", bytes));
        }
        assert_eq!(closed.kinds.len(), 1);
        for reporter in ["source", "destination"] {
            assert_eq!(count(&telemetry, "istio_tcp_connections_closed_total", reporter), 3, "{reporter}");
            assert_eq!(count(&telemetry, "istio_tcp_received_bytes_total", reporter), 60, "{reporter}");
        }
        // The source is withdrawn: the destination's end is told.
        let left = proving::table(&[proving::pod(2, "db", "10.1.0.2".parse().unwrap())]);
        closed.follow(&view, &Arc::new(left));
        closed.tell(&telemetry, &record(Direction::Outbound, "10.1.0.1:40003", "10.1.0.2:80", 40));
        assert_eq!(count(&telemetry, "istio_tcp_connections_closed_total", "source"), 3);
        assert_eq!(count(&telemetry, "istio_tcp_connections_closed_total", "destination"), 4);
        assert_eq!(count(&telemetry, "istio_tcp_received_bytes_total", "destination"), 100);
        // The destination is withdrawn: nobody speaks for it any more.
        telemetry.forget(2);
        let left = proving::table(&[proving::pod(1, "web", "10.1.0.1".parse().unwrap())]);
        closed.follow(&view, &Arc::new(left));
        closed.tell(&telemetry, &record(Direction::Outbound, "10.1.0.1:40004", "10.1.0.2:80", 40));
        assert_eq!(count(&telemetry, "istio_tcp_connections_closed_total", "destination"), 0);
        assert_eq!(count(&telemetry, "istio_tcp_connections_closed_total", "source"), 4);
        let is_unproved = |line: &str| line.contains("destination_principal=\"unknown\"") && line.ends_with(" 1");
        assert!(telemetry.encode().unwrap().lines().any(is_unproved), "as if it still vouched for itself");
    }

    #[test]
    fn a_line_has_the_ports_and_times_of_its_own_connection() {
        let view = fixtures::view([fixtures::pod("web", &["10.1.0.1"]), fixtures::pod("db", &["10.1.0.2"])], [], []);
        let pods = proving::table(&[proving::pod(1, "web", "10.1.0.1".parse().unwrap())]);
        let first = record(Direction::Outbound, "10.1.0.1:40000", "10.1.0.2:80", 1);
        let mut row = witness::tell(&view, &pods, &first.flow, first.at_ns).unwrap().record;
        let second = record(Direction::Outbound, "10.1.0.1:40001", "10.1.0.2:80", 1);
        assert_eq!(Kind::of(&first), Kind::of(&second));
        witness::retell(&mut row, &second.flow, 5_000_000);
        assert_eq!(row.source.address, Some("10.1.0.1:40001".parse().unwrap()));
        let other = record(Direction::Outbound, "10.1.0.1:40001", "10.1.0.2:81", 1);
        assert_ne!(Kind::of(&first), Kind::of(&other), "another port, maybe another verdict");
        let mut by_service = first;
        by_service.flow.original = Endpoint::from("10.96.0.1:80".parse::<SocketAddr>().unwrap());
        let mut by_another = by_service;
        by_another.flow.original = Endpoint::from("10.96.0.1:81".parse::<SocketAddr>().unwrap());
        assert_ne!(Kind::of(&by_service), Kind::of(&by_another), "another service");
    }
}
