//! Enrolment: pods come and go while others talk, wrong requests are refused by name, and the dead leave nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::{Duration, Instant},
};

use mesh_api::proto::admin::{EnrolRequest, SocketRow, WorkloadRow, enrol_request::NetworkNamespace};
use mesh_tests::{
    App, LIMIT, Mesh,
    conversation::Conversation,
    eventually,
    node::Node,
    protocol::{Behaviour, End},
    web::Series,
};

#[test]
fn a_wrong_field_is_refused_with_its_name_and_changes_nothing() {
    let mesh = Mesh::new();
    let app = mesh.app("app").on("node-a").echoing_on(80);
    let other = mesh.app("other").on("node-b");
    mesh.settle();
    let admin = mesh.node("node-a").admin();
    let before = admin.list().expect("the agent lists its pods");
    let fresh = mesh.app("fresh").not_enrolled().on("node-a");
    let good = fresh.enrolment();
    let with = |change: &dyn Fn(&mut EnrolRequest)| {
        let mut request = good.clone();
        change(&mut request);
        request
    };
    let path = |path: &str| Some(NetworkNamespace::NetworkNamespacePath(path.to_owned()));
    let outside = other.place().cgroup.path().display().to_string();
    let cases = [
        ("uid", with(&|request| request.uid.clear())),
        ("name", with(&|request| request.name.clear())),
        ("namespace", with(&|request| "Not A Name".clone_into(&mut request.namespace))),
        ("service_account", with(&|request| request.service_account.clear())),
        ("addresses", with(&|request| request.addresses.clear())),
        ("addresses", with(&|request| request.addresses = vec!["10.0.0.300".to_owned()])),
        ("addresses", with(&|request| request.addresses = vec!["10.9.0.1".to_owned(), "10.9.0.2".to_owned()])),
        ("addresses", with(&|request| request.addresses = vec!["127.0.0.1".to_owned()])),
        ("addresses", with(&|request| request.addresses = vec![app.v4().to_string()])),
        ("network_namespace", with(&|request| request.network_namespace = None)),
        ("network_namespace", with(&|request| request.network_namespace = path("/run/netns/there-is-none"))),
        ("network_namespace", with(&|request| request.network_namespace = path("/dev/null"))),
        ("network_namespace", with(&|request| request.network_namespace = Some(NetworkNamespace::Pid(u32::MAX >> 1)))),
        ("network_namespace", with(&|request| request.network_namespace = app.enrolment().network_namespace)),
        ("cgroup_path", with(&|request| request.cgroup_path.clear())),
        ("cgroup_path", with(&|request| request.cgroup_path += "/there-is-none")),
        ("cgroup_path", with(&|request| outside.clone_into(&mut request.cgroup_path))),
        ("probe_ports", with(&|request| request.probe_ports = vec![70_000])),
        ("fail_open", with(&|request| request.fail_open = true)),
    ];
    for (field, request) in cases {
        let status = admin.enrol(request.clone()).expect_err(field);
        assert!(status.message().contains(field), "{field} is not named for {request:?}: {}", status.message());
    }
    assert_eq!(admin.list().expect("the agent lists its pods"), before);
    admin.enrol(good.clone()).expect("the request that the others were made from");
    admin.enrol(good).expect("the same request again");
    app.dial(&app).is_answered();
}

#[test]
fn a_running_pod_is_enrolled_and_withdrawn_without_a_restart() {
    let mesh = Mesh::new();
    mesh.lets_some_pass_in_the_clear();
    let far = mesh.app("far").on("node-b").echoing_on(80);
    let web = mesh.app("web").late().on("node-a").echoing_on(80);
    let before = web.opens(far.at(80));
    before.still_works();
    let admin = mesh.node("node-a").admin();

    admin.enrol(web.enrolment()).expect("a running pod can be enrolled");
    web.reaches(far.at(80));
    far.reaches(web.at(80));
    let rows = admin.sockets().expect("the agent lists sockets");
    let old = rows.iter().find(|row| row.source == before.local().to_string()).expect("the old connection is listed");
    assert_eq!(old.path, "before_enrolment");

    admin.withdraw(web.uid()).expect("it is enrolled");
    assert_eq!(admin.list().expect("the agent lists its pods"), []);
    // Plain again: a member that is not STRICT takes it, from nobody.
    web.dial(&far).is_answered();
}

