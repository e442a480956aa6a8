//! Whether a pod still lives. The agent's own listeners keep a dead pod's namespace alive, so its end is read off what
//! the runtime takes away: the namespace's file, the sandbox's process, the cgroup.

use std::{
    fs,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{stat, statfs},
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};

use crate::kernel::NetworkNamespace;

use super::claim::{Claim, NamespaceSource};

/// Source: Linux, include/uapi/linux/magic.h, NSFS_MAGIC.
const NAMESPACE_FILE: rustix::fs::FsWord = 0x6e73_6673;

/// Why a pod counts as dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Death {
    /// The file of its namespace is gone or leads to another one.
    #[error("its network namespace's file is gone or leads elsewhere")]
    Namespace,
    /// The process that it was enrolled with has ended.
    #[error("its process has ended")]
    Process,
    /// Its cgroup was removed.
    #[error("its cgroup is gone")]
    Cgroup,
    /// Its cgroup had processes and has none any more.
    #[error("its cgroup is empty")]
    Empty,
}

/// What the first look at a pod found instead of life.
#[derive(Debug, thiserror::Error)]
pub enum PulseError {
    /// It is dead.
    #[error(transparent)]
    Dead(#[from] Death),
    /// It cannot be looked at: no proof of anything.
    #[error("looking after the pod: {0}")]
    Look(#[source] Errno),
}

/// What is looked at.
#[derive(Debug)]
pub struct Pulse {
    path: PathBuf,
    /// Device and inode of the namespace: not used again while it is held open.
    namespace: (u64, u64),
    process: Option<OwnedFd>,
    cgroup: PathBuf,
    cgroup_inode: u64,
    /// With a file of its own a pod may be between two processes; without one, an empty cgroup is the end.
    counts_empty_cgroup: bool,
    was_populated: bool,
}

impl Pulse {
    /// Of a pod that is alive: its namespace is open, its cgroup exists.
    ///
    /// # Errors
    /// It has died meanwhile, or cannot be looked at.
    pub fn new(claim: &Claim, namespace: &NetworkNamespace) -> Result<Self, PulseError> {
        let held = rustix::fs::fstat(namespace.as_fd()).map_err(PulseError::Look)?;
        let process = match claim.network_namespace {
            NamespaceSource::Path(_) => None,
            NamespaceSource::Pid(pid) => {
                let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Death::Process)?;
                Some(pidfd_open(pid, PidfdFlags::empty()).map_err(|error| ended(error, Death::Process))?)
            }
        };
        let cgroup_inode = stat(&claim.cgroup_path).map_err(|error| ended(error, Death::Cgroup))?.st_ino;
        let path = claim.network_namespace.path();
        let counts_empty_cgroup = path.starts_with("/proc");
        Ok(Self {
            path,
            namespace: (held.st_dev, held.st_ino),
            process,
            cgroup: claim.cgroup_path.clone(),
            cgroup_inode,
            counts_empty_cgroup,
            was_populated: false,
        })
    }

    /// Looks again; a few microseconds. What cannot be looked at (descriptors used up) is no proof and counts as alive.
    ///
    /// # Errors
    /// It is dead.
    pub fn check(&mut self) -> Result<(), Death> {
        if let Some(process) = &self.process
            && has_ended(process)
        {
            return Err(Death::Process);
        }
        match stat(&self.path) {
            Ok(now) if (now.st_dev, now.st_ino) != self.namespace => return Err(Death::Namespace),
            Err(error) if is_gone(error) => return Err(Death::Namespace),
            _ => {}
        }
        match stat(&self.cgroup) {
            Ok(now) if now.st_ino != self.cgroup_inode => return Err(Death::Cgroup),
            Err(error) if is_gone(error) => return Err(Death::Cgroup),
            _ => {}
        }
        let is_populated = match is_populated(&self.cgroup) {
            Ok(is_populated) => is_populated,
            Err(error) if is_gone(error) => return Err(Death::Cgroup),
            Err(_) => return Ok(()),
        };
        if self.counts_empty_cgroup && self.was_populated && !is_populated {
            return Err(Death::Empty);
        }
        self.was_populated |= is_populated;
        Ok(())
    }

    /// Directories in which something happens when the pod dies.
    pub fn places(&self) -> impl Iterator<Item = &Path> {
        [self.path.parent(), self.cgroup.parent()].into_iter().flatten().filter(|place| !place.starts_with("/proc"))
    }

    /// The file that changes when the cgroup becomes empty.
    pub fn events_file(&self) -> PathBuf {
        self.cgroup.join("cgroup.events")
    }
}

fn has_ended(process: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(process, PollFlags::IN)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut polled, Some(&at_once)), Ok(ready) if ready > 0)
}

/// Whether the error proves that what was looked at is not there any more.
fn is_gone(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::NOTDIR | Errno::NODEV | Errno::SRCH)
}

