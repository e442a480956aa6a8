//! What an API server has said, object by object, read and judged. A function of the objects alone: two replicas that
//! have seen the same objects hold the same state, so an object's earlier form is never kept. A policy that is refused
//! denies what it selects; another object that is refused is left out.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;
use serde_json::Value;
use tokio::sync::watch;

use super::kinds::{KINDS, Kind};
use crate::{
    objects::{Object, metadata::Name},
    source::{
        folder::{Desired, FileReport, FileState},
        problem::{Position, Problem},
    },
};

/// One object as it was last seen.
#[derive(Clone, Debug)]
pub struct Seen {
    /// What it says; nothing when it is refused and no policy.
    pub object: Option<Object>,
    /// Why it is refused.
    pub problems: Vec<Problem>,
    /// Fields that only a newer Kubernetes knows.
    pub unknown: Vec<Problem>,
    /// What is needed to write to it; only for those that are written to.
    pub handle: Option<Box<Handle>>,
}

/// What is needed to tell an object's author of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Handle {
    /// API version it was read in.
    pub api_version: String,
    /// `metadata.uid`
    pub uid: String,
    /// `metadata.resourceVersion`
    pub resource_version: String,
    /// `metadata.generation`
    pub generation: i64,
    /// `status.conditions` as they are.
    pub conditions: Vec<Value>,
    /// See [`super::kinds::Served`].
    pub has_shared_conditions: bool,
}

/// How far a kind is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state", content = "reason")]
pub enum Availability {
    /// Never listed.
    #[default]
    Unlisted,
    /// Listed and watched.
    Watched,
    /// The API server does not have the kind.
    Missing,
    /// What was seen last stays in force until the API server answers again.
    Failing(String),
}

/// One kind in the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KindReport {
    /// Kind and group, as `AuthorizationPolicy.security.istio.io`.
    pub kind: String,
    /// How far it is known.
    #[serde(flatten)]
    pub availability: Availability,
    /// Number of objects.
    pub objects: usize,
}

#[derive(Debug, Default)]
struct Shelf {
    objects: BTreeMap<Name, Seen>,
    availability: Availability,
    is_known: bool,
}

/// What is known of all kinds.
#[derive(Debug, Default)]
pub struct Store {
    shelves: Mutex<[Shelf; KINDS.len()]>,
    changes: watch::Sender<u64>,
}

impl Store {
    /// Becomes changed whenever something did.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Puts or replaces one object.
    pub fn put(&self, kind: &Kind, name: Name, seen: Seen) {
        self.change(kind, |shelf| drop(shelf.objects.insert(name, seen)));
    }

    /// Removes one object.
    pub fn remove(&self, kind: &Kind, name: &Name) {
        self.change(kind, |shelf| drop(shelf.objects.remove(name)));
    }

    /// Replaces all objects of a kind by those of a complete list.
    pub fn replace(&self, kind: &Kind, objects: BTreeMap<Name, Seen>) {
        self.change(kind, |shelf| *shelf = Shelf { objects, availability: Availability::Watched, is_known: true });
    }

    /// The API server does not have the kind, so there are no objects of it.
    pub fn missing(&self, kind: &Kind) -> bool {
        self.set(kind, Availability::Missing)
    }

    /// The kind cannot be listed or watched; what was seen stays. True when that is new.
    pub fn failing(&self, kind: &Kind, reason: String) -> bool {
        self.set(kind, Availability::Failing(reason))
    }

    /// The kind is watched again, from where it was.
    pub fn watched(&self, kind: &Kind) -> bool {
        self.set(kind, Availability::Watched)
    }

    /// True from a failure until the kind is watched again.
    pub fn is_failing(&self, kind: &Kind) -> bool {
        let shelf = &self.lock()[index(kind)];
        // A kind that was never listed is not watched just because nothing fails.
        shelf.is_known && matches!(shelf.availability, Availability::Failing(_))
    }

    fn set(&self, kind: &Kind, availability: Availability) -> bool {
        let is_new = self.lock()[index(kind)].availability != availability;
        if is_new {
            self.change(kind, |shelf| {
                if availability == Availability::Missing {
                    *shelf = Shelf { is_known: true, ..Shelf::default() };
                }
                shelf.availability = availability;
            });
        }
        is_new
    }

