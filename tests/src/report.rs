//! What a failed story leaves to read: how to enter its namespaces, the daemons' logs, and the kernel maps.

use std::process::Command;

use crate::mesh::Mesh;

/// Lines of each log.
const LINES: usize = 60;

/// Prints it.
pub(crate) fn failure(mesh: &Mesh) {
    eprintln!("\n--- the mesh of the failed story");
    let is_kept = std::env::var_os("MESH_TESTS_KEEP").is_some();
    eprintln!(
        "{}",
        if is_kept { "kept until the next run; to enter:" } else { "MESH_TESTS_KEEP=1 keeps it; then enter with:" }
    );
    for node in mesh.nodes() {
        eprintln!("  ip netns exec {} bash   # {}", node.system().namespace.name(), node.name());
        eprintln!("  meshctl --socket {} sockets", node.admin().socket().display());
    }
    for app in mesh.apps() {
        eprintln!(
            "  ip netns exec {} bash   # pod {} {:?}",
            app.place().namespace.name(),
            app.full_name(),
            app.addresses()
        );
    }
    log("control", &mesh.control().log());
    for node in mesh.nodes() {
        log(&format!("agent of {}", node.name()), &node.agent_log());
        maps(&node.directory().join("bpf"));
    }
}

fn log(name: &str, text: &str) {
    let skipped = text.lines().count().saturating_sub(LINES);
    eprintln!("--- log of {name} ({skipped} earlier lines not shown)");
    for line in text.lines().skip(skipped) {
        eprintln!("{line}");
    }
}

/// Pinned maps with few entries, through bpftool.
fn maps(bpffs: &std::path::Path) {
    for version in std::fs::read_dir(bpffs).into_iter().flatten().flatten() {
        for pin in std::fs::read_dir(version.path()).into_iter().flatten().flatten() {
            let output = Command::new("bpftool").args(["map", "dump", "pinned"]).arg(pin.path()).output();
            if let Ok(output) = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
                && !output.is_empty()
                && output.lines().count() < 60
            {
                eprintln!("--- map {}\n{output}", pin.path().display());
            }
        }
    }
}