fn ended(error: Errno, death: Death) -> PulseError {
    if is_gone(error) { death.into() } else { PulseError::Look(error) }
}

/// Before a namespace's file is opened: whether it proves that the namespace is gone. An unmounted one leaves an empty file.
///
/// # Errors
/// It is gone.
pub(super) fn check_namespace(path: &Path) -> Result<(), Death> {
    match statfs(path) {
        Ok(file) if file.f_type == NAMESPACE_FILE => Ok(()),
        Err(error) if !is_gone(error) => Ok(()),
        _ => Err(Death::Namespace),
    }
}

/// Source: Linux, Documentation/admin-guide/cgroup-v2.rst, "cgroup.events".
fn is_populated(cgroup: &Path) -> Result<bool, Errno> {
    let events = fs::read_to_string(cgroup.join("cgroup.events"));
    let events = events.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(events.lines().any(|line| line.strip_prefix("populated ").is_some_and(|value| value.trim() == "1")))
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    struct Sandbox {
        child: Child,
        cgroup: PathBuf,
    }

    impl Sandbox {
        fn new(name: &str) -> Self {
            let mounts = fs::read_to_string("/proc/mounts").unwrap();
            let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
            let root = line.expect("needs cgroup v2").split(' ').nth(1).unwrap();
            let cgroup = Path::new(root).join(format!("node-pulse-{}-{name}", std::process::id()));
            fs::create_dir(&cgroup).unwrap();
            let child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
            fs::write(cgroup.join("cgroup.procs"), child.id().to_string()).unwrap();
            Self { child, cgroup }
        }

        fn claim(&self, source: NamespaceSource) -> Claim {
            Claim {
                uid: "u".into(),
                namespace: "default".into(),
                name: "web".into(),
                service_account: "web".into(),
                addresses: vec![],
                network_namespace: source,
                cgroup_path: self.cgroup.clone(),
                probe_ports: vec![],
                is_fail_open: false,
            }
        }

        fn kill(&mut self) {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
    }

    impl Drop for Sandbox {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
            let _ = fs::remove_dir(&self.cgroup);
        }
    }

    #[test]
    fn the_end_of_the_process_is_the_end() {
        let mut sandbox = Sandbox::new("process");
        let pid = sandbox.child.id();
        let claim = sandbox.claim(NamespaceSource::Pid(pid));
        let namespace = NetworkNamespace::of_process(pid).unwrap();
        let mut pulse = Pulse::new(&claim, &namespace).unwrap();
        assert_eq!(pulse.check(), Ok(()));
        sandbox.kill();
        assert_eq!(pulse.check(), Err(Death::Process));
        assert!(matches!(Pulse::new(&claim, &namespace), Err(PulseError::Dead(Death::Process))));
    }

    #[test]
    fn a_file_that_leads_elsewhere_is_the_end_and_an_empty_cgroup_with_a_file_is_not() {
        let mut sandbox = Sandbox::new("file");
        let file = std::env::temp_dir().join(format!("node-pulse-{}", std::process::id()));
        std::os::unix::fs::symlink("/proc/self/ns/net", &file).unwrap();
        let namespace = NetworkNamespace::open(&file).unwrap();
        let mut pulse = Pulse::new(&sandbox.claim(NamespaceSource::Path(file.clone())), &namespace).unwrap();
        assert_eq!(pulse.check(), Ok(()));
        sandbox.kill();
        assert_eq!(pulse.check(), Ok(()), "its next process may be about to start");
        assert_eq!(check_namespace(&file), Ok(()));
        fs::remove_file(&file).unwrap();
        fs::write(&file, "").unwrap();
        assert_eq!(pulse.check(), Err(Death::Namespace));
        assert_eq!(check_namespace(&file), Err(Death::Namespace));
        fs::remove_file(&file).unwrap();
        assert_eq!(pulse.check(), Err(Death::Namespace));
    }

    #[test]
    fn what_cannot_be_looked_at_is_no_proof_of_death() {
        for error in [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::ACCESS, Errno::INTR] {
            assert!(matches!(ended(error, Death::Cgroup), PulseError::Look(same) if same == error));
        }
        assert!(matches!(ended(Errno::NOENT, Death::Cgroup), PulseError::Dead(Death::Cgroup)));
    }

    #[test]
    fn a_removed_cgroup_is_the_end() {
        let mut sandbox = Sandbox::new("cgroup");
        let source = NamespaceSource::Path("/proc/self/ns/net".into());
        let namespace = NetworkNamespace::open(Path::new("/proc/self/ns/net")).unwrap();
        let mut pulse = Pulse::new(&sandbox.claim(source), &namespace).unwrap();
        assert_eq!(pulse.check(), Ok(()));
        sandbox.kill();
        assert_eq!(pulse.check(), Err(Death::Empty));
        fs::remove_dir(&sandbox.cgroup).unwrap();
        assert_eq!(pulse.check(), Err(Death::Cgroup));
    }
}
