//! What an operator mistypes or mixes up is told where that operator looks: in the answer of `meshctl`, not in a log.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use mesh_tests::{LIMIT, Mesh, eventually, forge::Authority, node::Node};

/// Exit code and what is said to the operator.
fn said(node: &Node, words: &[&str]) -> (Option<i32>, String) {
    let output = node.meshctl(words);
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

/// Waits until `status` and `check` both name why control is not reached.
#[track_caller]
fn names(node: &Node, why: &str) {
    eventually(&format!("{why:?} is shown"), LIMIT, || {
        let (_, status) = said(node, &["status"]);
        let (code, check) = said(node, &["check"]);
        let control = check.lines().find(|line| line.starts_with("control ")).unwrap_or_default();
        let is_shown = status.contains("disconnected") && status.contains(why);
        if is_shown && code == Some(1) && control.contains("failed") && control.contains(why) {
            return Ok(());
        }
        Err(format!("{status}\n{check}"))
    });
}

/// Writes a file as it was kept to its owner before.
fn write(path: &Path, text: &str) {
    let fresh = path.with_extension("fresh");
    fs::write(&fresh, text).expect("the slot's tmpfs has room");
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600)).expect("our own file");
    fs::rename(&fresh, path).expect("both are in the slot's tmpfs");
}

#[test]
fn a_wrong_uid_a_wrong_filter_a_wrong_token_and_a_wrong_root_are_told_to_who_asks() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    let far = mesh.app("far").on("node-b").echoing_on(80);
    web.dial(&far).is_answered();
    let (node, control) = (mesh.node("node-a"), mesh.control());

    let (code, text) = said(node, &["withdraw", "nobody"]);
    assert!(code == Some(1) && text.contains("no pod \"nobody\" is enrolled"), "{code:?} {text}");
    let (code, text) = said(node, &["log", "debugg="]);
    assert!(code == Some(1) && text.contains("names no level"), "{code:?} {text}");

    // A policy that was never good denies, and is told from one that says so.
    mesh.apply(
        "bad.yaml",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: bad}\nspec: {action: X}\n",
    );
    eventually("it is shown as what it is", LIMIT, || {
        let (_, text) = said(node, &["policies"]);
        let is_it = |line: &str| line.contains("bad") && line.contains("UNREADABLE");
        if text.lines().any(is_it) { Ok(()) } else { Err(text) }
    });
    web.dial(&far).is_refused();
    mesh.remove("bad.yaml");
    web.reaches(far.at(80));

    // Another node's token, or none that control knows.
    let token = control.token("node-a");
    let good = fs::read_to_string(&token).expect("the node's token");
    write(&token, "0123456789abcdef0123456789abcdef");
    control.kill();
    control.start();
    names(node, "not authenticated");
    write(&token, &good);
    node.hears_control();

    // Another mesh's root.
    let root = control.root();
    let good = fs::read_to_string(&root).expect("control's root");
    write(&root, &Authority::expired_root());
    names(node, "UnknownIssuer");
    write(&root, &good);
    node.hears_control();
    web.dial(&far).is_answered();
}
