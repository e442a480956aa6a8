//! A mesh: control daemon, nodes, and the pods that a story puts on them. Everything is made in `new` or on demand and
//! removed on drop, also when the story fails; then what is needed to find out why is printed first.

use std::{
    net::IpAddr,
    path::Path,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
};

use crate::{
    addresses::{OUTSIDE, Pair, SERVICES},
    app::App,
    client::Client,
    control::Control,
    eventually::{LIMIT, eventually},
    link::Link,
    namespace::Namespace,
    new_app::NewApp,
    node::Node,
    policy::Policy,
    process::Place,
    report,
    service::Service,
    slot::Slot,
    starve::MemoryLimit,
    world::World,
};

/// What a mesh is made of; the default is what most stories want.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Names of the nodes.
    pub nodes: Vec<String>,
    /// Whether control daemon and agents run; without them pods have plain networking.
    pub is_meshed: bool,
    /// Further arguments of every agent.
    pub agent_arguments: Vec<String>,
    /// Further arguments of the control daemon.
    pub control_arguments: Vec<String>,
    /// Further lines of the MeshConfig's spec, indented by two.
    pub settings: String,
}

impl Default for Setup {
    fn default() -> Self {
        let nodes = ["node-a", "node-b"].map(str::to_owned).into();
        let (agent_arguments, control_arguments) = (Vec::new(), Vec::new());
        Self { nodes, is_meshed: true, agent_arguments, control_arguments, settings: String::new() }
    }
}

/// A running mesh.
pub struct Mesh {
    world: Arc<World>,
}

impl Mesh {
    /// Two nodes, `node-a` and `node-b`, each with an agent, and a control daemon.
    #[expect(clippy::new_without_default, reason = "a story that makes a mesh should say so")]
    pub fn new() -> Self {
        Self::with(Setup::default())
    }

    /// A mesh of another kind.
    ///
    /// # Panics
    /// When something cannot be made or a daemon does not come up.
    pub fn with(setup: Setup) -> Self {
        let slot = Slot::take();
        let link = Link::create(&slot);
        let control = Control::create(&slot, &link, setup.control_arguments);
        let outside = Place {
            namespace: Namespace::create(slot.name("outside")),
            cgroup: slot.cgroup().child("outside").create(),
        };
        let pair = Pair::new(slot.number(), OUTSIDE, 1);
        link.join(&outside, "outside", pair);
        let create = |(name, number): (&String, u8)| Node::create(&slot, &link, name, number);
        let nodes: Vec<Node> = setup.nodes.iter().zip(1..).map(create).collect();
        let mut world = World {
            pods: Mutex::default(),
            expected: Mutex::default(),
            is_settled: AtomicBool::new(true),
            is_clear_on_purpose: AtomicBool::new(false),
            next_service: AtomicU8::new(10),
            is_meshed: setup.is_meshed,
            nodes,
            control,
            outside,
            stranger: OnceLock::new(),
            link,
            slot,
        };
        world.write_settings(&setup.settings);
        for node in &mut world.nodes {
            let token = world.control.admit(node.name());
            node.configure(world.control.address(), &world.control.root(), &token, &setup.agent_arguments);
        }
        // From here on a panic must find the mesh, so that it is reported and removed.
        let mesh = Self { world: Arc::new(world) };
        if setup.is_meshed {
            mesh.control().start();
            mesh.nodes().iter().for_each(Node::start_agent);
            mesh.nodes().iter().for_each(Node::is_ready);
        }
        mesh
    }

    /// The nodes, in order.
    pub fn nodes(&self) -> &[Node] {
        &self.world.nodes
    }

