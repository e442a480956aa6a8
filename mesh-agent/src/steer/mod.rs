//! What the kernel may decide alone: compiled from the View and the enrolled pods by a pure function, written on every
//! change of either. Where the View's answer is not the same for all that the kernel can tell apart, the kernel has none
//! and asks the agent. Never decides more widely than `path::judge`.

mod classes;
mod closed;
mod flows;
mod policy;
mod reconcile;
mod records;
mod services;
#[cfg(test)]
mod tests;
pub(crate) mod witness;

pub use classes::{Classes, SharedClasses};
pub use reconcile::Steering;
pub use records::Records;

use std::sync::Arc;

use crate::{
    enrol::{Pod, PodTable},
    kernel::SteeringTables,
    view::{View, Workload},
};

/// A pod of this node that the View confirms.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) pod: Arc<Pod>,
    pub(crate) workload: Arc<Workload>,
    /// Its class; see [`Classes`].
    pub(crate) class: u32,
}

/// What is written to the kernel.
#[derive(Debug, Clone, Default)]
pub(crate) struct Compiled {
    pub(crate) members: Vec<Member>,
    pub(crate) tables: SteeringTables,
    /// The View is that of before a restart, and control has not said yet what has changed since: of a pod that it does not
    /// know nothing follows.
    pub(crate) is_from_disk: bool,
}

impl Compiled {
    /// Whether each pod is judged as by another, by numbers that are the same.
    fn judges_like(&self, other: &Self) -> bool {
        let classes = |of: &Self| of.members.iter().map(|member| (member.pod.id, member.class)).collect::<Vec<_>>();
        classes(self) == classes(other) && self.tables.policy == other.tables.policy
    }
}

/// Compiles all of it. `slots`: how many service slots the kernel can hold.
/// O(classes² × ports × rules + services × endpoints).
pub(crate) fn compile(view: &View, pods: &PodTable, classes: &mut Classes, slots: usize) -> Compiled {
    let confirmed = pods.by_uid.values().filter_map(|pod| Some((pod, pod.workload(view)?)));
    let mut members: Vec<Member> = confirmed
        .map(|(pod, workload)| Member {
            pod: pod.clone(),
            workload: workload.clone(),
            class: classes.class_of(workload),
        })
        .collect();
    members.sort_by_key(|member| member.pod.id);
    let tables = SteeringTables { policy: policy::compile(view, &members), services: services::compile(view, slots) };
    Compiled { members, tables, is_from_disk: false }
}
