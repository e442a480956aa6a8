//! The authority is away for longer than certificates live: they serve until they end, then nothing begins, what runs stays,
//! and the reason is named.

use mesh_api::proto::admin::CertificateRow;
use mesh_tests::{LIMIT, Mesh, Setup, eventually, node::Node};

/// Long enough that a loaded machine gets something done in its second half.
const LIFETIME: &str = "20s";

/// Waits until the node's one workload certificate is so; its row.
#[track_caller]
fn becomes(node: &Node, state: &str) -> CertificateRow {
    eventually(&format!("{}'s certificate is {state}", node.name()), 2 * LIMIT, || {
        let rows = node.admin().certificates().map_err(|status| status.to_string())?;
        let own = rows.iter().find(|row| row.kind == "workload").ok_or("it has none")?;
        if own.state == state { Ok(own.clone()) } else { Err(format!("{own:?}")) }
    })
}

#[test]
fn while_the_authority_is_away_a_certificate_serves_until_its_end_and_then_the_reason_is_named() {
    let control_arguments = ["--certificate-lifetime", LIFETIME].map(str::to_owned).into();
    let mesh = Mesh::with(Setup { control_arguments, ..Setup::default() });
    let web = mesh.app("web").on("node-a");
    let far = mesh.app("far").on("node-b").echoing_on(80);
    web.dial(&far).is_answered();
    let lasting = web.opens(far.at(80));
    let node = mesh.node("node-a");
    let alarms = |failing, expired| {
        node.counted("mesh_certificates_failing", failing, &[]);
        node.counted("mesh_certificates_expired", expired, &[]);
    };
    alarms(0, 0);
    mesh.control().kill();

    // Past half of its life.
    let late = becomes(node, "renewing");
    assert!(late.error.contains("control is away"), "{late:?}");
    web.dial(&far).is_answered();
    alarms(1, 0);

    // Past its end.
    becomes(node, "expired");
    becomes(mesh.node("node-b"), "expired");
    web.dial(&far).is_refused();
    lasting.still_works();
    alarms(1, 1);
    eventually("the reason is in the log", LIMIT, || {
        let lines = node.access_log();
        let is_it = |line: &serde_json::Value| line["flag"] == "NO_CERTIFICATE" && line.to_string().contains("expired");
        if lines.iter().any(is_it) { Ok(()) } else { Err(format!("{lines:?}")) }
    });
    let table = String::from_utf8(node.meshctl(&["certificates"]).stdout).expect("UTF-8");
    let is_shown = |line: &str| line.contains("sa/web") && line.contains("expired") && line.contains("control is away");
    assert!(table.lines().any(is_shown), "{table}");

    mesh.control().start();
    mesh.nodes().iter().for_each(|node| drop(becomes(node, "valid")));
    web.reaches(far.at(80));
    lasting.still_works();
    alarms(0, 0);
}
