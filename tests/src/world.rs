//! What apps and their mesh share: the daemons, the nodes, and every pod so far. Knows how a pod comes into being and when
//! all agents have heard of it.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
};

use crate::{
    addresses::{Pair, SERVICES},
    app::{App, Pod},
    client::Client,
    control::Control,
    eventually::{LIMIT, eventually},
    link::Link,
    manifests,
    namespace::Namespace,
    new_app::NewApp,
    node::Node,
    process::Place,
    slot::Slot,
};

/// What apps and the mesh share. Fields are dropped in this order: processes, then namespaces, then the slot.
pub(crate) struct World {
    pub pods: Mutex<Vec<Arc<Pod>>>,
    pub expected: Mutex<Expected>,
    pub is_settled: AtomicBool,
    /// The story opens connections in the clear across the link, and looks at them itself.
    pub is_clear_on_purpose: AtomicBool,
    pub next_service: AtomicU8,
    pub is_meshed: bool,
    pub nodes: Vec<Node>,
    pub control: Control,
    pub outside: Place,
    pub stranger: OnceLock<Arc<Client>>,
    pub link: Link,
    pub slot: Slot,
}

/// What every agent's View must hold before a story goes on.
#[derive(Default)]
pub(crate) struct Expected {
    pub namespaces: BTreeSet<String>,
    pub workloads: BTreeSet<String>,
    pub policies: BTreeSet<String>,
    pub services: BTreeSet<String>,
}

impl World {
    pub(crate) fn directory(&self) -> &Path {
        self.slot.directory()
    }

    pub(crate) fn pods(&self) -> MutexGuard<'_, Vec<Arc<Pod>>> {
        self.pods.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(crate) fn expected(&self) -> MutexGuard<'_, Expected> {
        self.expected.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(crate) fn write_settings(&self, extra: &str) {
        let slot = self.slot.number();
        let pods: Vec<String> = self.nodes.iter().flat_map(|node| Pair::new(slot, node.number(), 0).ranges()).collect();
        self.control.write("mesh.yaml", &manifests::mesh(&pods, &Pair::new(slot, SERVICES, 0).ranges(), extra));
        for node in &self.nodes {
            self.control.write(&format!("node-{}.yaml", node.name()), &manifests::node(node.name(), node.addresses()));
        }
    }

    /// Makes the pod's namespace, its cgroup and its way to the node.
    fn connect(&self, name: &str, node: &Node, number: u8, addresses: Pair) -> Place {
        let namespace = Namespace::create(self.slot.name(name));
        let cgroup = node.cgroup().child("kubepods").child(&format!("pod-{name}")).create();
        let Pair { v4, v6 } = addresses;
        let own = node.addresses();
        let device = format!("pod{number}");
        namespace.ip(&format!("link add eth0 type veth peer name {device} netns {}", node.system().namespace.name()));
        node.system().namespace.ip(&format!(
            "link set {device} up\naddr add fe80::1/64 dev {device} nodad\n\
             route replace {v4}/32 dev {device} src {}\nroute replace {v6}/128 dev {device} src {}\n",
            own.v4, own.v6
        ));
        namespace.ip(&format!(
            "link set eth0 up\naddr add {v4}/32 dev eth0\naddr add {v6}/128 dev eth0 nodad\n\
             route add default via 169.254.1.1 dev eth0 onlink\nroute add default via fe80::1 dev eth0\n"
        ));
        Place { namespace, cgroup }
    }

