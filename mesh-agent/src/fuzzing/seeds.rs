//! Seeds that cannot be written by hand: made of valid values.

use std::{
    net::SocketAddrV4,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use mesh_api::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, MESH_CONFIG_TYPE,
    proto::{
        admin::{EnrolRequest, enrol_request::NetworkNamespace},
        discovery::{DeltaDiscoveryResponse, Resource},
        mesh::MeshConfig,
        security::{Action, Authorization, Match, Scope},
        wellknown::Any,
    },
};
use prost::Message;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};

use crate::{
    cache::{Contents, Held, Kind},
    view::fixtures,
};

type Seed = (&'static str, &'static str, Vec<u8>);

const HOST: &str = "db.default.svc.cluster.local";

/// Target, file and content of each.
pub(super) fn seeds() -> Vec<Seed> {
    [certificates(), enrolments(), records(), resources(), tunnels()].concat()
}

fn certificates() -> Vec<Seed> {
    let root_key = KeyPair::generate().expect("a key");
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    (root.not_before, root.not_after) = (time(1_700_000_000).into(), time(4_000_000_000).into());
    let root_pem = root.self_signed(&root_key).expect("a root").pem();
    let issuer = Issuer::new(root, root_key);
    let leaf = |names: &[&str]| {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names.iter().map(|name| SanType::URI((*name).try_into().expect("ascii"))).collect();
        (params.not_before, params.not_after) = (time(1_700_000_000).into(), time(4_000_000_000).into());
        params.signed_by(&KeyPair::generate().expect("a key"), &issuer).expect("a certificate")
    };
    let chain = |names: &[&str]| (leaf(names).pem() + &root_pem).into_bytes();
    let (web, foreign) = ("spiffe://cluster.local/ns/default/sa/web", "spiffe://elsewhere/ns/default/sa/web");
    vec![
        ("certificates", "good.pem", chain(&[web])),
        ("certificates", "bad-foreign.pem", chain(&[foreign])),
        ("certificates", "bad-two-names.pem", chain(&[web, foreign])),
        ("certificates", "bad-root-alone.pem", root_pem.into_bytes()),
        ("certificates", "bad-bare.der", leaf(&[web]).der().to_vec()),
    ]
}

