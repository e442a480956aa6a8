//! The faults: what each does to the mesh for how long, what it may cost, and what else must be true of it. A fault leaves the
//! mesh as it found it.

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use crate::{
    LIMIT, eventually, identity,
    torture::{
        load::Kind,
        stage::{ECHO, NAME, Stage},
    },
};

/// What a fault touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    AgentA,
    AgentB,
    Control,
    Link,
    Pods,
}

/// A fault.
pub struct Fault {
    pub name: &'static str,
    pub part: Part,
    /// What may fail while it lasts; everything else must not.
    pub costs: &'static [Kind],
    /// Whether that may take its time; else who is not served is told at once.
    pub waits: bool,
    /// How long it lasts in the long form.
    pub hold: Duration,
    /// Makes it, holds it, takes it back. An error is a promise that was not kept.
    pub strike: fn(&Stage, Duration) -> Result<(), String>,
}

impl Fault {
    /// Whether both may strike at once: they touch different parts, and neither makes promises of its own about pods, which
    /// hold only in a mesh that is otherwise well.
    pub fn goes_with(&self, other: &Self) -> bool {
        let parts = [self.part, other.part];
        parts[0] != parts[1] && !parts.contains(&Part::Pods)
    }
}

const NOTHING: &[Kind] = &[];
/// What passes the agent of node-a: all that crosses the link.
const CARRIED: &[Kind] =
    &[Kind::NewCarried, Kind::NewBack, Kind::NewService, Kind::KeptCarried, Kind::Download, Kind::Upload];
/// What crosses the link and begins while it is broken; what is established must live.
const NEW_ACROSS: &[Kind] =
    &[Kind::NewCarried, Kind::NewBack, Kind::NewService, Kind::Download, Kind::Upload, Kind::Plain];

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub const FAULTS: &[Fault] = &[
    Fault {
        name: "agent of the source killed",
        part: Part::AgentA,
        costs: CARRIED,
        waits: false,
        hold: seconds(3),
        strike: |stage, hold| kill_agent(stage, "node-a", hold),
    },
    Fault {
        name: "agent of the destination killed",
        part: Part::AgentB,
        costs: CARRIED,
        waits: false,
        hold: seconds(3),
        strike: |stage, hold| kill_agent(stage, "node-b", hold),
    },
    Fault {
        name: "agent killed every 2 s",
        part: Part::AgentA,
        costs: CARRIED,
        waits: false,
        hold: seconds(60),
        strike: kill_agent_again_and_again,
    },
    Fault {
        name: "agent of the source hung",
        part: Part::AgentA,
        costs: CARRIED,
        waits: true,
        hold: seconds(20),
        strike: |stage, hold| hang_agent(stage, "node-a", hold),
    },
    Fault {
        name: "agent of the destination hung",
        part: Part::AgentB,
        costs: CARRIED,
        waits: true,
        hold: seconds(20),
        strike: |stage, hold| hang_agent(stage, "node-b", hold),
    },
    Fault {
        name: "no descriptor free in the agent",
        part: Part::AgentA,
        costs: CARRIED,
        waits: false,
        hold: seconds(5),
        strike: exhaust_descriptors,
    },
    Fault {
        name: "control killed",
        part: Part::Control,
        costs: NOTHING,
        waits: false,
        hold: seconds(20),
        strike: kill_control,
    },
    Fault {
        name: "control restarted every second",
        part: Part::Control,
        costs: NOTHING,
        waits: false,
        hold: seconds(10),
        strike: restart_control_again_and_again,
    },
    Fault {
        name: "manifests damaged",
        part: Part::Control,
        costs: NOTHING,
        waits: false,
        hold: seconds(3),
        strike: damage_manifests,
    },
    Fault {
        name: "link down",
        part: Part::Link,
        costs: NEW_ACROSS,
        waits: true,
        hold: seconds(30),
        strike: take_link_down,
    },
    Fault {
        name: "every packet between nodes dropped",
        part: Part::Link,
        costs: NEW_ACROSS,
        waits: true,
        hold: seconds(30),
        strike: drop_packets,
    },
    Fault {
        name: "a pod dies in the middle of its streams",
        part: Part::Pods,
        costs: NOTHING,
        waits: false,
        hold: seconds(2),
        strike: kill_pod,
    },
    Fault {
        name: "a DENY comes and goes",
        part: Part::Pods,
        costs: NOTHING,
        waits: false,
        hold: seconds(2),
        strike: deny_and_allow,
    },
    Fault {
        name: "a pod is withdrawn and enrolled again",
        part: Part::Pods,
        costs: NOTHING,
        waits: false,
        hold: seconds(2),
        strike: withdraw_and_enrol,
    },
    Fault {
        name: "the root of all certificates is replaced",
        part: Part::Pods,
        costs: NOTHING,
        waits: false,
        hold: seconds(5),
        strike: replace_root,
    },
    Fault {
        name: "5,000 new connections at once",
        part: Part::Pods,
        costs: NOTHING,
        waits: false,
        hold: seconds(5),
        strike: storm,
    },
];

