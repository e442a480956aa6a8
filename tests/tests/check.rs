//! `meshctl check`: each of its lines is made to fail by a fault of its own, in a mesh that is otherwise well, says what is
//! wrong and what to do, and is well again when the fault has gone.

use std::{fs, path::Path, process::Output};

use mesh_api::{
    ADDRESS_TYPE,
    proto::{
        discovery::{DeltaDiscoveryResponse, Resource},
        wellknown::Any,
    },
};
use mesh_tests::{
    App, LIMIT, Mesh, Setup, eventually,
    forge::Authority,
    imposter::Imposter,
    node::Node,
    process::printed,
    protocol::{Behaviour, Command, Listen, Reply},
};
use serde_json::Value;

/// Ends a fault.
type Mend<'a> = Box<dyn FnOnce() + 'a>;

/// Small enough to be filled by a story.
const FLOWS: usize = 48;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The lines of `meshctl check` that are not ok, by name, result and text. Its exit code and its table must say the same.
fn troubles(node: &Node) -> Result<Vec<[String; 3]>, String> {
    let Output { status, stdout, stderr } = node.meshctl(&["-o", "json", "check"]);
    let answer: Value = serde_json::from_slice(&stdout).map_err(|_| format!("{status}: {}", text(&stderr)))?;
    let lines = answer["checks"].as_array().expect("a list").iter();
    let of = |line: &Value, column: &str| line[column].as_str().unwrap_or_default().to_owned();
    let bad: Vec<_> = lines.filter(|line| line["result"] != "ok").collect();
    let has_failed = bad.iter().any(|line| line["result"] != "warning");
    assert_eq!(status.code(), Some(i32::from(has_failed)), "{answer:#}");
    assert_eq!(answer["passed"], !has_failed, "{answer:#}");
    assert!(bad.iter().all(|line| !of(line, "remedy").is_empty()), "what to do is not said: {bad:#?}");
    Ok(bad.into_iter().map(|line| ["name", "result", "text"].map(|column| of(line, column))).collect())
}

/// Waits until these and no other lines are not ok.
#[track_caller]
fn says(node: &Node, expected: &[(&str, &str, &str)]) {
    eventually(&format!("check says {expected:?} and nothing else"), LIMIT, || {
        let found = troubles(node)?;
        let is_it = |(line, expected): (&[String; 3], &(&str, &str, &str))| {
            line[0] == expected.0 && line[1] == expected.1 && line[2].contains(expected.2)
        };
        let is_all = found.len() == expected.len() && found.iter().zip(expected).all(is_it);
        if is_all { Ok(()) } else { Err(format!("{found:?}")) }
    });
}

/// In the table the remedy of a line that is not ok stands below.
#[track_caller]
fn table_says_what_to_do(node: &Node, line: &str) {
    let table = text(&node.meshctl(&["check"]).stdout);
    let remedy = table.lines().find_map(|other| other.strip_prefix(&format!("{line}: ")));
    assert!(remedy.is_some_and(|remedy| !remedy.is_empty()), "no remedy for {line} in\n{table}");
}

fn pinned_link(node: &Node, hook: &str) -> String {
    let pins = fs::read_dir(node.directory().join("bpf/links")).expect("pins of the agent").flatten();
    let pin = pins.map(|entry| entry.path()).find(|path| path.ends_with(hook)).expect("a pinned link");
    pin.display().to_string()
}

fn a_hook_is_detached(mesh: &Mesh) -> Mend<'_> {
    let node = mesh.node("node-a");
    printed(&node.system().run(&["bpftool", "link", "detach", "pinned", &pinned_link(node, "connect4")]));
    Box::new(move || {
        node.stop_agent();
        node.start_agent();
    })
}

