//! `mesh.dev/v1alpha1 MeshConfig`: what holds for the whole mesh and Kubernetes has no object for.

use ipnet::IpNet;

use super::{
    fields::Fields,
    metadata::{self, Metadata},
    node::ranges,
};

/// The one MeshConfig.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshSettings {
    /// `metadata`.
    pub metadata: Metadata,
    /// Trust domain of all identities; absent: the command line's.
    pub trust_domain: Option<String>,
    /// Namespace whose policies hold for the whole mesh.
    pub root_namespace: String,
    /// Ranges of pod addresses, added to those of the Nodes.
    pub pod_ranges: Vec<IpNet>,
    /// Ranges of service addresses, added to those of the ServiceCIDRs.
    pub service_ranges: Vec<IpNet>,
    /// First and last node port.
    pub node_ports: (u16, u16),
    /// Pods may ask to leave fail-closed.
    pub allow_fail_open: bool,
    /// Same-node traffic is encrypted too.
    pub encrypt_same_node: bool,
}

/// Istio's root namespace unless told otherwise.
pub const ROOT_NAMESPACE: &str = "istio-system";
/// Kubernetes' `--service-node-port-range`.
pub const NODE_PORTS: (u16, u16) = (30_000, 32_767);

/// Reads the MeshConfig.
pub fn read(object: &mut Fields<'_>) -> Option<MeshSettings> {
    let metadata = metadata::read(object, false);
    let mut settings = MeshSettings {
        metadata: Metadata::default(),
        trust_domain: None,
        root_namespace: ROOT_NAMESPACE.to_owned(),
        pod_ranges: Vec::new(),
        service_ranges: Vec::new(),
        node_ports: NODE_PORTS,
        allow_fail_open: false,
        encrypt_same_node: false,
    };
    if let Some(spec) = object.map("spec") {
        read_spec(spec, &mut settings);
    }
    Some(MeshSettings { metadata: metadata?, ..settings })
}

fn read_spec(mut spec: Fields<'_>, settings: &mut MeshSettings) {
    let problems = spec.problems();
    if let Some(domain) = spec.text("trustDomain") {
        match is_trust_domain(&domain.value) {
            true => settings.trust_domain = Some(domain.value),
            false => domain.refuse(problems, "a trust domain has lower-case letters, digits, '.', '-' and '_' only"),
        }
    }
    if let Some(namespace) = spec.text("rootNamespace") {
        match metadata::is_label(&namespace.value) {
            true => settings.root_namespace = namespace.value,
            false => namespace.refuse(problems, format!("{:?} is not the name of a namespace", namespace.value)),
        }
    }
    settings.pod_ranges = ranges(&mut spec, "podRanges");
    settings.service_ranges = ranges(&mut spec, "serviceRanges");
    if let Some(range) = spec.text("nodePortRange") {
        match port_range(&range.value) {
            Some(ports) => settings.node_ports = ports,
            None => range.refuse(problems, format!("{:?} is not a range like 30000-32767", range.value)),
        }
    }
    settings.allow_fail_open = spec.boolean("allowFailOpen").unwrap_or(false);
    settings.encrypt_same_node = spec.choice("sameNode", &[("direct", false), ("encrypt", true)]).unwrap_or(false);
    spec.finish();
}

fn port_range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-')?;
    let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (first > 0 && first <= last).then_some((first, last))
}

/// SPIFFE's characters of a trust domain. Source: SPIFFE-ID §2.1.
pub fn is_trust_domain(text: &str) -> bool {
    let is_good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'_');
    (1..=255).contains(&text.len()) && text.bytes().all(is_good)
}
