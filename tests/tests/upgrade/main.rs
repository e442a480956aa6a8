//! Upgrade in place: an agent that starts beside the one that runs takes over from it, and nobody notices; one that cannot
//! leaves it in charge.

mod stage;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use clap::Parser;
use mesh_agent::{
    admin::LogControl,
    agent::Agent,
    config::{CommandLine, Config, Verb},
    kernel::Kernel,
    takeover::{self, About, Beginning},
};
use mesh_tests::{LIMIT, Mesh, eventually, identity};

use self::stage::{ECHO, Stage};

#[test]
fn twelve_upgrades_under_load_refuse_nothing_cut_nothing_and_show_nothing() {
    let stage = Stage::set("1h");
    let node = stage.node();
    let conversations = stage.conversations();
    let pods = node.admin().list().expect("the agent lists its pods");

    let rate = stage.unnoticed(|| {
        // With more workers, and with fewer.
        for workers in ["3", "1", "2"].into_iter().cycle().take(12) {
            let begun = Instant::now();
            node.upgrade_agent(&[("--workers", workers)]);
            eprintln!("taken over after {} ms", begun.elapsed().as_millis());
            let status = node.admin().status().expect("the new one answers");
            assert_eq!((status.workers.to_string().as_str(), status.pods), (workers, 2));
            Stage::still_work(&conversations);
        }
    });

    Stage::still_work(&conversations);
    assert_eq!(node.admin().list().expect("the agent lists its pods"), pods);
    assert!(rate > 100.0, "{rate} new connections in a second are no load");
    stage.is_well();
}

#[test]
fn the_agent_that_was_followed_drains_and_ends_and_touches_nothing_that_is_its_successors() {
    let stage = Stage::set("1h");
    let node = stage.node();
    let mortal = stage.mesh.app("mortal").on("node-a").echoing_on(ECHO);
    let of_first: Vec<_> = [(&stage.web, &stage.far), (&stage.far, &stage.near), (&stage.far, &mortal)]
        .map(|(from, to)| (from.opens(to.at(ECHO)), to.at(ECHO)))
        .into();
    // One between that carries nothing, and ends at once.
    node.upgrade_agent(&[]);
    node.upgrade_agent(&[("--drain-time", "2s"), ("--after-take-over", "wait")]);
    eventually("only the first one drains", LIMIT, || match node.draining_agents() {
        1 => Ok(()),
        count => Err(format!("{count} agents drain")),
    });
    Stage::still_work(&of_first);

    // What becomes of connections of the agent that drains is still decided here.
    node.admin().withdraw(mortal.uid()).expect("it is withdrawn");
    of_first[2].0.is_cut_within(Duration::from_millis(500));
    node.admin().enrol(mortal.enrolment()).expect("it is enrolled again");
    stage.mesh.policy("not-far").on(&stage.near).deny(identity("ns/default/sa/far"));
    of_first[1].0.is_cut_within(Duration::from_secs(3));
    stage.mesh.remove_policy("not-far");
    Stage::still_work(&of_first[..1]);
    drop(of_first);
    eventually("the first one ends with its last connection", LIMIT, || match node.draining_agents() {
        0 => Ok(()),
        _ => Err("it still runs".to_owned()),
    });

    let of_second = stage.conversations();
    Stage::still_work(&of_second);
    let begun = Instant::now();
    node.upgrade_agent(&[]);
    Stage::still_work(&of_second);
    let kept = || fs::read(node.directory().join("pods.json")).expect("the record");
    let before = kept();
    let [by_address, by_service, outbound, inbound] = of_second;
    for (carried, _) in [outbound, inbound] {
        carried.is_cut_within(LIMIT);
        assert!(begun.elapsed() >= Duration::from_secs(2), "cut after {:?}", begun.elapsed());
    }
    Stage::still_work(&[by_address, by_service]);
    // Its supervisor would start it again.
    eventually("it waits", LIMIT, || {
        if node.agent_log().contains("waits for SIGTERM") { Ok(()) } else { Err("it does not say so".to_owned()) }
    });
    assert_eq!(node.draining_agents(), 1);
    node.end_draining_agents();
    eventually("it ends", LIMIT, || if node.draining_agents() == 0 { Ok(()) } else { Err("it runs".to_owned()) });
    assert_eq!(kept(), before);
    assert_eq!(fs::read_dir(node.keys()).expect("the keys").count(), 3, "of web, near and mortal");
    stage.is_well();
}

#[test]
fn a_successor_that_is_not_well_leaves_the_agent_that_runs_in_charge() {
    let stage = Stage::set("1h");
    let (node, agent) = (stage.node(), stage.node().agent_program());
    let conversations = stage.conversations();
    let id = node.agent_id();
    let refused = |program: &PathBuf, changes: &[(&str, &str)], reason: &str| {
        let said = node.tries_to_upgrade(program, changes).expect_err("it cannot take over");
        assert!(said.contains(reason), "{said}");
        assert_eq!(node.agent_id(), id);
        Stage::still_work(&conversations);
    };

    let broken = with_a_damaged_object(&stage.mesh, &agent);
    refused(&broken, &[], "stays in charge: loading the programs");
    refused(&agent, &[("--node", "node-b")], "another --node");
    let other = stage.mesh.directory().join("other-bpf");
    refused(&agent, &[("--bpffs", &other.display().to_string())], "another --bpffs");
    let taken = node.system().namespace.inside(|| std::net::TcpListener::bind("127.0.0.1:16020"));
    refused(&agent, &[("--metrics-address", "127.0.0.1:16020")], "listen on 127.0.0.1:16020");
    drop(taken);
    let keys: Vec<_> = fs::read_dir(node.keys()).expect("the keys").flatten().map(|entry| entry.path()).collect();
    let (key, content) = (&keys[0], fs::read(&keys[0]).expect("a key"));
    fs::remove_file(key).expect("removed");
    refused(&agent, &[], "is not in RUN_DIR/keys");
    fs::write(key, content).expect("put back");
    fs::set_permissions(key, fs::Permissions::from_mode(0o600)).expect("a mode");

    stage.is_well();
    node.upgrade_agent(&[]);
    Stage::still_work(&conversations);
}

