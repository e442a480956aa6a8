//! Typed objects out of YAML documents. Strict where the mesh is concerned: an unknown or unsupported field of a known
//! kind is refused with its place and the reason. Never looks at two objects at once; that is `compile`'s part.

use std::{collections::BTreeMap, sync::Arc};

use crate::source::{document, problem::Problem};

pub mod entry;
pub mod fields;
pub mod metadata;
pub mod node;
pub mod peer;
pub mod pod;
pub mod policy;
pub mod service;
pub mod settings;
pub mod slice;
pub mod terms;

use fields::{Fields, Problems};
use metadata::{Metadata, Name};

/// One object.
#[derive(Clone, Debug)]
pub enum Object {
    /// v1
    Namespace(Arc<node::Namespace>),
    /// v1
    Node(Arc<node::Node>),
    /// v1
    Pod(Arc<pod::Pod>),
    /// v1
    Service(Arc<service::Service>),
    /// discovery.k8s.io/v1
    EndpointSlice(Arc<slice::EndpointSlice>),
    /// networking.k8s.io/v1
    ServiceRange(Arc<node::ServiceRange>),
    /// security.istio.io/v1
    AuthorizationPolicy(Arc<policy::AuthorizationPolicy>),
    /// security.istio.io/v1
    PeerAuthentication(Arc<peer::PeerAuthentication>),
    /// networking.istio.io/v1
    WorkloadEntry(Arc<entry::WorkloadEntry>),
    /// networking.istio.io/v1
    ServiceEntry(Arc<entry::ServiceEntry>),
    /// mesh.dev/v1alpha1
    MeshConfig(Arc<settings::MeshSettings>),
    /// A policy that could not be read and has no earlier form: everything in its scope is denied.
    Refused(Arc<RefusedPolicy>),
}

/// What is known of a policy that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedPolicy {
    /// `AuthorizationPolicy` or `PeerAuthentication`.
    pub kind: &'static str,
    /// Its namespace and name.
    pub name: Name,
    /// Its selector, when that could be read; empty: the whole namespace.
    pub selector: BTreeMap<String, String>,
    /// Where it starts in its file.
    pub at: crate::source::problem::Position,
}

impl Object {
    /// Kind as it is written.
    pub fn kind(&self) -> &'static str {
        match self {
            Object::Namespace(_) => "Namespace",
            Object::Node(_) => "Node",
            Object::Pod(_) => "Pod",
            Object::Service(_) => "Service",
            Object::EndpointSlice(_) => "EndpointSlice",
            Object::ServiceRange(_) => "ServiceCIDR",
            Object::AuthorizationPolicy(_) => "AuthorizationPolicy",
            Object::PeerAuthentication(_) => "PeerAuthentication",
            Object::WorkloadEntry(_) => "WorkloadEntry",
            Object::ServiceEntry(_) => "ServiceEntry",
            Object::MeshConfig(_) => "MeshConfig",
            Object::Refused(refused) => refused.kind,
        }
    }

    /// Namespace and name.
    pub fn name(&self) -> Name {
        match self {
            Object::Refused(refused) => refused.name.clone(),
            other => other.metadata().map(Metadata::key).unwrap_or_else(|| Name::new("", "")),
        }
    }

    /// Where it starts in its file.
    pub fn at(&self) -> crate::source::problem::Position {
        match self {
            Object::Refused(refused) => refused.at,
            other => other.metadata().map(|metadata| metadata.at).unwrap_or_default(),
        }
    }

    /// True for the objects that decide who may connect.
    pub fn is_policy(&self) -> bool {
        matches!(self, Object::AuthorizationPolicy(_) | Object::PeerAuthentication(_) | Object::Refused(_))
    }

    fn metadata(&self) -> Option<&Metadata> {
        Some(match self {
            Object::Namespace(object) => &object.metadata,
            Object::Node(object) => &object.metadata,
            Object::Pod(object) => &object.metadata,
            Object::Service(object) => &object.metadata,
            Object::EndpointSlice(object) => &object.metadata,
            Object::ServiceRange(object) => &object.metadata,
            Object::AuthorizationPolicy(object) => &object.metadata,
            Object::PeerAuthentication(object) => &object.metadata,
            Object::WorkloadEntry(object) => &object.metadata,
            Object::ServiceEntry(object) => &object.metadata,
            Object::MeshConfig(object) => &object.metadata,
            Object::Refused(_) => return None,
        })
    }
}

