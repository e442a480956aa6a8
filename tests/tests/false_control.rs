//! Control daemons that have gone wrong: one that speaks garbage, one that answers slowly, a second one beside the first. The
//! last good View stays, nobody gets through whom policy denied, and the reason is shown.

use std::{thread, time::Duration};

use mesh_api::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, MESH_CONFIG_TYPE,
    proto::workload::{Address, PortList, TunnelProtocol, Workload, address},
};
use mesh_tests::{
    App, LIMIT, Mesh, eventually, identity,
    imposter::{Babbler, Imposter, answer},
    node::Node,
};
use prost::Message;

/// Callers on node-a of a server on node-b that lets `web` in and not `api`.
struct Pods {
    web: App,
    api: App,
    far: App,
}

impl Pods {
    fn on(mesh: &Mesh) -> Self {
        let [web, api] = ["web", "api"].map(|name| mesh.app(name).on("node-a"));
        let far = mesh.app("far").on("node-b").echoing_on(80);
        mesh.policy("no-api").on(&far).deny(identity("ns/default/sa/api"));
        let pods = Self { web, api, far };
        pods.work();
        pods
    }

    #[track_caller]
    fn work(&self) {
        self.web.dial(&self.far).is_answered();
        self.api.dial(&self.far).is_refused();
    }
}

/// The server as control knows it, but with a policy and a service that there are not.
fn far_with_strange_friends(mesh: &Mesh, far: &App) -> (String, Vec<u8>) {
    let rows = mesh.node("node-b").admin().workloads().expect("the agent lists workloads");
    let row = rows.iter().find(|row| row.name == "far").expect("a workload");
    let octets = |address: std::net::IpAddr| match address {
        std::net::IpAddr::V4(address) => address.octets().to_vec(),
        std::net::IpAddr::V6(address) => address.octets().to_vec(),
    };
    let workload = Workload {
        uid: row.uid.clone(),
        name: "far".to_owned(),
        namespace: "default".to_owned(),
        addresses: far.addresses().map(octets).into(),
        tunnel_protocol: TunnelProtocol::Hbone as i32,
        trust_domain: "cluster.local".to_owned(),
        service_account: "far".to_owned(),
        node: "node-b".to_owned(),
        authorization_policies: vec!["default/no-api".to_owned(), "default/nowhere".to_owned()],
        services: [("default/nowhere.default.svc.cluster.local".to_owned(), PortList::default())].into(),
        ..Workload::default()
    };
    let message = Address { r#type: Some(address::Type::Workload(workload)) };
    (row.uid.clone(), message.encode_to_vec())
}

fn refuses(node: &Node, why: &str) -> Result<(), String> {
    let status = node.admin().status().map_err(|status| status.to_string())?;
    let is_named = status.resource_types.iter().any(|kind| kind.nack.contains(why) && !kind.synced);
    if is_named { Ok(()) } else { Err(format!("{status:?}")) }
}

#[test]
fn what_a_control_daemon_says_that_makes_no_sense_is_refused_with_its_reason_and_changes_nothing() {
    let mesh = Mesh::new();
    let pods = Pods::on(&mesh);
    let (uid, far) = far_with_strange_friends(&mesh, &pods.far);
    mesh.control().kill();
    let imposter = Imposter::of(mesh.control());
    let listen = || if imposter.listeners() == 2 { Ok(()) } else { Err("not yet".to_owned()) };
    eventually("both agents listen to the imposter", LIMIT, listen);

    let truncated = &far[..far.len() - 3];
    let cases = [
        (answer(ADDRESS_TYPE, &uid, ADDRESS_TYPE, b"\xff\xfe\xfdgarbage"), "far: "),
        (answer(ADDRESS_TYPE, &uid, ADDRESS_TYPE, truncated), "far: "),
        (answer(ADDRESS_TYPE, &uid, AUTHORIZATION_TYPE, &far), "holds no type.googleapis.com/istio.workload.Address"),
        (answer(AUTHORIZATION_TYPE, "default/no-api", AUTHORIZATION_TYPE, b"\x08\x01"), "default/no-api: "),
        (answer(MESH_CONFIG_TYPE, "mesh", MESH_CONFIG_TYPE, b"\x0a\xff"), "mesh: "),
    ];
    for (said, why) in cases {
        let before = imposter.refusals().len();
        imposter.says(&said);
        mesh.nodes().iter().for_each(|node| eventually(why, LIMIT, || refuses(node, why)));
        eventually("control is told why", LIMIT, || match &imposter.refusals()[before..] {
            told if told.len() >= 2 && told.iter().all(|reason| reason.contains(why)) => Ok(()),
            told => Err(format!("{told:?}")),
        });
        pods.work();
    }
    // A type that nobody asked for.
    imposter.says(&answer("type.example/strange", "strange", "type.example/strange", b"strange"));
    pods.work();

    // A policy that there is not denies: better nobody than the wrong one.
    imposter.says(&answer(ADDRESS_TYPE, &uid, ADDRESS_TYPE, &far));
    eventually("far lets nobody in", LIMIT, || match pods.web.dial(&pods.far).was_answered() {
        true => Err("web is let in".to_owned()),
        false => Ok(()),
    });
    pods.api.dial(&pods.far).is_refused();

    drop(imposter);
    mesh.control().start();
    eventually("all is in step again", LIMIT, || {
        pods.web.dial(&pods.far).was_answered().then_some(()).ok_or("web is refused")?;
        let status = mesh.node("node-b").admin().status().map_err(|status| status.to_string())?;
        let is_good = status.resource_types.iter().all(|kind| kind.synced && kind.nack.is_empty());
        if is_good { Ok(()) } else { Err(format!("{status:?}")) }
    });
    pods.work();
}

#[test]
fn a_control_daemon_that_babbles_is_away_and_one_that_is_slow_is_waited_for() {
    let mesh = Mesh::new();
    let pods = Pods::on(&mesh);
    let control = mesh.control();
    control.kill();
    let babbler = Babbler::of(control);
    let node = mesh.node("node-a");
    eventually("status names what is wrong", LIMIT, || {
        let status = node.admin().status().map_err(|status| status.to_string())?;
        let is_named = status.control == "disconnected" && status.last_error.contains("corrupt message");
        if is_named { Ok(()) } else { Err(status.last_error) }
    });
    pods.work();
    drop(babbler);
    control.start();

    // It has its processor for 20 ms of every 200: what it says comes late and is whole.
    eventually("the agent is connected again", 2 * LIMIT, || {
        let status = node.admin().status().map_err(|status| status.to_string())?;
        if status.control == "connected" { Ok(()) } else { Err(status.last_error) }
    });
    thread::scope(|scope| {
        let slow = scope.spawn(|| {
            for _ in 0..25 {
                control.hang();
                thread::sleep(Duration::from_millis(180));
                control.resume();
                thread::sleep(Duration::from_millis(20));
            }
        });
        mesh.remove_policy("no-api");
        mesh.policy("no-web").on(&pods.far).deny(identity("ns/default/sa/web"));
        pods.web.dial(&pods.far).is_refused();
        pods.api.dial(&pods.far).is_answered();
        slow.join().expect("it is only slow");
    });
}

#[test]
fn a_second_control_daemon_on_the_state_of_the_first_is_refused_and_harms_nothing() {
    let mesh = Mesh::new();
    let pods = Pods::on(&mesh);
    let second = mesh.control().starts_again();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains("is in use by another mesh-control, which runs: stop that one first"), "{said}");
    pods.work();
    mesh.control().rotate(None).expect("the first one still answers its operator");
}
