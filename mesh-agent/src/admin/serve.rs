//! The agent's own listeners: bound before anything is promised, served until the agent closes.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use mesh_api::proto::admin::{enrolment_server::EnrolmentServer, inspect_server::InspectServer};
use mesh_listen::{Gate, Meter, Metered, Reason, Refusals, limits};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio_stream::{Stream, StreamExt, wrappers::UnixListenerStream};
use tonic::transport::Server;

use crate::{
    config::Config,
    drain::{Drain, Phase},
    enrol::Enrolment,
};

use super::{Node, enrolment::EnrolmentService, http, inspect::InspectService};

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
    metrics: TcpListener,
    ready: TcpListener,
    operators: TcpListener,
}

/// Binds all of them.
///
/// # Errors
/// An address is taken. The admin socket of an agent that has gone is replaced.
pub fn bind(config: &Config) -> Result<Sockets, AdminError> {
    Ok(Sockets {
        admin: bind_socket(&config.admin_socket())?,
        metrics: listen(config.addresses.metrics)?,
        ready: listen(config.addresses.ready)?,
        operators: listen(config.addresses.admin)?,
    })
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

fn listen(address: SocketAddr) -> Result<TcpListener, AdminError> {
    let bind = || -> io::Result<TcpListener> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    bind().map_err(|source| AdminError::Listen { address, source })
}

/// Serves them until the agent closes.
pub fn serve(sockets: Sockets, node: Arc<Node>, enrolment: Enrolment, drain: &Drain) {
    let closing = drain.clone();
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
        .add_service(EnrolmentServer::new(EnrolmentService::new(enrolment, drain.clone())))
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
        let closing = drain.clone();
        drain.spawn(async move {
            let stop = async move { closing.reached(Phase::Closing).await };
            mesh_listen::pages(listener, router, refusals, stop).await;
        });
    }
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
