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

use super::{Feeds, Keeper, SharedCertificateStatus, SharedWallet, Vault};
use crate::{control::ControlAddress, control::SharedControlStatus, drain::Drain, private::tests::Scratch, proving};

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
    scratch: Scratch,
    wallet: SharedWallet,
    wallet_changes: watch::Receiver<u64>,
    status: SharedCertificateStatus,
    wanted: watch::Sender<Option<Arc<BTreeSet<Identity>>>>,
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
        crate::private::replace(&directory.join("token"), b"secret").unwrap();
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
        let (wanted, wanted_changes) = watch::channel(None);
        let (changes, wallet_changes) = watch::channel(0);
        let view_changes = watch::channel(0).0;
        let wallet = SharedWallet::default();
        let feeds = Feeds {
            control: SharedControlStatus::default(),
            line: line.subscribe(),
            wanted: wanted_changes,
            view_changes: view_changes.subscribe(),
        };
        let scratch = Scratch::new(&format!("keeper-{name}"));
        let keeper = Keeper::new((wallet.clone(), changes), Vault::open(&scratch.0).unwrap(), feeds);
        let status = keeper.status();
        drain.spawn(keeper.run());
        Self {
            directory,
            scratch,
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
        self.wanted.send_replace(Some(Arc::new(names.iter().map(|name| proving::identity(name)).collect())));
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

    /// How many keys outlive a restart.
    fn kept(&self) -> usize {
        std::fs::read_dir(Vault::directory(&self.scratch.0)).unwrap().count()
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
    let mut ground = Ground::start("renewed", Duration::from_secs(6)).await;
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

#[tokio::test]
async fn keys_outlive_a_restart_and_neither_their_pods_nor_their_time() {
    let mut ground = Ground::start("kept", Duration::from_secs(3600)).await;
    ground.want(&["web", "db"]);
    ground.until(|ground| ground.serial("web").is_some() && ground.kept() == 2).await;
    assert!(ground.status.load().iter().all(|status| status.is_kept && !status.is_from_vault));

    // Another run without control: only the roots are known.
    let (wanted, wanted_changes) = watch::channel(None);
    let wallet = SharedWallet::default();
    wallet.store(Arc::new(super::Wallet { trust: ground.wallet.load().trust.clone(), ..super::Wallet::default() }));
    let (line, view_changes) = (watch::channel(None).0, watch::channel(0).0);
    let feeds = Feeds {
        control: SharedControlStatus::default(),
        line: line.subscribe(),
        wanted: wanted_changes,
        view_changes: view_changes.subscribe(),
    };
    let keeper = Keeper::new((wallet.clone(), watch::channel(0).0), Vault::open(&ground.scratch.0).unwrap(), feeds);
    let (status, drain) = (keeper.status(), Drain::default());
    drain.spawn(keeper.run());
    tokio::task::yield_now().await;
    assert_eq!(ground.kept(), 2, "nothing is removed before it is known who lives");
    wanted.send_replace(Some(Arc::new([proving::identity("web")].into())));
    ground.until(|ground| status.load().iter().any(|status| status.is_from_vault) && ground.kept() == 1).await;
    let held = wallet.load().certificates[&proving::identity("web")].clone();
    assert_eq!(Some(held.serial.clone()), ground.serial("web"));
    assert!(status.load()[0].renews_at > SystemTime::now() + Duration::from_secs(1500), "no haste after a restart");

    wanted.send_replace(Some(Arc::default()));
    ground.until(|ground| ground.kept() == 0).await;
    ground.want(&[]);
    ground.wallet_changes().await;
}

#[tokio::test]
async fn an_expired_key_is_not_kept() {
    let ground = Ground::start("expired", Duration::from_secs(2)).await;
    ground.want(&["web"]);
    ground.until(|ground| ground.kept() == 1).await;
    ground.refuses.store(true, Ordering::Relaxed);
    ground.until(|ground| ground.kept() == 0).await;
    let held = ground.wallet.load().certificates[&proving::identity("web")].clone();
    assert!(held.not_after <= SystemTime::now());
}
