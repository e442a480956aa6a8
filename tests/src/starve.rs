//! What an agent can be denied while it runs: memory, and descriptors. Given back when dropped.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::{cgroup::Cgroup, eventually, slot::Slot};

/// A process that can open no file and accept no connection but in the gaps between those that it has.
pub struct NoDescriptors {
    process: Pid,
    before: Rlimit,
    gaps: usize,
}

impl NoDescriptors {
    /// Lowers the limit of a process to the highest number that it has open: every one that it gives up, it can use again.
    ///
    /// # Panics
    /// When there is no such process.
    pub fn of(process: u32) -> Self {
        let open = fs::read_dir(format!("/proc/{process}/fd")).expect("the process runs").flatten();
        let open: Vec<u64> = open.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        let limit = open.iter().max().map_or(0, |highest| highest + 1);
        let process = Pid::from_raw(process.cast_signed()).expect("a process has a number");
        // The hard limit of a process can only be asked for by setting it: an agent's is the one it got from us.
        let maximum = getrlimit(Resource::Nofile).maximum;
        let before = prlimit(Some(process), Resource::Nofile, Rlimit { current: Some(limit), maximum });
        let before = before.unwrap_or_else(|error| panic!("prlimit: {error}"));
        Self { process, before, gaps: usize::try_from(limit).expect("a small number") - open.len() }
    }

    /// How many it can still open.
    pub fn gaps(&self) -> usize {
        self.gaps
    }
}

impl Drop for NoDescriptors {
    fn drop(&mut self) {
        // The process may have ended meanwhile.
        let _ = prlimit(Some(self.process), Resource::Nofile, self.before);
    }
}

/// A control group whose memory is limited; what a process had before it came stays with its old one.
pub struct MemoryLimit {
    group: PathBuf,
    kills: &'static str,
}

impl MemoryLimit {
    /// Lets a process have `bytes` more, and be killed by the kernel for the next page.
    ///
    /// # Panics
    /// When the machine has no memory controller.
    pub(crate) fn of(slot: &Slot, node: &Cgroup, process: u32, bytes: u64) -> Self {
        let (group, limit, kills) = match first_version() {
            Some(root) => (root.join(slot.name("memory")), "memory.limit_in_bytes", "memory.oom_control"),
            None => {
                enable(node);
                (node.child("memory").path().to_owned(), "memory.max", "memory.events")
            }
        };
        let write = |file: &str, text: &str| {
            let path = group.join(file);
            fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        };
        fs::create_dir_all(&group).unwrap_or_else(|error| panic!("mkdir {}: {error}", group.display()));
        write(limit, &bytes.to_string());
        write("cgroup.procs", &process.to_string());
        Self { group, kills }
    }

    /// How many processes the kernel has killed for it.
    ///
    /// # Panics
    /// When the kernel does not say.
    pub fn kills(&self) -> u64 {
        let text = fs::read_to_string(self.group.join(self.kills)).expect("the group is there");
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.and_then(|count| count.trim().parse().ok()).expect("a kernel from 4.13 on counts them")
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        eventually("the limited group is empty", crate::LIMIT, || {
            fs::remove_dir(&self.group).map_err(|error| error.to_string())
        });
    }
}

/// Where the memory controller of cgroup v1 is mounted, if the machine uses it.
fn first_version() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").expect("/proc is mounted");
    let mount = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|words| {
        words.get(2) == Some(&"cgroup")
            && words.get(3).is_some_and(|options| options.split(',').any(|word| word == "memory"))
    })?;
    Some(mount.get(1)?.into())
}

/// Version 2: every group from the root down to the node's hands the controller on.
fn enable(node: &Cgroup) {
    let root = Cgroup::root();
    let above: Vec<&Path> = node.path().ancestors().take_while(|path| path.starts_with(root.path())).collect();
    for group in above.into_iter().rev() {
        let file = group.join("cgroup.subtree_control");
        fs::write(&file, "+memory").unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
}
