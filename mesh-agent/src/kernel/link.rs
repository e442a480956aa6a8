//! Links: a program on a hook, pinned so that it outlives the agent, replaced without a gap. aya attaches cgroup and
//! netns links but cannot re-open or update them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use mesh_common::abi::Plain;

use super::KernelError;
use super::sys::{self, Attributes, Command, number, pair};

/// Where a program is attached. Source: Linux, include/uapi/linux/bpf.h, `enum bpf_attach_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Hook {
    SockOps = 3,
    Connect4 = 10,
    Connect6 = 11,
    Peer4 = 29,
    Peer6 = 30,
    Name4 = 31,
    Name6 = 32,
    Lookup = 36,
}

impl Hook {
    /// The hooks on the cgroup, in the order in which they are attached and updated: whoever reads what another hook writes
    /// comes first, the connect hooks, which begin everything, last.
    pub(super) const CGROUP: [Self; 7] =
        [Self::Name4, Self::Name6, Self::Peer4, Self::Peer6, Self::SockOps, Self::Connect4, Self::Connect6];

    /// How many of [`Hook::CGROUP`] come before sk_lookup.
    pub(super) const BEFORE_LOOKUP: usize = 5;

    /// The program of the object.
    pub(super) const fn program(self) -> &'static str {
        match self {
            Self::SockOps => "mesh_sock_ops",
            Self::Connect4 => "mesh_connect4",
            Self::Connect6 => "mesh_connect6",
            Self::Peer4 => "mesh_peer4",
            Self::Peer6 => "mesh_peer6",
            Self::Name4 => "mesh_name4",
            Self::Name6 => "mesh_name6",
            Self::Lookup => "mesh_lookup",
        }
    }

    /// The pin's file name; of sk_lookup the first part.
    pub(super) const fn pin(self) -> &'static str {
        match self {
            Self::SockOps => "sock_ops",
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
            Self::Peer4 => "getpeername4",
            Self::Peer6 => "getpeername6",
            Self::Name4 => "getsockname4",
            Self::Name6 => "getsockname6",
            Self::Lookup => "sk_lookup",
        }
    }
}

/// Start of `struct bpf_link_info`; of the union only the first words, which are {cgroup id} or {netns inode}.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct LinkInfo {
    pub(super) kind: u32,
    pub(super) id: u32,
    pub(super) program: u32,
    reserved: u32,
    target_low: u32,
    target_high: u32,
    attach_type: u32,
    tail: u32,
}
// SAFETY: eight integers, no padding.
unsafe impl Plain for LinkInfo {}

impl LinkInfo {
    /// Id of the cgroup of a cgroup link; 0 when the cgroup is gone.
    pub(super) const fn cgroup(&self) -> u64 {
        self.target_low as u64 | (self.target_high as u64) << 32
    }

    /// Inode of the namespace of a netns link; 0 when the namespace is gone.
    pub(super) const fn namespace_inode(&self) -> u32 {
        self.target_low
    }
}

/// What a pinned link says about itself.
pub(super) fn info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    sys::object_info(link)
}

/// Attaches a program to a cgroup or a network namespace.
pub(super) fn create(program: BorrowedFd<'_>, target: BorrowedFd<'_>, hook: Hook) -> io::Result<OwnedFd> {
    let mut attributes = Attributes::default();
    attributes[0] = pair(number(program), number(target));
    attributes[1] = pair(hook as u32, 0);
    // SAFETY: no pointers.
    unsafe { sys::bpf_fd(Command::LinkCreate, &mut attributes) }
}

/// Replaces a link's program atomically.
pub(super) fn update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = Attributes::default();
    attributes[0] = pair(number(link), number(program));
    // SAFETY: no pointers.
    unsafe { sys::bpf(Command::LinkUpdate, &mut attributes) }.map(drop)
}

/// Opens a loaded program.
pub(super) fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attributes = Attributes::default();
    attributes[0] = id.into();
    // SAFETY: no pointers.
    unsafe { sys::bpf_fd(Command::ProgramById, &mut attributes) }
}

/// Ids of all programs that run on a hook for sockets of a cgroup, those of its ancestors included.
pub(super) fn programs_on(cgroup: BorrowedFd<'_>, hook: Hook) -> io::Result<Vec<u32>> {
    query(cgroup, hook, QUERY_EFFECTIVE)
}

