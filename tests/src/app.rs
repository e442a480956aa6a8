//! An app: a pod with a test application in it. A handle; clones are the same pod.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    process::Output,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mesh_api::proto::admin::EnrolRequest;

use crate::{
    addresses::Pair,
    client::Client,
    conversation::Conversation,
    dial::Dialled,
    eventually::eventually,
    process::{Place, Process},
    protocol::{Accepted, Behaviour, Command, Dial, Listen, Reply, Storm, StormReport},
    world::World,
};

/// A pod that is there.
pub(crate) struct Pod {
    pub name: String,
    pub namespace: String,
    pub account: String,
    pub node: usize,
    pub uid: String,
    pub labels: Vec<(String, String)>,
    pub ports: Vec<(String, u16)>,
    pub probe_ports: Vec<u16>,
    pub addresses: Pair,
    pub place: Place,
    pub is_enrolled: bool,
    pub is_late: bool,
    pub is_published: AtomicBool,
    pub client: OnceLock<Arc<Client>>,
    pub servers: Mutex<Vec<(u16, u32)>>,
}

/// A pod and what runs in it.
#[derive(Clone)]
pub struct App {
    pub(crate) world: Arc<World>,
    pub(crate) pod: Arc<Pod>,
}

impl App {
    /// The pod's name.
    pub fn name(&self) -> &str {
        &self.pod.name
    }

