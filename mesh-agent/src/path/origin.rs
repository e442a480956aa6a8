//! Stage 2: where a connection comes from and where it wanted to go. The identity of an outbound source is that of the pod
//! in whose namespace the listener is (the kernel put the connection there), that of a tunnel is the verified certificate's,
//! and plaintext has none. Never derives one from an address.

use std::net::SocketAddr;

use mesh_api::Identity;

use super::authorize::Source;
use crate::{
    enrol::Pod,
    view::{MeshSettings, View, Workload},
};

/// Ports of the agent inside a pod's namespace: outbound, plaintext inbound, HBONE, DNS. Nothing is carried to them.
pub const OWN_PORTS: [u16; 4] = [15001, 15006, 15008, 15053];

/// Both ends as they were before steering.
#[derive(Debug, Clone)]
pub struct Origin {
    /// Who asks.
    pub source: Source,
    /// Its socket address, shown to the destination's application.
    pub source_address: SocketAddr,
    /// What the application dialled.
    pub destination: SocketAddr,
    /// The endpoint that the kernel chose behind a service address, if it did.
    pub endpoint: Option<SocketAddr>,
}

/// Why there is no origin.
#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    /// Somebody dialled the listener itself.
    #[error("the connection was not redirected")]
    NotRedirected,
    /// What the kernel keeps about the socket cannot be read.
    #[error("reading what the kernel keeps about the socket: {0}")]
    Kernel(#[from] crate::kernel::KernelError),
    /// The pod's namespace or service account is no part of an identity.
    #[error("the pod has no identity: {0}")]
    Identity(#[from] mesh_api::IdentityError),
}

/// The origin of a redirected outbound connection.
///
/// # Errors
/// The pod's names make no identity (checked at enrolment already).
pub fn outbound(
    pod: &Pod,
    mesh: &MeshSettings,
    peer: SocketAddr,
    dialled: crate::kernel::Origin,
) -> Result<Origin, OriginError> {
    let peer = canonical(peer);
    let identity = pod_identity(pod, mesh)?;
    Ok(Origin {
        source: Source { identity: Some(identity), address: peer.ip() },
        source_address: peer,
        destination: canonical(dialled.destination),
        endpoint: dialled.endpoint.map(canonical),
    })
}

/// The origin of plaintext from outside: its addresses, and no identity.
///
/// # Errors
/// Somebody dialled the listener itself.
pub fn plaintext(peer: SocketAddr, local: SocketAddr) -> Result<Origin, OriginError> {
    let (peer, destination) = (canonical(peer), canonical(local));
    if OWN_PORTS.contains(&destination.port()) {
        return Err(OriginError::NotRedirected);
    }
    let source = Source { identity: None, address: peer.ip() };
    Ok(Origin { source, source_address: peer, destination, endpoint: None })
}

/// The origin of a tunnelled connection: the certificate's identity, the tunnel's address.
pub fn tunnel(peer: Identity, source_address: SocketAddr, authority: SocketAddr) -> Origin {
    let source = Source { identity: Some(peer), address: source_address.ip() };
    Origin { source, source_address, destination: authority, endpoint: None }
}

/// Who a pod of this node is.
///
/// # Errors
/// The pod's names make no identity (checked at enrolment already).
pub fn pod_identity(pod: &Pod, mesh: &MeshSettings) -> Result<Identity, mesh_api::IdentityError> {
    Identity::new(&mesh.trust_domain, &pod.namespace, &pod.service_account)
}

/// What the View says about an enrolled pod: the workload at one of its addresses, if it also has the pod's names. None
/// while the pod is *pending*, or the View still knows the address's last owner.
pub fn workload_of<'a>(view: &'a View, pod: &Pod) -> Option<&'a std::sync::Arc<Workload>> {
    pod.workload(view)
}

/// v4-mapped addresses are IPv4 everywhere behind this point.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
