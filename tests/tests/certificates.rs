//! Where certificates come from: an authority of the operator's own, renewal while traffic runs, and nobody else's name.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use mesh_agent::control::ControlAddress;
use mesh_api::proto::{
    admin::CertificateRow,
    ca::{IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient},
    wellknown::{Struct, Value, value::Kind},
};
use mesh_tests::{
    App, LIMIT, Mesh, Setup, eventually,
    forge::Authority,
    node::Node,
    peer,
    protocol::{Behaviour, Storm},
};
use rcgen::{CertificateParams, KeyPair, SanType};
use tonic::{Code, Status};

const DAY: Duration = Duration::from_secs(86_400);

/// Runs openssl in a folder.
fn openssl(folder: &Path, words: &str) {
    let output = Command::new("openssl").args(words.split(' ')).current_dir(folder).output().expect("openssl runs");
    assert!(output.status.success(), "openssl {words}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A root and an intermediate as operators make them, laid out as `--ca-dir` wants it; removed when dropped.
struct Plugged(PathBuf);

impl Plugged {
    fn make() -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("ca-{:08x}", fastrand::u32(..)));
        fs::create_dir_all(&folder).expect("a folder of our own");
        fs::write(
            folder.join("ca.ext"),
            "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign\n",
        )
        .expect("a file of our own");
        let curve = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
        openssl(
            &folder,
            &format!(
                "req -x509 {curve} -keyout root-key.pem -out root-cert.pem -subj /O=Root -days 30 -addext keyUsage=critical,keyCertSign"
            ),
        );
        openssl(&folder, &format!("req {curve} -keyout ca-key.pem -out ca.csr -subj /O=Intermediate"));
        openssl(
            &folder,
            "x509 -req -in ca.csr -CA root-cert.pem -CAkey root-key.pem -CAcreateserial -extfile ca.ext -days 20 \
             -out ca-cert.pem",
        );
        let read = |name: &str| fs::read_to_string(folder.join(name)).expect("openssl wrote it");
        fs::write(folder.join("cert-chain.pem"), read("ca-cert.pem") + &read("root-cert.pem")).expect("our own file");
        fs::set_permissions(folder.join("ca-key.pem"), fs::Permissions::from_mode(0o600)).expect("our own file");
        // The root's key stays with the operator.
        fs::remove_file(folder.join("root-key.pem")).expect("openssl wrote it");
        Self(folder)
    }
}

impl Drop for Plugged {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn with_an_authority_of_the_operators_own_every_certificate_on_the_wire_leads_to_its_root() {
    let plugged = Plugged::make();
    let control_arguments = vec!["--ca-dir".to_owned(), plugged.0.display().to_string()];
    let mesh = Mesh::with(Setup { control_arguments, ..Setup::default() });
    let web = mesh.app("web").on("node-a");
    let far = mesh.app("far").on("node-b").echoing_on(80);

    // Both agents trust it, and each other.
    web.dial(&far).is_answered();
    far.dial_at(far.at(80)).is_answered();
    assert!(!mesh.control().state().join("ca-key.pem").exists(), "control made a key beside the one it was given");
    let root = fs::read_to_string(plugged.0.join("root-cert.pem")).expect("openssl wrote it");
    assert_eq!(fs::read_to_string(mesh.control().root()).expect("control publishes it").trim(), root.trim());

    // What a server shows on the wire: its own name, and a chain that openssl follows from the root alone.
    let caller = Authority::plugged(&plugged.0).sign("spiffe://cluster.local/ns/default/sa/peer", -60, DAY);
    let asked = peer::Asked { method: http::Method::CONNECT, authority: far.at(80).to_string() };
    let heard = peer::ask(&mesh.outside().namespace, far.at(15008), Some(caller), &asked).expect("a tunnel");
    assert_eq!(heard.status, 200);
    assert_eq!(peer::uri_names(&heard.chain[0]), [far.identity()]);
    assert_eq!(heard.chain.len(), 2, "the leaf and the intermediate, and not the root");
    for (name, certificate) in ["leaf.der", "sent.der"].iter().zip(&heard.chain) {
        fs::write(plugged.0.join(name), certificate).expect("a file of our own");
    }
    openssl(&plugged.0, "x509 -inform der -in leaf.der -out leaf.pem");
    openssl(&plugged.0, "x509 -inform der -in sent.der -out sent.pem");
    openssl(&plugged.0, "verify -x509_strict -CAfile root-cert.pem -untrusted sent.pem leaf.pem");