const STRICT_WEB: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
    metadata: {namespace: default, name: strict-web}\n\
    spec:\n  selector: {matchLabels: {app: web}}\n  mtls: {mode: STRICT}\n";

/// Ended with an error within a second of `since`, whichever end the kernel destroyed.
fn is_closed_by(conversation: &Conversation, since: Instant) {
    let limit = Duration::from_secs(1);
    let end = conversation.end_within(limit.saturating_sub(since.elapsed()));
    assert!(matches!(end, Some((End::Failed(_), _))), "it was not closed but {end:?}, after {:?}", since.elapsed());
}

#[test]
fn connections_from_before_the_enrolment_are_kept_and_listed_until_the_workload_is_strict() {
    let mesh = Mesh::new();
    mesh.lets_some_pass_in_the_clear();
    let far = mesh.app("far").on("node-b").echoing_on(80);
    let plain = mesh.app("plain").not_enrolled().on("node-a");
    let web = mesh.app("web").late().on("node-a").echoing_on(81);
    let dialled = web.opens(far.at(80));
    let accepted = [plain.opens(web.at(81)), mesh.stranger().opens(web.at_v6(81))];
    let older: Vec<_> = [&dialled].into_iter().chain(&accepted).collect();
    let node = mesh.node("node-a");

    node.admin().enrol(web.enrolment()).expect("a running pod can be enrolled");
    mesh.settle();

    // PERMISSIVE: they live, and are shown as what they are.
    let rows = node.admin().sockets().expect("the agent lists sockets");
    for (conversation, direction) in older.iter().zip(["outbound", "inbound", "inbound"]) {
        conversation.still_works();
        let is_it = |row: &&SocketRow| row.source == conversation.local().to_string();
        let row = rows.iter().find(is_it).unwrap_or_else(|| panic!("{} is not among {rows:#?}", conversation.local()));
        let shown = (row.pod.as_str(), row.path.as_str(), row.direction.as_str(), row.reason.as_str());
        assert_eq!(shown, ("default/web", "before_enrolment", direction, "before_enrolment"));
        assert_eq!(row.connection_security_policy, "none");
    }
    assert_eq!(node.metrics().sum("mesh_connections_before_enrolment", &[]), 3.0);

    let since = Instant::now();
    mesh.apply("strict.yaml", STRICT_WEB);
    for conversation in &older {
        is_closed_by(conversation, since);
    }
    eventually("none is listed any more", LIMIT, || {
        let rows = node.admin().sockets().map_err(|status| status.to_string())?;
        let is_left = rows.iter().any(|row| row.path == "before_enrolment");
        let counted = node.metrics().sum("mesh_connections_before_enrolment", &[]);
        if is_left || counted > 0.0 { Err(format!("{counted}: {rows:?}")) } else { Ok(()) }
    });
    // What members open now is as good as ever.
    web.dial(&far).is_answered();
    far.dial_at(web.at(81)).is_answered();
    plain.dial_at(web.at(81)).is_refused();
}

#[test]
fn a_workload_that_is_strict_already_keeps_no_connection_from_before_its_enrolment() {
    let mesh = Mesh::new();
    mesh.lets_some_pass_in_the_clear();
    let far = mesh.app("far").on("node-b").echoing_on(80);
    let web = mesh.app("web").late().on("node-a").echoing_on(81);
    mesh.apply("strict.yaml", STRICT_WEB);
    let older = [web.opens(far.at(80)), mesh.stranger().opens(web.at(81))];
    for conversation in &older {
        conversation.still_works();
    }
    eventually("the agent knows that web is strict", LIMIT, || {
        let rows = mesh.node("node-a").admin().workloads().map_err(|status| status.to_string())?;
        let is_strict =
            |row: &WorkloadRow| row.name == "web" && row.policies.iter().any(|name| name.ends_with("strict"));
        if rows.iter().any(is_strict) { Ok(()) } else { Err(format!("{rows:?}")) }
    });

    mesh.node("node-a").admin().enrol(web.enrolment()).expect("a running pod can be enrolled");

    let since = Instant::now();
    for conversation in &older {
        is_closed_by(conversation, since);
    }
    web.reaches(far.at(80));
}