    /// namespace/name
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.pod.namespace, self.pod.name)
    }

    /// Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.pod.namespace
    }

    /// Its labels.
    pub fn labels(&self) -> &[(String, String)] {
        &self.pod.labels
    }

    /// Its identity, as a certificate proves it.
    pub fn identity(&self) -> String {
        format!("spiffe://cluster.local/ns/{}/sa/{}", self.pod.namespace, self.pod.account)
    }

    /// The pod's uid.
    pub fn uid(&self) -> &str {
        &self.pod.uid
    }

    /// Its IPv4 address.
    pub fn v4(&self) -> Ipv4Addr {
        self.pod.addresses.v4
    }

    /// Its IPv6 address.
    pub fn v6(&self) -> Ipv6Addr {
        self.pod.addresses.v6
    }

    /// Both.
    pub fn addresses(&self) -> [IpAddr; 2] {
        self.pod.addresses.both()
    }

    /// A port at its IPv4 address.
    pub fn at(&self, port: u16) -> SocketAddr {
        (self.v4(), port).into()
    }

    /// A port at its IPv6 address.
    pub fn at_v6(&self, port: u16) -> SocketAddr {
        (self.v6(), port).into()
    }

    /// A port at its IPv4 address, as an IPv6 socket dials it.
    pub fn at_mapped(&self, port: u16) -> SocketAddr {
        (self.v4().to_ipv6_mapped(), port).into()
    }

    /// Its network namespace and cgroup.
    pub fn place(&self) -> &Place {
        &self.pod.place
    }

    /// Runs a program in the pod to its end.
    pub fn run(&self, words: &[&str]) -> Output {
        self.world.settle();
        self.pod.place.run(words)
    }

    /// Starts a program in the pod; its output goes to the file `log` in the mesh's directory.
    pub fn start(&self, words: &[&str], log: &str) -> Process {
        self.pod.place.start(words, &self.world.directory().join(log))
    }

    /// A file for the pod's programs; removed with the mesh.
    pub fn file(&self, name: &str) -> std::path::PathBuf {
        self.world.directory().join(format!("{}-{name}", self.pod.name))
    }

    /// The test application, started at first need.
    pub fn client(&self) -> &Arc<Client> {
        let log = self.file("app.log");
        self.pod.client.get_or_init(|| Client::start(&self.pod.place, Path::new(&log)))
    }

    /// Echoes on `port`, on all addresses of both families.
    #[track_caller]
    pub fn echoing_on(self, port: u16) -> Self {
        self.serving(port, Behaviour::Echo)
    }

    /// Serves on `port`, on all addresses of both families.
    #[track_caller]
    pub fn serving(self, port: u16, behaviour: Behaviour) -> Self {
        self.listen(&Listen {
            address: (Ipv6Addr::UNSPECIFIED, port).into(),
            only_v6: false,
            reuse_port: false,
            behaviour,
        });
        self
    }

    /// Opens a server of any kind.
    #[track_caller]
    pub fn listen(&self, listen: &Listen) -> SocketAddr {
        match self.client().ask(Command::Listen(listen.clone())) {
            Reply::Listening { server, address } => {
                self.servers().push((address.port(), server));
                address
            }
            other => panic!("not an answer to listen: {other:?}"),
        }
    }

    fn servers(&self) -> std::sync::MutexGuard<'_, Vec<(u16, u32)>> {
        self.pod.servers.lock().expect("no panic under this lock")
    }

    /// The port that it served first.
    ///
    /// # Panics
    /// When it serves none.
    #[track_caller]
    pub fn port(&self) -> u16 {
        self.servers().first().expect("a server to dial: echoing_on(port)").0
    }

    /// The connections that all its servers have accepted.
    pub fn connections(&self) -> Vec<Accepted> {
        let servers = self.servers().clone();
        let accepted = servers.into_iter().map(|(_, server)| self.client().ask(Command::Accepted { server }));
        accepted
            .flat_map(|reply| match reply {
                Reply::Accepted(connections) => connections,
                other => panic!("not an answer to accepted: {other:?}"),
            })
            .collect()
    }

    /// # Panics
    /// When one of its servers has accepted a connection.
    #[track_caller]
    pub fn saw_no_connection(&self) {
        let connections = self.connections();
        assert!(connections.is_empty(), "{} saw {connections:?}", self.pod.name);
    }

    /// Connects to `to`'s first port over IPv4, sends a line and waits for it to come back.
    #[track_caller]
    pub fn dial(&self, to: &App) -> Dialled {
        self.dial_at(to.at(to.port()))
    }

    /// Connects to an address, sends a line and waits for it to come back.
    #[track_caller]
    pub fn dial_at(&self, to: SocketAddr) -> Dialled {
        self.dial_with(Dial { send: "ping\n".to_owned(), ..plain(to) })
    }

    /// Connects in any way.
    #[track_caller]
    pub fn dial_with(&self, dial: Dial) -> Dialled {
        self.world.settle();
        self.client().dial(dial)
    }

    /// Opens a connection that the story goes on to use.
    #[track_caller]
    pub fn opens(&self, to: SocketAddr) -> Conversation {
        self.world.settle();
        self.client().opens(to)
    }

    /// Many connections to servers that name themselves.
    #[track_caller]
    pub fn storms(&self, to: &[SocketAddr], connections: u32, threads: u32, same_address: bool) -> StormReport {
        self.makes(Storm { to: to.to_vec(), connections, threads, per_second: 0, same_address })
    }

    /// As many connections as it says, to servers that name themselves.
    #[track_caller]
    pub fn makes(&self, storm: Storm) -> StormReport {
        self.world.settle();
        match self.client().ask(Command::Storm(storm)) {
            Reply::Storm(report) => report,
            other => panic!("not an answer to storm: {other:?}"),
        }
    }

    /// Sends `bytes` pseudo-random bytes to a sink and compares what it read.
    #[track_caller]
    pub fn sends_intact(&self, to: SocketAddr, bytes: u64) {
        self.world.settle();
        match self.client().ask(Command::Transfer { to, bytes }) {
            Reply::Transfer { is_intact, .. } => assert!(is_intact, "{to} read something else than was sent"),
            other => panic!("not an answer to transfer: {other:?}"),
        }
    }

    /// Dials until it is answered.
    #[track_caller]
    pub fn reaches(&self, to: SocketAddr) -> Dialled {
        let claim = format!("{} reaches {to}", self.pod.name);
        eventually(&claim, Duration::from_secs(10), || {
            let dialled = self.dial_at(to);
            if dialled.was_answered() { Ok(dialled) } else { Err(format!("{:?}", dialled.report)) }
        })
    }

    /// Tells control of a pod that was made [`unpublished`](crate::new_app::NewApp::unpublished).
    pub fn published(&self) {
        self.world.publish(&self.pod);
    }

    /// What enrols this pod.
    pub fn enrolment(&self) -> EnrolRequest {
        self.pod.enrolment()
    }

    /// Ends what runs in the pod and removes its cgroup and network namespace, and tells nobody.
    pub fn dies(&self) {
        self.pod.place.cgroup.kill();
        self.pod.place.cgroup.remove();
        self.pod.place.namespace.remove();
    }
}

impl Pod {
    /// Whether agents should know it: control does, and it has not died.
    pub(crate) fn is_expected(&self) -> bool {
        self.is_published.load(Ordering::Relaxed) && self.place.cgroup.path().exists()
    }

    pub(crate) fn enrolment(&self) -> EnrolRequest {
        use mesh_api::proto::admin::enrol_request::NetworkNamespace::NetworkNamespacePath;
        EnrolRequest {
            uid: self.uid.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            service_account: self.account.clone(),
            addresses: self.addresses.both().map(|address| address.to_string()).into(),
            network_namespace: Some(NetworkNamespacePath(self.place.namespace.path().display().to_string())),
            cgroup_path: self.place.cgroup.path().display().to_string(),
            probe_ports: self.probe_ports.iter().copied().map(u32::from).collect(),
            fail_open: false,
        }
    }
}

/// A connection without anything special.
pub fn plain(to: SocketAddr) -> Dial {
    Dial { to, from: None, first_to: None, non_blocking: false, send: String::new(), limit_ms: 10_000 }
}
