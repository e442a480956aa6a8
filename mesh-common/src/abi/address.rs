//! Addresses as the maps hold them. Every address is 16 bytes, IPv4 as v4-mapped, so that one key serves both families
//! and a v4-mapped client meets its AF_INET peer.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::plain;

/// An IP address in 16 bytes of network order, IPv4 as `::ffff:a.b.c.d`.
///
/// Held as four words: hooks read and write the kernel's contexts word by word, and comparing bytes would call `bcmp`,
/// which the kernel's target lacks.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Ip16 {
    words: [u32; 4],
}

impl PartialEq for Ip16 {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        let (a, b) = (&self.words, &other.words);
        (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) == 0
    }
}
impl Eq for Ip16 {}
impl core::hash::Hash for Ip16 {
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        self.words.hash(state);
    }
}

/// The third word of every v4-mapped address.
const V4_MAPPED: u32 = 0xffff_u32.to_be();

impl Ip16 {
    /// `::`, which stands for "no address" in map values.
    pub const NONE: Self = Self { words: [0; 4] };

    /// From the word in which the kernel keeps an IPv4 address (network order).
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self { words: [0, 0, V4_MAPPED, word] }
    }

    /// From the four words in which the kernel keeps an IPv6 address (network order).
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self { words }
    }

    /// The four words as the kernel keeps them.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        self.words
    }

    /// The word of an IPv4 address; none for true IPv6.
    #[inline(always)]
    pub const fn v4_word(&self) -> Option<u32> {
        if self.is_v4() { Some(self.words[3]) } else { None }
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == V4_MAPPED
    }

    /// Whether this is `::` or `0.0.0.0`.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        let [a, b, c, d] = self.words;
        a == 0 && b == 0 && d == 0 && (c == 0 || c == V4_MAPPED)
    }

    /// Whether this is in 127.0.0.0/8 or `::1`.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() {
            return self.words[3] & 0xff00_0000_u32.to_be() == 0x7f00_0000_u32.to_be();
        }
        let [a, b, c, d] = self.words;
        a == 0 && b == 0 && c == 0 && d == 1_u32.to_be()
    }
}

impl From<IpAddr> for Ip16 {
    fn from(address: IpAddr) -> Self {
        let bytes = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Self { words: [word(0), word(4), word(8), word(12)] }
    }
}

impl From<Ip16> for IpAddr {
    fn from(ip: Ip16) -> Self {
        if let Some(word) = ip.v4_word() {
            return Self::V4(Ipv4Addr::from(u32::from_be(word)));
        }
        let mut bytes = [0; 16];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(ip.words) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        Self::V6(Ipv6Addr::from(bytes))
    }
}

/// An address and a port. Port 0 with [`Ip16::NONE`] stands for "none".
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    ip: Ip16,
    port: [u8; 2],
    reserved: [u8; 2],
}

impl Endpoint {
    /// No endpoint.
    pub const NONE: Self = Self::new(Ip16::NONE, 0);

    /// From an address and a port in host order.
    #[inline(always)]
    pub const fn new(ip: Ip16, port: u16) -> Self {
        Self { ip, port: port.to_be_bytes(), reserved: [0; 2] }
    }

    /// The address.
    #[inline(always)]
    pub const fn ip(&self) -> Ip16 {
        self.ip
    }

    /// The port in host order.
    #[inline(always)]
    pub const fn port(&self) -> u16 {
        u16::from_be_bytes(self.port)
    }

    /// The endpoint as standard types; none when it is [`Endpoint::NONE`].
    pub fn address(&self) -> Option<SocketAddr> {
        (self.port() != 0 || !self.ip.is_unspecified()).then(|| SocketAddr::new(self.ip.into(), self.port()))
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self::new(address.ip().into(), address.port())
    }
}

/// Both ends of a connection as its source names them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    source: Ip16,
    destination: Ip16,
    source_port: [u8; 2],
    destination_port: [u8; 2],
}

impl Tuple {
    /// From both ends.
    #[inline(always)]
    pub const fn new(source: Endpoint, destination: Endpoint) -> Self {
        Self {
            source: source.ip,
            destination: destination.ip,
            source_port: source.port,
            destination_port: destination.port,
        }
    }

    /// The end that dialled.
    #[inline(always)]
    pub const fn source(&self) -> Endpoint {
        Endpoint { ip: self.source, port: self.source_port, reserved: [0; 2] }
    }

    /// The end that was dialled.
    #[inline(always)]
    pub const fn destination(&self) -> Endpoint {
        Endpoint { ip: self.destination, port: self.destination_port, reserved: [0; 2] }
    }
}

plain!(Ip16: 16, Endpoint: 20, Tuple: 36);