/// The agent's program with its eBPF programs damaged: an ELF file inside it, for the machine EM_BPF.
fn with_a_damaged_object(mesh: &Mesh, agent: &PathBuf) -> PathBuf {
    let mut bytes = fs::read(agent).expect("the agent's program");
    let is_object = |at: &usize| bytes[*at..].starts_with(b"\x7fELF") && bytes[*at + 18..].starts_with(&[247, 0]);
    let at = (1..bytes.len() - 64).find(is_object).expect("the object is in it");
    bytes[at..at + 64].fill(0);
    let path = mesh.directory().join("mesh-agent-damaged");
    fs::write(&path, bytes).expect("a copy");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a mode");
    path
}

#[test]
fn a_successor_that_dies_half_way_leaves_the_agent_that_runs_in_charge() {
    let stage = Stage::set("1h");
    let node = stage.node();
    let conversations = stage.conversations();

    stage.unnoticed(|| {
        for _ in 0..3 {
            let said = node.tries_to_upgrade(&this_as(&stage.mesh, "dies-half-way"), &[]).expect_err("it dies");
            assert!(said.contains("half-way"), "{said}");
            Stage::still_work(&conversations);
        }
    });

    stage.is_well();
    node.upgrade_agent(&[]);
    Stage::still_work(&conversations);
}

#[test]
fn a_version_with_other_maps_takes_over_and_so_does_the_one_before_it_again() {
    let stage = Stage::set("1h");
    let node = stage.node();
    let conversations = stage.conversations();
    let other = this_as(&stage.mesh, "other-maps");
    let listening = stage.listening();
    let maps = || {
        let found = fs::read_dir(node.directory().join("bpf")).expect("the pins").flatten();
        let names = found.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with('v')).collect::<Vec<_>>()
    };

    stage.unnoticed(|| {
        node.tries_to_upgrade(&other, &[]).expect("it takes over");
        assert_eq!(maps(), ["v2"]);
        Stage::still_work(&conversations);
        node.upgrade_agent(&[]);
        assert_eq!(maps(), ["v1"]);
        Stage::still_work(&conversations);
    });
    // Who waits in the queue of a socket that is opened anew instead is reset: rare, and hard to see in a load.
    assert_eq!(stage.listening(), listening);

    // Direct connections are still known, and still judged.
    stage.mesh.policy("not-web").on(&stage.near).deny(identity("ns/default/sa/web"));
    conversations[0].0.is_cut_within(Duration::from_secs(3));
    stage.mesh.remove_policy("not-web");
    stage.web.reaches(stage.near.at(ECHO));
    stage.is_well();
}

/// In which role this program is an agent, and with which arguments.
const ROLE: &str = "MESH_TESTS_ROLE";
const ARGUMENTS: &str = "MESH_TESTS_ARGUMENTS";

/// A program that is this one in another role.
fn this_as(mesh: &Mesh, role: &str) -> PathBuf {
    let this = std::env::current_exe().expect("this program has a path");
    let path = mesh.directory().join(role);
    let test = "this_program_as_an_agent";
    let script = format!(
        "#!/bin/sh\n{ROLE}={role} {ARGUMENTS}=\"$*\" exec {} {test} --exact --nocapture --test-threads=1\n",
        this.display()
    );
    fs::write(&path, script).expect("a script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a mode");
    path
}

/// No story: what stories start by [`this_as`].
#[test]
fn this_program_as_an_agent() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let words = std::env::var(ARGUMENTS).expect("the arguments of an agent");
    let words = std::iter::once("mesh-agent").chain(words.split_whitespace());
    let Verb::Run(arguments) = CommandLine::parse_from(words).verb else {
        panic!("the arguments of an agent that runs")
    };
    let config = Config::check(&arguments).expect("an agent's arguments");
    let log = LogControl::install(&arguments.log, arguments.log_format).expect("a log");
    match role.as_str() {
        "other-maps" => runs_on_other_maps(config, log),
        "dies-half-way" => dies_half_way(&config),
        _ => panic!("{role} is no role"),
    }
}

/// As a build does whose maps are laid out otherwise: pinned under another version.
fn runs_on_other_maps(mut config: Config, log: LogControl) {
    config.kernel.maps_version = "v2";
    let ended = Agent::new(config, log).and_then(Agent::run);
    std::process::exit(ended.map_or_else(
        |error| {
            eprintln!("{error}");
            1
        },
        |()| 0,
    ));
}

/// Takes the pods and puts its programs on the hooks, and is killed before it can say so.
fn dies_half_way(config: &Config) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let begun = takeover::begin(&config.run_dir, &About::of(config)).await.expect("an agent runs");
        let Beginning::Beside(mut candidate) = begun else { panic!("no agent runs") };
        let kernel = Kernel::prepare(&config.kernel).expect("the programs load");
        let taken = candidate.take(false).await.expect("the pods");
        assert_eq!(taken.handed.pods.len(), 2);
        let _attached = kernel.attach().expect("the programs go on the hooks");
        println!("half-way");
        let id = std::process::id().to_string();
        Command::new("kill").args(["-KILL", &id]).status().expect("killed");
    });
}
