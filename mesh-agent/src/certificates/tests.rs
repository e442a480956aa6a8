//! The keeper against a certificate authority that does what the test wants.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use mesh_api::{
    Identity,
    proto::ca::{
        IstioCertificateRequest, IstioCertificateResponse,
        istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer},
    },
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair, SerialNumber,
};
use tokio::{net::TcpListener, sync::watch, time::timeout};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Request, Response, Status,
    transport::{Server, ServerTlsConfig},
};

use super::{Keeper, SharedCertificateStatus, SharedWallet};
use crate::{control::ControlAddress, control::SharedControlStatus, drain::Drain, proving};

const SOON: Duration = Duration::from_secs(10);

struct Authority {
    root: String,
    issuer: Issuer<'static, KeyPair>,
    lifetime: Duration,
    refuses: Arc<AtomicBool>,
}

#[tonic::async_trait]
impl IstioCertificateService for Authority {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let metadata = request.get_ref().metadata.clone().unwrap_or_default();
        assert!(metadata.fields.contains_key("ImpersonatedIdentity"));
        assert_eq!(request.metadata().get("authorization").unwrap(), "Bearer secret");
        if self.refuses.load(Ordering::Relaxed) {
            return Err(Status::permission_denied("not on this node"));
        }
        let mut csr = CertificateSigningRequestParams::from_pem(&request.get_ref().csr).unwrap();
        let now = SystemTime::now();
        csr.params.not_before = (now - Duration::from_secs(60)).into();
        csr.params.not_after = (now + self.lifetime).into();
        csr.params.serial_number = Some(SerialNumber::from(fastrand::u64(1..)));
        let leaf = csr.signed_by(&self.issuer).unwrap().pem();
        Ok(Response::new(IstioCertificateResponse { cert_chain: vec![leaf, self.root.clone()] }))
    }
}

/// A keeper that runs, and the authority that it asks.
struct Ground {
    directory: std::path::PathBuf,
    wallet: SharedWallet,
    wallet_changes: watch::Receiver<u64>,
    status: SharedCertificateStatus,
    wanted: watch::Sender<Arc<BTreeSet<Identity>>>,
    refuses: Arc<AtomicBool>,
    _view_changes: watch::Sender<u64>,
    _line: watch::Sender<Option<crate::control::Line>>,
    _drain: Drain,
}

impl Ground {
    async fn start(name: &str, lifetime: Duration) -> Self {
        let directory = std::env::temp_dir().join(format!("node-keeper-{}-{name}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        let server_key = KeyPair::generate().unwrap();
        let server = CertificateParams::new(vec!["mesh-control".to_owned()]).unwrap();
        let server = server.signed_by(&server_key, &issuer).unwrap().pem();
        let identity = tonic::transport::Identity::from_pem(server, server_key.serialize_pem());
        std::fs::write(directory.join("root.pem"), &root).unwrap();
        std::fs::write(directory.join("token"), "secret").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = ControlAddress {
            uri: format!("https://{}", listener.local_addr().unwrap()),
            name: "mesh-control".into(),
            root: directory.join("root.pem"),
            token: directory.join("token"),
        };
        let (refuses, drain) = (Arc::<AtomicBool>::default(), Drain::default());
        let authority = Authority { root, issuer, lifetime, refuses: refuses.clone() };
        let serve = Server::builder()
            .tls_config(ServerTlsConfig::new().identity(identity))
            .unwrap()
            .add_service(IstioCertificateServiceServer::new(authority))
            .serve_with_incoming(TcpListenerStream::new(listener));
        drain.spawn(async move { serve.await.unwrap() });
        let line = watch::channel(Some(address.dial().await.unwrap())).0;
        let (wanted, wanted_changes) = watch::channel(Arc::default());
        let (changes, wallet_changes) = watch::channel(0);
        let view_changes = watch::channel(0).0;
        let wallet = SharedWallet::default();
        let keeper = Keeper::new(
            (wallet.clone(), changes),
            SharedControlStatus::default(),
            line.subscribe(),
            wanted_changes,
            view_changes.subscribe(),
        );
        let status = keeper.status();
        drain.spawn(keeper.run());
        Self {
            directory,
            wallet,
            wallet_changes,
            status,
            wanted,
            refuses,
            _view_changes: view_changes,
            _line: line,
            _drain: drain,
        }
    }

    fn want(&self, names: &[&str]) {
        self.wanted.send_replace(Arc::new(names.iter().map(|name| proving::identity(name)).collect()));
    }

    async fn wallet_changes(&mut self) {
        timeout(SOON, self.wallet_changes.changed()).await.expect("a change of the wallet").expect("a running keeper");
    }

    fn serial(&self, name: &str) -> Option<String> {
        self.wallet.load().certificates.get(&proving::identity(name)).map(|held| held.serial.clone())
    }

    fn error(&self) -> String {
        self.status.load().first().map(|status| status.error.clone()).unwrap_or_default()
    }

    async fn until(&self, is_so: impl Fn(&Self) -> bool) {
        let waiting = async {
            while !is_so(self) {
                tokio::task::yield_now().await;
            }
        };
        timeout(SOON, waiting).await.expect("in time");
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

#[tokio::test]
async fn what_is_wanted_is_held_and_what_is_not_any_more_is_dropped() {
    let mut ground = Ground::start("wanted", Duration::from_secs(3600)).await;
    ground.want(&["web", "db"]);
    ground.until(|ground| ground.serial("web").is_some() && ground.serial("db").is_some()).await;
    assert!(ground.wallet.load().trust.is_some(), "the root came with the chain");
    let key = |name: &str| {
        let wallet = ground.wallet.load();
        wallet.certificates[&proving::identity(name)].certified_key.key.public_key().unwrap().to_vec()
    };
    assert_ne!(key("web"), key("db"), "one key per certificate");
    ground.wallet_changes.borrow_and_update();
    ground.want(&["db"]);
    ground.wallet_changes().await;
    assert!(ground.serial("web").is_none() && ground.serial("db").is_some());
}

#[tokio::test]
async fn a_certificate_is_renewed_at_half_of_its_life_and_kept_while_that_fails() {
    let mut ground = Ground::start("renewed", Duration::from_secs(4)).await;
    ground.want(&["web"]);
    ground.wallet_changes().await;
    let first = ground.serial("web").expect("a certificate");
    ground.refuses.store(true, Ordering::Relaxed);
    ground.until(|ground| ground.error().contains("not on this node")).await;
    assert_eq!(ground.serial("web"), Some(first.clone()), "the current one stays");
    ground.refuses.store(false, Ordering::Relaxed);
    ground.wallet_changes().await;
    assert_ne!(ground.serial("web").expect("a certificate"), first);
    ground.until(|ground| ground.error().is_empty()).await;
}
