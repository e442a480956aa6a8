//! `metadata` of every object: its name, labels, annotations and age. Knows no kind.

use std::collections::BTreeMap;

use super::fields::{Fields, Spot};
use crate::source::{
    document::{Node, Value},
    problem::Position,
};

/// Name of a namespaced object; `namespace` is empty for objects of the whole cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// Its namespace.
    pub namespace: String,
    /// Its own name.
    pub name: String,
}

impl Name {
    /// A name from its two parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Name {
        Name { namespace: namespace.into(), name: name.into() }
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}/{}", self.namespace, self.name)
    }
}

/// What the mesh reads of `metadata`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Namespace, empty for kinds that have none.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `uid`, which no other object has had; empty when it is not written.
    pub uid: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// `creationTimestamp` as written (RFC 3339 in UTC sorts by time); objects without one are the youngest.
    pub created: Option<String>,
    /// True when the object is being deleted.
    pub is_deleting: bool,
    /// Kind and name of the controller that made the object.
    pub owner: Option<(String, String)>,
    /// Where the object starts in its file.
    pub at: Position,
}

impl Metadata {
    /// Namespace and name.
    pub fn key(&self) -> Name {
        Name::new(&self.namespace, &self.name)
    }

    /// A label's value.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.get(name).map(String::as_str)
    }
}

/// Fields of Kubernetes' ObjectMeta that say nothing to the mesh.
const NOT_OURS: [&str; 7] = [
    "selfLink",
    "resourceVersion",
    "generation",
    "generateName",
    "managedFields",
    "finalizers",
    "deletionGracePeriodSeconds",
];

/// Reads `metadata`; `namespaced` says whether the kind lives in a namespace (then `default` is the default).
pub fn read(object: &mut Fields<'_>, namespaced: bool) -> Option<Metadata> {
    let problems = object.problems();
    let at = object.at();
    if !object.has("metadata") {
        problems.push(at, "metadata", "is required");
    }
    let mut fields = object.map("metadata")?;
    let name = fields.required_text("name").filter(|name| is_checked(name, is_subdomain, &fields));
    let namespace = match namespaced {
        true => fields.text("namespace"),
        false => {
            fields.refuse("namespace", "this kind has no namespace");
            None
        }
    };
    let namespace = namespace.filter(|namespace| is_checked(namespace, is_label, &fields));
    let namespace = match (namespaced, namespace) {
        (true, Some(namespace)) => namespace.value,
        (true, None) => "default".to_owned(),
        (false, _) => String::new(),
    };
    let metadata = Metadata {
        namespace,
        name: name.as_ref().map(|name| name.value.clone()).unwrap_or_default(),
        uid: fields.take("uid").map(uid).unwrap_or_default(),
        labels: fields.labels("labels"),
        annotations: fields.labels("annotations"),
        created: fields.text("creationTimestamp").map(|spot| spot.value),
        is_deleting: fields.text("deletionTimestamp").is_some(),
        owner: owner(&mut fields),
        at,
    };
    fields.accept(&NOT_OURS);
    fields.finish();
    name.is_some().then_some(metadata)
}

/// Only an API server's own word counts for anything, and that is a text.
fn uid(spot: Spot<&Node>) -> String {
    match &spot.value.value {
        Value::Text(text) => text.clone(),
        _ => String::new(),
    }
}

fn owner(fields: &mut Fields<'_>) -> Option<(String, String)> {
    let mut found = None;
    for mut reference in fields.maps("ownerReferences") {
        let kind = reference.required_text("kind");
        let name = reference.required_text("name");
        let is_controller = reference.boolean("controller").unwrap_or(false);
        reference.accept(&["apiVersion", "uid", "blockOwnerDeletion"]);
        reference.finish();
        if let (true, Some(kind), Some(name)) = (is_controller, kind, name) {
            found = Some((kind.value, name.value));
        }
    }
    found
}

fn is_checked(spot: &Spot<String>, check: fn(&str) -> bool, fields: &Fields<'_>) -> bool {
    let is_good = check(&spot.value);
    if !is_good {
        let reason = format!("{:?} is not a name: lower-case letters, digits, '-' (and '.' between parts)", spot.value);
        spot.refuse(fields.problems(), reason);
    }
    is_good
}

/// A DNS label (RFC 1123).
pub fn is_label(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(is_inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// DNS labels joined by dots (RFC 1123 subdomain), at most 253 bytes.
pub fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}
