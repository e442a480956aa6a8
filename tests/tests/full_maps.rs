//! Maps of the kernel that are full: who comes next is refused with the reason or left to the agent, it is counted, and when
//! there is room again all is as before. CGROUPS and LISTEN cannot be full before PODS is: their sizes follow from its.

use std::{
    net::{IpAddr, SocketAddr},
    thread,
};

use mesh_tests::{
    App, LIMIT, Mesh, Setup,
    dial::Dialled,
    eventually,
    node::Node,
    plain,
    protocol::{Behaviour, Dial},
};
use socket2::{Domain, Socket, Type};

fn mesh(arguments: &[&str]) -> Mesh {
    let agent_arguments = arguments.iter().map(|word| (*word).to_owned()).collect();
    Mesh::with(Setup { agent_arguments, ..Setup::default() })
}

fn refused(node: &Node, map: &str) -> f64 {
    node.metrics().sum("mesh_map_full_total", &[("map", map)])
}

fn steered(node: &Node, reason: &str) -> f64 {
    node.metrics().sum("mesh_steering_total", &[("reason", reason)])
}

/// The agent refuses to enrol the pod because of this map, says so, counts it, and keeps nothing of the pod.
fn is_too_much(node: &Node, pod: &App, map: &str) {
    let before = refused(node, map);
    let status = node.admin().enrol(pod.enrolment()).expect_err("there is no room");
    assert!(status.message().contains(&format!("map {map} is full")), "{status:?}");
    assert_eq!(refused(node, map), before + 1.0);
    let pods = node.admin().list().expect("the agent lists its pods");
    assert!(pods.iter().all(|listed| listed.name != pod.name()), "{pods:?}");
}

#[test]
fn a_node_that_is_full_refuses_the_next_pod_with_the_reason_until_there_is_room() {
    // PODIP has room for 12 addresses then, PROBES for 48 ports.
    let mesh = mesh(&["--max-pods", "3"]);
    let node = mesh.node("node-a");
    let far = mesh.app("far").on("node-b").echoing_on(80);
    let [web, near] = ["web", "near"].map(|name| mesh.app(name).on("node-a").echoing_on(80));
    let [third, fourth] = ["third", "fourth"].map(|name| mesh.app(name).late().on("node-a").echoing_on(80));
    let probed = (0..50).fold(mesh.app("probed").late(), |app, number| app.probed_on(9000 + number)).on("node-a");
    let works = |app: &App| {
        app.reaches(far.at(80));
        far.reaches(app.at(80));
    };

    is_too_much(node, &probed, "PROBES");

    // With other addresses of its interface one pod can take what is left.
    let [a, b, c, _] = web.v4().octets();
    let others: Vec<IpAddr> = (200..208).map(|number| IpAddr::from([a, b, c, number])).collect();
    let change = |verb: &str| {
        let lines: String = others.iter().map(|address| format!("addr {verb} {address}/32 dev eth0\n")).collect();
        web.place().namespace.ip(&lines);
        let shown = if verb == "add" { 10 } else { 2 };
        eventually("the agent follows the pod's addresses", LIMIT, || {
            let pods = node.admin().list().map_err(|status| status.to_string())?;
            let addresses = pods.iter().find(|pod| pod.name == "web").map_or(0, |pod| pod.addresses.len());
            if addresses == shown { Ok(()) } else { Err(format!("{addresses} of {shown}")) }
        });
    };
    change("add");
    is_too_much(node, &third, "PODIP");
    works(&web);
    change("del");
    node.admin().enrol(third.enrolment()).expect("there is room again");

    is_too_much(node, &fourth, "PODS");
    for app in [&web, &near, &third] {
        works(app);
    }
    node.admin().withdraw(near.uid()).expect("it is enrolled");
    node.admin().enrol(fourth.enrolment()).expect("there is room again");
    works(&fourth);
    mesh.lets_some_pass_in_the_clear();
}

