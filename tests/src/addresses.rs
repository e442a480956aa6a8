//! Which addresses a mesh uses: all made from its slot, IPv4 and IPv6 side by side, so that no two meshes share one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Where control runs, as a node number.
pub const CONTROL: u8 = 250;
/// Where callers outside the mesh run, as a node number.
pub const OUTSIDE: u8 = 251;
/// Virtual addresses of services, as a node number.
pub const SERVICES: u8 = 255;

/// An IPv4 and an IPv6 address of the same thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6.
    pub v6: Ipv6Addr,
}

impl Pair {
    /// Address `number` of node `node` in a slot; number 1 is the node itself.
    pub fn new(slot: u8, node: u8, number: u8) -> Self {
        let v4 = Ipv4Addr::new(10, 64 + slot, node, number);
        let v6 = Ipv6Addr::new(0xfd6d, 0x6573, slot.into(), node.into(), 0, 0, 0, number.into());
        Self { v4, v6 }
    }

    /// The ranges that this node's pods are in, or these services.
    pub fn ranges(&self) -> [String; 2] {
        let [a, b, c, _] = self.v4.octets();
        let [d, e, f, g, ..] = self.v6.segments();
        [format!("{a}.{b}.{c}.0/24"), format!("{d:x}:{e:x}:{f:x}:{g:x}::/64")]
    }

    /// Both.
    pub fn both(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

/// The same place with an IPv4 address written as one, for a server bound to both families sees it mapped.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
