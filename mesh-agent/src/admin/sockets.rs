//! Every connection of enrolled pods, one row per end on this node: those through the agent as the workers know them, the
//! others as the kernel does, joined with the kernel's own numbers and the process that holds the socket.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
};

use mesh_api::proto::admin::SocketRow;
use mesh_common::abi::{Endpoint, Flow};

use crate::{
    enrol::PodTable,
    kernel::{Direction, FlowFlags, FlowRow, KernelError, diag},
    path::{ConnectionSnapshot, origin::canonical},
    steer::witness,
    telemetry::{ConnectionRecord, Party},
};

use super::{Node, process};

/// Source: Linux, include/net/tcp_states.h.
const TCP_LISTEN: u8 = 10;

/// All rows, by pod, direction and age.
///
/// # Errors
/// The kernel lists no flows, or no sockets in a pod's namespace.
pub(super) async fn list(node: &Node) -> Result<Vec<SocketRow>, KernelError> {
    let mut snapshots = Vec::new();
    let mut records = node.telemetry.refused_by_kernel();
    for worker in node.workers.iter() {
        // One that has ended carries nothing.
        snapshots.extend(worker.connections().await.unwrap_or_default());
        records.extend(worker.refused().await.unwrap_or_default());
    }
    let pods = node.pods.load_full();
    let flows = node.kernel.flows()?;
    let kernel = KernelSide::read(&pods, &flows)?;
    let mut rows: Vec<SocketRow> = snapshots.iter().flat_map(|snapshot| proxied(snapshot, &pods, &kernel)).collect();
    rows.extend(direct(node, &pods, &flows, &kernel));
    rows.extend(older(node, &pods, &kernel));
    rows.extend(records.iter().map(refused));
    rows.sort_by(|one, other| {
        (&one.pod, &one.direction, other.age_ms, one.cookie).cmp(&(
            &other.pod,
            &other.direction,
            one.age_ms,
            other.cookie,
        ))
    });
    Ok(rows)
}

/// What the kernel says, by what rows are joined with.
struct KernelSide<'a> {
    sockets: HashMap<u32, HashMap<u64, diag::TcpSocket>>,
    processes: HashMap<u32, HashMap<u32, String>>,
    /// Ends through the agent: outbound by the client's own address; inbound by the real client's and the application's.
    outbound: HashMap<(u32, SocketAddr), &'a FlowRow>,
    inbound: HashMap<(u32, SocketAddr, SocketAddr), &'a FlowRow>,
    /// Connected sockets by pod and both addresses, their own first.
    connected: HashMap<(u32, Endpoint, Endpoint), u64>,
}

impl<'a> KernelSide<'a> {
    fn read(pods: &PodTable, flows: &'a [FlowRow]) -> Result<Self, KernelError> {
        let mut side = Self {
            sockets: HashMap::new(),
            processes: HashMap::new(),
            outbound: HashMap::new(),
            inbound: HashMap::new(),
            connected: HashMap::new(),
        };
        for pod in pods.by_uid.values() {
            let sockets = diag::sockets(&pod.network_namespace)?;
            let ends = |socket: &diag::TcpSocket| (pod.id, socket.local.into(), socket.remote.into());
            side.connected.extend(sockets.iter().map(|socket| (ends(socket), socket.cookie)));
            side.sockets.insert(pod.id, sockets.into_iter().map(|socket| (socket.cookie, socket)).collect());
            side.processes.insert(pod.id, process::holders(&pod.cgroup_path));
        }
        for row in flows.iter().filter(|row| row.flow.flags().has(FlowFlags::AGENT)) {
            let ends = (row.flow.local.address(), row.flow.original.address());
            match (row.flow.direction(), ends) {
                (Direction::Outbound, (Some(local), _)) => drop(side.outbound.insert((row.flow.pod, local), row)),
                (Direction::Inbound, (Some(local), Some(client))) => {
                    side.inbound.insert((row.flow.pod, client, local), row);
                }
                _ => {}
            }
        }
        Ok(side)
    }

    fn socket(&self, pod: u32, cookie: u64) -> Option<&diag::TcpSocket> {
        self.sockets.get(&pod)?.get(&cookie)
    }

    /// The end that was dialled of a direct connection, and its socket's cookie; none when that has closed.
    fn far_end(&self, pods: &PodTable, row: &FlowRow) -> Option<(Flow, u64)> {
        let far = witness::far_end(pods, &row.flow)?;
        let cookie = self.connected.get(&(far.pod, far.local, far.remote))?;
        Some((far, *cookie))
    }

    /// Cookie, process, round trip and retransmits of one end. The bytes stay the row's own: those of this socket count
    /// the same payload, but a moment later.
    fn join(&self, row: &mut SocketRow, pod: u32, cookie: u64) {
        row.cookie = cookie;
        let Some(socket) = self.socket(pod, cookie) else { return };
        row.rtt_us = socket.rtt_us;
        row.retransmits = socket.retransmits;
        let process = self.processes.get(&pod).and_then(|processes| processes.get(&socket.inode));
        row.process = process.cloned().unwrap_or_default();
    }
}

