//! Identity under attack: a pod's processes that try to be another pod, callers that dial the agent's ports by hand, and
//! whoever asks the control daemon for a certificate that is not theirs.

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt, path::PathBuf, process::Command, sync::Arc};

use mesh_agent::control::ControlAddress;
use mesh_api::proto::{
    ca::{IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient},
    wellknown::{Struct, Value, value::Kind},
};
use mesh_tests::{
    App, LIMIT, Mesh, attack::Attacker, client::Client, eventually, identity, namespace::Namespace, plain,
    process::Place, protocol::Dial,
};
use rcgen::{CertificateParams, KeyPair, SanType};
use tonic::{Code, Status};

/// Ports of the agent in every pod.
const OWN: [u16; 3] = [15001, 15006, 15008];

#[test]
fn nobody_gets_a_word_out_of_the_agents_ports_by_dialling_them() {
    let mesh = Mesh::new();
    let db = mesh.app("db").on("node-a").echoing_on(80);
    let neighbour = mesh.app("neighbour").on("node-a");
    let far = mesh.app("far").on("node-b");
    let stranger = mesh.app("stranger").not_enrolled().on("node-a");
    neighbour.dial(&db).is_answered();
    let node = mesh.node("node-a");
    let counted = |reason| node.metrics().sum("mesh_steering_total", &[("reason", reason)]);
    let before = ["outbound_own_port", "inbound_own_port"].map(counted);

    for (name, place) in [("itself", &db), ("a neighbour", &neighbour), ("a far pod", &far), ("a stranger", &stranger)]
    {
        for to in OWN.into_iter().flat_map(|port| [db.at(port), db.at_v6(port)]) {
            assert!(!place.dial_at(to).was_answered(), "{name} to {to}");
        }
    }
    // From hosts that have no hook, too: 15008 is there for all, and says nothing to who shows no certificate.
    for (name, namespace) in [("outside", &mesh.outside().namespace), ("the node", &node.system().namespace)] {
        for port in OWN {
            is_told_nothing(name, namespace, db.at(port));
        }
    }

    assert_eq!(db.connections().len(), 1, "the neighbour's only");
    let after = ["outbound_own_port", "inbound_own_port"].map(counted);
    assert!(after[0] > before[0] && after[1] > before[1], "{before:?} and {after:?}");
}

fn is_told_nothing(name: &str, namespace: &Namespace, to: SocketAddr) {
    let Ok(mut caller) = Attacker::plain(namespace, to) else { return };
    let heard = caller.sends(b"GET / HTTP/1.0\r\n\r\n").hears(std::time::Duration::from_secs(5));
    // At most a TLS alert: one record of two bytes.
    assert!(heard.is_empty() || heard[0] == 21 && heard.len() == 7, "{name} heard {heard:?} from {to}");
}

#[test]
fn a_process_that_leaves_its_cgroup_or_its_user_namespace_speaks_for_its_own_pod_or_for_nobody() {
    let mesh = Mesh::new();
    let api = mesh.app("api").on("node-a");
    let web = mesh.app("web").on("node-a");
    let dbs = [("db", "node-a"), ("far-db", "node-b")].map(|(name, node)| {
        let db = mesh.app(name).on(node).echoing_on(80);
        mesh.policy(&format!("only-api-{name}")).on(&db).allow(identity("ns/default/sa/api"));
        db
    });
    let node = mesh.node("node-a");
    // The kernel knows a socket's pod by its network: in another pod's cgroup, or outside of all pods', it stays web's.
    let moved = [("of-api", &api.place().cgroup), ("of-the-node", &node.system().cgroup)].map(|(name, cgroup)| {
        let place = Place { namespace: web.place().namespace.clone(), cgroup: cgroup.clone() };
        (name, Client::start(&place, &mesh.directory().join(format!("{name}.log"))))
    });
    for db in &dbs {
        api.dial(db).is_answered();
        web.dial(db).is_refused();
        for (name, client) in &moved {
            let dialled = dial(client, db);
            assert!(dialled.was_refused(), "{name} to {}: {:?}", db.name(), dialled.report());
        }
        assert_eq!(db.connections().len(), 1, "the api's only");
    }
    eventually("each is named in the log, as web's", LIMIT, || {
        let log = node.access_log();
        let refused = log.iter().filter(|line| line["src.workload"] == "web" && line["flag"] == "DENY").count();
        if refused >= 6 { Ok(()) } else { Err(format!("{refused} of six: {log:?}")) }
    });

    let nested = || node.metrics().sum("mesh_steering_total", &[("reason", "nested_namespace")]);
    let before = nested();
    for db in &dbs {
        // A user namespace of its own makes it root of nothing that counts here; with a network of its own it is nobody.
        let script = format!("exec 3<>/dev/tcp/{}/80 && echo api >&3 && head -1 <&3", db.v4());
        for flags in [&["--user"][..], &["--user", "--map-root-user"], &["--user", "--map-root-user", "--net"]] {
            let words = [&["timeout", "10", "unshare"], flags, &["bash", "-c", &script]].concat();
            let output = web.run(&words);
            assert!(!output.status.success() && output.stdout.is_empty(), "{flags:?}: {output:?}");
        }
        assert_eq!(db.connections().len(), 1, "the api's only");
    }
    assert!(nested() >= before + 2.0, "{before} and {}", nested());
}

fn dial(client: &Arc<Client>, to: &App) -> mesh_tests::dial::Dialled {
    client.dial(Dial { send: "x\n".to_owned(), ..plain(to.at(80)) })
}

