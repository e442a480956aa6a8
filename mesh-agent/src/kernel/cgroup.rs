//! Cgroups (v2) by id and level, as the hooks know them. Never creates or moves one.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::KernelError;

/// Source: Linux, include/uapi/linux/magic.h.
const CGROUP2_MAGIC: u64 = 0x6367_7270;
/// The id of the hierarchy's root.
const ROOT_ID: u64 = 1;
/// What the names of the cgroups above pods begin with, below the agent's root.
const PODS: &str = "kubepods";

/// A cgroup as the hooks see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodCgroup {
    /// Its id.
    pub id: u64,
    /// Its depth: 0 is the root of the hierarchy, or what this process sees as such.
    pub level: u32,
    /// Above that there is more, which this process does not see: a node that is itself a container.
    pub is_below_more: bool,
}

impl PodCgroup {
    /// Finds the cgroup of a directory.
    ///
    /// # Errors
    /// The directory is not there, or is no cgroup v2.
    pub fn find(path: &Path) -> Result<Self, KernelError> {
        let failed = |source| KernelError::system(format!("looking at cgroup {}", path.display()), source);
        let path = fs::canonicalize(path).map_err(failed)?;
        if rustix::fs::statfs(&path).map_err(|source| failed(source.into()))?.f_type.cast_unsigned() != CGROUP2_MAGIC {
            return Err(KernelError::Path { path, reason: "is not a cgroup v2" });
        }
        let own = fs::metadata(&path).map_err(failed)?;
        let above = path.ancestors().map_while(|directory| {
            fs::metadata(directory).ok().filter(|ancestor| ancestor.dev() == own.dev()).map(|ancestor| ancestor.ino())
        });
        let ids: Vec<u64> = above.collect();
        Ok(Self { id: own.ino(), level: ids.len() as u32 - 1, is_below_more: ids.last() != Some(&ROOT_ID) })
    }

    /// Bits of the levels at which the hooks may meet it. Where the root is not seen, it is that level or any deeper.
    pub(super) fn levels(self) -> u32 {
        let all = u32::MAX.checked_shl(self.level).unwrap_or(0);
        if self.is_below_more { all } else { all & 1_u32.checked_shl(self.level).unwrap_or(0) }
    }
}

/// A cgroup and all below it that are there now.
pub fn subtree(cgroup: &Path) -> Vec<PathBuf> {
    let mut found = vec![cgroup.to_owned()];
    let mut next = 0;
    while let Some(directory) = found.get(next) {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let below: Vec<_> = below.map(|entry| entry.path()).collect();
        found.extend(below);
        next += 1;
    }
    found
}

/// The cgroup that the hooks are attached to.
#[derive(Debug)]
pub(super) struct CgroupRoot {
    path: PathBuf,
    fd: OwnedFd,
    id: u64,
}

impl CgroupRoot {
    /// Opens it.
    pub(super) fn open(path: &Path) -> Result<Self, KernelError> {
        let cgroup = PodCgroup::find(path)?;
        let failed = |source| KernelError::system(format!("opening cgroup {}", path.display()), source);
        let path = fs::canonicalize(path).map_err(failed)?;
        let fd = File::open(&path).map_err(failed)?;
        Ok(Self { path, fd: fd.into(), id: cgroup.id })
    }

    /// Its id.
    pub(super) const fn id(&self) -> u64 {
        self.id
    }

    /// The cgroups of pods, those below them, and those between them and this one.
    pub(super) fn around<'a>(&self, pods: impl Iterator<Item = &'a Path>) -> BTreeSet<PathBuf> {
        let mut found = BTreeSet::new();
        for pod in pods {
            let above =
                pod.ancestors().skip(1).take_while(|above| *above != self.path && above.starts_with(&self.path));
            found.extend(above.map(Path::to_owned));
            found.extend(subtree(pod));
        }
        found
    }

    /// The cgroups above pods (`ROOT/kubepods*`) that are there now.
    pub(super) fn above_pods(&self) -> Result<Vec<PodCgroup>, KernelError> {
        let failed = |source| KernelError::system(format!("reading cgroup {}", self.path.display()), source);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let is_directory = entry.file_type().map_err(failed)?.is_dir();
            if is_directory && entry.file_name().to_string_lossy().starts_with(PODS) {
                found.push(PodCgroup::find(&entry.path())?);
            }
        }
        Ok(found)
    }
}

impl AsFd for CgroupRoot {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
