//! Control groups (v2) of nodes, pods and processes. Made and removed here; nothing but membership is set.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// A control group that may not exist yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// The root of the machine's cgroup2 mount, wherever that is.
    ///
    /// # Panics
    /// When cgroup2 is not mounted.
    pub fn root() -> Self {
        let mounts = fs::read_to_string("/proc/mounts").expect("/proc is mounted");
        let mount = mounts.lines().find_map(|line| {
            let mut words = line.split(' ').skip(1);
            let point = words.next()?;
            (words.next()? == "cgroup2").then(|| point.into())
        });
        Self { path: mount.expect("cgroup2 is mounted: mount -t cgroup2 none /sys/fs/cgroup") }
    }

    /// The group called `name` below this one.
    pub fn child(&self, name: &str) -> Self {
        Self { path: self.path.join(name) }
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it and those above it.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn create(self) -> Self {
        fs::create_dir_all(&self.path).unwrap_or_else(|error| panic!("mkdir {}: {error}", self.path.display()));
        self
    }

    /// The file that a process writes `0` into to join.
    pub(crate) fn processes(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// Kills all processes in it and below it, and waits until they have gone. Nothing when there is no such group.
    ///
    /// # Panics
    /// When processes are still there after ten seconds.
    pub fn kill(&self) {
        if !self.path.exists() {
            return;
        }
        let _ = fs::write(self.path.join("cgroup.kill"), "1");
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.is_populated() {
            assert!(Instant::now() < deadline, "processes in {} do not die", self.path.display());
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether there are processes in it or below it.
    pub fn is_populated(&self) -> bool {
        let events = fs::read_to_string(self.path.join("cgroup.events")).unwrap_or_default();
        events.lines().any(|line| line == "populated 1")
    }

    /// Removes it and those below it; they must be empty. Nothing when there is no such group.
    ///
    /// # Panics
    /// When a group cannot be removed.
    pub fn remove(&self) {
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                Self { path: entry.path() }.remove();
            }
        }
        match fs::remove_dir(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                panic!("rmdir {}: {error}", self.path.display())
            }
            _ => {}
        }
    }
}
