//! Ends direct connections that are no longer allowed to be direct. Never one that the agent carries: the path judges those
//! again itself.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_common::abi::{Endpoint, PolicyValue};

use crate::{
    enrol::{Pod, PodTable, SharedPods},
    kernel::{Direction, FlowFlags, FlowRow, Kernel, KernelError, diag, look_up},
};

use super::{Compiled, reconcile::SteeringError};

/// What policy denies is closed within a second.
const LOOK: Duration = Duration::from_secs(1);

/// How long a handshake can be under way: five retransmissions of the answer to its SYN, and the wait after the last. Source:
/// Linux, Documentation/networking/ip-sysctl.rst (tcp_synack_retries).
pub(super) const HANDSHAKE: Duration = Duration::from_secs(64);

/// Looks again once a second until `until`: a handshake whose SYN passed before POLICY changed ends when it will, and is not in
/// FLOWS before. Returns when that failed.
pub(super) async fn end_late(kernel: &Kernel, pods: &SharedPods, compiled: &Compiled, until: Instant) {
    while Instant::now() < until {
        tokio::time::sleep(LOOK).await;
        if end(kernel, &pods.load(), compiled).is_err() {
            return;
        }
    }
    std::future::pending().await
}

/// Ends all that may not be direct. Where one pod's sockets cannot be ended the others' are all the same, and the far ends of
/// its connections.
///
/// # Errors
/// Some could not be ended: in the first pod that is named, because of the error that is given.
pub(super) fn end(kernel: &Kernel, pods: &PodTable, compiled: &Compiled) -> Result<(), SteeringError> {
    end_with(&kernel.flows()?, pods, compiled, end_in)
}

fn end_with(
    rows: &[FlowRow],
    pods: &PodTable,
    compiled: &Compiled,
    mut end_in: impl FnMut(&Pod, &HashSet<u64>) -> Result<(), KernelError>,
) -> Result<(), SteeringError> {
    let condemned = condemned(compiled, pods, rows);
    // Nothing is ended in a pod that was withdrawn, or that could not be taken up again.
    let known: HashSet<u32> = pods.by_uid.values().map(|pod| pod.id).collect();
    let mut unreachable: HashSet<u32> =
        condemned.iter().map(|row| row.flow.pod).filter(|pod| !known.contains(pod)).collect();
    let mut failed = BTreeMap::new();
    let mut end_all = |rows: &[&FlowRow], failed: &mut BTreeMap<u32, (Arc<str>, KernelError)>| {
        for pod in pods.by_uid.values() {
            let own = rows.iter().filter(|row| row.flow.pod == pod.id);
            let cookies: HashSet<u64> = own.map(|row| row.socket).collect();
            if cookies.is_empty() {
                continue;
            }
            if let Err(error) = end_in(pod, &cookies) {
                failed.insert(pod.id, (pod.uid.clone(), error));
            }
        }
    };
    end_all(&at_their_destination(&condemned, &unreachable), &mut failed);
    if failed.is_empty() {
        return Ok(());
    }
    // Where the destination's end stays the caller's goes.
    unreachable.extend(failed.keys());
    let far: Vec<&FlowRow> = at_their_destination(&condemned, &unreachable)
        .into_iter()
        .filter(|row| row.flow.direction() == Direction::Outbound && !unreachable.contains(&row.flow.pod))
        .collect();
    end_all(&far, &mut failed);
    let pods = failed.len();
    match failed.into_values().next() {
        Some((uid, source)) => Err(SteeringError::Flows { pods, uid, source }),
        None => Ok(()),
    }
}

/// Ends these sockets of a pod; one that cannot be ended does not keep the others.
fn end_in(pod: &Pod, cookies: &HashSet<u64>) -> Result<(), KernelError> {
    let mut result = Ok(());
    for socket in diag::sockets(&pod.network_namespace)?.iter().filter(|socket| cookies.contains(&socket.cookie)) {
        match diag::destroy(&pod.network_namespace, socket) {
            Ok(true) => {
                let (local, remote) = (socket.local, socket.remote);
                tracing::info!(uid = &*pod.uid, %local, %remote, "direct connection ended by policy");
            }
            Ok(false) => {}
            Err(error) => result = Err(error),
        }
    }
    result
}

/// The ends of direct connections whose pair is not direct any more. Ends of which one pod is not known (it was withdrawn)
/// are condemned too: nobody vouches for them, unless the agent has restarted with a View that may be too old to know the pod.
fn condemned<'a>(compiled: &Compiled, pods: &PodTable, rows: &'a [FlowRow]) -> Vec<&'a FlowRow> {
    let by_id: HashMap<u32, u32> = compiled.members.iter().map(|member| (member.pod.id, member.class)).collect();
    let class_at = |address: IpAddr| by_id.get(&pods.by_address.get(&address)?.id);
    let is_condemned = |row: &&FlowRow| {
        if !row.flow.flags().has(FlowFlags::DIRECT) {
            return false;
        }
        let (Some(local), Some(remote)) = (row.flow.local.address(), row.flow.remote.address()) else { return true };
        let (Some(own), Some(other)) = (by_id.get(&row.flow.pod), class_at(remote.ip())) else {
            return !compiled.is_from_disk;
        };
        let verdict = match row.flow.direction() {
            Direction::Outbound => look_up(&compiled.tables.policy, *own, *other, remote.port()),
            Direction::Inbound => look_up(&compiled.tables.policy, *other, *own, local.port()),
        };
        verdict != Some(PolicyValue::Direct)
    };
    rows.iter().filter(is_condemned).collect()
}

