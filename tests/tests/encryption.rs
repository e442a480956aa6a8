//! Identity on the wire: who may open a tunnel, what it may ask for, and whom an agent talks to.

use std::{net::SocketAddr, time::Duration};

use http::Method;
use mesh_tests::{
    App, Mesh, Setup,
    forge::{Authority, Credentials},
    identity,
    peer::{self, Asked, Heard, Impostor},
};

const DAY: Duration = Duration::from_secs(86_400);
const PEER: &str = "spiffe://cluster.local/ns/default/sa/peer";

fn connect(authority: impl ToString) -> Asked {
    Asked { method: Method::CONNECT, authority: authority.to_string() }
}

/// From the host outside, to port 15008 of `app`.
fn ask(mesh: &Mesh, app: &App, credentials: Option<Credentials>, asked: &Asked) -> Result<Heard, String> {
    let to: SocketAddr = app.at(15008);
    peer::ask(&mesh.outside().namespace, to, credentials, asked)
}

#[test]
fn a_peer_with_a_certificate_of_the_mesh_reaches_the_app_and_sees_one_spiffe_name() {
    let mesh = Mesh::new();
    let far = mesh.app("far").on("node-b").echoing_on(80);
    mesh.settle();
    let authority = Authority::of_mesh(&mesh.control().state());
    for to in [far.at(80), far.at_v6(80)] {
        let tunnel = SocketAddr::new(to.ip(), 15008);
        let credentials = authority.sign(PEER, -60, DAY);
        let heard = peer::ask(&mesh.outside().namespace, tunnel, Some(credentials), &connect(to)).expect("a tunnel");
        assert_eq!((heard.status, heard.echo.as_str()), (200, "through the tunnel\n"));
        assert_eq!(heard.version, rustls::ProtocolVersion::TLSv1_3);
        assert_eq!(peer::uri_names(&heard.chain[0]), [far.identity()]);
    }
    let sources: Vec<_> = far.connections().iter().map(|seen| seen.peer.ip().to_canonical()).collect();
    assert_eq!(sources, mesh.outside_addresses().both(), "the app sees who called");
}

#[test]
fn nobody_without_a_valid_certificate_of_the_mesh_is_asked_what_they_want() {
    let mesh = Mesh::new();
    let far = mesh.app("far").on("node-b").echoing_on(80);
    mesh.settle();
    let ours = Authority::of_mesh(&mesh.control().state());
    let foreign_domain = "spiffe://elsewhere.example/ns/default/sa/peer";
    let cases = [
        ("no certificate", None),
        ("a foreign authority", Some(Authority::foreign().sign(PEER, -60, DAY))),
        ("a foreign trust domain", Some(ours.sign(foreign_domain, -60, DAY))),
        ("expired", Some(ours.sign(PEER, -7200, Duration::from_secs(3600)))),
        ("not yet valid", Some(ours.sign(PEER, 3600, DAY))),
        ("no SPIFFE name", Some(ours.sign("https://cluster.local/ns/default/sa/peer", -60, DAY))),
    ];
    for (name, credentials) in cases {
        let answer = ask(&mesh, &far, credentials, &connect(far.at(80)));
        assert!(answer.is_err(), "{name}: {answer:?}");
    }
    far.saw_no_connection();
    // The same question with a good certificate is answered: it was the certificates.
    let good = ask(&mesh, &far, Some(ours.sign(PEER, -60, DAY)), &connect(far.at(80)));
    assert_eq!(good.map(|heard| heard.status), Ok(200));
}

#[test]
fn a_client_that_speaks_no_tls_13_gets_nothing_but_an_alert() {
    let mesh = Mesh::new();
    let far = mesh.app("far").on("node-b").echoing_on(80);
    mesh.settle();

    let answer = peer::offers_tls_12(&mesh.outside().namespace, far.at(15008));

    // One record: alert, fatal, protocol_version. Source: RFC 8446, section 6.
    assert_eq!(answer, [21, 3, 3, 0, 2, 2, 70]);
    far.saw_no_connection();
}

/// As the agent has for one pod and worker.
const HANDSHAKES: usize = 256;

#[test]
fn handshakes_without_end_are_reset_and_other_pods_go_on() {
    let agent_arguments = ["--workers", "1"].map(str::to_owned).into();
    let mesh = Mesh::with(Setup { agent_arguments, ..Setup::default() });
    let web = mesh.app("web").on("node-a");
    let [flooded, other] = ["flooded", "other"].map(|name| mesh.app(name).on("node-b").echoing_on(80));
    mesh.settle();
    let node = mesh.node("node-b");
    let flag = [("reporter", "destination"), ("response_flags", "OVERLOAD")];

    let connect = || (0..HANDSHAKES + 100).map(|_| std::net::TcpStream::connect(flooded.at(15008)));
    let silent: Vec<_> = mesh.outside().namespace.inside(|| connect().filter_map(Result::ok).collect());

    node.counted("istio_tcp_connections_failed_total", 100, &flag);
    web.dial(&flooded).is_refused();
    web.dial(&other).is_answered();
    drop(silent);
    web.reaches(flooded.at(80));
}