fn time(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn enrolments() -> Vec<Seed> {
    let good = EnrolRequest {
        uid: "8f2c".into(),
        namespace: "default".into(),
        name: "web-7d4b9c5d8f-x2x4z".into(),
        service_account: "web".into(),
        addresses: vec!["10.0.0.1".into(), "fd00::1".into()],
        network_namespace: Some(NetworkNamespace::NetworkNamespacePath("/run/netns/web".into())),
        cgroup_path: "/sys/fs/cgroup/kubepods/web".into(),
        probe_ports: vec![8080, 9090],
        fail_open: true,
    };
    let by_process = EnrolRequest { network_namespace: Some(NetworkNamespace::Pid(1)), ..good.clone() };
    let own_port = EnrolRequest { probe_ports: vec![15008], ..good.clone() };
    let mapped = EnrolRequest { addresses: vec!["::ffff:10.0.0.1".into()], ..good.clone() };
    vec![
        ("enrol_request", "good-path", good.encode_to_vec()),
        ("enrol_request", "good-process", by_process.encode_to_vec()),
        ("enrol_request", "bad-own-port", own_port.encode_to_vec()),
        ("enrol_request", "bad-mapped", mapped.encode_to_vec()),
    ]
}

/// Laid out by hand. Source: `mesh_common::abi::{Record, Flow, Endpoint}`.
fn record(kind: u32, (direction, pod): (u8, u32), local: SocketAddrV4, remote: SocketAddrV4) -> Vec<u8> {
    const DIRECT: u16 = 2;
    let end = |at: SocketAddrV4| [&at.ip().to_ipv6_mapped().octets()[..], &at.port().to_be_bytes(), &[0, 0]].concat();
    let flow =
        [&[1, direction][..], &DIRECT.to_ne_bytes(), &pod.to_ne_bytes(), &7_u64.to_ne_bytes(), &1_u64.to_ne_bytes()];
    let ends = [end(local), end(remote), end(remote), 0_u32.to_ne_bytes().to_vec()];
    let head = [kind.to_ne_bytes(), 0_u32.to_ne_bytes()].concat();
    let totals = [1_000_u64, 5, 6].map(u64::to_ne_bytes).concat();
    [head, 11_u64.to_ne_bytes().to_vec(), flow.concat(), ends.concat(), totals, vec![0; 8]].concat()
}

fn records() -> Vec<Seed> {
    let (web, db) = (SocketAddrV4::new([10, 0, 0, 1].into(), 40_000), SocketAddrV4::new([10, 0, 0, 2].into(), 5432));
    let service = SocketAddrV4::new([10, 96, 0, 1].into(), 5432);
    let (outbound, inbound) = ((1, 1), (2, 2));
    let good = [record(1, outbound, web, db), record(2, inbound, db, web), record(3, outbound, web, service)].concat();
    vec![
        ("kernel_records", "bad-pod", record(2, (1, 99), web, db)),
        ("kernel_records", "bad-kind", record(9, outbound, web, db)),
        ("kernel_records", "bad-short", good[..135].to_vec()),
        ("kernel_records", "good", good),
    ]
}

fn answer<M: Message>(type_url: &str, nonce: &str, resources: &[(String, M)]) -> Vec<u8> {
    let resource = |(name, message): &(String, M)| Resource {
        name: name.clone(),
        version: "1".into(),
        resource: Some(Any { type_url: type_url.into(), value: message.encode_to_vec() }),
    };
    let answer = DeltaDiscoveryResponse {
        type_url: type_url.into(),
        nonce: nonce.into(),
        resources: resources.iter().map(resource).collect(),
        ..DeltaDiscoveryResponse::default()
    };
    answer.encode_length_delimited_to_vec()
}

fn resources() -> Vec<Seed> {
    let matches = Match {
        principals: vec![fixtures::exact("cluster.local/ns/default/sa/web")],
        not_namespaces: vec![fixtures::presence()],
        destination_ports: vec![5432],
        ..Match::default()
    };
    let allow = fixtures::policy("allow-web", Action::Allow, vec![matches.clone()]);
    let select = Authorization {
        scope: Scope::WorkloadSelector as i32,
        ..fixtures::policy("deny", Action::Deny, vec![matches])
    };
    let mut db = fixtures::behind(fixtures::pod("db", &["10.0.0.2"]), HOST, 5432, 5432);
    db.authorization_policies = vec!["default/deny".into()];
    let web = fixtures::named_workload(fixtures::pod("web", &["10.0.0.1"]));
    let service = fixtures::named_service(fixtures::service(HOST, &["10.96.0.1"], &[5432]));
    let addresses = answer(ADDRESS_TYPE, "3", &[web, fixtures::named_workload(db), service]);
    let mesh = MeshConfig {
        trust_domain: "cluster.local".into(),
        pod_ranges: vec!["10.0.0.0/8".into()],
        ..MeshConfig::default()
    };
    let settings = answer(MESH_CONFIG_TYPE, "1", &[("mesh".to_owned(), mesh)]);
    let policies = [fixtures::named_policy(allow.clone()), fixtures::named_policy(select)];
    let policies = answer(AUTHORIZATION_TYPE, "2", &policies);
    let unknown =
        |scope| answer(AUTHORIZATION_TYPE, "1", &[fixtures::named_policy(Authorization { scope, ..allow.clone() })]);
    let garbled = answer(AUTHORIZATION_TYPE, "1", &[("default/allow-web".to_owned(), web_only())]);
    let kept = |answers: &[&[u8]]| {
        let kinds = answers.iter().map(|answer| kept(answer)).collect();
        Contents { node: "node-a".into(), control: "https://192.0.2.1:15012".into(), saved_at: 1_800_000_000, kinds }
    };
    vec![
        ("cached_view", "good", kept(&[&settings, &policies, &addresses]).encode_to_vec()),
        ("cached_view", "bad-incomplete", kept(&[&settings, &policies]).encode_to_vec()),
        ("cached_view", "bad-policy", kept(&[&addresses, &unknown(7)]).encode_to_vec()),
        ("resources", "good", [settings, policies, addresses.clone()].concat()),
        ("resources", "good-addresses", addresses),
        ("resources", "bad-scope", unknown(7)),
        ("resources", "bad-garbled", garbled),
    ]
}

/// What is kept of an answer.
fn kept(answer: &[u8]) -> Kind {
    let answer = DeltaDiscoveryResponse::decode_length_delimited(answer).expect("written above");
    let held = |resource: Resource| Held {
        name: resource.name,
        version: resource.version,
        value: resource.resource.expect("it holds one").value,
    };
    Kind { type_url: answer.type_url, held: answer.resources.into_iter().map(held).collect() }
}

/// A message whose first field is a text where a policy has one too, and whose second is a number where it has a text.
fn web_only() -> mesh_api::proto::workload::Port {
    mesh_api::proto::workload::Port { service_port: 1, target_port: 2, app_protocol: 0 }
}

/// HPACK without an index and without Huffman coding. Source: RFC 7541, section 6.2.2.
fn field(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).expect("short")], text.as_bytes()].concat();
    [vec![0], text(name), text(value)].concat()
}

/// Source: RFC 9113, section 4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn tunnels() -> Vec<Seed> {
    const END_STREAM: u8 = 1;
    const END_HEADERS: u8 = 4;
    let (data, headers, reset, settings, ping, window) = (0, 1, 3, 4, 6, 8);
    let connect = |authority: &str| {
        let fields = [
            field(":method", "CONNECT"),
            field(":authority", authority),
            field("forwarded", "for=\"10.0.0.1:4000\""),
            field("baggage", "k8s.pod.name=web,service.name=web"),
        ];
        fields.concat()
    };
    let open = |stream| frame(headers, END_HEADERS, stream, &connect("10.0.0.2:5432"));
    let opening = [frame(settings, 0, 0, &[]), frame(settings, 1, 0, &[])].concat();
    let echoed = [opening.clone(), open(1), frame(data, 0, 1, b"hello"), frame(data, END_STREAM, 1, &[])].concat();
    let more = [
        frame(window, 0, 0, &65_535_u32.to_be_bytes()),
        frame(ping, 0, 0, b"12345678"),
        open(3),
        frame(reset, 0, 3, &8_u32.to_be_bytes()),
        frame(headers, END_HEADERS | END_STREAM, 5, &connect("db.default:5432")),
    ];
    let goodbye = frame(7, 0, 0, &[0; 8]);
    vec![
        ("hbone_tunnel", "good", [echoed.clone(), goodbye.clone()].concat()),
        ("hbone_tunnel", "good-busy", [echoed, more.concat(), goodbye].concat()),
        ("hbone_tunnel", "bad-no-request", opening.clone()),
        ("hbone_tunnel", "bad-frame", [opening, frame(headers, 0, 0, b"nonsense")].concat()),
    ]
}
