//! `meshctl`, and what it lists, compared with what a story opened.

use std::{collections::HashMap, time::Instant};

use mesh_tests::{
    LIMIT, Mesh, eventually, identity,
    node::Node,
    process::{Place, printed},
};
use serde_json::{Value, json};

/// What `explain` prints, and whether its exit code says yes.
fn explain(node: &Node, source: &str, destination: &str) -> (Value, bool) {
    let output = node.meshctl(&["-o", "json", "explain", source, destination]);
    let shown = String::from_utf8_lossy(&output.stderr);
    let answer = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("not JSON: {error}: {shown}"));
    (answer, output.status.success())
}

#[test]
fn explain_names_the_stages_the_verdict_and_the_policy() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    let far = mesh.app("far").on("node-b").echoing_on(80);
    web.dial(&far).is_answered();
    let node = mesh.node("node-a");
    let (allowed, is_yes) = explain(node, "default/web", "default/far:80");
    assert!(is_yes, "{allowed}");
    assert_eq!(allowed["verdict"], "allowed", "{allowed}");
    assert_eq!(allowed["path"], "hbone", "{allowed}");

    mesh.policy("not-web").on(&far).deny(identity("ns/default/sa/web"));
    mesh.settle();
    let (denied, is_yes) = explain(node, "default/web", "default/far:80");
    assert!(!is_yes, "{denied}");
    assert_eq!((&denied["verdict"], &denied["policy"]), (&"denied".into(), &"default/not-web".into()), "{denied}");
    assert!(denied["steps"].as_array().is_some_and(|steps| steps.len() >= 2), "{denied}");
}

#[test]
fn a_pod_is_enrolled_listed_and_withdrawn_by_meshctl() {
    let mesh = Mesh::new();
    mesh.lets_some_pass_in_the_clear();
    let far = mesh.app("far").on("node-b").echoing_on(80);
    let late = mesh.app("late").late().on("node-a");
    let node = mesh.node("node-a");
    let request = late.enrolment();
    let namespace = late.place().namespace.path().display().to_string();
    let mut words = vec!["enrol", "--uid", late.uid(), "--namespace", "default", "--name", "late"];
    words.extend(["--service-account", "late", "--network-namespace", &namespace, "--cgroup", &request.cgroup_path]);
    words.extend(request.addresses.iter().flat_map(|address| ["--address", address]));
    words.extend(["--probe-port", "8080"]);
    assert_eq!(node.meshctl_json(&["pods"]), json!({"pods": []}));

    assert!(printed(&node.meshctl(&words)).contains("default/late is enrolled"));
    late.reaches(far.at(80));

    let pod = json!({
        "namespace": "default", "name": "late", "addresses": request.addresses, "service_account": "late",
        "state": "ready", "fail_open": false, "probe_ports": ["8080"], "uid": late.uid(),
        "network_namespace": namespace, "cgroup_path": request.cgroup_path,
        "network_namespace_cookie": late.place().namespace.cookie(),
    });
    assert_eq!(node.meshctl_json(&["pods"]), json!({"pods": [pod]}));
    let wrong = words.iter().map(|word| match *word {
        word if word == namespace => "/dev/null",
        word if word == late.uid() => "another",
        word => word,
    });
    let refused = node.meshctl(&wrong.collect::<Vec<_>>());
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && why.contains("refused: network_namespace: "), "{why}");

    assert_eq!(node.meshctl_json(&["withdraw", late.uid()]), json!({"withdrawn": late.uid()}));
    assert_eq!(node.meshctl_json(&["pods"]), json!({"pods": []}));
    // A runtime that is not sure may ask again; it is told that there is nothing to do.
    let again = node.meshctl(&["withdraw", late.uid()]);
    let why = String::from_utf8_lossy(&again.stderr);
    assert!(again.status.code() == Some(1) && why.contains("no pod ") && why.contains(" is enrolled"), "{why}");
}

/// The row whose column says so.
fn row<'a>(answer: &'a Value, listing: &str, column: &str, text: &str) -> &'a Value {
    let rows = answer[listing].as_array().expect("a list");
    rows.iter().find(|row| row[column] == text).unwrap_or_else(|| panic!("no {column} {text} in {answer:#}"))
}

/// The fields of `expected`, in a row that may say more.
#[track_caller]
fn agrees(row: &Value, expected: &Value) {
    for (column, value) in expected.as_object().expect("an object") {
        assert_eq!(&row[column], value, "{column} of {row:#}");
    }
}

