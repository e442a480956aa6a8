//! A slot: the number from which a mesh's names and addresses are made. Held by a file lock, so a slot is free exactly
//! when its process has gone; who takes one sweeps what its last holder left behind. Limits how many meshes run at once.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use crate::cgroup::Cgroup;

const LOCKS: &str = "/run/mesh-tests";
const NETWORK_NAMESPACES: &str = "/run/netns";

/// A number that no other mesh on this machine has while this lives.
pub struct Slot {
    number: u8,
    directory: PathBuf,
    _lock: File,
}

impl Slot {
    /// Takes the first free slot; waits while all are taken (two per processor, at least four).
    ///
    /// # Panics
    /// When the lock files cannot be made: not root, or no /run.
    pub fn take() -> Self {
        fs::create_dir_all(LOCKS).expect("stories run as root and make /run/mesh-tests");
        let slots = thread::available_parallelism().map_or(4, |processors| (2 * processors.get()).clamp(4, 16)) as u8;
        loop {
            if let Some((number, lock)) = (1..=slots).find_map(|number| Some((number, try_lock(number)?))) {
                let slot = Self { number, directory: format!("{LOCKS}/{number}").into(), _lock: lock };
                slot.sweep();
                slot.make_directory();
                return slot;
            }
            // Other meshes end in seconds; a blocking lock could only wait for one of them.
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// 1 to 16.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// `name` with the slot in front: of a namespace.
    pub fn name(&self, name: &str) -> String {
        format!("mesh{}-{name}", self.number)
    }

    /// A tmpfs of this slot alone, for run directories, manifests and logs; gone with the slot.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The cgroup above everything that the mesh runs.
    pub fn cgroup(&self) -> Cgroup {
        Cgroup::root().child("mesh-tests").child(&self.number.to_string())
    }

    /// Ends every process in the slot's cgroup and removes mounts, namespaces, cgroups and files.
    pub fn sweep(&self) {
        let cgroup = self.cgroup();
        cgroup.kill();
        unmount_below(&self.directory);
        let prefix = self.name("");
        for entry in fs::read_dir(NETWORK_NAMESPACES).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if name.to_string_lossy().starts_with(&prefix) {
                // Already gone is as good.
                let _ = Command::new("ip").args(["netns", "delete"]).arg(&name).output();
            }
        }
        cgroup.remove();
        let _ = fs::remove_dir_all(&self.directory);
    }

    /// Nothing of a mesh is worth a disk; /run is on one in places.
    fn make_directory(&self) {
        fs::create_dir_all(&self.directory).expect("a directory below /run/mesh-tests");
        let none = c"";
        let flags = rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NODEV;
        rustix::mount::mount("mesh-tests", &self.directory, "tmpfs", flags, none).expect("a tmpfs for the slot");
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.sweep();
    }
}

fn try_lock(number: u8) -> Option<File> {
    let file = File::create(format!("{LOCKS}/{number}.lock")).expect("a lock file below /run/mesh-tests");
    match file.try_lock() {
        Ok(()) => Some(file),
        Err(TryLockError::WouldBlock) => None,
        Err(TryLockError::Error(error)) => panic!("cannot lock slot {number}: {error}"),
    }
}

/// Unmounts what is mounted at or below `directory`, the innermost first: bpffs mounts of agents, then our tmpfs.
fn unmount_below(directory: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let below = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|point| Path::new(point).starts_with(directory));
    for point in below.collect::<Vec<_>>().into_iter().rev() {
        let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
    }
}
