//! File descriptors: raised as far as allowed at start, counted before a pod is taken in, so that a node that is full says
//! so at enrolment and not in the middle of connections.

use std::{fs, io};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Share of the limit that listeners may take; the rest is for connections, three descriptors each.
const LISTENER_SHARE: u64 = 2;

/// Why descriptors do not suffice.
#[derive(Debug, thiserror::Error)]
pub enum DescriptorError {
    /// The limit cannot be raised or /proc cannot be read.
    #[error("{0}: {1}")]
    System(&'static str, io::Error),
    /// The pod's listeners would take what connections need.
    #[error(
        "{open} descriptors are open and {needed} more are needed, of a limit of {limit}: raise the agent's NOFILE limit"
    )]
    Full {
        /// Open now.
        open: u64,
        /// Of the pod's listeners.
        needed: u64,
        /// The process's limit.
        limit: u64,
    },
}

/// Raises the soft limit to the hard one; the limit then.
///
/// # Errors
/// The kernel refuses.
pub fn raise_limit() -> Result<u64, DescriptorError> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .map_err(|error| DescriptorError::System("raise the NOFILE limit", error.into()))?;
    Ok(limit.maximum.unwrap_or(u64::MAX))
}

/// Whether `needed` more listeners fit.
///
/// # Errors
/// They do not.
pub fn check_room(needed: u64) -> Result<(), DescriptorError> {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let open = fs::read_dir("/proc/self/fd").map_err(|error| DescriptorError::System("list /proc/self/fd", error))?;
    let open = open.count() as u64;
    if open + LISTENER_SHARE * needed > limit { Err(DescriptorError::Full { open, needed, limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_ends_at_the_limit() {
        let limit = raise_limit().unwrap();
        assert!(check_room(6).is_ok());
        assert!(matches!(check_room(limit), Err(DescriptorError::Full { .. })));
    }
}
