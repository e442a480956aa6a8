//! Starts the parts in their order and serves until told to stop: keys first, then a published state, and only then a
//! port on which an agent could ask for either. Decides nothing else.

use std::{fs, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use mesh_api::proto::{
    ca::istio_certificate_service_server::IstioCertificateServiceServer,
    discovery::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer,
};
use mesh_listen::limits;
use rustls::ServerConfig;
use tokio::{net::TcpListener, sync::watch};
use tonic::transport::Server;

use crate::{
    begin::{self, Started},
    ca::{authority::Authority, rotation::Rotation, server::ServerCertificate, service::CertificateService},
    metrics::Metrics,
    observe::{self, Shown},
    operator,
    settings::Settings,
    xds::{DiscoveryService, listen},
};

/// `initial_resource_versions` of 100,000 workloads fit into one request.
const REQUEST_BYTES: usize = 64 << 20;
/// A certificate request is a few hundred bytes.
const CERTIFICATE_REQUEST_BYTES: usize = 64 << 10;
/// Connections have this long to end once the daemon is told to stop.
const GRACE: Duration = Duration::from_secs(5);

/// A daemon that is ready to serve: its state is published and its ports are bound.
pub struct Daemon {
    grpc: TcpListener,
    pages: TcpListener,
    debug: TcpListener,
    tls: ServerConfig,
    discovery: DiscoveryService,
    certificates: CertificateService,
    shown: Shown,
    stopping: watch::Receiver<bool>,
    /// Held until the process ends.
    _lock: Option<fs::File>,
    /// While it is there its subscribers wait for another authority.
    _signs: watch::Sender<Arc<Authority>>,
}

impl Daemon {
    /// Reads keys, tokens and configuration, publishes the first state and binds the ports. Ends when `stopping`
    /// becomes true. Waits for an API server that is not there yet.
    ///
    /// # Errors
    /// The operator's settings or files are at fault; the message names which.
    pub async fn start(settings: &Settings, stopping: watch::Receiver<bool>) -> anyhow::Result<Daemon> {
        let lock = settings.state_dir.as_deref().map(lock).transpose()?;
        let pages = listener("--metrics-address", settings.metrics_address).await?;
        let metrics = Metrics::new();
        let started = match &settings.source.config_dir {
            Some(folder) => begin::on_folder(settings, folder, &metrics)?,
            None => tokio::select! {
                started = begin::on_kubernetes(settings, &metrics, stopping.clone()) => started?,
                () = stopped(stopping.clone()) => anyhow::bail!("stopped before the API server had said what there is"),
            },
        };
        let Started { signs, callers, tokens, state, config } = started;
        let authority = signs.subscribe();
        let shown = Shown { metrics: metrics.clone(), config, roster: Arc::default() };
        let names = settings.server_names();
        let certificate = ServerCertificate::issue(&authority.borrow().clone(), &names)?;
        tokio::spawn(certificate.clone().renew(authority.clone(), names));
        if let (Some(state_dir), Some(tokens)) = (&settings.state_dir, tokens) {
            let rotation = Rotation {
                state_dir: settings.ca_dir.is_none().then(|| state_dir.clone()),
                lifetime: settings.certificate_lifetime,
                authority: signs.clone(),
                tokens,
                roster: shown.roster.clone(),
            };
            tokio::spawn(operator::serve(operator::bind(state_dir)?, rotation));
        }
        Ok(Daemon {
            _lock: lock,
            _signs: signs,
            grpc: listener("--listen", settings.listen).await?,
            pages,
            debug: listener("--debug-address", settings.debug_address).await?,
            tls: certificate.config()?,
            discovery: DiscoveryService {
                state: state.clone(),
                callers: callers.clone(),
                metrics: metrics.clone(),
                roster: shown.roster.clone(),
                stopping: stopping.clone(),
            },
            certificates: CertificateService { authority, state, callers, metrics },
            shown,
            stopping,
        })
    }

    /// The bound addresses: of gRPC, of metrics, of debug.
    ///
    /// # Errors
    /// The system does not say.
    pub fn addresses(&self) -> std::io::Result<[SocketAddr; 3]> {
        Ok([self.grpc.local_addr()?, self.pages.local_addr()?, self.debug.local_addr()?])
    }

    /// Serves until it is to stop.
    ///
    /// # Errors
    /// A server failed as a whole; a connection's failure is its own.
    pub async fn serve(self) -> anyhow::Result<()> {
        let [listen, metrics, operators] = self.addresses().context("the bound addresses")?;
        let listeners = self.shown.metrics.listeners.clone();
        let pages = observe::open_pages(self.shown.clone());
        let pages = mesh_listen::pages(self.pages, pages, listeners.pages, stopped(self.stopping.clone()));
        let for_operators = observe::debug_pages(self.shown);
        let for_operators =
            mesh_listen::pages(self.debug, for_operators, listeners.debug, stopped(self.stopping.clone()));
        let (pages, for_operators) = (tokio::spawn(pages), tokio::spawn(for_operators));
        let discovery = AggregatedDiscoveryServiceServer::new(self.discovery).max_decoding_message_size(REQUEST_BYTES);
        let certificates =
            IstioCertificateServiceServer::new(self.certificates).max_decoding_message_size(CERTIFICATE_REQUEST_BYTES);
        tracing::info!(%listen, %metrics, debug = %operators, "serving");
        let connections = listen::connections(self.grpc, self.tls, listeners.agents, limits::AGENTS);
        let served = Server::builder()
            .max_concurrent_streams(limits::STREAMS)
            .initial_stream_window_size(limits::WINDOW)
            .initial_connection_window_size(limits::WINDOW)
            .http2_max_header_list_size(limits::HEADER_LIST)
            .http2_max_pending_accept_reset_streams(Some(limits::PENDING_RESETS))
            .http2_max_local_error_reset_streams(Some(limits::FAULTS))
            .http2_keepalive_interval(Some(limits::PING_INTERVAL))
            .http2_keepalive_timeout(Some(limits::PING_TIMEOUT))
            .add_service(discovery)
            .add_service(certificates)
            .serve_with_incoming_shutdown(connections, stopped(self.stopping.clone()));
        let both = async {
            served.await.context("the gRPC server")?;
            pages.await.context("the metrics server")?;
            for_operators.await.context("the debug server")
        };
        tokio::select! {
            result = both => result,
            () = overdue(self.stopping) => {
                tracing::warn!("connections that did not end in time are cut");
                Ok(())
            }
        }
    }
}

/// One daemon at a time in a state directory: two would make roots and keep manifests against each other. The lock goes
/// with the process.
fn lock(state_dir: &Path) -> anyhow::Result<fs::File> {
    let path = state_dir.join("lock");
    let named = || path.display().to_string();
    fs::create_dir_all(state_dir).with_context(|| format!("--state-dir {}", state_dir.display()))?;
    let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path).with_context(named)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(anyhow::anyhow!(
            "--state-dir {} is in use by another mesh-control, which runs: stop that one first, or give this one a \
             directory of its own and both the same --ca-dir",
            state_dir.display()
        )),
        Err(fs::TryLockError::Error(error)) => Err(error).with_context(named),
    }
}

async fn listener(option: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("{option} {address}"))
}

/// Returns when the daemon should have ended: a peer that never closes must not keep it.
async fn overdue(stopping: watch::Receiver<bool>) {
    stopped(stopping).await;
    tokio::time::sleep(GRACE).await;
}

async fn stopped(mut stopping: watch::Receiver<bool>) {
    // A sender that is gone has stopped too.
    let _ = stopping.wait_for(|is_stopping| *is_stopping).await;
}
