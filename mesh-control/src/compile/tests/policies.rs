//! Who may connect under an AuthorizationPolicy, term by term and scope by scope.

use super::*;

/// `spec` of the one AuthorizationPolicy in `shop`, and calls with what is to come of them.
type Case = (&'static str, &'static [(Call, bool)]);

const A: Call = call("shop/a", "shop/web", 80);
const B: Call = call("other/b", "shop/web", 80);
const NOBODY: Call = plaintext("shop/web", 80);

const CASES: &[Case] = &[
    (
        "{}",
        &[(A, false), (NOBODY, false), (call("shop/a", "shop/db", 1), false), (call("shop/a", "other/far", 80), true)],
    ),
    ("{rules: [{}]}", &[(A, true), (NOBODY, true)]),
    ("{action: DENY, rules: [{}]}", &[(A, false), (call("shop/a", "other/far", 80), true)]),
    ("{selector: {matchLabels: {app: web}}}", &[(A, false), (call("shop/a", "shop/db", 80), true)]),
    ("{selector: {matchLabels: {}}}", &[(A, false), (call("shop/a", "shop/db", 80), false)]),
    ("{selector: {matchLabels: {app: web, x: y}}}", &[(A, true)]),
    (
        "{rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/a]}}]}]}",
        &[(A, true), (B, false), (NOBODY, false)],
    ),
    ("{rules: [{from: [{source: {principals: [cluster.local/ns/shop/*]}}]}]}", &[(A, true), (B, false)]),
    ("{rules: [{from: [{source: {principals: ['*/sa/b']}}]}]}", &[(A, false), (B, true)]),
    ("{rules: [{from: [{source: {principals: ['*']}}]}]}", &[(A, true), (B, true), (NOBODY, false)]),
    ("{action: DENY, rules: [{from: [{source: {notPrincipals: ['*']}}]}]}", &[(A, true), (NOBODY, false)]),
    (
        "{rules: [{from: [{source: {notPrincipals: [cluster.local/ns/other/sa/b]}}]}]}",
        &[(A, true), (B, false), (NOBODY, true)],
    ),
    ("{rules: [{from: [{source: {namespaces: [shop]}}]}]}", &[(A, true), (B, false), (NOBODY, false)]),
    ("{rules: [{from: [{source: {namespaces: [oth*]}}]}]}", &[(A, false), (B, true)]),
    ("{rules: [{from: [{source: {notNamespaces: [shop]}}]}]}", &[(A, false), (B, true), (NOBODY, true)]),
    (
        "{rules: [{from: [{source: {serviceAccounts: [a]}}]}]}",
        &[(A, true), (B, false), (call("other/a", "shop/web", 80), false)],
    ),
    ("{rules: [{from: [{source: {serviceAccounts: [other/b]}}]}]}", &[(A, false), (B, true)]),
    ("{rules: [{from: [{source: {notServiceAccounts: [other/b]}}]}]}", &[(A, true), (B, false), (NOBODY, true)]),
    (
        "{rules: [{from: [{source: {ipBlocks: [10.1.0.0/16]}}]}]}",
        &[(A, true), (Call { address: "10.2.0.1", ..A }, false)],
    ),
    ("{rules: [{from: [{source: {ipBlocks: [10.1.0.9/16]}}]}]}", &[(A, true)]),
    ("{rules: [{from: [{source: {ipBlocks: [10.1.0.1]}}]}]}", &[(A, true), (Call { address: "10.1.0.2", ..A }, false)]),
    ("{rules: [{from: [{source: {ipBlocks: ['::/0']}}]}]}", &[(A, false)]),
    (
        "{rules: [{from: [{source: {notIpBlocks: [10.1.0.0/16]}}]}]}",
        &[(A, false), (Call { address: "10.2.0.1", ..A }, true)],
    ),
    ("{rules: [{to: [{operation: {ports: ['80', '81']}}]}]}", &[(A, true), (call("shop/a", "shop/web", 82), false)]),
    ("{rules: [{to: [{operation: {ports: [80]}}]}]}", &[(A, true)]),
    ("{rules: [{to: [{operation: {notPorts: ['80']}}]}]}", &[(A, false), (call("shop/a", "shop/web", 82), true)]),
    // Inside a source everything has to hold, of the sources any, and from, to and when all.
    (
        "{rules: [{from: [{source: {namespaces: [shop], notPrincipals: ['*/sa/a']}}]}]}",
        &[(A, false), (call("shop/c", "shop/web", 80), true)],
    ),
    (
        "{rules: [{from: [{source: {namespaces: [shop]}}, {source: {namespaces: [other]}}]}]}",
        &[(A, true), (B, true), (NOBODY, false)],
    ),
    (
        "{rules: [{from: [{source: {namespaces: [shop]}}], to: [{operation: {ports: ['80']}}]}]}",
        &[(A, true), (B, false), (call("shop/a", "shop/web", 81), false)],
    ),
    (
        "{rules: [{from: [{source: {namespaces: [shop]}}]}, {to: [{operation: {ports: ['81']}}]}]}",
        &[(A, true), (B, false), (call("other/b", "shop/web", 81), true)],
    ),
    (
        "{rules: [{when: [{key: source.ip, values: [10.1.0.0/16]}]}]}",
        &[(A, true), (Call { address: "10.2.0.1", ..A }, false)],
    ),
    ("{rules: [{when: [{key: source.ip, notValues: [10.1.0.0/16]}]}]}", &[(A, false)]),
    ("{rules: [{when: [{key: source.namespace, values: [shop]}]}]}", &[(A, true), (B, false)]),
    ("{rules: [{when: [{key: source.namespace, notValues: [shop]}]}]}", &[(A, false), (B, true)]),
    ("{rules: [{when: [{key: source.principal, values: ['*/sa/a']}]}]}", &[(A, true), (B, false)]),
    ("{rules: [{when: [{key: source.principal, notValues: ['*']}]}]}", &[(A, false), (NOBODY, true)]),
    ("{rules: [{when: [{key: source.serviceAccount, values: [shop/a]}]}]}", &[(A, true), (B, false)]),
    ("{rules: [{when: [{key: source.serviceAccount, notValues: [a]}]}]}", &[(A, false), (B, true)]),
    (
        "{rules: [{when: [{key: destination.ip, values: [10.0.0.1]}]}]}",
        &[(A, true), (call("shop/a", "shop/db", 80), false)],
    ),
    (
        "{rules: [{when: [{key: destination.ip, notValues: [10.0.0.1/32]}]}]}",
        &[(A, false), (call("shop/a", "shop/db", 80), true)],
    ),
    (
        "{rules: [{when: [{key: destination.port, values: ['80']}]}]}",
        &[(A, true), (call("shop/a", "shop/web", 81), false)],
    ),
    (
        "{rules: [{when: [{key: destination.port, notValues: ['80']}]}]}",
        &[(A, false), (call("shop/a", "shop/web", 81), true)],
    ),
    (
        "{rules: [{when: [{key: destination.port, values: ['80', '81'], notValues: ['81']}]}]}",
        &[(A, true), (call("shop/a", "shop/web", 81), false)],
    ),
    (
        "{rules: [{when: [{key: source.namespace, values: [shop]}, {key: destination.port, values: ['80']}]}]}",
        &[(A, true), (B, false), (call("shop/a", "shop/web", 81), false)],
    ),
];

