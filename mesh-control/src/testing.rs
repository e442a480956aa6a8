//! What tests share: a folder that is gone with its owner, and a whole daemon on loopback ports of its own.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use clap::Parser;
use tokio::{sync::watch, task::JoinHandle};
use tonic::{
    Request,
    transport::{Certificate, Channel, ClientTlsConfig},
};

use crate::{daemon::Daemon, settings::Settings, source::folder::Folder};

/// Nothing that works takes this long.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// Token of `node-a`.
pub const TOKEN_A: &str = "token-of-node-a-0123456789";
/// Token of `node-b`.
pub const TOKEN_B: &str = "token-of-node-b-0123456789";

/// A new folder below the system's temporary one.
pub struct TempFolder(pub PathBuf);

impl TempFolder {
    pub fn new() -> TempFolder {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("mesh-control-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("created");
        TempFolder(path)
    }

    /// Writes beside and moves into place, as careful tools do.
    pub fn write(&self, name: &str, text: &str) {
        let beside = self.0.join(format!(".{name}.new"));
        fs::write(&beside, text).expect("written");
        fs::rename(beside, self.0.join(name)).expect("moved");
    }

    /// It as a source of manifests that keeps last good forms beside them, where it does not look itself.
    pub fn source(&self) -> Folder {
        Folder::new(&self.0, &self.0)
    }

    pub fn remove(&self, name: &str) {
        fs::remove_file(self.0.join(name)).expect("removed");
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A daemon on loopback.
pub struct Running {
    pub config: TempFolder,
    pub grpc: SocketAddr,
    pub http: SocketAddr,
    pub debug: SocketAddr,
    pub root: String,
    stop: watch::Sender<bool>,
    served: JoinHandle<anyhow::Result<()>>,
    _state: TempFolder,
}

impl Running {
    /// Starts one on the given manifests.
    pub async fn on(files: &[(&str, &str)]) -> Running {
        let (config, state) = (TempFolder::new(), TempFolder::new());
        files.iter().for_each(|(name, text)| config.write(name, text));
        let tokens = state.0.join("tokens");
        fs::write(&tokens, format!("node-a {TOKEN_A}\nnode-b {TOKEN_B}\n")).expect("written");
        fs::set_permissions(&tokens, fs::Permissions::from_mode(0o600)).expect("mode");
        let path = |path: &Path| path.to_str().expect("utf-8").to_owned();
        let settings = Settings::parse_from([
            "mesh-control".to_owned(),
            format!("--config-dir={}", path(&config.0)),
            format!("--state-dir={}", path(&state.0)),
            format!("--node-tokens={}", path(&tokens)),
            "--listen=127.0.0.1:0".to_owned(),
            "--metrics-address=127.0.0.1:0".to_owned(),
            "--debug-address=127.0.0.1:0".to_owned(),
        ]);
        let mut running = Running::with(&settings, config, state).await;
        running.root = fs::read_to_string(running._state.0.join("root-cert.pem")).expect("written at start");
        running
    }

    /// Starts one on an API server; `root` is what its certificate is verified by.
    pub async fn on_kubernetes(kubeconfig: &Path, replica: &str) -> Running {
        let settings = Settings::parse_from([
            "mesh-control",
            "--kubernetes",
            "--kubeconfig",
            kubeconfig.to_str().expect("utf-8"),
            "--namespace=mesh-system",
            &format!("--replica={replica}"),
            "--listen=127.0.0.1:0",
            "--metrics-address=127.0.0.1:0",
            "--debug-address=127.0.0.1:0",
        ]);
        Running::with(&settings, TempFolder::new(), TempFolder::new()).await
    }

    async fn with(settings: &Settings, config: TempFolder, state: TempFolder) -> Running {
        let (stop, stopping) = watch::channel(false);
        let daemon = Daemon::start(settings, stopping).await.expect("started");
        let [grpc, http, debug] = daemon.addresses().expect("bound");
        let served = tokio::spawn(daemon.serve());
        Running { config, grpc, http, debug, root: String::new(), stop, served, _state: state }
    }

    /// A connection whose server certificate is verified by name.
    pub async fn channel(&self) -> Channel {
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.root)).domain_name("mesh-control");
        let endpoint = Channel::from_shared(format!("https://{}", self.grpc)).expect("uri").tls_config(tls);
        endpoint.expect("tls").connect().await.expect("connected")
    }

    /// Stops it and waits until it has.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        let served = tokio::time::timeout(DEADLINE, self.served).await.expect("stops in time");
        served.expect("no panic").expect("no error");
    }
}

/// A request with a node's token.
pub fn authorized<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("ascii"));
    request
}
