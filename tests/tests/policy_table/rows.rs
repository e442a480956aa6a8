//! The table: sets of policies, and who is then let in. Every row is judged for two pods of one ServiceAccount that differ
//! only in a label: `db`, and its sibling `cache`, which policies with a selector for `db` leave alone.

/// One set of policies; who is not named is not let in.
pub struct Row {
    pub policy: Policy,
    /// Further documents that hold beside it.
    pub beside: &'static str,
    pub family: Family,
    /// Callers that reach port 80 of `db`, of `api web team plain`.
    pub allowed: &'static str,
    /// The same for port 81.
    pub allowed_on_other_port: &'static str,
    /// Callers that reach port 80 of the sibling.
    pub allowed_at_sibling: &'static str,
}

/// What the row is about.
pub enum Policy {
    /// An AuthorizationPolicy: its rules in YAML's flow style. OF_API and V6_OF_API stand for addresses of `api`.
    Authorization { scope: Scope, action: &'static str, is_dry_run: bool, rules: &'static str },
    /// PeerAuthentications: the modes of mesh and namespace (empty: none), and further lines of one for `db`.
    Peers { mesh: &'static str, namespace: &'static str, workload: &'static str },
}

/// Which workloads a policy selects.
#[derive(Clone, Copy, PartialEq)]
pub enum Scope {
    Mesh,
    Namespace,
    /// `db`.
    Selector,
    /// The sibling.
    Sibling,
}

/// What callers dial.
#[derive(Clone, Copy, PartialEq)]
pub enum Family {
    V4,
    V6,
}

pub const EVERYBODY: &str = "api web team plain";
const MEMBERS: &str = "api web team";

/// A row in which both ports are judged alike.
const fn row(scope: Scope, action: &'static str, rules: &'static str, allowed: &'static str) -> Row {
    ports(scope, action, rules, allowed, allowed)
}

/// A row in which they are not.
const fn ports(
    scope: Scope,
    action: &'static str,
    rules: &'static str,
    allowed: &'static str,
    allowed_on_other_port: &'static str,
) -> Row {
    let allowed_at_sibling = if matches!(scope, Scope::Selector) { EVERYBODY } else { allowed };
    let policy = Policy::Authorization { scope, action, is_dry_run: false, rules };
    Row { policy, beside: "", family: Family::V4, allowed, allowed_on_other_port, allowed_at_sibling }
}

/// A policy that selects the sibling alone.
const fn sibling(action: &'static str, rules: &'static str, allowed_at_sibling: &'static str) -> Row {
    Row { allowed_at_sibling, ..row(Scope::Sibling, action, rules, EVERYBODY) }
}

/// A policy that is only tried out: it keeps nobody out.
const fn tried(scope: Scope, action: &'static str, rules: &'static str) -> Row {
    let policy = Policy::Authorization { scope, action, is_dry_run: true, rules };
    Row { policy, ..row(scope, action, rules, EVERYBODY) }
}

const fn over_v6(row: Row) -> Row {
    Row { family: Family::V6, ..row }
}

const fn beside(beside: &'static str, row: Row) -> Row {
    Row { beside, ..row }
}

/// PeerAuthentications, and whether callers without a certificate get to ports 80 and 81 of `db`, and to the sibling.
const fn peers(mesh: &'static str, namespace: &'static str, workload: &'static str, open: [bool; 3]) -> Row {
    const fn who(is_open: bool) -> &'static str {
        if is_open { EVERYBODY } else { MEMBERS }
    }
    Row {
        policy: Policy::Peers { mesh, namespace, workload },
        beside: "",
        family: Family::V4,
        allowed: who(open[0]),
        allowed_on_other_port: who(open[1]),
        allowed_at_sibling: who(open[2]),
    }
}

const DENY_API: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
    metadata: {namespace: default, name: deny-api}\n\
    spec: {action: DENY, rules: [{from: [{source: {principals: ['cluster.local/ns/default/sa/api']}}]}]}\n";
const ALLOW_TEAM_ON_81: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
    metadata: {namespace: istio-system, name: allow-team}\n\
    spec: {rules: [{from: [{source: {namespaces: [team]}}], to: [{operation: {ports: ['81']}}]}]}\n";
