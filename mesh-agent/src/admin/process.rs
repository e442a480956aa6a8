//! Which process holds a socket: by the inode in its descriptors. Only processes of the pod's own cgroup are looked at.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use crate::kernel::subtree;

/// Processes beyond this are not looked at.
const PROCESS_LIMIT: usize = 4096;

/// `name[pid]` by socket inode, for all processes in a cgroup and below. O(descriptors of these).
pub(super) fn holders(cgroup: &Path) -> HashMap<u32, String> {
    let mut holders = HashMap::new();
    for pid in processes(cgroup).into_iter().take(PROCESS_LIMIT) {
        let directory = PathBuf::from(format!("/proc/{pid}"));
        // It may end while it is looked at.
        let (Ok(name), Ok(descriptors)) =
            (fs::read_to_string(directory.join("comm")), fs::read_dir(directory.join("fd")))
        else {
            continue;
        };
        let sockets = descriptors.flatten().filter_map(|entry| inode(&fs::read_link(entry.path()).ok()?));
        for socket in sockets {
            holders.entry(socket).or_insert_with(|| format!("{}[{pid}]", name.trim_end()));
        }
    }
    holders
}

fn inode(target: &Path) -> Option<u32> {
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

fn processes(cgroup: &Path) -> Vec<u32> {
    let lists = subtree(cgroup).into_iter().filter_map(|group| fs::read_to_string(group.join("cgroup.procs")).ok());
    lists.flat_map(|list| list.lines().filter_map(|line| line.parse().ok()).collect::<Vec<u32>>()).collect()
}