    pub(crate) fn add(self: &Arc<Self>, new: NewApp<'_>, node: &str) -> App {
        let index = self.nodes.iter().position(|candidate| candidate.name() == node).expect("a node of this mesh");
        let node = &self.nodes[index];
        let number = 10 + self.pods().iter().filter(|pod| pod.node == index).count();
        let number = u8::try_from(number).expect("at most 245 pods on a node");
        let addresses = new.addresses.unwrap_or(Pair::new(self.slot.number(), node.number(), number));
        let place = self.connect(&new.name, node, number, addresses);
        let uid = format!("{}-{}", self.slot.name(&new.name), fastrand::u32(..));
        let mut labels = new.labels;
        if !new.is_enrolled {
            labels.push(("istio.io/dataplane-mode".to_owned(), "none".to_owned()));
        }
        let pod = Arc::new(Pod {
            name: new.name,
            namespace: new.namespace,
            account: new.account,
            node: index,
            uid,
            labels,
            ports: new.ports,
            probe_ports: new.probe_ports,
            addresses,
            place,
            is_enrolled: new.is_enrolled,
            is_late: new.is_late,
            is_published: AtomicBool::new(false),
            client: Default::default(),
            servers: Mutex::default(),
        });
        if new.is_published {
            self.publish(&pod);
        }
        if pod.is_enrolled && !pod.is_late && self.is_meshed {
            self.link.count(&pod.addresses.both());
            let answer = self.nodes[pod.node].admin().enrol(pod.enrolment());
            answer.unwrap_or_else(|status| panic!("{} is not enrolled: {status:?}", pod.name));
        }
        self.pods().push(Arc::clone(&pod));
        self.is_settled.store(false, Ordering::Relaxed);
        App { world: Arc::clone(self), pod }
    }

    /// Tells control of the pod.
    pub(crate) fn publish(&self, pod: &Pod) {
        if self.expected().namespaces.insert(pod.namespace.clone()) {
            let file = format!("namespace-{}.yaml", pod.namespace);
            self.control.write(&file, &manifests::namespace(&pod.namespace));
        }
        let manifest = manifests::Pod {
            namespace: &pod.namespace,
            name: &pod.name,
            account: &pod.account,
            node: self.nodes[pod.node].name(),
            uid: &pod.uid,
            labels: &pod.labels,
            addresses: pod.addresses,
            ports: &pod.ports,
        };
        self.control.write(&format!("pod-{}-{}.yaml", pod.namespace, pod.name), &manifest.manifest());
        pod.is_published.store(true, Ordering::Relaxed);
        self.is_settled.store(false, Ordering::Relaxed);
    }

    /// Waits until every running agent's View holds what the story made; nothing when that was so before.
    #[track_caller]
    pub(crate) fn settle(&self) {
        if !self.is_meshed || self.is_settled.swap(true, Ordering::Relaxed) {
            return;
        }
        for node in &self.nodes {
            eventually(&format!("{} knows all of the mesh", node.name()), LIMIT, || self.missing_on(node));
        }
    }

    fn missing_on(&self, node: &Node) -> Result<(), String> {
        let text = |status: tonic::Status| status.to_string();
        let admin = node.admin();
        let workloads = admin.workloads().map_err(text)?;
        for pod in self.pods().iter().filter(|pod| pod.is_expected()) {
            let row = workloads.iter().find(|row| row.namespace == pod.namespace && row.name == pod.name);
            let is_here = self.nodes[pod.node].name() == node.name();
            match row.map(|row| row.state.as_str()) {
                Some("enrolled") if is_here => {}
                Some("remote") if !is_here => {}
                Some("not enrolled") if !pod.is_enrolled || pod.is_late => {}
                state => return Err(format!("pod {} is {state:?}", pod.name)),
            }
        }
        let expected = self.expected();
        let workloads: BTreeSet<_> = workloads.iter().map(|row| format!("{}/{}", row.namespace, row.name)).collect();
        let policies: BTreeSet<_> =
            admin.policies().map_err(text)?.iter().map(|row| format!("{}/{}", row.namespace, row.name)).collect();
        let services: BTreeSet<_> = admin.services().map_err(text)?.into_iter().map(|row| row.hostname).collect();
        let missing = (expected.policies.difference(&policies))
            .chain(expected.services.difference(&services))
            .chain(expected.workloads.difference(&workloads))
            .next();
        missing.map_or(Ok(()), |name| Err(format!("{name} is missing")))
    }
}
