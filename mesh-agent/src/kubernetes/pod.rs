//! What of a pod object decides about its enrolment, and nothing else of it: objects are large, and a node has hundreds.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use k8s_openapi::{
    api::core::v1::{Container, Lifecycle, LifecycleHandler, Pod, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use mesh_api::membership::{DATAPLANE_MODE, FAIL_OPEN, is_member};

/// Uid of a static pod on its node; its object at the API server has another. Source: kubelet, pkg/kubelet/types.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// One pod of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NodePod {
    pub(super) namespace: String,
    pub(super) name: String,
    /// As the runtime and its cgroup name it.
    pub(super) uid: String,
    pub(super) service_account: String,
    /// The label of its own.
    pub(super) mode: Option<String>,
    pub(super) wants_fail_open: bool,
    pub(super) is_host_network: bool,
    /// It belongs to the agent's own DaemonSet.
    pub(super) is_agent: bool,
    /// It has run to its end, and its addresses may be another's.
    pub(super) is_finished: bool,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) probe_ports: Vec<u16>,
}

/// Why a pod is not enrolled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outside {
    /// Nothing tells its sockets from the node's own.
    HostNetwork,
    /// It is an agent, or will be.
    Agent,
    /// No label asks for it.
    Label,
}

impl Outside {
    /// As operators read it.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::HostNetwork => "it is on the host's network",
            Self::Agent => "it is the mesh's own agent",
            Self::Label => "neither it nor its namespace is labelled istio.io/dataplane-mode=ambient",
        }
    }
}

impl NodePod {
    /// Reads an object; none without the fields that every object of an API server has.
    pub(super) fn read(pod: &Pod, daemon_set: Option<&(String, String)>) -> Option<Self> {
        let metadata = &pod.metadata;
        let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref());
        let annotation = |name: &str| metadata.annotations.as_ref().and_then(|all| all.get(name));
        let phase = status.and_then(|status| status.phase.as_deref());
        Some(Self {
            namespace: metadata.namespace.clone()?,
            name: metadata.name.clone()?,
            uid: annotation(MIRROR).filter(|uid| is_static(uid)).or(metadata.uid.as_ref())?.clone(),
            service_account: spec.service_account_name.clone().unwrap_or_else(|| "default".into()),
            mode: metadata.labels.as_ref().and_then(|all| all.get(DATAPLANE_MODE)).cloned(),
            wants_fail_open: annotation(FAIL_OPEN).is_some_and(|value| value == "true"),
            is_host_network: spec.host_network == Some(true),
            is_agent: daemon_set.is_some_and(|daemon_set| is_of(pod, daemon_set)),
            is_finished: matches!(phase, Some("Succeeded" | "Failed")),
            addresses: addresses(pod),
            probe_ports: probe_ports(spec.init_containers.iter().flatten().chain(&spec.containers)),
        })
    }

    /// Whether it is to be enrolled; `inherited` is its namespace's label.
    pub(super) fn wish(&self, inherited: Option<&str>) -> Result<(), Outside> {
        if self.is_host_network {
            Err(Outside::HostNetwork)
        } else if self.is_agent {
            Err(Outside::Agent)
        } else if is_member(self.mode.as_deref(), inherited, self.is_host_network) {
            Ok(())
        } else {
            Err(Outside::Label)
        }
    }
}

/// A kubelet's uid is a hash, an API server's is a UUID: who writes another pod's into the annotation is not believed, or could
/// withdraw that pod by a label of its own.
fn is_static(uid: &str) -> bool {
    uid.len() == 32 && uid.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_of(pod: &Pod, (namespace, name): &(String, String)) -> bool {
    let owners = pod.metadata.owner_references.iter().flatten();
    pod.metadata.namespace.as_ref() == Some(namespace)
        && owners.into_iter().any(|owner| owner.kind == "DaemonSet" && owner.name == *name)
}

fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else { return Vec::new() };
    let all = status.pod_ips.iter().flatten().map(|address| &address.ip).chain(&status.pod_ip);
    let mut found: Vec<IpAddr> = Vec::new();
    for address in all.filter_map(|text| text.parse::<IpAddr>().ok()) {
        if !found.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            found.push(address);
        }
    }
    found
}