/// The program of the other node's agent: it does nothing to sockets that it does not know.
fn another_program_is_on_a_pods_cgroup(mesh: &Mesh) -> Mend<'_> {
    let (node, link) = (mesh.node("node-a"), pinned_link(mesh.node("node-b"), "getpeername6"));
    let shown = printed(&node.system().run(&["bpftool", "-j", "link", "show", "pinned", &link]));
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    let program = shown["prog_id"].as_u64().expect("a program").to_string();
    let cgroup = app(mesh, "web").place().cgroup.path().display().to_string();
    let run = move |verb: &'static str, flags: &[&str]| {
        let words = ["bpftool", "cgroup", verb, &cgroup, "cgroup_inet6_getpeername", "id", &program];
        printed(&node.system().run(&[&words, flags].concat()));
    };
    run("attach", &["multi"]);
    Box::new(move || run("detach", &[]))
}

fn app(mesh: &Mesh, name: &str) -> App {
    mesh.apps().into_iter().find(|app| app.name() == name).expect("a pod of this mesh")
}

fn a_map_is_full(mesh: &Mesh) -> Mend<'_> {
    let (web, near) = (app(mesh, "web"), app(mesh, "near"));
    let kept: Vec<_> = (0..FLOWS).map(|_| web.opens(near.at(80))).collect();
    Box::new(move || drop(kept))
}

fn descriptors_run_out(mesh: &Mesh) -> Mend<'_> {
    let node = mesh.node("node-a");
    let process = node.agent_id().to_string();
    let limits = fs::read_to_string(format!("/proc/{process}/limits")).expect("the agent runs");
    let before = limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit");
    let before = before.split_whitespace().nth(3).expect("a number").to_owned();
    let open = fs::read_dir(format!("/proc/{process}/fd")).expect("the agent runs").count();
    let limit = move |limit: &str| {
        printed(&node.system().run(&["prlimit", "--pid", &process, &format!("--nofile={limit}:")]));
    };
    limit(&(open + 12).to_string());
    Box::new(move || limit(&before))
}

/// Freezes one thread: what a scheduler that starves it would do.
fn a_worker_hangs(mesh: &Mesh) -> Mend<'_> {
    let node = mesh.node("node-a");
    let agent = node.agent_id().to_string();
    let tasks = fs::read_dir(format!("/proc/{agent}/task")).expect("the agent runs").flatten();
    let is_worker = |task: &Path| fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "path-0");
    let worker = tasks.map(|task| task.path()).find(|task| is_worker(task)).expect("a worker");
    let thread = worker.file_name().expect("a number").to_owned();
    let own = node.cgroup().child("agent");
    let frozen = own.child("frozen").create();
    let write = |path: std::path::PathBuf, text: &[u8]| {
        fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    };
    write(frozen.path().join("cgroup.type"), b"threaded");
    write(frozen.path().join("cgroup.threads"), thread.as_encoded_bytes());
    write(frozen.path().join("cgroup.freeze"), b"1");
    Box::new(move || {
        write(frozen.path().join("cgroup.freeze"), b"0");
        write(own.path().join("cgroup.threads"), thread.as_encoded_bytes());
        frozen.remove();
    })
}

fn control_is_away(mesh: &Mesh) -> Mend<'_> {
    mesh.control().kill();
    Box::new(|| mesh.control().start())
}

/// Control believes that the pod runs on the other node, whose agent alone may then have its certificate.
fn no_certificate_is_signed(mesh: &Mesh) -> Mend<'_> {
    let lost = app(mesh, "lost");
    let file = "pod-default-lost.yaml";
    let manifest = fs::read_to_string(mesh.control().manifests().join(file)).expect("it is published");
    mesh.apply(file, &manifest.replace("node-a", "node-b"));
    let node = mesh.node("node-a");
    eventually("control's mistake is known", LIMIT, || {
        let rows = node.admin().workloads().map_err(|status| status.to_string())?;
        let is_wrong = rows.iter().any(|row| row.name == "lost" && row.node == "node-b");
        if is_wrong { Ok(()) } else { Err(format!("{rows:?}")) }
    });
    node.admin().enrol(lost.enrolment()).expect("enrolment does not wait for the View");
    Box::new(move || mesh.apply(file, &manifest))
}

fn control_does_not_know_a_pod(mesh: &Mesh) -> Mend<'_> {
    let early = app(mesh, "early");
    mesh.node("node-a").admin().enrol(early.enrolment()).expect("enrolment does not wait for the View");
    Box::new(move || early.published())
}

