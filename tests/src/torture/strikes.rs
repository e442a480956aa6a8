//! How each fault strikes. It leaves the mesh as it found it; an error is a promise that was not kept.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    LIMIT, eventually, identity,
    node::Node,
    plain,
    protocol::Command,
    torture::stage::{ECHO, FLOWS, NAME, PODS, SOURCE, Stage},
};

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub fn kill_agent(stage: &Stage, node: &str, hold: Duration) -> Result<(), String> {
    let node = stage.mesh.node(node);
    node.kill_agent();
    thread::sleep(hold);
    node.start_agent();
    node.is_ready();
    Ok(())
}

pub fn kill_agent_again_and_again(stage: &Stage, hold: Duration) -> Result<(), String> {
    let begun = Instant::now();
    while begun.elapsed() < hold {
        stage.mesh.node("node-a").kill_agent();
        stage.mesh.node("node-a").start_agent();
        thread::sleep(seconds(2));
    }
    stage.mesh.node("node-a").is_ready();
    Ok(())
}

pub fn hang_agent(stage: &Stage, node: &str, hold: Duration) -> Result<(), String> {
    stage.mesh.node(node).hang_agent();
    thread::sleep(hold);
    stage.mesh.node(node).resume_agent();
    Ok(())
}

/// Again and again: each takes over from the one before.
pub fn upgrade_agent(stage: &Stage, node: &str, hold: Duration) -> Result<(), String> {
    let begun = Instant::now();
    while begun.elapsed() < hold {
        take_over(stage.mesh.node(node))?;
    }
    Ok(())
}

/// One that cannot reach control, which the agent that runs believes to hear, must not take over: while another fault breaks the
/// link it is refused for that reason, and tried again.
fn take_over(node: &Node) -> Result<(), String> {
    let begun = Instant::now();
    loop {
        match node.tries_to_upgrade(&node.agent_program(), &[]) {
            Ok(()) => return Ok(()),
            Err(said) if said.contains("and not this one") && begun.elapsed() < seconds(60) => {}
            Err(said) => {
                let why = said.lines().find(|line| line.contains("not taken over")).unwrap_or("it says nothing");
                return Err(why.to_owned());
            }
        }
    }
}

pub fn exhaust_descriptors(stage: &Stage, hold: Duration) -> Result<(), String> {
    let none = stage.mesh.node("node-a").leaves_no_descriptor();
    let _in_the_gaps: Vec<_> = (0..none.gaps()).map(|_| stage.web.client().opens(stage.far.at(ECHO))).collect();
    thread::sleep(hold);
    Ok(())
}

pub fn kill_control(stage: &Stage, hold: Duration) -> Result<(), String> {
    stage.mesh.control().kill();
    thread::sleep(hold);
    stage.mesh.control().start();
    Ok(())
}

pub fn restart_control_again_and_again(stage: &Stage, hold: Duration) -> Result<(), String> {
    let begun = Instant::now();
    while begun.elapsed() < hold {
        stage.mesh.control().kill();
        stage.mesh.control().start();
        thread::sleep(seconds(1));
    }
    Ok(())
}

