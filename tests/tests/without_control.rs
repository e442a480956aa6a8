//! The control daemon is away and agents start all the same: with the View on their disk and the keys in their memory, or
//! refusing what they lack.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use mesh_api::{
    AUTHORIZATION_TYPE,
    proto::{
        discovery::DeltaDiscoveryResponse,
        security::{Action, Authorization, Scope},
    },
};
use mesh_tests::{
    App, LIMIT, Mesh, Setup, eventually, identity,
    imposter::{Imposter, answer},
    node::Node,
};
use prost::Message;

/// Two callers and a server on node-a, a server on node-b; `api` may reach neither.
struct Pods {
    web: App,
    api: App,
    near: App,
    far: App,
}

fn pods(mesh: &Mesh) -> Pods {
    let pods = Pods {
        web: mesh.app("web").on("node-a"),
        api: mesh.app("api").on("node-a"),
        near: mesh.app("near").on("node-a").echoing_on(80),
        far: mesh.app("far").on("node-b").echoing_on(80),
    };
    mesh.policy("no-api-near").on(&pods.near).deny(identity("ns/default/sa/api"));
    mesh.policy("no-api-far").on(&pods.far).deny(identity("ns/default/sa/api"));
    works(&pods);
    for node in mesh.nodes() {
        ["default/no-api-near", "default/no-api-far"].iter().for_each(|name| has_cached(node, name));
    }
    pods
}

/// Allowed and denied, across nodes both ways and on one node.
#[track_caller]
fn works(Pods { web, api, near, far }: &Pods) {
    web.dial(far).is_answered();
    far.dial(near).is_answered();
    web.dial(near).is_answered();
    api.dial(far).is_refused();
    api.dial(near).is_refused();
}

/// Waits until the View on the node's disk has this resource.
#[track_caller]
fn has_cached(node: &Node, name: &str) {
    eventually(&format!("{} has {name} on disk", node.name()), LIMIT, || {
        let bytes = fs::read(node.cached_view()).map_err(|error| error.to_string())?;
        let is_there = memchr::memmem::find(&bytes, name.as_bytes()).is_some();
        if is_there { Ok(()) } else { Err("it is not in the file".to_owned()) }
    });
}

fn keys(node: &Node) -> Vec<std::path::PathBuf> {
    fs::read_dir(node.keys()).into_iter().flatten().map(|entry| entry.expect("a directory").path()).collect()
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_secs().cast_signed()
}

#[test]
fn agents_that_restart_without_control_go_on_with_their_last_view_and_their_keys() {
    let mesh = Mesh::new();
    let pods = pods(&mesh);
    let begun = now();

    mesh.control().kill();
    mesh.nodes().iter().for_each(Node::kill_agent);
    mesh.nodes().iter().for_each(Node::start_agent);
    mesh.nodes().iter().for_each(Node::is_ready);

    works(&pods);
    let carried = pods.web.opens(pods.far.at(80));
    carried.still_works();
    let node = mesh.node("node-a");
    let sockets = node.admin().sockets().expect("the agent lists its connections");
    let tunnelled = sockets.iter().find(|row| row.pod == "default/web" && row.endpoint == pods.far.at(80).to_string());
    let tunnelled = tunnelled.expect("the open connection");
    assert_eq!(tunnelled.connection_security_policy, "mutual_tls");
    assert_eq!(tunnelled.destination_identity, pods.far.identity());

    let status = node.admin().status().expect("the agent answers");
    assert_eq!((status.state.as_str(), status.control.as_str()), ("ready", "disconnected"));
    assert!((begun..=now()).contains(&status.control_away_since), "{}", status.control_away_since);
    assert!(status.view_cached_at > 0 && status.view_cached_at <= now(), "{}", status.view_cached_at);
    assert_eq!((status.certificates, status.certificates_from_disk), (3, 3));
    let shown = String::from_utf8(node.meshctl(&["status"]).stdout).expect("UTF-8");
    for header in ["CONTROL AWAY", "VIEW FROM DISK"] {
        let line = shown.lines().find(|line| line.starts_with(header)).unwrap_or_default();
        assert!(line.ends_with('Z'), "{header} is a time in\n{shown}");
    }

    mesh.control().start();
    eventually("control confirms the View", LIMIT, || {
        let status = node.admin().status().map_err(|status| status.to_string())?;
        let is_confirmed = status.view_cached_at == 0 && status.control_away_since == 0;
        if is_confirmed { Ok(()) } else { Err(format!("{status:?}")) }
    });
    carried.still_works();
    works(&pods);
}

