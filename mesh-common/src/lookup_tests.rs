//! The order of the rules, over maps held in ordinary collections.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use super::*;

struct Fake {
    addresses: HashMap<Ip16, AddressEntry>,
    tickets: HashMap<Tuple, Ticket>,
    pods: HashMap<u64, PodEntry>,
    probes: HashSet<ProbeKey>,
    policy: HashMap<PolicyKey, PolicyValue>,
    direct_in_force: bool,
}

impl Arrivals for Fake {
    fn address(&self, ip: &Ip16) -> Option<AddressEntry> {
        self.addresses.get(ip).copied()
    }
    fn ticket(&self, tuple: &Tuple) -> Option<Ticket> {
        self.tickets.get(tuple).copied()
    }
    fn pod(&self, namespace: u64) -> Option<PodEntry> {
        self.pods.get(&namespace).copied()
    }
    fn is_probe_port(&self, key: &ProbeKey) -> bool {
        self.probes.contains(key)
    }
    fn policy(&self, key: &PolicyKey) -> Option<PolicyValue> {
        self.policy.get(key).copied()
    }
    fn is_direct_in_force(&self, _address: Ip16) -> bool {
        self.direct_in_force
    }
}

fn at(text: &str) -> Endpoint {
    text.parse::<SocketAddr>().expect("an address in a test").into()
}

/// Pod 1 (class 10, 10.1.0.1 and 10.1.0.9) and pod 2 (class 20, 10.1.0.2, probe port 9000) of one node.
fn node() -> Fake {
    let entry = |pod, class| AddressEntry { pod, class, namespace: u64::from(pod) + 100 };
    let pod = |pod, class| PodEntry { pod, class, flags: 0, reserved: 0, v4: Ip16::NONE, v6: Ip16::NONE };
    Fake {
        addresses: HashMap::from([
            (at("10.1.0.1:0").ip(), entry(1, 10)),
            (at("10.1.0.9:0").ip(), entry(1, 10)),
            (at("10.1.0.2:0").ip(), entry(2, 20)),
        ]),
        tickets: HashMap::new(),
        pods: HashMap::from([(101, pod(1, 10)), (102, pod(2, 20))]),
        probes: HashSet::from([ProbeKey::new(2, 9000)]),
        policy: HashMap::from([
            (PolicyKey::new(10, 20, 0), PolicyValue::Direct),
            (PolicyKey::new(10, 20, 22), PolicyValue::Deny),
            (PolicyKey::new(10, 20, 9000), PolicyValue::Deny),
        ]),
        direct_in_force: true,
    }
}

#[test]
fn the_rules_in_their_order_without_a_ticket() {
    let maps = node();
    let cases = [
        // 1: the pod itself
        ("10.1.0.2:40000", "10.1.0.2:8080", Steer::Pass(Counter::InboundSelf)),
        ("10.1.0.2:40000", "10.1.0.2:15001", Steer::Assign(Listener::Outbound)),
        ("10.1.0.2:40000", "10.1.0.2:15006", Steer::Drop(Counter::InboundOwnPort)),
        ("10.1.0.2:40000", "10.1.0.2:15008", Steer::Drop(Counter::InboundOwnPort)),
        ("10.1.0.9:40000", "10.1.0.1:8080", Steer::Pass(Counter::InboundSelf)),
        ("127.0.0.1:40000", "127.0.0.1:8080", Steer::Pass(Counter::InboundSelf)),
        ("[::1]:40000", "[::1]:8080", Steer::Pass(Counter::InboundSelf)),
        ("[fe80::2]:40000", "[fe80::2]:8080", Steer::Pass(Counter::InboundSelf)),
        // 2: not an address of the pod
        ("[fe80::1]:40000", "[fe80::2]:8080", Steer::Drop(Counter::InboundForeignAddress)),
        ("10.9.0.1:40000", "192.168.7.7:15008", Steer::Drop(Counter::InboundForeignAddress)),
        // 3: our ports
        ("10.9.0.1:40000", "10.1.0.2:15001", Steer::Drop(Counter::InboundOwnPort)),
        ("10.1.0.1:40000", "10.1.0.2:15006", Steer::Drop(Counter::InboundOwnPort)),
        ("10.9.0.1:40000", "10.1.0.2:15008", Steer::Assign(Listener::Hbone)),
        ("10.1.0.1:40000", "10.1.0.2:15008", Steer::Assign(Listener::Hbone)),
        // 6: an enrolled pod's address, but nobody speaks for it
        ("10.1.0.1:40000", "10.1.0.2:8080", Steer::Drop(Counter::NoTicket)),
        ("10.1.0.1:40000", "10.1.0.2:9000", Steer::Drop(Counter::NoTicket)),
        // 7: anyone else
        ("10.9.0.1:40000", "10.1.0.2:8080", Steer::Assign(Listener::Plaintext)),
        ("10.9.0.1:40000", "10.1.0.2:9000", Steer::Assign(Listener::Plaintext)),
    ];
    for (source, destination, expected) in cases {
        assert_eq!(decide(at(source), at(destination), &maps), expected, "{source} to {destination}");
    }
}

