//! Where maps and links are pinned, so that they outlive the agent. Mounts the file system when it is not there, and leaves
//! nothing behind when asked to.
//!
//! ```text
//! BPFFS/links/HOOK  the links: whoever is in charge puts its programs on them
//! BPFFS/kept/MAP    what sockets and live connections carry: the same maps under all versions of the programs
//! BPFFS/v1/MAP      compiled from View and pods: a version that lays these out otherwise makes its own, beside this one's
//! ```

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};

use super::KernelError;
use super::link::{self, Hook};
use super::maps::KEPT;
use super::sys::{self, Attributes, Command, number};

/// Source: Linux, include/uapi/linux/magic.h.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
/// The layout of the maps that are made anew by a version that changes it: `v` and a number.
pub const MAPS_VERSION: &str = "v1";
/// An empty directory beside the version's says that an agent mounted the file system, so that detaching unmounts it.
const MOUNTED: &str = "mounted-by-mesh";

/// The directories of the pins.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    bpffs: PathBuf,
    links: PathBuf,
    kept: PathBuf,
    directory: PathBuf,
}

impl Pins {
    /// The directories below a mount, whether or not they are there.
    pub(super) fn at(bpffs: &Path, version: &str) -> Self {
        let below = |name: &str| bpffs.join(name);
        Self { bpffs: bpffs.to_owned(), links: below("links"), kept: below("kept"), directory: below(version) }
    }

    /// Makes them, mounting the file system first if need be.
    pub(super) fn prepare(bpffs: &Path, version: &str) -> Result<Self, KernelError> {
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
        let pins = Self::at(bpffs, version);
        for directory in [&pins.links, &pins.kept, &pins.directory] {
            std::fs::create_dir_all(directory).map_err(|source| failed("making directories in", source))?;
        }
        Ok(pins)
    }

    /// The pin of a map.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        let directory = if KEPT.contains(&name) { &self.kept } else { &self.directory };
        directory.join(name)
    }

    /// Whether the maps of this version are those of the programs on the hooks. Others are left-overs.
    pub(super) fn are_in_force(&self) -> bool {
        let pods = sys::open_pinned(&self.map("PODS")).and_then(|map| sys::object_info::<sys::MapInfo>(map.as_fd()));
        let program = sys::open_pinned(&self.link(Hook::Connect4))
            .and_then(|link| link::info(link.as_fd()))
            .and_then(|link| link::program_by_id(link.program))
            .and_then(|program| sys::maps_of_program(program.as_fd()));
        pods.is_ok_and(|pods| program.is_ok_and(|maps| maps.contains(&pods.id)))
    }

    /// Removes the maps of this version, which no program on a hook uses.
    pub(super) fn clear_maps(&self) -> Result<(), KernelError> {
        entries(&self.directory)?.into_iter().try_for_each(|map| gone(std::fs::remove_file(&map), &map))
    }

    /// After a start that failed: removes the maps that it made, and everything unless there are hooks of an earlier one.
    pub(super) fn take_back(&self, is_new: bool) {
        let own = if is_new { remove_directory(&self.directory) } else { Ok(()) };
        let is_unused = entries(&self.links).is_ok_and(|links| links.is_empty());
        let all = if is_unused { self.remove() } else { Ok(()) };
        if let Err(error) = own.and(all) {
            tracing::error!(%error, "pins of a failed start could not be removed");
        }
    }

    /// Removes the maps of all other versions; programs that still use them keep them until they end.
    pub(super) fn remove_others(&self) -> Result<(), KernelError> {
        let others = entries(&self.bpffs)?.into_iter().filter(|entry| is_version(entry) && *entry != self.directory);
        others.into_iter().try_for_each(|other| remove_directory(&other))
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
        let mut pins = entries(&self.links)?;
        pins.retain(|pin| pin.file_name().is_some_and(|name| name.to_string_lossy().starts_with(Hook::Lookup.pin())));
        Ok(pins)
    }

    /// The cookies of the namespaces that have one.
    pub(super) fn looked_up(&self) -> Result<Vec<u64>, KernelError> {
        let cookie = |pin: PathBuf| {
            let name = pin.file_name()?.to_string_lossy().into_owned();
            u64::from_str_radix(name.rsplit_once('_')?.1, 16).ok()
        };
        Ok(self.lookups()?.into_iter().filter_map(cookie).collect())
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
        note(gone(std::fs::remove_dir(&self.links), &self.links));
        for maps in entries(&self.bpffs)?.into_iter().filter(|entry| is_version(entry) || *entry == self.kept) {
            note(remove_directory(&maps));
        }
        let mark = self.bpffs.join(MOUNTED);
        // The kernel keeps files of its own there; what others pinned is in directories.
        let is_ours = |entry: &PathBuf| *entry == mark || !entry.is_dir();
        if mark.exists() && entries(&self.bpffs)?.iter().all(is_ours) {
            note(gone(std::fs::remove_dir(&mark), &mark));
            note(gone(rustix::mount::unmount(&self.bpffs, UnmountFlags::DETACH).map_err(Into::into), &self.bpffs));
        } else if is_bpffs(&self.bpffs).unwrap_or(false) {
            // A directory on somebody's file system goes, too; a mount of their own stays, and so does what others pinned.
            match std::fs::remove_dir(&self.bpffs) {
                Err(error) if !is_in_use(&error) => note(gone(Err(error), &self.bpffs)),
                _ => {}
            }
        }
        first
    }

    fn links_last_to_first(&self) -> Result<Vec<PathBuf>, KernelError> {
        let mut links = entries(&self.links)?;
        let rank = |link: &PathBuf| {
            let hook = Hook::CGROUP.iter().position(|hook| self.link(*hook) == *link);
            // sk_lookup has no place of its own in the order: between the readers and the connect hooks.
            std::cmp::Reverse(hook.map_or(2 * Hook::BEFORE_LOOKUP, |position| 2 * position + 1))
        };
        links.sort_by_key(rank);
        Ok(links)
    }
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, KernelError> {
    let failed = |source| KernelError::system(format!("reading {}", directory.display()), source);
    match std::fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path()).map_err(failed)).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(failed(source)),
    }
}

/// Whether a directory holds the maps of a version.
fn is_version(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.strip_prefix('v').is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// A directory of maps; goes on after a failure and answers the first.
fn remove_directory(directory: &Path) -> Result<(), KernelError> {
    let removed = entries(directory)?.into_iter().map(|map| gone(std::fs::remove_file(&map), &map));
    let all = removed.fold(Ok(()), Result::and);
    all.and(gone(std::fs::remove_dir(directory), directory))
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

fn is_in_use(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ResourceBusy | io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::PermissionDenied
    )
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