#[test]
fn workloads_services_and_policies_are_listed_as_they_are() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    let far = mesh.app("far").on("node-b").echoing_on(80);
    let stranger = mesh.app("stranger").not_enrolled().on("node-b");
    let service = mesh.service("shop").port(8000, 80).selecting("app", "far");
    mesh.policy("web-may").on(&far).allow(identity("ns/default/sa/web"));
    web.dial(&far).is_answered();
    let node = mesh.node("node-a");
    let host = "shop.default.svc.cluster.local";

    let workloads = node.meshctl_json(&["workloads"]);
    assert_eq!(workloads["workloads"].as_array().map(Vec::len), Some(3));
    for (app, place, state, protocol) in [
        (&web, "node-a", "enrolled", "HBONE"),
        (&far, "node-b", "remote", "HBONE"),
        (&stranger, "node-b", "remote", "TCP"),
    ] {
        let expected = json!({"namespace": "default", "addresses": app.addresses(), "node": place, "state": state,
                              "protocol": protocol, "healthy": true, "identity": app.identity()});
        agrees(row(&workloads, "workloads", "name", app.name()), &expected);
    }
    let selected = json!({"services": [format!("default/{host}")], "policies": ["default/web-may"]});
    agrees(row(&workloads, "workloads", "name", "far"), &selected);

    let addresses = [service.at(1).ip(), service.at_v6(1).ip()];
    let expected = json!({"namespace": "default", "addresses": addresses, "ports": ["8000->80"],
                          "endpoints": ["default/far"]});
    agrees(row(&node.meshctl_json(&["services"]), "services", "hostname", host), &expected);
    let expected = json!({"namespace": "default", "action": "ALLOW", "scope": "workload selector", "dry_run": false,
                          "rules": 1, "workloads": ["default/far"]});
    agrees(row(&node.meshctl_json(&["policies"]), "policies", "name", "web-may"), &expected);

    for (listing, words) in [
        ("workloads", vec!["far", &*far.v4().to_string(), "node-b", "HBONE", "remote"]),
        ("services", vec![host, "8000->80"]),
        ("policies", vec!["web-may", "ALLOW", "workload selector"]),
    ] {
        let table = printed(&node.meshctl(&["-o", "table", listing]));
        assert!(table.lines().any(|line| words.iter().all(|word| line.contains(word))), "{words:?} in\n{table}");
    }
}

/// What OpenSSL says of a certificate: `serial=..`, `notBefore=..`, `notAfter=..` and its names.
fn openssl(place: &Place, command: &str) -> HashMap<String, String> {
    const SHOWN: &str = "openssl x509 -noout -serial -dates -dateopt iso_8601 -ext subjectAltName";
    let text = printed(&place.run(&["sh", "-c", &format!("{command} | {SHOWN}")]));
    let lines = text.lines().map(str::trim);
    let pairs =
        lines.filter_map(|line| line.split_once('=').or_else(|| line.split_once("URI:").map(|(_, to)| ("URI", to))));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// `2026-01-31 10:00:00Z` as JSON says it.
fn moment(text: &str) -> String {
    text.replacen(' ', "T", 1)
}

#[test]
fn certificates_are_listed_as_a_peer_sees_them_on_the_wire() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    let far = mesh.app("far").on("node-b").echoing_on(80);
    web.dial(&far).is_answered();
    let node = mesh.node("node-b");
    let listed = node.meshctl_json(&["certificates"]);
    assert_eq!(listed["certificates"].as_array().map(Vec::len), Some(2), "this node's pods and the root: {listed:#}");

    let connect = format!("openssl s_client -connect {} -tls1_3 -alpn h2 </dev/null 2>/dev/null", far.at(15008));
    let seen = openssl(mesh.outside(), &connect);
    assert_eq!(seen["URI"], far.identity());
    let expected = json!({
        "kind": "workload", "state": "valid", "serial": seen["serial"], "not_before": moment(&seen["notBefore"]),
        "not_after": moment(&seen["notAfter"]), "error": null,
    });
    let workload = row(&listed, "certificates", "identity", &far.identity());
    agrees(workload, &expected);
    // RFC 3339 in UTC: in the order of time as texts too.
    let renews_at = workload["renews_at"].as_str().expect("a time");
    assert!(*renews_at > *moment(&seen["notBefore"]) && *renews_at < *moment(&seen["notAfter"]), "{workload:#}");

    let root = openssl(mesh.outside(), &format!("cat {}", mesh.control().root().display()));
    let expected = json!({
        "identity": "O=mesh, CN=mesh root", "state": "valid", "serial": root["serial"],
        "not_before": moment(&root["notBefore"]), "not_after": moment(&root["notAfter"]),
    });
    agrees(row(&listed, "certificates", "kind", "root"), &expected);
    let table = printed(&node.meshctl(&["certificates"]));
    let line = table.lines().find(|line| line.contains(&far.identity()));
    assert!(line.is_some_and(|line| line.contains(&seen["serial"]) && line.contains("valid")), "{table}");
}