pub fn damage_manifests(stage: &Stage, hold: Duration) -> Result<(), String> {
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

pub fn take_link_down(stage: &Stage, hold: Duration) -> Result<(), String> {
    let node = stage.mesh.node("node-b");
    stage.mesh.link().goes_down(node.name());
    thread::sleep(hold);
    stage.mesh.link().comes_up(node.name(), node.addresses());
    Ok(())
}

pub fn drop_packets(stage: &Stage, hold: Duration) -> Result<(), String> {
    stage.mesh.link().loses_everything(true);
    thread::sleep(hold);
    stage.mesh.link().loses_everything(false);
    Ok(())
}

/// Its callers are told at once, and nothing of it is left.
pub fn kill_pod(stage: &Stage, _hold: Duration) -> Result<(), String> {
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
pub fn deny_and_allow(stage: &Stage, hold: Duration) -> Result<(), String> {
    // The fault before may have kept control away.
    stage.mesh.nodes().iter().for_each(Node::hears_control);
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

pub fn withdraw_and_enrol(stage: &Stage, hold: Duration) -> Result<(), String> {
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
pub fn replace_root(stage: &Stage, _hold: Duration) -> Result<(), String> {
    for step in ["add", "use", "drop"] {
        eventually(&format!("step {step} is made"), LIMIT, || stage.mesh.control().rotate(Some(step)));
    }
    Ok(())
}

/// Direct and between nodes.
pub fn storm(stage: &Stage, _hold: Duration) -> Result<(), String> {
    let report = stage.web.storms(&[stage.near.at(NAME), stage.far.at(NAME)], 5_000, 64, true);
    if report.answered == 5_000 {
        Ok(())
    } else {
        Err(format!("of 5,000 connections not all were answered: {report:?}"))
    }
}

/// The kernel kills it as it asks for a page more than it may have: for what peers send and nobody reads.
pub fn kill_agent_for_its_memory(stage: &Stage, hold: Duration) -> Result<(), String> {
    let node = stage.mesh.node("node-a");
    let limit = stage.mesh.limits_memory_of(node.name(), 1 << 20);
    // Memory that it holds from an earlier load takes the first of it.
    for _ in (0..128).take_while(|_| !node.has_agent_ended()) {
        // The last may come when it has gone.
        let _ = stage.web.client().tries(Command::Open(plain(stage.far.at(SOURCE))));
    }
    let status = node.agent_ends();
    let kills = limit.kills();
    thread::sleep(hold);
    node.start_agent();
    node.is_ready();
    if kills > 0 { Ok(()) } else { Err(format!("the kernel killed {kills} processes; the agent ended with {status}")) }
}

/// It cannot keep its View, says so, and works by it all the same; with room it keeps it again.
pub fn fill_disk(stage: &Stage, hold: Duration) -> Result<(), String> {
    let node = stage.mesh.node("node-a");
    let state = node.cached_view().parent().expect("a directory").to_owned();
    let said = |error: rustix::io::Errno| format!("a small tmpfs: {error}");
    let options = c"size=64k,mode=700";
    rustix::mount::mount("full", &state, "tmpfs", rustix::mount::MountFlags::empty(), options).map_err(said)?;
    std::fs::write(state.join("filler"), vec![0; 64 << 10]).map_err(|error| error.to_string())?;
    let moody = &stage.moody[1];
    stage.mesh.policy("paper").on(moody).deny(identity("ns/default/sa/web"));
    cache_error(node, "No space left");
    if stage.web.dial(moody).was_answered() {
        return Err("a DENY that cannot be kept on disk is not in force".to_owned());
    }
    thread::sleep(hold);
    rustix::mount::unmount(&state, rustix::mount::UnmountFlags::DETACH).map_err(said)?;
    stage.mesh.remove_policy("paper");
    stage.web.reaches(moody.at(ECHO));
    cache_error(node, "");
    Ok(())
}

fn cache_error(node: &Node, part: &str) {
    eventually("the agent says how its View is kept", LIMIT, || {
        let said = node.admin().status().map_err(|status| status.to_string())?.cache_error;
        if said.is_empty() == part.is_empty() && said.contains(part) { Ok(()) } else { Err(said) }
    });
}

/// More connections than can be listed in DIRECT, and then in FLOWS, and a pod with more probes than fit: they go on unlisted, it is refused.
pub fn fill_maps(stage: &Stage, hold: Duration) -> Result<(), String> {
    let node = stage.mesh.node("node-a");
    let unlisted = || node.metrics().sum("mesh_steering_total", &[("reason", "flows_full")]);
    let before = unlisted();
    let kept: Vec<_> = (0..2 * FLOWS + 50).map(|_| stage.web.opens(stage.near.at(ECHO))).collect();
    if unlisted() <= before {
        return Err("the map of connections was not full".to_owned());
    }
    let greedy = stage.mesh.app(&format!("greedy-{:08x}", fastrand::u32(..))).late();
    let greedy = (0..=16 * PODS).fold(greedy, |app, port| app.probed_on(9000 + port)).on(node.name());
    let refusal = node.admin().enrol(greedy.enrolment());
    greedy.dies();
    stage.mesh.remove(&format!("pod-{}-{}.yaml", greedy.namespace(), greedy.name()));
    if !refusal.as_ref().is_err_and(|status| status.message().contains("map PROBES is full")) {
        return Err(format!("a pod with too many probes: {refusal:?}"));
    }
    thread::sleep(hold);
    for conversation in &kept {
        conversation.still_works();
    }
    Ok(())
}

pub fn degrade_link(stage: &Stage, hold: Duration) -> Result<(), String> {
    let _weather = stage.mesh.link().degraded(0.02, Duration::from_millis(50));
    thread::sleep(hold);
    Ok(())
}
