//! The Kubernetes manifests that the control daemon of a mesh is given. Text, as a person would write it.

use crate::addresses::Pair;

/// What a pod's manifest says.
pub struct Pod<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    pub account: &'a str,
    pub node: &'a str,
    pub uid: &'a str,
    pub labels: &'a [(String, String)],
    pub addresses: Pair,
    pub ports: &'a [(String, u16)],
}

impl Pod<'_> {
    pub fn manifest(&self) -> String {
        let Self { namespace, name, account, node, uid, addresses: Pair { v4, v6 }, .. } = self;
        let labels: String = self.labels.iter().map(|(key, value)| format!("    {key}: \"{value}\"\n")).collect();
        let ports: String = self
            .ports
            .iter()
            .map(|(name, port)| format!("        - {{name: {name}, containerPort: {port}}}\n"))
            .collect();
        let ports = if ports.is_empty() { ports } else { format!("      ports:\n{ports}") };
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  namespace: {namespace}\n  name: {name}\n  uid: \"{uid}\"\n  \
             labels:\n{labels}spec:\n  nodeName: {node}\n  serviceAccountName: {account}\n  containers:\n    \
             - name: app\n      image: none\n{ports}status:\n  phase: Running\n  podIP: \"{v4}\"\n  podIPs:\n    \
             - ip: \"{v4}\"\n    - ip: \"{v6}\"\n  conditions:\n    - {{type: Ready, status: \"True\"}}\n"
        )
    }
}

/// A namespace whose pods are in the mesh.
pub fn namespace(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels:\n    \
         istio.io/dataplane-mode: ambient\n"
    )
}

/// A node with its own addresses.
pub fn node(name: &str, Pair { v4, v6 }: Pair) -> String {
    format!(
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\nstatus:\n  addresses:\n    \
         - {{type: InternalIP, address: \"{v4}\"}}\n    - {{type: InternalIP, address: \"{v6}\"}}\n"
    )
}

/// The mesh's settings; `extra` are further lines of its spec.
pub fn mesh(pod_ranges: &[String], service_ranges: &[String], extra: &str) -> String {
    let list = |ranges: &[String]| ranges.iter().map(|range| format!("    - \"{range}\"\n")).collect::<String>();
    format!(
        "apiVersion: mesh.dev/v1alpha1\nkind: MeshConfig\nmetadata:\n  name: mesh\nspec:\n  podRanges:\n{}  \
         serviceRanges:\n{}{extra}",
        list(pod_ranges),
        list(service_ranges),
    )
}
