//! Which endpoint of a service: the kernel's choice if it still holds, else by health, locality, affinity and weight. Pure;
//! the random numbers are the caller's.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::resolve::Question;
use crate::view::{LoadBalancing, RoutingScope, Service, Workload};

/// An endpoint and where its application listens.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The endpoint.
    pub workload: Arc<Workload>,
    /// Its address and port.
    pub address: SocketAddr,
}

/// Chooses; none when no endpoint is left. Linear in the service's endpoints.
pub fn choose(question: Question<'_>, service: &Service, random: &mut fastrand::Rng) -> Option<Candidate> {
    let here = question.caller.workload;
    let usable = |workload: &&Arc<Workload>| {
        (workload.is_healthy || service.load_balancing.allows_unhealthy)
            && !question.tried.contains(&workload.uid)
            && (!service.traffic.only_local_endpoints
                || here.is_some_and(|here| !here.node.is_empty() && here.node == workload.node))
    };
    let candidate = |workload: &Arc<Workload>| candidate(question.origin.destination, service, workload);
    let endpoints = question.view.endpoints(&service.name);
    let candidates: Vec<_> = endpoints.iter().filter(usable).filter_map(candidate).collect();
    let kernel_choice = |chosen: SocketAddr| candidates.iter().find(|one| one.address == chosen);
    if let Some(chosen) = question.origin.endpoint.and_then(kernel_choice) {
        return Some(chosen.clone());
    }
    let candidates = nearest(candidates, &service.load_balancing, here);
    if service.traffic.client_ip_affinity.is_some() {
        by_affinity(candidates, question.origin.source.address)
    } else {
        by_weight(candidates, random)
    }
}

/// The address in the family that was dialled, else the other one; the port as the endpoint says, else as the service does.
fn candidate(dialled: SocketAddr, service: &Service, workload: &Arc<Workload>) -> Option<Candidate> {
    let same_family = |address: &&IpAddr| address.is_ipv4() == dialled.is_ipv4();
    let address = workload.addresses.iter().find(same_family).or_else(|| workload.addresses.first())?;
    let own = workload.services.get(&service.name).and_then(|ports| ports.get(&dialled.port()));
    let of_service = || service.ports.iter().find(|one| one.service_port == dialled.port()).map(|one| &one.target_port);
    let port = own.or_else(of_service)?;
    Some(Candidate { workload: workload.clone(), address: SocketAddr::new(*address, *port) })
}

/// Those that match the longest part of the preference; all of it when that is required.
fn nearest(all: Vec<Candidate>, balancing: &LoadBalancing, here: Option<&Workload>) -> Vec<Candidate> {
    if balancing.preference.is_empty() {
        return all;
    }
    let rank = |candidate: &Candidate| {
        let Some(here) = here else { return 0 };
        balancing.preference.iter().take_while(|scope| is_same(**scope, here, &candidate.workload)).count()
    };
    let wanted =
        if balancing.is_strict { balancing.preference.len() } else { all.iter().map(&rank).max().unwrap_or_default() };
    all.into_iter().filter(|candidate| rank(candidate) >= wanted).collect()
}

fn is_same(scope: RoutingScope, a: &Workload, b: &Workload) -> bool {
    match scope {
        RoutingScope::Region => a.locality.region == b.locality.region,
        RoutingScope::Zone => a.locality.zone == b.locality.zone,
        RoutingScope::Subzone => a.locality.subzone == b.locality.subzone,
        RoutingScope::Node => a.node == b.node,
        RoutingScope::Cluster => a.cluster == b.cluster,
        RoutingScope::Network => a.network == b.network,
    }
}

/// Rendezvous hashing: a source keeps its endpoint as long as that is usable, and nobody else moves when it is not. Every
/// agent chooses alike.
fn by_affinity(candidates: Vec<Candidate>, source: IpAddr) -> Option<Candidate> {
    let score = |candidate: &Candidate| {
        let mut hasher = DefaultHasher::new();
        (source, &candidate.workload.uid).hash(&mut hasher);
        // 53 bits make a number in (0, 1); -weight / ln of it orders by weight as often as by chance.
        let uniform = ((hasher.finish() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        -f64::from(candidate.workload.weight) / uniform.ln()
    };
    candidates.into_iter().max_by(|a, b| score(a).total_cmp(&score(b)))
}

fn by_weight(candidates: Vec<Candidate>, random: &mut fastrand::Rng) -> Option<Candidate> {
    let total: u64 = candidates.iter().map(|candidate| u64::from(candidate.workload.weight)).sum();
    let mut drawn = if total == 0 { 0 } else { random.u64(..total) };
    candidates.into_iter().find(|candidate| {
        let weight = u64::from(candidate.workload.weight);
        let is_it = drawn < weight;
        drawn = drawn.saturating_sub(weight);
        is_it
    })
}
