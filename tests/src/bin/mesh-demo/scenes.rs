//! What happens on the stage, in order. Every sentence is a claim of the account.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use mesh_api::proto::admin::SocketRow;
use mesh_tests::{
    App, LIMIT, capture::Capture, conversation::Conversation, eventually, identity, node::Node, plain, protocol::Dial,
};

use crate::{account::Account, stage::Stage};

/// Said in every conversation; must never be seen on the link.
const SECRET: &str = "card-number-4929-1234";

/// Plays all scenes.
pub fn play(account: &mut Account<'_>, stage: &Stage) {
    pods(account, stage);
    let capture = stage.mesh.link().capture(&[SECRET]);
    calls(account, stage);
    services(account, stage);
    denial(account, stage);
    link(account, stage, &capture);
    strangers(account, stage);
    agent_away(account, stage);
    control_away(account, stage);
    counters(account, stage, &capture);
}

fn line() -> String {
    format!("{}\n", SECRET.repeat(40))
}

/// The row of a conversation on a node; the agent may take a moment to list it.
fn row(node: &Node, conversation: &Conversation) -> SocketRow {
    let source = conversation.local().to_string();
    eventually("the connection is listed", LIMIT, || {
        let rows = node.admin().sockets().map_err(|status| status.to_string())?;
        rows.iter().find(|row| row.source == source).cloned().ok_or_else(|| format!("{rows:?}"))
    })
}

fn require(is_true: bool, seen: impl std::fmt::Debug) -> Result<(), String> {
    if is_true { Ok(()) } else { Err(format!("{seen:?}")) }
}

fn pods(account: &mut Account<'_>, stage: &Stage) {
    account.chapter("Pods");
    for app in stage.members() {
        let claim = format!("{} is enrolled, {} and {}, as {}", app.full_name(), app.v4(), app.v6(), app.identity());
        account.claim(&claim, || {
            stage.mesh.settle();
            let rows = stage.mesh.nodes().iter().flat_map(|node| node.admin().workloads().unwrap_or_default());
            let found = rows.filter(|row| row.name == app.name() && row.state == "enrolled").collect::<Vec<_>>();
            require(found.len() == 1 && found[0].identity == app.identity(), found)
        });
    }
    let claim = format!("{} is not in the mesh, {}", stage.legacy.full_name(), stage.legacy.v4());
    account.claim(&claim, || {
        let rows = stage.mesh.node("node-b").admin().workloads().map_err(|status| status.to_string())?;
        let row = rows.into_iter().find(|row| row.name == "legacy");
        require(row.as_ref().is_some_and(|row| row.state == "not enrolled" && row.protocol == "TCP"), row)
    });
}

fn calls(account: &mut Account<'_>, stage: &Stage) {
    let Stage { mesh, web, cart, db, .. } = stage;
    account.chapter("Calls");
    account.claim("web (node-a) calls db (node-b): encrypted, and each side has proved who it is", || {
        let conversation = web.opens(db.at(5432));
        conversation.says(&line()).hears(&line());
        for node in mesh.nodes() {
            let row = row(node, &conversation);
            let identities = (row.source_identity.as_str(), row.destination_identity.as_str());
            let is_right = row.connection_security_policy == "mutual_tls" && !row.cipher.is_empty();
            require(is_right && identities == (&web.identity(), &db.identity()), &row)?;
        }
        let row = row(mesh.node("node-b"), &conversation);
        Ok(format!("{}, {} -> {}", row.cipher, row.source_identity, row.destination_identity))
    });
    account.claim("db sees web's own address, and web's getpeername answers db's", || {
        let conversation = web.opens(db.at(5432));
        conversation.still_works();
        let seen = db.connections().pop().ok_or("db saw nothing")?;
        let peer = mesh_tests::addresses::canonical(seen.peer);
        require(peer == conversation.local() && conversation.peer() == db.at(5432), &seen)
    });
    account.claim("web calls cart on its own node: direct, not encrypted, both ends known to the kernel", || {
        let conversation = web.opens(cart.at(8080));
        conversation.says(&line()).hears(&line());
        let row = row(mesh.node("node-a"), &conversation);
        let is_right = row.connection_security_policy == "node_local" && row.cipher.is_empty();
        require(is_right && row.source_identity == web.identity() && row.destination_identity == cart.identity(), row)
    });
    account.claim("the same over IPv6", || {
        for to in [db.at_v6(5432), cart.at_v6(8080)] {
            web.dial_with(Dial { send: line(), ..plain(to) }).is_answered();
        }
        Ok(())
    });
}

