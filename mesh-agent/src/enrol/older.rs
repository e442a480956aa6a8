//! Connections that a pod had before it was enrolled: not steered, so listed as such, and closed when its policy refuses
//! callers without an identity (STRICT). Never touches a connection that was opened after enrolment.

use std::{
    collections::{HashMap, HashSet},
    fs,
    sync::Arc,
};

use arc_swap::ArcSwap;

use crate::{
    kernel::{FlowFlags, Kernel, KernelError, diag},
    path::{Source, Verdict, judge},
    view::View,
};

use super::{Pod, registry::Enrolled};

/// Source: Linux, include/net/tcp_states.h: established, both FIN_WAITs, CLOSE_WAIT.
const CONNECTED_STATES: [u8; 4] = [1, 4, 5, 8];

/// Of these, the ones in which a socket that no process holds has not been accepted yet; in the others it was closed.
const ACCEPTABLE_STATES: [u8; 2] = [1, 8];

/// As above.
const LISTEN: u8 = 10;

/// Cookies of the older connections' sockets by pod uid; read without a lock.
pub type SharedOlder = Arc<ArcSwap<HashMap<Arc<str>, HashSet<u64>>>>;

/// The pod's connections that the hooks have not seen begin: not in FLOWS, or there as such, and not the agent's own. Asked
/// right after steering is in force; of handshakes that end later FLOWS tells, see [`unseen`].
///
/// # Errors
/// The kernel does not list sockets or flows.
pub fn find(kernel: &Kernel, pod: &Pod) -> Result<HashSet<u64>, KernelError> {
    // Sockets before flows: what is established in between is then in FLOWS.
    let sockets = diag::sockets(&pod.network_namespace)?;
    let flows = kernel.flows()?.into_iter().filter(|row| !row.flow.flags().has(FlowFlags::BEFORE_ENROLMENT));
    let (mut steered, mut dialled) = (HashSet::new(), HashSet::new());
    for row in flows {
        steered.insert(row.socket);
        // The end that dialled a direct connection is listed for both.
        if row.flow.flags().has(FlowFlags::DIRECT) {
            dialled.insert((row.flow.remote, row.flow.local));
        }
    }
    let own = own_inodes();
    let older = sockets.into_iter().filter(|socket| {
        CONNECTED_STATES.contains(&socket.state)
            && (socket.inode != 0 || ACCEPTABLE_STATES.contains(&socket.state))
            && !own.contains(&socket.inode)
            && !steered.contains(&socket.cookie)
            && !dialled.contains(&(socket.local.into(), socket.remote.into()))
            && !socket.local.ip().is_loopback()
            && socket.local.ip() != socket.remote.ip()
            && !mesh_common::is_own_port(socket.local.port())
    });
    Ok(older.map(|socket| socket.cookie).collect())
}

/// The connections whose handshake was under way when their pod was enrolled, by the pod's number.
///
/// # Errors
/// The kernel does not list flows.
pub fn unseen(kernel: &Kernel) -> Result<Vec<(u32, u64)>, KernelError> {
    let flows = kernel.flows()?.into_iter().filter(|row| row.flow.flags().has(FlowFlags::BEFORE_ENROLMENT));
    Ok(flows.map(|row| (row.flow.pod, row.socket)).collect())
}

/// Closes what policy refuses of a pod's older connections, and says so.
pub(super) fn close(view: &View, enrolled: &mut Enrolled) {
    if enrolled.older.is_empty() {
        return;
    }
    match judge_again(view, &enrolled.pod, &mut enrolled.older) {
        Ok(0) => {}
        Ok(closed) => {
            tracing::info!(uid = &*enrolled.pod.uid, closed, "connections older than enrolment closed by policy");
        }
        Err(error) => tracing::warn!(uid = &*enrolled.pod.uid, %error, "older connections were not judged"),
    }
}

/// Closes those that the pod's policy refuses, and forgets those that have ended. How many were closed.
///
/// # Errors
/// The kernel does not list sockets.
fn judge_again(view: &View, pod: &Pod, older: &mut HashSet<u64>) -> Result<usize, KernelError> {
    let Some(workload) = pod.workload(view) else { return Ok(0) };
    let sockets = diag::sockets(&pod.network_namespace)?;
    let listening: HashSet<u16> =
        sockets.iter().filter(|socket| socket.state == LISTEN).map(|socket| socket.local.port()).collect();
    let mut alive = HashSet::new();
    let mut closed = 0;
    for socket in sockets.iter().filter(|socket| older.contains(&socket.cookie)) {
        // Whoever is at the other end has proved nothing: the same question as for a plaintext caller.
        let stranger = Source { identity: None, address: socket.remote.ip() };
        let verdict = judge(view, &stranger, workload, socket.local.ip(), socket.local.port()).verdict;
        // One that the pod dialled is no caller: an ALLOW that does not name it says nothing, a DENY (STRICT) does.
        let is_refused =
            verdict == Verdict::Denied || listening.contains(&socket.local.port()) && !verdict.is_allowed();
        if !is_refused {
            alive.insert(socket.cookie);
        } else if diag::destroy(&pod.network_namespace, socket)? {
            closed += 1;
        }
    }
    *older = alive;
    Ok(closed)
}

/// How many of these connections are still there; all of them when the kernel does not list sockets.
pub fn count_open(pod: &Pod, older: &HashSet<u64>) -> usize {
    let Ok(sockets) = diag::sockets(&pod.network_namespace) else { return older.len() };
    let is_open =
        |socket: &&diag::TcpSocket| CONNECTED_STATES.contains(&socket.state) && older.contains(&socket.cookie);
    sockets.iter().filter(is_open).count()
}

/// Inodes of the sockets of this process.
fn own_inodes() -> HashSet<u32> {
    let Ok(descriptors) = fs::read_dir("/proc/self/fd") else { return HashSet::new() };
    descriptors
        .flatten()
        .filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?;
            target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
        })
        .collect()
}
