//! What the daemons may do, and what nobody gets to see: rights are given up at the start, keys and tokens are in no output.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use mesh_agent::privileges::KEPT;
use mesh_tests::{LIMIT, Mesh, Setup, eventually, node::Node, process::printed, web};

/// Of /proc/PID/status.
fn field(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let value = line.unwrap_or_else(|| panic!("{name} is not in\n{status}")).trim();
    u64::from_str_radix(value, 16).unwrap_or_else(|error| panic!("{name}: {value:?}: {error}"))
}

/// Checks each thread: capabilities are a thread's own.
#[track_caller]
fn holds_only(process: u32, capabilities: u64, seccomp: u64) {
    let mut threads = 0;
    for thread in fs::read_dir(format!("/proc/{process}/task")).expect("it runs").flatten() {
        let status = fs::read_to_string(thread.path().join("status")).expect("a thread that lives");
        let held = ["CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"].map(|name| field(&status, name));
        assert_eq!(held, [capabilities, capabilities, capabilities, 0, 0], "{status}");
        assert_eq!((field(&status, "NoNewPrivs"), field(&status, "Seccomp")), (1, seccomp), "{status}");
        threads += 1;
    }
    assert!(threads > 0);
}

#[test]
fn daemons_keep_no_right_that_they_do_not_need() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    let near = mesh.app("near").on("node-a").echoing_on(80);
    let far = mesh.app("far").on("node-b").echoing_on(80);
    web.dial(&near).is_answered();
    web.dial(&far).is_answered();

    let kept = KEPT.iter().fold(0, |all, kept| all | kept.capability.bits());
    // 2: a filter. Source: Linux, include/uapi/linux/seccomp.h, SECCOMP_MODE_FILTER.
    mesh.nodes().iter().for_each(|node| holds_only(node.agent_id(), kept, 2));
    holds_only(mesh.control().id(), 0, 0);
    let checked = printed(&mesh.node("node-a").meshctl(&["check"]));
    let rights = checked.lines().find(|line| line.starts_with("capabilities"));
    assert!(rights.is_some_and(|line| line.contains("all that are needed")), "{checked}");
}

#[test]
fn the_agents_pod_is_given_the_rights_that_the_agent_keeps_and_says_why() {
    let chart = include_str!("../../deploy/helm/templates/agent.yaml");
    let (_, added) = chart.split_once("            add:\n").expect("the chart adds capabilities");
    let given: Vec<_> = added
        .lines()
        .map_while(|line| line.strip_prefix("            - ")?.split_once('#'))
        .map(|(name, reason)| (name.trim(), reason.trim()))
        .collect();
    let kept: Vec<_> = KEPT.iter().map(|kept| (kept.name.trim_start_matches("CAP_"), kept.reason)).collect();
    assert_eq!(given, kept);
}

/// The lines of a PEM file that only who has the key knows, and the token of a token file.
fn secrets_of(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    // A file of keys holds certificates too, which everybody may see.
    let keys = text.split("-----BEGIN ").filter(|block| !block.starts_with("CERTIFICATE"));
    let lines = keys.flat_map(str::lines).filter(|line| line.len() >= 32 && !line.contains("---"));
    let secrets: Vec<String> = lines.map(str::to_owned).collect();
    assert!(!secrets.is_empty(), "{} holds no secret", path.display());
    secrets
}

/// All that a node shows to an operator, by where.
fn shown_by(node: &Node) -> Vec<(String, Vec<u8>)> {
    let mut shown = vec![
        (format!("log of {}", node.name()), node.agent_log().into_bytes()),
        (format!("cached View of {}", node.name()), fs::read(node.cached_view()).expect("it is written")),
    ];
    for verb in ["pods", "workloads", "services", "sockets", "policies", "certificates", "status", "check", "log"] {
        for format in ["json", "wide"] {
            let output = node.meshctl(&["-o", format, verb]);
            shown.push((format!("meshctl {verb} -o {format}"), [output.stdout, output.stderr].concat()));
        }
    }
    for (port, path) in [(15000, "/"), (15000, "/metrics"), (15020, "/metrics"), (15021, "/healthz/ready")] {
        let answer = web::ask(&node.system().namespace, SocketAddr::from((Ipv4Addr::LOCALHOST, port)), path);
        shown.push((format!("port {port}{path}"), answer.expect("the agent answers").body.into_bytes()));
    }
    shown
}

#[test]
fn no_key_and_no_token_is_in_anything_that_is_shown() {
    let trace = ["--log", "trace"].map(str::to_owned);
    let mesh =
        Mesh::with(Setup { agent_arguments: trace.to_vec(), control_arguments: trace.to_vec(), ..Setup::default() });
    let web = mesh.app("web").on("node-a");
    let far = mesh.app("far").on("node-b").echoing_on(80);
    web.dial(&far).is_answered();
    let (node, control) = (mesh.node("node-a"), mesh.control());
    eventually("the View is on disk", LIMIT, || {
        mesh.nodes().iter().all(|node| node.cached_view().exists()).then_some(()).ok_or_else(String::new)
    });
    // What is said of a token that anybody could have read does not show it either.
    let token = control.token("node-a");
    let set_mode = |mode| fs::set_permissions(&token, fs::Permissions::from_mode(mode)).expect("our own file");
    set_mode(0o644);
    node.kill_agent();
    node.start_agent();
    eventually("the agent says what to do", LIMIT, || {
        let log = node.agent_log();
        if log.contains("chmod 600") { Ok(()) } else { Err(log) }
    });
    set_mode(0o600);
    node.is_ready();
    web.reaches(far.at(80));

    let keys = |node: &Node| {
        fs::read_dir(node.keys())
            .expect("it has keys")
            .map(|entry| entry.expect("a file").path())
            .collect::<Vec<PathBuf>>()
    };
    let mut files: Vec<PathBuf> = mesh.nodes().iter().flat_map(keys).collect();
    assert_eq!(files.len(), 2, "a key for each workload: {files:?}");
    files.extend([control.state().join("ca-key.pem"), token.clone(), control.token("node-b")]);
    let secrets: Vec<String> = files.iter().flat_map(|file| secrets_of(file)).collect();
    let mut shown: Vec<_> = mesh.nodes().iter().flat_map(shown_by).collect();
    shown.push(("log of control".to_owned(), control.log().into_bytes()));
    for path in ["/metrics", "/debug/config", "/debug/agents"] {
        shown.push((format!("control {path}"), control.page(path).expect("control answers").into_bytes()));
    }
    for (place, text) in &shown {
        assert!(!text.is_empty() || place.contains("services") || place.contains("policies"), "{place} is empty");
        for (number, secret) in secrets.iter().enumerate() {
            let found = memchr::memmem::find(text, secret.as_bytes());
            assert_eq!(found, None, "secret {number} of {files:?} is in {place}");
        }
    }
}
