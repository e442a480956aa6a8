//! Who may connect without an identity, by the modes of mesh, namespace, workload and port.

use super::*;

fn peer(namespace: &str, name: &str, spec: &str) -> String {
    super::policies::policy(namespace, name, spec).replace("AuthorizationPolicy", "PeerAuthentication")
}

/// Modes of mesh, namespace and workload (empty: no such object; the last with ports), and whether plaintext to
/// ports 80 and 81 of `shop/web` is accepted.
const CASES: &[(&str, &str, &str, bool, bool)] = &[
    ("", "", "", true, true),
    ("STRICT", "", "", false, false),
    ("PERMISSIVE", "", "", true, true),
    ("UNSET", "", "", true, true),
    ("", "STRICT", "", false, false),
    ("STRICT", "PERMISSIVE", "", true, true),
    ("STRICT", "UNSET", "", false, false),
    ("PERMISSIVE", "STRICT", "", false, false),
    ("", "", "mtls: {mode: STRICT}", false, false),
    ("STRICT", "", "mtls: {mode: PERMISSIVE}", true, true),
    ("", "STRICT", "mtls: {mode: PERMISSIVE}", true, true),
    ("PERMISSIVE", "PERMISSIVE", "mtls: {mode: STRICT}", false, false),
    ("", "STRICT", "mtls: {mode: UNSET}", false, false),
    ("", "", "portLevelMtls: {80: {mode: STRICT}}", false, true),
    ("STRICT", "", "portLevelMtls: {80: {mode: PERMISSIVE}}", true, false),
    ("", "STRICT", "portLevelMtls: {80: {mode: PERMISSIVE}}", true, false),
    ("STRICT", "PERMISSIVE", "portLevelMtls: {80: {mode: STRICT}}", false, true),
    ("", "", "mtls: {mode: STRICT}, portLevelMtls: {80: {mode: PERMISSIVE}}", true, false),
    ("", "", "mtls: {mode: STRICT}, portLevelMtls: {80: {mode: STRICT}}", false, false),
    ("", "", "mtls: {mode: STRICT}, portLevelMtls: {80: {mode: UNSET}}", false, false),
    ("STRICT", "", "mtls: {mode: PERMISSIVE}, portLevelMtls: {80: {mode: STRICT}}", false, true),
    ("STRICT", "STRICT", "mtls: {mode: PERMISSIVE}, portLevelMtls: {81: {mode: PERMISSIVE}}", true, true),
    ("STRICT", "", "portLevelMtls: {80: {mode: PERMISSIVE}, 81: {mode: PERMISSIVE}}", true, true),
    ("", "", "portLevelMtls: {80: {mode: STRICT}, 81: {mode: STRICT}}", false, false),
];

#[test]
fn the_nearest_scope_decides() {
    for case in CASES {
        let (mesh, namespace, workload, first, second) = *case;
        let mut text = PODS.to_owned();
        let wide = [("istio-system", mesh), ("shop", namespace)];
        for (home, mode) in wide.into_iter().filter(|(_, mode)| !mode.is_empty()) {
            text += &peer(home, "default", &format!("{{mtls: {{mode: {mode}}}}}"));
        }
        if !workload.is_empty() {
            text += &peer("shop", "web", &format!("{{selector: {{matchLabels: {{app: web}}}}, {workload}}}"));
        }
        let resources = compiled(&text);
        assert_eq!(allows(&resources, plaintext("shop/web", 80)), first, "port 80 of {case:?}");
        assert_eq!(allows(&resources, plaintext("shop/web", 81)), second, "port 81 of {case:?}");
        for port in [80, 81] {
            assert!(allows(&resources, call("shop/a", "shop/web", port)), "an identity is always enough: {case:?}");
        }
        let beside = !matches!((mesh, namespace), ("STRICT", "" | "UNSET") | (_, "STRICT"));
        assert_eq!(allows(&resources, plaintext("shop/db", 80)), beside, "another workload of {case:?}");
    }
}

#[test]
fn of_two_in_one_scope_the_older_holds() {
    let at = |text: String, time: &str| text.replace("name: ", &format!("creationTimestamp: '{time}', name: "));
    let old = at(peer("shop", "z", "{mtls: {mode: STRICT}}"), "2026-01-01T00:00:00Z");
    let new = at(peer("shop", "a", "{mtls: {mode: PERMISSIVE}}"), "2026-02-01T00:00:00Z");
    assert!(!allows(&compiled(&format!("{PODS}{new}{old}")), plaintext("shop/web", 80)));
    let undated = peer("shop", "a", "{mtls: {mode: PERMISSIVE}}");
    assert!(!allows(&compiled(&format!("{PODS}{undated}{old}")), plaintext("shop/web", 80)));
}

#[test]
fn a_workload_refers_to_istios_names() {
    let strict = compiled(&format!("{PODS}{}", peer("shop", "default", "{mtls: {mode: STRICT}}")));
    assert_eq!(
        strict.workloads["Kubernetes//Pod/shop/web"].authorization_policies,
        ["istio-system/istio_converted_static_strict"]
    );
}
