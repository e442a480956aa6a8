//! The cgroup that hooks are attached to: given, or found among the mounts. In a container the runtime has often mounted the
//! container's own part of the hierarchy beside the node's; only the latter is above all pods.

use std::{
    os::fd::AsFd,
    path::{Path, PathBuf},
};

/// Source: Linux, include/uapi/linux/magic.h.
const CGROUP2_MAGIC: i64 = 0x6367_7270;
const MOUNTS: &str = "/proc/self/mountinfo";

/// The directory with all links resolved.
pub(super) fn check(path: &Path) -> Result<PathBuf, String> {
    let resolved = path.canonicalize().map_err(|error| format!("{}: {error}", path.display()))?;
    let directory = std::fs::File::open(&resolved).map_err(|error| format!("{}: {error}", path.display()))?;
    let file_system = rustix::fs::fstatfs(directory.as_fd()).map_err(|error| error.to_string())?;
    if file_system.f_type == CGROUP2_MAGIC {
        Ok(resolved)
    } else {
        Err(format!("{} is not in a cgroup v2 hierarchy", path.display()))
    }
}

/// The root of the node's hierarchy.
pub(super) fn find() -> Result<PathBuf, String> {
    let mounts = std::fs::read_to_string(MOUNTS).map_err(|error| format!("{MOUNTS}: {error}"))?;
    let highest = highest(&mounts).ok_or("cgroup v2 is not mounted here: mount the node's, or name its directory")?;
    check(Path::new(highest))
}

/// Where the mount is whose root is highest in the hierarchy; among equals the last, which hides those before it.
///
/// Source: proc_pid_mountinfo(5): field 4 is the root, seen from the reader's own cgroup namespace (`/..` is above it),
/// field 5 the mount point, and the type follows a lone hyphen.
fn highest(mounts: &str) -> Option<&str> {
    let cgroups = mounts.lines().filter_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        file_system.starts_with("cgroup2 ").then_some((root, point))
    });
    cgroups.max_by_key(|(root, _)| height(root)).map(|(_, point)| point)
}

/// Levels above the reader's own cgroup, negative below it.
fn height(root: &str) -> isize {
    let parts = root.split('/').filter(|part| !part.is_empty());
    parts.map(|part| if part == ".." { 1 } else { -1 }).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_root_is_taken() {
        let line =
            |root: &str, point: &str| format!("36 35 98:0 {root} {point} ro,nosuid shared:1 - cgroup2 cgroup2 rw\n");
        let cases = [
            (line("/", "/sys/fs/cgroup"), Some("/sys/fs/cgroup")),
            (line("/", "/sys/fs/cgroup") + &line("/../../..", "/host/cgroup"), Some("/host/cgroup")),
            (line("/../..", "/host/cgroup") + &line("/", "/sys/fs/cgroup"), Some("/host/cgroup")),
            (line("/kubepods/pod1", "/a") + &line("/", "/b"), Some("/b")),
            (line("/", "/a") + &line("/", "/b"), Some("/b")),
            (line("/", "/a").replace("cgroup2 cgroup2", "cgroup cgroup"), None),
            (String::new(), None),
        ];
        for (mounts, expected) in cases {
            assert_eq!(highest(&mounts), expected, "{mounts}");
        }
    }

    #[test]
    fn this_machine_has_one() {
        assert!(find().is_ok());
    }
}
