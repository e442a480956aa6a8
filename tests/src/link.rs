//! The link between the nodes: a router of its own, so that one place sees every packet that leaves a node, counts it
//! by rule and can capture it.

use std::{
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::{addresses::Pair, capture::Capture, process::Place, slot::Slot, weather::Weather};

/// A payload byte makes a packet count: pure acknowledgements, SYN and FIN do not (`@ih` is what follows the TCP header).
const RULES: &str = "
table inet link {
  set enrolled4 { type ipv4_addr; }
  set enrolled6 { type ipv6_addr; }
  counter encrypted {}
  counter clear {}
  chain judge {
    tcp dport 15008 counter name encrypted return
    tcp sport 15008 counter name encrypted return
    counter name clear
  }
  # As it arrives: what is lost on the link was sent all the same.
  chain arrive {
    type filter hook prerouting priority raw; policy accept;
    ip saddr @enrolled4 meta l4proto tcp @ih,0,8 & 0 == 0 goto judge
    ip daddr @enrolled4 meta l4proto tcp @ih,0,8 & 0 == 0 goto judge
    ip6 saddr @enrolled6 meta l4proto tcp @ih,0,8 & 0 == 0 goto judge
    ip6 daddr @enrolled6 meta l4proto tcp @ih,0,8 & 0 == 0 goto judge
  }
}
";

/// The router between the nodes.
pub struct Link {
    place: Place,
    directory: std::path::PathBuf,
    /// What is joined.
    ends: Mutex<Vec<(String, Pair)>>,
}

/// Packets with TCP payload to or from enrolled pods, by the rules on the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passed {
    /// From or to port 15008.
    pub encrypted: u64,
    /// From and to any other port.
    pub clear: u64,
    /// Bytes of those, with their headers.
    pub clear_bytes: u64,
}

impl Link {
    pub(crate) fn create(slot: &Slot) -> Self {
        let namespace = crate::namespace::Namespace::create(slot.name("link"));
        namespace.set("ipv4/ip_forward", "1");
        namespace.set("ipv6/conf/all/forwarding", "1");
        // What it says by ICMP comes from these: from a link-local address it would not get past the nodes.
        namespace.ip("addr add 169.254.2.1/32 dev lo\naddr add fd6d:6573::1/128 dev lo nodad");
        namespace.nft(RULES);
        Self {
            place: Place { namespace, cgroup: slot.cgroup().child("link").create() },
            directory: slot.directory().into(),
            ends: Mutex::default(),
        }
    }

    fn ends(&self) -> Vec<(String, Pair)> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Joins another namespace to the link by its own `eth0`, which is the way to the /24 and /64 of `addresses`.
    pub(crate) fn join(&self, place: &Place, name: &str, addresses: Pair) {
        let Pair { v4, v6 } = addresses;
        let there = place.namespace.name();
        self.place.namespace.ip(&format!("link add {name} type veth peer name eth0 netns {there}"));
        place.namespace.ip(&format!(
            "link set eth0 up\naddr add {v4}/32 dev eth0\naddr add {v6}/128 dev eth0 nodad\n\
             route add default via 169.254.2.1 dev eth0 onlink\nroute add default via fe80::1 dev eth0\n"
        ));
        self.comes_up(name, addresses);
        self.ends.lock().unwrap_or_else(PoisonError::into_inner).push((name.to_owned(), addresses));
    }

    /// As if the cable were pulled: what was joined as `name` is cut off. The kernel forgets the ways to it.
    pub fn goes_down(&self, name: &str) {
        self.place.namespace.ip(&format!("link set {name} down"));
    }

    /// The cable is back, and the ways to `addresses` and their ranges.
    pub fn comes_up(&self, name: &str, addresses: Pair) {
        let ways = ways(name, addresses, "");
        self.place.namespace.ip(&format!("link set {name} up\naddr replace fe80::1/64 dev {name} nodad\n{ways}"));
    }

    /// From now on every packet between the nodes is lost without a word, or none is.
    pub fn loses_everything(&self, does_lose: bool) {
        let verdict = if does_lose { "drop" } else { "accept" };
        self.place.namespace.nft(&format!(
            "table inet loss\ndelete table inet loss\ntable inet loss {{\n  chain forward {{\n    \
             type filter hook forward priority -10; policy {verdict};\n  }}\n}}\n"
        ));
    }

    /// From now on every packet of these nodes is lost without a word; those of the others are not.
    pub fn silences(&self, nodes: &[&str]) {
        let rules: String =
            nodes.iter().map(|node| format!("    iifname {node} drop\n    oifname {node} drop\n")).collect();
        self.place.namespace.nft(&format!(
            "table inet silence\ndelete table inet silence\ntable inet silence {{\n  chain forward {{\n    \
             type filter hook forward priority -10; policy accept;\n{rules}  }}\n}}\n"
        ));
    }

    /// The way takes `delay` longer in each direction and loses that part of the packets, until what is returned is dropped.
    pub fn degraded(&self, loss: f64, delay: Duration) -> Weather {
        let ends = self.ends().into_iter().map(|(name, _)| name).collect();
        Weather::begin(&self.place.namespace, ends, loss, delay)
    }

    /// Packets over so many bytes do not fit through any more. Nodes and pods are told by ICMP, packet by packet.
    pub fn narrows_to(&self, bytes: u32) {
        // Of the ways and not of the devices: those would drop what comes from a device with a wider one without a word.
        let limit = format!(" mtu lock {bytes}");
        let all = self.ends();
        self.place
            .namespace
            .ip(&all.iter().map(|(name, addresses)| ways(name, *addresses, &limit)).collect::<String>());
    }

    /// From now on packets with payload to or from this address count.
    pub fn count(&self, addresses: &[IpAddr]) {
        for address in addresses {
            let set = if address.is_ipv4() { "enrolled4" } else { "enrolled6" };
            self.place.namespace.nft(&format!("add element inet link {set} {{ {address} }}"));
        }
    }

    /// What the rules have counted.
    ///
    /// # Panics
    /// When nft does not answer.
    pub fn passed(&self) -> Passed {
        let output = self.place.run(&["nft", "-j", "list", "counters"]);
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("nft -j answers with JSON");
        let counters = answer["nftables"].as_array().expect("a list").iter();
        let count = |name: &str, unit: &str| {
            let counter = counters.clone().find(|row| row["counter"]["name"] == name);
            counter.and_then(|row| row["counter"][unit].as_u64()).expect("a counter of RULES")
        };
        let (encrypted, clear) = (count("encrypted", "packets"), count("clear", "packets"));
        Passed { encrypted, clear, clear_bytes: count("clear", "bytes") }
    }

    /// Starts a capture of everything on the link that looks for `markers`.
    pub fn capture(&self, markers: &[&str]) -> Capture {
        let log = self.directory.join(format!("tcpdump-{}.log", fastrand::u32(..)));
        Capture::start(&self.place, &log, markers)
    }

    /// Where commands that look at the link run.
    pub fn place(&self) -> &Place {
        &self.place
    }
}

/// The routes to an address pair and its ranges by a device, with further words for each.
fn ways(name: &str, addresses: Pair, words: &str) -> String {
    let Pair { v4, v6 } = addresses;
    let [range4, range6] = addresses.ranges();
    format!(
        "route replace {v4}/32 dev {name}{words}\nroute replace {range4} via {v4} dev {name} onlink{words}\n\
         route replace {v6}/128 dev {name}{words}\nroute replace {range6} via {v6} dev {name} onlink{words}\n"
    )
}