/// Writes a manifest of the mesh otherwise; afterwards as it was.
fn rewritten<'a>(mesh: &'a Mesh, file: &'static str, change: impl Fn(&str) -> String) -> Mend<'a> {
    let manifest = fs::read_to_string(mesh.control().manifests().join(file)).expect("a manifest of the mesh");
    mesh.apply(file, &change(&manifest));
    Box::new(move || mesh.apply(file, &manifest))
}

fn control_says_that_a_pod_is_outside(mesh: &Mesh) -> Mend<'_> {
    let opted_out = "  labels:\n    istio.io/dataplane-mode: none\n";
    rewritten(mesh, "pod-default-near.yaml", |manifest| manifest.replace("  labels:\n", opted_out))
}

fn the_services_ranges_are_not_known(mesh: &Mesh) -> Mend<'_> {
    rewritten(mesh, "mesh.yaml", |manifest| manifest.split("  serviceRanges:").next().unwrap_or_default().to_owned())
}

fn a_process_of_the_pod_takes_a_port(mesh: &Mesh) -> Mend<'_> {
    let web = app(mesh, "web");
    let listen = Listen { address: web.at(15001), only_v6: false, reuse_port: true, behaviour: Behaviour::Hold };
    let Reply::Listening { server, .. } = web.client().ask(Command::Listen(listen)) else { panic!("it listens") };
    Box::new(move || drop(web.client().ask(Command::Unlisten { server })))
}

fn a_connection_is_older_than_the_mesh(mesh: &Mesh) -> Mend<'_> {
    let (late, far) = (app(mesh, "late"), app(mesh, "far"));
    let older = late.opens(far.at(80));
    older.still_works();
    mesh.node("node-a").admin().enrol(late.enrolment()).expect("a running pod can be enrolled");
    Box::new(move || drop(older))
}

/// An extra root that has run out, beside the one that signs.
fn a_root_has_expired(mesh: &Mesh) -> Mend<'_> {
    let (control, directory) = (mesh.control(), mesh.directory().join("plugged"));
    fs::create_dir(&directory).expect("a directory of the mesh");
    for (from, to) in [("root-cert.pem", "ca-cert.pem"), ("ca-key.pem", "ca-key.pem")] {
        fs::copy(control.state().join(from), directory.join(to)).expect("control's own files");
    }
    let own = fs::read_to_string(control.root()).expect("control's root");
    fs::write(directory.join("root-cert.pem"), own.clone() + &Authority::expired_root()).expect("a file of the mesh");
    control.kill();
    control.start_with(&["--ca-dir".to_owned(), directory.display().to_string()]);
    Box::new(move || {
        control.kill();
        fs::write(control.root(), own).expect("control's own file");
        control.start();
    })
}

/// The agent's clock goes back behind the issue of its certificates.
fn the_clock_is_put_back(mesh: &Mesh) -> Mend<'_> {
    let node = mesh.node("node-a");
    node.stop_agent();
    node.sets_clock("+0");
    node.start_agent();
    eventually("control has confirmed the View", LIMIT, || {
        let status = node.admin().status().map_err(|status| status.to_string())?;
        let is_confirmed = status.control == "connected" && status.view_cached_at == 0;
        if is_confirmed { Ok(()) } else { Err(format!("{status:?}")) }
    });
    node.sets_clock("-2h");
    Box::new(|| node.sets_clock("+0"))
}

/// A control daemon that says what cannot be read.
fn control_speaks_garbage(mesh: &Mesh) -> Mend<'_> {
    mesh.control().kill();
    let imposter = Imposter::of(mesh.control());
    eventually("the agents listen to it", LIMIT, || match imposter.listeners() {
        2 => Ok(()),
        count => Err(format!("{count} do")),
    });
    let any = Any { type_url: ADDRESS_TYPE.to_owned(), value: b"\xff garbage".to_vec() };
    let resource = Resource { version: "1".to_owned(), resource: Some(any), name: "strange".to_owned() };
    let type_url = ADDRESS_TYPE.to_owned();
    imposter.says(&DeltaDiscoveryResponse { type_url, resources: vec![resource], ..DeltaDiscoveryResponse::default() });
    Box::new(move || {
        drop(imposter);
        mesh.control().start();
    })
}