/// An answer of another type than workloads.
fn a_policy_that_selects_nothing() -> DeltaDiscoveryResponse {
    let policy = Authorization {
        name: "other".to_owned(),
        namespace: "elsewhere".to_owned(),
        scope: Scope::WorkloadSelector as i32,
        action: Action::Deny as i32,
        ..Authorization::default()
    };
    answer(AUTHORIZATION_TYPE, "elsewhere/other", AUTHORIZATION_TYPE, &policy.encode_to_vec())
}

/// A pod that came within the second before its agent's end is in no View on disk. What is direct is not cut for that: neither
/// by that View nor by the first answers of control, which come type by type.
#[test]
fn a_connection_of_a_pod_that_the_view_on_disk_does_not_know_lives_until_control_has_named_the_workloads() {
    let mesh = Mesh::new();
    let pods = pods(&mesh);
    let node = mesh.node("node-a");
    let early = fs::read(node.cached_view()).expect("the agent has written it");
    let late = mesh.app("late").on("node-a").echoing_on(80);
    let direct = pods.web.opens(late.at(80));
    direct.still_works();
    let is_direct = |row: &mesh_api::proto::admin::SocketRow| {
        row.pod == "default/web"
            && row.endpoint == late.at(80).to_string()
            && row.connection_security_policy == "node_local"
    };
    assert!(node.admin().sockets().expect("the agent lists its connections").iter().any(is_direct));

    mesh.control().kill();
    node.kill_agent();
    fs::write(node.cached_view(), early).expect("our own file");
    node.start_agent();
    node.is_ready();
    let state_of_late = || {
        let rows = node.admin().workloads().map_err(|status| status.to_string())?;
        rows.into_iter()
            .find(|row| row.name == "late")
            .map(|row| row.state)
            .ok_or_else(|| "it is not listed".to_owned())
    };
    assert_eq!(state_of_late().as_deref(), Ok("pending"), "the View on disk knows the pod");
    assert!(node.admin().status().expect("the agent answers").view_cached_at > 0);
    direct.still_works();

    let imposter = Imposter::of(mesh.control());
    eventually(
        "both agents listen",
        LIMIT,
        || if imposter.listeners() == 2 { Ok(()) } else { Err("not yet".to_owned()) },
    );
    imposter.says(&a_policy_that_selects_nothing());
    eventually("the View is no longer the one from disk", LIMIT, || {
        match node.admin().status().map_err(|status| status.to_string())? {
            status if status.view_cached_at == 0 => Ok(()),
            status => Err(format!("{status:?}")),
        }
    });
    assert_eq!(direct.end_within(Duration::from_secs(2)), None);
    direct.still_works();

    drop(imposter);
    mesh.control().start();
    eventually("control has named the workloads", LIMIT, || match state_of_late()?.as_str() {
        "enrolled" => Ok(()),
        state => Err(state.to_owned()),
    });
    direct.still_works();
    mesh.policy("no-web-late").on(&late).deny(identity("ns/default/sa/web"));
    direct.is_cut_within(Duration::from_secs(3));
}

#[test]
fn a_damaged_view_on_disk_is_refused_and_reported_until_control_is_back() {
    let agent_arguments = ["--direct-max-age", "5s"].map(str::to_owned).into();
    let mesh = Mesh::with(Setup { agent_arguments, ..Setup::default() });
    let pods = pods(&mesh);
    let node = mesh.node("node-a");

    mesh.control().kill();
    node.kill_agent();
    let mut bytes = fs::read(node.cached_view()).expect("the agent has written it");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(node.cached_view(), bytes).expect("our own file");
    node.start_agent();

    let status = eventually("the agent answers", LIMIT, || node.admin().status().map_err(|status| status.to_string()));
    assert!(status.cache_error.contains("checksum"), "{}", status.cache_error);
    assert_eq!((status.state.as_str(), status.view_cached_at), ("starting", 0));
    pods.web.dial(&pods.far).is_refused();
    pods.far.dial(&pods.near).is_refused();
    // Neither that it runs nor that it starts again and again is a heartbeat.
    eventually("what was direct is refused", Duration::from_secs(30), || {
        node.kill_agent();
        node.start_agent();
        let dialled = pods.web.dial(&pods.near);
        if dialled.was_refused() { Ok(()) } else { Err(format!("{:?}", dialled.report())) }
    });
    eventually("the agent answers", LIMIT, || node.admin().status().map_err(|status| status.to_string()));
    let running = Instant::now();
    while running.elapsed() < Duration::from_secs(3) {
        pods.web.dial(&pods.near).is_refused();
    }
    node.counted("mesh_view_cache_failures_total", 1, &[]);

    mesh.control().start();
    node.is_ready();
    pods.web.reaches(pods.far.at(80));
    pods.far.reaches(pods.near.at(80));
    pods.web.reaches(pods.near.at(80));
    works(&pods);
    node.counted("mesh_view_cache_writes_total", 1, &[]);
    assert_eq!(node.admin().status().expect("the agent answers").cache_error, "");
}

