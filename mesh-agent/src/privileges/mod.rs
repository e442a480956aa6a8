//! What the agent keeps of root's rights: given up at the start, before there is a second thread, because each thread has its
//! own. Never gives anything back.

mod seccomp;

use rustix::{
    io::Errno,
    thread::{
        CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, remove_capability_from_bounding_set,
        set_capabilities, set_no_new_privs,
    },
};

pub use seccomp::ProfileError;

/// A capability that the agent needs.
#[derive(Debug, Clone, Copy)]
pub struct Kept {
    /// Its bit.
    pub capability: CapabilitySet,
    /// As in capabilities(7).
    pub name: &'static str,
    /// What would not work without it.
    pub reason: &'static str,
}

/// All that is kept. The start needs no more than what follows it: links are attached again when another agent takes over.
pub const KEPT: [Kept; 4] = [
    Kept {
        capability: CapabilitySet::NET_ADMIN,
        name: "CAP_NET_ADMIN",
        reason: "attaching to sockets' hooks; in pods' namespaces listeners, foreign source addresses, sysctls, ending sockets",
    },
    Kept {
        capability: CapabilitySet::SYS_PTRACE,
        name: "CAP_SYS_PTRACE",
        reason: "opening the network namespace of a process that runs as another user",
    },
    Kept {
        capability: CapabilitySet::SYS_ADMIN,
        name: "CAP_SYS_ADMIN",
        reason: "entering pods' namespaces, mounting the bpffs, finding programs and links by their numbers",
    },
    Kept { capability: CapabilitySet::BPF, name: "CAP_BPF", reason: "loading programs, making and reading maps" },
];

/// Why rights were not given up.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// The kernel refused.
    #[error("{action}: {source}")]
    System {
        /// What was attempted.
        action: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The list of system calls cannot be put in force.
    #[error(transparent)]
    Profile(#[from] ProfileError),
}

/// Gives up every other capability for good, also those that a program that is started could have, and all system calls but
/// those of deploy/seccomp/mesh-agent.json. The calling thread must be the only one.
///
/// # Errors
/// The kernel refuses; the agent must not run then.
pub fn shed() -> Result<(), PrivilegeError> {
    let failed = |action| move |error: Errno| PrivilegeError::System { action, source: error.into() };
    let kept = KEPT.iter().fold(CapabilitySet::empty(), |all, kept| all | kept.capability);
    bound(kept).map_err(failed("bound the capabilities of what is executed"))?;
    clear_ambient_capability_set().map_err(failed("clear the ambient capabilities"))?;
    // What is missing is named by what fails without it, and by `mesh-agent check`.
    let held = capabilities(None).map_err(failed("read the capabilities"))?.permitted & kept;
    let sets = CapabilitySets { effective: held, permitted: held, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(failed("drop capabilities"))?;
    set_no_new_privs(true).map_err(failed("forbid new privileges"))?;
    Ok(seccomp::install()?)
}

fn bound(kept: CapabilitySet) -> Result<(), Errno> {
    for capability in CapabilitySet::all().difference(kept).iter() {
        match remove_capability_from_bounding_set(capability) {
            // An older kernel knows fewer. Without CAP_SETPCAP (a container that has only the kept ones) it is bounded already.
            Ok(()) | Err(Errno::INVAL | Errno::PERM) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