    fn change(&self, kind: &Kind, change: impl FnOnce(&mut Shelf)) {
        change(&mut self.lock()[index(kind)]);
        self.changes.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> MutexGuard<'_, [Shelf; KINDS.len()]> {
        self.shelves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True once every kind was listed, or is known to be missing: before that a state would lack what it must not.
    pub fn is_complete(&self) -> bool {
        self.lock().iter().all(|shelf| shelf.is_known)
    }

    /// True when this very pod is there and has not run to its end.
    pub fn has_pod(&self, name: &Name, uid: &str) -> bool {
        let shelves = self.lock();
        let pods = KINDS.iter().position(|kind| kind.name == "Pod").and_then(|index| shelves.get(index));
        match pods.and_then(|shelf| shelf.objects.get(name)).and_then(|seen| seen.object.as_ref()) {
            Some(Object::Pod(pod)) => pod.metadata.uid == uid && !pod.is_finished,
            _ => false,
        }
    }

    /// How far each kind is known.
    pub fn kinds(&self) -> Vec<KindReport> {
        let shelves = self.lock();
        let report = |(kind, shelf): (&Kind, &Shelf)| KindReport {
            kind: kind.to_string(),
            availability: shelf.availability.clone(),
            objects: shelf.objects.len(),
        };
        KINDS.iter().zip(shelves.iter()).map(report).collect()
    }

    /// The state and what is wrong with it. O(objects).
    pub fn desired(&self) -> Desired {
        let mut desired = Desired::default();
        for (kind, shelf) in KINDS.iter().zip(self.lock().iter()) {
            let mut unknown: BTreeMap<String, Problem> = BTreeMap::new();
            for (name, seen) in &shelf.objects {
                let mut problems = seen.problems.clone();
                match &seen.object {
                    Some(Object::MeshConfig(_)) if desired.objects.mesh.is_some() => problems.push(second(kind)),
                    Some(object) => desired.objects.insert(object.clone()),
                    None => {}
                }
                if !problems.is_empty() {
                    desired.reports.push(report(format!("{} {name}", kind.name), problems, Vec::new()));
                }
                for problem in &seen.unknown {
                    unknown.entry(without_indices(&problem.field)).or_insert_with(|| first(problem, name));
                }
            }
            if !unknown.is_empty() {
                desired.reports.push(report(kind.name.to_owned(), Vec::new(), unknown.into_values().collect()));
            }
        }
        desired
    }

    /// Every object whose author is to be told of it.
    pub fn told(&self) -> Vec<(&'static Kind, Name, Seen)> {
        let shelves = self.lock();
        let told = KINDS.iter().zip(shelves.iter()).flat_map(|(kind, shelf)| {
            let with_handle = shelf.objects.iter().filter(|(_, seen)| seen.handle.is_some());
            with_handle.map(move |(name, seen)| (kind, name.clone(), seen.clone()))
        });
        told.collect()
    }
}

fn report(file: String, problems: Vec<Problem>, ignored: Vec<Problem>) -> FileReport {
    let state = if problems.is_empty() { FileState::InForce } else { FileState::NeverGood };
    FileReport { file, state, problems, ignored }
}

/// A field that a newer Kubernetes writes into every object is told once.
fn first(problem: &Problem, name: &Name) -> Problem {
    let reason = format!("{}; {name} is the first that has it", problem.reason);
    Problem { reason, ..problem.clone() }
}

/// `spec.containers[3].x` as `spec.containers[].x`.
fn without_indices(field: &str) -> String {
    field.chars().filter(|character| !character.is_ascii_digit()).collect()
}

fn second(kind: &Kind) -> Problem {
    let reason = format!("another {} comes first by name; only one is read", kind.name);
    Problem { at: Position::default(), field: "metadata.name".to_owned(), reason }
}

fn index(kind: &Kind) -> usize {
    KINDS.iter().position(|known| known == kind).expect("only kinds of the table are watched")
}

impl std::fmt::Display for Kind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name)?;
        if self.group.is_empty() { Ok(()) } else { write!(formatter, ".{}", self.group) }
    }
}