/// The end at whose listener it arrived, and the other one if the agent carried it within the node.
fn proxied(snapshot: &ConnectionSnapshot, pods: &PodTable, kernel: &KernelSide<'_>) -> Vec<SocketRow> {
    let ConnectionSnapshot { pod, record, .. } = snapshot;
    let (source, destination) = (record.source.address, record.destination.address);
    let mut own = row(record);
    let flow = match (record.direction, source, destination) {
        ("outbound", Some(source), _) => kernel.outbound.get(&(pod.id, source)),
        (_, Some(source), Some(destination)) => kernel.inbound.get(&(pod.id, source, destination)),
        _ => None,
    };
    if let Some(flow) = flow {
        kernel.join(&mut own, pod.id, flow.socket);
    }
    let mut rows = vec![own];
    if let ("outbound", "node_local" | "self", Some(source), Some(destination)) =
        (record.direction, record.path, source, destination)
        && let Some(other) = pods.by_address.get(&destination.ip())
    {
        let mut row = row(&ConnectionRecord { pod: other.full_name(), direction: "inbound", ..record.clone() });
        if let Some(flow) = kernel.inbound.get(&(other.id, source, destination)) {
            kernel.join(&mut row, other.id, flow.socket);
        }
        rows.push(row);
    }
    rows
}

fn direct(node: &Node, pods: &PodTable, flows: &[FlowRow], kernel: &KernelSide<'_>) -> Vec<SocketRow> {
    let view = node.view.load_full().unwrap_or_default();
    let now_ns = monotonic_ns();
    // Those from before enrolment are listed with the rest of their kind.
    let others = [FlowFlags::AGENT, FlowFlags::BEFORE_ENROLMENT];
    let without_agent = flows.iter().filter(|row| !others.iter().any(|other| row.flow.flags().has(*other)));
    // A far end that is listed itself was dialled before its pod's enrolment.
    let listed: HashSet<u64> = flows.iter().map(|row| row.socket).collect();
    let far_end = |row| kernel.far_end(pods, row).filter(|(_, cookie)| !listed.contains(cookie));
    let both = without_agent.flat_map(|row| [Some((row.flow, row.socket)), far_end(row)]).flatten();
    let told: Vec<_> =
        both.filter_map(|(flow, cookie)| Some((witness::tell(&view, pods, &flow, now_ns)?, cookie))).collect();
    let ends = |caller: u32, record: &ConnectionRecord| (caller, record.source.address, record.destination.address);
    let calls = told.iter().filter(|(witness, _)| witness.record.direction == "outbound");
    let calls: HashMap<_, _> =
        calls.map(|(witness, _)| (ends(witness.own.id, &witness.record), &witness.record)).collect();
    let rows = told.iter().map(|(witness, cookie)| {
        let mut row = row(&witness.record);
        // Only the caller's end knows what was dialled when that was a service.
        if let Some(caller) = &witness.other
            && let Some(call) = calls.get(&ends(caller.id, &witness.record))
        {
            let call = self::row(call);
            (row.original_destination, row.service) = (call.original_destination, call.service);
        }
        kernel.join(&mut row, witness.own.id, *cookie);
        if let Some(socket) = kernel.socket(witness.own.id, *cookie) {
            (row.bytes_sent, row.bytes_received) = (socket.bytes_sent, socket.bytes_received);
        }
        row
    });
    rows.collect()
}

fn older(node: &Node, pods: &PodTable, kernel: &KernelSide<'_>) -> Vec<SocketRow> {
    let all = node.older.load();
    let mut rows = Vec::new();
    for (uid, cookies) in all.iter() {
        let Some(pod) = pods.by_uid.get(uid) else { continue };
        let Some(sockets) = kernel.sockets.get(&pod.id) else { continue };
        let listening: HashSet<u16> =
            sockets.values().filter(|socket| socket.state == TCP_LISTEN).map(|socket| socket.local.port()).collect();
        for socket in cookies.iter().filter_map(|cookie| sockets.get(cookie)) {
            let mut row = SocketRow { pod: pod.full_name(), path: "before_enrolment".into(), ..SocketRow::default() };
            row.reason = "before_enrolment".into();
            row.connection_security_policy = "none".into();
            let is_inbound = listening.contains(&socket.local.port());
            // A server bound to both families has IPv4 addresses mapped.
            let (local, remote) = (canonical(socket.local), canonical(socket.remote));
            let (from, to) = if is_inbound { (remote, local) } else { (local, remote) };
            row.direction = if is_inbound { "inbound" } else { "outbound" }.into();
            (row.source, row.original_destination, row.endpoint) = (from.to_string(), to.to_string(), to.to_string());
            (row.bytes_sent, row.bytes_received) = (socket.bytes_sent, socket.bytes_received);
            kernel.join(&mut row, pod.id, socket.cookie);
            rows.push(row);
        }
    }
    rows
}

/// One that was refused lately, by the kernel or by the agent; it has no socket any more.
fn refused(record: &ConnectionRecord) -> SocketRow {
    let mut row = row(record);
    row.age_ms = record.started.elapsed().map_or(0, |age| age.as_millis() as u64);
    let reason = match record.verdict {
        Some(verdict) if !verdict.is_allowed() => verdict.label(),
        _ => record.flag.label(),
    };
    SocketRow { path: "denied".into(), reason: reason.into(), ..row }
}