    /// A node by name.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn node(&self, name: &str) -> &Node {
        self.nodes().iter().find(|node| node.name() == name).expect("a node of this mesh")
    }

    /// Lets the agent of a node have `bytes` more memory, and be killed by the kernel for the next page.
    pub fn limits_memory_of(&self, node: &str, bytes: u64) -> MemoryLimit {
        let node = self.node(node);
        MemoryLimit::of(&self.world.slot, node.cgroup(), node.agent_id(), bytes)
    }

    /// The control daemon.
    pub fn control(&self) -> &Control {
        &self.world.control
    }

    /// The link between the nodes.
    pub fn link(&self) -> &Link {
        &self.world.link
    }

    /// A host on the link that has nothing to do with the mesh.
    pub fn outside(&self) -> &Place {
        &self.world.outside
    }

    /// A test application on that host.
    pub fn stranger(&self) -> &Arc<Client> {
        let log = self.directory().join("stranger.log");
        self.world.stranger.get_or_init(|| Client::start(self.outside(), &log))
    }

    /// Addresses of that host.
    pub fn outside_addresses(&self) -> Pair {
        Pair::new(self.world.slot.number(), OUTSIDE, 1)
    }

    /// Begins a pod of that name.
    pub fn app(&self, name: &str) -> NewApp<'_> {
        NewApp {
            world: &self.world,
            name: name.to_owned(),
            namespace: "default".to_owned(),
            account: name.to_owned(),
            labels: vec![("app".to_owned(), name.to_owned())],
            ports: Vec::new(),
            probe_ports: Vec::new(),
            is_enrolled: true,
            is_late: false,
            is_published: true,
            addresses: None,
        }
    }

    /// Begins a policy in namespace `default`.
    pub fn policy(&self, name: &str) -> Policy<'_> {
        Policy::new(self, name)
    }

    /// Begins a service in namespace `default`.
    pub fn service(&self, name: &str) -> Service<'_> {
        let number = self.world.next_service.fetch_add(1, Ordering::Relaxed);
        Service::new(self, name, Pair::new(self.world.slot.number(), SERVICES, number))
    }

    /// Writes a manifest. What it changes is not waited for: see [`Self::expect_policy`] and [`crate::eventually()`].
    pub fn apply(&self, file: &str, manifest: &str) {
        self.control().write(file, manifest);
    }

    /// Replaces the further lines of the MeshConfig's spec, indented by two; waited for by nobody.
    pub fn set(&self, settings: &str) {
        self.world.write_settings(settings);
    }

    /// Removes a manifest.
    pub fn remove(&self, file: &str) {
        self.control().remove(file);
    }

    /// The next dial waits until every agent has this policy, `namespace/name`.
    pub fn expect_policy(&self, name: &str) {
        self.world.expected().policies.insert(name.to_owned());
        self.world.is_settled.store(false, Ordering::Relaxed);
    }

    /// The next dial waits until every agent has this workload, `namespace/name`, that [`Self::apply`] made.
    pub fn expect_workload(&self, name: &str) {
        self.world.expected().workloads.insert(name.to_owned());
        self.world.is_settled.store(false, Ordering::Relaxed);
    }

    /// Removes a policy that [`Self::policy`] made and waits until no agent has it.
    ///
    /// # Panics
    /// When an agent keeps it.
    pub fn remove_policy(&self, name: &str) {
        self.remove(&format!("policy-{name}.yaml"));
        let name = format!("default/{name}");
        self.world.expected().policies.remove(&name);
        for node in self.nodes() {
            eventually(&format!("{} has no policy {name}", node.name()), LIMIT, || {
                let policies = node.admin().policies().map_err(|status| status.to_string())?;
                let is_there = policies.iter().any(|row| format!("{}/{}", row.namespace, row.name) == name);
                if is_there { Err("it is still there".to_owned()) } else { Ok(()) }
            });
        }
    }

    pub(crate) fn expect_service(&self, name: String) {
        self.world.expected().services.insert(name);
        self.world.is_settled.store(false, Ordering::Relaxed);
    }

    /// Waits until every agent's View holds every pod, service and policy of this mesh.
    pub fn settle(&self) {
        self.world.settle();
    }

    /// This story opens connections in the clear across the link and looks at what passes itself; in every other story the
    /// counter of such packets must be zero in the end.
    pub fn lets_some_pass_in_the_clear(&self) {
        self.world.is_clear_on_purpose.store(true, Ordering::Relaxed);
    }

    /// Addresses of the pods so far, of those in the mesh and of the others.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.apps().iter().flat_map(App::addresses).collect()
    }

    /// All pods so far.
    pub fn apps(&self) -> Vec<App> {
        let pods = self.world.pods().clone();
        pods.into_iter().map(|pod| App { world: Arc::clone(&self.world), pod }).collect()
    }

    /// A directory for the files of this mesh; gone with it.
    pub fn directory(&self) -> &Path {
        self.world.directory()
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if std::thread::panicking() {
            report::failure(self);
            if std::env::var_os("MESH_TESTS_KEEP").is_some() {
                std::mem::forget(Arc::clone(&self.world));
            }
            return;
        }
        let is_watched = self.world.is_meshed && !self.world.is_clear_on_purpose.load(Ordering::Relaxed);
        if is_watched {
            let passed = self.link().passed();
            assert_eq!(passed.clear, 0, "packets with payload of enrolled pods crossed the link in the clear");
        }
    }
}
