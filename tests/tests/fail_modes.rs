//! What happens to connections when agent or control daemon are away: the table of fail modes, row by row.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use mesh_tests::{App, LIMIT, Mesh, Setup, client::Client, eventually, plain, protocol::Dial};

struct Pods {
    web: App,
    near: App,
    far: App,
}

fn pods(mesh: &Mesh) -> Pods {
    let pods = Pods {
        web: mesh.app("web").on("node-a"),
        near: mesh.app("near").on("node-a").echoing_on(80),
        far: mesh.app("far").on("node-b").echoing_on(80),
    };
    pods.web.dial(&pods.near).is_answered();
    pods.web.dial(&pods.far).is_answered();
    pods.far.dial(&pods.near).is_answered();
    pods
}

#[test]
fn a_dead_agent_refuses_what_it_would_carry_and_direct_streams_live() {
    let mesh = Mesh::new();
    let Pods { web, near, far } = pods(&mesh);
    let direct = web.opens(near.at(80));
    let carried = web.opens(far.at(80));
    direct.still_works();
    carried.still_works();
    let capture = mesh.link().capture(&[]);

    mesh.node("node-a").kill_agent();

    carried.is_cut_within(Duration::from_secs(5));
    web.dial(&far).is_refused();
    far.dial(&near).is_refused();
    direct.still_works();
    // Direct while the last heartbeat is younger than 60 s.
    web.dial(&near).is_answered();
    capture.settle();
    let clear = capture.payload_outside(15008, &[web.addresses(), near.addresses()].concat());
    assert_eq!(clear, [], "nothing left the node in the clear");

    let begun = Instant::now();
    mesh.node("node-a").start_agent();
    mesh.node("node-a").is_ready();
    web.reaches(far.at(80));
    far.reaches(near.at(80));
    eprintln!("carried again {} ms after the start", begun.elapsed().as_millis());
    direct.still_works();
}

#[test]
fn with_an_age_of_zero_a_dead_agent_refuses_new_direct_connections_too() {
    let agent_arguments = ["--direct-max-age", "0s"].map(str::to_owned).into();
    let mesh = Mesh::with(Setup { agent_arguments, ..Setup::default() });
    let Pods { web, near, .. } = pods(&mesh);
    let direct = web.opens(near.at(80));

    mesh.node("node-a").kill_agent();

    web.dial(&near).is_refused();
    direct.still_works();
}

#[test]
fn a_hung_agent_gets_no_new_connections_and_established_ones_go_on_when_it_does() {
    let mesh = Mesh::new();
    let Pods { web, near, far } = pods(&mesh);
    let fresh = mesh.app("fresh").on("node-b");
    let (direct, carried) = (web.opens(near.at(80)), web.opens(far.at(80)));
    carried.still_works();

    mesh.node("node-a").hang_agent();
    // Before the heartbeat is late a connection may wait in the listener's queue; then it is refused.
    eventually("new connections are refused", Duration::from_secs(8), || {
        let dial = Dial { limit_ms: 500, ..plain(far.at(80)) };
        let dialled = web.dial_with(dial);
        if dialled.was_refused() { Ok(()) } else { Err(format!("{:?}", dialled.report())) }
    });
    // From a pod that has no tunnel yet: a new one is refused by the hook in the destination's namespace.
    fresh.dial(&near).is_refused();
    direct.still_works();
    web.dial(&near).is_answered();

    mesh.node("node-a").resume_agent();
    carried.still_works();
    web.reaches(far.at(80));
}

#[test]
fn over_a_warm_tunnel_to_an_agent_that_hangs_a_call_fails_soon_or_goes_to_another_endpoint() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    let [near, far] = [("near", "node-a"), ("far", "node-b")]
        .map(|(name, node)| mesh.app(name).labelled("app", "echo").port("http", 80).on(node).echoing_on(80));
    let echo = mesh.service("echo").port(80, 80).selecting("app", "echo");
    // As many as leave no worker without a tunnel.
    let carried: Vec<_> = (0..24).map(|_| web.opens(far.at(80))).collect();
    for conversation in &carried {
        conversation.still_works();
    }

    mesh.node("node-b").hang_agent();

    let begun = Instant::now();
    web.dial(&far).is_refused();
    assert!(begun.elapsed() < Duration::from_secs(10), "refused after {:?}", begun.elapsed());
    for _ in 0..8 {
        web.dial_at(echo.at(80)).is_answered();
    }
    assert!(!near.connections().is_empty(), "the service's other endpoint was tried");

    mesh.node("node-b").resume_agent();
    for conversation in &carried {
        conversation.still_works();
    }
    web.reaches(far.at(80));
    mesh.node("node-a").counted(
        "istio_tcp_connections_failed_total",
        1,
        &[("reporter", "source"), ("source_workload", "web"), ("response_flags", "CONNECT")],
    );
}