#[test]
fn every_term_means_what_istio_says() {
    for (spec, calls) in CASES {
        let resources = compiled(&format!("{PODS}{}", policy("shop", "p", spec)));
        for (call, expected) in *calls {
            assert_eq!(allows(&resources, *call), *expected, "{spec}\n{call:?}");
        }
    }
}

pub fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n---\n"
    )
}

#[test]
fn a_denial_comes_before_every_permission() {
    let allow = policy("shop", "allow", "{rules: [{}]}");
    let deny = policy("shop", "deny", "{action: DENY, rules: [{from: [{source: {namespaces: [other]}}]}]}");
    let resources = compiled(&format!("{PODS}{allow}{deny}"));
    assert!(allows(&resources, A) && !allows(&resources, B));
}

#[test]
fn the_root_namespace_speaks_for_the_whole_mesh() {
    let all = compiled(&format!("{PODS}{}", policy("istio-system", "none", "{}")));
    assert!(!allows(&all, A) && !allows(&all, call("shop/a", "other/far", 80)));
    assert_eq!(all.authorizations["istio-system/none"].scope(), Scope::Global);
    let web = compiled(&format!("{PODS}{}", policy("istio-system", "none", "{selector: {matchLabels: {app: web}}}")));
    assert!(
        !allows(&web, A)
            && !allows(&web, call("shop/a", "other/far", 80))
            && allows(&web, call("shop/a", "shop/db", 80))
    );
    let settings =
        "apiVersion: mesh.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: mesh}\nspec: {rootNamespace: root}\n---\n";
    let moved = compiled(&format!("{PODS}{settings}{}", policy("istio-system", "none", "{}")));
    assert!(allows(&moved, A), "it is a namespace like others now");
}

#[test]
fn a_dry_run_is_marked() {
    let text = policy("shop", "p", "{}").replace("name: p,", "name: p, annotations: {istio.io/dry-run: 'true'},");
    let resources = compiled(&format!("{PODS}{text}"));
    assert!(resources.authorizations["shop/p"].dry_run && allows(&resources, A));
}

#[test]
fn a_policy_nobody_can_read_closes_its_scope() {
    let l7 = "[{to: [{operation: {methods: [GET]}}]}]";
    let narrow = compiled_with_mistakes(&policy(
        "shop",
        "p",
        &format!("{{selector: {{matchLabels: {{app: web}}}}, rules: {l7}}}"),
    ));
    assert!(!allows(&narrow, A) && allows(&narrow, call("shop/a", "shop/db", 80)));
    let wide = compiled_with_mistakes(&policy("shop", "p", &format!("{{rules: {l7}}}")));
    assert!(
        !allows(&wide, A)
            && !allows(&wide, call("shop/a", "shop/db", 80))
            && allows(&wide, call("shop/a", "other/far", 80))
    );
    let peer = policy("shop", "p", "{mtls: {mode: STRICTT}}").replace("AuthorizationPolicy", "PeerAuthentication");
    assert!(!allows(&compiled_with_mistakes(&peer), A));
    let mesh = compiled_with_mistakes(&policy("istio-system", "p", &format!("{{rules: {l7}}}")));
    assert!(!allows(&mesh, call("shop/a", "other/far", 80)));
}
