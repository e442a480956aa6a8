//! Who is in the mesh, by the labels that users set. The control daemon publishes by it and agents enrol by it, so that both
//! always mean the same pods.

/// Label of a namespace or a workload: [`AMBIENT`] is in the mesh, anything else is not. Source: Istio, ambient mode.
pub const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// The value of [`DATAPLANE_MODE`] that enrols.
pub const AMBIENT: &str = "ambient";
/// Annotation of a pod: `true` asks to leave in the clear while the agent is away.
pub const FAIL_OPEN: &str = "mesh.dev/fail-open";

/// Whether a workload is in the mesh. `own` and `inherited` are the values of [`DATAPLANE_MODE`] on it and on its namespace:
/// its own decides; without one, its namespace's. Nothing tells the sockets of workloads on the host's network from the
/// node's own, so these never are.
pub fn is_member(own: Option<&str>, inherited: Option<&str>, is_host_network: bool) -> bool {
    !is_host_network && own.or(inherited) == Some(AMBIENT)
}

#[cfg(test)]
mod tests {
    use super::is_member;

    #[test]
    fn the_own_label_decides_and_without_one_the_namespace() {
        let (ambient, none) = (Some("ambient"), Some("none"));
        let cases = [
            (None, None, false),
            (None, ambient, true),
            (None, none, false),
            (ambient, None, true),
            (ambient, none, true),
            (none, ambient, false),
            (Some(""), ambient, false),
            (Some("Ambient"), ambient, false),
            (Some("Kmesh"), None, false),
        ];
        for (own, inherited, expected) in cases {
            assert_eq!(is_member(own, inherited, false), expected, "{own:?} in {inherited:?}");
            assert!(!is_member(own, inherited, true), "{own:?} in {inherited:?} on the host's network");
        }
    }
}
