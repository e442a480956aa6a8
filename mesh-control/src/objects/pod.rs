//! Pods: the running instances. Reads what makes a pod a workload (addresses, node, identity, ports, readiness) and
//! accepts by name what else Kubernetes users write in a pod.

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    fields::{Fields, Problems},
    metadata::{self, Metadata},
};

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// `metadata`.
    pub metadata: Metadata,
    /// Node it is bound to, empty before.
    pub node: String,
    /// Its ServiceAccount.
    pub service_account: String,
    /// True when it shares the node's network namespace.
    pub is_host_network: bool,
    /// Named container ports that carry TCP.
    pub ports: BTreeMap<String, u16>,
    /// Its addresses, first one first.
    pub addresses: Vec<IpAddr>,
    /// True once the pod has run to its end and its addresses may be another's.
    pub is_finished: bool,
    /// False when a Ready condition says so.
    pub is_ready: bool,
}

/// PodSpec of Kubernetes 1.34 without the fields read below. Source: k8s.io/api/core/v1 types.go.
const SPEC: [&str; 35] = [
    "activeDeadlineSeconds",
    "affinity",
    "automountServiceAccountToken",
    "dnsConfig",
    "dnsPolicy",
    "enableServiceLinks",
    "hostAliases",
    "hostIPC",
    "hostPID",
    "hostUsers",
    "hostname",
    "hostnameOverride",
    "imagePullSecrets",
    "nodeSelector",
    "os",
    "overhead",
    "preemptionPolicy",
    "priority",
    "priorityClassName",
    "readinessGates",
    "resourceClaims",
    "resources",
    "restartPolicy",
    "runtimeClassName",
    "schedulerName",
    "schedulingGates",
    "securityContext",
    "setHostnameAsFQDN",
    "shareProcessNamespace",
    "subdomain",
    "terminationGracePeriodSeconds",
    "tolerations",
    "topologySpreadConstraints",
    "volumes",
    "ephemeralContainers",
];

/// Container of Kubernetes 1.34 without the fields read below.
const CONTAINER: [&str; 24] = [
    "args",
    "command",
    "env",
    "envFrom",
    "image",
    "imagePullPolicy",
    "lifecycle",
    "livenessProbe",
    "name",
    "readinessProbe",
    "resizePolicy",
    "resources",
    "restartPolicy",
    "restartPolicyRules",
    "securityContext",
    "startupProbe",
    "stdin",
    "stdinOnce",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "tty",
    "volumeDevices",
    "volumeMounts",
    "workingDir",
];

/// PodStatus of Kubernetes 1.34 without the fields read below.
const STATUS: [&str; 16] = [
    "containerStatuses",
    "ephemeralContainerStatuses",
    "extendedResourceClaimStatus",
    "hostIP",
    "hostIPs",
    "initContainerStatuses",
    "message",
    "nominatedNodeName",
    "observedGeneration",
    "qosClass",
    "reason",
    "resize",
    "resourceClaimStatuses",
    "startTime",
    "allocatedResources",
    "resources",
];

/// Reads a pod.
pub fn read(object: &mut Fields<'_>) -> Option<Pod> {
    let metadata = metadata::read(object, true);
    let mut pod = Pod {
        metadata: Metadata::default(),
        node: String::new(),
        service_account: "default".to_owned(),
        is_host_network: false,
        ports: BTreeMap::new(),
        addresses: Vec::new(),
        is_finished: false,
        is_ready: true,
    };
    if let Some(spec) = object.map("spec") {
        read_spec(spec, &mut pod);
    }
    if let Some(status) = object.map("status") {
        read_status(status, &mut pod);
    }
    Some(Pod { metadata: metadata?, ..pod })
}

fn read_spec(mut spec: Fields<'_>, pod: &mut Pod) {
    let problems = spec.problems();
    if let Some(node) = spec.text("nodeName") {
        pod.node = node.value;
    }
    // `serviceAccount` is the deprecated spelling that the API server still fills in.
    let old = spec.text("serviceAccount");
    if let Some(account) = spec.text("serviceAccountName").or(old) {
        match metadata::is_subdomain(&account.value) {
            true => pod.service_account = account.value,
            false => account.refuse(problems, format!("{:?} is not the name of a ServiceAccount", account.value)),
        }
    }
    pod.is_host_network = spec.boolean("hostNetwork").unwrap_or(false);
    for name in ["containers", "initContainers"] {
        for container in spec.maps(name) {
            read_container(container, &mut pod.ports, problems);
        }
    }
    spec.accept(&SPEC);
    spec.finish();
}

fn read_container(mut container: Fields<'_>, ports: &mut BTreeMap<String, u16>, problems: &Problems) {
    for mut port in container.maps("ports") {
        let at = port.at();
        let name = port.text("name");
        let is_tcp = port.choice("protocol", &[("TCP", true), ("UDP", false), ("SCTP", false)]).unwrap_or(true);
        if !port.has("containerPort") {
            problems.push(at, port.path_of("containerPort"), "is required");
        }
        let number = port.port("containerPort");
        port.accept(&["hostIP", "hostPort"]);
        port.finish();
        if let (true, Some(name), Some(number)) = (is_tcp, name, number) {
            ports.entry(name.value).or_insert(number);
        }
    }
    container.accept(&CONTAINER);
    container.finish();
}

fn read_status(mut status: Fields<'_>, pod: &mut Pod) {
    let single = status.address("podIP");
    for mut item in status.maps("podIPs") {
        pod.addresses.extend(item.address("ip"));
        item.finish();
    }
    if let Some(address) = single.filter(|address| !pod.addresses.contains(address)) {
        pod.addresses.insert(0, address);
    }
    let phases = [("Pending", false), ("Running", false), ("Unknown", false), ("Succeeded", true), ("Failed", true)];
    pod.is_finished = status.choice("phase", &phases).unwrap_or(false);
    for mut condition in status.maps("conditions") {
        let kind = condition.required_text("type");
        let says_false = condition.text("status").is_some_and(|status| status.value != "True");
        if says_false && kind.is_some_and(|kind| kind.value == "Ready") {
            pod.is_ready = false;
        }
        condition.accept(&["lastProbeTime", "lastTransitionTime", "message", "observedGeneration", "reason"]);
        condition.finish();
    }
    status.accept(&STATUS);
    status.finish();
}
