//! Tables and properties of the outbound decision over maps held in ordinary collections.

use std::collections::HashMap;
use std::net::SocketAddr;

use super::*;

struct Fake {
    services: HashMap<Endpoint, ServiceEntry>,
    backends: HashMap<BackendKey, Endpoint>,
    addresses: HashMap<Ip16, AddressEntry>,
    policy: HashMap<PolicyKey, PolicyValue>,
    beat_age_ns: u64,
    listening: bool,
    random: u32,
}

impl Maps for Fake {
    fn service(&self, address: &Endpoint) -> Option<ServiceEntry> {
        self.services.get(address).copied()
    }
    fn backend(&self, key: &BackendKey) -> Option<Endpoint> {
        self.backends.get(key).copied()
    }
    fn address(&self, ip: &Ip16) -> Option<AddressEntry> {
        self.addresses.get(ip).copied()
    }
    fn policy(&self, key: &PolicyKey) -> Option<PolicyValue> {
        self.policy.get(key).copied()
    }
    fn beat_age_ns(&self) -> u64 {
        self.beat_age_ns
    }
    fn direct_max_age_ns(&self) -> u64 {
        60_000_000_000
    }
    fn is_listening(&self, _address: Ip16) -> bool {
        self.listening
    }
    fn random(&self) -> u32 {
        self.random
    }
}

fn at(text: &str) -> Endpoint {
    text.parse::<SocketAddr>().expect("an address in a test").into()
}

fn entry(pod: u32, class: u32) -> AddressEntry {
    AddressEntry { pod, class, namespace: u64::from(pod) }
}

/// Pod 1 of class 10 at 10.1.0.1 and fd00::1, in a node with pod 2 (class 20), pod 3 (class 30), an alive agent, and one
/// service at 10.96.0.1:80 whose slots are pod 2, a remote pod, and pod 1 itself.
fn node() -> (PodEntry, Fake) {
    let pod =
        PodEntry { pod: 1, class: 10, flags: 0, reserved: 0, v4: at("10.1.0.1:0").ip(), v6: at("[fd00::1]:0").ip() };
    let addresses = [
        ("10.1.0.1:0", entry(1, 10)),
        ("10.1.0.9:0", entry(1, 10)),
        ("[fd00::1]:0", entry(1, 10)),
        ("10.1.0.2:0", entry(2, 20)),
        ("[fd00::2]:0", entry(2, 20)),
        ("10.1.0.3:0", entry(3, 30)),
    ];
    let slots = ["10.1.0.2:8080", "10.9.0.7:8080", "10.1.0.1:8080", "10.1.0.3:8080"];
    let policy = [
        (PolicyKey::new(10, 20, 0), PolicyValue::Direct),
        (PolicyKey::new(10, 20, 22), PolicyValue::Deny),
        (PolicyKey::new(10, 30, 8080), PolicyValue::Deny),
    ];
    let service = ServiceEntry { id: 7, slots: slots.len() as u32, flags: 0 };
    let fake = Fake {
        services: HashMap::from([
            (at("10.96.0.1:80"), service),
            (at("10.96.0.2:80"), ServiceEntry { flags: SERVICE_AGENT_ONLY, ..service }),
            (at("10.96.0.3:80"), ServiceEntry { id: 8, slots: 0, flags: 0 }),
            (at("10.96.0.4:80"), ServiceEntry { id: 99, slots: 4, flags: 0 }),
            (at("[fd96::1]:80"), service),
        ]),
        backends: slots.iter().zip(0..).map(|(slot, n)| (BackendKey { service: 7, slot: n }, at(slot))).collect(),
        addresses: addresses.iter().map(|(ip, entry)| (at(ip).ip(), *entry)).collect(),
        policy: policy.into_iter().collect(),
        beat_age_ns: 1,
        listening: true,
        random: 0,
    };
    (pod, fake)
}

fn agent(endpoint: Endpoint) -> Outbound {
    Outbound::Agent { via: at("10.1.0.1:15001"), endpoint }
}