    // A certificate of the mesh that control would have generated for itself opens nothing.
    let foreign = Authority::foreign().sign("spiffe://cluster.local/ns/default/sa/peer", -60, DAY);
    peer::ask(&mesh.outside().namespace, far.at(15008), Some(foreign), &asked).expect_err("a foreign authority");
}

/// The serial numbers of a node's workload certificates by identity.
fn serials(node: &Node) -> Result<BTreeMap<String, String>, String> {
    let rows = node.admin().certificates().map_err(|status| status.to_string())?;
    let valid = |row: &CertificateRow| matches!(row.state.as_str(), "valid" | "renewing") && row.error.is_empty();
    match rows.iter().find(|row| !valid(row)) {
        Some(row) => Err(format!("{row:?}")),
        None => {
            let own = rows.into_iter().filter(|row| row.identity.starts_with("spiffe://"));
            Ok(own.map(|row| (row.identity, row.serial)).collect())
        }
    }
}

/// Six lives, twelve renewals.
#[test]
#[ignore = "takes three minutes: `cargo xtask test --long`"]
fn for_three_minutes_certificates_live_thirty_seconds_and_no_connection_notices() {
    let control_arguments = ["--certificate-lifetime", "30s"].map(str::to_owned).into();
    let mesh = Mesh::with(Setup { control_arguments, ..Setup::default() });
    let [web, far] = [("web", "node-a"), ("far", "node-b")]
        .map(|(name, node)| mesh.app(name).on(node).serving(80, Behaviour::Name).echoing_on(81));
    let lasting = [web.opens(far.at(81)), far.opens(web.at(81))];
    let nodes = [mesh.node("node-a"), mesh.node("node-b")];
    let (mut seen, mut made) = ([BTreeSet::new(), BTreeSet::new()], 0);

    let since = std::time::Instant::now();
    while since.elapsed() < Duration::from_secs(180) {
        for (from, to) in [(&web, far.at(80)), (&far, web.at(80)), (&web, far.at_v6(80))] {
            let storm = Storm { to: vec![to], connections: 200, threads: 4, per_second: 200, same_address: true };
            let report = from.makes(storm);
            assert_eq!((report.answered, report.failed), (200, 0), "after {:?}: {report:?}", since.elapsed());
            made += report.answered;
        }
        for (node, seen) in nodes.iter().zip(&mut seen) {
            seen.extend(serials(node).expect("all are valid").into_values());
        }
        for conversation in &lasting {
            conversation.still_works();
        }
    }

    eprintln!("{made} connections, certificates: {:?}", seen.each_ref().map(BTreeSet::len));
    assert!(seen.iter().all(|serials| (10..=16).contains(&serials.len())), "{seen:?}");
    assert!(made > 10_000, "{made} connections are no load");
}

#[test]
fn certificates_are_renewed_at_half_life_while_connections_are_made_and_none_fails() {
    let lifetime = Duration::from_secs(30);
    let control_arguments = ["--certificate-lifetime", "30s"].map(str::to_owned).into();
    let mesh = Mesh::with(Setup { control_arguments, ..Setup::default() });
    let accounts = ["one", "two", "three", "four"];
    let web = mesh.app("web").on("node-a");
    let servers: Vec<App> =
        accounts.iter().map(|name| mesh.app(name).on("node-b").serving(80, Behaviour::Name).echoing_on(81)).collect();
    let targets: Vec<_> = servers.iter().map(|server| server.at(80)).collect();
    let lasting: Vec<_> = servers.iter().map(|server| web.opens(server.at(81))).collect();
    let nodes = [mesh.node("node-a"), mesh.node("node-b")];
    let before = nodes.map(|node| serials(node).expect("all are valid"));
    assert_eq!((before[0].len(), before[1].len()), (1, 4), "{before:?}");
    let rows = nodes[1].admin().certificates().expect("the agent lists certificates");
    let half = lifetime.as_secs_f64() / 2.0;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs_f64();
    for row in rows.iter().filter(|row| row.identity.starts_with("spiffe://")) {
        // Half of what is left, up to a tenth earlier; a few seconds of it have passed.
        let left = row.renews_at as f64 - now;
        assert!((half * 0.9 - 10.0..=half + 1.0).contains(&left), "{left} s: {row:?}");
    }

    // Load all the while, until every certificate is another one.
    let mut made = 0;
    let all_new = || {
        nodes.iter().zip(&before).all(|(node, before)| {
            serials(node).expect("all are valid").iter().all(|(identity, serial)| before.get(identity) != Some(serial))
        })
    };
    let since = std::time::Instant::now();
    while !all_new() {
        assert!(since.elapsed() < lifetime, "after a whole life: {:?}, before: {before:?}", nodes.map(serials));
        let report = web.storms(&targets, 400, 4, true);
        assert_eq!((report.answered, report.failed), (400, 0), "{report:?}");
        made += report.answered;
    }
    let report = web.storms(&targets, 400, 4, true);
    assert_eq!((report.answered, report.failed), (400, 0), "with the new ones: {report:?}");
    assert!(made > 1_000, "{made} connections are no load");

    for conversation in &lasting {
        conversation.still_works();
    }
    let caller = Authority::of_mesh(&mesh.control().state()).sign(&web.identity(), -60, DAY);
    let asked = peer::Asked { method: http::Method::CONNECT, authority: servers[0].at(81).to_string() };
    let heard = peer::ask(&mesh.outside().namespace, servers[0].at(15008), Some(caller), &asked).expect("a tunnel");
    let shown = peer::serial(&heard.chain[0]);
    assert_eq!(Some(&shown), serials(nodes[1]).expect("all are valid").get(&servers[0].identity()), "on the wire");
}

/// Asks control for a certificate as the agent of `node` would.
fn request(mesh: &Mesh, node: &str, identity: &str) -> Result<Vec<String>, Status> {
    let address = ControlAddress {
        uri: format!("https://{}", mesh.control().address()),
        name: "mesh-control".to_owned(),
        root: mesh.control().root(),
        token: mesh.control().token(node),
    };
    let mut parameters = CertificateParams::default();
    parameters.subject_alt_names = vec![SanType::URI(identity.try_into().expect("a URI"))];
    let csr = parameters.serialize_request(&KeyPair::generate().expect("a key")).expect("a request");
    let name = Value { kind: Some(Kind::StringValue(identity.to_owned())) };
    let metadata = Some(Struct { fields: [("ImpersonatedIdentity".to_owned(), name)].into() });
    let asking = IstioCertificateRequest { csr: csr.pem().expect("PEM"), validity_duration: 3600, metadata };
    mesh.control().place().namespace.inside(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let line = address.dial().await.expect("control is there");
            let mut client = IstioCertificateServiceClient::with_interceptor(line.channel.clone(), line.bearer.clone());
            client.create_certificate(asking).await.map(|answer| answer.into_inner().cert_chain)
        })
    })
}

