//! What pods and WorkloadEntries become.

use mesh_api::proto::workload::{NetworkMode, TunnelProtocol, Workload, WorkloadStatus, WorkloadType};

use super::*;

fn workload(text: &str) -> Workload {
    compiled(text).workloads.into_values().next().expect("one workload")
}

#[test]
fn the_label_of_the_pod_decides_and_then_its_namespaces() {
    let cases = [
        ("", "", false),
        ("ambient", "", true),
        ("none", "", false),
        ("", "ambient", true),
        ("ambient", "none", false),
        ("none", "ambient", true),
        ("ambient", "ambient", true),
        ("sidecar", "", false),
    ];
    let label =
        |mode: &str| if mode.is_empty() { "{}".to_owned() } else { format!("{{istio.io/dataplane-mode: {mode}}}") };
    for (namespace, own, is_enrolled) in cases {
        for is_host_network in [false, true] {
            let home = format!(
                "apiVersion: v1\nkind: Namespace\nmetadata: {{name: default, labels: {}}}\n---\n",
                label(namespace)
            );
            let pod = pod(&format!(
                "metadata: {{name: a, labels: {}}}\nspec: {{hostNetwork: {is_host_network}}}\nstatus: {{podIP: 10.0.0.1}}",
                label(own)
            ));
            let workload = workload(&format!("{home}{pod}"));
            let expected = if is_enrolled && !is_host_network { TunnelProtocol::Hbone } else { TunnelProtocol::None };
            assert_eq!(workload.tunnel_protocol(), expected, "{namespace:?} {own:?} {is_host_network}");
            let mode = if is_host_network { NetworkMode::HostNetwork } else { NetworkMode::Standard };
            assert_eq!(workload.network_mode(), mode);
        }
    }
}

#[test]
fn a_pod_becomes_a_workload() {
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {topology.kubernetes.io/region: r, topology.kubernetes.io/zone: z}}\n---\n";
    let text = pod(
        "metadata: {name: web-6f-x, namespace: shop, labels: {app: web, version: v2, pod-template-hash: 6f}, ownerReferences: [{kind: ReplicaSet, name: web-6f, controller: true}]}\nspec: {nodeName: n1, serviceAccountName: s}\nstatus: {podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}], conditions: [{type: Ready, status: 'True'}]}",
    );
    let found = workload(&format!("{node}{text}"));
    assert_eq!(found.uid, "Kubernetes//Pod/shop/web-6f-x");
    assert_eq!(found.addresses.iter().map(Vec::len).collect::<Vec<_>>(), [4, 16]);
    assert_eq!(
        (found.node.as_str(), found.service_account.as_str(), found.trust_domain.as_str()),
        ("n1", "s", "cluster.local")
    );
    assert_eq!((found.canonical_name.as_str(), found.canonical_revision.as_str()), ("web", "v2"));
    assert_eq!((found.workload_type(), found.workload_name.as_str()), (WorkloadType::Deployment, "web"));
    assert_eq!(found.locality.clone().map(|at| (at.region, at.zone)), Some(("r".into(), "z".into())));
    assert_eq!(found.status(), WorkloadStatus::Healthy);
}

#[test]
fn a_pod_that_is_not_ready_is_unhealthy_and_a_finished_one_is_gone() {
    let with = |status: &str, metadata: &str| {
        compiled(&pod(&format!(
            "metadata: {{name: a{metadata}}}\nspec: {{nodeName: n}}\nstatus: {{podIP: 10.0.0.1{status}}}"
        )))
    };
    let status = |resources: &Resources| resources.workloads.values().next().map(Workload::status);
    assert_eq!(status(&with(", conditions: [{type: Ready, status: 'False'}]", "")), Some(WorkloadStatus::Unhealthy));
    assert_eq!(status(&with("", ", deletionTimestamp: '2026-01-01T00:00:00Z'")), Some(WorkloadStatus::Unhealthy));
    assert_eq!(
        status(&with(", conditions: [{type: Initialized, status: 'False'}]", "")),
        Some(WorkloadStatus::Healthy)
    );
    let gone = with(", phase: Succeeded", "");
    assert!(
        gone.workloads.is_empty() && gone.accounts.is_empty(),
        "its address and its certificates are another's now"
    );
    let early = compiled(&pod("metadata: {name: a}\nspec: {nodeName: n}"));
    assert!(
        early.workloads.is_empty() && early.accounts["n"].len() == 1,
        "certificates may be asked for before there is an address"
    );
}

#[test]
fn an_entry_is_served_by_the_node_it_names() {
    let entry = |annotations: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: vm, namespace: shop, labels: {{istio.io/dataplane-mode: ambient}}, annotations: {{{annotations}}}}}\nspec: {{address: 10.9.0.1, serviceAccount: vm, labels: {{app: vm}}, weight: 3}}\n"
        )
    };
    let served = compiled(&entry("mesh.dev/node: n1"));
    let found = &served.workloads["Kubernetes/networking.istio.io/WorkloadEntry/shop/vm"];
    assert_eq!((found.tunnel_protocol(), found.node.as_str(), found.capacity), (TunnelProtocol::Hbone, "n1", Some(3)));
    assert_eq!(served.entry_accounts["n1"].len(), 1);
    let alone = compiled(&entry(""));
    assert_eq!(alone.workloads.values().next().map(Workload::tunnel_protocol), Some(TunnelProtocol::None));
    assert!(alone.entry_accounts.is_empty());
}