/// What became of one document.
#[derive(Debug)]
pub enum Parsed<'a> {
    /// A `List`, as `kubectl get -o yaml` prints it: its items with their paths.
    Items(Vec<(String, &'a document::Node)>),
    /// A good object.
    Object(Object),
    /// A kind that the mesh does not read; named so that the author learns of it.
    Ignored(Problem),
    /// A known kind that is wrong.
    Refused(Vec<Problem>),
}

/// API groups and kinds that are read. A kind of one of these groups that is not listed is refused rather than
/// ignored when its group is security.istio.io: whoever writes a policy counts on it.
const KINDS: [(&str, &[&str], &str); 11] = [
    ("", &["v1"], "Namespace"),
    ("", &["v1"], "Node"),
    ("", &["v1"], "Pod"),
    ("", &["v1"], "Service"),
    ("discovery.k8s.io", &["v1"], "EndpointSlice"),
    ("networking.k8s.io", &["v1", "v1beta1"], "ServiceCIDR"),
    ("security.istio.io", &["v1", "v1beta1"], "AuthorizationPolicy"),
    ("security.istio.io", &["v1", "v1beta1"], "PeerAuthentication"),
    ("networking.istio.io", &["v1", "v1beta1", "v1alpha3"], "WorkloadEntry"),
    ("networking.istio.io", &["v1", "v1beta1", "v1alpha3"], "ServiceEntry"),
    ("mesh.dev", &["v1alpha1"], "MeshConfig"),
];

/// Kinds that decide who may connect. With a misspelt API group they are refused, never taken for somebody else's.
pub const POLICIES: [&str; 2] = ["AuthorizationPolicy", "PeerAuthentication"];
/// Linkerd has an AuthorizationPolicy too.
const FOREIGN_POLICIES: &str = "policy.linkerd.io";

/// Groups whose kinds an API server checks against a schema of its own version.
const CHECKED_GROUPS: [&str; 3] = ["", "discovery.k8s.io", "networking.k8s.io"];

/// Reads an object of an API server, and names the fields of it that only a newer Kubernetes knows.
///
/// # Errors
/// Why it is refused.
pub fn parse_served(node: &document::Node) -> Result<(Object, Vec<Problem>), Vec<Problem>> {
    let api = node.child("apiVersion").map(|node| &node.value);
    let group = if let Some(document::Value::Text(api)) = api { group_and_version(api).0 } else { "" };
    let is_checked = CHECKED_GROUPS.contains(&group);
    let problems = if is_checked { Problems::of_checked_object() } else { Problems::default() };
    match parse_with(node, "", &problems) {
        Parsed::Object(object) => match problems.into_parts() {
            (refused, unknown) if refused.is_empty() => Ok((object, unknown)),
            (refused, _) => Err(refused),
        },
        Parsed::Refused(mut refused) => {
            refused.extend(problems.into_sorted());
            Err(refused)
        }
        Parsed::Ignored(problem) => Err(vec![problem]),
        Parsed::Items(_) => Err(Vec::new()),
    }
}

/// Reads the object of one document, or of one item at `path` in it.
pub fn parse<'a>(node: &'a document::Node, path: &str) -> Parsed<'a> {
    let problems = Problems::default();
    match (parse_with(node, path, &problems), problems.into_sorted()) {
        (Parsed::Refused(mut refused), problems) => {
            refused.extend(problems);
            Parsed::Refused(refused)
        }
        (parsed, problems) if problems.is_empty() => parsed,
        (_, problems) => Parsed::Refused(problems),
    }
}

fn group_and_version(api: &str) -> (&str, &str) {
    api.rsplit_once('/').unwrap_or(("", api))
}

/// Reads one object; what is wrong with its fields is left in `problems`.
fn parse_with<'a>(node: &'a document::Node, path: &str, problems: &Problems) -> Parsed<'a> {
    let mut object = Fields::of(node, path, problems);
    let api = object.required_text("apiVersion");
    let kind = object.required_text("kind");
    let (Some(api), Some(kind)) = (api, kind) else { return Parsed::Refused(Vec::new()) };
    if (api.value.as_str(), kind.value.as_str()) == ("v1", "List") && path.is_empty() {
        return parse_list(node);
    }
    let (group, version) = group_and_version(&api.value);
    let Some((_, versions, name)) = KINDS.iter().find(|known| known.0 == group && known.2 == kind.value) else {
        let reason = |text: &str| format!("{} of {} {text}", kind.value, api.value);
        let problem = |text: &str| Problem { at: kind.at, field: kind.path.clone(), reason: reason(text) };
        let is_policy = POLICIES.contains(&kind.value.as_str()) && group != FOREIGN_POLICIES;
        return match group {
            "security.istio.io" => Parsed::Refused(vec![problem("is not supported")]),
            _ if is_policy => Parsed::Refused(vec![problem("is not known; write security.istio.io/v1")]),
            _ => Parsed::Ignored(problem("is not read by the mesh")),
        };
    };
    if !versions.contains(&version) {
        api.refuse(problems, format!("version {version:?} of {name} is not read; write {}", versions[0]));
        return Parsed::Refused(Vec::new());
    }
    match read(name, &mut object) {
        Some(parsed) => {
            object.finish();
            Parsed::Object(parsed)
        }
        // A reader that gave up has left fields unread that are not unknown.
        None => Parsed::Refused(Vec::new()),
    }
}

