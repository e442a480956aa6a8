//! What the View lacks for the enrolled pods to be in the mesh, as lines of `meshctl check`: a pod may be steered and yet be
//! unknown to everybody else, or known as one that is reached in the clear.

use mesh_api::proto::admin::CheckRow;

use super::check::{ok, warning};
use crate::{
    enrol::{Pod, PodTable},
    view::{Protocol, View},
};

/// Each enrolled pod is in the View, as a member of the mesh.
pub(super) fn pods(pods: &PodTable, view: &View) -> CheckRow {
    let names = |wanted: fn(&Pod, &View) -> bool| {
        let mut names: Vec<String> =
            pods.by_uid.values().filter(|pod| wanted(pod, view)).map(|pod| pod.full_name()).collect();
        names.sort_unstable();
        names.join(", ")
    };
    let unknown = names(|pod, view| pod.workload(view).is_none());
    let plain = names(|pod, view| pod.workload(view).is_some_and(|workload| workload.protocol == Protocol::Plaintext));
    match (unknown.is_empty(), plain.is_empty()) {
        (true, true) => ok("pods", format!("{} enrolled", pods.by_uid.len())),
        (false, _) => warning(
            "pods",
            format!("not in the View: {unknown}"),
            "does mesh-control have the pod with this name, service account and address?",
        ),
        (true, false) => warning(
            "pods",
            format!("enrolled, and published as not in the mesh: {plain}; others dial them in the clear"),
            "label the pod or its namespace istio.io/dataplane-mode=ambient",
        ),
    }
}

/// Without these an unknown address of the cluster looks like one of the world outside.
pub(super) fn ranges(view: Option<&View>) -> CheckRow {
    let Some(view) = view else { return ok("ranges", "no View yet: nothing passes") };
    match (view.mesh.pod_ranges.is_empty(), view.mesh.service_ranges.is_empty()) {
        (false, false) => ok("ranges", "pod and service ranges of the cluster are known"),
        (no_pods, _) => warning(
            "ranges",
            format!(
                "no {} ranges: addresses there that the View does not know are dialled in the clear",
                if no_pods { "pod" } else { "service" }
            ),
            "set podRanges and serviceRanges of the MeshConfig, or podCIDR of Nodes and a ServiceCIDR",
        ),
    }
}

#[cfg(test)]
mod tests {
    use mesh_api::proto::workload::TunnelProtocol;

    use super::*;
    use crate::{proving, view::fixtures};

    #[test]
    fn a_pod_that_the_view_lacks_or_has_outside_the_mesh_is_named() {
        let pod = proving::pod(1, "web", "10.0.0.1".parse().unwrap());
        let enrolled = proving::table(&[pod]);
        let row = |workloads: Vec<_>| pods(&enrolled, &fixtures::view(workloads, [], []));
        let member = fixtures::pod("web", &["10.0.0.1"]);
        let mut outside = member.clone();
        outside.tunnel_protocol = TunnelProtocol::None as i32;

        assert_eq!(row(vec![member]).result, "ok");
        let unknown = row(vec![]);
        assert_eq!((unknown.result.as_str(), unknown.text.as_str()), ("warning", "not in the View: default/web"));
        let outside = row(vec![outside]);
        assert_eq!(outside.result, "warning");
        assert!(outside.text.contains("default/web") && outside.remedy.contains("ambient"), "{outside:?}");
    }

    #[test]
    fn a_mesh_without_ranges_is_warned_of() {
        let mut view = View::default();
        assert!(ranges(Some(&view)).text.starts_with("no pod ranges"));
        view.mesh.pod_ranges.push("10.0.0.0/8".parse().unwrap());
        assert!(ranges(Some(&view)).text.starts_with("no service ranges"));
        view.mesh.service_ranges.push("10.96.0.0/12".parse().unwrap());
        assert_eq!(ranges(Some(&view)).result, "ok");
        assert_eq!(ranges(None).result, "ok");
    }
}
