//! Which process holds a socket: by the inode in its descriptors. Only processes of the pod's own cgroup are looked at.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

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
    let mut found = Vec::new();
    let mut directories = vec![cgroup.to_owned()];
    while let Some(directory) = directories.pop() {
        let Ok(list) = fs::read_to_string(directory.join("cgroup.procs")) else { continue };
        found.extend(list.lines().filter_map(|line| line.parse::<u32>().ok()));
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        let below = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        directories.extend(below.map(|entry| entry.path()));
    }
    found
}
