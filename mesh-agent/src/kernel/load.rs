//! Loading: the object's maps are created and pinned, or found pinned; its programs are verified. Attaches nothing.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use aya::programs::{CgroupSockAddr, Program, ProgramError, ProgramType, SkLookup, SockOps};
use aya::sys::{BpfHelper, is_helper_supported};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};

use super::link::Hook;
use super::maps::{Maps, NAMES};
use super::pins::Pins;
use super::{KernelError, KernelSettings};

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mesh-ebpf.o"));

/// The loaded programs.
#[derive(Debug)]
pub(super) struct Programs(Vec<(Hook, OwnedFd)>);

impl Programs {
    /// The program of a hook.
    pub(super) fn of(&self, hook: Hook) -> Result<BorrowedFd<'_>, KernelError> {
        let found = self.0.iter().find(|(at, _)| *at == hook);
        found.map(|(_, program)| program.as_fd()).ok_or_else(|| lacks(hook.program()))
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Hook, BorrowedFd<'_>)> {
        self.0.iter().map(|(hook, program)| (*hook, program.as_fd()))
    }
}

/// Loads the programs on the pinned maps, creating those that are not there.
pub(super) fn load(pins: &Pins, settings: &KernelSettings) -> Result<(Programs, Maps), KernelError> {
    let has_set_retval = is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval);
    load_for(pins, settings, has_set_retval.map_err(refused)?)
}

/// The same for a kernel with or without `bpf_set_retval` (5.18), which chooses the error of a refused `connect`.
pub(super) fn load_for(
    pins: &Pins,
    settings: &KernelSettings,
    has_set_retval: bool,
) -> Result<(Programs, Maps), KernelError> {
    let has_set_retval = u32::from(has_set_retval);
    let mut loader = EbpfLoader::new();
    // Nothing in the programs is relocated by the kernel's types. `new` has read them all the same; this drops them.
    loader.btf(None);
    loader.override_global("HAS_SET_RETVAL", &has_set_retval, true);
    for name in NAMES {
        loader.map_pin_path(name, pins.map(name));
    }
    for (name, size) in settings.map_entries() {
        loader.map_max_entries(name, size);
    }
    let mut object = loader.load(OBJECT).map_err(refused)?;
    let mut programs = Vec::new();
    for hook in Hook::CGROUP.into_iter().chain([Hook::Lookup]) {
        programs.push((hook, load_one(&mut object, hook.program())?));
    }
    Ok((Programs(programs), Maps::open(pins)?))
}

fn load_one(object: &mut Ebpf, name: &str) -> Result<OwnedFd, KernelError> {
    let program = object.program_mut(name).ok_or_else(|| lacks(name))?;
    let fd = match program {
        Program::CgroupSockAddr(program) => load_address(program),
        Program::SockOps(program) => load_ops(program),
        Program::SkLookup(program) => load_lookup(program),
        _ => return Err(lacks(name)),
    };
    fd.map_err(refused)
}

fn load_address(program: &mut CgroupSockAddr) -> Result<OwnedFd, ProgramError> {
    program.load()?;
    own(program.fd()?)
}

fn load_ops(program: &mut SockOps) -> Result<OwnedFd, ProgramError> {
    program.load()?;
    own(program.fd()?)
}

fn load_lookup(program: &mut SkLookup) -> Result<OwnedFd, ProgramError> {
    program.load()?;
    own(program.fd()?)
}

fn own(program: impl AsFd) -> Result<OwnedFd, ProgramError> {
    program.as_fd().try_clone_to_owned().map_err(ProgramError::IOError)
}

fn refused(source: impl std::error::Error + Send + Sync + 'static) -> KernelError {
    KernelError::Load(Box::new(source))
}

fn lacks(program: &str) -> KernelError {
    KernelError::Load(format!("the object has no program {program}").into())
}

impl KernelSettings {
    /// Largest number of entries by the names of the maps.
    pub(super) fn map_entries(&self) -> [(&'static str, u32); 13] {
        let sizes = &self.map_sizes;
        // Both families of a pod, and room for other addresses of its interface.
        let addresses = sizes.pods.saturating_mul(4);
        [
            ("PODS", sizes.pods),
            ("PODIP", addresses),
            // The pods' own, and their parents'.
            ("CGROUPS", sizes.pods.saturating_mul(2)),
            ("PROBES", sizes.pods.saturating_mul(16)),
            ("LISTEN", addresses.saturating_mul(3).saturating_mul(self.workers)),
            ("POLICY", sizes.policies),
            ("SERVICES", sizes.services),
            ("BACKENDS", sizes.backends),
            ("PENDING", sizes.handshakes),
            ("TICKET", sizes.handshakes),
            ("DIRECT", sizes.flows),
            ("FLOWS", sizes.flows),
            ("EVENTS", sizes.event_bytes),
        ]
    }
}
