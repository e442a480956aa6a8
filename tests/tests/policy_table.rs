//! Every term of AuthorizationPolicy at L4 and every mode of PeerAuthentication, asked of real callers: across nodes, on
//! one node, and of `explain`. One row is one set of policies; it says which callers are let in, all others are not.

use std::fmt::Write;

use mesh_tests::{App, LIMIT, Mesh, eventually, protocol::Behaviour};

const PORT: u16 = 80;
const OTHER_PORT: u16 = 81;

/// Rules of one AuthorizationPolicy, in YAML's flow style.
struct Row {
    scope: Scope,
    action: &'static str,
    rules: &'static str,
    /// Callers that reach port 80, of `api web team plain`.
    allowed: &'static str,
    /// The same for port 81.
    allowed_on_other_port: &'static str,
}

#[derive(Clone, Copy, PartialEq)]
enum Scope {
    Mesh,
    Namespace,
    Selector,
    /// A selector that selects something else.
    Elsewhere,
}

const EVERYBODY: &str = "api web team plain";

/// A row in which both ports are judged alike.
const fn row(scope: Scope, action: &'static str, rules: &'static str, allowed: &'static str) -> Row {
    Row { scope, action, rules, allowed, allowed_on_other_port: allowed }
}

/// NEAR and OF_API stand for addresses of the mesh, put in when the row is applied.
#[rustfmt::skip]
const ROWS: &[Row] = &[
    row(Scope::Selector, "ALLOW", "[{from: [{source: {principals: ['cluster.local/ns/default/sa/api']}}]}]", "api"),
    row(Scope::Namespace, "ALLOW", "[{from: [{source: {principals: ['cluster.local/ns/default/sa/api']}}]}]", "api"),
    row(Scope::Mesh, "ALLOW", "[{from: [{source: {principals: ['cluster.local/ns/default/sa/api']}}]}]", "api"),
    row(Scope::Elsewhere, "ALLOW", "[{from: [{source: {principals: ['cluster.local/ns/default/sa/api']}}]}]", EVERYBODY),
    row(Scope::Selector, "DENY", "[{from: [{source: {principals: ['cluster.local/ns/default/sa/api']}}]}]", "web team plain"),
    row(Scope::Namespace, "DENY", "[{from: [{source: {principals: ['cluster.local/ns/default/sa/api']}}]}]", "web team plain"),
    row(Scope::Mesh, "DENY", "[{from: [{source: {principals: ['cluster.local/ns/default/sa/api']}}]}]", "web team plain"),
    row(Scope::Elsewhere, "DENY", "[{}]", EVERYBODY),
    row(Scope::Selector, "ALLOW", "[{from: [{source: {principals: ['cluster.local/ns/default/*']}}]}]", "api web"),
    row(Scope::Selector, "ALLOW", "[{from: [{source: {principals: ['*/sa/api']}}]}]", "api team"),
    row(Scope::Selector, "ALLOW", "[{from: [{source: {principals: ['*']}}]}]", "api web team"),
    row(Scope::Selector, "ALLOW", "[{from: [{source: {notPrincipals: ['*/sa/api']}}]}]", "web plain"),
    row(Scope::Selector, "DENY", "[{from: [{source: {notPrincipals: ['*']}}]}]", "api web team"),
    row(Scope::Selector, "DENY", "[{from: [{source: {notPrincipals: ['cluster.local/ns/team/*']}}]}]", "team"),
    row(Scope::Selector, "ALLOW", "[{from: [{source: {namespaces: ['team']}}]}]", "team"),
    row(Scope::Selector, "ALLOW", "[{from: [{source: {namespaces: ['def*']}}]}]", "api web"),
    row(Scope::Selector, "ALLOW", "[{from: [{source: {notNamespaces: ['team']}}]}]", "api web plain"),
    row(Scope::Namespace, "DENY", "[{from: [{source: {namespaces: ['default']}}]}]", "team plain"),
    row(Scope::Namespace, "DENY", "[{from: [{source: {notNamespaces: ['default']}}]}]", "api web"),
    row(Scope::Selector, "ALLOW", "[{from: [{source: {serviceAccounts: ['team/api']}}]}]", "team"),
    row(Scope::Selector, "ALLOW", "[{from: [{source: {serviceAccounts: ['api']}}]}]", "api"),
    row(Scope::Selector, "DENY", "[{from: [{source: {notServiceAccounts: ['default/web']}}]}]", "web"),
    row(Scope::Selector, "ALLOW", "[{from: [{source: {ipBlocks: ['OF_API/32']}}]}]", "api"),
    row(Scope::Selector, "ALLOW", "[{from: [{source: {ipBlocks: ['OF_API']}}]}]", "api"),
    row(Scope::Selector, "ALLOW", "[{from: [{source: {notIpBlocks: ['OF_API/32']}}]}]", "web team plain"),
    row(Scope::Selector, "DENY", "[{from: [{source: {ipBlocks: ['0.0.0.0/0']}}]}]", ""),
    row(Scope::Mesh, "DENY", "[{from: [{source: {ipBlocks: ['OF_API/32']}}]}]", "web team plain"),
    Row { scope: Scope::Selector, action: "ALLOW", rules: "[{to: [{operation: {ports: ['80']}}]}]", allowed: EVERYBODY, allowed_on_other_port: "" },
    Row { scope: Scope::Selector, action: "ALLOW", rules: "[{to: [{operation: {notPorts: ['80']}}]}]", allowed: "", allowed_on_other_port: EVERYBODY },
    Row { scope: Scope::Namespace, action: "DENY", rules: "[{to: [{operation: {ports: ['81']}}]}]", allowed: EVERYBODY, allowed_on_other_port: "" },
    Row { scope: Scope::Mesh, action: "DENY", rules: "[{to: [{operation: {notPorts: ['81']}}]}]", allowed: "", allowed_on_other_port: EVERYBODY },
    Row { scope: Scope::Selector, action: "ALLOW", rules: "[{from: [{source: {namespaces: ['team']}}], to: [{operation: {ports: ['81']}}]}]", allowed: "", allowed_on_other_port: "team" },
    Row { scope: Scope::Selector, action: "DENY", rules: "[{from: [{source: {namespaces: ['team']}}], to: [{operation: {ports: ['81']}}]}]", allowed: EVERYBODY, allowed_on_other_port: "api web plain" },
    row(Scope::Selector, "ALLOW", "[{when: [{key: source.ip, values: ['OF_API']}]}]", "api"),
    row(Scope::Selector, "ALLOW", "[{when: [{key: source.ip, notValues: ['OF_API/32']}]}]", "web team plain"),
    row(Scope::Selector, "ALLOW", "[{when: [{key: source.namespace, values: ['team']}]}]", "team"),
    row(Scope::Selector, "DENY", "[{when: [{key: source.principal, values: ['*/sa/web']}]}]", "api team plain"),
    row(Scope::Selector, "DENY", "[{when: [{key: source.principal, notValues: ['*/sa/web']}]}]", "web"),
    Row { scope: Scope::Selector, action: "ALLOW", rules: "[{when: [{key: destination.port, values: ['81']}]}]", allowed: "", allowed_on_other_port: EVERYBODY },
    row(Scope::Selector, "ALLOW", "[{when: [{key: destination.ip, values: ['192.0.2.0/24']}]}]", ""),
    row(Scope::Selector, "ALLOW", "[{from: [{source: {principals: ['*/sa/web']}}, {source: {namespaces: ['team']}}]}]", "web team"),
    row(Scope::Selector, "ALLOW", "[{from: [{source: {principals: ['*/sa/api'], namespaces: ['team']}}]}]", "team"),
    row(Scope::Selector, "ALLOW", "[{from: [{source: {principals: ['*/sa/web']}}]}, {from: [{source: {namespaces: ['team']}}]}]", "web team"),
    row(Scope::Selector, "ALLOW", "[{from: [{source: {principals: ['*/sa/api']}}], when: [{key: source.namespace, values: ['default']}]}]", "api"),
    row(Scope::Selector, "ALLOW", "[{}]", EVERYBODY),
    row(Scope::Namespace, "ALLOW", "[]", ""),
    row(Scope::Selector, "DENY", "[{}]", ""),
    row(Scope::Selector, "DENY", "[]", EVERYBODY),
];

