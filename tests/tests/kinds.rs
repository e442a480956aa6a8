//! Every kind of object that says who answers behind a name, end to end: what is written is what is reached.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use mesh_api::proto::admin::{ServiceRow, SocketRow};
use mesh_tests::{
    App, LIMIT, Mesh,
    addresses::canonical,
    eventually, plain,
    protocol::{Behaviour, Command, Dial, Listen, StormReport},
};

/// An address in the cluster's service range that no service of the harness has.
const VIRTUAL: u8 = 200;

fn virtual_addresses(mesh: &Mesh) -> [IpAddr; 2] {
    let any = mesh.service("unused");
    let [mut v4, mut v6] = [any.at(0).ip(), any.at_v6(0).ip()];
    if let IpAddr::V4(address) = &mut v4 {
        let [a, b, c, _] = address.octets();
        *address = [a, b, c, VIRTUAL].into();
    }
    if let IpAddr::V6(address) = &mut v6 {
        let mut segments = address.segments();
        segments[7] = VIRTUAL.into();
        *address = segments.into();
    }
    [v4, v6]
}

/// Waits until every agent has the service with that many endpoints.
fn is_known(mesh: &Mesh, host: &str, endpoints: usize) {
    mesh.settle();
    for node in mesh.nodes() {
        eventually(&format!("{} knows {host}", node.name()), LIMIT, || {
            let rows = node.admin().services().map_err(|status| status.to_string())?;
            let is_it = |row: &&ServiceRow| row.hostname == host && row.endpoints.len() == endpoints;
            rows.iter().find(is_it).map(|_| ()).ok_or_else(|| format!("{rows:?} {}", mesh.control().log()))
        });
    }
}

/// How often each server answered, by its own address.
fn answers(report: StormReport) -> BTreeMap<SocketAddr, u32> {
    assert_eq!((report.failed, report.wrong_source), (0, 0), "{report:?}");
    report.by_server.into_iter().collect()
}

/// As [`answers`], of connections of which some are in the clear: there the client's address is seen, and a port of the
/// agent's.
fn asked(web: &App, to: SocketAddr, times: u32) -> BTreeMap<SocketAddr, u32> {
    let mut answers = BTreeMap::new();
    for _ in 0..times {
        let dialled = web.dial_with(Dial { send: "who are you?\n".to_owned(), ..plain(to) });
        let account = &dialled.report().received;
        let ends: Vec<SocketAddr> = account.split_whitespace().filter_map(|end| end.parse().ok()).collect();
        let [own, peer] = ends[..] else { panic!("{to} did not name itself: {:?}", dialled.report()) };
        assert!(web.addresses().contains(&peer.ip().to_canonical()), "the server saw {peer}");
        *answers.entry(canonical(own)).or_insert(0) += 1;
    }
    answers
}

/// The path of a connection from `web`, as its node lists it, and the service that it names.
fn path(mesh: &Mesh, web: &App, to: SocketAddr) -> (String, String) {
    let conversation = web.opens(to);
    conversation.says("hello\n");
    eventually(&format!("the connection to {to} is listed"), LIMIT, || {
        let rows = mesh.node("node-a").admin().sockets().map_err(|status| status.to_string())?;
        let is_it = |row: &&SocketRow| row.source == conversation.local().to_string() && !row.path.is_empty();
        let row = rows.iter().find(is_it).ok_or_else(|| format!("{rows:?}"))?;
        Ok((row.path.clone(), row.service.clone()))
    })
}

