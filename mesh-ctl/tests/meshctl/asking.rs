//! The real `meshctl` against an agent with fixed answers: what is asked, what is printed, and the exit codes.

use std::{
    io::{BufRead, BufReader, Read},
    process::Stdio,
};

use mesh_api::proto::admin::{EnrolRequest, ExplainRequest, enrol_request::NetworkNamespace};

use crate::{
    agent::{Agent, empty_directory, meshctl, run_at},
    control,
};

const ENROL: [&str; 22] = [
    "enrol",
    "--uid",
    "3f1c",
    "--namespace",
    "shop",
    "--name",
    "web-0",
    "--service-account",
    "web",
    "--address",
    "10.1.0.2",
    "--address",
    "fd00:1::2",
    "--network-namespace",
    "/run/netns/web-0",
    "--probe-port",
    "8080",
    "--probe-port",
    "9090",
    "--fail-open",
    "--cgroup",
    "/sys/fs/cgroup/kubepods/pod3f1c",
];

#[test]
fn enrol_sends_every_field() {
    let agent = Agent::start();

    let printed = agent.run(&ENROL);

    assert_eq!((printed.code, printed.stderr.as_str()), (0, ""));
    assert_eq!(printed.stdout, "shop/web-0 is enrolled: its new connections are steered\n");
    let expected = EnrolRequest {
        uid: "3f1c".into(),
        namespace: "shop".into(),
        name: "web-0".into(),
        service_account: "web".into(),
        addresses: vec!["10.1.0.2".into(), "fd00:1::2".into()],
        cgroup_path: "/sys/fs/cgroup/kubepods/pod3f1c".into(),
        probe_ports: vec![8080, 9090],
        fail_open: true,
        network_namespace: Some(NetworkNamespace::NetworkNamespacePath("/run/netns/web-0".into())),
    };
    assert_eq!(agent.asked.lock().expect("unpoisoned").enrolled, [expected]);
}

#[test]
fn enrol_takes_a_process_instead_of_a_path() {
    let agent = Agent::start();
    let words: Vec<_> = ENROL
        .map(|word| match word {
            "--network-namespace" => "--pid",
            "/run/netns/web-0" => "812",
            other => other,
        })
        .into();

    assert_eq!(agent.run(&words).code, 0);

    let asked = agent.asked.lock().expect("unpoisoned");
    assert_eq!(asked.enrolled[0].network_namespace, Some(NetworkNamespace::Pid(812)));
}

#[test]
fn a_refused_enrolment_says_which_field_and_exits_with_1() {
    let agent = Agent::start();
    let mut words = ENROL;
    words[21] = "/other";

    let printed = agent.run(&words);

    assert_eq!((printed.code, printed.stdout.as_str()), (1, ""));
    assert_eq!(printed.stderr, "meshctl: refused: cgroup_path: /other is not below /sys/fs/cgroup/kubepods\n");
}

#[test]
fn withdraw_names_the_pod() {
    let agent = Agent::start();

    let printed = agent.run(&["withdraw", "3f1c", "-o", "json"]);
    assert_eq!((printed.code, printed.stdout.as_str()), (0, "{\n  \"withdrawn\": \"3f1c\"\n}\n"));
    assert_eq!(agent.asked.lock().expect("unpoisoned").withdrawn, ["3f1c"]);

    assert_eq!(agent.run(&["withdraw", "unknown"]).code, 1);
}

#[test]
fn the_log_filter_is_read_and_changed() {
    let agent = Agent::start();

    assert_eq!(agent.run(&["log"]).stdout, "info\n");
    assert_eq!(agent.run(&["log", "debug"]).stdout, "debug\n");
    let refused = agent.run(&["log", "info,,="]);

    assert_eq!((refused.code, refused.stderr.as_str()), (1, "meshctl: refused: filter: invalid directive\n"));
    assert_eq!(agent.asked.lock().expect("unpoisoned").filters, ["", "debug"]);
}

#[test]
fn explain_asks_for_host_and_port_and_exits_with_the_verdict() {
    let agent = Agent::start();

    let allowed = agent.run(&["explain", "shop/web-0", "[fd00:1::9]:5432"]);
    let denied = agent.run(&["explain", "jobs/cron-0", "shop/db-0:5432", "-o", "json"]);
    let unknown = agent.run(&["explain", "shop/nobody", "shop/db-0:5432"]);

    assert_eq!((allowed.code, denied.code, unknown.code), (0, 1, 1));
    assert_eq!(unknown.stderr, "meshctl: refused: source: no workload is known as shop/nobody\n");
    let denied: serde_json::Value = serde_json::from_str(&denied.stdout).expect("JSON");
    assert_eq!(denied["verdict"], "denied");
    assert_eq!(denied["policy"], "shop/only-web");
    assert_eq!(denied["steps"][2]["stage"], "authorize");
    let question = ExplainRequest { source: "shop/web-0".into(), destination: "fd00:1::9".into(), port: 5432 };
    assert_eq!(agent.asked.lock().expect("unpoisoned").explained[0], question);
}

