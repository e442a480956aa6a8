//! Which pods may send packets that no socket hook sees, as a line of `meshctl check`. Only reads what /proc says of the
//! processes in the pods' cgroups.

use std::{
    fs,
    path::{Path, PathBuf},
};

use mesh_api::proto::admin::CheckRow;

use crate::enrol::PodTable;

use super::check::{ok, warning};

/// What lets a process send past its sockets, or change the pod's own steering. Source: Linux,
/// include/uapi/linux/capability.h.
const CAPABILITIES: [(u32, &str); 2] = [(12, "NET_ADMIN"), (13, "NET_RAW")];
/// Cgroups and processes that are looked at in one pod; the rest of a larger one is not.
const CGROUP_LIMIT: usize = 256;
const PROCESS_LIMIT: usize = 4096;
/// Pods that are named; the others are counted.
const NAMED: usize = 20;

/// What was found in one pod.
#[derive(Debug, Default, PartialEq, Eq)]
struct Held {
    /// A bit for each capability that some process may use.
    capabilities: u64,
    /// Some processes could not be looked at.
    is_partial: bool,
}

/// The line. O(processes of all pods).
pub(super) fn row(pods: &PodTable) -> CheckRow {
    let mut held: Vec<(String, Held)> =
        pods.by_uid.values().map(|pod| (pod.full_name(), look(&pod.cgroup_path))).collect();
    held.sort_unstable_by(|one, other| one.0.cmp(&other.0));
    let holders = held.iter().filter_map(|(name, held)| Some(format!("{name}: {}", named(held.capabilities)?)));
    let partial =
        held.iter().filter(|(_, held)| held.is_partial).map(|(name, _)| format!("{name}: not all processes seen"));
    let found: Vec<String> = holders.chain(partial).collect();
    if found.is_empty() {
        return ok("pod_rights", "no enrolled pod holds NET_ADMIN or NET_RAW");
    }
    let mut text = found[..found.len().min(NAMED)].join("; ");
    if found.len() > NAMED {
        text += &format!("; and {} more", found.len() - NAMED);
    }
    let remedy = "drop these capabilities in the pods' securityContext: packets that they make without a socket are not \
                  steered, encrypted or judged";
    warning("pod_rights", text, remedy)
}

fn named(capabilities: u64) -> Option<String> {
    let names: Vec<&str> =
        CAPABILITIES.iter().filter(|(bit, _)| capabilities & (1 << bit) != 0).map(|(_, name)| *name).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// Looks at every process of a cgroup and of those below it. One that ends meanwhile holds nothing.
fn look(cgroup: &Path) -> Held {
    let mut held = Held::default();
    let (mut cgroups, mut seen, mut processes) = (vec![cgroup.to_owned()], 0, 0);
    while let Some(cgroup) = cgroups.pop() {
        seen += 1;
        if seen > CGROUP_LIMIT {
            held.is_partial = true;
            return held;
        }
        let members = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
        for process in members.lines() {
            processes += 1;
            // 0: of a process namespace that the agent cannot see into.
            if process == "0" || processes > PROCESS_LIMIT {
                held.is_partial = true;
                break;
            }
            let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
            held.capabilities |= permitted(&status).unwrap_or_default();
        }
        cgroups.extend(below(&cgroup));
    }
    held
}

fn below(cgroup: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(cgroup).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path())
}

/// What a process may use whenever it likes; what it uses now is a part of that.
fn permitted(status: &str) -> Option<u64> {
    let hex = status.lines().find_map(|line| line.strip_prefix("CapPrm:"))?;
    u64::from_str_radix(hex.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use std::{
        net::{IpAddr, Ipv4Addr},
        os::unix::process::CommandExt,
        process::{Child, Command, Stdio},
        sync::Arc,
    };

    use super::*;
    use crate::enrol::Pod;
    use crate::proving;

    /// A pod's cgroup with one process in a cgroup below it.
    struct Sandbox {
        child: Child,
        cgroup: PathBuf,
    }

    impl Sandbox {
        fn without(name: &str, dropped: &'static [u32]) -> Self {
            let mounts = fs::read_to_string("/proc/mounts").unwrap();
            let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
            let root = line.expect("needs cgroup v2").split(' ').nth(1).unwrap();
            let cgroup = Path::new(root).join(format!("node-rights-{}-{name}", std::process::id()));
            fs::create_dir_all(cgroup.join("container")).unwrap();
            let mut command = Command::new("cat");
            command.stdin(Stdio::piped()).stdout(Stdio::null());
            // SAFETY: between fork and exec only a system call is made.
            unsafe {
                command.pre_exec(move || {
                    for capability in dropped {
                        if libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(*capability), 0, 0, 0) != 0 {
                            return Err(std::io::Error::last_os_error());
                        }
                    }
                    Ok(())
                });
            }
            let child = command.spawn().unwrap();
            fs::write(cgroup.join("container/cgroup.procs"), child.id().to_string()).unwrap();
            Self { child, cgroup }
        }
    }

    impl Drop for Sandbox {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
            let _ = fs::remove_dir(self.cgroup.join("container"));
            let _ = fs::remove_dir(&self.cgroup);
        }
    }

    #[test]
    fn pods_whose_processes_may_send_past_their_sockets_are_named() {
        let sandboxes = [("all", &[][..]), ("raw", &[12]), ("none", &[12, 13])]
            .map(|(name, dropped)| (name, Sandbox::without(name, dropped)));
        let pods = |names: &[&str]| {
            let of_name = |(number, name): (usize, &&str)| {
                let (_, sandbox) = sandboxes.iter().find(|(known, _)| known == name).unwrap();
                let known = proving::pod(number as u32 + 1, name, IpAddr::from(Ipv4Addr::new(10, 0, 0, number as u8)));
                let known = Arc::into_inner(known).expect("nobody else has it yet");
                Arc::new(Pod { cgroup_path: sandbox.cgroup.clone(), ..known })
            };
            proving::table(&names.iter().enumerate().map(of_name).collect::<Vec<_>>())
        };
        let found = row(&pods(&["raw", "none", "all"]));
        assert_eq!((found.name.as_str(), found.result.as_str()), ("pod_rights", "warning"));
        assert_eq!(found.text, "default/all: NET_ADMIN, NET_RAW; default/raw: NET_RAW");
        assert!(!found.remedy.is_empty());
        assert_eq!(row(&pods(&["none"])).result, "ok");
        assert_eq!(row(&PodTable::default()).result, "ok");
    }

    #[test]
    fn a_status_without_the_line_holds_nothing() {
        assert_eq!(permitted("Name:\tcat\nCapPrm:\t0000000000003000\nCapEff:\t0000000000000000\n"), Some(0x3000));
        assert_eq!(permitted("Name:\tcat\n"), None);
        assert_eq!(named(0x3000).as_deref(), Some("NET_ADMIN, NET_RAW"));
        assert_eq!(named(0xcfff), None);
    }
}
