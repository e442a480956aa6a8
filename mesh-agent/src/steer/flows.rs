//! Ends direct connections that are no longer allowed to be direct. Never one that the agent carries: the path judges those
//! again itself.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use mesh_common::abi::{Endpoint, Flow, PolicyValue};

use crate::{
    enrol::{Pod, PodTable, SharedPods},
    kernel::{Direction, FlowFlags, FlowRow, Kernel, KernelError, diag, look_up},
};

use super::{Compiled, reconcile::SteeringError, witness};

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

/// Both addresses of a socket, its own first.
type Ends = (Endpoint, Endpoint);

/// Ends all that may not be direct. Where one pod's sockets cannot be ended the others' are all the same, and the far ends of
/// its connections.
///
/// # Errors
/// Some could not be ended: in the first pod that is named, because of the error that is given.
pub(super) fn end(kernel: &Kernel, pods: &PodTable, compiled: &Compiled) -> Result<(), SteeringError> {
    end_with(&kernel.flows()?, pods, compiled, end_in)
}

/// At the destination first: destroyed there, the caller sees a reset, as from any server; destroyed at its own end it would
/// see ECONNABORTED. That is for connections whose destination's end could not be ended.
fn end_with(
    rows: &[FlowRow],
    pods: &PodTable,
    compiled: &Compiled,
    mut end_in: impl FnMut(&Pod, &HashSet<Ends>) -> Result<HashSet<Ends>, KernelError>,
) -> Result<(), SteeringError> {
    let condemned = condemned(compiled, pods, rows);
    let mut ended = HashSet::new();
    let mut failed = BTreeMap::new();
    for direction in [Direction::Inbound, Direction::Outbound] {
        // Nothing is ended in a pod that was withdrawn, or that could not be taken up again.
        for pod in pods.by_uid.values() {
            let own = condemned.iter().filter(|flow| flow.pod == pod.id && flow.direction() == direction);
            let left =
                own.map(|flow| (flow.local, flow.remote)).filter(|(local, remote)| !ended.contains(&(*remote, *local)));
            let left: HashSet<Ends> = left.collect();
            if left.is_empty() || failed.contains_key(&pod.id) {
                continue;
            }
            match end_in(pod, &left) {
                Ok(gone) => ended.extend(gone),
                Err(error) => drop(failed.insert(pod.id, (pod.uid.clone(), error))),
            }
        }
    }
    let pods = failed.len();
    match failed.into_values().next() {
        Some((uid, source)) => Err(SteeringError::Flows { pods, uid, source }),
        None => Ok(()),
    }
}

/// Ends these sockets of a pod; one that cannot be ended does not keep the others. Those that are gone by it.
fn end_in(pod: &Pod, condemned: &HashSet<Ends>) -> Result<HashSet<Ends>, KernelError> {
    let mut ended = HashSet::new();
    let mut failure = None;
    for socket in diag::sockets(&pod.network_namespace)? {
        let ends = (Endpoint::from(socket.local), Endpoint::from(socket.remote));
        if !condemned.contains(&ends) {
            continue;
        }
        match diag::destroy(&pod.network_namespace, &socket) {
            Ok(true) => {
                let (local, remote) = (socket.local, socket.remote);
                tracing::info!(uid = &*pod.uid, %local, %remote, "direct connection ended by policy");
                ended.insert(ends);
            }
            Ok(false) => {}
            Err(error) => failure = Some(error),
        }
    }
    failure.map_or(Ok(ended), Err)
}

