//! Grounds for tests: a CA, and nodes whose workers carry real sockets on loopback addresses of the test's own, without the
//! kernel side.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, SystemTime},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use mesh_api::Identity;
use rcgen::{BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair, SanType};
use rustls::{crypto::aws_lc_rs::sign::any_supported_type, pki_types::PrivateKeyDer, sign::CertifiedKey};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
};

use crate::{
    certificates::{TrustBundle, Wallet, WorkloadCertificate},
    enrol::{Pod, PodTable},
    kernel::{self, Listener, NetworkNamespace},
    path::{Context, Steering, Worker, WorkerHandle},
    telemetry::{AccessFormat, Telemetry},
    view::{Demand, DemandRequest, View},
};

/// Small, so that a test can fill it.
pub(crate) const POD_MEMORY: usize = 8 << 20;

/// Small, too.
pub(crate) const POD_TASKS: usize = 512;

/// A loopback address that no other test, in this process or another, uses.
pub(crate) fn address() -> IpAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let pid = std::process::id();
    let octet = |n: u32| u8::try_from(n % 256).unwrap();
    Ipv4Addr::new(127, octet(pid % 250 + 1), octet(pid / 250), NEXT.fetch_add(1, Ordering::Relaxed)).into()
}

pub(crate) fn identity(name: &str) -> Identity {
    Identity::new("cluster.local", "default", name).unwrap()
}

/// A root and its key.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// PEM.
    pub root: String,
    pub trust: Arc<TrustBundle>,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap();
        let trust = TrustBundle::parse(&[root.pem()]).unwrap();
        Self { issuer: Issuer::new(params, key), root: root.pem(), trust: Arc::new(trust) }
    }

    /// A certificate for these names, valid from a minute ago.
    pub fn issue_names(&self, identity: Identity, uris: &[String], not_after: SystemTime) -> Arc<WorkloadCertificate> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI(uri.as_str().try_into().unwrap())).collect();
        let not_before = SystemTime::now() - Duration::from_secs(60);
        (params.not_before, params.not_after) = (not_before.into(), not_after.into());
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let private = any_supported_type(&PrivateKeyDer::Pkcs8(key.serialize_der().into())).unwrap();
        Arc::new(WorkloadCertificate {
            identity,
            certified_key: Arc::new(CertifiedKey::new(vec![leaf.der().clone()], private)),
            serial: String::new(),
            not_before,
            not_after,
            issued: SystemTime::now(),
            root: self.trust.root_hashes[0].clone(),
        })
    }

    /// What a certificate authority answers to a request: the leaf, valid for a day, and the root.
    pub fn sign(&self, csr: &str) -> Vec<String> {
        let mut request = CertificateSigningRequestParams::from_pem(csr).unwrap();
        let now = SystemTime::now();
        request.params.not_before = (now - Duration::from_secs(60)).into();
        request.params.not_after = (now + Duration::from_secs(86_400)).into();
        vec![request.signed_by(&self.issuer).unwrap().pem(), self.root.clone()]
    }

    pub fn issue(&self, identity: Identity) -> Arc<WorkloadCertificate> {
        let tomorrow = SystemTime::now() + Duration::from_secs(86_400);
        self.issue_names(identity.clone(), &[identity.to_string()], tomorrow)
    }

    pub fn wallet(&self, identities: &[Identity]) -> Wallet {
        let issue = |identity: &Identity| (identity.clone(), self.issue(identity.clone()));
        Wallet { certificates: identities.iter().map(issue).collect(), trust: Some(self.trust.clone()) }
    }
}

/// An enrolled pod of namespace `default` whose service account has its name.
pub(crate) fn pod(id: u32, name: &str, address: IpAddr) -> Arc<Pod> {
    Arc::new(Pod {
        id,
        uid: format!("uid-{name}").into(),
        namespace: "default".into(),
        name: name.into(),
        service_account: name.into(),
        addresses: vec![address],
        network_namespace: NetworkNamespace::current().unwrap(),
        cgroup_path: "/".into(),
        probe_ports: Vec::new(),
    })
}

pub(crate) fn table(pods: &[Arc<Pod>]) -> PodTable {
    PodTable {
        by_uid: pods.iter().map(|pod| (pod.uid.clone(), pod.clone())).collect(),
        by_address: pods.iter().flat_map(|pod| pod.addresses.iter().map(|ip| (*ip, pod.clone()))).collect(),
        failed: 0,
    }
}

/// One node with one worker.
pub(crate) struct Node {
    pub context: Arc<Context>,
    pub worker: WorkerHandle,
    changes: watch::Sender<u64>,
    pub demands: tokio::sync::mpsc::Receiver<DemandRequest>,
}

impl Node {
    /// Whatever a pod of it dials through its outbound listener, it is said to have dialled `dialled`.
    pub fn start(view: Option<Arc<View>>, pods: &[Arc<Pod>], wallet: Wallet, dialled: SocketAddr) -> Self {
        let origin = kernel::Origin { destination: dialled, endpoint: None };
        Self::steered(Steering::Fixed(origin), view, pods, wallet)
    }

    /// The same with what tells where connections are steered from.
    pub fn steered(steering: Steering, view: Option<Arc<View>>, pods: &[Arc<Pod>], wallet: Wallet) -> Self {
        let (changes, view_changes) = watch::channel(0);
        let (demand, demands) = Demand::channel(16);
        let context = Arc::new(Context {
            steering,
            view: Arc::new(ArcSwapOption::new(view)),
            view_changes,
            pods: Arc::new(ArcSwap::from_pointee(table(pods))),
            wallet: Arc::new(ArcSwap::from_pointee(wallet)),
            demand,
            pod_memory: POD_MEMORY,
            pod_tasks: POD_TASKS,
            telemetry: Arc::new(Telemetry::new(AccessFormat::Off).unwrap()),
        });
        let worker = Worker::start(0, context.clone()).unwrap();
        Self { context, worker, changes, demands }
    }

    /// Opens a listener of the pod and gives it to the worker; connections to the address returned arrive there.
    pub async fn listen(&self, pod: &Arc<Pod>, kind: Listener) -> SocketAddr {
        let address = SocketAddr::new(pod.addresses[0], kind.port());
        let listener = std::net::TcpListener::bind(address).unwrap();
        self.worker.serve(pod.clone(), kind, listener.into()).await.unwrap();
        address
    }

    pub fn publish(&self, view: Arc<View>) {
        self.context.view.store(Some(view));
        self.changes.send_modify(|generation| *generation += 1);
    }

    pub fn metrics(&self) -> String {
        self.context.telemetry.encode().unwrap()
    }
}

/// An application's listener.
pub(crate) async fn app(address: IpAddr) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((address, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A client's connection from a pod's address.
pub(crate) async fn dial(from: IpAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    socket.connect(to).await
}
