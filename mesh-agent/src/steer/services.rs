//! SERVICES and BACKENDS: for each service address and port the endpoints by weight, if a random pick among them is all
//! that the service asks. Else the address is marked for the agent, which picks.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use crate::{
    kernel::ServiceSlots,
    view::{Service, View, Workload},
};

/// More slots than this for one address and port: the agent picks.
const SLOT_LIMIT: u64 = 1024;

/// Compiles the table; when all slots together exceed `capacity`, the services that come last (by address) are left to
/// the agent.
pub(super) fn compile(view: &View, capacity: usize) -> HashMap<SocketAddr, ServiceSlots> {
    let mut owners: HashMap<IpAddr, Option<&Service>> = HashMap::new();
    for service in view.services() {
        for address in &service.addresses {
            // Of several services with one address the caller's namespace decides: only the agent knows it.
            owners.entry(*address).and_modify(|owner| *owner = None).or_insert(Some(service));
        }
    }
    let mut table = HashMap::new();
    for service in view.services() {
        for address in &service.addresses {
            let is_sole = owners.get(address).is_some_and(Option::is_some);
            for port in &service.ports {
                let dialled = SocketAddr::new(*address, port.service_port);
                let slots = if is_sole { slots(view, service, dialled) } else { None };
                table.insert(dialled, to_entry(slots));
            }
        }
    }
    bound(&mut table, capacity);
    table
}

fn to_entry(slots: Option<Vec<SocketAddr>>) -> ServiceSlots {
    match slots {
        Some(slots) => ServiceSlots { slots: slots.into(), agent_only: false },
        None => ServiceSlots { slots: Arc::default(), agent_only: true },
    }
}

/// `None`: the agent must pick, or refuse and say why.
fn slots(view: &View, service: &Service, dialled: SocketAddr) -> Option<Vec<SocketAddr>> {
    let needs_agent = service.unsupported.is_some()
        || service.traffic.client_ip_affinity.is_some()
        || service.traffic.only_local_endpoints
        || !service.load_balancing.preference.is_empty();
    if needs_agent {
        return None;
    }
    let ready = |workload: &&Arc<Workload>| workload.is_healthy || service.load_balancing.allows_unhealthy;
    let endpoints = view.endpoints(&service.name).iter().filter(ready);
    let weighted: Option<Vec<(SocketAddr, u32)>> =
        endpoints.map(|workload| Some((endpoint(service, workload, dialled)?, workload.weight))).collect();
    let weighted = weighted.filter(|all| !all.is_empty())?;
    let divisor = weighted.iter().fold(0, |divisor, (_, weight)| greatest_common_divisor(divisor, *weight)).max(1);
    let total: u64 = weighted.iter().map(|(_, weight)| u64::from(weight / divisor)).sum();
    if total == 0 || total > SLOT_LIMIT {
        return None;
    }
    let repeated =
        weighted.into_iter().flat_map(|(address, weight)| std::iter::repeat_n(address, (weight / divisor) as usize));
    Some(repeated.collect())
}

/// Where one endpoint listens for this port. `None`: it has no address of the family, no such port, or needs what only
/// the agent can say.
fn endpoint(service: &Service, workload: &Workload, dialled: SocketAddr) -> Option<SocketAddr> {
    if workload.unsupported.is_some() {
        return None;
    }
    let address = workload.addresses.iter().find(|address| address.is_ipv4() == dialled.is_ipv4())?;
    let own = workload.services.get(&service.name).and_then(|ports| ports.get(&dialled.port()).copied());
    let of_service =
        || service.ports.iter().find(|port| port.service_port == dialled.port()).map(|port| port.target_port);
    Some(SocketAddr::new(*address, own.or_else(of_service)?))
}

fn greatest_common_divisor(one: u32, other: u32) -> u32 {
    if other == 0 { one } else { greatest_common_divisor(other, one % other) }
}

fn bound(table: &mut HashMap<SocketAddr, ServiceSlots>, capacity: usize) {
    let total: usize = table.values().map(|entry| entry.slots.len()).sum();
    if total <= capacity {
        return;
    }
    let mut addresses: Vec<SocketAddr> = table.keys().copied().collect();
    addresses.sort();
    let mut used = 0;
    for address in addresses {
        let Some(entry) = table.get_mut(&address) else { continue };
        if used + entry.slots.len() > capacity {
            *entry = to_entry(None);
        }
        used += entry.slots.len();
    }
}
