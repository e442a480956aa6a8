//! Where a pod is on this node: its cgroup, by the uid in its name, and its network namespace, by its processes. What is found
//! is checked at enrolment: the namespace must have the pod's addresses.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use mesh_api::proto::admin::enrol_request::NetworkNamespace as Source;

use crate::kernel;

/// What the names of the cgroups above pods begin with, below the root.
const PODS: &str = "kubepods";
/// Classes of quality are one level: kubepods/burstable/podUID.
const DEPTH: usize = 3;
/// Where runtimes keep namespaces that outlive processes.
const NAMED: &str = "/run/netns";

/// The cgroup of a pod, with either of the kubelet's drivers. A few directories are read.
pub(super) fn cgroup(root: &Path, uid: &str) -> Option<PathBuf> {
    let tops = directories(root).filter(|(_, name)| name.starts_with(PODS)).map(|(path, _)| path);
    tops.into_iter().find_map(|top| below(&top, uid, DEPTH))
}

fn below(directory: &Path, uid: &str, depth: usize) -> Option<PathBuf> {
    let mut others = Vec::new();
    for (path, name) in directories(directory) {
        if is_of(&name, uid) {
            return Some(path);
        }
        // No pod is in another.
        if name.starts_with(PODS) || matches!(name.as_str(), "besteffort" | "burstable" | "guaranteed") {
            others.push(path);
        }
    }
    others.iter().filter(|_| depth > 1).find_map(|path| below(path, uid, depth - 1))
}

/// `podUID` of the cgroupfs driver, `kubepods-burstable-podUID.slice` of systemd's, whose names have no hyphens.
fn is_of(name: &str, uid: &str) -> bool {
    let slice = name.strip_suffix(".slice").and_then(|name| name.rsplit('-').next());
    name.strip_prefix("pod") == Some(uid)
        || slice.and_then(|name| name.strip_prefix("pod")).is_some_and(|found| found == uid.replace('-', "_"))
}

fn directories(directory: &Path) -> impl Iterator<Item = (PathBuf, String)> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    below.map(|entry| (entry.path(), entry.file_name().to_string_lossy().into_owned()))
}

/// The network namespace of the processes in a cgroup: of the oldest, which is the sandbox's. A file of the runtime's is
/// preferred, because it is the pod's for as long as it lives.
pub(super) fn network_namespace(cgroup: &Path) -> Option<Source> {
    let pids = kernel::subtree(cgroup).into_iter().flat_map(|directory| {
        let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse::<u32>().ok()).collect::<Vec<_>>()
    });
    // Zero: a process that the agent's process namespace does not have.
    let oldest = pids.filter(|pid| *pid != 0).filter_map(|pid| Some((started(pid)?, pid))).min()?.1;
    let of_process = identity(&PathBuf::from(format!("/proc/{oldest}/ns/net")))?;
    let named = fs::read_dir(NAMED).into_iter().flatten().flatten().map(|entry| entry.path());
    let named = named.into_iter().find(|path| identity(path) == Some(of_process));
    Some(match named {
        Some(path) => Source::NetworkNamespacePath(path.display().to_string()),
        None => Source::Pid(oldest),
    })
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

/// Clock ticks from the machine's start. Source: proc_pid_stat(5), field 22; the second is in parentheses and may hold any.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0b6f5f9c-8a3e-4f0e-9d7b-2f1c3a4b5c6d";

    #[test]
    fn cgroups_of_both_drivers_are_found() {
        let root = std::env::temp_dir().join(format!("mesh-place-{}", std::process::id()));
        let underscored = UID.replace('-', "_");
        let cases = [
            (format!("kubepods/pod{UID}"), true),
            (format!("kubepods/burstable/pod{UID}"), true),
            (format!("kubepods.slice/kubepods-pod{underscored}.slice"), true),
            (format!("kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{underscored}.slice"), true),
            (format!("kubepods/besteffort/pod{UID}x"), false),
            (format!("system.slice/pod{UID}"), false),
            (format!("kubepods/pod1/pod{UID}"), false),
        ];
        for (path, is_found) in cases {
            let path = root.join(path);
            fs::create_dir_all(&path).unwrap();
            let found = cgroup(&root, UID);
            fs::remove_dir_all(&root).unwrap();
            assert_eq!(found, is_found.then_some(path));
        }
    }

    #[test]
    fn this_process_has_begun() {
        assert!(started(std::process::id()).is_some_and(|ticks| ticks > 0));
        assert_eq!(started(u32::MAX), None);
    }
}
