//! Stage 3: from what was dialled to the next hop. Synchronous and pure; `meshctl explain` runs these very functions. Never
//! decides whether the source may go there, and never turns an encrypted hop into a plain one.

use std::{net::SocketAddr, sync::Arc};

use mesh_api::Identity;

use super::{
    balance::{self, Candidate},
    origin::{OWN_PORTS, Origin, workload_of},
};
use crate::{
    enrol::{Pod, PodTable},
    view::{Protocol, Service, Uid, View, Workload},
};

/// Where a connection goes.
#[derive(Debug, Clone)]
pub struct Route {
    /// The service that was dialled, if it was one.
    pub service: Option<Arc<Service>>,
    /// What is dialled for it.
    pub next_hop: NextHop,
}

/// What is dialled.
#[derive(Debug, Clone)]
pub enum NextHop {
    /// The application of a pod of this node, in the pod's namespace.
    Local {
        /// The enrolled pod.
        pod: Arc<Pod>,
        /// What the View says about it.
        workload: Arc<Workload>,
        /// Where the application listens.
        address: SocketAddr,
        /// The source is this very pod; nothing is asked of policy then.
        is_self: bool,
    },
    /// An agent at the workload's address, over mutual TLS.
    Hbone {
        /// The destination.
        workload: Arc<Workload>,
        /// The application's address; the tunnel goes to the same address's port 15008.
        address: SocketAddr,
        /// The names of which the peer's certificate must have one.
        identities: Arc<[Identity]>,
    },
    /// The address itself, as it is.
    Plaintext {
        /// The destination, when the View knows it.
        workload: Option<Arc<Workload>>,
        /// What is dialled.
        address: SocketAddr,
        /// Why not encrypted.
        reason: PlaintextReason,
    },
}

/// Why a connection is carried in the clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PlaintextReason {
    /// An address of a node.
    Node,
    /// An address outside the cluster.
    External,
    /// A workload that does not speak HBONE.
    NotInMesh,
}

impl PlaintextReason {
    /// A stable label for `meshctl sockets` and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::External => "external",
            Self::NotInMesh => "not_in_mesh",
        }
    }
}

/// Why a connection has no route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// Inside the cluster's ranges and not in the View: ask for it, then refuse.
    #[error("the destination is inside the cluster's ranges and unknown")]
    UnknownDestination,
    /// An enrolled pod, source or destination, that the View does not know (yet).
    #[error("the pod is enrolled and not yet in the View")]
    Pending,
    /// The service has no such port.
    #[error("the service has no such port")]
    NoSuchPort,
    /// No endpoint of the service can be used.
    #[error("the service has no endpoint that can be used")]
    NoEndpoint,
    /// One of the agent's own ports.
    #[error("the destination is a port of the agent")]
    OwnPort,
    /// A feature that this agent does not have.
    #[error("{0}")]
    Unsupported(&'static str),
}

/// All that decides an outbound connection's route.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The snapshot of this connection.
    pub view: &'a View,
    /// The pods of this node.
    pub pods: &'a PodTable,
    /// Who dials.
    pub caller: Caller<'a>,
    /// What it dialled.
    pub origin: &'a Origin,
    /// Endpoints that have failed this connection.
    pub tried: &'a [Uid],
}

/// What of the dialling pod decides where it gets.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    /// Its number, if it is enrolled on this node.
    pub pod: Option<u32>,
    /// Services of its namespace come first where several share an address.
    pub namespace: &'a str,
    /// What the View says about it: where it is, for locality.
    pub workload: Option<&'a Workload>,
}

impl<'a> Caller<'a> {
    /// An enrolled pod.
    pub fn enrolled(view: &'a View, pod: &'a Pod) -> Self {
        let workload = workload_of(view, pod).map(|workload| &**workload);
        Self { pod: Some(pod.id), namespace: &pod.namespace, workload }
    }
}