#[test]
fn a_certificate_is_of_no_use_at_the_address_of_another_workload() {
    let mesh = Mesh::new();
    mesh.lets_some_pass_in_the_clear();
    let far = mesh.app("far").on("node-b").echoing_on(80);
    // Its sockets are not steered, so that it can speak for itself.
    let thief = mesh.app("thief").not_enrolled().on("node-a");
    mesh.settle();
    let authority = Authority::of_mesh(&mesh.control().state());
    let from_thief = |identity: &str| {
        let credentials = authority.sign(identity, -60, DAY);
        peer::ask(&thief.place().namespace, far.at(15008), Some(credentials), &connect(far.at(80)))
    };

    let stolen = from_thief(&far.identity());

    assert!(stolen.is_err(), "{stolen:?}");
    far.saw_no_connection();
    let flag = [("reporter", "destination"), ("response_flags", "IDENTITY_ERROR")];
    let node = mesh.node("node-b");
    node.counted("istio_tcp_connections_failed_total", 1, &flag);
    node.counted("mesh_listener_refused_total", 1, &[("listener", "15008"), ("reason", "identity")]);
    let is_named = |line: &str| line.contains("identity") && line.contains(&thief.v4().to_string());
    assert!(node.agent_log().lines().any(is_named), "{}", node.agent_log());
    // With its own, from the same address, it is answered: it was the name.
    assert_eq!(from_thief(&thief.identity()).map(|heard| heard.status), Ok(200));
}

#[test]
fn a_tunnel_leads_nowhere_but_to_the_workload_that_was_dialled() {
    let mesh = Mesh::new();
    let far = mesh.app("far").on("node-b").echoing_on(80);
    let other = mesh.app("other").on("node-b").echoing_on(80);
    let db = mesh.app("db").on("node-b").echoing_on(80);
    mesh.policy("only-api").on(&db).allow(identity("ns/default/sa/api"));
    mesh.settle();
    let authority = Authority::of_mesh(&mesh.control().state());
    let get = Asked { method: Method::GET, authority: far.at(80).to_string() };
    let cases = [
        (&far, connect(other.at(80)), 400),
        (&far, connect("127.0.0.1:80"), 400),
        (&far, connect("far.default.svc.cluster.local:80"), 400),
        (&far, get, 400),
        (&far, connect(far.at(15001)), 503),
        (&far, connect(far.at(15006)), 503),
        (&far, connect(far.at(15008)), 503),
        (&far, connect(far.at(9)), 503),
        (&db, connect(db.at(80)), 401),
    ];
    for (app, asked, status) in cases {
        let heard = ask(&mesh, app, Some(authority.sign(PEER, -60, DAY)), &asked).expect("an answer");
        assert_eq!(heard.status, status, "{asked:?}");
    }
    for app in [&far, &other, &db] {
        app.saw_no_connection();
    }
    mesh_tests::eventually("each is named in the log", mesh_tests::LIMIT, || {
        let log = mesh.node("node-b").access_log();
        let malformed = log.iter().filter(|line| line["flag"] == "BAD_REQUEST").count();
        if malformed == 4 { Ok(()) } else { Err(format!("{malformed} of four: {log:?}")) }
    });
}

#[test]
fn an_agent_sends_nothing_to_a_server_that_proves_to_be_somebody_else() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    let address = mesh.outside_addresses().v4;
    // Control says that the host outside is workload `claimed` with identity `claimed`.
    mesh.apply(
        "claimed.yaml",
        &format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{namespace: default, name: claimed}}\n\
             spec: {{nodeName: elsewhere, serviceAccountName: claimed}}\nstatus:\n  phase: Running\n  \
             podIP: \"{address}\"\n  podIPs: [{{ip: \"{address}\"}}]\n"
        ),
    );
    let impostor = Impostor::listen(&mesh.outside().namespace);
    mesh.expect_workload("default/claimed");
    mesh.settle();
    let authority = Authority::of_mesh(&mesh.control().state());
    let serve = |identity: &str| {
        let credentials = authority.sign(identity, -60, DAY);
        std::thread::scope(|scope| {
            let served = scope.spawn(|| impostor.serve(credentials));
            web.dial_at((address, 80).into()).is_refused();
            served.join().expect("a caller came")
        })
    };

    let fooled = serve("spiffe://cluster.local/ns/default/sa/somebody-else");

    assert_eq!(fooled.bytes, 0, "a request was sent: {fooled:?}");
    assert!(fooled.handshake.is_err(), "the certificate was accepted");
    mesh.node("node-a").counted(
        "istio_tcp_connections_failed_total",
        1,
        &[("reporter", "source"), ("source_workload", "web"), ("response_flags", "TLS_FAILURE")],
    );
}
