//! `meshctl check`: what stands between this node and a working mesh, each line with what to do about it. Every line can
//! fail; none is printed for show.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use mesh_api::proto::admin::CheckRow;
use mesh_common::{HEARTBEAT_MAX_AGE_NS, PORT_HBONE, PORT_OUTBOUND, PORT_PLAINTEXT};

use crate::{
    certificates::{CertificateFacts, Wallet},
    control::TypeStatus,
    enrol::count_open,
    kernel::{Fact, FactResult, MapFill, diag, precheck},
};

use super::{Node, membership};

/// A certificate that ends sooner than this although it should have been renewed.
const EXPIRY_WARNING: Duration = Duration::from_secs(3600);
/// Listeners of a pod with an IPv4 and an IPv6 address, on each worker.
const LISTENERS_PER_WORKER: usize = 6;
/// Map fill, in percent, from which it is a warning; at 100 the next entry is refused.
const FILL_WARNING: u64 = 80;
/// Maps of handshakes under way, in which the oldest entry makes room: abandoned handshakes may fill them.
const MAKES_ROOM: [&str; 2] = ["PENDING", "TICKET"];
/// A worker that does not say within this which listeners it has hangs.
const ANSWER: Duration = Duration::from_secs(1);
/// Source: Linux, include/net/tcp_states.h.
const TCP_LISTEN: u8 = 10;

/// All lines, kernel first.
pub(super) async fn all(node: &Node) -> Vec<CheckRow> {
    let listeners = listeners(node).await;
    let settings = &node.config.kernel;
    let facts = precheck(&settings.cgroup_root, &settings.bpffs).into_iter();
    let facts = facts.chain([node.kernel.links_fact(), neighbours(node)]);
    let mut rows: Vec<CheckRow> = facts.map(from_fact).collect();
    rows.extend([
        maps(node),
        descriptors(node.workers.len()),
        heartbeat(node),
        control(node),
        resources(&node.control.load().types),
        view(node),
        cache(node),
        trust(node),
        certificates(node),
        clock(&node.wallet.load(), SystemTime::now()),
        membership::pods(&node.pods.load(), &node.view.load_full().unwrap_or_default()),
        membership::ranges(node.view.load_full().as_deref()),
        listeners,
        older(node),
        super::rights::row(&node.pods.load()),
    ]);
    rows.extend(node.installer.as_ref().map(|installer| plugin(&installer.fault())));
    rows
}

fn plugin(fault: &str) -> CheckRow {
    match fault.is_empty() {
        true => ok("cni", "the plug-in is in place: pods start when they are enrolled"),
        false => failed("cni", fault, "until it is in place pods start first and are enrolled afterwards"),
    }
}

fn neighbours(node: &Node) -> Fact {
    let pods = node.pods.load();
    node.kernel.neighbours_fact(pods.by_uid.values().map(|pod| pod.cgroup_path.as_path()))
}

fn from_fact(fact: Fact) -> CheckRow {
    row(fact.name, fact.result, fact.text, &fact.remedy)
}

fn row(name: &str, result: FactResult, text: impl Into<String>, remedy: &str) -> CheckRow {
    let result = match result {
        FactResult::Ok => "ok",
        FactResult::Warning => "warning",
        FactResult::Failed => "failed",
    };
    CheckRow { name: name.into(), result: result.into(), text: text.into(), remedy: remedy.into() }
}

pub(super) fn ok(name: &str, text: impl Into<String>) -> CheckRow {
    row(name, FactResult::Ok, text, "")
}

fn failed(name: &str, text: impl Into<String>, remedy: &str) -> CheckRow {
    row(name, FactResult::Failed, text, remedy)
}

pub(super) fn warning(name: &str, text: impl Into<String>, remedy: &str) -> CheckRow {
    row(name, FactResult::Warning, text, remedy)
}