fn services(account: &mut Account<'_>, stage: &Stage) {
    account.chapter("A service with one endpoint on each node");
    let service = stage.service();
    let claim = "2,000 calls of web to the service's address reach both endpoints about evenly, none fails";
    account.claim(claim, || {
        let report = stage.web.storms(&[service.at(80), service.at_v6(80)], 2_000, 4, false);
        let counts: Vec<u32> = stage
            .catalog
            .iter()
            .map(|app| {
                let own = report.by_server.iter().filter(|(server, _)| app.addresses().contains(&server.ip()));
                own.map(|(_, count)| count).sum()
            })
            .collect();
        let is_even = counts.iter().all(|count| (900..=1100).contains(count));
        require(report.answered == 2_000 && report.failed == 0 && is_even, &report)?;
        Ok(format!("catalog-1 {}, catalog-2 {}", counts[0], counts[1]))
    });
}

fn denial(account: &mut Account<'_>, stage: &Stage) {
    let Stage { mesh, web, cart, db, .. } = stage;
    account.chapter("Policy db-only-web: only web may call db");
    mesh.policy("db-only-web").on(db).allow(identity("ns/default/sa/web"));
    account.claim("cart calls db: refused, and db saw no connection", || {
        mesh.settle();
        let before = db.connections().len();
        cart.dial(db).is_refused();
        require(db.connections().len() == before, db.connections())
    });
    account.claim("web calls db: answered", || {
        web.dial(db).is_answered();
        Ok(())
    });
    account.claim("meshctl explain says the same of both, and why", || {
        let node = mesh.node("node-b");
        let to = format!("{}:5432", db.full_name());
        let explain = |app: &App| -> Result<serde_json::Value, String> {
            let output = node.meshctl(&["-o", "json", "explain", &app.full_name(), &to]);
            serde_json::from_slice(&output.stdout).map_err(|error| format!("{error}: {output:?}"))
        };
        let (denied, allowed) = (explain(cart)?, explain(web)?);
        let is_right = denied["verdict"] == "denied"
            && allowed["verdict"] == "allowed"
            && allowed["policy"] == "default/db-only-web";
        require(is_right, (&denied, &allowed))?;
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let steps = denied["steps"].as_array().into_iter().flatten();
        let steps: String =
            steps.map(|step| format!("\n      {}: {}", text(&step["stage"]), text(&step["text"]))).collect();
        Ok(format!("cart is denied: {}{steps}", text(&denied["reason"])))
    });
    mesh.policy("db-not-cart").on(db).deny(identity("ns/default/sa/cart"));
    account.claim("with a DENY policy as well, the denial is listed with that policy's name", || {
        mesh.settle();
        cart.dial(db).is_refused();
        let listed = eventually("the denial is listed", LIMIT, || {
            let rows = mesh.node("node-b").admin().sockets().map_err(|status| status.to_string())?;
            let found = rows.iter().find(|row| row.path == "denied" && row.policy == "default/db-not-cart");
            found.map(|row| format!("{} denied by {}", row.source_identity, row.policy)).ok_or(format!("{rows:?}"))
        });
        Ok(listed)
    });
}

fn link(account: &mut Account<'_>, stage: &Stage, capture: &Capture) {
    account.chapter("The link between the nodes, so far");
    account.claim(
        "every packet was looked at: none carried the secret, no payload of a member on another port than 15008",
        || {
            capture.settle();
            let found = capture.flows_with(SECRET);
            require(found.is_empty(), found)?;
            let outside = capture.payload_outside(15008, &addresses(stage));
            require(outside.is_empty(), outside)?;
            let passed = stage.mesh.link().passed();
            require(passed.clear == 0, passed)?;
            Ok(format!("{} bytes on port 15008", capture.payload_on(15008)))
        },
    );
    account.claim("every handshake was TLS 1.3", || {
        let versions = capture.tls_versions(15008);
        require(!versions.is_empty() && versions.iter().all(|(_, version)| *version == Some(0x0304)), &versions)?;
        Ok(format!("{} tunnels", versions.len()))
    });
}