/// Ids of the programs that are attached to this very cgroup.
pub(super) fn programs_of(cgroup: BorrowedFd<'_>, hook: Hook) -> io::Result<Vec<u32>> {
    query(cgroup, hook, 0)
}

fn query(cgroup: BorrowedFd<'_>, hook: Hook, flags: u32) -> io::Result<Vec<u32>> {
    // A cgroup takes 64 programs per hook.
    let mut ids = [0_u32; 64];
    let mut attributes = Attributes::default();
    attributes[0] = pair(number(cgroup), hook as u32);
    attributes[1] = pair(flags, 0);
    attributes[2] = ids.as_mut_ptr() as u64;
    attributes[3] = pair(ids.len() as u32, 0);
    // SAFETY: the array holds as many ids as we say.
    unsafe { sys::bpf(Command::ProgramQuery, &mut attributes) }?;
    let count = (attributes[3] & u64::from(u32::MAX)) as usize;
    Ok(ids[..count.min(ids.len())].to_vec())
}

/// Source: Linux, include/uapi/linux/bpf.h, `BPF_F_QUERY_EFFECTIVE`.
const QUERY_EFFECTIVE: u32 = 1;

/// A link that this start created or updated, and how to take that back.
#[derive(Debug)]
enum Step {
    Created { pin: PathBuf },
    Updated { link: OwnedFd, before: OwnedFd },
}

/// Attaches and updates links, and takes everything back in reverse unless it is kept.
#[derive(Debug, Default)]
pub(super) struct Change {
    steps: Vec<Step>,
}

impl Change {
    /// Puts `program` on `hook` of `target`: updates the pinned link if there is one that is still attached to that target,
    /// else attaches a new one and pins it.
    pub(super) fn put(
        &mut self,
        hook: Hook,
        program: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        pin: &Path,
        is_attached: impl Fn(&LinkInfo) -> bool,
    ) -> Result<(), KernelError> {
        let failed = |what: &str, source| KernelError::system(format!("{what} {}", pin.display()), source);
        match sys::open_pinned(pin) {
            Ok(link) => {
                let now = info(link.as_fd()).map_err(|source| failed("asking link", source))?;
                if is_attached(&now) {
                    return self.replace(link, now.program, program).map_err(|source| failed("updating link", source));
                }
                std::fs::remove_file(pin).map_err(|source| failed("removing the defunct link", source))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(failed("opening link", source)),
        }
        let link = create(program, target, hook).map_err(|source| failed("attaching", source))?;
        sys::pin(link.as_fd(), pin).map_err(|source| failed("pinning link", source))?;
        self.steps.push(Step::Created { pin: pin.to_owned() });
        Ok(())
    }

    /// As [`Change::put`], but leaves a link that is attached to whoever runs it.
    pub(super) fn put_if_none(
        &mut self,
        hook: Hook,
        program: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        pin: &Path,
        is_attached: impl Fn(&LinkInfo) -> bool,
    ) -> Result<(), KernelError> {
        let found = sys::open_pinned(pin).and_then(|link| info(link.as_fd()));
        if found.is_ok_and(|link| is_attached(&link)) {
            return Ok(());
        }
        self.put(hook, program, target, pin, is_attached)
    }

    /// Updates a pinned link of a network namespace; removes the pin when the namespace is gone.
    pub(super) fn refresh(&mut self, pin: &Path, program: BorrowedFd<'_>) -> Result<(), KernelError> {
        let failed = |source| KernelError::system(format!("updating link {}", pin.display()), source);
        let link = sys::open_pinned(pin).map_err(failed)?;
        let now = info(link.as_fd()).map_err(failed)?;
        if now.namespace_inode() == 0 {
            return std::fs::remove_file(pin).map_err(failed);
        }
        self.replace(link, now.program, program).map_err(failed)
    }

    fn replace(&mut self, link: OwnedFd, before: u32, program: BorrowedFd<'_>) -> io::Result<()> {
        let before = program_by_id(before)?;
        update(link.as_fd(), program)?;
        self.steps.push(Step::Updated { link, before });
        Ok(())
    }

    /// Makes the change final.
    pub(super) fn keep(mut self) {
        self.steps.clear();
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        for step in self.steps.drain(..).rev() {
            let undone = match &step {
                Step::Created { pin } => std::fs::remove_file(pin),
                Step::Updated { link, before } => update(link.as_fd(), before.as_fd()),
            };
            if let Err(error) = undone {
                tracing::error!(%error, "a link could not be put back as it was");
            }
        }
    }
}
