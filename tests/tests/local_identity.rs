//! Identity on one node: whatever a pod does with addresses, ports and namespaces, it speaks only for itself.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream};

use mesh_tests::{
    App, Mesh,
    client::Client,
    eventually, identity, plain,
    process::Place,
    protocol::{Behaviour, Command, Dial, Listen},
};

/// A caller that `db` allows, one that it does not, and `db`, all on node-a.
fn cast(mesh: &Mesh) -> [App; 3] {
    let api = mesh.app("api").on("node-a");
    let web = mesh.app("web").on("node-a");
    let db = mesh.app("db").on("node-a").echoing_on(80);
    mesh.policy("only-api").on(&db).allow(identity("ns/default/sa/api"));
    api.dial(&db).is_answered();
    web.dial(&db).is_refused();
    [api, web, db]
}

#[test]
fn a_spoofed_syn_does_not_speak_for_the_pod_whose_address_it_carries() {
    let mesh = Mesh::new();
    let [api, web, db] = cast(&mesh);
    let node = mesh.node("node-a");
    let dropped = || node.metrics().sum("mesh_steering_total", &[("reason", "no_ticket")]);
    let before = dropped();

    web.client().ask(Command::SpoofSyn { source: api.at(40_000), destination: db.at(80) });

    // At least once: what answers it, a reset to the pod that never asked, has no ticket either.
    eventually("the hook drops it and counts it", mesh_tests::LIMIT, || {
        if dropped() > before { Ok(()) } else { Err(format!("{} and {before}", dropped())) }
    });
    assert_eq!(db.connections().len(), 1, "the permitted caller's only");
}

#[test]
fn an_address_of_another_pod_does_not_lend_its_identity() {
    let mesh = Mesh::new();
    let [api, web, db] = cast(&mesh);
    web.place().namespace.ip(&format!("addr add {}/32 dev eth0", api.v4()));

    let dial = Dial { from: Some(api.at(0)), send: "x\n".to_owned(), limit_ms: 2_000, ..plain(db.at(80)) };
    let dialled = web.dial_with(dial);

    assert!(!dialled.was_answered(), "{:?}", dialled.report());
    assert_eq!(db.connections().len(), 1);
}

#[test]
fn an_address_that_is_used_again_does_not_inherit_what_its_last_owner_might_do() {
    let mesh = Mesh::new();
    let [api, _web, db] = cast(&mesh);
    api.dies();
    mesh.remove("pod-default-api.yaml");
    let next = mesh.app("next").at_address_of(&api).on("node-a");

    next.dial(&db).is_refused();

    let nobody = mesh.app("nobody").not_enrolled().on("node-a");
    nobody.dial(&db).is_refused();
    assert_eq!(db.connections().len(), 1);
}

#[test]
fn an_app_bound_to_all_addresses_is_not_reachable_through_its_link_local_one() {
    let mesh = Mesh::new();
    let [_api, _web, db] = cast(&mesh);
    let output = db.run(&["ip", "-6", "-o", "addr", "show", "dev", "eth0", "scope", "link"]);
    let text = String::from_utf8(output.stdout).expect("ip prints text");
    let address: Ipv6Addr = text
        .split_whitespace()
        .find_map(|word| word.strip_suffix("/64")?.parse().ok())
        .expect("eth0 has a link-local address");
    let node = &mesh.node("node-a").system().namespace;
    let index = node.inside(|| {
        let routes = std::fs::read_to_string("/proc/thread-self/net/ipv6_route").expect("a routing table");
        let own = db.v6().octets().map(|byte| format!("{byte:02x}")).concat();
        let device = routes.lines().find(|line| line.starts_with(&own)).and_then(|line| line.split_whitespace().last());
        let device = device.expect("the node has a route to its pod").to_owned();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        rustix::net::netdevice::name_to_index(&socket, &device).expect("the device is there")
    });
    let to = SocketAddr::from(SocketAddrV6::new(address, 80, 0, index));

    let result = node.inside(|| TcpStream::connect_timeout(&to, std::time::Duration::from_secs(2)).map(drop));

    assert_eq!(result.map_err(|error| error.kind()), Err(std::io::ErrorKind::ConnectionRefused));
    assert_eq!(db.connections().len(), 1);
}

#[test]
fn a_process_that_binds_our_ports_gets_no_connection() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    for (name, node) in [("near", "node-a"), ("far", "node-b")] {
        let app = mesh.app(name).on(node);
        let ports = [15001, 15006, 15008];
        for (port, address) in ports.iter().flat_map(|port| [(port, app.at(*port)), (port, app.at_v6(*port))]) {
            let listen = Listen { address, only_v6: true, reuse_port: true, behaviour: Behaviour::Echo };
            let refused = app.client().tries(Command::Listen(listen));
            // Refused is as good; whoever gets it must get nothing by it.
            if let Err(reason) = refused {
                assert!(reason.contains("bind"), "{port}: {reason}");
            }
        }
        let app = app.echoing_on(80);
        for _ in 0..100 {
            web.dial_at(app.at(80)).is_answered();
            app.dial_at(web.at(9)).is_refused();
        }
        assert_eq!(app.connections().len(), 100, "only what port 80 got");
        for port in ports {
            assert!(!web.dial_at(app.at(port)).was_answered());
        }
    }
}

#[test]
fn a_process_in_a_nested_network_namespace_is_refused() {
    let mesh = Mesh::new();
    let [_api, web, _db] = cast(&mesh);
    let target = SocketAddr::from((mesh.outside_addresses().v4, 80));
    let listen = Listen { address: target, only_v6: false, reuse_port: false, behaviour: Behaviour::Echo };
    mesh.stranger().ask(Command::Listen(listen));
    // Where the network is that of a host outside, but the cgroup is the pod's.
    let nested = Place { namespace: mesh.control().place().namespace.clone(), cgroup: web.place().cgroup.clone() };
    let free =
        Place { namespace: mesh.control().place().namespace.clone(), cgroup: mesh.control().place().cgroup.clone() };
    let [nested, free] = [("nested", nested), ("free", free)]
        .map(|(name, place)| Client::start(&place, &mesh.directory().join(format!("{name}.log"))));
    let dial = || Dial { send: "x\n".to_owned(), ..plain(target) };

    free.dial(dial()).is_answered();
    nested.dial(dial()).is_refused();
}
