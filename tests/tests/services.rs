//! Services: which endpoint a connection goes to, and what the caller sees of it.

use std::collections::{BTreeMap, BTreeSet};

use mesh_tests::{App, Mesh, protocol::Behaviour};

/// One local and one remote endpoint, and a caller, seen from node-a.
fn spread(mesh: &Mesh) -> (App, [App; 2]) {
    let web = mesh.app("web").on("node-a");
    let endpoint = |name: &str, node: &str| {
        mesh.app(name)
            .account("echo")
            .labelled("app", "echo")
            .port("http", 8080)
            .on(node)
            .serving(8080, Behaviour::Name)
    };
    (web, [endpoint("echo-near", "node-a"), endpoint("echo-far", "node-b")])
}

#[test]
fn ten_thousand_connections_are_spread_evenly_over_a_local_and_a_remote_endpoint() {
    let mesh = Mesh::new();
    let (web, endpoints) = spread(&mesh);
    let echo = mesh.service("echo").port(80, 8080).selecting("app", "echo");

    let report = web.storms(&[echo.at(80), echo.at_v6(80)], 10_000, 8, false);

    assert_eq!((report.answered, report.failed, report.wrong_source), (10_000, 0, 0), "{report:?}");
    let counts: BTreeMap<_, _> = report.by_server.into_iter().fold(BTreeMap::new(), |mut counts, (server, count)| {
        let name = endpoints.iter().find(|app| app.addresses().contains(&server.ip())).expect("an endpoint").name();
        *counts.entry(name.to_owned()).or_insert(0) += count;
        counts
    });
    assert!(counts.values().all(|count| (4800..=5200).contains(count)) && counts.len() == 2, "{counts:?}");
}

#[test]
fn the_caller_sees_the_service_and_named_ports_lead_to_the_right_place() {
    let mesh = Mesh::new();
    let (web, _endpoints) = spread(&mesh);
    let echo = mesh.service("echo").port(80, "http").port(81, 8080).selecting("app", "echo");
    for to in [echo.at(80), echo.at(81), echo.at_v6(80)] {
        for _ in 0..10 {
            let conversation = web.opens(to);
            assert_eq!(conversation.peer(), to);
            assert_eq!(conversation.local().ip().is_ipv4(), to.is_ipv4());
        }
    }
    // A port that the service does not have is not an invitation to guess.
    web.dial_at(echo.at(82)).is_refused();
}

#[test]
fn with_client_ip_affinity_a_caller_stays_with_its_endpoint() {
    let mesh = Mesh::new();
    let (web, endpoints) = spread(&mesh);
    let echo = mesh.service("echo").port(80, 8080).with("  sessionAffinity: ClientIP\n").selecting("app", "echo");
    let others: Vec<App> =
        (0..16).map(|number| mesh.app(&format!("other-{number}")).on(["node-a", "node-b"][number % 2])).collect();
    let stays = |caller: &App, to, connections| {
        let report = caller.storms(&[to], connections, 4, false);
        assert_eq!((report.answered, report.failed), (connections, 0), "{report:?}");
        assert_eq!(report.by_server.len(), 1, "one endpoint for one caller: {report:?}");
        report.by_server[0].0
    };

    let chosen = stays(&web, echo.at(80), 10_000);
    let used: BTreeSet<_> = others.iter().map(|caller| stays(caller, echo.at(80), 20)).collect();
    assert_eq!(used.len(), 2, "callers are spread: {used:?}");
    stays(&web, echo.at_v6(80), 20);
    assert_eq!(stays(&web, echo.at(80), 20), chosen, "and it is still the same");
    assert!(endpoints.iter().any(|endpoint| endpoint.at(8080) == chosen));
}

#[test]
fn with_a_local_traffic_policy_only_endpoints_of_the_callers_node_are_used() {
    let mesh = Mesh::new();
    let (web, [near, _far]) = spread(&mesh);
    let echo = mesh.service("echo").port(80, 8080).with("  internalTrafficPolicy: Local\n").selecting("app", "echo");
    let report = web.storms(&[echo.at(80)], 200, 4, false);
    assert_eq!(report.by_server, [(near.at(8080), 200)], "{report:?}");
}

#[test]
fn a_pod_reaches_itself_by_its_own_service() {
    let mesh = Mesh::new();
    let only = mesh.app("only").on("node-a").serving(8080, Behaviour::Name);
    let service = mesh.service("only").port(80, 8080).selecting("app", "only");
    for to in [service.at(80), service.at_v6(80)] {
        let report = only.storms(&[to], 100, 2, false);
        assert_eq!((report.answered, report.failed), (100, 0), "{report:?}");
        let itself = only.opens(to);
        itself.says("who are you?\n");
        let rows = mesh.node("node-a").admin().sockets().expect("the agent lists sockets");
        let row = rows.iter().find(|row| row.source == itself.local().to_string() && row.direction == "outbound");
        let row = row.unwrap_or_else(|| panic!("{} is not among {rows:#?}", itself.local()));
        assert_eq!((row.path.as_str(), row.original_destination.as_str()), ("self", &*to.to_string()));
    }
}

#[test]
fn an_endpoint_that_goes_away_is_not_used_any_more() {
    let mesh = Mesh::new();
    let (web, [near, far]) = spread(&mesh);
    let echo = mesh.service("echo").port(80, 8080).selecting("app", "echo");
    assert_eq!(web.storms(&[echo.at(80)], 100, 2, false).by_server.len(), 2);

    mesh.remove("pod-default-echo-near.yaml");
    mesh_tests::eventually("only the remote endpoint is left", mesh_tests::LIMIT, || {
        let report = web.storms(&[echo.at(80)], 40, 2, false);
        if report.by_server == [(far.at(8080), 40)] { Ok(()) } else { Err(format!("{report:?}")) }
    });
    drop(near);
}

#[test]
fn a_service_without_endpoints_refuses() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    let empty = mesh.service("empty").port(80, 8080).selecting("app", "nobody");
    web.dial_at(empty.at(80)).is_refused();
}
