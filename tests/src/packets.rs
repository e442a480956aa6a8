//! Reading what tcpdump writes: pcap records, IP and TCP headers, the first bytes of TLS. Pure; anything that is not
//! TCP or UDP over IP is skipped.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Flow {
    /// Sender.
    pub source: SocketAddr,
    /// Receiver.
    pub destination: SocketAddr,
}

impl Flow {
    /// Whether either end has this port.
    pub fn has_port(&self, port: u16) -> bool {
        self.source.port() == port || self.destination.port() == port
    }

    /// Whether either end has one of these addresses.
    pub fn has_address(&self, addresses: &[IpAddr]) -> bool {
        addresses.contains(&self.source.ip()) || addresses.contains(&self.destination.ip())
    }
}

/// A packet's transport payload.
#[derive(Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// A TCP segment.
    Tcp(Flow, &'a [u8]),
    /// A datagram.
    Udp(Flow, &'a [u8]),
}

/// The link-layer header that tcpdump's file says it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkType {
    /// LINKTYPE_LINUX_SLL, 16 bytes, protocol last.
    Cooked,
    /// LINKTYPE_LINUX_SLL2, 20 bytes, protocol first.
    Cooked2,
}

impl LinkType {
    /// From the last field of a pcap file's header.
    pub fn of(number: u32) -> Option<Self> {
        match number {
            113 => Some(Self::Cooked),
            276 => Some(Self::Cooked2),
            _ => None,
        }
    }

    /// Takes a captured frame apart.
    pub fn packet(self, frame: &[u8]) -> Option<Packet<'_>> {
        let (protocol, rest) = match self {
            Self::Cooked => (frame.get(14..16)?, frame.get(16..)?),
            Self::Cooked2 => (frame.get(..2)?, frame.get(20..)?),
        };
        match protocol {
            [0x08, 0x00] => ipv4(rest),
            [0x86, 0xdd] => ipv6(rest),
            _ => None,
        }
    }
}

fn ipv4(packet: &[u8]) -> Option<Packet<'_>> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let total = usize::from(word(packet, 2)?);
    let address = |at: usize| Some(IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?)));
    // A segment that the sender's kernel left for its device to split may say 0.
    let end = if total == 0 { packet.len() } else { total.min(packet.len()) };
    transport(*packet.get(9)?, address(12)?, address(16)?, packet.get(header..end)?)
}

fn ipv6(packet: &[u8]) -> Option<Packet<'_>> {
    let address = |at: usize| Some(IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?)));
    let length = usize::from(word(packet, 4)?);
    let end = if length == 0 { packet.len() } else { (40 + length).min(packet.len()) };
    transport(*packet.get(6)?, address(8)?, address(24)?, packet.get(40..end)?)
}

fn transport(protocol: u8, source: IpAddr, destination: IpAddr, segment: &[u8]) -> Option<Packet<'_>> {
    let flow = Flow {
        source: SocketAddr::new(source, word(segment, 0)?),
        destination: SocketAddr::new(destination, word(segment, 2)?),
    };
    match protocol {
        6 => Some(Packet::Tcp(flow, segment.get(usize::from(segment.get(12)? >> 4) * 4..)?)),
        17 => Some(Packet::Udp(flow, segment.get(8..)?)),
        _ => None,
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The version that a server chose, from the first bytes it sent: 0x0304 is TLS 1.3. `None`: not a whole ServerHello.
///
/// Source: RFC 8446 4.1.3 and 4.2.1.
pub fn tls_version(sent: &[u8]) -> Option<u16> {
    // record: type 22, version, length; handshake: type 2, length of 3 bytes, version, random
    if sent.first() != Some(&22) || sent.get(5) != Some(&2) {
        return None;
    }
    let legacy = word(sent, 9)?;
    let session = usize::from(*sent.get(43)?);
    let mut at = 44 + session + 3;
    let end = at + 2 + usize::from(word(sent, at)?);
    at += 2;
    while at + 4 <= end {
        let length = usize::from(word(sent, at + 2)?);
        if word(sent, at)? == 43 {
            return word(sent, at + 4);
        }
        at += 4 + length;
    }
    Some(legacy)
}

#[cfg(test)]
mod tests {
    use super::{LinkType, Packet, tls_version};

    /// SLL2, IPv4 with a 20-byte header, TCP with a 20-byte header.
    fn frame(payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0x08, 0x00];
        frame.extend([0; 18]);
        let total = u16::try_from(40 + payload.len()).expect("short");
        frame.extend([0x45, 0]);
        frame.extend(total.to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0x1f, 0x90, 0x00, 0x50, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0, 0, 0, 0, 0, 0, 0]);
        frame.extend(payload);
        frame
    }

    #[test]
    fn payload_is_what_follows_the_headers_and_padding_is_not() {
        let mut bytes = frame(b"hello");
        bytes.extend([0; 6]);
        let Some(Packet::Tcp(flow, payload)) = LinkType::Cooked2.packet(&bytes) else { panic!("TCP over IPv4") };
        assert_eq!(payload, b"hello");
        assert_eq!(flow.source.to_string(), "10.0.0.1:8080");
        assert!(flow.has_port(80));
    }

    #[test]
    fn a_truncated_frame_is_skipped_at_every_length() {
        let bytes = frame(b"");
        for length in 0..bytes.len() {
            assert_eq!(LinkType::Cooked2.packet(&bytes[..length]), None, "{length}");
        }
    }

    #[test]
    fn the_version_of_a_server_hello_is_the_one_in_its_extension() {
        let mut hello = vec![22, 3, 3, 0, 0, 2, 0, 0, 0, 3, 3];
        hello.extend([7; 32]);
        hello.extend([0, 0x13, 0x01, 0, 0, 6, 0, 43, 0, 2, 3, 4]);
        assert_eq!(tls_version(&hello), Some(0x0304));
        assert_eq!(tls_version(&hello[..40]), None);
        assert_eq!(tls_version(b"GET / HTTP/1.1\r\n"), None);
    }
}