#[test]
fn a_service_entry_leads_to_its_static_endpoints_each_at_its_own_port() {
    let mesh = Mesh::new();
    mesh.lets_some_pass_in_the_clear();
    let web = mesh.app("web").on("node-a");
    let [v4, v6] = virtual_addresses(&mesh);
    let outside = mesh.outside_addresses();
    for address in [(outside.v4, 8080).into(), (outside.v6, 9090).into()] {
        let listen = Listen { address, only_v6: true, reuse_port: false, behaviour: Behaviour::Name };
        mesh.stranger().ask(Command::Listen(listen));
    }
    mesh.apply(
        "legacy.yaml",
        &format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{namespace: default, name: legacy}}\n\
             spec:\n  hosts: [legacy.example.com]\n  addresses: [\"{v4}\", \"{v6}\"]\n  resolution: STATIC\n  \
             location: MESH_EXTERNAL\n  ports: [{{number: 80, name: tcp, protocol: TCP, targetPort: 8080}}]\n  \
             endpoints:\n  - {{address: \"{}\"}}\n  - {{address: \"{}\", ports: {{tcp: 9090}}}}\n",
            outside.v4, outside.v6
        ),
    );
    is_known(&mesh, "legacy.example.com", 2);

    let ends: Vec<SocketAddr> = vec![(outside.v4, 8080).into(), (outside.v6, 9090).into()];
    for to in [v4, v6] {
        let servers: Vec<_> = asked(&web, (to, 80).into(), 40).into_keys().collect();
        assert_eq!(servers, ends, "at {to}");
    }
    let listed = path(&mesh, &web, (v4, 80).into());
    assert_eq!(listed, ("plaintext".to_owned(), "default/legacy.example.com".to_owned()));
    // Another port of it is no way to anywhere.
    web.dial_at((v4, 81).into()).is_refused();
}

#[test]
fn a_service_entry_without_addresses_is_refused_with_that_reason() {
    let mesh = Mesh::new();
    mesh.apply(
        "named.yaml",
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {namespace: default, name: named}\nspec:\n  \
         hosts: [named.example.com]\n  resolution: STATIC\n  ports: [{number: 80, name: tcp, protocol: TCP}]\n  \
         endpoints: [{address: 192.0.2.1}]\n",
    );
    eventually("the refusal names file, line, field and reason", LIMIT, || {
        let log = mesh.control().log();
        let is_it = |line: &&str| {
            line.contains("named.yaml:5") && line.contains("spec.addresses") && line.contains("is required")
        };
        log.lines().find(is_it).map(|_| ()).ok_or(log)
    });
    let services = mesh.node("node-a").admin().services().expect("the agent lists services");
    assert!(services.iter().all(|row| row.hostname != "named.example.com"), "{services:?}");
}

#[test]
fn a_workload_entry_stands_beside_pods_behind_a_service_and_behind_a_service_entry() {
    let mesh = Mesh::new();
    mesh.lets_some_pass_in_the_clear();
    let web = mesh.app("web").on("node-a");
    let pod = mesh.app("pod").labelled("app", "store").on("node-b").serving(8080, Behaviour::Name);
    let machine = mesh.outside_addresses().v4;
    let listen =
        Listen { address: (machine, 9090).into(), only_v6: false, reuse_port: false, behaviour: Behaviour::Name };
    mesh.stranger().ask(Command::Listen(listen));
    let store = mesh.service("store").port(80, 8080).selecting("app", "store");
    let [v4, _] = virtual_addresses(&mesh);
    mesh.apply(
        "machine.yaml",
        &format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{namespace: default, name: machine}}\n\
             spec: {{address: \"{machine}\", labels: {{app: store}}, ports: {{port-80: 9090}}}}\n---\n\
             apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{namespace: default, name: alias}}\n\
             spec:\n  hosts: [alias.example.com]\n  addresses: [\"{v4}\"]\n  resolution: STATIC\n  \
             ports: [{{number: 88, name: port-80, protocol: TCP, targetPort: 8080}}]\n  \
             workloadSelector: {{labels: {{app: store}}}}\n"
        ),
    );
    mesh.expect_workload("default/machine");
    is_known(&mesh, "store.default.svc.cluster.local", 2);
    is_known(&mesh, "alias.example.com", 2);

    // The pod at the service's target port and through a tunnel, the machine at its own and as it is.
    for to in [store.at(80), (v4, 88).into()] {
        let servers: Vec<_> = asked(&web, to, 40).into_keys().collect();
        let mut expected = vec![pod.at(8080), (machine, 9090).into()];
        expected.sort();
        assert_eq!(servers, expected);
    }
    let paths: std::collections::BTreeSet<_> = (0..40).map(|_| path(&mesh, &web, store.at(80)).0).collect();
    assert_eq!(paths.into_iter().collect::<Vec<_>>(), ["hbone", "plaintext"]);
}