fn kill_agent(stage: &Stage, node: &str, hold: Duration) -> Result<(), String> {
    let node = stage.mesh.node(node);
    node.kill_agent();
    thread::sleep(hold);
    node.start_agent();
    node.is_ready();
    Ok(())
}

fn kill_agent_again_and_again(stage: &Stage, hold: Duration) -> Result<(), String> {
    let begun = Instant::now();
    while begun.elapsed() < hold {
        stage.mesh.node("node-a").kill_agent();
        stage.mesh.node("node-a").start_agent();
        thread::sleep(seconds(2));
    }
    stage.mesh.node("node-a").is_ready();
    Ok(())
}

fn hang_agent(stage: &Stage, node: &str, hold: Duration) -> Result<(), String> {
    stage.mesh.node(node).hang_agent();
    thread::sleep(hold);
    stage.mesh.node(node).resume_agent();
    Ok(())
}

fn exhaust_descriptors(stage: &Stage, hold: Duration) -> Result<(), String> {
    let pid = stage.mesh.node("node-a").agent_id().to_string();
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).map_err(|error| error.to_string())?.count();
    let before = limit_descriptors(&pid, None)?;
    limit_descriptors(&pid, Some(&open.to_string()))?;
    thread::sleep(hold);
    limit_descriptors(&pid, Some(&before)).map(drop)
}