#[test]
fn after_a_reboot_without_control_there_is_no_mutual_tls_and_the_reason_is_named() {
    let mesh = Mesh::new();
    let pods = pods(&mesh);
    let node = mesh.node("node-a");
    assert_eq!(keys(node).len(), 3);

    mesh.control().kill();
    node.stop_agent();
    // As a reboot does it: programs, record of pods and tmpfs are gone, the disk is not.
    assert!(node.detach().status.success());
    assert_eq!(keys(node).len(), 0);
    node.start_agent();
    node.is_ready();
    for app in [&pods.web, &pods.api, &pods.near] {
        node.admin().enrol(app.enrolment()).expect("the pod is enrolled again");
    }

    pods.web.dial(&pods.far).is_refused();
    pods.far.dial(&pods.near).is_refused();
    let lacks = ("response_flags", "NO_CERTIFICATE");
    let failed = "istio_tcp_connections_failed_total";
    node.counted(failed, 1, &[("reporter", "source"), ("source_workload", "web"), lacks]);
    let inbound =
        node.access_log().into_iter().find(|line| line["flag"] == "NO_CERTIFICATE" && line["direction"] == "inbound");
    assert!(inbound.is_some(), "{:?}", node.access_log());
    // Who is who on one node the kernel proves.
    pods.web.reaches(pods.near.at(80));
    pods.api.dial(&pods.near).is_refused();
    assert_eq!(node.admin().status().expect("the agent answers").certificates, 0);

    mesh.control().start();
    pods.web.reaches(pods.far.at(80));
    pods.far.reaches(pods.near.at(80));
}