/// Waits until the pod has a socket in a state, as `ss` names it.
fn under_way(app: &App, state: &str) {
    eventually(&format!("a socket in {state}"), Duration::from_secs(5), || {
        let listed = app.run(&["ss", "-Htn", "state", state]).stdout;
        if listed.is_empty() { Err("none".to_owned()) } else { Ok(()) }
    });
}

#[test]
fn handshakes_under_way_at_enrolment_are_listed_as_older_and_closed_when_the_workload_is_strict() {
    let mesh = Mesh::new();
    mesh.lets_some_pass_in_the_clear();
    let far = mesh.app("far").on("node-b").echoing_on(80);
    let stranger = mesh.app("stranger").not_enrolled().on("node-b");
    let web = mesh.app("web").late().on("node-a").echoing_on(80);
    mesh.settle();
    let admin = mesh.node("node-a").admin();
    let nft = |rule: &str| {
        let output = web.run(&["nft", rule]);
        assert!(output.status.success(), "{rule}: {}", String::from_utf8_lossy(&output.stderr));
    };
    // SYNs come in, what ends a handshake does not.
    nft("add table inet hold; add chain inet hold in { type filter hook input priority 0; }; \
         add rule inet hold in tcp flags & ack == ack drop");
    let inbound = stranger.opens(web.at(80));
    under_way(&web, "syn-recv");
    let outbound = std::thread::scope(|scope| {
        let dialling = scope.spawn(|| web.opens(far.at(80)));
        under_way(&web, "syn-sent");
        admin.enrol(web.enrolment()).expect("a running pod can be enrolled");
        nft("delete table inet hold");
        dialling.join().expect("the handshake ends")
    });

    inbound.still_works();
    outbound.still_works();
    eventually("both are listed", LIMIT, || {
        let rows = admin.sockets().map_err(|status| status.to_string())?;
        let rows = rows.into_iter().filter(|row| row.pod == web.full_name());
        let mut rows: Vec<_> = rows.map(|row| (row.direction, row.source, row.path)).collect();
        rows.sort();
        let row = |direction: &str, local: std::net::SocketAddr| {
            (direction.to_owned(), local.to_string(), "before_enrolment".to_owned())
        };
        let expected = [row("inbound", inbound.local()), row("outbound", outbound.local())];
        if rows == expected { Ok(()) } else { Err(format!("{rows:?}")) }
    });

    let since = Instant::now();
    mesh.apply("strict.yaml", STRICT_WEB);
    is_closed_by(&inbound, since);
    is_closed_by(&outbound, since);
}

#[test]
fn a_pod_that_control_has_not_heard_of_is_pending_and_its_connections_are_not_let_through() {
    let mesh = Mesh::new();
    let far = mesh.app("far").on("node-b").echoing_on(80);
    let early = mesh.app("early").unpublished().on("node-a");
    mesh.settle();
    let pods = mesh.node("node-a").admin().list().expect("the agent lists its pods");
    assert_eq!(pods.iter().map(|pod| pod.state.as_str()).collect::<Vec<_>>(), ["pending"]);

    let refused = early.dial(&far).is_refused();
    let took = Duration::from_micros(refused.report().total_us);
    assert!(took < Duration::from_secs(10), "held for {took:?}");
    far.saw_no_connection();

    early.published();
    early.reaches(far.at(80));
}

/// What a node holds for its pods: the entries of each kernel map, the pins, and the devices that lead into namespaces.
#[derive(Debug, PartialEq)]
struct Held {
    maps: BTreeMap<String, u64>,
    pins: BTreeSet<PathBuf>,
    devices: usize,
}

fn held(node: &Node) -> Held {
    let metrics = node.metrics();
    let maps =
        metrics.select("mesh_map_entries", &[]).map(|series| (series.labels["map"].clone(), series.value as u64));
    let mut pins = BTreeSet::new();
    let mut folders = vec![node.directory().join("bpf")];
    while let Some(folder) = folders.pop() {
        // One that goes meanwhile holds nothing.
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            folders.extend(Some(entry.path()).filter(|path| path.is_dir()));
            pins.insert(entry.path());
        }
    }
    let devices = node.system().run(&["ip", "-o", "link", "show", "type", "veth"]);
    Held { maps: maps.collect(), pins, devices: String::from_utf8_lossy(&devices.stdout).lines().count() }
}

