//! What would happen to a connection: `meshctl explain`. Runs the very `resolve` and `authorize` of the path, on the View and
//! the pods of this node; opens nothing.

use std::net::{IpAddr, SocketAddr};

use super::{
    authorize::{Decision, Source, authorize, judge},
    origin::Origin,
    resolve::{self, Caller, NextHop, PlaintextReason, Question, Route},
};
use crate::{
    enrol::PodTable,
    view::{PolicyName, Protocol, Service, View, Workload},
};

/// One stage's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The stage, or what was looked up before the first.
    pub stage: &'static str,
    /// What it found, in words.
    pub text: String,
}

/// The whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// In the order of the path.
    pub steps: Vec<Step>,
    /// `allowed`, `denied` (by policy) or `refused` (no way to get there).
    pub verdict: &'static str,
    /// The policy that decided, if one did.
    pub policy: Option<PolicyName>,
    /// Why denied, refused or in the clear; else empty.
    pub reason: String,
    /// As in `meshctl sockets`: `hbone`, `node_local`, `self`, `passthrough`, `plaintext`; empty when refused.
    pub path: &'static str,
}

impl Explanation {
    fn new() -> Self {
        Self { steps: Vec::new(), verdict: "refused", policy: None, reason: String::new(), path: "" }
    }

    fn step(&mut self, stage: &'static str, text: impl Into<String>) {
        self.steps.push(Step { stage, text: text.into() });
    }

    fn refused(mut self, stage: &'static str, reason: impl Into<String>) -> Self {
        self.reason = reason.into();
        self.step(stage, self.reason.clone());
        self
    }

    fn decided(&mut self, decision: &Decision, by: &str) {
        let policy = decision.policy.as_ref().map_or_else(String::new, |policy| format!(" ({policy})"));
        self.step("authorize", format!("{}{policy}, judged {by}", decision.verdict.label()));
        for policy in &decision.dry_run {
            self.step("authorize", format!("{policy} is in dry run and would have matched"));
        }
        self.policy = decision.policy.clone();
        if decision.verdict.is_allowed() {
            self.verdict = "allowed";
        } else {
            (self.verdict, self.reason) = ("denied", decision.verdict.label().into());
        }
    }
}

/// Explains a connection from a workload (`namespace/name`, or an address) to a workload, a service (`namespace/name` or a
/// host name) or an address.
pub fn explain(view: &View, pods: &PodTable, source: &str, destination: &str, port: u16) -> Explanation {
    let mut answer = Explanation::new();
    let Some((address, workload)) = find_source(view, source) else {
        return answer
            .refused("source", format!("{source} is no workload of the View (NAMESPACE/NAME) and no address"));
    };
    let Some(to) = find_destination(view, destination, address) else {
        let reason = format!(
            "{destination} has no address in the View; write NAMESPACE/NAME, a host name in full, or an address"
        );
        return answer.refused("destination", reason);
    };
    // Who does not speak HBONE and is not enrolled shows nobody who it is.
    let is_member =
        |workload: &&Workload| workload.protocol == Protocol::Hbone || pods.by_address.contains_key(&address);
    let workload = workload.filter(is_member);
    let identity = workload.map(|workload| workload.identity.clone());
    let who = identity.as_ref().map_or_else(|| "nobody: not in the mesh".into(), ToString::to_string);
    answer.step("source", format!("{address} is {who}"));
    let origin = Origin {
        source: Source { identity, address },
        source_address: SocketAddr::new(address, 0),
        destination: SocketAddr::new(to, port),
        endpoint: None,
    };
    answer.step("origin", format!("dials {}", origin.destination));
    match workload {
        Some(workload) => explain_member(answer, view, pods, &origin, workload),
        None => explain_stranger(answer, view, &origin),
    }
}