#[test]
fn when_control_is_back_it_sends_what_changed_and_what_was_superseded_is_not_in_force() {
    let mesh = Mesh::new();
    let pods = pods(&mesh);
    let node = mesh.node("node-a");
    let superseded = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  namespace: default\n  \
                      name: superseded\nspec:\n  action: DENY\n  rules:\n    - to:\n        - operation: {ports: [\"9\"]}\n";
    mesh.apply("superseded.yaml", superseded);
    has_cached(node, "default/superseded");

    mesh.control().kill();
    node.kill_agent();
    mesh.remove("superseded.yaml");
    mesh.policy("no-api-near").on(&pods.near).deny(identity("ns/default/sa/nobody"));
    mesh.policy("no-web-far").on(&pods.far).deny(identity("ns/default/sa/web"));
    mesh.control().start();
    node.start_agent();
    node.is_ready();

    pods.api.reaches(pods.near.at(80));
    pods.web.dial(&pods.far).is_refused();
    // To each of the two agents: one policy that is new, one that has changed, one that is gone, and the workload that names
    // the new one.
    let metrics = mesh.control().metrics();
    let sent = |kind, what| metrics.sum(&format!("mesh_xds_sent_{what}_total"), &[("type", kind)]);
    assert_eq!([sent("Authorization", "resources"), sent("Authorization", "removals")], [4.0, 2.0]);
    assert_eq!([sent("Address", "resources"), sent("Address", "removals")], [2.0, 0.0]);
    assert_eq!([sent("MeshConfig", "resources"), sent("MeshConfig", "removals")], [0.0, 0.0]);
    has_cached(node, "default/no-web-far");
    let bytes = fs::read(node.cached_view()).expect("the agent has written it");
    assert_eq!(memchr::memmem::find(&bytes, b"default/superseded"), None);
}

#[test]
fn a_full_disk_is_counted_and_nothing_else_comes_of_it() {
    let mesh = Mesh::new();
    let pods = pods(&mesh);
    let node = mesh.node("node-a");
    let state = node.cached_view().parent().expect("a directory").to_owned();
    let kept = fs::read(node.cached_view()).expect("the agent has written it");
    let size = c"size=64k,mode=700";
    rustix::mount::mount("full", &state, "tmpfs", rustix::mount::MountFlags::empty(), size).expect("a small tmpfs");
    fs::write(node.cached_view(), &kept).expect("it has room for this");
    let filler = state.join("filler");
    fs::write(&filler, vec![0; 65536 - kept.len().next_multiple_of(4096)]).expect("and for this");

    mesh.policy("no-web-far").on(&pods.far).deny(identity("ns/default/sa/web"));
    pods.web.dial(&pods.far).is_refused();
    eventually("the agent says why", LIMIT, || {
        let status = node.admin().status().map_err(|status| status.to_string())?;
        if status.cache_error.contains("No space left") { Ok(()) } else { Err(status.cache_error) }
    });
    assert!(node.metrics().sum("mesh_view_cache_failures_total", &[]) >= 1.0);
    assert!(!node.cached_view().exists(), "what cannot be replaced would bring back what was superseded");
    pods.far.dial(&pods.near).is_answered();

    fs::remove_file(filler).expect("our own file");
    has_cached(node, "default/no-web-far");
    assert_eq!(node.admin().status().expect("the agent answers").cache_error, "");
}

fn assert_private(path: &Path, mode: u32) {
    let metadata = fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!((metadata.mode() & 0o7777, metadata.uid()), (mode, 0), "{}", path.display());
}

#[test]
fn keys_are_in_memory_that_is_the_agents_alone_and_end_with_their_pods() {
    let agent_arguments = ["--log", "debug,mesh_agent=trace,rustls=trace"].map(str::to_owned).into();
    let mesh = Mesh::with(Setup { agent_arguments, ..Setup::default() });
    let Pods { web, far, .. } = pods(&mesh);
    let (node, other) = (mesh.node("node-a"), mesh.node("node-b"));

    assert_private(&node.keys(), 0o700);
    assert_private(&node.cached_view(), 0o600);
    let keys_of = |node| keys(node).into_iter().inspect(|path| assert_private(path, 0o600));
    let pems: Vec<String> = keys_of(node).map(|path| fs::read_to_string(path).expect("PEM")).collect();
    assert_eq!(pems.len(), 3);
    let token = mesh.directory().join("control/tokens/node-a");
    let mut secrets = vec![fs::read_to_string(token).expect("the node's token")];
    secrets.extend(pems.iter().filter_map(|pem| Some(pem.lines().nth(1)?.to_owned())));
    let printed = [["certificates", "-o", "json"], ["check", "-o", "json"], ["status", "-o", "json"]];
    let mut shown: Vec<Vec<u8>> = printed.map(|words| node.meshctl(&words).stdout).into();
    shown.push(node.agent_log().into_bytes());
    shown.push(fs::read(node.cached_view()).expect("the agent has written it"));
    for secret in &secrets {
        assert!(secret.len() >= 32, "{secret}");
        assert!(shown.iter().all(|text| !text.is_empty() && memchr::memmem::find(text, secret.as_bytes()).is_none()));
    }

    node.admin().withdraw(web.uid()).expect("the pod is withdrawn");
    far.dies();
    eventually("their keys are gone", LIMIT, || match (keys(node).len(), keys(other).len()) {
        (2, 0) => Ok(()),
        counts => Err(format!("{counts:?} are left")),
    });
}

#[test]
fn an_agent_that_crashes_leaves_no_core_behind() {
    let mesh = Mesh::with(Setup { nodes: vec!["node-a".to_owned()], ..Setup::default() });
    let node = mesh.node("node-a");
    let unlimited = rustix::process::Rlimit { current: None, maximum: None };
    let agent = rustix::process::Pid::from_raw(node.agent_id().cast_signed()).expect("a number");
    rustix::process::prlimit(Some(agent), rustix::process::Resource::Core, unlimited).expect("stories run as root");

    let status = node.abort_agent();

    use std::os::unix::process::ExitStatusExt;
    assert_eq!((status.signal(), status.core_dumped()), (Some(libc::SIGABRT), false));
}
