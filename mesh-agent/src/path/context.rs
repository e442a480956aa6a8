//! What a worker is given: the shared state of the agent, read without a lock, and the kernel that steers to it.

use std::sync::Arc;

use tokio::sync::watch;

use super::origin::OriginError;
use crate::{
    certificates::SharedWallet,
    enrol::SharedPods,
    kernel::{self, Kernel, NetworkNamespace},
    net::Place,
    telemetry::Telemetry,
    view::{Demand, SharedView},
};

/// As much as 256 readers that stall with a full window. What is held is looked at every half second, so that a pod may
/// exceed it by what arrives in that time.
pub const POD_MEMORY: usize = 256 << 20;

/// Connections, tunnels and handshakes that a worker has for one pod: more than one pair of addresses has ports. What comes
/// above is reset, so that whoever floods one pod takes no descriptors and no memory from the others.
pub const POD_TASKS: usize = 32 << 10;

/// Shared by all workers.
#[derive(Debug)]
pub struct Context {
    /// The kernel side.
    pub steering: Steering,
    /// The View of now.
    pub view: SharedView,
    /// Changes after each swap of the View, the wallet or the pods: live connections are judged again, held ones retried.
    pub view_changes: watch::Receiver<u64>,
    /// The pods of this node.
    pub pods: SharedPods,
    /// Certificates and roots.
    pub wallet: SharedWallet,
    /// Asks control for what the View lacks.
    pub demand: Demand,
    /// Bytes that the connections of one pod may make one worker hold, see [`POD_MEMORY`].
    pub pod_memory: usize,
    /// See [`POD_TASKS`].
    pub pod_tasks: usize,
    /// Counts and logs.
    pub telemetry: Arc<Telemetry>,
}

/// Where connections are steered from, and where sockets are opened.
#[derive(Debug)]
pub enum Steering {
    /// The hooks of this node.
    Kernel(Arc<Kernel>),
    /// No hook: every outbound connection is said to have dialled this, and sockets are opened where the thread is.
    #[cfg(test)]
    Fixed(kernel::Origin),
    /// As [`Self::Fixed`], but asking for the second connection panics, as a bug would.
    #[cfg(test)]
    Broken(kernel::Origin, std::sync::atomic::AtomicUsize),
}

impl Steering {
    /// What the client behind a socket accepted on 15001 dialled.
    ///
    /// # Errors
    /// It was not redirected, or the kernel cannot be asked.
    pub(super) fn origin(&self, accepted: &tokio::net::TcpStream) -> Result<kernel::Origin, OriginError> {
        match self {
            Self::Kernel(kernel) => kernel.origin(accepted)?.ok_or(OriginError::NotRedirected),
            #[cfg(test)]
            Self::Fixed(origin) => Ok(*origin),
            #[cfg(test)]
            Self::Broken(origin, asked) => {
                assert_ne!(asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed), 1, "a bug, on purpose");
                Ok(*origin)
            }
        }
    }

    /// The inside of a pod's namespace.
    pub(super) fn place<'a>(&'a self, namespace: &'a NetworkNamespace) -> Place<'a> {
        match self {
            Self::Kernel(kernel) => Place::Pod(kernel, namespace),
            #[cfg(test)]
            Self::Fixed(_) | Self::Broken(..) => Place::Here,
        }
    }

    /// Says that a worker is alive and holds a View.
    pub(super) fn heartbeat(&self, worker: u32) {
        match self {
            Self::Kernel(kernel) => {
                if let Err(error) = kernel.heartbeat(worker) {
                    tracing::warn!(worker, %error, "heartbeat");
                }
            }
            #[cfg(test)]
            Self::Fixed(_) | Self::Broken(..) => (),
        }
    }
}
