//! Upgrade in place while something else goes wrong: control is silent, the agent that runs dies in the middle of handing over.

use std::{
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use mesh_tests::{App, LIMIT, Mesh, Setup, conversation::Conversation, eventually, identity, node::Node};

const ECHO: u16 = 80;
/// A control daemon that has not answered a PING for this long is away.
const SILENCE: Duration = Duration::from_secs(90);

/// `web` and `near` beside each other, `far` across the link; nobody may reach `near` but `web`.
struct Stage {
    web: App,
    near: App,
    far: App,
    mesh: Mesh,
}

impl Stage {
    fn set() -> Self {
        let agent_arguments = ["--drain-time", "1h"].map(str::to_owned).into();
        let mesh = Mesh::with(Setup { agent_arguments, ..Setup::default() });
        let stage = Self {
            web: mesh.app("web").on("node-a"),
            near: mesh.app("near").on("node-a").echoing_on(ECHO),
            far: mesh.app("far").on("node-b").echoing_on(ECHO),
            mesh,
        };
        stage.mesh.policy("web-alone").on(&stage.near).allow(identity("ns/default/sa/web"));
        stage.works();
        stage
    }

    fn node(&self) -> &Node {
        self.mesh.node("node-a")
    }

    /// Direct, out and in through the agent of node-a; what is denied stays so.
    #[track_caller]
    fn works(&self) {
        self.web.dial(&self.near).is_answered();
        self.web.dial(&self.far).is_answered();
        self.far.dial(&self.near).is_refused();
    }
}

#[test]
fn while_control_is_silent_the_agent_stays_until_it_has_noticed_and_then_one_takes_over_on_what_it_knew() {
    let stage = Stage::set();
    let node = stage.node();
    let (direct, carried) = (stage.web.opens(stage.near.at(ECHO)), stage.web.opens(stage.far.at(ECHO)));
    let still_work = || {
        direct.still_works();
        carried.still_works();
    };
    let first = node.agent_id();

    // It holds its connections and says nothing: the one that runs is in step with it, a new one could not be.
    stage.mesh.control().hang();
    let said = node.tries_to_upgrade(&node.agent_program(), &[]).expect_err("it would be worse off");
    assert!(said.contains("control answers the agent that runs and not this one"), "{said}");
    assert_eq!(node.agent_id(), first);
    still_work();
    stage.works();

    eventually("the agent has noticed", SILENCE, || {
        let status = node.admin().status().map_err(|status| status.to_string())?;
        if status.control == "connected" { Err("it is connected".to_owned()) } else { Ok(()) }
    });
    node.upgrade_agent(&[]);
    assert_ne!(node.agent_id(), first);
    still_work();
    stage.works();

    stage.mesh.control().resume();
    node.hears_control();
    stage.mesh.policy("nobody").on(&stage.far).deny(identity("ns/default/sa/web"));
    carried.is_cut_within(Duration::from_secs(3));
    direct.still_works();
}

/// Kills the agent that runs a bit `later` than `moment` is in the log of node-a; who wanted to take over is in charge.
#[track_caller]
fn dies_at(stage: &Stage, moment: &str, later: Duration, direct: &Conversation) {
    let node = stage.node();
    let seen = node.agent_log().matches(moment).count();
    let runs = Pid::from_raw(node.agent_id().cast_signed()).expect("a number");
    thread::scope(|scope| {
        let successor = scope.spawn(|| node.tries_to_upgrade(&node.agent_program(), &[]));
        let begun = Instant::now();
        while node.agent_log().matches(moment).count() == seen {
            assert!(begun.elapsed() < LIMIT, "no {moment:?} in the log");
        }
        thread::sleep(later);
        kill_process(runs, Signal::KILL).expect("it drains at most");
        successor.join().expect("it waits").expect("it takes over");
    });
    direct.still_works();
    node.is_ready();
    stage.web.reaches(stage.far.at(ECHO));
    stage.works();
}

#[test]
fn an_agent_that_dies_while_it_hands_over_is_followed_all_the_same() {
    let stage = Stage::set();
    let direct = stage.web.opens(stage.near.at(ECHO));
    let millis = Duration::from_millis;
    // While the new one loads and looks around; once it has asked for the pods; while sockets and hooks change hands.
    dies_at(&stage, "another agent asks to take over", Duration::ZERO, &direct);
    for later in [0, 2, 5, 10, 20, 40] {
        dies_at(&stage, "self-test passed", millis(later), &direct);
    }

    let alone = stage.node().agent_log().matches("has ended without a word: this one goes on alone").count();
    eprintln!("{alone} of seven died before they had let go");
    assert!(alone > 0);
    // Nothing is left of the ones that died: the last one hands over in order.
    stage.node().upgrade_agent(&[]);
    direct.still_works();
    stage.works();
    assert!(stage.node().meshctl(&["check"]).status.success());
}