fn maps(node: &Node) -> CheckRow {
    match node.kernel.map_fill() {
        Ok(maps) => fill(&maps),
        Err(error) => failed("maps", error.to_string(), "restart the agent; if it stays, mesh-agent detach and run"),
    }
}

fn fill(maps: &[MapFill]) -> CheckRow {
    const REMEDY: &str = "raise the map's size (mesh-agent run --help) and start on a fresh --bpffs";
    let is_full = maps.iter().any(|map| map.entries >= map.capacity && !MAKES_ROOM.contains(&map.name));
    let full: Vec<String> = maps
        .iter()
        .filter(|map| map.entries * 100 >= map.capacity * FILL_WARNING)
        .map(|map| format!("{} {}/{}", map.name, map.entries, map.capacity))
        .collect();
    match full.is_empty() {
        true => ok("maps", format!("{} maps, none above {FILL_WARNING} %", maps.len())),
        false if is_full => failed("maps", full.join(", "), REMEDY),
        false => warning("maps", full.join(", "), REMEDY),
    }
}

/// As enrolment asks before it takes a pod in.
fn descriptors(workers: usize) -> CheckRow {
    match crate::enrol::check_room((workers * LISTENERS_PER_WORKER) as u64) {
        Ok(()) => ok("descriptors", "one more pod fits"),
        Err(error) => failed("descriptors", error.to_string(), "raise NOFILE of the agent (LimitNOFILE= in its unit)"),
    }
}

fn heartbeat(node: &Node) -> CheckRow {
    let alive = node.workers.iter().filter(|worker| worker.is_alive()).count();
    if let Some(lost) = lost(alive, node.workers.len()) {
        return lost;
    }
    let beat = node.kernel.heartbeat_ages().unwrap_or_default();
    let limit = Duration::from_nanos(HEARTBEAT_MAX_AGE_NS);
    let late: Vec<String> = beat
        .iter()
        .enumerate()
        .filter(|(_, age)| age.is_none_or(|age| age > limit))
        .map(|(number, _)| number.to_string())
        .collect();
    match late.is_empty() && !beat.is_empty() {
        true => ok("heartbeat", format!("{} workers beat", beat.len())),
        false => failed(
            "heartbeat",
            format!("late or never: worker {}", late.join(", ")),
            "without a View workers do not beat (see `view`); else the machine is overloaded",
        ),
    }
}

fn lost(alive: usize, workers: usize) -> Option<CheckRow> {
    let text = format!("{alive} of {workers} worker threads run");
    (alive < workers).then(|| failed("heartbeat", text, "restart the agent and report its log"))
}

fn control(node: &Node) -> CheckRow {
    let (status, address) = (node.control.load(), &node.config.control.uri);
    match status.is_connected {
        true => ok("control", format!("connected to {address}")),
        false => failed(
            "control",
            format!("not connected to {address}: {}", status.last_error),
            "is mesh-control reachable, are --control-root and --node-token those of this mesh?",
        ),
    }
}

fn resources(types: &[TypeStatus]) -> CheckRow {
    let refused: Vec<&str> = types.iter().map(|kind| kind.nack.as_str()).filter(|nack| !nack.is_empty()).collect();
    match refused.is_empty() {
        true => ok("resources", "everything that control sent was taken"),
        false => failed("resources", refused.join("; "), "mend the named objects; their last good form is in force"),
    }
}

fn view(node: &Node) -> CheckRow {
    let from_disk = node.control.load().view_cached;
    match (node.view.load_full(), from_disk) {
        (Some(view), None) => ok("view", format!("generation {}", view.generation)),
        (Some(_), Some(saved)) => {
            let age_s = saved.elapsed().unwrap_or_default().as_secs();
            warning("view", format!("from disk, written {age_s} s ago; control has not confirmed it"), "see `control`")
        }
        (None, _) => failed("view", "none yet: connections through the agent are refused", "see `control`"),
    }
}

