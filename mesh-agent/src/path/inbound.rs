//! The story of a connection that arrives through a tunnel: verified certificate, checked request, judged, carried to the
//! application. A request that fails is answered with its status; the tunnel goes on.

use std::{
    net::{IpAddr, SocketAddr},
    pin::pin,
    rc::Rc,
};

use http::{HeaderMap, StatusCode};
use mesh_api::Identity;

use super::{
    accept::Accepted,
    authorize::{Permit, authorize},
    connect::{Dialler, Upstream, connect},
    copy::{End, copy},
    failure::{Cut, Failure},
    local::{Local, PodState},
    origin::{self, Origin},
    outcome::{Direction, Outcome},
    resolve::{self, ResolveError},
};
use crate::{
    drain::Phase,
    hbone::{self, Asked, Baggage, Begun, Early, Incoming, Peer, Server, ServerError},
    telemetry::{Party, Reason},
    view::View,
};

/// One tunnel, by its two addresses and its verified peer.
pub(crate) struct Tunnel {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) peer: Rc<Peer>,
}

/// A tunnel from its first byte to its last; each request in it is a connection of its own.
pub(super) async fn serve(worker: Rc<Local>, pod: Rc<PodState>, accepted: Accepted) {
    let remote = origin::canonical(accepted.peer);
    let failed = || Outcome::open(&worker, &pod.pod, Direction::Inbound, remote);
    let local = match accepted.socket.local_addr() {
        Ok(local) => origin::canonical(local),
        Err(error) => return failed().close(Err(ServerError::Tls(error).into())),
    };
    let handshake = tokio::select! {
        handshake = Box::pin(admit(&worker, &pod, accepted)) => handshake,
        () = pod.drain.reached(Phase::Closing) => Err(Failure::Cut(Cut::Withdrawn)),
    };
    match handshake {
        Ok(server) => {
            let _place = pod.tunnels.clone();
            let tunnel = Rc::new(Tunnel { local, remote, peer: server.peer.clone() });
            let (requests, drain) = (pod.drain.clone(), pod.drain.clone());
            let take = move |incoming| {
                requests.spawn_local(carry_request(worker.clone(), pod.clone(), tunnel.clone(), incoming));
            };
            server.run(&drain, take).await;
        }
        Err(failure) => {
            count(&worker, remote, &failure);
            let outcome = failed();
            outcome.dialled(local);
            outcome.close(Err(failure));
        }
    }
}

/// What the caller did, if it is the caller's fault that there is no tunnel.
fn count(worker: &Local, remote: SocketAddr, failure: &Failure) {
    let reason = match failure {
        Failure::Crowded(_) => Reason::Crowded,
        Failure::Mismatch(_) => Reason::Identity,
        Failure::Tunnel(ServerError::Timeout) => Reason::Timeout,
        Failure::Tunnel(ServerError::Tls(_)) => Reason::Handshake,
        // What is wrong with HTTP/2 is counted where it is read.
        _ => return,
    };
    worker.context.telemetry.listeners.hbone.refuse(reason, remote, failure);
}

/// Handshakes, if the pod has a place for it and for the tunnel.
async fn admit(worker: &Local, pod: &PodState, accepted: Accepted) -> Result<Server, Failure> {
    let has_place = |taken: &Rc<()>, limit| Rc::strong_count(taken) <= limit;
    if !has_place(&pod.handshakes, hbone::HANDSHAKES) {
        return Err(Failure::Crowded("too many handshakes under way"));
    }
    if !has_place(&pod.tunnels, hbone::TUNNELS) {
        return Err(Failure::Crowded("too many tunnels"));
    }
    let _place = pod.handshakes.clone();
    handshake(worker, pod, accepted).await
}

async fn handshake(worker: &Local, pod: &PodState, accepted: Accepted) -> Result<Server, Failure> {
    let view = worker.view().ok_or(Failure::Starting)?;
    let identity = origin::pod_identity(&pod.pod, &view.mesh).map_err(origin::OriginError::Identity)?;
    let credentials = worker.credentials(&identity).await.map_err(ServerError::Credentials)?;
    let config = worker.server_config(&identity, &credentials, &view.mesh.trust_domain);
    let config = config.map_err(ServerError::Credentials)?;
    let refusals = worker.context.telemetry.listeners.hbone.clone();
    let server = Server::accept(accepted.socket, config, &credentials.certificate, refusals).await?;
    let remote = origin::canonical(accepted.peer).ip();
    // An address that was given to another pod a moment ago: the View is waited for.
    worker.hold(|| is_at_its_own(worker, &server.peer, remote), |_| true).await?;
    Ok(server)
}

/// A stolen certificate is of no use from the address of another workload.
fn is_at_its_own(worker: &Local, peer: &Peer, address: IpAddr) -> Result<(), Failure> {
    let view = worker.view().ok_or(Failure::Starting)?;
    let is_its_own = view.may_be_at(&peer.identity, address);
    if is_its_own { Ok(()) } else { Err(Failure::Mismatch(peer.identity.clone())) }
}