#[test]
fn status_says_whether_the_agent_is_in_sync() {
    let begun = Instant::now();
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    let far = mesh.app("far").on("node-b").echoing_on(80);
    web.dial(&far).is_answered();
    let node = mesh.node("node-a");
    let status = node.meshctl_json(&["status"]);
    let expected = json!({
        "node": "node-a", "state": "ready", "control": "connected", "pods": 1, "last_error": null,
        "control_address": format!("https://{}", mesh.control().address()),
        "trust_bundle_hash": mesh.node("node-b").meshctl_json(&["status"])["trust_bundle_hash"],
    });
    agrees(&status, &expected);
    assert!(status["trust_bundle_hash"].as_str().is_some_and(|hash| hash.len() == 64), "{status:#}");
    let uptime_ms = status["uptime_ms"].as_u64().expect("a number");
    assert!(uptime_ms > 0 && u128::from(uptime_ms) <= begun.elapsed().as_millis());
    assert!(status["view_age_ms"].as_u64().is_some_and(|age| age <= uptime_ms), "{status:#}");
    let types = status["resource_types"].as_array().expect("a list");
    assert!(
        types.len() >= 2 && types.iter().all(|kind| kind["synced"] == true && kind["nack"].is_null()),
        "{status:#}"
    );
    let workloads = node.meshctl_json(&["workloads"])["workloads"].as_array().map_or(0, Vec::len);
    let addresses = types.iter().find(|kind| kind["type_url"].as_str().is_some_and(|url| url.ends_with("Address")));
    assert_eq!(addresses.expect("addresses")["resources"], workloads, "no services here");
    let table = printed(&node.meshctl(&["status"]));
    assert!(["node-a", "ready", "connected"].iter().all(|word| table.contains(word)), "{table}");

    eventually("both agents hold what control publishes", LIMIT, || {
        // The exit code says whether all are; here the reason is wanted.
        let output = mesh.control().meshctl(&["status", "-o", "json"]);
        let answer: Value = serde_json::from_slice(&output.stdout).map_err(|error| format!("{error}: {output:?}"))?;
        let agents = answer["agents"].as_array().expect("a list");
        let nodes: Vec<_> = agents.iter().filter_map(|agent| agent["node"].as_str()).collect();
        let is_in_sync = |agent: &Value| agent["in_sync"] == true && agent["lag_ms"] == 0;
        if nodes == ["node-a", "node-b"] && agents.iter().all(is_in_sync) { Ok(()) } else { Err(answer.to_string()) }
    });

    mesh.control().kill();
    eventually("status says that control is away", LIMIT, || {
        let status = node.meshctl_json(&["status"]);
        let types = status["resource_types"].as_array().expect("a list");
        let is_out = status["control"] == "disconnected" && types.iter().all(|kind| kind["synced"] == false);
        if is_out && status["state"] == "ready" && status["last_error"].is_string() {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
}

#[test]
fn the_log_level_is_changed_while_running() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    let far = mesh.app("far").on("node-b");
    let node = mesh.node("node-a");
    // A refused connection leaves a line for those who look for faults, and only for them.
    let refused = || {
        let before = node.access_log().len();
        web.dial_at(far.at(9)).is_refused();
        eventually("its line in the access log", LIMIT, || {
            if node.access_log().len() > before { Ok(()) } else { Err("not yet".to_owned()) }
        });
        node.agent_log().matches("connection failed").count()
    };
    assert_eq!(refused(), 0);

    assert_eq!(node.meshctl_json(&["log", "mesh_agent=debug,info"]), json!({"filter": "mesh_agent=debug,info"}));
    let failed = refused();
    assert!(failed > 0, "no line of level debug");
    let wrong = node.meshctl(&["log", "not=a=filter,,"]);
    assert_eq!(wrong.status.code(), Some(1), "{}", String::from_utf8_lossy(&wrong.stderr));
    assert_eq!(printed(&node.meshctl(&["log"])), "mesh_agent=debug,info\n");

    assert_eq!(printed(&node.meshctl(&["log", "info"])), "info\n");
    assert_eq!(refused(), failed);
}

#[test]
fn every_connection_leaves_one_line_and_the_same_metrics_at_both_ends() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    let far = mesh.app("far").on("node-b").echoing_on(80);
    for _ in 0..5 {
        web.dial(&far).is_answered();
    }
    for (node, reporter) in [("node-a", "source"), ("node-b", "destination")] {
        let labels = [
            ("reporter", reporter),
            ("source_workload", "web"),
            ("destination_workload", "far"),
            ("source_principal", &web.identity()),
            ("destination_principal", &far.identity()),
            ("connection_security_policy", "mutual_tls"),
            ("response_flags", "-"),
        ];
        for metric in ["istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total"] {
            mesh.node(node).counted(metric, 5, &labels);
        }
        for metric in ["istio_tcp_sent_bytes_total", "istio_tcp_received_bytes_total"] {
            mesh.node(node).counted(metric, 25, &labels);
        }
        eventually("an access-log line for each", LIMIT, || match mesh.node(node).access_log().len() {
            5 => Ok(()),
            lines => Err(format!("{lines} lines")),
        });
    }
}