#[test]
fn a_failed_check_exits_with_1_and_prints_the_remedy() {
    let agent = Agent::start();

    let table = agent.run(&["check"]);
    let json = agent.run(&["check", "-o", "json"]);

    assert_eq!((table.code, json.code), (1, 1));
    assert!(table.stdout.contains("\ncontrol: start mesh-control; its log says why it ended\n"), "{}", table.stdout);
    assert!(table.stdout.ends_with("1 ok, 1 with a warning, 1 failed\n"), "{}", table.stdout);
    let json: serde_json::Value = serde_json::from_str(&json.stdout).expect("JSON");
    assert_eq!(json["passed"], false);
    assert_eq!(json["checks"][1]["result"], "warning");
}

fn cookies(agent: &Agent, words: &[&str]) -> Vec<u64> {
    let printed = agent.run(&[&["sockets", "-o", "json"], words].concat());
    assert_eq!(printed.code, 0, "{}", printed.stderr);
    let document: serde_json::Value = serde_json::from_str(&printed.stdout).expect("JSON");
    let rows = document["sockets"].as_array().expect("a list");
    rows.iter().map(|row| row["cookie"].as_u64().expect("a number")).collect()
}

#[test]
fn sockets_are_sorted_and_filtered() {
    let agent = Agent::start();

    assert_eq!(cookies(&agent, &[]), [1004, 1003, 1001, 1002]);
    assert_eq!(cookies(&agent, &["--why-plaintext"]), [1003, 1002]);
    assert_eq!(cookies(&agent, &["--why-denied"]), [1004]);
    assert_eq!(cookies(&agent, &["--pod", "shop/web-0"]).len(), 4);
    assert_eq!(cookies(&agent, &["--pod", "shop/db-0"]), [0_u64; 0]);
}

#[test]
fn json_has_every_field_of_the_message_with_its_unit() {
    let agent = Agent::start();

    let printed = agent.run(&["sockets", "-o", "json"]);

    let document: serde_json::Value = serde_json::from_str(&printed.stdout).expect("JSON");
    let expected = serde_json::json!({
        "pod": "shop/web-0", "process": "nginx[812]", "direction": "outbound", "path": "hbone",
        "source": "10.1.0.2:41000", "original_destination": "10.96.0.20:5432",
        "service": "shop/db.shop.svc.cluster.local", "endpoint": "10.2.0.2:5432",
        "source_identity": "spiffe://cluster.local/ns/shop/sa/web",
        "destination_identity": "spiffe://cluster.local/ns/shop/sa/db",
        "connection_security_policy": "mutual_tls", "cipher": "TLS13_AES_128_GCM_SHA256",
        "policy": "shop/only-web", "reason": null, "bytes_sent": 2048, "bytes_received": 104_857_600,
        "rtt_us": 180, "retransmits": 3, "age_ms": 65000, "cookie": 1001
    });
    assert_eq!(document["sockets"][2], expected);
}

#[test]
fn a_watch_that_is_no_terminal_prints_answer_after_answer() {
    let agent = Agent::start();
    let words = ["status", "-w", "--interval", "1", "-o", "json"];
    let mut child = meshctl(&agent.socket(), &words).stdout(Stdio::piped()).spawn().expect("cargo has built it");

    let lines = BufReader::new(child.stdout.take().expect("piped")).lines().take(2);
    let answers: Vec<String> = lines.map(|line| line.expect("UTF-8")).collect();

    assert_eq!(answers[0], answers[1]);
    assert!(answers[0].starts_with("{\"node\":\"node-a\","), "{}", answers[0]);
    // The reading end is closed now: the next answer cannot be written, which is the orderly end of a pipe.
    assert_eq!(child.wait().expect("our child").code(), Some(0));
}

#[test]
fn a_watched_table_is_plain_without_a_terminal() {
    let agent = Agent::start();
    let words = ["pods", "-w", "--interval", "1"];
    let mut child = meshctl(&agent.socket(), &words).stdout(Stdio::piped()).spawn().expect("cargo has built it");

    let once = agent.run(&["pods"]).stdout;
    let expected = format!("{once}\n{once}");
    let mut twice = vec![0; expected.len()];
    child.stdout.take().expect("piped").read_exact(&mut twice).expect("two answers");

    assert_eq!(String::from_utf8(twice).expect("UTF-8"), expected);
    assert_eq!(child.wait().expect("our child").code(), Some(0));
}

