//! Every term of AuthorizationPolicy at L4 and every mode of PeerAuthentication: one table, four judges. The agent's own
//! function, real connections across nodes, real connections on one node, and `explain` must all say what the row says.

mod judge;
mod rows;

use std::{fmt::Write, net::SocketAddr};

use judge::Judge;
use mesh_tests::{App, LIMIT, Mesh, Setup, eventually, protocol::Behaviour};
use rows::{Family, Policy, ROWS, Row, Scope};

const PORT: u16 = 80;
const OTHER_PORT: u16 = 81;
const AUTHORIZATION: &str = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n";
const PEERS: &str = "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\n";

struct Cast {
    callers: Vec<App>,
    /// The node of each, its pod `db`, and its pod `cache` of the same ServiceAccount.
    servers: [(&'static str, App, App); 2],
    /// Only policies that say which row is in force select it.
    beacon: App,
    judge: Judge,
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
        let [db, cache] = ["db", "cache"].map(|label| {
            let app = mesh.app(&format!("{label}-{name}")).account("store").labelled("app", label).on(node);
            app.serving(PORT, Behaviour::Echo).serving(OTHER_PORT, Behaviour::Echo)
        });
        (node, db, cache)
    });
    let beacon = mesh.app("beacon").on("node-b");
    mesh.settle();
    Cast { callers, servers, beacon, judge: Judge::of(mesh, "node-a") }
}

/// The row as manifests.
fn manifest(number: usize, row: &Row, api: &App) -> String {
    let mut text = match row.policy {
        Policy::Authorization { scope, action, is_dry_run, rules } => {
            let namespace = if scope == Scope::Mesh { "istio-system" } else { "default" };
            let selector = match scope {
                Scope::Selector => "  selector: {matchLabels: {app: db}}\n",
                Scope::Sibling => "  selector: {matchLabels: {app: cache}}\n",
                Scope::Mesh | Scope::Namespace => "",
            };
            let rules = rules.replace("V6_OF_API", &api.v6().to_string()).replace("OF_API", &api.v4().to_string());
            format!(
                "{AUTHORIZATION}metadata: {{namespace: {namespace}, name: row-{number}, \
                 annotations: {{istio.io/dry-run: \"{is_dry_run}\"}}}}\n\
                 spec:\n  action: {action}\n{selector}  rules: {rules}\n"
            )
        }
        Policy::Peers { mesh, namespace, workload } => {
            let mut text = String::new();
            for (home, mode) in [("istio-system", mesh), ("default", namespace)] {
                if !mode.is_empty() {
                    text += &format!(
                        "{PEERS}metadata: {{namespace: {home}, name: default}}\nspec:\n  mtls: {{mode: {mode}}}\n"
                    );
                }
            }
            if !workload.is_empty() {
                let selector = "  selector: {matchLabels: {app: db}}\n";
                text += &format!("{PEERS}metadata: {{namespace: default, name: db}}\nspec:\n{selector}{workload}");
            }
            text
        }
    };
    if !row.beside.is_empty() {
        text = format!("{text}---\n{}", row.beside);
    }
    text
}

/// Replaces the policies of the row before and waits until all judges have exactly this one: a policy over the beacon,
/// which comes with the same change of the same file, says so.
fn apply(mesh: &Mesh, number: usize, row: &Row, cast: &Cast) {
    let marker = format!("beacon-{number}");
    let manifest = format!(
        "{}{AUTHORIZATION}metadata: {{namespace: default, name: {marker}}}\n\
         spec: {{selector: {{matchLabels: {{app: beacon}}}}}}\n",
        manifest(number, row, &cast.callers[0])
    );
    mesh.apply("row.yaml", &manifest);
    let marker = format!("default/{marker}");
    for node in mesh.nodes() {
        eventually(&format!("{} has row {number}", node.name()), LIMIT, || {
            let policies = node.admin().policies().map_err(|status| status.to_string())?;
            let is_there = policies.iter().any(|policy| format!("{}/{}", policy.namespace, policy.name) == marker);
            let workloads = node.admin().workloads().map_err(|status| status.to_string())?;
            let beacon = workloads.iter().find(|workload| workload.name == cast.beacon.name()).expect("it is known");
            let is_over_beacon = beacon.policies.contains(&marker);
            if is_there && is_over_beacon { Ok(()) } else { Err(format!("{policies:?} {}", mesh.control().log())) }
        });
    }
    eventually(&format!("the function's View has row {number}"), LIMIT, || {
        if cast.judge.knows(&cast.beacon, &marker) { Ok(()) } else { Err("it has not".to_owned()) }
    });
}

