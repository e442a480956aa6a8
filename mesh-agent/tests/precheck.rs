//! What the binary says on a node that it cannot run on. Needs a mounted cgroup v2, and neither rights nor an agent.

use std::{
    path::PathBuf,
    process::{Command, Output},
};

/// No directory can be made below a file.
const NO_PLACE: &str = "/proc/self/status/bpf";

fn agent(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mesh-agent")).args(arguments).output().expect("it runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

#[test]
fn check_names_what_is_missing_and_exits_1() {
    let output = agent(&["check", "--cgroup-root", "/proc", "--bpffs", NO_PLACE]);
    let printed = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{printed}");
    for name in ["kernel_version", "btf", "cgroup_v2", "capabilities", "bpffs"] {
        let line = |line: &&str| line.split_whitespace().nth(1) == Some(name);
        assert_eq!(printed.lines().filter(line).count(), 1, "{name} in\n{printed}");
    }
    for name in ["cgroup_v2", "bpffs"] {
        let found = printed.lines().position(|line| line.starts_with(&format!("failed   {name}"))).expect(&printed);
        assert!(printed.lines().nth(found + 1).expect(&printed).starts_with("  next: "), "{printed}");
    }
}

#[test]
fn a_run_that_the_kernel_side_refuses_logs_the_same_with_remedies() {
    let mounts = std::fs::read_to_string("/proc/mounts").expect("mounts");
    let cgroup = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|mount| mount[2] == "cgroup2");
    let cgroup = cgroup.expect("a cgroup v2")[1];
    let run_dir: PathBuf = std::env::temp_dir().join(format!("mesh-precheck-{}", std::process::id()));
    let run_dir_text = run_dir.display().to_string();
    let mut line = vec!["run", "--node", "node-a", "--cgroup-root", cgroup, "--bpffs", NO_PLACE];
    line.extend(["--run-dir", &run_dir_text, "--control", "https://127.0.0.1:1", "--control-root", "/nowhere"]);
    line.extend(["--node-token", "/nowhere"]);
    let output = agent(&line);
    std::fs::remove_dir_all(&run_dir).expect("the run directory was made");
    let log = text(&output.stderr);
    assert!(!output.status.success());
    for name in ["kernel_version", "btf", "cgroup_v2", "capabilities", "bpffs"] {
        assert!(log.contains(&format!("check {name}: ")), "{name} in\n{log}");
    }
    let failed = log.lines().find(|line| line.contains("check bpffs: ")).expect(&log);
    assert!(failed.contains("ERROR") && failed.contains("remedy=\"give as --bpffs"), "{failed}");
}
