//! Mistakes in manifests, in a mesh that runs: each is reported by the control daemon with file, line, field and reason,
//! what was in force before stays in force on every path, and the mended file takes effect.

use mesh_tests::{App, LIMIT, Mesh, eventually};
use mistakes::MISTAKES;

/// The same table as in the control daemon's own tests.
#[path = "../../mesh-control/src/source/tests/mistakes.rs"]
mod mistakes;

const FILE: &str = "subject.yaml";

/// Denies the calls of `web` to one port. Its objects have the names of those in the table, so that a mistake in one is a
/// mistake in what was good before.
fn denying(port: u16) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: a}}\nspec:\n  action: DENY\n  \
         rules:\n  - from:\n    - source: {{principals: [cluster.local/ns/default/sa/web]}}\n    to:\n    \
         - operation: {{ports: [\"{port}\"]}}\n---\n\
         apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: a}}\nspec:\n  \
         mtls: {{mode: PERMISSIVE}}\n"
    )
}

/// Whether `web` is refused at `denied` and answered at `allowed`, on this node and on the other.
fn is_in_force(web: &App, servers: &[&App], denied: u16, allowed: u16) -> Result<(), String> {
    for server in servers {
        let (shut, open) = (web.dial_at(server.at(denied)), web.dial_at(server.at(allowed)));
        if !shut.was_refused() || !open.was_answered() {
            return Err(format!("{}: {:?} {:?}", server.name(), shut.report(), open.report()));
        }
    }
    Ok(())
}

#[test]
fn a_mistake_is_reported_where_it_is_and_changes_nothing_until_it_is_mended() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    let near = mesh.app("near").on("node-a").echoing_on(80).echoing_on(81);
    let far = mesh.app("far").on("node-b").echoing_on(80).echoing_on(81);
    let (servers, control) = ([&near, &far], mesh.control());
    let (mut denied, mut allowed) = (80, 81);
    mesh.apply(FILE, &denying(denied));
    eventually("the good file is in force", LIMIT, || is_in_force(&web, &servers, denied, allowed));

    for mistake in &MISTAKES {
        let before = control.metrics().sum("mesh_state_version", &[]);
        mesh.apply(FILE, mistake.text);
        eventually(&format!("{:?} is reported", mistake.text), LIMIT, || {
            let report = control.report()?;
            let files = report["files"].as_array().expect("a list");
            let file = files.iter().find(|file| file["file"] == FILE).ok_or("no such file")?;
            let is_it = |problem: &&serde_json::Value| {
                problem["line"] == mistake.line
                    && problem["field"] == mistake.field
                    && problem["reason"].as_str().is_some_and(|reason| reason.contains(mistake.reason))
            };
            let problems = file["problems"].as_array().expect("a list");
            problems.iter().find(is_it).map(|_| ()).ok_or_else(|| format!("{file:#}"))
        });
        let metrics = control.metrics();
        assert!(metrics.sum("mesh_config_errors", &[]) >= 1.0, "{}", mistake.text);
        assert_eq!(metrics.sum("mesh_state_version", &[]), before, "nothing is published for {}", mistake.text);
        let place = format!("{FILE}:{}:", mistake.line);
        let is_logged =
            |line: &str| line.contains(&place) && line.contains(mistake.field) && line.contains(mistake.reason);
        assert!(control.log().lines().any(is_logged), "{place} is not in the log");
        is_in_force(&web, &servers, denied, allowed).unwrap_or_else(|why| panic!("after {}: {why}", mistake.text));

        (denied, allowed) = (allowed, denied);
        mesh.apply(FILE, &denying(denied));
        eventually("the mended file is in force", LIMIT, || is_in_force(&web, &servers, denied, allowed));
        assert_eq!(control.metrics().sum("mesh_config_errors", &[]), 0.0, "{}", mistake.text);
    }
}