#[test]
fn a_workload_entry_with_a_node_and_an_account_is_a_member_of_the_mesh() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    // No Pod says so: a bare process that was enrolled by hand.
    let machine = mesh.app("machine").account("machine").unpublished().on("node-b").serving(8080, Behaviour::Name);
    mesh.apply(
        "machine.yaml",
        &format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
             metadata: {{namespace: default, name: machine, annotations: {{mesh.dev/node: node-b}}}}\n\
             spec: {{address: \"{}\", labels: {{app: machine}}, serviceAccount: machine}}\n",
            machine.v4()
        ),
    );
    let store = mesh.service("machine").port(80, 8080).selecting("app", "machine");
    mesh.expect_workload("default/machine");
    is_known(&mesh, "machine.default.svc.cluster.local", 1);

    for to in [machine.at(8080), store.at(80)] {
        assert_eq!(answers(web.storms(&[to], 20, 2, false)), [(machine.at(8080), 20)].into());
    }
    let conversation = web.opens(store.at(80));
    conversation.says("who are you?\n");
    let row = eventually("the connection is listed at both ends", LIMIT, || {
        let rows = mesh.node("node-b").admin().sockets().map_err(|status| status.to_string())?;
        let is_it = |row: &&SocketRow| row.source == conversation.local().to_string() && row.path == "hbone";
        rows.iter().find(is_it).cloned().ok_or_else(|| format!("{rows:?}"))
    });
    let ends = (row.source_identity.as_str(), row.destination_identity.as_str());
    assert_eq!(ends, (&*web.identity(), &*machine.identity()), "both ends have proved who they are");
}

#[test]
fn an_endpoint_slice_written_by_hand_says_who_answers_for_a_service_without_selector() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    let [near, far, out] = [("near", "node-a"), ("far", "node-b"), ("out", "node-b")]
        .map(|(name, node)| mesh.app(name).on(node).serving(8080, Behaviour::Name));
    let [v4, _] = virtual_addresses(&mesh);
    let manifest = |is_far_ready: bool| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{namespace: default, name: manual}}\n\
             spec: {{clusterIP: \"{v4}\", clusterIPs: [\"{v4}\"], ports: [{{name: web, port: 80, targetPort: 1}}]}}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{namespace: default, name: manual-1, labels: {{kubernetes.io/service-name: manual}}}}\n\
             addressType: IPv4\nports: [{{name: web, port: 8080, protocol: TCP}}]\nendpoints:\n\
             - {{addresses: [\"{}\"], nodeName: node-a, targetRef: {{kind: Pod, name: near}}}}\n\
             - {{addresses: [\"{}\"], conditions: {{ready: {is_far_ready}}}}}\n\
             - {{addresses: [\"{}\"], conditions: {{ready: false}}}}\n",
            near.v4(),
            far.v4(),
            out.v4()
        )
    };
    mesh.apply("manual.yaml", &manifest(true));
    is_known(&mesh, "manual.default.svc.cluster.local", 2);
    let servers: Vec<_> = answers(web.storms(&[(v4, 80).into()], 200, 4, false)).into_keys().collect();
    assert_eq!(servers, [near.at(8080), far.at(8080)], "both that are ready, by tunnel and directly");

    mesh.apply("manual.yaml", &manifest(false));
    is_known(&mesh, "manual.default.svc.cluster.local", 1);
    assert_eq!(answers(web.storms(&[(v4, 80).into()], 50, 2, false)), [(near.at(8080), 50)].into());
}

