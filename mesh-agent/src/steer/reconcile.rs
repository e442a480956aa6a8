//! Writes what was compiled into the kernel on every change, and ends direct connections that are no longer allowed to be
//! direct.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use mesh_common::abi::{Endpoint, PolicyValue};
use tokio::sync::watch;

use crate::{
    enrol::SharedPods,
    kernel::{Direction, FlowFlags, FlowRow, Kernel, KernelError, PodId, diag},
    view::SharedView,
};

use super::{Classes, Compiled, SharedClasses, compile, look_up};

/// The actor; [`Steering::run`] it on the control thread.
#[derive(Debug)]
pub struct Steering {
    kernel: Arc<Kernel>,
    view: SharedView,
    pods: SharedPods,
    view_changes: watch::Receiver<u64>,
    pod_changes: watch::Receiver<u64>,
    classes: Classes,
    shared: SharedClasses,
    slots: usize,
}

impl Steering {
    /// `shared` holds the classes of pods that the kernel has from before a restart; it is kept current. `slots`: how many
    /// service slots the kernel holds.
    pub fn new(
        kernel: Arc<Kernel>,
        (view, view_changes): (SharedView, watch::Receiver<u64>),
        (pods, pod_changes): (SharedPods, watch::Receiver<u64>),
        shared: SharedClasses,
        slots: usize,
    ) -> Self {
        let last = shared.load().values().copied().max().unwrap_or_default();
        Self { kernel, view, pods, view_changes, pod_changes, classes: Classes::after(last), shared, slots }
    }

    /// Runs until what feeds it has gone.
    pub async fn run(mut self) {
        loop {
            self.view_changes.borrow_and_update();
            self.pod_changes.borrow_and_update();
            if let Err(error) = self.reconcile() {
                tracing::error!(error = crate::control::causes(&error), "steering was not brought up to date");
            }
            let changed = tokio::select! {
                changed = self.view_changes.changed() => changed,
                changed = self.pod_changes.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
        }
    }

    /// Tables before classes: a pod whose class has no entries yet asks the agent, and so does one whose entries have gone.
    fn reconcile(&mut self) -> Result<(), KernelError> {
        let Some(view) = self.view.load_full() else { return Ok(()) };
        let compiled = compile(&view, &self.pods.load(), &mut self.classes, self.slots);
        let report = self.kernel.apply_steering(&compiled.tables)?;
        tracing::debug!(
            generation = view.generation,
            written = report.written,
            removed = report.removed,
            failed = report.failed,
            "steering applied"
        );
        self.set_classes(&compiled);
        self.end_flows(&compiled)
    }

    /// A pod that the View does not confirm any more gets class 0: all asks the agent.
    fn set_classes(&mut self, compiled: &Compiled) {
        let old = self.shared.load_full();
        let new: HashMap<u32, u32> = compiled.members.iter().map(|member| (member.pod.id, member.class)).collect();
        self.shared.store(Arc::new(new.clone()));
        for pod in self.pods.load().by_uid.values() {
            let class = new.get(&pod.id).copied().unwrap_or_default();
            if old.get(&pod.id).copied().unwrap_or_default() != class
                && let Err(error) = self.kernel.set_class(PodId(pod.id), class)
            {
                // It is being enrolled or withdrawn; both end with a change, which tries again.
                tracing::debug!(uid = &*pod.uid, %error, "class of a pod was not set");
                self.forget(pod.id);
            }
        }
        let used: BTreeSet<u32> = compiled.members.iter().map(|member| member.class).collect();
        self.classes.keep(&used);
    }

    fn forget(&self, pod: u32) {
        let mut classes = HashMap::clone(&self.shared.load());
        classes.remove(&pod);
        self.shared.store(Arc::new(classes));
    }

    fn end_flows(&self, compiled: &Compiled) -> Result<(), KernelError> {
        let rows = self.kernel.flows()?;
        let condemned = condemned(compiled, &rows);
        if condemned.is_empty() {
            return Ok(());
        }
        let pods = self.pods.load();
        for pod in pods.by_uid.values() {
            let cookies: HashSet<u64> =
                condemned.iter().filter(|row| row.flow.pod == pod.id).map(|row| row.socket).collect();
            if cookies.is_empty() {
                continue;
            }
            for socket in diag::sockets(&pod.network_namespace)? {
                if cookies.contains(&socket.cookie) && diag::destroy(&pod.network_namespace, &socket)? {
                    tracing::info!(uid = &*pod.uid, local = %socket.local, remote = %socket.remote, "direct connection ended by policy");
                }
            }
        }
        Ok(())
    }
}

/// The ends of direct connections whose pair is not direct any more. Ends of which one pod is not known (it was withdrawn)
/// are condemned too: nobody vouches for them.
fn condemned<'a>(compiled: &Compiled, rows: &'a [FlowRow]) -> Vec<&'a FlowRow> {
    let by_id: HashMap<u32, u32> = compiled.members.iter().map(|member| (member.pod.id, member.class)).collect();
    let by_address: HashMap<IpAddr, u32> = compiled
        .members
        .iter()
        .flat_map(|member| member.pod.addresses.iter().map(|address| (*address, member.class)))
        .collect();
    let is_condemned = |row: &&FlowRow| {
        if !row.flow.flags().has(FlowFlags::DIRECT) {
            return false;
        }
        let (Some(local), Some(remote)) = (row.flow.local.address(), row.flow.remote.address()) else { return true };
        let (Some(own), Some(other)) = (by_id.get(&row.flow.pod), by_address.get(&remote.ip())) else { return true };
        let verdict = match row.flow.direction() {
            Direction::Outbound => look_up(&compiled.tables.policy, *own, *other, remote.port()),
            Direction::Inbound => look_up(&compiled.tables.policy, *other, *own, local.port()),
        };
        verdict != Some(PolicyValue::Direct)
    };
    at_their_destination(rows.iter().filter(is_condemned).collect())
}

/// Of connections whose both ends are condemned the destination's alone: destroyed there, the caller sees a reset, as from
/// any server; destroyed at its own end it would see ECONNABORTED.
fn at_their_destination(rows: Vec<&FlowRow>) -> Vec<&FlowRow> {
    let is_inbound = |row: &FlowRow| row.flow.direction() == Direction::Inbound;
    let ended: HashSet<(Endpoint, Endpoint)> =
        rows.iter().filter(|row| is_inbound(row)).map(|row| (row.flow.remote, row.flow.local)).collect();
    let is_needed = |row: &&FlowRow| is_inbound(row) || !ended.contains(&(row.flow.local, row.flow.remote));
    rows.into_iter().filter(is_needed).collect()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use mesh_common::abi::Flow;

    use super::*;

    fn row(direction: Direction, socket: u64, local: &str, remote: &str) -> FlowRow {
        let at = |text: &str| Endpoint::from(text.parse::<SocketAddr>().unwrap());
        let mut flow = Flow::new(direction, 1, 0, at(local), at(remote));
        flow.add(FlowFlags::DIRECT);
        FlowRow { socket, flow }
    }

    #[test]
    fn a_connection_is_ended_at_its_destination_if_that_end_is_here() {
        let (client, server) = ("10.1.0.1:40000", "10.1.0.2:80");
        let rows = [
            row(Direction::Outbound, 1, client, server),
            row(Direction::Inbound, 2, server, client),
            row(Direction::Outbound, 3, "10.1.0.1:40001", server),
        ];
        // Nothing is compiled: nobody vouches for any of them.
        let condemned: Vec<u64> = condemned(&Compiled::default(), &rows).iter().map(|row| row.socket).collect();
        assert_eq!(condemned, [2, 3]);
    }
}