fn cache(node: &Node) -> CheckRow {
    let status = node.cache.load();
    match status.error.is_empty() {
        true => ok("cache", format!("the View is kept in {}", node.config.cached_view().display())),
        false => warning(
            "cache",
            status.error.clone(),
            "an agent that restarts now needs control; is there room in --state-dir, and is it the agent's alone?",
        ),
    }
}

fn trust(node: &Node) -> CheckRow {
    let wallet = node.wallet.load();
    let Some(trust) = &wallet.trust else {
        return failed(
            "trust_bundle",
            "no root of the trust domain is known",
            "see `control`; it comes with the first View",
        );
    };
    let now = SystemTime::now();
    let expired = |root: &&_| CertificateFacts::read(root).is_ok_and(|facts| facts.not_after <= now);
    match trust.certificates.iter().filter(expired).count() {
        0 => ok("trust_bundle", format!("{} roots, hash {}", trust.certificates.len(), trust.hash)),
        count => failed("trust_bundle", format!("{count} roots have expired"), "rotate the root at mesh-control"),
    }
}

fn certificates(node: &Node) -> CheckRow {
    let (all, now) = (node.certificates.load(), SystemTime::now());
    let mut bad = Vec::new();
    let mut late = Vec::new();
    for status in all.iter() {
        match &status.certificate {
            None => bad.push(format!("{}: none ({})", status.identity, status.error)),
            Some(held) if held.not_after <= now => bad.push(format!("{}: expired ({})", status.identity, status.error)),
            Some(held) if held.not_after <= now + EXPIRY_WARNING && !status.error.is_empty() => {
                late.push(format!("{}: {}", status.identity, status.error));
            }
            Some(_) => {}
        }
    }
    let remedy = "is the workload on this node in mesh-control's view? its log names the refusal";
    match (bad.is_empty(), late.is_empty()) {
        (true, true) => ok("certificates", format!("{} valid", all.len())),
        (true, false) => warning("certificates", late.join("; "), remedy),
        (false, _) => failed("certificates", bad.join("; "), remedy),
    }
}

/// Certificates are valid from a minute before their issue: one that is not valid yet means that clocks differ.
fn clock(wallet: &Wallet, now: SystemTime) -> CheckRow {
    let early = wallet.certificates.values().find(|held| held.not_before > now);
    match early {
        None => ok("clock", "no certificate is from the future"),
        Some(held) => failed(
            "clock",
            format!("the certificate of {} is not valid yet", held.identity),
            "the clocks of this node and of mesh-control differ by more than a minute: synchronise them",
        ),
    }
}

/// Each pod's listeners are there, and nobody else listens on their ports. A worker may have several: those that an agent with
/// more workers has left.
async fn listeners(node: &Node) -> CheckRow {
    let mut wrong = Vec::new();
    let mut held: HashMap<(Arc<str>, SocketAddr), usize> = HashMap::new();
    for worker in node.workers.iter() {
        // One that has ended or hangs has its own row.
        let Ok(Ok(shared)) = tokio::time::timeout(ANSWER, worker.share()).await else { continue };
        for listener in shared {
            *held.entry((listener.uid, listener.address)).or_default() += 1;
        }
    }
    let pods = node.pods.load_full();
    for pod in pods.by_uid.values() {
        let sockets = match diag::sockets(&pod.network_namespace) {
            Ok(sockets) => sockets,
            Err(error) => {
                wrong.push(format!("{}: {error}", pod.full_name()));
                continue;
            }
        };
        for port in [PORT_OUTBOUND, PORT_PLAINTEXT, PORT_HBONE] {
            for address in &pod.addresses {
                let is_ours = |socket: &&diag::TcpSocket| {
                    socket.state == TCP_LISTEN && socket.local.port() == port && socket.local.ip() == *address
                };
                let count = sockets.iter().filter(is_ours).count();
                let held = held.get(&(pod.uid.clone(), SocketAddr::new(*address, port))).copied().unwrap_or(0);
                let wanted = held.max(node.workers.len());
                if count != wanted {
                    wrong.push(format!("{}: {count} of {wanted} listeners on {address}:{port}", pod.full_name()));
                }
            }
        }
    }
    let remedy = "a process of the pod may hold the port; withdraw the pod, free the port and enrol it again";
    match wrong.is_empty() {
        true => ok("listeners", format!("in place in {} pods", pods.by_uid.len())),
        false => failed("listeners", wrong.join("; "), remedy),
    }
}