fn addresses(stage: &Stage) -> Vec<std::net::IpAddr> {
    stage.members().iter().flat_map(|app| app.addresses()).collect()
}

fn strangers(account: &mut Account<'_>, stage: &Stage) {
    let Stage { mesh, cart, legacy, .. } = stage;
    account.chapter("A caller outside the mesh");
    account.claim("legacy calls cart across the link: in the clear, and listed as plaintext", || {
        let conversation = legacy.opens(cart.at(8080));
        conversation.says("hello\n").hears("hello\n");
        let row = row(mesh.node("node-a"), &conversation);
        require(row.path == "plaintext" && row.connection_security_policy == "none" && row.cipher.is_empty(), row)
    });
    mesh.apply(
        "strict.yaml",
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {namespace: default, name: strict}\n\
         spec:\n  mtls: {mode: STRICT}\n",
    );
    account.claim("with STRICT, legacy is refused and cart sees no connection; members talk on", || {
        eventually("plaintext is refused", LIMIT, || {
            let dialled = legacy.dial(cart);
            if dialled.was_refused() { Ok(()) } else { Err(format!("{:?}", dialled.report())) }
        });
        let before = cart.connections().len();
        legacy.dial(cart).is_refused();
        require(cart.connections().len() == before, cart.connections())?;
        stage.web.dial(&stage.db).is_answered();
        stage.web.dial(cart).is_answered();
        Ok(())
    });
}

fn agent_away(account: &mut Account<'_>, stage: &Stage) {
    let Stage { mesh, web, cart, db, .. } = stage;
    account.chapter("The agent of node-a is killed");
    let node = mesh.node("node-a");
    let direct = web.opens(cart.at(8080));
    direct.still_works();
    node.kill_agent();
    account.claim("a call to the other node is refused, not sent in the clear", || {
        web.dial(db).is_refused();
        Ok(())
    });
    account.claim("the open direct stream to cart lives, and a new direct call is answered", || {
        direct.still_works();
        web.dial(cart).is_answered();
        Ok(())
    });
    account.claim("the agent is started again, finds its pods, and web reaches db", || {
        let begun = Instant::now();
        node.start_agent();
        eventually("web reaches db", Duration::from_secs(20), || {
            let dialled = web.dial(db);
            if dialled.was_answered() { Ok(()) } else { Err(format!("{:?}", dialled.report())) }
        });
        let after = begun.elapsed();
        direct.still_works();
        Ok(format!("{} ms after its start", after.as_millis()))
    });
}

fn control_away(account: &mut Account<'_>, stage: &Stage) {
    let Stage { mesh, web, cart, db, .. } = stage;
    account.chapter("The control daemon is stopped");
    mesh.control().kill();
    account.claim("calls go on as before, allowed and denied", || {
        web.dial(db).is_answered();
        web.dial(cart).is_answered();
        cart.dial(db).is_refused();
        Ok(())
    });
    account.claim("it is started again and the agents come back to it", || {
        mesh.control().start();
        for node in mesh.nodes() {
            eventually("the agent is connected", LIMIT, || {
                let status = node.admin().status().map_err(|status| status.to_string())?;
                if status.control == "connected" { Ok(()) } else { Err(format!("{status:?}")) }
            });
        }
        Ok(())
    });
}

fn counters(account: &mut Account<'_>, stage: &Stage, capture: &Capture) {
    account.chapter("The link between the nodes, in the end");
    let claim = "all payload of members in the clear is to or from legacy";
    account.claim(claim, || {
        capture.settle();
        let outside = capture.payload_outside(15008, &addresses(stage));
        let legacy = stage.legacy.addresses();
        let others: BTreeSet<_> = outside.iter().filter(|(flow, _)| !flow.has_address(&legacy)).collect();
        require(others.is_empty(), &others)?;
        let secret = capture.flows_with(SECRET);
        require(secret.is_empty(), secret)
    });
    account.claim("the rules on the link, which had counted none before legacy called, have counted it", || {
        let passed = stage.mesh.link().passed();
        require(passed.encrypted > 0 && passed.clear > 0, passed)?;
        Ok(format!("{} packets with payload on port 15008, {} on others (legacy's)", passed.encrypted, passed.clear))
    });
}
