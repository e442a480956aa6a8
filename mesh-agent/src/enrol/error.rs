//! Why a pod is not enrolled or not withdrawn. Each tells the runtime which field or which other pod is in the way.

use std::{net::IpAddr, path::PathBuf};

use crate::{kernel::KernelError, path::WorkerError};

use super::{
    claim::InvalidField,
    descriptors::DescriptorError,
    pulse::{Death, PulseError},
    record::RecordError,
    sysctl::SysctlError,
};

/// Why an enrolment or a withdrawal failed. Nothing of a failed enrolment stays behind.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// A field is wrong by itself.
    #[error(transparent)]
    Field(#[from] InvalidField),
    /// A field is in conflict with the node or with another pod.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// The pod's namespace cannot be opened.
    #[error("network_namespace: {}", crate::control::causes(.0))]
    Namespace(#[source] KernelError),
    /// The pod died meanwhile.
    #[error("the pod is dead: {0}")]
    Dead(#[from] Death),
    /// The agent's limit of descriptors is reached.
    #[error(transparent)]
    Descriptors(#[from] DescriptorError),
    /// A listener cannot be opened on an address: it is not the pod's, or the port is taken.
    #[error("addresses: {0}")]
    Listener(String),
    /// The kernel, its settings or the record refuse.
    #[error("{0}")]
    Node(#[from] NodeError),
    /// There is no such pod: it never was, has died, or is withdrawn already. For a runtime that is as good as done.
    #[error("uid: no pod {0:?} is enrolled; `meshctl pods` lists those that are")]
    Unknown(String),
    /// A pod that the API server has on this node has no cgroup, or not yet.
    #[error("no cgroup of pod {uid} is below {}", root.display())]
    NoCgroup {
        /// Of the pod.
        uid: String,
        /// The agent's cgroup root.
        root: PathBuf,
    },
    /// A pod that is to be enrolled while it runs has no process whose namespace could be entered, or not yet.
    #[error("no process of pod {uid} runs here")]
    NoProcess {
        /// Of the pod.
        uid: String,
    },
    /// The agent is about to end.
    #[error("the agent is stopping, or another has taken over: ask again")]
    Stopping,
}

/// What is in the way.
#[derive(Debug, thiserror::Error)]
pub enum Conflict {
    /// The same uid with something else.
    #[error("uid: {uid} is enrolled with another {field}; withdraw it first")]
    Differs {
        /// Of the pod.
        uid: String,
        /// The first field that differs.
        field: &'static str,
    },
    /// hostNetwork.
    #[error(
        "network_namespace: it is the node's own; a hostNetwork pod cannot be told from the node and is not enrolled"
    )]
    NodeNamespace,
    /// Another pod has the namespace.
    #[error("network_namespace: it is that of the enrolled pod {0}")]
    Namespace(String),
    /// Another pod has an address.
    #[error("addresses: {address} is an address of the enrolled pod {uid}")]
    Address {
        /// Which.
        address: IpAddr,
        /// Of whom.
        uid: String,
    },
    /// Another pod has the cgroup, or one above or below it.
    #[error("cgroup_path: it is that of the enrolled pod {0}, or above or below it")]
    Cgroup(String),
    /// The mesh forbids it.
    #[error("fail_open: the mesh does not allow it (allowFailOpen)")]
    FailOpen,
}

/// What fails on the node itself.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A map, link or pin.
    #[error("{}", crate::control::causes(.0))]
    Kernel(#[from] KernelError),
    /// A setting of the pod's namespace.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// A worker thread has ended or does not take a listener.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// Whether the pod lives cannot be seen.
    #[error("looking after the pod: {0}")]
    Pulse(#[source] rustix::io::Errno),
    /// inotify.
    #[error("watch for the end of pods: {0}")]
    Wakeups(std::io::Error),
    /// A pod that is steered cannot be taken up, and nobody else would refuse what it does.
    #[error("pod {pod} is steered and cannot be taken up: {reason}")]
    NotTakenUp {
        /// Its uid, or what is known of it.
        pod: String,
        /// Why not.
        reason: String,
    },
    /// The file that outlives a restart.
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl From<PulseError> for EnrolError {
    fn from(error: PulseError) -> Self {
        match error {
            PulseError::Dead(death) => Self::Dead(death),
            PulseError::Look(error) => Self::Node(NodeError::Pulse(error)),
        }
    }
}

impl From<EnrolError> for tonic::Status {
    fn from(error: EnrolError) -> Self {
        let text = error.to_string();
        match error {
            EnrolError::Field(_) | EnrolError::Listener(_) => Self::invalid_argument(text),
            EnrolError::Conflict(Conflict::NodeNamespace | Conflict::FailOpen) => Self::invalid_argument(text),
            EnrolError::Conflict(_) => Self::already_exists(text),
            EnrolError::Namespace(_)
            | EnrolError::Dead(_)
            | EnrolError::NoCgroup { .. }
            | EnrolError::NoProcess { .. } => Self::failed_precondition(text),
            EnrolError::Descriptors(_) => Self::resource_exhausted(text),
            EnrolError::Node(_) => Self::internal(text),
            EnrolError::Unknown(_) => Self::not_found(text),
            EnrolError::Stopping => Self::unavailable(text),
        }
    }
}