#[test]
fn the_pods_of_a_headless_service_are_reached_one_by_one() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    let pods = [("db-0", "node-a"), ("db-1", "node-b")]
        .map(|(name, node)| mesh.app(name).account("db").labelled("app", "db").on(node).serving(5432, Behaviour::Name));
    mesh.apply(
        "db.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {namespace: default, name: db}\n\
         spec: {clusterIP: None, selector: {app: db}, ports: [{name: sql, port: 5432}]}\n",
    );
    is_known(&mesh, "db.default.svc.cluster.local", 2);
    let rows = mesh.node("node-a").admin().services().expect("the agent lists services");
    let row = rows.iter().find(|row| row.hostname == "db.default.svc.cluster.local").expect("it is known");
    assert_eq!(row.addresses, Vec::<String>::new(), "no address of its own");
    // A client resolves the name to all of them and dials one: that one answers, always.
    for pod in &pods {
        let to = [pod.at(5432), pod.at_v6(5432)];
        let report = web.storms(&to, 100, 2, true);
        assert_eq!((report.answered, report.failed), (100, 0), "{report:?}");
    }
    let paths = pods.map(|pod| path(&mesh, &web, pod.at(5432)).0);
    assert_eq!(paths, ["node_local", "hbone"]);
}

#[test]
fn a_named_target_port_is_a_number_of_each_pods_own() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    let pods = [("old", "node-a", 8080, 8443), ("new", "node-b", 9090, 9443)].map(|(name, node, http, tls)| {
        let app = mesh.app(name).labelled("app", "shop").port("http", http).port("tls", tls).on(node);
        app.serving(http, Behaviour::Name).serving(tls, Behaviour::Name)
    });
    let shop = mesh.service("shop").port(80, "http").port(443, "tls").port(8443, 8443).selecting("app", "shop");
    is_known(&mesh, "shop.default.svc.cluster.local", 2);
    for (port, ends) in [(80, [8080, 9090]), (443, [8443, 9443])] {
        for (to, is_v6) in [(shop.at(port), false), (shop.at_v6(port), true)] {
            let servers: Vec<_> = answers(web.storms(&[to], 200, 4, false)).into_keys().collect();
            let at = |(pod, end): (&App, u16)| if is_v6 { pod.at_v6(end) } else { pod.at(end) };
            assert_eq!(servers, pods.iter().zip(ends).map(at).collect::<Vec<_>>(), "{to}");
        }
    }
}

#[test]
fn a_dual_stack_service_answers_over_both_families_and_others_over_their_own() {
    let mesh = Mesh::new();
    let web = mesh.app("web").on("node-a");
    let pods = [("near", "node-a"), ("far", "node-b")]
        .map(|(name, node)| mesh.app(name).labelled("app", "echo").on(node).serving(8080, Behaviour::Name));
    let dual = mesh.service("dual").port(80, 8080).selecting("app", "echo");
    let [v4, v6] = virtual_addresses(&mesh);
    for (name, address) in [("four", v4), ("six", v6)] {
        mesh.apply(
            &format!("{name}.yaml"),
            &format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{namespace: default, name: {name}}}\n\
                 spec: {{clusterIP: \"{address}\", clusterIPs: [\"{address}\"], selector: {{app: echo}}, \
                 ports: [{{port: 80, targetPort: 8080}}]}}\n"
            ),
        );
        is_known(&mesh, &format!("{name}.default.svc.cluster.local"), 2);
    }
    for to in [dual.at(80), dual.at_v6(80), (v4, 80).into(), (v6, 80).into()] {
        let servers: Vec<_> = answers(web.storms(&[to], 200, 4, false)).into_keys().collect();
        let at = |pod: &App| if to.is_ipv4() { pod.at(8080) } else { pod.at_v6(8080) };
        assert_eq!(servers, pods.iter().map(at).collect::<Vec<_>>(), "{to}: endpoints of its own family");
    }
}