/// Of connections whose both ends are condemned the destination's alone: destroyed there, the caller sees a reset, as from
/// any server; destroyed at its own end it would see ECONNABORTED. Destinations in pods where nothing can be ended do not count.
fn at_their_destination<'a>(rows: &[&'a FlowRow], unreachable: &HashSet<u32>) -> Vec<&'a FlowRow> {
    let is_inbound = |row: &FlowRow| row.flow.direction() == Direction::Inbound;
    let reached = rows.iter().filter(|row| is_inbound(row) && !unreachable.contains(&row.flow.pod));
    let ended: HashSet<(Endpoint, Endpoint)> = reached.map(|row| (row.flow.remote, row.flow.local)).collect();
    let is_needed = |row: &&&FlowRow| is_inbound(row) || !ended.contains(&(row.flow.local, row.flow.remote));
    rows.iter().filter(is_needed).copied().collect()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use mesh_common::abi::Flow;

    use super::*;
    use crate::proving;

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
        let condemned = condemned(&Compiled::default(), &PodTable::default(), &rows);
        let ended = at_their_destination(&condemned, &HashSet::new());
        assert_eq!(ended.iter().map(|row| row.socket).collect::<Vec<_>>(), [2, 3]);
    }

    /// Connections from pod 1 to pods 2 and 3, of which these are known, and what is ended when sockets of those cannot be
    /// ended.
    fn ended(known: &[u32], unreachable: &[u32]) -> (BTreeMap<u32, HashSet<u64>>, Result<(), SteeringError>) {
        let of = |pod: u32, mut row: FlowRow| {
            row.flow.pod = pod;
            row
        };
        let rows = [
            of(1, row(Direction::Outbound, 11, "10.1.0.1:40000", "10.1.0.2:80")),
            of(2, row(Direction::Inbound, 12, "10.1.0.2:80", "10.1.0.1:40000")),
            of(1, row(Direction::Outbound, 21, "10.1.0.1:40001", "10.1.0.3:80")),
            of(3, row(Direction::Inbound, 23, "10.1.0.3:80", "10.1.0.1:40001")),
        ];
        let pod = |id: &u32| proving::pod(*id, &format!("pod-{id}"), IpAddr::from([10, 1, 0, *id as u8]));
        let pods: Vec<_> = known.iter().map(pod).collect();
        let mut ended: BTreeMap<u32, HashSet<u64>> = BTreeMap::new();
        let result = end_with(&rows, &proving::table(&pods), &Compiled::default(), |pod, cookies| {
            if unreachable.contains(&pod.id) {
                return Err(KernelError::UnknownPod { pod: pod.id });
            }
            ended.entry(pod.id).or_default().extend(cookies);
            Ok(())
        });
        (ended, result)
    }

    #[test]
    fn a_view_from_disk_does_not_end_connections_of_pods_that_it_does_not_know() {
        let rows = [row(Direction::Outbound, 1, "10.1.0.1:40000", "10.1.0.2:80")];
        let of = |is_from_disk| {
            let compiled = Compiled { is_from_disk, ..Compiled::default() };
            condemned(&compiled, &PodTable::default(), &rows).len()
        };
        assert_eq!((of(true), of(false)), (0, 1));
    }

    #[test]
    fn a_pod_whose_sockets_cannot_be_ended_keeps_no_other_connection_open() {
        let (all, result) = ended(&[1, 2, 3], &[]);
        assert_eq!(all, BTreeMap::from([(2, HashSet::from([12])), (3, HashSet::from([23]))]));
        assert!(result.is_ok());
        let (others, result) = ended(&[1, 2, 3], &[2]);
        assert_eq!(others, BTreeMap::from([(1, HashSet::from([11])), (3, HashSet::from([23]))]));
        assert!(matches!(result, Err(SteeringError::Flows { pods: 1, uid, .. }) if &*uid == "uid-pod-2"));
        let (others, result) = ended(&[1, 2, 3], &[1, 2, 3]);
        assert_eq!(others, BTreeMap::new());
        assert!(matches!(result, Err(SteeringError::Flows { pods: 3, .. })));
    }

    #[test]
    fn what_is_left_of_a_withdrawn_pod_does_not_keep_its_callers_connected() {
        let (others, result) = ended(&[1, 3], &[]);
        assert_eq!(others, BTreeMap::from([(1, HashSet::from([11])), (3, HashSet::from([23]))]));
        assert!(result.is_ok());
        // Nor do one that is not known and one that cannot be reached together.
        let (others, _) = ended(&[1, 3], &[3]);
        assert_eq!(others, BTreeMap::from([(1, HashSet::from([11, 21]))]));
    }
}