#[test]
fn what_the_tables_of_services_and_policy_have_no_room_for_goes_through_the_agent() {
    let mesh = mesh(&["--max-services", "2", "--max-service-slots", "8", "--max-policy-pairs", "4"]);
    let node = mesh.node("node-a");
    let serve = |name: &str, node: &str| mesh.app(name).labelled("app", "echo").on(node).serving(80, Behaviour::Name);
    let [web, near, far] = [mesh.app("web").on("node-a"), serve("near", "node-a"), serve("far", "node-b")];
    let services: Vec<_> =
        (0..4).map(|number| mesh.service(&format!("echo-{number}")).port(80, 80).selecting("app", "echo")).collect();
    let more: Vec<App> = (0..3).map(|number| serve(&format!("more-{number}"), "node-a")).collect();
    mesh.settle();

    for service in &services {
        let report = web.storms(&[service.at(80)], 40, 4, false);
        assert_eq!((report.answered, report.failed), (40, 0), "{report:?}");
    }
    for app in [&near, &far].into_iter().chain(&more) {
        let report = web.storms(&[app.at(80)], 10, 2, true);
        assert_eq!((report.answered, report.failed), (10, 0), "{report:?}");
    }
    for map in ["SERVICES", "POLICY"] {
        assert!(refused(node, map) > 0.0, "{map} was not full");
    }
    assert!(node.metrics().sum("mesh_steering_failures_total", &[]) > 0.0);

    // With room all of it is the kernel's again.
    for app in &more {
        node.admin().withdraw(app.uid()).expect("it is enrolled");
        mesh.remove(&format!("pod-default-{}.yaml", app.name()));
    }
    for number in 1..4 {
        mesh.remove(&format!("service-echo-{number}.yaml"));
    }
    eventually("connections on the node are direct again", LIMIT, || {
        let before = steered(node, "outbound_direct");
        web.client().dial(Dial { send: "who\n".to_owned(), ..plain(near.at(80)) });
        if steered(node, "outbound_direct") > before { Ok(()) } else { Err("through the agent".to_owned()) }
    });
    mesh.lets_some_pass_in_the_clear();
}

#[test]
fn handshakes_listings_and_records_that_do_not_fit_are_counted_and_block_nothing() {
    let mesh = mesh(&["--max-handshakes", "16", "--max-flows", "16", "--event-bytes", "4096"]);
    let node = mesh.node("node-a");
    let web = mesh.app("web").on("node-a");
    let [near, far] = [("near", "node-a"), ("far", "node-b")]
        .map(|(name, node)| mesh.app(name).on(node).serving(80, Behaviour::Name).echoing_on(81));

    // DIRECT has room for sixteen of them, and FLOWS for as many more.
    let kept: Vec<_> = (0..40).map(|_| web.opens(near.at(81))).collect();
    for conversation in &kept {
        conversation.still_works();
    }
    assert!(steered(node, "flows_full") > 0.0, "all forty were listed");
    drop(kept);

    // An agent that does not read its records.
    node.hang_agent();
    let report = web.storms(&[near.at(80)], 1_000, 4, true);
    node.resume_agent();
    assert_eq!((report.answered, report.failed), (1_000, 0), "{report:?}");
    assert!(steered(node, "events_lost") > 0.0, "all records found room");

    // A server whose queue is full leaves handshakes under way: of more than DIRECT has room for, and then TICKET, those that began
    // first lose the proof of who they are, and are refused when they try again.
    let full = near.place().namespace.inside(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::from((near.v4(), 82)).into()).expect("a free port");
        socket.listen(0).expect("a bound socket");
        socket
    });
    let refused = thread::scope(|scope| {
        let dial = || web.client().dial(Dial { send: "who\n".to_owned(), limit_ms: 3000, ..plain(near.at(82)) });
        let dials: Vec<_> = (0..60).map(|_| scope.spawn(dial)).collect();
        dials.into_iter().map(|dial| dial.join().expect("it ended")).filter(Dialled::was_refused).count()
    });
    drop(full);
    assert!(refused >= 10, "{refused} of sixty were refused");
    assert!(steered(node, "no_ticket") >= 10.0, "they were counted");
    for to in [near.at(80), far.at(80)] {
        let report = web.storms(&[to], 100, 2, true);
        assert_eq!((report.answered, report.failed), (100, 0), "{report:?}");
    }
}