/// PeerAuthentication: modes of namespace, workload and port, and who then gets in without a certificate.
#[rustfmt::skip]
const MODES: &[(&str, &str, bool, bool)] = &[
    ("STRICT", "", false, false),
    ("PERMISSIVE", "", true, true),
    ("STRICT", "  mtls: {mode: PERMISSIVE}\n", true, true),
    ("PERMISSIVE", "  mtls: {mode: STRICT}\n", false, false),
    ("STRICT", "  portLevelMtls: {81: {mode: PERMISSIVE}}\n", false, true),
    ("PERMISSIVE", "  portLevelMtls: {80: {mode: STRICT}}\n", false, true),
    ("STRICT", "  mtls: {mode: UNSET}\n  portLevelMtls: {80: {mode: PERMISSIVE}}\n", true, false),
    ("PERMISSIVE", "  mtls: {mode: STRICT}\n  portLevelMtls: {81: {mode: PERMISSIVE}}\n", false, true),
];

struct Cast {
    callers: Vec<App>,
    servers: Vec<App>,
}

fn cast(mesh: &Mesh) -> Cast {
    let team = mesh.app("team").in_namespace("team").account("api");
    let callers = vec![
        mesh.app("api").on("node-a"),
        mesh.app("web").on("node-a"),
        team.on("node-a"),
        mesh.app("plain").not_enrolled().on("node-a"),
    ];
    let servers = [("near", "node-a"), ("far", "node-b")].map(|(name, node)| {
        let app = mesh.app(name).labelled("app", "db").on(node);
        app.serving(PORT, Behaviour::Echo).serving(OTHER_PORT, Behaviour::Echo)
    });
    Cast { callers, servers: servers.into() }
}