fn parse_list(node: &document::Node) -> Parsed<'_> {
    let problems = Problems::default();
    let mut list = Fields::of(node, "", &problems);
    list.accept(&["apiVersion", "kind", "metadata"]);
    list.list("items");
    list.finish();
    let items = node.child("items").map(document::Node::items).unwrap_or_default();
    match problems.into_sorted() {
        problems if problems.is_empty() => {
            Parsed::Items(items.iter().enumerate().map(|(index, item)| (format!("items[{index}]"), item)).collect())
        }
        problems => Parsed::Refused(problems),
    }
}

fn read(kind: &str, object: &mut Fields<'_>) -> Option<Object> {
    Some(match kind {
        "Namespace" => Object::Namespace(Arc::new(node::read_namespace(object)?)),
        "Node" => Object::Node(Arc::new(node::read(object)?)),
        "Pod" => Object::Pod(Arc::new(pod::read(object)?)),
        "Service" => Object::Service(Arc::new(service::read(object)?)),
        "EndpointSlice" => Object::EndpointSlice(Arc::new(slice::read(object)?)),
        "ServiceCIDR" => Object::ServiceRange(Arc::new(node::read_service_range(object)?)),
        "AuthorizationPolicy" => Object::AuthorizationPolicy(Arc::new(policy::read(object)?)),
        "PeerAuthentication" => Object::PeerAuthentication(Arc::new(peer::read(object)?)),
        "WorkloadEntry" => Object::WorkloadEntry(Arc::new(entry::read_workload(object)?)),
        "ServiceEntry" => Object::ServiceEntry(Arc::new(entry::read_service(object)?)),
        "MeshConfig" => Object::MeshConfig(Arc::new(settings::read(object)?)),
        _ => return None,
    })
}

/// All objects of the desired state, each kind by name.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// By name.
    pub namespaces: BTreeMap<String, Arc<node::Namespace>>,
    /// By name.
    pub nodes: BTreeMap<String, Arc<node::Node>>,
    /// By namespace and name.
    pub pods: BTreeMap<Name, Arc<pod::Pod>>,
    /// By namespace and name.
    pub services: BTreeMap<Name, Arc<service::Service>>,
    /// By namespace and name.
    pub slices: BTreeMap<Name, Arc<slice::EndpointSlice>>,
    /// By name.
    pub service_ranges: BTreeMap<String, Arc<node::ServiceRange>>,
    /// By namespace and name.
    pub policies: BTreeMap<Name, Arc<policy::AuthorizationPolicy>>,
    /// By namespace and name.
    pub peers: BTreeMap<Name, Arc<peer::PeerAuthentication>>,
    /// By namespace and name.
    pub workload_entries: BTreeMap<Name, Arc<entry::WorkloadEntry>>,
    /// By namespace and name.
    pub service_entries: BTreeMap<Name, Arc<entry::ServiceEntry>>,
    /// The one MeshConfig.
    pub mesh: Option<Arc<settings::MeshSettings>>,
    /// Policies that could not be read.
    pub refused: Vec<Arc<RefusedPolicy>>,
}

impl Objects {
    /// Adds an object; an object of the same kind and name is replaced.
    pub fn insert(&mut self, object: Object) {
        let name = object.name();
        match object {
            Object::Namespace(object) => drop(self.namespaces.insert(name.name, object)),
            Object::Node(object) => drop(self.nodes.insert(name.name, object)),
            Object::Pod(object) => drop(self.pods.insert(name, object)),
            Object::Service(object) => drop(self.services.insert(name, object)),
            Object::EndpointSlice(object) => drop(self.slices.insert(name, object)),
            Object::ServiceRange(object) => drop(self.service_ranges.insert(name.name, object)),
            Object::AuthorizationPolicy(object) => drop(self.policies.insert(name, object)),
            Object::PeerAuthentication(object) => drop(self.peers.insert(name, object)),
            Object::WorkloadEntry(object) => drop(self.workload_entries.insert(name, object)),
            Object::ServiceEntry(object) => drop(self.service_entries.insert(name, object)),
            Object::MeshConfig(object) => self.mesh = Some(object),
            Object::Refused(object) => self.refused.push(object),
        }
    }
}
