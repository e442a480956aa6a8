//! What can fail between the agent and the kernel. Never holds what a connection did: hooks count that.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

/// A failure of the kernel side.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A setting that cannot be used.
    #[error("setting {name}: {reason}")]
    Setting {
        /// Which.
        name: &'static str,
        /// Why not.
        reason: String,
    },
    /// The eBPF object was refused.
    #[error("loading the programs")]
    Load(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A system call failed.
    #[error("{action}")]
    System {
        /// What was attempted, on what.
        action: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A map of pods has no room.
    #[error(
        "map {map} is full: withdraw pods, or detach the agent and start it with a larger --max-pods (pinned maps keep their size)"
    )]
    Full {
        /// Which.
        map: &'static str,
    },
    /// A path that is not what it should be.
    #[error("{}: {reason}", path.display())]
    Path {
        /// Which.
        path: PathBuf,
        /// What it is not.
        reason: &'static str,
    },
    /// An address is already held by a pod in another namespace.
    #[error("address {address} belongs to enrolled pod {pod}")]
    AddressTaken {
        /// Which address.
        address: IpAddr,
        /// The number of the pod that holds it.
        pod: u32,
    },
    /// A network namespace is already enrolled as another pod.
    #[error("network namespace {cookie} is enrolled as pod {pod}")]
    NamespaceTaken {
        /// The namespace's cookie.
        cookie: u64,
        /// The number of the pod that it is.
        pod: u32,
    },
    /// No such pod is enrolled.
    #[error("pod {pod} is not enrolled")]
    UnknownPod {
        /// Its number.
        pod: u32,
    },
}

impl KernelError {
    /// The last error of the operating system, with what was attempted.
    pub(super) fn last(action: impl Into<String>) -> Self {
        Self::system(action, io::Error::last_os_error())
    }

    /// An error of the operating system, with what was attempted.
    pub(super) fn system(action: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::System { action: action.into(), source: source.into() }
    }
}