/// A workload of the mesh: of this node, or as if it were dialling with this node's View.
fn explain_member(
    mut answer: Explanation,
    view: &View,
    pods: &PodTable,
    origin: &Origin,
    workload: &Workload,
) -> Explanation {
    let pod = pods.by_address.get(&origin.source.address).map(|pod| pod.id);
    let caller = Caller { pod, namespace: &workload.namespace, workload: Some(workload) };
    let question = Question { view, pods, caller, origin, tried: &[] };
    let route = match resolve::outbound(question, &mut fastrand::Rng::new()) {
        Ok(route) => route,
        Err(error) => return answer.refused("resolve", error.to_string()),
    };
    let comes_from_elsewhere = pod.is_none() && matches!(route.next_hop, NextHop::Local { .. });
    answer.path = if comes_from_elsewhere { "hbone" } else { route.next_hop.path() };
    answer.step("resolve", describe(view, &route, comes_from_elsewhere));
    let elsewhere = match &route.next_hop {
        NextHop::Hbone { workload, address, .. } => {
            Some(judge(view, &origin.source, workload, address.ip(), address.port()))
        }
        NextHop::Local { .. } => None,
        NextHop::Plaintext { reason, .. } => {
            answer.reason = reason.label().into();
            None
        }
    };
    match (elsewhere, authorize(view, &origin.source, route)) {
        (Some(decision), _) => answer.decided(&decision, "by the destination's node, with the policies of this View"),
        (None, Err(decision)) => answer.decided(&decision, "on this node"),
        (None, Ok(permit)) => match permit.decision() {
            Some(decision) => answer.decided(decision, "on this node"),
            None => {
                answer.verdict = "allowed";
                answer.step("authorize", "no policy is asked");
            }
        },
    }
    answer
}

/// Somebody outside the mesh, who reaches workloads in the clear and without a name.
fn explain_stranger(mut answer: Explanation, view: &View, origin: &Origin) -> Explanation {
    let Some(destination) = view.workload_at(origin.destination.ip()) else {
        return answer.refused("resolve", "from outside the mesh only workloads' addresses can be explained");
    };
    answer.path = "plaintext";
    answer.step("resolve", format!("{}/{}, in the clear", destination.namespace, destination.name));
    let (address, port) = (origin.destination.ip(), origin.destination.port());
    answer.decided(&judge(view, &origin.source, destination, address, port), "by the destination's node");
    answer
}

fn describe(view: &View, route: &Route, comes_from_elsewhere: bool) -> String {
    let mut text = String::new();
    if let Some(service) = &route.service {
        let endpoints = view.endpoints(&service.name).len();
        text = format!("service {}/{}, one of {endpoints} endpoints: ", service.name.namespace, service.name.hostname);
    }
    let workload = route.next_hop.workload();
    let name = workload.map(|workload| format!("{}/{} at ", workload.namespace, workload.name)).unwrap_or_default();
    let how = match &route.next_hop {
        NextHop::Local { .. } if comes_from_elsewhere => "on this node, over mutual TLS from the source's node",
        NextHop::Local { is_self: true, .. } => "the pod itself",
        NextHop::Local { .. } => "on this node, not encrypted, both ends proved by the kernel",
        NextHop::Hbone { .. } => "over mutual TLS to port 15008",
        NextHop::Plaintext { reason: PlaintextReason::Node, .. } => "in the clear: an address of a node",
        NextHop::Plaintext { reason: PlaintextReason::External, .. } => "in the clear: outside the cluster",
        NextHop::Plaintext { reason: PlaintextReason::NotInMesh, .. } => {
            "in the clear: the workload is not in the mesh"
        }
    };
    format!("{text}{name}{}, {how}", route.next_hop.address())
}

fn find_source<'a>(view: &'a View, text: &str) -> Option<(IpAddr, Option<&'a Workload>)> {
    if let Ok(address) = text.parse::<IpAddr>() {
        let address = address.to_canonical();
        return Some((address, view.workload_at(address).map(|workload| &**workload)));
    }
    let workload = find_workload(view, text)?;
    Some((*workload.addresses.first()?, Some(workload)))
}

/// Services before workloads of the same name; addresses of the source's family first.
fn find_destination(view: &View, text: &str, source: IpAddr) -> Option<IpAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address.to_canonical());
    }
    let service = view.services().find(|service| is_called(service, text)).filter(|found| !found.addresses.is_empty());
    let addresses = match service {
        Some(service) => &service.addresses,
        None => &find_workload(view, text)?.addresses,
    };
    addresses.iter().find(|address| address.is_ipv4() == source.is_ipv4()).or_else(|| addresses.first()).copied()
}

fn is_called(service: &Service, text: &str) -> bool {
    let short = |(namespace, name): (&str, &str)| *service.name.namespace == *namespace && service.short_name == *name;
    *service.name.hostname == *text || text.split_once('/').is_some_and(short)
}

fn find_workload<'a>(view: &'a View, text: &str) -> Option<&'a Workload> {
    let (namespace, name) = text.split_once('/')?;
    let is_it = |workload: &&std::sync::Arc<Workload>| workload.namespace == namespace && workload.name == name;
    view.workloads().find(is_it).map(|workload| &**workload)
}