/// Every port of the pod that the kubelet itself dials: of probes, and of hooks at a container's start and end.
fn probe_ports<'a>(containers: impl Iterator<Item = &'a Container>) -> Vec<u16> {
    let mut found = BTreeSet::new();
    for container in containers {
        let named: HashMap<&str, i32> = container
            .ports
            .iter()
            .flatten()
            .filter_map(|port| Some((port.name.as_deref()?, port.container_port)))
            .collect();
        let number = |port: &IntOrString| match port {
            IntOrString::Int(number) => Some(*number),
            IntOrString::String(name) => named.get(name.as_str()).copied().or_else(|| name.parse().ok()),
        };
        let probes = [&container.liveness_probe, &container.readiness_probe, &container.startup_probe];
        let of_probes = probes.into_iter().flatten().filter_map(|probe| dialled_by_probe(probe, number));
        let of_hooks = container.lifecycle.iter().flat_map(handlers).filter_map(|hook| dialled_by_hook(hook, number));
        found.extend(of_probes.chain(of_hooks).filter_map(|port| u16::try_from(port).ok()));
    }
    // No container can listen there in the mesh.
    found.retain(|port| *port != 0 && !mesh_common::is_own_port(*port));
    found.into_iter().collect()
}

fn dialled_by_probe(probe: &Probe, number: impl Fn(&IntOrString) -> Option<i32>) -> Option<i32> {
    let of_http = probe.http_get.as_ref().filter(|get| get.host.as_deref().unwrap_or_default().is_empty());
    let of_tcp = probe.tcp_socket.as_ref().filter(|tcp| tcp.host.as_deref().unwrap_or_default().is_empty());
    let port = of_http.map(|get| &get.port).or(of_tcp.map(|tcp| &tcp.port));
    port.and_then(number).or_else(|| probe.grpc.as_ref().map(|grpc| grpc.port))
}

fn handlers(lifecycle: &Lifecycle) -> impl Iterator<Item = &LifecycleHandler> {
    [&lifecycle.post_start, &lifecycle.pre_stop].into_iter().flatten()
}