#[test]
fn a_ticket_speaks_for_its_namespace() {
    let pod = |cookie| Ticket::new(TicketKind::Pod, 0, 1, cookie);
    let node_process = Ticket::new(TicketKind::Node, 0, 0, 5);
    let probe = Ticket::new(TicketKind::Node, ticket_flags::PROBE, 0, 5);
    let cases = [
        // 4
        (pod(101), "10.1.0.2:8080", Steer::Pass(Counter::InboundDirect)),
        (pod(101), "10.1.0.2:22", Steer::Drop(Counter::InboundDenied)),
        (pod(101), "10.1.0.2:9000", Steer::Drop(Counter::InboundDenied)),
        (pod(101), "10.1.0.2:15006", Steer::Drop(Counter::InboundOwnPort)),
        (pod(102), "10.1.0.1:8080", Steer::Drop(Counter::InboundNotDirect)),
        (pod(999), "10.1.0.2:8080", Steer::Drop(Counter::InboundNotDirect)),
        // 5
        (probe, "10.1.0.2:9000", Steer::Pass(Counter::InboundProbe)),
        (probe, "10.1.0.2:8080", Steer::Assign(Listener::Plaintext)),
        (probe, "10.1.0.1:9000", Steer::Assign(Listener::Plaintext)),
        (node_process, "10.1.0.2:9000", Steer::Assign(Listener::Plaintext)),
    ];
    for (ticket, destination, expected) in cases {
        let mut maps = node();
        // The address does not speak: the ticket decides, wherever it comes from.
        for source in ["10.9.0.1:40000", "10.77.0.1:40000"] {
            let (source, destination) = (at(source), at(destination));
            maps.tickets.insert(Tuple::new(source, destination), ticket);
            assert_eq!(decide(source, destination, &maps), expected, "{ticket:?} to {destination:?}");
        }
    }
}

#[test]
fn direct_ends_when_the_agent_is_away_for_too_long_and_probes_do_not() {
    let mut maps = node();
    maps.direct_in_force = false;
    let (source, destination, probed) = (at("10.1.0.1:40000"), at("10.1.0.2:8080"), at("10.1.0.2:9000"));
    maps.tickets.insert(Tuple::new(source, destination), Ticket::new(TicketKind::Pod, 0, 1, 101));
    assert_eq!(decide(source, destination, &maps), Steer::Drop(Counter::InboundStale));
    maps.tickets.insert(Tuple::new(source, probed), Ticket::new(TicketKind::Node, ticket_flags::PROBE, 0, 5));
    assert_eq!(decide(source, probed, &maps), Steer::Pass(Counter::InboundProbe));
}

proptest::proptest! {
    /// Without a ticket nothing from outside reaches an application: it is dropped or the agent's.
    #[test]
    fn nothing_passes_without_a_ticket(source: [u8; 4], port: u16, to: [u8; 4], destination_port: u16) {
        let maps = node();
        let source = Endpoint::from(SocketAddr::from((source, port)));
        let destination = Endpoint::from(SocketAddr::from((to, destination_port)));
        for destination in [destination, at("10.1.0.2:8080"), at("10.1.0.1:1")] {
            for source in [source, at("10.1.0.1:5"), at("10.1.0.2:5")] {
                let steer = decide(source, destination, &maps);
                let same = |ip| maps.address(&ip).map(|entry| entry.pod);
                let itself = source.ip() == destination.ip()
                    || source.ip().is_loopback()
                    || (same(source.ip()).is_some() && same(source.ip()) == same(destination.ip()));
                if matches!(steer, Steer::Pass(_)) {
                    proptest::prop_assert!(itself);
                }
                if steer == Steer::Assign(Listener::Outbound) {
                    proptest::prop_assert!(itself);
                }
            }
        }
    }
}