/// What differs from the row, by all four judges.
fn differences(mesh: &Mesh, cast: &Cast, row: &Row) -> String {
    let mut text = String::new();
    for (node, db, cache) in &cast.servers {
        let asked = [
            (db, PORT, row.allowed),
            (db, OTHER_PORT, row.allowed_on_other_port),
            (cache, PORT, row.allowed_at_sibling),
        ];
        for (server, port, allowed) in asked {
            for caller in &cast.callers {
                let expected = allowed.split(' ').any(|name| name == caller.name());
                let to = if row.family == Family::V4 { server.at(port) } else { server.at_v6(port) };
                for (judge, said) in ask_all(mesh, cast, (caller, node, server), to) {
                    if said != Ok(expected) {
                        writeln!(text, "  {} to {}:{port}, {judge}: {said:?}", caller.name(), server.name())
                            .expect("memory");
                    }
                }
            }
        }
    }
    text
}

/// Whether each judge lets the caller in; in words, where it neither did nor refused as it should.
fn ask_all(
    mesh: &Mesh,
    cast: &Cast,
    (caller, node, server): (&App, &str, &App),
    to: SocketAddr,
) -> [(&'static str, Result<bool, String>); 3] {
    let is_member = caller.name() != "plain";
    let identity = is_member.then(|| caller.identity());
    let own = caller.addresses().into_iter().find(|own| own.is_ipv4() == to.is_ipv4()).expect("one of each family");
    let decision = cast.judge.judges(identity.as_deref(), own, server, (to.ip(), to.port()));

    let dialled = caller.dial_at(to);
    let traffic = match (dialled.was_answered(), dialled.was_refused()) {
        (false, false) => Err(format!("{:?}", dialled.report())),
        (was_answered, _) => Ok(was_answered),
    };
    let explained = mesh.node(node).admin().explain(&own.to_string(), &to.ip().to_string(), to.port());
    let explained = match explained {
        Ok(answer) if answer.verdict == "allowed" => Ok(true),
        Ok(answer) if answer.verdict == "denied" => Ok(false),
        other => Err(format!("{other:?}")),
    };
    [("the function", Ok(decision.verdict.is_allowed())), ("its connection", traffic), ("explain", explained)]
}

/// Applies every row in turn and compares.
fn judge_all(mesh: &Mesh) {
    // Callers outside the mesh are among the cases.
    mesh.lets_some_pass_in_the_clear();
    let cast = cast(mesh);
    let mut failures = String::new();
    for (number, row) in ROWS.iter().enumerate() {
        apply(mesh, number, row, &cast);
        let found = differences(mesh, &cast, row);
        if !found.is_empty() {
            write!(failures, "row {number}:{}\n{found}", manifest(number, row, &cast.callers[0])).expect("memory");
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
}

/// How many connections between pods of node-a went direct.
fn direct(mesh: &Mesh) -> f64 {
    mesh.node("node-a").metrics().sum("mesh_steering_total", &[("reason", "outbound_direct")])
}

#[test]
fn every_case_is_judged_alike_by_the_function_across_nodes_on_one_node_and_by_explain() {
    let mesh = Mesh::new();
    judge_all(&mesh);
    assert!(direct(&mesh) > 100.0, "on one node the kernel judged most of them");
}

#[test]
fn every_case_is_judged_alike_by_the_agent_where_nothing_goes_direct() {
    let mesh = Mesh::with(Setup { settings: "  sameNode: encrypt\n".to_owned(), ..Setup::default() });
    judge_all(&mesh);
    assert_eq!(direct(&mesh), 0.0, "on one node the agent judged all of them");
}