/// A line of `meshctl check`, its result and what it says, and the fault that makes it say so.
type Fault = (&'static str, &'static str, &'static str, for<'a> fn(&'a Mesh) -> Mend<'a>);

const FAULTS: [Fault; 15] = [
    ("links", "failed", "connect4: detached", a_hook_is_detached),
    ("other_programs", "warning", "getpeername6: 1 in /", another_program_is_on_a_pods_cgroup),
    ("maps", "failed", "DIRECT", a_map_is_full),
    ("descriptors", "failed", "descriptors are open", descriptors_run_out),
    ("heartbeat", "failed", "worker 0", a_worker_hangs),
    ("control", "failed", "not connected to https://", control_is_away),
    ("resources", "failed", "strange: ", control_speaks_garbage),
    ("clock", "failed", "is not valid yet", the_clock_is_put_back),
    ("trust_bundle", "failed", "1 roots have expired", a_root_has_expired),
    ("certificates", "failed", "ns/default/sa/lost: none", no_certificate_is_signed),
    ("pods", "warning", "not in the View: default/early", control_does_not_know_a_pod),
    ("pods", "warning", "not in the mesh: default/near", control_says_that_a_pod_is_outside),
    ("ranges", "warning", "no service ranges", the_services_ranges_are_not_known),
    ("listeners", "failed", "default/web: ", a_process_of_the_pod_takes_a_port),
    ("before_enrolment", "warning", "default/late: 1", a_connection_is_older_than_the_mesh),
];

#[test]
fn each_line_of_check_fails_by_its_own_fault_alone_and_is_ok_again_when_that_has_gone() {
    let mesh =
        Mesh::with(Setup { agent_arguments: vec!["--max-flows".to_owned(), FLOWS.to_string()], ..Setup::default() });
    mesh.lets_some_pass_in_the_clear();
    let web = mesh.app("web").on("node-a");
    let near = mesh.app("near").on("node-a").echoing_on(80);
    mesh.app("far").on("node-b").echoing_on(80);
    mesh.app("late").late().on("node-a");
    mesh.app("lost").late().on("node-a");
    web.reaches(near.at(80));
    // The applications of stories run with every capability, and this line says so all the time.
    let rights = ("pod_rights", "warning", "default/web: NET_ADMIN, NET_RAW");
    mesh.app("early").late().unpublished().on("node-a");
    let node = mesh.node("node-a");
    says(node, &[rights]);
    for (line, result, text, inject) in FAULTS {
        let mend = inject(&mesh);
        says(node, &[(line, result, text), rights]);
        table_says_what_to_do(node, line);
        mend();
        says(node, &[rights]);
    }
    web.reaches(near.at(80));
}

#[test]
fn without_control_from_the_start_check_names_all_that_is_missing() {
    let mesh = Mesh::new();
    let node = mesh.node("node-a");
    mesh.control().kill();
    node.kill_agent();
    node.start_agent();
    says(
        node,
        &[
            ("heartbeat", "failed", "late or never"),
            ("control", "failed", "not connected"),
            ("view", "failed", "none yet"),
            ("trust_bundle", "failed", "no root"),
        ],
    );
    mesh.control().start();
    says(node, &[]);
}

#[test]
fn check_tells_an_agent_that_hangs_from_one_that_has_ended() {
    let mesh = Mesh::new();
    let node = mesh.node("node-a");
    let check = || {
        let output = node.meshctl(&["--timeout", "2", "check"]);
        (output.status.code(), text(&output.stderr))
    };
    says(node, &[]);
    node.hang_agent();
    let (code, why) = check();
    assert!(code == Some(2) && why.contains("did not answer within 2 s") && why.contains("next: "), "{code:?} {why}");
    node.resume_agent();
    says(node, &[]);
    node.kill_agent();
    let (code, why) = check();
    assert!(code == Some(2) && why.contains("has ended") && why.contains("next: "), "{code:?} {why}");
}
