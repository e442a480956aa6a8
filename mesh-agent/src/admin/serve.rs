//! The agent's own listeners: bound before anything is promised, served until the agent closes.

use std::{
    fs, io,
    net::SocketAddr,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use mesh_api::proto::admin::{cni_server::CniServer, enrolment_server::EnrolmentServer, inspect_server::InspectServer};
use mesh_listen::{Gate, Meter, Metered, Reason, Refusals, limits};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio_stream::{Stream, StreamExt, wrappers::UnixListenerStream};
use tonic::transport::Server;

use crate::{
    config::Config,
    drain::{Drain, Phase},
    enrol::Enrolment,
    kubernetes::Cluster,
    takeover::{self, SocketName},
};

use super::{Node, cni::CniService, enrolment::EnrolmentService, http, inspect::InspectService};

/// Why the agent cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The admin socket.
    #[error("{}: {source}", path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// One of the addresses on the node.
    #[error("listen on {address}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why it failed.
        source: io::Error,
    },
}

/// Bound and not yet served.
#[derive(Debug)]
pub struct Sockets {
    admin: UnixListener,
    take_over: UnixListener,
    metrics: TcpListener,
    ready: TcpListener,
    operators: TcpListener,
    /// Some of those on the node are the very sockets of the agent before.
    pub shares_pages: bool,
}

/// Who answers runtimes.
#[derive(Debug)]
pub struct Runtimes {
    /// Those that enrol by themselves.
    pub enrolment: Enrolment,
    /// The CNI plug-in; none without --kubernetes.
    pub cluster: Option<Arc<Cluster>>,
}

/// When which of them is served no more.
#[derive(Debug, Clone, Default)]
pub struct Ends {
    /// The admin socket: a successor's from then on.
    pub admin: Drain,
    /// Metrics, readiness, operators.
    pub pages: Drain,
}

/// Takes those that an agent before has handed over, and binds the others. Its sockets on the node count only in the same
/// network namespace, and where they are bound to the address that is asked for.
///
/// # Errors
/// An address is taken. The sockets of an agent that has gone are replaced.
pub fn bind(config: &Config, mut handed: Vec<(SocketName, OwnedFd)>) -> Result<Sockets, AdminError> {
    let mut shares_pages = false;
    let mut page = |name, address| {
        let page = listen(take(&mut handed, name), address)?;
        shares_pages |= page.1;
        Ok(page.0)
    };
    let addresses = &config.addresses;
    let metrics = page(SocketName::Metrics, addresses.metrics)?;
    let ready = page(SocketName::Ready, addresses.ready)?;
    let operators = page(SocketName::Operators, addresses.admin)?;
    Ok(Sockets {
        admin: listen_at(take(&mut handed, SocketName::Admin), &config.admin_socket())?,
        take_over: listen_at(take(&mut handed, SocketName::TakeOver), &takeover::socket(&config.run_dir))?,
        metrics,
        ready,
        operators,
        shares_pages,
    })
}

fn take(handed: &mut Vec<(SocketName, OwnedFd)>, wanted: SocketName) -> Option<OwnedFd> {
    handed.extract_if(.., |(name, _)| *name == wanted).next().map(|(_, socket)| socket)
}

impl Sockets {
    /// All of them once more, for a successor.
    ///
    /// # Errors
    /// Descriptors are used up.
    pub fn share(&self) -> io::Result<Vec<(SocketName, OwnedFd)>> {
        let all = [
            (SocketName::Admin, self.admin.as_fd()),
            (SocketName::TakeOver, self.take_over.as_fd()),
            (SocketName::Metrics, self.metrics.as_fd()),
            (SocketName::Ready, self.ready.as_fd()),
            (SocketName::Operators, self.operators.as_fd()),
        ];
        all.into_iter().map(|(name, socket)| Ok((name, socket.try_clone_to_owned()?))).collect()
    }
}

fn listen_at(handed: Option<OwnedFd>, path: &Path) -> Result<UnixListener, AdminError> {
    let Some(socket) = handed else { return bind_socket(path) };
    let listener = std::os::unix::net::UnixListener::from(socket);
    let taken = listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener));
    taken.map_err(|source| AdminError::Socket { path: path.to_owned(), source })
}