fn dialled_by_hook(hook: &LifecycleHandler, number: impl Fn(&IntOrString) -> Option<i32>) -> Option<i32> {
    let of_http = hook.http_get.as_ref().filter(|get| get.host.as_deref().unwrap_or_default().is_empty());
    of_http.and_then(|get| number(&get.port))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(pod: Value) -> NodePod {
        let daemon_set = ("mesh-system".to_owned(), "mesh-agent".to_owned());
        NodePod::read(&serde_json::from_value(pod).unwrap(), Some(&daemon_set)).unwrap()
    }

    fn pod(metadata: Value, spec: Value) -> NodePod {
        let mut whole =
            json!({"metadata": {"name": "web", "namespace": "shop", "uid": "u1"}, "spec": {"containers": []}});
        merge(&mut whole["metadata"], metadata);
        merge(&mut whole["spec"], spec);
        read(whole)
    }

    fn merge(into: &mut Value, from: Value) {
        into.as_object_mut().unwrap().extend(from.as_object().unwrap().clone());
    }

    #[test]
    fn labels_decide_and_some_pods_are_never_enrolled() {
        let ambient = json!({"labels": {"istio.io/dataplane-mode": "ambient"}});
        let none = json!({"labels": {"istio.io/dataplane-mode": "none"}});
        let agent = json!({"namespace": "mesh-system", "labels": {"istio.io/dataplane-mode": "ambient"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "mesh-agent", "uid": "d"}]});
        let other = json!({"namespace": "shop", "labels": {"istio.io/dataplane-mode": "ambient"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "mesh-agent", "uid": "d"}]});
        let host = json!({"hostNetwork": true});
        let cases = [
            (json!({}), json!({}), None, Err(Outside::Label)),
            (json!({}), json!({}), Some("ambient"), Ok(())),
            (ambient.clone(), json!({}), None, Ok(())),
            (none, json!({}), Some("ambient"), Err(Outside::Label)),
            (ambient, host.clone(), None, Err(Outside::HostNetwork)),
            (json!({}), host, Some("ambient"), Err(Outside::HostNetwork)),
            (agent, json!({}), None, Err(Outside::Agent)),
            (other, json!({}), None, Ok(())),
        ];
        for (metadata, spec, inherited, expected) in cases {
            assert_eq!(pod(metadata.clone(), spec).wish(inherited), expected, "{metadata} in {inherited:?}");
        }
    }

    #[test]
    fn ports_of_probes_are_found_wherever_they_are_declared() {
        let found = pod(
            json!({}),
            json!({
                "initContainers": [{"name": "sidecar", "startupProbe": {"tcpSocket": {"port": 7000}}}],
                "containers": [
                    {"name": "a", "ports": [{"name": "web", "containerPort": 8080}, {"containerPort": 1}],
                     "livenessProbe": {"httpGet": {"port": "web"}}, "readinessProbe": {"grpc": {"port": 9000}}},
                    {"name": "b", "ports": [{"name": "web", "containerPort": 8081}],
                     "livenessProbe": {"httpGet": {"port": "web"}}, "readinessProbe": {"exec": {"command": ["true"]}},
                     "startupProbe": {"tcpSocket": {"port": 8080}},
                     "lifecycle": {"preStop": {"httpGet": {"port": 8082}}, "postStart": {"exec": {"command": ["true"]}}}},
                    {"name": "c", "livenessProbe": {"httpGet": {"port": "unknown"}},
                     "readinessProbe": {"httpGet": {"port": 1234, "host": "127.0.0.1"}},
                     "startupProbe": {"tcpSocket": {"port": 15001}}},
                ],
            }),
        );
        assert_eq!(found.probe_ports, [7000, 8080, 8081, 8082, 9000]);
    }

    #[test]
    fn a_static_pod_has_the_uid_of_its_node() {
        assert_eq!(pod(json!({}), json!({})).uid, "u1");
        let uid = |mirror: &str| pod(json!({"annotations": {"kubernetes.io/config.mirror": mirror}}), json!({})).uid;
        assert_eq!(uid("c0ffee00c0ffee00c0ffee00c0ffee00"), "c0ffee00c0ffee00c0ffee00c0ffee00");
        assert_eq!(uid("0b6f5f9c-8a3e-4f0e-9d7b-2f1c3a4b5c6d"), "u1", "another pod's");
    }

    #[test]
    fn what_the_status_says_is_read() {
        let with = |status: Value| {
            read(
                json!({"metadata": {"name": "a", "namespace": "b", "uid": "c"}, "spec": {"containers": []}, "status": status}),
            )
        };
        let addresses = |status: Value| with(status).addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            addresses(json!({"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]})),
            ["10.0.0.1", "fd00::1"]
        );
        assert_eq!(addresses(json!({"podIP": "10.0.0.1"})), ["10.0.0.1"]);
        assert_eq!(addresses(json!({})), Vec::<String>::new());
        for (phase, is_finished) in [("Pending", false), ("Running", false), ("Succeeded", true), ("Failed", true)] {
            assert_eq!(with(json!({"phase": phase})).is_finished, is_finished, "{phase}");
        }
    }

    #[test]
    fn only_the_word_true_asks_for_fail_open() {
        for (value, expected) in [("true", true), ("false", false), ("True", false), ("", false)] {
            assert_eq!(pod(json!({"annotations": {"mesh.dev/fail-open": value}}), json!({})).wants_fail_open, expected);
        }
    }
}