/// The ends of direct connections whose pair is not direct any more. Ends of which one pod is not known (it was withdrawn)
/// are condemned too: nobody vouches for them, unless the agent has restarted with a View that may be too old to know the pod.
fn condemned(compiled: &Compiled, pods: &PodTable, rows: &[FlowRow]) -> Vec<Flow> {
    let by_id: HashMap<u32, u32> = compiled.members.iter().map(|member| (member.pod.id, member.class)).collect();
    let class_at = |address: IpAddr| by_id.get(&pods.by_address.get(&address)?.id);
    let is_condemned = |flow: &Flow| {
        let (Some(local), Some(remote)) = (flow.local.address(), flow.remote.address()) else { return true };
        let (Some(own), Some(other)) = (by_id.get(&flow.pod), class_at(remote.ip())) else {
            return !compiled.is_from_disk;
        };
        let verdict = match flow.direction() {
            Direction::Outbound => look_up(&compiled.tables.policy, *own, *other, remote.port()),
            Direction::Inbound => look_up(&compiled.tables.policy, *other, *own, local.port()),
        };
        verdict != Some(PolicyValue::Direct)
    };
    let both = |row: &FlowRow| [Some(row.flow), witness::far_end(pods, &row.flow)].into_iter().flatten();
    let direct = rows.iter().filter(|row| row.flow.flags().has(FlowFlags::DIRECT));
    direct.flat_map(both).filter(is_condemned).collect()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::proving;

    fn at(text: &str) -> Endpoint {
        Endpoint::from(text.parse::<SocketAddr>().unwrap())
    }

    /// Dialled by pod 1.
    fn row(local: &str, remote: &str) -> FlowRow {
        let mut flow = Flow::new(Direction::Outbound, 1, 0, at(local), at(remote));
        flow.add(FlowFlags::DIRECT);
        FlowRow { socket: 1, flow }
    }

    /// Connections from pod 1 to pods 2 and 3, of which these are known, and the addresses at which sockets are ended when
    /// those of some pods cannot be, and pods without a socket have none. Nothing is compiled: nobody vouches for any of them.
    fn ended(known: &[u32], unreachable: &[u32], without: &[u32]) -> (Vec<(u32, String)>, Result<(), SteeringError>) {
        let rows = [row("10.1.0.1:40000", "10.1.0.2:80"), row("10.1.0.1:40001", "10.1.0.3:80")];
        let pod = |id: &u32| proving::pod(*id, &format!("pod-{id}"), IpAddr::from([10, 1, 0, *id as u8]));
        let pods: Vec<_> = known.iter().map(pod).collect();
        let mut ended = Vec::new();
        let result = end_with(&rows, &proving::table(&pods), &Compiled::default(), |pod, ends| {
            if unreachable.contains(&pod.id) {
                return Err(KernelError::UnknownPod { pod: pod.id });
            }
            if without.contains(&pod.id) {
                return Ok(HashSet::new());
            }
            ended.extend(ends.iter().map(|(local, _)| (pod.id, local.address().unwrap().to_string())));
            Ok(ends.clone())
        });
        ended.sort();
        (ended, result)
    }

    fn ends(of: &[(u32, &str)]) -> Vec<(u32, String)> {
        of.iter().map(|(pod, local)| (*pod, (*local).to_owned())).collect()
    }

    const FIRST: (u32, &str) = (1, "10.1.0.1:40000");
    const SECOND: (u32, &str) = (1, "10.1.0.1:40001");
    const AT_TWO: (u32, &str) = (2, "10.1.0.2:80");
    const AT_THREE: (u32, &str) = (3, "10.1.0.3:80");

    #[test]
    fn a_connection_is_ended_at_its_destination_if_that_end_is_here() {
        assert_eq!(ended(&[1, 2, 3], &[], &[]).0, ends(&[AT_TWO, AT_THREE]));
        assert_eq!(
            ended(&[1, 2, 3], &[], &[2]).0,
            ends(&[FIRST, AT_THREE]),
            "the server has closed, the client has not"
        );
    }

    #[test]
    fn a_view_from_disk_does_not_end_connections_of_pods_that_it_does_not_know() {
        let rows = [row("10.1.0.1:40000", "10.1.0.2:80")];
        let of = |is_from_disk| {
            let compiled = Compiled { is_from_disk, ..Compiled::default() };
            condemned(&compiled, &PodTable::default(), &rows).len()
        };
        assert_eq!((of(true), of(false)), (0, 1));
    }

    #[test]
    fn a_pod_whose_sockets_cannot_be_ended_keeps_no_other_connection_open() {
        let (all, result) = ended(&[1, 2, 3], &[], &[]);
        assert_eq!(all, ends(&[AT_TWO, AT_THREE]));
        assert!(result.is_ok());
        let (others, result) = ended(&[1, 2, 3], &[2], &[]);
        assert_eq!(others, ends(&[FIRST, AT_THREE]));
        assert!(matches!(result, Err(SteeringError::Flows { pods: 1, uid, .. }) if &*uid == "uid-pod-2"));
        let (others, result) = ended(&[1, 2, 3], &[1, 2, 3], &[]);
        assert_eq!(others, []);
        assert!(matches!(result, Err(SteeringError::Flows { pods: 3, .. })));
    }

    #[test]
    fn what_is_left_of_a_withdrawn_pod_does_not_keep_its_callers_connected() {
        let (others, result) = ended(&[1, 3], &[], &[]);
        assert_eq!(others, ends(&[FIRST, AT_THREE]));
        assert!(result.is_ok());
        // Nor do one that is not known and one that cannot be reached together.
        assert_eq!(ended(&[1, 3], &[3], &[]).0, ends(&[FIRST, SECOND]));
        // Nor a caller that is not known its destination.
        assert_eq!(ended(&[2, 3], &[], &[]).0, ends(&[AT_TWO, AT_THREE]));
    }
}