async fn carry_request(worker: Rc<Local>, pod: Rc<PodState>, tunnel: Rc<Tunnel>, mut incoming: Incoming) {
    let outcome = Outcome::open(&worker, &pod.pod, Direction::Inbound, tunnel.remote);
    outcome.tunnelled(&tunnel.peer);
    outcome.live.transfer.watch(incoming.backlog());
    let result = {
        let carried = pin!(carry(&worker, &pod, &tunnel, incoming, &outcome));
        outcome.unless_cut(&pod, carried).await
    };
    outcome.close(result);
}

async fn carry(
    worker: &Rc<Local>,
    pod: &PodState,
    tunnel: &Tunnel,
    mut incoming: Incoming,
    outcome: &Outcome,
) -> Result<(), Failure> {
    let (asked, arriving) = incoming.parts();
    let reached = tokio::select! {
        // What that needs is given back before bytes pass, as in the outbound story.
        reached = Box::pin(reach(worker, pod, tunnel, asked, outcome)) => reached,
        // Nobody waits for an answer any more, and h2 has given the stream's place to the next: the work ends here.
        () = arriving.until_reset() => {
            return Err(super::copy::CopyError::Downstream(std::io::ErrorKind::ConnectionReset.into()).into());
        }
    };
    let (upstream, baggage) = match reached {
        Ok(reached) => reached,
        Err(failure) => {
            incoming.refuse(failure.status());
            return Err(failure);
        }
    };
    // The stream is gone when the peer gave up meanwhile.
    let accepted = incoming.accept(baggage).map_err(super::copy::CopyError::Downstream)?;
    Ok(copy(End::Stream(accepted), upstream.end, Begun::default(), &outcome.live.transfer).await?)
}

/// Everything before the 200, in the order that decides which status a request gets.
async fn reach(
    worker: &Rc<Local>,
    pod: &PodState,
    tunnel: &Tunnel,
    asked: &Asked,
    outcome: &Outcome,
) -> Result<(Upstream, Option<http::HeaderValue>), Failure> {
    let origin =
        request_origin(tunnel, asked.authority(), asked.headers()).inspect_err(|_| outcome.dialled(tunnel.local))?;
    // The tunnel may be older than the identity that the workload has now.
    is_at_its_own(worker, &tunnel.peer, origin::canonical(tunnel.remote).ip())?;
    let view = worker.view().ok_or(Failure::Starting)?;
    outcome.origin(&origin, source(&view, &tunnel.peer.identity, &origin, asked));
    let (view, permit) = permit(worker, pod, &origin, outcome).await?;
    let route = permit.route().clone();
    let dialler = Dialler { worker, view: &view, pod: &pod.pod, pool: &pod.pool, origin: &origin };
    let upstream = connect(permit, dialler, &mut Early::default()).await?;
    outcome.connected(&route, &upstream);
    let baggage = route.next_hop.workload().and_then(|workload| Baggage::header(workload));
    Ok((upstream, baggage))
}

/// Who asks and for what, by the authority and the headers of a request.
pub(crate) fn request_origin(
    tunnel: &Tunnel,
    authority: Result<SocketAddr, StatusCode>,
    headers: &HeaderMap,
) -> Result<Origin, Failure> {
    let authority = origin::canonical(authority.map_err(Failure::Request)?);
    if authority.ip() != tunnel.local.ip() {
        return Err(Failure::Request(StatusCode::BAD_REQUEST));
    }
    // Else the app sees the tunnel's port: the address is proved, the port a courtesy.
    let source = hbone::forwarded_for(headers, tunnel.remote.ip()).unwrap_or(tunnel.remote);
    Ok(origin::tunnel(tunnel.peer.identity.clone(), source, authority))
}

/// Resolves and judges by the View of now; a pod that is not in it yet is waited for. Also the plaintext story's.
pub(super) async fn permit(
    worker: &Local,
    pod: &PodState,
    origin: &Origin,
    outcome: &Outcome,
) -> Result<(std::sync::Arc<View>, Permit), Failure> {
    let resolve = || {
        let view = worker.view().ok_or(ResolveError::Pending)?;
        let route = resolve::inbound(&view, &pod.pod, origin.destination)?;
        Ok((view, route))
    };
    let (view, route) = worker.hold(resolve, |error: &ResolveError| *error == ResolveError::Pending).await?;
    outcome.routed(&route);
    let permit = authorize(&view, &origin.source, route).map_err(|decision| Failure::Denied(decision.into()))?;
    outcome.permitted(&permit, origin);
    Ok((view, permit))
}

/// For display: the workload at the tunnel's address, if the certificate says that it is that one's; else its own words.
fn source(view: &View, identity: &Identity, origin: &Origin, asked: &Asked) -> Party {
    let workload = view.workload_at(origin.source_address.ip()).filter(|workload| workload.identity == *identity);
    let claimed = workload.is_none().then(|| Baggage::read(asked.headers()));
    Party {
        workload: workload.cloned(),
        identity: Some(identity.clone()),
        claimed,
        address: Some(origin.source_address),
    }
}
