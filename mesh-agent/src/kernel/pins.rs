//! Where maps and links are pinned: `BPFFS/v1/NAME` and `BPFFS/v1/links/NAME`. Mounts the file system when it is not there,
//! and leaves nothing behind when asked to. Never touches another version's directory.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};

use super::KernelError;
use super::link::Hook;
use super::sys::{self, Attributes, Command, number};

/// Source: Linux, include/uapi/linux/magic.h.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
/// The version of what is pinned. A change of a map's layout needs a new one.
const VERSION: &str = "v1";
/// An empty directory beside the version's says that an agent mounted the file system, so that detaching unmounts it.
const MOUNTED: &str = "mounted-by-mesh";

/// The directories of the pins.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    bpffs: PathBuf,
    directory: PathBuf,
    links: PathBuf,
}

impl Pins {
    /// The directories below a mount, whether or not they are there.
    pub(super) fn at(bpffs: &Path) -> Self {
        let directory = bpffs.join(VERSION);
        Self { bpffs: bpffs.to_owned(), links: directory.join("links"), directory }
    }

    /// Makes them, mounting the file system first if need be.
    pub(super) fn prepare(bpffs: &Path) -> Result<Self, KernelError> {
        let failed = |what: &str, source| KernelError::system(format!("{what} {}", bpffs.display()), source);
        std::fs::create_dir_all(bpffs).map_err(|source| failed("making", source))?;
        if !is_bpffs(bpffs).map_err(|source| failed("looking at", source))? {
            rustix::mount::mount(
                "bpf",
                bpffs,
                "bpf",
                MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
                c"mode=0700",
            )
            .map_err(|source| failed("mounting bpffs at", source.into()))?;
            std::fs::create_dir(bpffs.join(MOUNTED)).map_err(|source| failed("marking", source))?;
        }
        let pins = Self::at(bpffs);
        std::fs::create_dir_all(&pins.links).map_err(|source| failed("making directories in", source))?;
        Ok(pins)
    }

    /// Where the maps are.
    pub(super) fn maps(&self) -> &Path {
        &self.directory
    }

    /// The pin of a hook on the cgroup.
    pub(super) fn link(&self, hook: Hook) -> PathBuf {
        self.links.join(hook.pin())
    }

    /// The pin of sk_lookup in a namespace.
    pub(super) fn lookup(&self, namespace: u64) -> PathBuf {
        self.links.join(format!("{}_{namespace:016x}", Hook::Lookup.pin()))
    }

    /// All pins of sk_lookup.
    pub(super) fn lookups(&self) -> Result<Vec<PathBuf>, KernelError> {
        let mut pins = self.entries(&self.links)?;
        pins.retain(|pin| pin.file_name().is_some_and(|name| name.to_string_lossy().starts_with(Hook::Lookup.pin())));
        Ok(pins)
    }

    /// After a start that failed: removes everything, unless hooks of an earlier one are attached.
    pub(super) fn remove_if_unused(&self) {
        let is_unused = self.entries(&self.links).is_ok_and(|links| links.is_empty());
        if is_unused && let Err(error) = self.remove() {
            tracing::error!(%error, "pins of a failed start could not be removed");
        }
    }

    /// Detaches every link (connect hooks first, then sk_lookup, then the readers), removes the maps' pins and unmounts. Goes
    /// on after a failure and answers the first.
    pub(super) fn remove(&self) -> Result<(), KernelError> {
        let mut first = Ok(());
        let mut note = |result: Result<(), KernelError>| {
            if first.is_ok() {
                first = result;
            }
        };
        for link in self.links_last_to_first()? {
            note(detach(&link));
        }
        for map in self.entries(&self.directory)? {
            if map != self.links {
                note(gone(std::fs::remove_file(&map), &map));
            }
        }
        for directory in [&self.links, &self.directory] {
            note(gone(std::fs::remove_dir(directory), directory));
        }
        let mark = self.bpffs.join(MOUNTED);
        // The kernel keeps files of its own there; what others pinned is in directories.
        let is_ours = |entry: &PathBuf| *entry == mark || !entry.is_dir();
        if mark.exists() && self.entries(&self.bpffs)?.iter().all(is_ours) {
            note(gone(std::fs::remove_dir(&mark), &mark));
            note(gone(rustix::mount::unmount(&self.bpffs, UnmountFlags::DETACH).map_err(Into::into), &self.bpffs));
        }
        first
    }

    fn links_last_to_first(&self) -> Result<Vec<PathBuf>, KernelError> {
        let mut links = self.entries(&self.links)?;
        let rank = |link: &PathBuf| {
            let hook = Hook::CGROUP.iter().position(|hook| self.link(*hook) == *link);
            // sk_lookup has no place of its own in the order: between the readers and the connect hooks.
            std::cmp::Reverse(hook.map_or(2 * Hook::BEFORE_LOOKUP, |position| 2 * position + 1))
        };
        links.sort_by_key(rank);
        Ok(links)
    }

    fn entries(&self, directory: &Path) -> Result<Vec<PathBuf>, KernelError> {
        let failed = |source| KernelError::system(format!("reading {}", directory.display()), source);
        match std::fs::read_dir(directory) {
            Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path()).map_err(failed)).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(source) => Err(failed(source)),
        }
    }
}

/// Detaches a pinned link and removes its pin. Detaching first, because removing the last reference does so only later.
pub(super) fn detach(pin: &Path) -> Result<(), KernelError> {
    let link = match sys::open_pinned(pin) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(KernelError::system(format!("opening link {}", pin.display()), source)),
    };
    let mut attributes = Attributes::default();
    attributes[0] = number(link.as_fd()).into();
    // SAFETY: no pointers.
    match unsafe { sys::bpf(Command::LinkDetach, &mut attributes) } {
        Ok(_) => {}
        // Its cgroup or namespace is gone, and it with them.
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
        Err(source) => return Err(KernelError::system(format!("detaching {}", pin.display()), source)),
    }
    gone(std::fs::remove_file(pin), pin)
}

/// Not being there is what was asked for.
fn gone(result: io::Result<()>, path: &Path) -> Result<(), KernelError> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(KernelError::system(format!("removing {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

pub(super) fn is_bpffs(path: &Path) -> io::Result<bool> {
    let kind = rustix::fs::statfs(path)?.f_type;
    Ok(kind.cast_unsigned() == BPF_FS_MAGIC)
}