/// The soft limit before.
fn limit_descriptors(pid: &str, soft: Option<&str>) -> Result<String, String> {
    let mut command = Command::new("prlimit");
    command.args(["--pid", pid]);
    match soft {
        Some(soft) => command.arg(format!("--nofile={soft}:")),
        None => command.args(["--nofile", "--output", "SOFT", "--noheadings"]),
    };
    let output = command.output().map_err(|error| format!("prlimit: {error}"))?;
    if !output.status.success() {
        return Err(format!("prlimit: {}", String::from_utf8_lossy(&output.stderr)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn kill_control(stage: &Stage, hold: Duration) -> Result<(), String> {
    stage.mesh.control().kill();
    thread::sleep(hold);
    stage.mesh.control().start();
    Ok(())
}

fn restart_control_again_and_again(stage: &Stage, hold: Duration) -> Result<(), String> {
    let begun = Instant::now();
    while begun.elapsed() < hold {
        stage.mesh.control().kill();
        stage.mesh.control().start();
        thread::sleep(seconds(1));
    }
    Ok(())
}

fn damage_manifests(stage: &Stage, hold: Duration) -> Result<(), String> {
    let manifests = stage.mesh.control().manifests();
    let policy = format!("policy-{}.yaml", stage.closed[0].name());
    let whole = std::fs::read_to_string(manifests.join(&policy)).map_err(|error| error.to_string())?;
    stage.mesh.apply("strict-broken.yaml", "kind: [PeerAuthentication\n");
    stage.mesh.apply(&policy, &format!("{whole}  rules: [\n"));
    thread::sleep(hold);
    stage.mesh.apply(&policy, &whole);
    stage.mesh.remove("strict-broken.yaml");
    Ok(())
}

fn take_link_down(stage: &Stage, hold: Duration) -> Result<(), String> {
    let node = stage.mesh.node("node-b");
    stage.mesh.link().goes_down(node.name());
    thread::sleep(hold);
    stage.mesh.link().comes_up(node.name(), node.addresses());
    Ok(())
}

fn drop_packets(stage: &Stage, hold: Duration) -> Result<(), String> {
    stage.mesh.link().loses_everything(true);
    thread::sleep(hold);
    stage.mesh.link().loses_everything(false);
    Ok(())
}

/// Its callers are told at once, and nothing of it is left.
fn kill_pod(stage: &Stage, _hold: Duration) -> Result<(), String> {
    let mortal = stage.mesh.app(&format!("mortal-{:08x}", fastrand::u32(..))).on("node-b").echoing_on(ECHO);
    let carried = stage.web.opens(mortal.at(ECHO));
    let direct = stage.far.opens(mortal.at(ECHO));
    carried.still_works();
    direct.still_works();
    mortal.dies();
    for (way, conversation) in [("carried", &carried), ("direct", &direct)] {
        if conversation.end_within(seconds(2)).is_none() {
            return Err(format!("a {way} caller of a pod that died was not told within 2 s"));
        }
    }
    let node = stage.mesh.node("node-b");
    eventually("the agent forgets a pod that died", seconds(2), || {
        let pods = node.admin().list().map_err(|status| status.to_string())?;
        if pods.iter().any(|pod| pod.name == mortal.name()) { Err("it is listed".to_owned()) } else { Ok(()) }
    });
    stage.mesh.remove(&format!("pod-{}-{}.yaml", mortal.namespace(), mortal.name()));
    Ok(())
}

/// On both paths live connections are closed within a second, new ones refused, and taken again afterwards.
fn deny_and_allow(stage: &Stage, hold: Duration) -> Result<(), String> {
    let conversations: Vec<_> = stage.moody.iter().map(|moody| stage.web.opens(moody.at(ECHO))).collect();
    for moody in &stage.moody {
        stage.mesh.policy(moody.name()).on(moody).deny(identity("ns/default/sa/web"));
    }
    for conversation in &conversations {
        // Of it the agent has a second; the rest is for the manifest to be read and compiled.
        if conversation.end_within(seconds(3)).is_none() {
            return Err("a connection outlived the DENY".to_owned());
        }
    }
    let begun = Instant::now();
    while begun.elapsed() < hold {
        for moody in &stage.moody {
            if stage.web.dial(moody).was_answered() {
                return Err(format!("{} answered under a DENY", moody.name()));
            }
        }
    }
    for moody in &stage.moody {
        stage.mesh.remove_policy(moody.name());
        stage.web.reaches(moody.at(ECHO));
    }
    Ok(())
}

fn withdraw_and_enrol(stage: &Stage, hold: Duration) -> Result<(), String> {
    let node = stage.mesh.node("node-b");
    let moody = &stage.moody[1];
    let said = |status: tonic::Status| status.to_string();
    node.admin().withdraw(moody.uid()).map_err(said)?;
    thread::sleep(hold);
    node.admin().enrol(moody.enrolment()).map_err(said)?;
    eventually("the pod answers again", LIMIT, || {
        if stage.web.dial(moody).was_answered() { Ok(()) } else { Err("not yet".to_owned()) }
    });
    Ok(())
}

/// Each step as soon as every agent is ready for it.
fn replace_root(stage: &Stage, _hold: Duration) -> Result<(), String> {
    for step in ["add", "use", "drop"] {
        eventually(&format!("step {step} is made"), LIMIT, || stage.mesh.control().rotate(Some(step)));
    }
    Ok(())
}

/// Direct and between nodes.
fn storm(stage: &Stage, _hold: Duration) -> Result<(), String> {
    let report = stage.web.storms(&[stage.near.at(NAME), stage.far.at(NAME)], 5_000, 64, true);
    if report.answered == 5_000 {
        Ok(())
    } else {
        Err(format!("of 5,000 connections not all were answered: {report:?}"))
    }
}
