//! The faults: what each does to the mesh for how long, and what it may cost.

use std::time::Duration;

use crate::torture::{
    load::Kind,
    misled::{babble_for_control, garble_resources, put_agents_clock_off, put_controls_clock_ahead},
    stage::Stage,
    strikes::{
        damage_manifests, degrade_link, deny_and_allow, drop_packets, exhaust_descriptors, fill_disk, fill_maps,
        hang_agent, kill_agent, kill_agent_again_and_again, kill_agent_for_its_memory, kill_control, kill_pod,
        replace_root, restart_control_again_and_again, storm, take_link_down, upgrade_agent, withdraw_and_enrol,
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
    /// Whether an agent's process ends by it, and its memory and descriptors begin anew.
    pub ends_agent: bool,
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
/// What begins between nodes; what is established must live.
const BEGINS_ACROSS: &[Kind] = &[Kind::NewCarried, Kind::NewBack, Kind::NewService, Kind::Download, Kind::Upload];

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
        ends_agent: true,
        strike: |stage, hold| kill_agent(stage, "node-a", hold),
    },
    Fault {
        name: "agent of the destination killed",
        part: Part::AgentB,
        costs: CARRIED,
        waits: false,
        hold: seconds(3),
        ends_agent: true,
        strike: |stage, hold| kill_agent(stage, "node-b", hold),
    },
    Fault {
        name: "agent killed every 2 s",
        part: Part::AgentA,
        costs: CARRIED,
        waits: false,
        hold: seconds(60),
        ends_agent: true,
        strike: kill_agent_again_and_again,
    },
    Fault {
        name: "agent of the source hung",
        part: Part::AgentA,
        costs: CARRIED,
        waits: true,
        hold: seconds(20),
        ends_agent: false,
        strike: |stage, hold| hang_agent(stage, "node-a", hold),
    },
    Fault {
        name: "agent of the destination hung",
        part: Part::AgentB,
        costs: CARRIED,
        waits: true,
        hold: seconds(20),
        ends_agent: false,
        strike: |stage, hold| hang_agent(stage, "node-b", hold),
    },
    Fault {
        name: "agent of the source upgraded in place",
        part: Part::AgentA,
        costs: NOTHING,
        waits: false,
        hold: seconds(3),
        ends_agent: false,
        strike: |stage, hold| upgrade_agent(stage, "node-a", hold),
    },
    Fault {
        name: "agent of the destination upgraded in place",
        part: Part::AgentB,
        costs: NOTHING,
        waits: false,
        hold: seconds(3),
        ends_agent: false,
        strike: |stage, hold| upgrade_agent(stage, "node-b", hold),
    },
    Fault {
        name: "no descriptor free in the agent",
        part: Part::AgentA,
        costs: CARRIED,
        waits: false,
        hold: seconds(5),
        ends_agent: false,
        strike: exhaust_descriptors,
    },
    Fault {
        name: "control killed",
        part: Part::Control,
        costs: NOTHING,
        waits: false,
        hold: seconds(20),
        ends_agent: false,
        strike: kill_control,
    },
    Fault {
        name: "control restarted every second",
        part: Part::Control,
        costs: NOTHING,
        waits: false,
        hold: seconds(10),
        ends_agent: false,
        strike: restart_control_again_and_again,
    },
    Fault {
        name: "manifests damaged",
        part: Part::Control,
        costs: NOTHING,
        waits: false,
        hold: seconds(3),
        ends_agent: false,
        strike: damage_manifests,
    },
    Fault {
        name: "link down",
        part: Part::Link,
        costs: NEW_ACROSS,
        waits: true,
        hold: seconds(30),
        ends_agent: false,
        strike: take_link_down,
    },
    Fault {
        name: "every packet between nodes dropped",
        part: Part::Link,
        costs: NEW_ACROSS,
        waits: true,
        hold: seconds(30),
        ends_agent: false,
        strike: drop_packets,
    },
    Fault {
        name: "a pod dies in the middle of its streams",
        part: Part::Pods,
        costs: NOTHING,
        waits: false,
        hold: seconds(2),
        ends_agent: false,
        strike: kill_pod,
    },
    Fault {
        name: "a DENY comes and goes",
        part: Part::Pods,
        costs: NOTHING,
        waits: false,
        hold: seconds(2),
        ends_agent: false,
        strike: deny_and_allow,
    },
    Fault {
        name: "a pod is withdrawn and enrolled again",
        part: Part::Pods,
        costs: NOTHING,
        waits: false,
        hold: seconds(2),
        ends_agent: false,
        strike: withdraw_and_enrol,
    },
    Fault {
        name: "the root of all certificates is replaced",
        part: Part::Pods,
        costs: NOTHING,
        waits: false,
        hold: seconds(5),
        ends_agent: false,
        strike: replace_root,
    },
    Fault {
        name: "5,000 new connections at once",
        part: Part::Pods,
        costs: NOTHING,
        waits: false,
        hold: seconds(5),
        ends_agent: false,
        strike: storm,
    },
    Fault {
        name: "agent killed for its memory",
        part: Part::AgentA,
        costs: CARRIED,
        waits: false,
        hold: seconds(3),
        ends_agent: true,
        strike: kill_agent_for_its_memory,
    },
    Fault {
        name: "disk full",
        part: Part::Pods,
        costs: NOTHING,
        waits: false,
        hold: seconds(2),
        ends_agent: false,
        strike: fill_disk,
    },
    Fault {
        name: "maps full",
        part: Part::Pods,
        costs: NOTHING,
        waits: false,
        hold: seconds(3),
        ends_agent: false,
        strike: fill_maps,
    },
    Fault {
        name: "2 % loss, 50 ms and reordering",
        part: Part::Link,
        costs: NEW_ACROSS,
        waits: true,
        hold: seconds(20),
        ends_agent: false,
        strike: degrade_link,
    },
    Fault {
        name: "clock of an agent 2 h ahead",
        part: Part::Pods,
        costs: NOTHING,
        waits: false,
        hold: seconds(10),
        ends_agent: false,
        strike: |stage, hold| put_agents_clock_off(stage, "+2h", "ok", hold),
    },
    Fault {
        name: "clock of an agent 2 h behind",
        part: Part::Pods,
        costs: BEGINS_ACROSS,
        waits: false,
        hold: seconds(10),
        ends_agent: false,
        strike: |stage, hold| put_agents_clock_off(stage, "-2h", "failed", hold),
    },
    Fault {
        name: "clock of control 2 h ahead",
        part: Part::Control,
        costs: NOTHING,
        waits: false,
        hold: seconds(10),
        ends_agent: false,
        strike: put_controls_clock_ahead,
    },
    Fault {
        name: "control speaks no protocol",
        part: Part::Control,
        costs: NOTHING,
        waits: false,
        hold: seconds(10),
        ends_agent: false,
        strike: babble_for_control,
    },
    Fault {
        name: "control says what makes no sense",
        part: Part::Pods,
        costs: NOTHING,
        waits: false,
        hold: seconds(6),
        ends_agent: false,
        strike: garble_resources,
    },
];