const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
    metadata: {namespace: istio-system, name: default}\nspec: {mtls: {mode: STRICT}}\n";

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    // Scopes, of an ALLOW and of a DENY.
    row(Scope::Selector, "ALLOW", "[{from: [{source: {principals: ['cluster.local/ns/default/sa/api']}}]}]", "api"),
    row(Scope::Namespace, "ALLOW", "[{from: [{source: {principals: ['cluster.local/ns/default/sa/api']}}]}]", "api"),
    row(Scope::Mesh, "ALLOW", "[{from: [{source: {principals: ['cluster.local/ns/default/sa/api']}}]}]", "api"),
    sibling("ALLOW", "[{from: [{source: {principals: ['cluster.local/ns/default/sa/api']}}]}]", "api"),
    row(Scope::Selector, "DENY", "[{from: [{source: {principals: ['cluster.local/ns/default/sa/api']}}]}]", "web team plain"),
    row(Scope::Namespace, "DENY", "[{from: [{source: {principals: ['cluster.local/ns/default/sa/api']}}]}]", "web team plain"),
    row(Scope::Mesh, "DENY", "[{from: [{source: {principals: ['cluster.local/ns/default/sa/api']}}]}]", "web team plain"),
    sibling("DENY", "[{}]", ""),
    // Principals: exact, prefix, suffix, presence, and not.
    row(Scope::Selector, "ALLOW", "[{from: [{source: {principals: ['cluster.local/ns/default/*']}}]}]", "api web"),
    row(Scope::Selector, "ALLOW", "[{from: [{source: {principals: ['*/sa/api']}}]}]", "api team"),
    row(Scope::Selector, "ALLOW", "[{from: [{source: {principals: ['*']}}]}]", "api web team"),
    row(Scope::Namespace, "DENY", "[{from: [{source: {principals: ['*']}}]}]", "plain"),
    row(Scope::Selector, "ALLOW", "[{from: [{source: {notPrincipals: ['*/sa/api']}}]}]", "web plain"),
    row(Scope::Selector, "DENY", "[{from: [{source: {notPrincipals: ['*']}}]}]", "api web team"),
    row(Scope::Selector, "DENY", "[{from: [{source: {notPrincipals: ['cluster.local/ns/team/*']}}]}]", "team"),
    row(Scope::Mesh, "ALLOW", "[{from: [{source: {notPrincipals: ['cluster.local/ns/default/sa/web']}}]}]", "api team plain"),
    // Namespaces.
    row(Scope::Selector, "ALLOW", "[{from: [{source: {namespaces: ['team']}}]}]", "team"),
    row(Scope::Selector, "ALLOW", "[{from: [{source: {namespaces: ['def*']}}]}]", "api web"),
    row(Scope::Namespace, "ALLOW", "[{from: [{source: {namespaces: ['*am']}}]}]", "team"),
    row(Scope::Mesh, "ALLOW", "[{from: [{source: {namespaces: ['*']}}]}]", "api web team"),
    row(Scope::Selector, "ALLOW", "[{from: [{source: {notNamespaces: ['team']}}]}]", "api web plain"),
    row(Scope::Selector, "DENY", "[{from: [{source: {notNamespaces: ['*ault', 'nobody']}}]}]", "api web"),
    row(Scope::Namespace, "DENY", "[{from: [{source: {namespaces: ['default']}}]}]", "team plain"),
    row(Scope::Namespace, "DENY", "[{from: [{source: {notNamespaces: ['default']}}]}]", "api web"),
    // ServiceAccounts.
    row(Scope::Selector, "ALLOW", "[{from: [{source: {serviceAccounts: ['team/api']}}]}]", "team"),
    row(Scope::Selector, "ALLOW", "[{from: [{source: {serviceAccounts: ['api']}}]}]", "api"),
    row(Scope::Selector, "DENY", "[{from: [{source: {notServiceAccounts: ['default/web']}}]}]", "web"),
    sibling("ALLOW", "[{from: [{source: {notServiceAccounts: ['default/web', 'team/api']}}]}]", "api plain"),
    // Addresses of both families.
    row(Scope::Selector, "ALLOW", "[{from: [{source: {ipBlocks: ['OF_API/32']}}]}]", "api"),
    row(Scope::Selector, "ALLOW", "[{from: [{source: {ipBlocks: ['OF_API']}}]}]", "api"),
    row(Scope::Selector, "ALLOW", "[{from: [{source: {notIpBlocks: ['OF_API/32']}}]}]", "web team plain"),
    row(Scope::Selector, "DENY", "[{from: [{source: {ipBlocks: ['0.0.0.0/0']}}]}]", ""),
    row(Scope::Mesh, "DENY", "[{from: [{source: {ipBlocks: ['OF_API/32']}}]}]", "web team plain"),
    over_v6(row(Scope::Selector, "ALLOW", "[{from: [{source: {ipBlocks: ['V6_OF_API/128']}}]}]", "api")),
    over_v6(row(Scope::Namespace, "DENY", "[{from: [{source: {ipBlocks: ['V6_OF_API']}}]}]", "web team plain")),
    over_v6(row(Scope::Selector, "ALLOW", "[{from: [{source: {notIpBlocks: ['V6_OF_API/128']}}]}]", "web team plain")),
    over_v6(row(Scope::Selector, "DENY", "[{from: [{source: {ipBlocks: ['0.0.0.0/0']}}]}]", EVERYBODY)),
    over_v6(row(Scope::Mesh, "DENY", "[{from: [{source: {ipBlocks: ['::/0']}}]}]", "")),
    over_v6(row(Scope::Selector, "ALLOW", "[{from: [{source: {principals: ['*/sa/api']}}]}]", "api team")),
    // Ports.
    ports(Scope::Selector, "ALLOW", "[{to: [{operation: {ports: ['80']}}]}]", EVERYBODY, ""),
    ports(Scope::Selector, "ALLOW", "[{to: [{operation: {notPorts: ['80']}}]}]", "", EVERYBODY),
    ports(Scope::Namespace, "DENY", "[{to: [{operation: {ports: ['81']}}]}]", EVERYBODY, ""),
    ports(Scope::Mesh, "DENY", "[{to: [{operation: {notPorts: ['81']}}]}]", "", EVERYBODY),
    ports(Scope::Selector, "ALLOW", "[{from: [{source: {namespaces: ['team']}}], to: [{operation: {ports: ['81']}}]}]", "", "team"),
    ports(Scope::Selector, "DENY", "[{from: [{source: {namespaces: ['team']}}], to: [{operation: {ports: ['81']}}]}]", EVERYBODY, "api web plain"),
    over_v6(ports(Scope::Namespace, "ALLOW", "[{to: [{operation: {ports: ['80']}}]}]", EVERYBODY, "")),
    // Conditions.
    row(Scope::Selector, "ALLOW", "[{when: [{key: source.ip, values: ['OF_API']}]}]", "api"),
    row(Scope::Selector, "ALLOW", "[{when: [{key: source.ip, notValues: ['OF_API/32']}]}]", "web team plain"),
    over_v6(row(Scope::Selector, "DENY", "[{when: [{key: source.ip, notValues: ['V6_OF_API']}]}]", "api")),
    row(Scope::Selector, "ALLOW", "[{when: [{key: source.namespace, values: ['team']}]}]", "team"),
    row(Scope::Namespace, "DENY", "[{when: [{key: source.namespace, notValues: ['team']}]}]", "team"),
    row(Scope::Selector, "DENY", "[{when: [{key: source.principal, values: ['*/sa/web']}]}]", "api team plain"),
    row(Scope::Selector, "DENY", "[{when: [{key: source.principal, notValues: ['*/sa/web']}]}]", "web"),
    row(Scope::Selector, "ALLOW", "[{when: [{key: source.serviceAccount, values: ['team/api', 'web']}]}]", "web team"),
    row(Scope::Selector, "DENY", "[{when: [{key: source.serviceAccount, notValues: ['team/api', 'web']}]}]", "web team"),
    ports(Scope::Selector, "ALLOW", "[{when: [{key: destination.port, values: ['81']}]}]", "", EVERYBODY),
    ports(Scope::Selector, "DENY", "[{when: [{key: destination.port, notValues: ['81']}]}]", "", EVERYBODY),
    row(Scope::Selector, "ALLOW", "[{when: [{key: destination.ip, values: ['192.0.2.0/24']}]}]", ""),
    row(Scope::Namespace, "DENY", "[{when: [{key: destination.ip, notValues: ['192.0.2.0/24']}]}]", ""),
    // How terms, sources, rules and conditions combine.
    row(Scope::Selector, "ALLOW", "[{from: [{source: {principals: ['*/sa/web']}}, {source: {namespaces: ['team']}}]}]", "web team"),
    row(Scope::Selector, "ALLOW", "[{from: [{source: {principals: ['*/sa/api'], namespaces: ['team']}}]}]", "team"),
    row(Scope::Selector, "ALLOW", "[{from: [{source: {namespaces: ['default'], notPrincipals: ['*/sa/web']}}]}]", "api"),
    row(Scope::Selector, "ALLOW", "[{from: [{source: {principals: ['*/sa/web']}}]}, {from: [{source: {namespaces: ['team']}}]}]", "web team"),
    row(Scope::Selector, "ALLOW", "[{from: [{source: {principals: ['*/sa/api']}}], when: [{key: source.namespace, values: ['default']}]}]", "api"),
    row(Scope::Selector, "ALLOW", "[{from: [{source: {ipBlocks: ['OF_API'], principals: ['*/sa/web']}}]}]", ""),
    // Everything and nothing.
    row(Scope::Selector, "ALLOW", "[{}]", EVERYBODY),
    row(Scope::Namespace, "ALLOW", "[]", ""),
    row(Scope::Selector, "DENY", "[{}]", ""),
    row(Scope::Selector, "DENY", "[]", EVERYBODY),
    // Only tried out.
    tried(Scope::Selector, "DENY", "[{}]"),
    tried(Scope::Mesh, "ALLOW", "[]"),
    // Several policies: a DENY wins, ALLOWs add up over all scopes, a mode keeps out whom an ALLOW lets in.
    beside(DENY_API, row(Scope::Namespace, "ALLOW", "[{from: [{source: {namespaces: ['default']}}]}]", "web")),
    beside(ALLOW_TEAM_ON_81, Row { allowed_at_sibling: "", ..ports(Scope::Selector, "ALLOW", "[{from: [{source: {principals: ['*/sa/web']}}]}]", "web", "web team") }),
    beside(STRICT, Row { allowed_at_sibling: MEMBERS, ..row(Scope::Selector, "ALLOW", "[{from: [{source: {notPrincipals: ['*/sa/api']}}]}]", "web") }),
    // PeerAuthentication, by Istio's precedence: the port, the workload, the namespace, the mesh.
    peers("STRICT", "", "", [false, false, false]),
    peers("STRICT", "PERMISSIVE", "", [true, true, true]),
    peers("PERMISSIVE", "STRICT", "", [false, false, false]),
    peers("STRICT", "UNSET", "", [false, false, false]),
    peers("STRICT", "", "  mtls: {mode: PERMISSIVE}\n", [true, true, false]),
    peers("STRICT", "", "  portLevelMtls: {81: {mode: PERMISSIVE}}\n", [false, true, false]),
    over_v6(peers("STRICT", "", "  portLevelMtls: {80: {mode: PERMISSIVE}}\n", [true, false, false])),
    peers("", "STRICT", "", [false, false, false]),
    peers("", "PERMISSIVE", "", [true, true, true]),
    peers("", "STRICT", "  mtls: {mode: PERMISSIVE}\n", [true, true, false]),
    peers("", "PERMISSIVE", "  mtls: {mode: STRICT}\n", [false, false, true]),
    peers("", "STRICT", "  portLevelMtls: {81: {mode: PERMISSIVE}}\n", [false, true, false]),
    peers("", "PERMISSIVE", "  portLevelMtls: {80: {mode: STRICT}}\n", [false, true, true]),
    peers("", "STRICT", "  mtls: {mode: UNSET}\n  portLevelMtls: {80: {mode: PERMISSIVE}}\n", [true, false, false]),
    peers("", "PERMISSIVE", "  mtls: {mode: STRICT}\n  portLevelMtls: {81: {mode: PERMISSIVE}}\n", [false, true, true]),
    peers("PERMISSIVE", "", "  mtls: {mode: STRICT}\n  portLevelMtls: {80: {mode: UNSET}, 81: {mode: PERMISSIVE}}\n", [false, true, true]),
];
