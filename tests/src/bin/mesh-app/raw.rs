//! What an application with NET_RAW can try: TCP segments with a source address that is not its own.

use std::{
    io,
    net::{SocketAddr, SocketAddrV4},
};

use anyhow::{Context, Result, bail};
use mesh_tests::protocol::Reply;
use socket2::{Domain, Protocol, Socket, Type};

/// Sends one SYN.
pub fn spoof_syn(source: SocketAddr, destination: SocketAddr) -> Result<Reply> {
    let (SocketAddr::V4(source), SocketAddr::V4(destination)) = (source, destination) else {
        bail!("only IPv4 lets a raw socket write the address header");
    };
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))).context("raw socket")?;
    let packet = syn(source, destination);
    let sent = socket.send_to(&packet, &SocketAddr::V4(SocketAddrV4::new(*destination.ip(), 0)).into())?;
    if sent != packet.len() {
        return Err(io::Error::from(io::ErrorKind::WriteZero).into());
    }
    Ok(Reply::Done)
}

/// An IPv4 packet with a TCP SYN; the kernel fills in the header's checksum and length.
fn syn(source: SocketAddrV4, destination: SocketAddrV4) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0];
    packet.extend(source.ip().octets());
    packet.extend(destination.ip().octets());
    let mut segment = Vec::with_capacity(20);
    segment.extend(source.port().to_be_bytes());
    segment.extend(destination.port().to_be_bytes());
    segment.extend(0x1234_5678_u32.to_be_bytes());
    segment.extend([0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    let sum = checksum(&packet[12..20], &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    packet.extend(segment);
    packet
}

/// RFC 9293 3.1: over the two addresses, the protocol, the length and the segment.
fn checksum(addresses: &[u8], segment: &[u8]) -> u16 {
    let words = |bytes: &[u8]| bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum::<u32>();
    let mut sum = words(addresses) + words(segment) + 6 + segment.len() as u32;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::{checksum, syn};

    #[test]
    fn a_receiver_finds_the_checksum_right() {
        let packet = syn("10.0.0.1:1234".parse().expect("address"), "10.0.0.2:80".parse().expect("address"));
        assert_eq!(checksum(&packet[12..20], &packet[20..]), 0);
    }
}