/// Enough to outlast the enrolment and withdrawal of fifty pods.
const CONNECTIONS: u32 = 40_000;

#[test]
fn fifty_pods_are_enrolled_and_withdrawn_while_others_talk() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    let servers = [("near", "node-a"), ("far", "node-b")]
        .map(|(name, node)| mesh.app(name).on(node).serving(80, Behaviour::Name));
    let targets = servers.clone().map(|server| server.at(80));
    mesh.settle();
    let node = mesh.node("node-a");
    let before = held(node);

    let report = std::thread::scope(|scope| {
        let storm = scope.spawn(|| web.storms(&targets, CONNECTIONS, 4, true));
        let pods: Vec<App> = (0..50).map(|number| mesh.app(&format!("pod-{number}")).on("node-a")).collect();
        mesh.settle();
        assert_eq!(node.admin().list().expect("the agent lists its pods").len(), 52);
        for pod in pods.iter().step_by(10) {
            let own = pod.storms(&targets, 20, 2, true);
            assert_eq!((own.answered, own.failed), (20, 0), "{own:?}");
        }
        for pod in &pods {
            node.admin().withdraw(pod.uid()).expect("it is enrolled");
        }
        assert!(!storm.is_finished(), "others did not talk until the end: more connections are needed");
        storm.join().expect("the storm ran")
    });

    assert_eq!((report.answered, report.failed), (CONNECTIONS, 0), "{report:?}");
    assert_eq!(node.admin().list().expect("the agent lists its pods").len(), 2);
    eventually("the node holds what it held before", LIMIT, || {
        let after = held(node);
        // The pods run on, so their devices are there.
        if (&after.maps, &after.pins) == (&before.maps, &before.pins) { Ok(()) } else { Err(format!("{after:#?}")) }
    });
}

#[test]
fn a_pod_that_dies_without_a_word_is_cleaned_up_within_two_seconds() {
    let mesh = Mesh::new();
    let far = mesh.app("far").on("node-b").echoing_on(80);
    let other = mesh.app("other").on("node-a").echoing_on(80);
    mesh.settle();
    let node = mesh.node("node-a");
    let before = held(node);
    let web = mesh.app("web").on("node-a").echoing_on(80);
    // Through the agent in both directions, and directly.
    let streams = [far.opens(web.at(80)), other.opens(web.at(80))];
    for stream in &streams {
        stream.still_works();
    }
    let out = web.opens(far.at(80));
    out.still_works();
    let with = held(node);
    assert!(with.devices > before.devices && with.pins.len() > before.pins.len(), "{with:?}");
    // What other pods report of it is theirs: Istio's series name both ends.
    let series_of_web = || {
        let is_of_web = |series: &Series| match series.labels.get("reporter").map(String::as_str) {
            Some(reporter) => series.labels.get(&format!("{reporter}_workload")).is_some_and(|name| name == "web"),
            None => series.labels.values().any(|value| value == "web" || value.ends_with("sa/web")),
        };
        node.metrics().0.into_iter().filter(is_of_web).collect::<Vec<_>>()
    };
    assert!(!series_of_web().is_empty(), "there is something to clean up");

    web.dies();

    let since = Instant::now();
    let left = || Duration::from_secs(2).saturating_sub(since.elapsed());
    for stream in streams {
        assert!(stream.end_within(left()).is_some(), "a stream hangs");
    }
    // Its application has gone: there is nobody to close it.
    std::mem::forget(out);
    eventually("nothing is left of the pod", left(), || {
        let pods = node.admin().list().map_err(|status| status.to_string())?;
        let sockets = node.admin().sockets().map_err(|status| status.to_string())?;
        let listed_pods: Vec<_> = pods.iter().filter(|pod| pod.name == "web").collect();
        let rows: Vec<_> = sockets.iter().filter(|row| row.pod == web.full_name()).collect();
        let (after, series) = (held(node), series_of_web());
        // The device goes with the namespace, and that with the last socket in it, whoever holds it.
        let is_clean = listed_pods.is_empty() && rows.is_empty() && series.is_empty() && after == before;
        if is_clean {
            Ok(())
        } else {
            Err(format!("{listed_pods:?} {rows:?} {series:?} {after:#?}, before: {before:#?}"))
        }
    });
    other.dial(&far).is_answered();
    far.dial_at(other.at(80)).is_answered();
}