/// Replaces the policies of the row before and waits until both agents have exactly this one.
fn apply(mesh: &Mesh, number: usize, row: &Row, api: &App) {
    let namespace = if row.scope == Scope::Mesh { "istio-system" } else { "default" };
    let selector = match row.scope {
        Scope::Selector => "  selector: {matchLabels: {app: db}}\n",
        Scope::Elsewhere => "  selector: {matchLabels: {app: something-else}}\n",
        Scope::Mesh | Scope::Namespace => "",
    };
    let rules = row.rules.replace("OF_API", &api.v4().to_string());
    let manifest = format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{namespace: {namespace}, name: row-{number}}}\n\
         spec:\n  action: {}\n{selector}  rules: {rules}\n",
        row.action
    );
    mesh.apply("row.yaml", &manifest);
    let name = format!("row-{number}");
    for node in mesh.nodes() {
        eventually(&format!("{} has {name} and no other row", node.name()), LIMIT, || {
            let policies = node.admin().policies().map_err(|status| status.to_string())?;
            let rows: Vec<_> = policies.iter().filter(|policy| policy.name.starts_with("row-")).collect();
            match rows[..] {
                [only] if only.name == name => Ok(()),
                _ => Err(format!("{rows:?} {}", mesh.control().log().lines().last().unwrap_or_default())),
            }
        });
    }
}

/// What differs from the row: by the traffic itself and by `explain`.
fn differences(mesh: &Mesh, cast: &Cast, row: &Row) -> String {
    let mut text = String::new();
    for (port, allowed) in [(PORT, row.allowed), (OTHER_PORT, row.allowed_on_other_port)] {
        for caller in &cast.callers {
            let expected = allowed.split(' ').any(|name| name == caller.name());
            for (server, node) in cast.servers.iter().zip(mesh.nodes()) {
                let dialled = caller.dial_at(server.at(port));
                if (dialled.was_answered(), dialled.was_refused()) != (expected, !expected) {
                    writeln!(text, "  {} to {}:{port}: {:?}", caller.name(), server.name(), dialled.report())
                        .expect("memory");
                }
                let explained = node.admin().explain(&caller.full_name(), &server.v4().to_string(), port);
                let verdict = explained.as_ref().map_or("no answer", |answer| answer.verdict.as_str());
                if (verdict == "allowed") != expected {
                    writeln!(text, "  {} to {}:{port}: explain says {explained:?}", caller.name(), server.name())
                        .expect("memory");
                }
            }
        }
    }
    text
}

#[test]
fn every_term_is_judged_alike_across_nodes_on_one_node_and_by_explain() {
    let mesh = Mesh::new();
    // Callers outside the mesh are among the cases.
    mesh.lets_some_pass_in_the_clear();
    let cast = cast(&mesh);
    mesh.settle();
    let mut failures = String::new();
    for (number, row) in ROWS.iter().enumerate() {
        apply(&mesh, number, row, &cast.callers[0]);
        let found = differences(&mesh, &cast, row);
        if !found.is_empty() {
            write!(
                failures,
                "row {number}: {} {}, expected {:?}/{:?}:\n{found}",
                row.action, row.rules, row.allowed, row.allowed_on_other_port
            )
            .expect("memory");
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
}

#[test]
fn every_mode_of_peer_authentication_is_judged_by_istios_precedence() {
    let mesh = Mesh::new();
    // Callers outside the mesh are among the cases.
    mesh.lets_some_pass_in_the_clear();
    let cast = cast(&mesh);
    mesh.settle();
    let plain = cast.callers.iter().find(|app| app.name() == "plain").expect("one of the cast");
    let api = &cast.callers[0];
    for (namespace_mode, workload, on_port, on_other_port) in MODES {
        let mut manifest = format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{namespace: default, name: default}}\n\
             spec:\n  mtls: {{mode: {namespace_mode}}}\n"
        );
        if !workload.is_empty() {
            write!(
                manifest,
                "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
                 metadata: {{namespace: default, name: db}}\nspec:\n  selector: {{matchLabels: {{app: db}}}}\n{workload}"
            )
            .expect("memory");
        }
        mesh.apply("modes.yaml", &manifest);
        for server in &cast.servers {
            for (port, is_open) in [(PORT, *on_port), (OTHER_PORT, *on_other_port)] {
                eventually(&format!("{namespace_mode} {workload:?} port {port} of {}", server.name()), LIMIT, || {
                    let dialled = plain.dial_at(server.at(port));
                    let is_right = if is_open { dialled.was_answered() } else { dialled.was_refused() };
                    if is_right { Ok(()) } else { Err(format!("{:?}", dialled.report())) }
                });
                api.dial_at(server.at(port)).is_answered();
            }
        }
    }
}