/// The route of an outbound connection. `random` is drawn from once per choice by weight.
///
/// # Errors
/// Why there is none; see [`ResolveError`].
pub fn outbound(question: Question<'_>, random: &mut fastrand::Rng) -> Result<Route, ResolveError> {
    let Question { view, origin, caller, .. } = question;
    let destination = origin.destination;
    let mesh = &view.mesh;
    let is_node = mesh.node_addresses.contains(&destination.ip());
    if let Some(service) = view.service_at(destination, caller.namespace) {
        return to_service(question, service, random);
    }
    if let Some(workload) = view.workload_at(destination.ip()) {
        let candidate = Candidate { workload: workload.clone(), address: destination };
        return to_workload(question, None, candidate);
    }
    if is_node && mesh.node_ports.contains(&destination.port()) {
        return Err(ResolveError::UnknownDestination);
    }
    if is_node {
        return Ok(plaintext(destination, PlaintextReason::Node));
    }
    if !view.services_at(destination.ip()).is_empty() {
        return Err(ResolveError::NoSuchPort);
    }
    // Its namespace is on this node, whatever the View says: another address of a pod, or one that is pending.
    if let Some(pod) = question.pods.by_address.get(&destination.ip()) {
        let workload = workload_of(view, pod).ok_or(ResolveError::Pending)?.clone();
        return to_workload(question, None, Candidate { workload, address: destination });
    }
    let mut ranges = mesh.pod_ranges.iter().chain(&mesh.service_ranges);
    if ranges.any(|range| range.contains(&destination.ip())) {
        return Err(ResolveError::UnknownDestination);
    }
    Ok(plaintext(destination, PlaintextReason::External))
}

/// The route of a connection that has arrived at a pod of this node.
///
/// # Errors
/// The pod is pending, or the port is the agent's.
pub fn inbound(view: &View, pod: &Arc<Pod>, destination: SocketAddr) -> Result<Route, ResolveError> {
    if OWN_PORTS.contains(&destination.port()) {
        return Err(ResolveError::OwnPort);
    }
    let workload = workload_of(view, pod).ok_or(ResolveError::Pending)?.clone();
    let next_hop = NextHop::Local { pod: pod.clone(), workload, address: destination, is_self: false };
    Ok(Route { service: None, next_hop })
}

fn plaintext(address: SocketAddr, reason: PlaintextReason) -> Route {
    Route { service: None, next_hop: NextHop::Plaintext { workload: None, address, reason } }
}

fn to_service(
    question: Question<'_>,
    service: &Arc<Service>,
    random: &mut fastrand::Rng,
) -> Result<Route, ResolveError> {
    if let Some(reason) = service.unsupported {
        return Err(ResolveError::Unsupported(reason));
    }
    let candidate = balance::choose(question, service, random).ok_or(ResolveError::NoEndpoint)?;
    to_workload(question, Some(service.clone()), candidate)
}

fn to_workload(
    question: Question<'_>,
    service: Option<Arc<Service>>,
    candidate: Candidate,
) -> Result<Route, ResolveError> {
    let Candidate { workload, address } = candidate;
    if let Some(reason) = workload.unsupported {
        return Err(ResolveError::Unsupported(reason));
    }
    let next_hop = match question.pods.by_address.get(&address.ip()) {
        Some(_) if OWN_PORTS.contains(&address.port()) => return Err(ResolveError::OwnPort),
        // What the View says about the address must be about the pod that has it, else its policies are another's.
        Some(pod) if workload_of(question.view, pod).is_none_or(|known| known.uid != workload.uid) => {
            return Err(ResolveError::Pending);
        }
        Some(pod) => {
            NextHop::Local { pod: pod.clone(), workload, address, is_self: Some(pod.id) == question.caller.pod }
        }
        None if workload.protocol == Protocol::Hbone && !workload.is_host_network => {
            let identities = expected_identities(&workload, service.as_deref());
            NextHop::Hbone { workload, address, identities }
        }
        None => NextHop::Plaintext { workload: Some(workload), address, reason: PlaintextReason::NotInMesh },
    };
    Ok(Route { service, next_hop })
}

/// The workload's name and those that the service accepts beside it; a name of another shape can be nobody's.
fn expected_identities(workload: &Workload, service: Option<&Service>) -> Arc<[Identity]> {
    let names = service.map_or(&[][..], |service| &service.subject_alt_names);
    let mut identities: Vec<_> = names.iter().filter_map(|name| Identity::parse(name).ok()).collect();
    identities.push(workload.identity.clone());
    identities.sort_unstable();
    identities.dedup();
    identities.into()
}

impl NextHop {
    /// How an outbound connection gets there, as `meshctl sockets` says it.
    pub fn path(&self) -> &'static str {
        match self {
            Self::Local { is_self: true, .. } => "self",
            Self::Local { .. } => "node_local",
            Self::Hbone { .. } => "hbone",
            Self::Plaintext { workload: Some(_), .. } => "plaintext",
            Self::Plaintext { workload: None, .. } => "passthrough",
        }
    }

    /// The destination, when the View knows it.
    pub fn workload(&self) -> Option<&Arc<Workload>> {
        match self {
            Self::Local { workload, .. } | Self::Hbone { workload, .. } => Some(workload),
            Self::Plaintext { workload, .. } => workload.as_ref(),
        }
    }

    /// The application's address.
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Local { address, .. } | Self::Hbone { address, .. } | Self::Plaintext { address, .. } => *address,
        }
    }
}
