//! The root of the mesh is replaced while it works: in three steps, each of which waits for every agent.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use mesh_tests::{App, LIMIT, Mesh, Setup, eventually, forge::Authority, node::Node, peer, protocol::Behaviour};

/// Calls of the load, in one go.
const ROUND: u32 = 100;

/// The roots that a node trusts, and the serial numbers of its workloads' certificates.
fn held(node: &Node) -> (Vec<String>, Vec<String>) {
    let rows = node.admin().certificates().expect("the agent lists certificates");
    let of = |kind: &str| rows.iter().filter(|row| row.kind == kind).map(|row| row.serial.clone()).collect();
    (of("root"), of("workload"))
}

/// Makes a step as soon as every agent is ready for it.
#[track_caller]
fn steps(mesh: &Mesh, step: &str) {
    eventually(&format!("--step {step} is made"), LIMIT, || mesh.control().rotate(Some(step)));
}

/// Whether a server of the mesh talks to a client with a certificate of `authority`.
fn is_trusted(mesh: &Mesh, authority: &Authority, server: &App) -> bool {
    let caller = authority.sign("spiffe://cluster.local/ns/default/sa/peer", -60, Duration::from_secs(3600));
    let asked = peer::Asked { method: http::Method::CONNECT, authority: server.at(81).to_string() };
    peer::ask(&mesh.outside().namespace, server.at(15008), Some(caller), &asked).is_ok()
}

/// Calls without a pause until told to stop; how many were answered.
fn load(web: &App, far: &App, is_over: &AtomicBool) -> u32 {
    let mut answered = 0;
    while !is_over.load(Ordering::Relaxed) {
        let report = web.storms(&[far.at(80)], ROUND, 4, true);
        assert_eq!((report.answered, report.failed), (ROUND, 0), "{report:?}");
        answered += report.answered;
    }
    answered
}

#[test]
fn the_root_is_replaced_in_three_steps_and_no_connection_fails() {
    let mesh = Mesh::new();
    let (web, api) = (mesh.app("web").on("node-a"), mesh.app("api").on("node-a"));
    let far = mesh.app("far").on("node-b").serving(80, Behaviour::Name).echoing_on(81);
    web.dial_at(far.at(81)).is_answered();
    let lasting = api.opens(far.at(81));
    let old = Authority::of_mesh(&mesh.control().state());
    let before: Vec<_> = mesh.nodes().iter().map(held).collect();

    // Out of order.
    for (step, reason) in [("use", "the first step is add"), ("drop", "nothing to drop")] {
        let refused = mesh.control().rotate(Some(step)).expect_err("out of order");
        assert!(refused.contains(reason), "{step}: {refused}");
    }

    let is_over = AtomicBool::new(false);
    let answered = thread::scope(|scope| {
        let calls = scope.spawn(|| load(&web, &far, &is_over));
        steps(&mesh, "add");
        let roots = fs::read_to_string(mesh.control().root()).expect("control publishes it");
        assert_eq!(roots.matches("BEGIN CERTIFICATE").count(), 2, "{roots}");
        steps(&mesh, "use");
        steps(&mesh, "drop");
        lasting.still_works();
        is_over.store(true, Ordering::Relaxed);
        calls.join().expect("every call is answered")
    });
    assert!(answered >= 3 * ROUND, "{answered} calls are no load");

    for (node, (old_roots, old_serials)) in mesh.nodes().iter().zip(&before) {
        eventually("the old root is gone", LIMIT, || match held(node) {
            (roots, serials) if roots.len() == 1 && roots != *old_roots && serials.len() == old_serials.len() => {
                assert!(serials.iter().all(|serial| !old_serials.contains(serial)), "{serials:?} {old_serials:?}");
                Ok(())
            }
            other => Err(format!("{other:?}")),
        });
    }
    let new = Authority::of_mesh(&mesh.control().state());
    eventually("the old root opens nothing", LIMIT, || match is_trusted(&mesh, &old, &far) {
        true => Err("a certificate of it is still taken".to_owned()),
        false => Ok(()),
    });
    assert!(is_trusted(&mesh, &new, &far));

    // Who knows only the new root is who comes later: control and agents begin anew.
    mesh.control().kill();
    mesh.nodes().iter().for_each(Node::kill_agent);
    mesh.control().start();
    mesh.nodes().iter().for_each(Node::start_agent);
    mesh.nodes().iter().for_each(Node::is_ready);
    web.dial_at(far.at(81)).is_answered();
}

#[test]
fn a_step_is_refused_until_every_agent_has_made_the_one_before_and_names_who_has_not() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    let far = mesh.app("far").on("node-b").echoing_on(80);
    web.dial(&far).is_answered();
    let (control, node) = (mesh.control(), mesh.node("node-b"));

    // One agent is away.
    node.kill_agent();
    control.rotate(Some("add")).expect("the first step waits for nobody");
    eventually("only node-b is waited for", LIMIT, || match control.rotate(Some("use")) {
        Err(why) if why.contains("node-b: it has a token and is not connected") && !why.contains("node-a") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    // A rotation goes on where it was when control restarts.
    control.kill();
    control.start();
    let shown = control.rotate(None).expect("it says how far it is");
    assert!(shown.contains("the next step is use") && shown.contains("node-b"), "{shown}");
    node.start_agent();
    steps(&mesh, "use");

    steps(&mesh, "drop");
    let shown = control.rotate(None).expect("it says how far it is");
    assert!(shown.starts_with("one root"), "{shown}");
    web.dial(&far).is_answered();
}

#[test]
fn an_agent_that_drains_and_comes_back_to_control_after_its_successor_holds_no_step_up() {
    let mesh =
        Mesh::with(Setup { agent_arguments: ["--drain-time", "1h"].map(str::to_owned).into(), ..Setup::default() });
    let (web, near) = (mesh.app("web").on("node-a"), mesh.app("near").on("node-a"));
    let far = mesh.app("far").on("node-b").echoing_on(80);
    let lasting = web.opens(far.at(80));
    let (control, node) = (mesh.control(), mesh.node("node-b"));
    let before = Pid::from_raw(node.agent_id().cast_signed()).expect("the agent runs");
    node.upgrade_agent(&[]);
    let signal = |signal| kill_process(before, signal).expect("it drains");

    // The file of control's root changes, for which agents dial again: the one that drains last.
    signal(Signal::STOP);
    control.rotate(Some("add")).expect("the first step waits for nobody");
    eventually("the agents in charge have taken the second root up", LIMIT, || match control.rotate(None) {
        Ok(shown) if shown.contains("every agent is ready") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let connected = || control.log().matches("agent connected").count();
    let in_charge = connected();
    signal(Signal::CONT);
    eventually("the agent that drains is connected again", LIMIT, || match connected() - in_charge {
        0 => Err("it is not".to_owned()),
        _ => Ok(()),
    });

    steps(&mesh, "use");
    steps(&mesh, "drop");
    assert_eq!(node.draining_agents(), 1, "it was there all the time");
    lasting.still_works();
    near.dial(&far).is_answered();
}