#[test]
fn the_kubelet_the_pod_itself_and_pods_outside_the_mesh_need_no_agent() {
    let mesh = Mesh::new();
    let plain_client = mesh.app("plain-client").not_enrolled().on("node-a");
    let plain_server = mesh.app("plain-server").not_enrolled().on("node-b").echoing_on(80);
    let probed = mesh.app("probed").probed_on(8080).on("node-a").echoing_on(8080).echoing_on(8081);
    let node = mesh.node("node-a");
    let kubelet = Client::start(node.system(), &mesh.directory().join("kubelet.log"));
    let probe = |port| kubelet.dial(Dial { send: "x\n".to_owned(), ..plain(probed.at(port)) });
    let strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  namespace: default\n  \
                  name: strict\nspec:\n  mtls: {mode: STRICT}\n";
    mesh.apply("strict.yaml", strict);
    mesh.settle();
    eventually("plaintext is refused", LIMIT, || {
        let dialled = plain_client.dial(&probed);
        if dialled.was_refused() { Ok(()) } else { Err(format!("{:?}", dialled.report())) }
    });

    let far = mesh.app("far").on("node-b").echoing_on(80);
    probed.reaches(far.at(80));
    let hung = || {
        node.hang_agent();
        eventually("its heartbeat is late", LIMIT, || {
            let dialled = probed.dial_with(Dial { limit_ms: 500, ..plain(far.at(80)) });
            if dialled.was_refused() { Ok(()) } else { Err(format!("{:?}", dialled.report())) }
        });
    };
    let dead = || node.kill_agent();
    let starting = || {
        mesh.control().kill();
        std::fs::remove_file(node.cached_view()).expect("the View was kept");
        node.start_agent();
        eventually("it waits for a View", LIMIT, || match node.admin().status() {
            Ok(status) if status.state == "starting" => Ok(()),
            other => Err(format!("{other:?}")),
        });
    };
    let states: [(&str, &dyn Fn()); 4] = [("alive", &|| ()), ("hung", &hung), ("dead", &dead), ("starting", &starting)];
    for (state, begin) in states {
        eprintln!("{state}");
        begin();
        probed.dial_at(probed.at(8080)).is_answered();
        probed.dial_at(probed.at_v6(8080)).is_answered();
        plain_client.dial(&plain_server).is_answered();
        probe(8080).is_answered();
        // The node is trusted with the declared port only.
        probe(8081).is_refused();
    }
}

#[test]
fn without_control_everything_goes_on_and_changes_arrive_when_it_is_back() {
    let mesh = Mesh::new();
    let Pods { web, near, far } = pods(&mesh);

    mesh.control().kill();
    web.dial(&far).is_answered();
    far.dial(&near).is_answered();
    web.dial(&near).is_answered();

    mesh.control().start();
    let late = mesh.app("late").on("node-b").echoing_on(80);
    web.dial(&late).is_answered();
}

#[test]
fn a_control_daemon_that_restarts_beside_a_damaged_manifest_serves_what_it_last_said() {
    let mesh = Mesh::new();
    let Pods { web, far, .. } = pods(&mesh);

    mesh.control().kill();
    mesh.control().write("pod-default-far.yaml", "kind: [");
    mesh.control().start();
    assert!(mesh.control().metrics().sum("mesh_config_errors", &[]) > 0.0, "the mistake is reported");
    // One that knows nothing of before.
    mesh.node("node-a").stop_agent();
    std::fs::remove_file(mesh.node("node-a").cached_view()).expect("the agent has written it");
    mesh.node("node-a").start_agent();
    mesh.node("node-a").is_ready();
    web.reaches(far.at(80));
}

#[test]
fn an_agent_that_starts_without_control_and_without_a_view_on_disk_refuses_until_control_is_back() {
    let mesh = Mesh::new();
    let Pods { web, near, far } = pods(&mesh);

    mesh.control().kill();
    mesh.node("node-a").stop_agent();
    std::fs::remove_file(mesh.node("node-a").cached_view()).expect("the agent has written it");
    mesh.node("node-a").start_agent();

    web.dial(&far).is_refused();
    far.dial(&near).is_refused();
    // The kernel's tables outlive the agent; its last heartbeat is young.
    web.dial(&near).is_answered();

    mesh.control().start();
    mesh.node("node-a").is_ready();
    web.reaches(far.at(80));
    far.reaches(near.at(80));
}