#[test]
fn an_agent_gets_certificates_for_workloads_of_its_own_node_and_for_nobody_else() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    let far = mesh.app("far").on("node-b");
    let plain = mesh.app("plain").not_enrolled().on("node-a");
    mesh.settle();

    assert_eq!(request(&mesh, "node-a", &web.identity()).expect("its own").len(), 2, "the leaf and the root");
    request(&mesh, "node-b", &far.identity()).expect("its own");
    for (node, identity) in [
        ("node-a", far.identity()),
        ("node-b", web.identity()),
        ("node-a", "spiffe://cluster.local/ns/default/sa/nobody".to_owned()),
        ("node-a", "spiffe://elsewhere.example/ns/default/sa/web".to_owned()),
    ] {
        let status = request(&mesh, node, &identity).expect_err(&identity);
        assert_eq!(status.code(), Code::PermissionDenied, "{identity} for {node}: {status:?}");
        eventually("control logs why", LIMIT, || match mesh.control().log() {
            log if log.contains(&identity) => Ok(()),
            log => Err(log),
        });
    }

    // When the workload goes, so does its node's right to speak for it.
    mesh.remove("pod-default-web.yaml");
    eventually("it is refused", LIMIT, || match request(&mesh, "node-a", &web.identity()) {
        Err(status) if status.code() == Code::PermissionDenied => Ok(()),
        other => Err(format!("{other:?}")),
    });
    drop(plain);
}
