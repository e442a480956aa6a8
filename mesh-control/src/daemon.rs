//! Starts the parts in their order and serves until told to stop: keys first, then a published state, and only then a
//! port on which an agent could ask for either. Decides nothing else.

use std::{fs, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use mesh_api::proto::{
    ca::istio_certificate_service_server::IstioCertificateServiceServer,
    discovery::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer,
};
use rustls::ServerConfig;
use tokio::{net::TcpListener, sync::watch};
use tonic::transport::Server;

use crate::{
    ca::{authority::Authority, files, rotation::Rotation, server::ServerCertificate, service::CertificateService},
    metrics::Metrics,
    observe::{self, Shown},
    operator,
    publish::Publisher,
    settings::Settings,
    source::{folder::Folder, watch::Changes},
    state::StateKeeper,
    xds::{DiscoveryService, listen, token::Tokens},
};

/// `initial_resource_versions` of 100,000 workloads fit into one request.
const REQUEST_BYTES: usize = 64 << 20;
/// A certificate request is a few hundred bytes.
const CERTIFICATE_REQUEST_BYTES: usize = 64 << 10;
/// A connection on which nothing answers a ping is ended: an agent that is gone without a word must not be counted.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// Connections have this long to end once the daemon is told to stop.
const GRACE: Duration = Duration::from_secs(5);

/// A daemon that is ready to serve: its state is published and its ports are bound.
pub struct Daemon {
    grpc: TcpListener,
    http: TcpListener,
    tls: ServerConfig,
    discovery: DiscoveryService,
    certificates: CertificateService,
    shown: Shown,
    stopping: watch::Receiver<bool>,
    /// Held until the process ends.
    _lock: fs::File,
}

impl Daemon {
    /// Reads keys, tokens and configuration, publishes the first state and binds the ports. Ends when `stopping`
    /// becomes true.
    ///
    /// # Errors
    /// The operator's settings or files are at fault; the message names which.
    pub async fn start(settings: &Settings, stopping: watch::Receiver<bool>) -> anyhow::Result<Daemon> {
        let lock = lock(&settings.state_dir)?;
        let parts =
            files::load(&settings.state_dir, settings.ca_dir.as_deref()).context("the certificate authority")?;
        let signs = watch::Sender::new(Arc::new(Authority::new(parts, settings.certificate_lifetime)));
        let authority = signs.subscribe();
        let tokens = Arc::new(Tokens::read(&settings.node_tokens).context("--node-tokens")?);
        let metrics = Metrics::new();
        let publisher = Arc::new(Publisher::new());
        let shown = follow_folder(settings, authority.clone(), publisher.clone(), metrics.clone())?;

        let names = settings.server_names();
        let certificate = ServerCertificate::issue(&authority.borrow().clone(), &names)?;
        tokio::spawn(certificate.clone().renew(authority.clone(), names));
        let rotation = Rotation {
            state_dir: settings.ca_dir.is_none().then(|| settings.state_dir.clone()),
            lifetime: settings.certificate_lifetime,
            authority: signs,
            tokens: tokens.clone(),
            roster: shown.roster.clone(),
        };
        tokio::spawn(operator::serve(operator::bind(&settings.state_dir)?, rotation));
        let state = publisher.subscribe();
        Ok(Daemon {
            _lock: lock,
            grpc: listener("--listen", settings.listen).await?,
            http: listener("--metrics-address", settings.metrics_address).await?,
            tls: certificate.config()?,
            discovery: DiscoveryService {
                state: state.clone(),
                tokens: tokens.clone(),
                metrics: metrics.clone(),
                roster: shown.roster.clone(),
                stopping: stopping.clone(),
            },
            certificates: CertificateService { authority, state, tokens, metrics },
            shown,
            stopping,
        })
    }

    /// The bound addresses of the gRPC and the HTTP port.
    ///
    /// # Errors
    /// The system does not say.
    pub fn addresses(&self) -> std::io::Result<(SocketAddr, SocketAddr)> {
        Ok((self.grpc.local_addr()?, self.http.local_addr()?))
    }

    /// Serves until it is to stop.
    ///
    /// # Errors
    /// A server failed as a whole; a connection's failure is its own.
    pub async fn serve(self) -> anyhow::Result<()> {
        let (listen, metrics) = self.addresses().context("the bound addresses")?;
        let pages = axum::serve(self.http, observe::router(self.shown));
        let pages = tokio::spawn(pages.with_graceful_shutdown(stopped(self.stopping.clone())).into_future());
        let discovery = AggregatedDiscoveryServiceServer::new(self.discovery).max_decoding_message_size(REQUEST_BYTES);
        let certificates =
            IstioCertificateServiceServer::new(self.certificates).max_decoding_message_size(CERTIFICATE_REQUEST_BYTES);
        tracing::info!(%listen, %metrics, "serving");
        let served = Server::builder()
            .http2_keepalive_interval(Some(PING_INTERVAL))
            .add_service(discovery)
            .add_service(certificates)
            .serve_with_incoming_shutdown(listen::connections(self.grpc, self.tls), stopped(self.stopping.clone()));
        let both = async {
            served.await.context("the gRPC server")?;
            pages.await.context("the metrics server")?.context("the metrics server")
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

/// Publishes what the folder says, now and on every change; answers what is to be shown of it.
fn follow_folder(
    settings: &Settings,
    authority: watch::Receiver<Arc<Authority>>,
    publisher: Arc<Publisher>,
    metrics: Arc<Metrics>,
) -> anyhow::Result<Shown> {
    // Watched before it is read: a change in between is seen twice rather than never.
    let changes =
        Changes::of(&settings.config_dir).with_context(|| format!("--config-dir {}", settings.config_dir.display()))?;
    let folder = Folder::new(&settings.config_dir, &settings.state_dir);
    let mut keeper = StateKeeper::new(folder, (settings.trust_domain.clone(), authority), publisher, metrics.clone());
    let shown = Shown { metrics, config: keeper.report(), roster: Arc::default() };
    keeper.refresh().context("--config-dir")?;
    tokio::spawn(keeper.follow(changes));
    Ok(shown)
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