/// Asks control for a certificate of `identity` with this token and this CSR.
fn ask(mesh: &Mesh, token: PathBuf, identity: &str, csr: String) -> Result<Vec<String>, Status> {
    let address = ControlAddress {
        uri: format!("https://{}", mesh.control().address()),
        name: "mesh-control".to_owned(),
        root: mesh.control().root(),
        token,
    };
    let name = Value { kind: Some(Kind::StringValue(identity.to_owned())) };
    let metadata = Some(Struct { fields: [("ImpersonatedIdentity".to_owned(), name)].into() });
    let asking = IstioCertificateRequest { csr, validity_duration: 3600, metadata };
    mesh.outside().namespace.inside(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let line = address.dial().await.expect("control is there");
            let mut client = IstioCertificateServiceClient::with_interceptor(line.channel.clone(), line.bearer.clone());
            client.create_certificate(asking).await.map(|answer| answer.into_inner().cert_chain)
        })
    })
}

fn csr(names: &[SanType]) -> String {
    let mut parameters = CertificateParams::default();
    parameters.subject_alt_names = names.to_vec();
    let key = KeyPair::generate().expect("a key");
    parameters.serialize_request(&key).expect("a request").pem().expect("PEM")
}

/// A CSR with a key that openssl makes by `words`.
fn csr_with_key(mesh: &Mesh, words: &str, identity: &str) -> String {
    let extension = format!("subjectAltName=critical,URI:{identity}");
    let key = mesh.directory().join("forged.key").display().to_string();
    let line = format!("req {words} -nodes -keyout {key} -subj / -addext {extension}");
    let output = Command::new("openssl").args(line.split(' ')).output().expect("openssl runs");
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).expect("PEM")
}

/// Another letter in the last line of the signature, or the one before.
fn reworked(csr: &str) -> String {
    let at = csr.find("\n-----END").expect("PEM") - 40;
    let other = if csr.as_bytes()[at] == b'A' { "B" } else { "A" };
    format!("{}{other}{}", &csr[..at], &csr[at + 1..])
}

#[test]
fn control_signs_for_no_token_but_that_of_the_workloads_node_and_no_request_but_for_its_name() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    let far = mesh.app("far").on("node-b");
    mesh.settle();
    let control = mesh.control();
    let uri = |text: &str| SanType::URI(text.try_into().expect("a URI"));
    let (name, own) = (web.identity(), control.token("node-a"));
    let good = || csr(&[uri(&name)]);
    let guessed = mesh.directory().join("guessed");
    write_secret(&guessed, "0123456789abcdef0123456789abcdef");
    let dns = SanType::DnsName("web.default".try_into().expect("a name"));
    let weak = csr_with_key(&mesh, "-newkey rsa:1024", &name);
    let other_curve = csr_with_key(&mesh, "-newkey ec -pkeyopt ec_paramgen_curve:secp256k1", &name);
    let cases = [
        ("a guessed token", &guessed, good(), "token"),
        ("another node's token", &control.token("node-b"), good(), "not_on_node"),
        ("a second workload's name", &own, csr(&[uri(&name), uri(&far.identity())]), "request"),
        ("a DNS name", &own, csr(&[uri(&name), dns]), "request"),
        ("the name of a workload elsewhere", &own, csr(&[uri(&far.identity())]), "request"),
        ("a key that can be factored", &own, weak, "request"),
        ("a key of another curve", &own, other_curve, "request"),
        ("a signature of another key", &own, reworked(&good()), "request"),
    ];
    let counted = |reason| control.metrics().sum("mesh_certificates_refused_total", &[("reason", reason)]);
    for (case, token, csr, reason) in cases {
        let before = counted(reason);
        let status = ask(&mesh, token.clone(), &name, csr).expect_err(case);
        let code = if reason == "token" { Code::Unauthenticated } else { Code::PermissionDenied };
        assert_eq!(status.code(), code, "{case}: {status:?}");
        assert_eq!(counted(reason), before + 1.0, "{case}");
    }
    let log = control.log();
    let is_named = |words: &[&str]| log.lines().any(|line| words.iter().all(|word| line.contains(word)));
    for words in [
        &["15012", "reason=\"token\"", "peer=", "a certificate"][..],
        &["node=\"node-b\"", &name, "caller=", "runs on the node"],
        &["node=\"node-a\"", &name, "not exactly the identity"],
        &["node=\"node-a\"", &name, "not ECDSA P-256"],
        &["node=\"node-a\"", &name, "not signed by its own key"],
    ] {
        assert!(is_named(words), "{words:?} in {log}");
    }
    ask(&mesh, own.clone(), &name, good()).expect("its own");

    // Withdrawn: it opens nothing any more, and what it had opened is ended.
    let all = own.ancestors().nth(2).expect("control's directory").join("node-tokens");
    let lines = fs::read_to_string(&all).expect("control has it");
    write_secret(&all, &lines.lines().filter(|line| !line.starts_with("node-a ")).collect::<Vec<_>>().join("\n"));
    let status = ask(&mesh, own.clone(), &name, good()).expect_err("a token that was withdrawn");
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    eventually("its agent's stream is ended", LIMIT, || {
        match control.metrics().sum("mesh_xds_refused_total", &[("reason", "token")]) {
            0.0 => Err(control.log()),
            _ => Ok(()),
        }
    });
    write_secret(&all, &lines);
    ask(&mesh, own, &name, good()).expect("as before");
}

fn write_secret(path: &std::path::Path, text: &str) {
    fs::write(path, text).expect("a file of our own");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("a file of our own");
}
