//! Stage 5: reaches the next hop of a [`Permit`]; without one nothing can be dialled. Never chooses where to go, never falls
//! back from a tunnel to plaintext.

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use http::StatusCode;

use super::{
    authorize::Permit,
    copy::End,
    failure::Blame,
    local::Local,
    origin::{Origin, workload_of},
    resolve::{NextHop, Route},
};
use crate::{
    enrol::Pod,
    hbone::{self, Baggage, Dialled, Early, Key, OpenError, Peer, Pool, TraceParent, TunnelError},
    net::{self, Dial, DialError, Leg, Mark},
    tls::{self, Credentials},
    view::View,
};

/// Why the next hop was not reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The application, or a plain destination.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The tunnel, or the agent behind it.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The destination cannot be put into a request.
    #[error("writing the CONNECT: {0}")]
    Request(#[from] http::Error),
}

impl ConnectError {
    /// Whether another endpoint may do better, and nothing has reached this one's application: not when the peer's agent
    /// judged us, or may still be at it.
    pub(super) fn may_try_another(&self) -> bool {
        match self {
            Self::Dial(error) => matches!(error, DialError::Connect { .. } | DialError::Timeout(_)),
            Self::Open(OpenError::Tunnel(error)) => {
                !matches!(**error, TunnelError::Credentials(_) | TunnelError::Draining)
            }
            Self::Open(OpenError::Status(status)) => *status == StatusCode::SERVICE_UNAVAILABLE,
            Self::Open(OpenError::Lost(_) | OpenError::Silent) => true,
            Self::Open(OpenError::MayBeDelivered(_) | OpenError::Source(_) | OpenError::Timeout) | Self::Request(_) => {
                false
            }
        }
    }

    pub(super) fn blame(&self) -> Blame {
        match self {
            Self::Dial(DialError::Connect { .. } | DialError::Timeout(_)) => Blame::Upstream,
            Self::Dial(_) | Self::Request(_) => Blame::Mesh,
            Self::Open(OpenError::Status(StatusCode::UNAUTHORIZED)) => Blame::Policy,
            Self::Open(OpenError::Tunnel(error)) if matches!(**error, TunnelError::Credentials(_)) => Blame::Mesh,
            Self::Open(OpenError::Source(_)) => Blame::Downstream,
            Self::Open(_) => Blame::Upstream,
        }
    }
}

/// The reached next hop.
pub struct Upstream {
    /// Bytes go here.
    pub end: End,
    /// Who proved to be there, in a tunnel.
    pub peer: Option<Rc<Peer>>,
}

/// The side that dials.
pub(super) struct Dialler<'a> {
    pub worker: &'a Rc<Local>,
    pub view: &'a View,
    /// In whose namespace sockets to elsewhere are opened, and whose tunnels are used.
    pub pod: &'a Arc<Pod>,
    pub pool: &'a Pool,
    pub origin: &'a Origin,
}

/// Reaches the permitted next hop. Through a tunnel, what the source says `early` goes ahead.
///
/// # Errors
/// See [`ConnectError`].
pub(super) async fn connect(
    permit: Permit,
    dialler: Dialler<'_>,
    early: &mut Early<'_>,
) -> Result<Upstream, ConnectError> {
    early.restart();
    match &permit.route().next_hop {
        NextHop::Local { pod, address, .. } => {
            let mark = Mark::ShowSource(dialler.origin.source_address);
            let what = Dial { to: *address, from: None, mark, leg: Leg::App };
            let place = dialler.worker.context.steering.place(&pod.network_namespace);
            Ok(Upstream { end: End::Socket(net::dial(place, what).await?), peer: None })
        }
        NextHop::Plaintext { address, .. } => {
            let what =
                Dial { to: *address, from: dialler.own_address(*address), mark: Mark::Exempt, leg: Leg::Outside };
            let place = dialler.worker.context.steering.place(&dialler.pod.network_namespace);
            Ok(Upstream { end: End::Socket(net::dial(place, what).await?), peer: None })
        }
        NextHop::Hbone { address, identities, .. } => {
            let key = Key { address: SocketAddr::new(address.ip(), hbone::PORT), identities: identities.clone() };
            let request = dialler.request(permit.route(), *address)?;
            let (stream, peer) = dialler.pool.open(&key, &request, early, || dialler.tunnel(&key)).await?;
            Ok(Upstream { end: End::Stream(stream), peer: Some(peer) })
        }
    }
}

impl Dialler<'_> {
    /// The source's address stays its own on the wire: the one that the application's socket has, if the pod owns it.
    fn own_address(&self, to: SocketAddr) -> Option<std::net::IpAddr> {
        let address = self.origin.source_address.ip();
        let is_usable = address.is_ipv4() == to.is_ipv4() && self.pod.addresses.contains(&address);
        is_usable.then_some(address)
    }

    fn request(&self, route: &Route, authority: SocketAddr) -> Result<http::Request<()>, http::Error> {
        let host = route.service.as_ref().map(|service| &*service.name.hostname);
        let baggage = workload_of(self.view, self.pod).and_then(|workload| Baggage::header(workload));
        let trace = TraceParent::random(&mut self.worker.random.borrow_mut());
        hbone::connect_request(authority, self.origin.source_address, host, baggage, trace)
    }

    /// A tunnel's socket and its credentials of now.
    fn tunnel(&self, key: &Key) -> impl Future<Output = Result<Dialled, TunnelError>> + 'static {
        let (worker, pod, key) = (self.worker.clone(), self.pod.clone(), key.clone());
        let identity = self.origin.source.identity.clone();
        async move {
            let identity = identity.ok_or(tls::TlsError::NoTrust)?;
            let credentials: Credentials = worker.credentials(&identity).await?;
            let config = tls::client(&credentials, key.identities)?;
            let own = pod.addresses.iter().find(|own| own.is_ipv4() == key.address.is_ipv4());
            let what = Dial { to: key.address, from: own.copied(), mark: Mark::Exempt, leg: Leg::Tunnel };
            let place = worker.context.steering.place(&pod.network_namespace);
            let socket = net::dial(place, what).await?;
            Ok(Dialled { socket, config, certificate: credentials.certificate })
        }
    }
}