#[test]
fn pods_are_found_again_after_a_restart_and_detaching_restores_plain_networking() {
    let mesh = Mesh::new();
    mesh.lets_some_pass_in_the_clear();
    let Pods { web, near, far } = pods(&mesh);
    let node = mesh.node("node-a");
    let before = node.admin().list().expect("the agent lists its pods");

    node.stop_agent();
    node.start_agent();
    node.is_ready();
    assert_eq!(node.admin().list().expect("the agent lists its pods"), before);

    for node in mesh.nodes() {
        node.stop_agent();
        let output = node.detach();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    web.dial(&near).is_answered();
    web.dial(&far).is_answered();
    let cgroup = node.cgroup().path();
    let tree = Command::new("bpftool").args(["cgroup", "tree"]).arg(cgroup).output().expect("bpftool runs");
    let programs = String::from_utf8_lossy(&tree.stdout);
    assert!(!programs.contains("cgroup_inet") && !programs.contains("sock_ops"), "programs are left:\n{programs}");
}

#[test]
fn a_pod_whose_port_is_taken_while_the_agent_is_away_is_refused_until_it_is_free() {
    let mesh = Mesh::new();
    let Pods { web, far, .. } = pods(&mesh);
    let node = mesh.node("node-a");
    let state = || {
        let pods = node.admin().list().expect("the agent lists its pods");
        pods.into_iter().find(|pod| pod.name == "web").map(|pod| pod.state).unwrap_or_default()
    };
    let capture = mesh.link().capture(&[]);

    node.kill_agent();
    let taken = web.place().namespace.inside(|| std::net::TcpListener::bind((web.v4(), 15001)));
    let taken = taken.expect("nobody has the port");
    node.start_agent();
    node.is_ready();

    assert!(state().starts_with("failed: "), "{}", state());
    web.dial(&far).is_refused();
    // The record must still know it.
    node.stop_agent();
    node.start_agent();
    node.is_ready();
    assert!(state().starts_with("failed: "), "{}", state());
    web.dial(&far).is_refused();
    capture.settle();
    assert_eq!(capture.payload_outside(15008, &web.addresses()), [], "nothing left the node in the clear");

    drop(taken);
    web.reaches(far.at(80));
    assert_eq!(state(), "ready");
}

#[test]
fn a_pod_fails_open_only_where_it_asks_for_it_and_the_mesh_allows_it_and_only_outbound() {
    let mesh = Mesh::with(Setup { settings: "  allowFailOpen: true\n".to_owned(), ..Setup::default() });
    mesh.lets_some_pass_in_the_clear();
    let node = mesh.node("node-a");
    let far = mesh.app("far").on("node-b").echoing_on(80);
    let asks = mesh.app("asks").late().on("node-a").echoing_on(80);
    let asks_not = mesh.app("asks-not").on("node-a");
    mesh.settle();
    let mut request = asks.enrolment();
    request.fail_open = true;
    eventually("the mesh's setting is known", LIMIT, || {
        node.admin().enrol(request.clone()).map_err(|status| status.to_string())
    });
    let shown = |is_open: bool| {
        eventually("meshctl shows who fails open", LIMIT, || {
            let pods = node.meshctl_json(&["pods"]);
            let rows = pods["pods"].as_array().into_iter().flatten();
            let open: Vec<_> = rows.filter(|row| row["fail_open"] == true).map(|row| row["name"].clone()).collect();
            let expected = if is_open { vec![serde_json::json!("asks")] } else { vec![] };
            if open == expected { Ok(()) } else { Err(format!("{open:?} of {pods}")) }
        });
    };
    let counted = || node.metrics().sum("mesh_steering_total", &[("reason", "outbound_fail_open")]);
    asks.reaches(far.at(80));

    shown(true);
    node.kill_agent();
    asks.dial(&far).is_answered();
    asks_not.dial(&far).is_refused();
    far.dial(&asks).is_refused();
    node.start_agent();
    node.is_ready();
    assert_eq!(counted(), 1.0);

    mesh.set("  allowFailOpen: false\n");
    shown(false);
    node.kill_agent();
    asks.dial(&far).is_refused();
    asks_not.dial(&far).is_refused();
    node.start_agent();
    node.is_ready();
    asks.reaches(far.at(80));
    assert_eq!(counted(), 1.0);
    // Who comes now and asks is told at once.
    node.admin().withdraw(asks.uid()).expect("it is enrolled");
    let status = node.admin().enrol(request).expect_err("the mesh does not allow it any more");
    assert!(status.message().contains("allowFailOpen"), "{status:?}");
}