#[test]
fn a_watch_ends_with_2_when_the_agent_goes() {
    let mut agent = Agent::start();
    let words = ["pods", "-w", "--interval", "1"];
    let mut child = meshctl(&agent.socket(), &words)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("cargo has built it");
    let mut output = BufReader::new(child.stdout.take().expect("piped"));
    output.read_line(&mut String::new()).expect("a header");

    agent.kill();

    output.read_to_string(&mut String::new()).expect("UTF-8");
    let ended = child.wait_with_output().expect("our child");
    assert_eq!(ended.status.code(), Some(2));
    assert!(!ended.stderr.is_empty());
}

#[test]
fn an_absent_socket_says_what_to_do() {
    let directory = empty_directory();

    let printed = run_at(&directory.join("admin.sock"), &["check"]);

    std::fs::remove_dir(&directory).expect("ours");
    assert_eq!((printed.code, printed.stdout.as_str()), (2, ""));
    assert!(printed.stderr.contains("no agent runs on this node"), "{}", printed.stderr);
    let next = "next: start mesh-agent (mesh-agent check says what the node lacks)";
    assert!(printed.stderr.contains(next), "{}", printed.stderr);
}

#[test]
fn a_dead_agents_socket_says_what_to_do() {
    let mut agent = Agent::start();
    agent.kill();

    let printed = agent.run(&["check"]);

    assert_eq!(printed.code, 2);
    assert!(printed.stderr.contains("the agent that made it has ended\n  next: read its log"), "{}", printed.stderr);
}

#[test]
fn a_file_that_is_no_socket_is_called_so() {
    let directory = empty_directory();
    let file = directory.join("file");
    std::fs::write(&file, "").expect("ours");

    let printed = run_at(&file, &["check"]);

    std::fs::remove_dir_all(&directory).expect("ours");
    assert_eq!(printed.code, 2);
    assert!(printed.stderr.contains("is not a socket"), "{}", printed.stderr);
}

#[test]
fn an_agent_that_hangs_is_given_up_after_the_time_out() {
    let directory = empty_directory();
    let socket = directory.join("admin.sock");
    // Accepts by the kernel's queue alone; never reads.
    let listener = std::os::unix::net::UnixListener::bind(&socket).expect("ours");

    let printed = run_at(&socket, &["status", "--timeout", "1"]);

    drop(listener);
    std::fs::remove_dir_all(&directory).expect("ours");
    assert_eq!(printed.code, 2);
    assert!(printed.stderr.contains("did not answer within 1 s"), "{}", printed.stderr);
}

#[test]
fn status_of_control_needs_no_agent_and_is_no_while_one_is_not_in_sync() {
    let socket = std::path::Path::new("/run/nowhere/admin.sock");
    let status = |address: &str| run_at(socket, &["status", "--control", address, "-o", "json"]);
    let late = status(&control::serve("200 OK", control::PAGE).to_string());
    let page: serde_json::Value = serde_json::from_str(&late.stdout).expect("JSON");
    let in_sync: Vec<_> = (0..3).map(|index| page["agents"][index]["in_sync"].as_bool()).collect();
    assert_eq!((late.code, in_sync), (1, vec![Some(true), Some(false), Some(false)]), "{page:#}");

    let good = r#"{"version": 1, "agents": [{"node": "a", "address": null, "version": 1, "has_answered": true, "refused": {}, "lag_ms": 0}]}"#;
    assert_eq!(status(&control::serve("200 OK", good).to_string()).code, 0);

    for (answer, body, reason) in [("404 Not Found", "", "404"), ("200 OK", "<html>", "is not understood")] {
        let printed = status(&control::serve(answer, body).to_string());
        assert_eq!((printed.code, printed.stdout.as_str()), (2, ""));
        assert!(printed.stderr.contains(reason) && printed.stderr.contains("next: "), "{}", printed.stderr);
    }
    let nobody = status("127.0.0.1:1");
    assert!(nobody.code == 2 && nobody.stderr.contains("control at 127.0.0.1:1 did not answer"), "{}", nobody.stderr);
}

#[test]
fn wrong_usage_exits_with_2() {
    let agent = Agent::start();

    let printed = agent.run(&["explain", "shop/web-0", "shop/db-0"]);

    assert_eq!(printed.code, 2);
    assert!(printed.stderr.contains("has no port; write DST:PORT"), "{}", printed.stderr);
}