#[test]
fn where_connections_go() {
    let (pod, mut maps) = node();
    let itself = |text| Outbound::Itself { target: at(text) };
    let direct = |text| Outbound::Direct { target: at(text) };
    let refuse = |reason, text| Outbound::Refuse { reason, target: at(text) };
    let cases = [
        ("127.0.0.1:8080", 0, itself("127.0.0.1:8080")),
        ("127.8.8.8:15001", 0, itself("127.8.8.8:15001")),
        ("[::1]:8080", 0, itself("[::1]:8080")),
        ("0.0.0.0:8080", 0, itself("0.0.0.0:8080")),
        ("[::]:8080", 0, itself("[::]:8080")),
        ("10.1.0.1:8080", 0, itself("10.1.0.1:8080")),
        ("10.1.0.9:8080", 0, itself("10.1.0.9:8080")),
        ("10.1.0.1:15001", 0, refuse(Counter::OutboundOwnPort, "10.1.0.1:15001")),
        ("10.1.0.1:15006", 0, refuse(Counter::OutboundOwnPort, "10.1.0.1:15006")),
        ("[fd00::1]:15008", 0, refuse(Counter::OutboundOwnPort, "[fd00::1]:15008")),
        ("10.1.0.2:8080", 0, direct("10.1.0.2:8080")),
        ("[::ffff:10.1.0.2]:8080", 0, direct("10.1.0.2:8080")),
        ("[fd00::2]:1", 0, direct("[fd00::2]:1")),
        ("10.1.0.2:22", 0, refuse(Counter::OutboundDenied, "10.1.0.2:22")),
        ("10.1.0.3:22", 0, agent(Endpoint::NONE)),
        ("8.8.8.8:443", 0, agent(Endpoint::NONE)),
        ("10.96.0.1:80", 0, direct("10.1.0.2:8080")),
        ("10.96.0.1:80", 1, agent(at("10.9.0.7:8080"))),
        ("10.96.0.1:80", 2, itself("10.1.0.1:8080")),
        ("10.96.0.1:80", 3, refuse(Counter::OutboundDenied, "10.1.0.3:8080")),
        ("10.96.0.1:80", 4, direct("10.1.0.2:8080")),
        ("10.96.0.1:81", 0, agent(Endpoint::NONE)),
        ("10.96.0.2:80", 0, agent(Endpoint::NONE)),
        ("10.96.0.3:80", 0, agent(Endpoint::NONE)),
        ("10.96.0.4:80", 0, agent(Endpoint::NONE)),
        // The slot is of the other family: the agent dials it.
        ("[fd96::1]:80", 0, Outbound::Agent { via: at("[fd00::1]:15001"), endpoint: at("10.1.0.2:8080") }),
    ];
    for (dialled, random, expected) in cases {
        maps.random = random;
        assert_eq!(decide(&pod, at(dialled), &maps), expected, "{dialled} with {random}");
    }
}

#[test]
fn without_an_address_of_the_family_there_is_no_way_to_the_agent() {
    let (mut pod, maps) = node();
    pod.v6 = Ip16::NONE;
    let expected = Outbound::Refuse { reason: Counter::OutboundNoFamily, target: at("[2001:db8::1]:443") };
    assert_eq!(decide(&pod, at("[2001:db8::1]:443"), &maps), expected);
}

#[test]
fn a_pod_of_no_class_asks_the_agent() {
    let (mut pod, maps) = node();
    pod.class = 0;
    assert_eq!(decide(&pod, at("10.1.0.2:8080"), &maps), agent(Endpoint::NONE));
}

#[test]
fn when_the_agent_is_away() {
    let (mut pod, mut maps) = node();
    maps.listening = false;
    let refused = |reason, text| Outbound::Refuse { reason, target: at(text) };
    assert_eq!(decide(&pod, at("8.8.8.8:443"), &maps), refused(Counter::OutboundAway, "8.8.8.8:443"));
    assert_eq!(decide(&pod, at("10.1.0.2:80"), &maps), Outbound::Direct { target: at("10.1.0.2:80") });
    maps.beat_age_ns = u64::MAX;
    assert_eq!(decide(&pod, at("10.1.0.2:80"), &maps), refused(Counter::OutboundStale, "10.1.0.2:80"));
    assert_eq!(decide(&pod, at("10.1.0.1:80"), &maps), Outbound::Itself { target: at("10.1.0.1:80") });
    pod.flags = POD_FAIL_OPEN;
    assert_eq!(decide(&pod, at("8.8.8.8:443"), &maps), Outbound::FailOpen);
    assert_eq!(decide(&pod, at("10.96.0.1:80"), &maps), Outbound::FailOpen);
    assert_eq!(decide(&pod, at("10.1.0.2:22"), &maps), refused(Counter::OutboundDenied, "10.1.0.2:22"));
}

proptest::proptest! {
    /// Whatever is dialled: what goes direct is a pod of this node that POLICY lets, or the pod itself.
    #[test]
    fn nothing_goes_direct_without_policy(ip: [u8; 4], port: u16, random: u32, age: u64, listening: bool) {
        let (pod, mut maps) = node();
        (maps.random, maps.beat_age_ns, maps.listening) = (random, age, listening);
        let dialled = Endpoint::from(SocketAddr::from((ip, port)));
        for dialled in [dialled, at("10.96.0.1:80"), at("10.1.0.2:8080"), at("10.1.0.3:8080")] {
            match decide(&pod, dialled, &maps) {
                Outbound::Direct { target } => {
                    let destination = maps.addresses[&target.ip()];
                    let policy = policy_of(pod.class, &destination, target.port(), |key| maps.policy(key));
                    proptest::prop_assert_eq!(policy, Some(PolicyValue::Direct));
                }
                Outbound::Itself { target } => proptest::prop_assert!(
                    target.ip().is_loopback() || target.ip().is_unspecified() || maps.addresses[&target.ip()].pod == 1
                ),
                Outbound::FailOpen => proptest::prop_assert!(false, "this pod fails closed"),
                Outbound::Agent { via, .. } => proptest::prop_assert_eq!(via.port(), PORT_OUTBOUND),
                Outbound::Refuse { .. } => {}
            }
        }
    }
}