fn row(record: &ConnectionRecord) -> SocketRow {
    let address = |address: Option<SocketAddr>| address.map(|address| address.to_string()).unwrap_or_default();
    let identity = |party: &Party| party.identity.as_ref().map(ToString::to_string).unwrap_or_default();
    let service = record.service.as_ref();
    let service = service.map(|service| format!("{}/{}", service.name.namespace, service.name.hostname));
    let (sent, received) = match record.direction {
        "outbound" => (record.to_destination, record.to_source),
        _ => (record.to_source, record.to_destination),
    };
    SocketRow {
        pod: record.pod.clone(),
        direction: record.direction.into(),
        path: record.path.into(),
        source: address(record.source.address),
        original_destination: address(record.original_destination),
        service: service.unwrap_or_default(),
        endpoint: address(record.destination.address),
        source_identity: identity(&record.source),
        destination_identity: identity(&record.destination),
        cipher: record.cipher.into(),
        policy: record.policy.as_ref().map(ToString::to_string).unwrap_or_default(),
        reason: record.plaintext_reason.into(),
        bytes_sent: sent,
        bytes_received: received,
        age_ms: record.duration.as_millis() as u64,
        connection_security_policy: record.security.label().into(),
        ..SocketRow::default()
    }
}

/// The clock of the kernel's records.
fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        kernel::FlowRow,
        path::{Flag, Verdict},
        proving,
        telemetry::Security,
    };

    const CLIENT: &str = "10.1.0.1:40000";
    const SERVER: &str = "10.1.0.2:5432";

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn flow(direction: Direction, pod: u32, local: &str, original: &str, socket: u64) -> FlowRow {
        let mut flow = Flow::new(direction, pod, 0, Endpoint::from(at(local)), Endpoint::from(at(original)));
        flow.add(FlowFlags::AGENT);
        FlowRow { socket, flow }
    }

    fn socket(cookie: u64, inode: u32, local: &str) -> diag::TcpSocket {
        diag::TcpSocket {
            cookie,
            local: at(local),
            remote: at("10.1.0.1:15001"),
            state: 1,
            inode,
            bytes_sent: 0,
            bytes_received: 0,
            rtt_us: 70,
            retransmits: 2,
        }
    }

    fn record(direction: &'static str) -> ConnectionRecord {
        let mut record = ConnectionRecord { pod: "default/web".into(), ..ConnectionRecord::new(direction) };
        record.source.address = Some(at(CLIENT));
        record.destination.address = Some(at(SERVER));
        record.original_destination = Some(at("10.96.0.1:80"));
        (record.path, record.security) = ("node_local", Security::NodeLocal);
        (record.to_destination, record.to_source) = (10, 20);
        record
    }

    #[test]
    fn a_connection_within_the_node_has_a_row_for_each_end_with_its_own_socket_and_process() {
        let pods = [proving::pod(1, "web", at(CLIENT).ip()), proving::pod(2, "db", at(SERVER).ip())];
        let flows =
            [flow(Direction::Outbound, 1, CLIENT, "10.96.0.1:80", 11), flow(Direction::Inbound, 2, SERVER, CLIENT, 22)];
        let kernel = KernelSide {
            sockets: [(1, [(11, socket(11, 111, CLIENT))].into()), (2, [(22, socket(22, 222, SERVER))].into())].into(),
            processes: [(1, [(111, "curl[7]".into())].into()), (2, [(222, "postgres[8]".into())].into())].into(),
            outbound: [((1, at(CLIENT)), &flows[0])].into(),
            inbound: [((2, at(CLIENT), at(SERVER)), &flows[1])].into(),
            connected: HashMap::new(),
        };
        let snapshot = ConnectionSnapshot { worker: 0, id: 1, pod: pods[0].clone(), record: record("outbound") };
        let rows = proxied(&snapshot, &proving::table(&pods), &kernel);
        let shown: Vec<_> = rows
            .iter()
            .map(|row| (&*row.pod, &*row.direction, &*row.process, row.cookie, row.bytes_sent, row.bytes_received))
            .collect();
        let expected =
            [("default/web", "outbound", "curl[7]", 11, 10, 20), ("default/db", "inbound", "postgres[8]", 22, 20, 10)];
        assert_eq!(shown, expected);
        assert!(rows.iter().all(|row| (row.rtt_us, row.retransmits) == (70, 2)));
        assert!(rows.iter().all(|row| row.connection_security_policy == "node_local"));
    }

    #[test]
    fn a_refused_connection_says_why() {
        let by_policy = ConnectionRecord { verdict: Some(Verdict::Denied), flag: Flag::Deny, ..record("outbound") };
        let away = ConnectionRecord { flag: Flag::Starting, ..record("outbound") };
        assert_eq!((&*refused(&by_policy).path, &*refused(&by_policy).reason), ("denied", "denied_by_policy"));
        assert_eq!(refused(&away).reason, "STARTING");
    }
}
