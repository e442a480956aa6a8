//! The metrics page and the access log, as others read them.

use std::{
    io,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use super::{AccessFormat, AccessLog, ConnectionRecord, Own, Party, Reporter, Security, Telemetry};
use crate::{
    path::{Flag, Verdict},
    view::{View, fixtures},
};

fn view() -> Arc<View> {
    fixtures::view(
        [fixtures::pod("web", &["10.0.0.1"]), fixtures::pod("db", &["10.0.0.2"])],
        [fixtures::service("db.default.svc.cluster.local", &["10.96.0.1"], &[5432])],
        [],
    )
}

fn party(view: &View, address: &str) -> Party {
    let workload = view.workload_at(address.parse().unwrap()).unwrap().clone();
    Party { identity: Some(workload.identity.clone()), workload: Some(workload), ..Party::default() }
}

fn record(view: &View) -> ConnectionRecord {
    ConnectionRecord {
        source: party(view, "10.0.0.1"),
        destination: party(view, "10.0.0.2"),
        service: view.services().next().cloned(),
        path: "node_local",
        security: Security::NodeLocal,
        to_destination: 10,
        to_source: 20,
        ..ConnectionRecord::new("outbound")
    }
}

fn tell(telemetry: &Telemetry, record: ConnectionRecord, reporters: &[(Reporter, u32)]) {
    let series = telemetry.direct_series(&record, reporters.iter().copied());
    telemetry.record_direct(record, &series);
}

#[test]
fn a_direct_connection_has_istios_metrics_with_istios_labels_in_istios_order() {
    let telemetry = Telemetry::new(AccessFormat::Off).unwrap();
    tell(&telemetry, record(&view()), &[(Reporter::Source, 1)]);
    let labels = concat!(
        "{reporter=\"source\",source_workload=\"web\",source_canonical_service=\"web\",",
        "source_canonical_revision=\"v1\",source_workload_namespace=\"default\",",
        "source_principal=\"spiffe://cluster.local/ns/default/sa/web\",source_app=\"web\",source_version=\"v1\",",
        "source_cluster=\"Kubernetes\",destination_service=\"db.default.svc.cluster.local\",",
        "destination_service_namespace=\"default\",destination_service_name=\"db\",destination_workload=\"db\",",
        "destination_canonical_service=\"db\",destination_canonical_revision=\"v1\",",
        "destination_workload_namespace=\"default\",",
        "destination_principal=\"spiffe://cluster.local/ns/default/sa/db\",destination_app=\"db\",",
        "destination_version=\"v1\",destination_cluster=\"Kubernetes\",request_protocol=\"tcp\",",
        "response_flags=\"-\",connection_security_policy=\"node_local\"}"
    );
    let page = telemetry.encode().unwrap();
    for (name, value) in [
        ("istio_tcp_connections_opened_total", 1),
        ("istio_tcp_connections_closed_total", 1),
        ("istio_tcp_received_bytes_total", 10),
        ("istio_tcp_sent_bytes_total", 20),
        ("istio_tcp_sockets_open", 0),
    ] {
        let line = format!("{name}{labels} {value}");
        assert!(page.lines().any(|other| other == line), "no {line}\nin\n{page}");
    }
    assert!(!page.contains("istio_tcp_connections_failed_total{"));
}

#[test]
fn what_is_not_known_is_unknown_and_failures_carry_their_flag() {
    let telemetry = Telemetry::new(AccessFormat::Off).unwrap();
    let verdict = Some(Verdict::NoAllowMatched);
    let record = ConnectionRecord { flag: Flag::Deny, verdict, ..ConnectionRecord::new("inbound") };
    tell(&telemetry, record, &[(Reporter::Destination, 1)]);
    let page = telemetry.encode().unwrap();
    let failed = page.lines().find(|line| line.starts_with("istio_tcp_connections_failed_total{")).unwrap();
    for label in ["source_workload=\"unknown\"", "destination_service=\"unknown\"", "response_flags=\"DENY\""] {
        assert!(failed.contains(label), "{failed}");
    }
    assert!(page.contains("mesh_denied_connections_total{reason=\"no_allow_matched\"} 1"));
}

#[test]
fn series_go_with_the_last_pod_that_contributes() {
    let (telemetry, view) = (Telemetry::new(AccessFormat::Off).unwrap(), view());
    tell(&telemetry, record(&view), &[(Reporter::Source, 1), (Reporter::Source, 2)]);
    let has_series = || telemetry.encode().unwrap().contains("istio_tcp_connections_opened_total{");
    telemetry.forget(1);
    assert!(has_series());
    telemetry.forget(2);
    assert!(!has_series());
}

#[test]
fn a_scrape_writes_without_the_lock_that_workers_may_wait_for() {
    struct Page<'a>(&'a Telemetry, usize);
    impl std::fmt::Write for Page<'_> {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            assert!(self.0.series.is_free(), "held while {text:?} is written");
            self.1 += text.len();
            Ok(())
        }
    }
    let telemetry = Telemetry::new(AccessFormat::Off).unwrap();
    tell(&telemetry, record(&view()), &[(Reporter::Source, 1)]);
    let mut page = Page(&telemetry, 0);
    prometheus_client::encoding::text::encode(&mut page, &telemetry.registry.lock().unwrap()).unwrap();
    assert_eq!(page.1, telemetry.encode().unwrap().len());
}

