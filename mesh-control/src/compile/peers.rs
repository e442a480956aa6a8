//! PeerAuthentication to Authorization: STRICT is a DENY of callers without an identity, as Istio has it. The nearest
//! scope that says something decides (workload, namespace, mesh); of two in one scope, the older. A selector matches
//! workloads of the policy's own namespace, in the root namespace too.
//! Source: istio/istio pilot/pkg/serviceregistry/ambient/authorization.go.

use std::collections::BTreeMap;

use mesh_api::proto::security::{
    Action, Authorization, Clause, Empty, Match, Rule, Scope, StringMatch, string_match::MatchType,
};

use super::{Mesh, policies, selects};
use crate::objects::peer::{Mode, PeerAuthentication};

/// Istio's name of the policy behind STRICT; '_' is in no Kubernetes name.
const STATIC_STRICT: &str = "istio_converted_static_strict";

/// All PeerAuthentications, sorted by scope and age.
pub struct Peers<'a> {
    root_namespace: &'a str,
    wide: BTreeMap<&'a str, &'a PeerAuthentication>,
    narrow: BTreeMap<&'a str, Vec<&'a PeerAuthentication>>,
}

impl<'a> Peers<'a> {
    /// Sorts them.
    pub fn of(mesh: &Mesh<'a>) -> Peers<'a> {
        let mut all: Vec<&PeerAuthentication> = mesh.objects.peers.values().map(AsRef::as_ref).collect();
        // Those without a time are the youngest; the name settles the rest.
        all.sort_by_key(|peer| (peer.metadata.created.is_none(), &peer.metadata.created, &peer.metadata.name));
        let mut peers = Peers { root_namespace: mesh.root_namespace, wide: BTreeMap::new(), narrow: BTreeMap::new() };
        for peer in all {
            let namespace = peer.metadata.namespace.as_str();
            match peer.selector.is_empty() {
                true => drop(peers.wide.entry(namespace).or_insert(peer)),
                false => peers.narrow.entry(namespace).or_default().push(peer),
            }
        }
        peers
    }

    /// What holds for a namespace where no workload's own PeerAuthentication speaks.
    fn namespace_mode(&self, namespace: &str) -> Mode {
        let of = |namespace: &str| self.wide.get(namespace).and_then(|peer| peer.mode);
        of(namespace).or_else(|| of(self.root_namespace)).unwrap_or(Mode::Permissive)
    }

    /// Names of the authorizations that hold for one workload.
    pub fn selected(&self, namespace: &str, labels: &BTreeMap<String, String>) -> Option<String> {
        let narrow = self.narrow.get(namespace).into_iter().flatten().find(|peer| selects(&peer.selector, labels));
        let mode = narrow.and_then(|peer| peer.mode).unwrap_or_else(|| self.namespace_mode(namespace));
        if let Some(authorization) = narrow.and_then(|peer| self.by_port(peer)) {
            return Some(policies::key(&authorization));
        }
        (mode == Mode::Strict).then(|| format!("{}/{STATIC_STRICT}", self.root_namespace))
    }

    /// The authorizations that workloads refer to: the one behind STRICT, and one for each workload's own with ports.
    pub fn authorizations(&self) -> BTreeMap<String, Authorization> {
        let by_port = self.narrow.values().flatten().filter_map(|peer| self.by_port(peer));
        let all = by_port.chain([self.static_strict()]);
        all.map(|authorization| (policies::key(&authorization), authorization)).collect()
    }

    fn static_strict(&self) -> Authorization {
        let rules = vec![Rule { clauses: vec![clause(without_identity())] }];
        deny(self.root_namespace, STATIC_STRICT.to_owned(), rules)
    }

    /// The authorization of a PeerAuthentication some of whose ports differ from the rest.
    fn by_port(&self, peer: &PeerAuthentication) -> Option<Authorization> {
        let namespace = peer.metadata.namespace.as_str();
        let mode = peer.mode.unwrap_or_else(|| self.namespace_mode(namespace));
        let ports: Vec<u32> =
            peer.ports.iter().filter(|(_, port)| **port != mode).map(|(port, _)| u32::from(*port)).collect();
        if ports.is_empty() {
            return None;
        }
        let rules = match mode {
            // Denied: no identity, and none of the ports that are open.
            Mode::Strict => {
                let elsewhere = Match { not_destination_ports: ports, ..Match::default() };
                vec![Rule { clauses: vec![clause(without_identity()), clause(elsewhere)] }]
            }
            Mode::Permissive => {
                vec![Rule { clauses: vec![clause(Match { destination_ports: ports, ..without_identity() })] }]
            }
        };
        Some(deny(namespace, format!("converted_peer_authentication_{}", peer.metadata.name), rules))
    }
}

fn deny(namespace: &str, name: String, rules: Vec<Rule>) -> Authorization {
    Authorization {
        name,
        namespace: namespace.to_owned(),
        scope: Scope::WorkloadSelector.into(),
        action: Action::Deny.into(),
        rules,
        dry_run: false,
        extensions: Vec::new(),
    }
}

fn clause(only: Match) -> Clause {
    Clause { matches: vec![only] }
}

fn without_identity() -> Match {
    let presence = StringMatch { match_type: Some(MatchType::Presence(Empty {})) };
    Match { not_principals: vec![presence], ..Match::default() }
}
