//! The agent's own listeners: bound before anything is promised, served until the agent closes.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use mesh_api::proto::admin::{enrolment_server::EnrolmentServer, inspect_server::InspectServer};
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::UnixListenerStream;
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
    let grpc = Server::builder()
        .add_service(EnrolmentServer::new(EnrolmentService::new(enrolment, drain.clone())))
        .add_service(InspectServer::new(InspectService::new(node.clone())))
        .serve_with_incoming_shutdown(UnixListenerStream::new(sockets.admin), async move {
            closing.reached(Phase::Closing).await;
        });
    drain.spawn(async move {
        if let Err(error) = grpc.await {
            tracing::error!(%error, "admin socket ended");
        }
    });
    let pages = [
        (sockets.metrics, http::metrics(node.clone())),
        (sockets.ready, http::readiness(node.clone())),
        (sockets.operators, http::operators(node)),
    ];
    for (listener, router) in pages {
        let closing = drain.clone();
        drain.spawn(async move {
            let stop = async move { closing.reached(Phase::Closing).await };
            if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stop).await {
                tracing::error!(%error, "listener of the node ended");
            }
        });
    }
}