/// Nobody can connect before the mode is set: it is bound under another name and then renamed.
fn bind_socket(path: &Path) -> Result<UnixListener, AdminError> {
    let failed = |source| AdminError::Socket { path: path.to_owned(), source };
    let unnamed = path.with_extension("next");
    match fs::remove_file(&unnamed) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&unnamed).map_err(failed)?;
    fs::set_permissions(&unnamed, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    fs::rename(&unnamed, path).map_err(failed)?;
    Ok(listener)
}

/// The listener, and whether it is the one that was handed over.
fn listen(handed: Option<OwnedFd>, address: SocketAddr) -> Result<(TcpListener, bool), AdminError> {
    let listen = || -> io::Result<(TcpListener, bool)> {
        let handed = handed.map(std::net::TcpListener::from);
        let same = handed.filter(|listener| listener.local_addr().is_ok_and(|bound| bound == address));
        let is_same = same.is_some();
        let listener = same.map_or_else(|| std::net::TcpListener::bind(address), Ok)?;
        listener.set_nonblocking(true)?;
        Ok((TcpListener::from_std(listener)?, is_same))
    };
    listen().map_err(|source| AdminError::Listen { address, source })
}

/// Serves them until their ends, or the agent's; answers where successors ask.
pub fn serve(sockets: Sockets, node: Arc<Node>, runtimes: Runtimes, drain: &Drain, ends: &Ends) -> UnixListener {
    let closing = ends.admin.clone();
    let listeners = &node.telemetry.listeners;
    let connections = connections(sockets.admin, listeners.admin.clone());
    let pages = [
        (sockets.metrics, listeners.metrics.clone(), http::metrics(node.clone())),
        (sockets.ready, listeners.ready.clone(), http::readiness(node.clone())),
        (sockets.operators, listeners.operators.clone(), http::operators(node.clone())),
    ];
    let grpc = Server::builder()
        .max_concurrent_streams(limits::STREAMS)
        .initial_stream_window_size(limits::WINDOW)
        .initial_connection_window_size(limits::WINDOW)
        .http2_max_header_list_size(limits::HEADER_LIST)
        .http2_max_pending_accept_reset_streams(Some(limits::PENDING_RESETS))
        .http2_max_local_error_reset_streams(Some(limits::FAULTS))
        .http2_keepalive_interval(Some(limits::PING_INTERVAL))
        .http2_keepalive_timeout(Some(limits::PING_TIMEOUT))
        .add_service(EnrolmentServer::new(EnrolmentService::new(runtimes.enrolment, drain.clone())))
        .add_service(CniServer::new(CniService::new(runtimes.cluster)))
        .add_service(InspectServer::new(InspectService::new(node)))
        .serve_with_incoming_shutdown(connections, async move {
            closing.reached(Phase::Closing).await;
        });
    drain.spawn(async move {
        if let Err(error) = grpc.await {
            tracing::error!(%error, "admin socket ended");
        }
    });
    for (listener, refusals, router) in pages {
        let closing = ends.pages.clone();
        drain.spawn(async move {
            let stop = async move { closing.reached(Phase::Closing).await };
            mesh_listen::pages(listener, router, refusals, stop).await;
        });
    }
    sockets.take_over
}

/// Connections to the admin socket that have a place.
fn connections(
    listener: UnixListener,
    refusals: Arc<Refusals>,
) -> impl Stream<Item = io::Result<Metered<UnixStream>>> + Send {
    let gate = Gate::new(limits::OPERATORS);
    UnixListenerStream::new(listener).filter_map(move |accepted| {
        let socket = match accepted {
            Ok(socket) => socket,
            Err(error) => {
                refusals.refuse(Reason::Descriptors, "local", &error);
                return Some(Err(error));
            }
        };
        match gate.enter(None) {
            Ok(place) => {
                let meter = Meter::of_client(limits::FRAMES, Instant::now());
                let metered = Metered::of_client(socket, meter, refusals.clone(), None);
                Some(Ok(metered.within(limits::HANDSHAKE_TIMEOUT).holding(place)))
            }
            Err(reason) => {
                refusals.refuse(reason, "local", "too many connections");
                None
            }
        }
    })
}