#[test]
fn only_refusals_of_the_kernel_are_kept_here() {
    let telemetry = Telemetry::new(AccessFormat::Off).unwrap();
    let denied = ConnectionRecord { flag: Flag::Deny, ..record(&view()) };
    telemetry.log(denied.clone());
    assert!(telemetry.refused_by_kernel().is_empty(), "workers keep theirs");
    tell(&telemetry, denied, &[(Reporter::Source, 1)]);
    assert_eq!(telemetry.refused_by_kernel().len(), 1);
}

/// Where a log is written to in a test.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn written(format: AccessFormat, record: ConnectionRecord) -> String {
    let lines = Lines::default();
    let log = AccessLog::start(format, lines.clone()).unwrap();
    log.write(record);
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        if text.ends_with('\n') {
            return text;
        }
        assert!(Instant::now() < until, "nothing was written");
        std::thread::yield_now();
    }
}

#[test]
fn a_connection_is_one_line_in_either_format() {
    let record = ConnectionRecord {
        flag: Flag::Deny,
        error: "denied:\n\"two\" lines".into(),
        verdict: Some(Verdict::Denied),
        policy: Some(crate::view::PolicyName { namespace: "default".into(), name: "p".into() }),
        duration: std::time::Duration::from_micros(61_005),
        started: std::time::UNIX_EPOCH + std::time::Duration::from_micros(1_700_000_000_000_042),
        original_destination: Some("10.96.0.10:80".parse().unwrap()),
        ..record(&view())
    };
    let text = written(AccessFormat::Text, record.clone());
    assert_eq!(text.lines().count(), 1, "{text}");
    for field in [
        "time=1700000000.000042 ",
        "direction=outbound",
        "dst.original=10.96.0.10:80 ",
        "duration_ms=61.005 ",
        "src.workload=web",
        "src.identity=spiffe://cluster.local/ns/default/sa/web",
        "dst.service=db.default.svc.cluster.local",
        "security=node_local",
        "policy=default/p",
        "bytes_sent=10",
        "bytes_recv=20",
        "flag=DENY",
        "error=\"denied:\\n\\\"two\\\" lines\"",
    ] {
        assert!(text.contains(field), "no {field} in {text}");
    }
    let json: serde_json::Value = serde_json::from_str(&written(AccessFormat::Json, record)).unwrap();
    assert_eq!(json["dst.workload"], "db");
    assert_eq!(json["bytes_recv"], 20);
    assert_eq!(json["error"], "denied:\n\"two\" lines");
}

#[test]
fn a_template_gives_the_same_line_as_the_connection_itself() {
    for (source, format) in [("10.0.0.1:40000", AccessFormat::Text), ("[fd00::1]:40000", AccessFormat::Json)] {
        let mut first = record(&view());
        (first.source.address, first.destination.address) =
            (Some(source.parse().unwrap()), Some("10.0.0.2:5432".parse().unwrap()));
        let mut second = ConnectionRecord {
            started: std::time::UNIX_EPOCH + Duration::from_micros(1_700_000_000_000_042),
            duration: Duration::from_micros(61_005),
            to_destination: 7,
            to_source: 0,
            ..first.clone()
        };
        second.source.address.as_mut().unwrap().set_port(9);
        let log = AccessLog::start(format, io::sink()).unwrap();
        let (mut line, ConnectionRecord { started, duration, to_destination, to_source, .. }) =
            (String::new(), second.clone());
        let own = Own { started, duration, source_port: 9, to_destination, to_source };
        log.template(&first).unwrap().fill(&own, &mut line);
        assert_eq!(line, written(format, second));
    }
    assert!(AccessLog::start(AccessFormat::Off, io::sink()).unwrap().template(&record(&view())).is_none());
}

#[test]
fn the_last_lines_of_a_process_are_written_before_it_ends() {
    let lines = Lines::default();
    let log = AccessLog::start(AccessFormat::Text, lines.clone()).unwrap();
    // The first wakes the writer, which then rests.
    for _ in 0..100 {
        log.write(ConnectionRecord::new("outbound"));
    }
    log.flush();
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert_eq!(text.lines().count(), 100);
    assert_eq!(log.dropped().get(), 0);
}

/// A writer that never comes back while the other end of the channel lives.
struct Stuck(std::sync::mpsc::Receiver<()>);

impl io::Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.recv().ok();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_log_that_does_not_keep_up_drops_and_counts() {
    let (_release, stuck) = std::sync::mpsc::channel();
    let log = AccessLog::start(AccessFormat::Text, Stuck(stuck)).unwrap();
    // The writer holds a batch of unknown size and the queue the rest: twice what the queue takes cannot all fit.
    for _ in 0..20_000 {
        log.write(ConnectionRecord::new("outbound"));
    }
    assert!(log.dropped().get() > 0);
}

#[test]
fn formatted_lines_that_wait_are_bounded_by_their_bytes() {
    let (_release, stuck) = std::sync::mpsc::channel();
    let log = AccessLog::start(AccessFormat::Text, Stuck(stuck)).unwrap();
    // 12.5 MiB, in far fewer messages than the queue takes; at most a batch is with the writer.
    for _ in 0..200 {
        log.write_lines("x".repeat(64 << 10), 100);
    }
    assert!((6_000..=7_200).contains(&log.dropped().get()), "{}", log.dropped().get());
}