fn older(node: &Node) -> CheckRow {
    let (older, pods) = (node.older.load(), node.pods.load());
    let open = older.iter().filter_map(|(uid, cookies)| {
        let pod = pods.by_uid.get(uid)?;
        Some((pod, count_open(pod, cookies)))
    });
    let named: Vec<String> =
        open.filter(|(_, count)| *count > 0).map(|(pod, count)| format!("{}: {count}", pod.full_name())).collect();
    match named.is_empty() {
        true => ok("before_enrolment", "no connection is older than its pod's enrolment"),
        false => warning(
            "before_enrolment",
            format!("connections that the mesh does not protect: {}", named.join(", ")),
            "they end with their processes; restart these, or make the workload STRICT to close them",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proving::{Authority, identity};

    fn result(row: &CheckRow) -> (&str, &str) {
        (&row.name, &row.result)
    }

    #[test]
    fn a_map_is_a_warning_before_it_is_full() {
        let at = |entries| fill(&[MapFill { name: "PODS", entries, capacity: 100, refused: 0 }]);
        let results = [79, 80, 99, 100].map(at);
        let expected = [("maps", "ok"), ("maps", "warning"), ("maps", "warning"), ("maps", "failed")];
        assert_eq!(results.each_ref().map(result), expected);
        let handshakes = fill(&[MapFill { name: "TICKET", entries: 100, capacity: 100, refused: 0 }]);
        assert_eq!(result(&handshakes), ("maps", "warning"));
        assert!(results[3].text.contains("PODS 100/100") && !results[3].remedy.is_empty());
    }

    #[test]
    fn descriptors_fail_when_no_further_pod_fits() {
        let limit = crate::enrol::raise_limit().unwrap();
        assert_eq!(result(&descriptors(1)), ("descriptors", "ok"));
        let full = descriptors(usize::try_from(limit).unwrap());
        assert_eq!(result(&full), ("descriptors", "failed"));
        assert!(!full.remedy.is_empty());
    }

    #[test]
    fn a_worker_that_has_ended_is_missed() {
        assert!(lost(2, 2).is_none());
        assert_eq!(lost(1, 2).as_ref().map(result), Some(("heartbeat", "failed")));
    }

    #[test]
    fn what_the_agent_refused_of_control_is_named() {
        let taken = TypeStatus::default();
        assert_eq!(result(&resources(std::slice::from_ref(&taken))), ("resources", "ok"));
        let refused = resources(&[taken, TypeStatus { nack: "ns/x: no address".into(), ..TypeStatus::default() }]);
        assert_eq!((result(&refused), &*refused.text), (("resources", "failed"), "ns/x: no address"));
        assert!(!refused.remedy.is_empty());
    }

    #[test]
    fn a_certificate_from_the_future_means_that_clocks_differ() {
        let (issued, minute) = (SystemTime::now(), Duration::from_secs(60));
        let wallet = Authority::new().wallet(&[identity("web")]);
        assert_eq!(result(&clock(&wallet, issued)), ("clock", "ok"));
        // As a node reads it whose clock is further behind than certificates are backdated.
        let behind = clock(&wallet, issued - 2 * minute);
        assert_eq!(result(&behind), ("clock", "failed"));
        assert!(behind.text.contains("sa/web") && behind.remedy.contains("clocks"), "{behind:?}");
    }
}
