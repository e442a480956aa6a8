//! The kernel's own list of TCP sockets in a namespace (inet_diag), and the end of one of them. Knows nothing of pods.

use std::io;
use std::net::SocketAddr;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, SOCK_DESTROY, SOCK_DIAG_BY_FAMILY};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as SocketAddress};

use super::{KernelError, namespace::NetworkNamespace};

/// A TCP socket as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpSocket {
    /// The socket's cookie (SO_COOKIE).
    pub cookie: u64,
    /// Its own end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// TCP state, as in /proc/net/tcp (1: established, 10: listen).
    pub state: u8,
    /// Its inode, as /proc/PID/fd shows it; 0 when no process holds it.
    pub inode: u32,
    /// Payload bytes that were sent, each counted once.
    pub bytes_sent: u64,
    /// Payload bytes that arrived in order.
    pub bytes_received: u64,
    /// Smoothed round trip time in microseconds.
    pub rtt_us: u32,
    /// Segments sent again.
    pub retransmits: u32,
}

/// Every TCP socket of both families in a namespace, listening and TIME_WAIT ones included.
///
/// # Errors
/// The namespace could not be entered, or the kernel has no inet_diag.
pub fn sockets(namespace: &NetworkNamespace) -> Result<Vec<TcpSocket>, KernelError> {
    let netlink = open(namespace)?;
    let mut found = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let listing = |source| KernelError::system("listing TCP sockets", source);
        let any = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
        send(&netlink, request(family, any), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP).map_err(listing)?;
        while receive(&netlink, &mut found).map_err(listing)? {}
    }
    Ok(found)
}

/// Ends a socket: its process gets ECONNABORTED, its peer RST. Whether there was such a socket.
///
/// # Errors
/// The namespace could not be entered, or the kernel lacks SOCK_DESTROY.
pub fn destroy(namespace: &NetworkNamespace, socket: &TcpSocket) -> Result<bool, KernelError> {
    let netlink = open(namespace)?;
    let failed =
        |source| KernelError::system(format!("ending the socket {} to {}", socket.local, socket.remote), source);
    let id = SocketId {
        source_port: socket.local.port(),
        destination_port: socket.remote.port(),
        source_address: socket.local.ip(),
        destination_address: socket.remote.ip(),
        interface_id: 0,
        cookie: socket.cookie.to_ne_bytes(),
    };
    let family = if socket.local.is_ipv4() { AF_INET } else { AF_INET6 };
    send(&netlink, request(family, id), SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK).map_err(failed)?;
    match receive(&netlink, &mut Vec::new()) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(failed(source)),
    }
}

fn open(namespace: &NetworkNamespace) -> Result<Socket, KernelError> {
    let opened = namespace.run(|| {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddress::new(0, 0))?;
        Ok(socket)
    })?;
    opened.map_err(|source: io::Error| KernelError::system("opening inet_diag", source))
}

fn request(family: u8, socket_id: SocketId) -> InetRequest {
    InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::INFO,
        states: StateFlags::all(),
        socket_id,
    }
}

fn send(netlink: &Socket, request: InetRequest, kind: u16, flags: u16) -> io::Result<()> {
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), SockDiagMessage::InetRequest(request).into());
    message.header.flags = flags;
    message.finalize();
    message.header.message_type = kind;
    let mut bytes = vec![0; message.header.length as usize];
    message.serialize(&mut bytes);
    netlink.send(&bytes, 0).map(drop)
}

/// Reads one datagram of an answer; whether more will come.
fn receive(netlink: &Socket, found: &mut Vec<TcpSocket>) -> io::Result<bool> {
    let (datagram, _) = netlink.recv_from_full()?;
    let mut rest = datagram.as_slice();
    while !rest.is_empty() {
        let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(io::Error::other)?;
        match message.payload {
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => found.push(socket(&response)),
            NetlinkPayload::Done(_) => return Ok(false),
            NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
            NetlinkPayload::Error(_) => return Ok(false),
            _ => {}
        }
        // Messages are aligned to four bytes.
        let length = (message.header.length as usize).next_multiple_of(4);
        if length == 0 {
            break;
        }
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(true)
}

fn socket(response: &InetResponse) -> TcpSocket {
    let InetResponse { header, nlas } = response;
    let id = &header.socket_id;
    let info = nlas.iter().find_map(|attribute| match attribute {
        Nla::TcpInfo(bytes) => Some(bytes.as_slice()),
        _ => None,
    });
    let info = Info(info.unwrap_or_default());
    TcpSocket {
        cookie: u64::from_ne_bytes(id.cookie),
        local: SocketAddr::new(id.source_address, id.source_port),
        remote: SocketAddr::new(id.destination_address, id.destination_port),
        state: header.state,
        inode: header.inode,
        bytes_sent: info.long(Info::BYTES_SENT).saturating_sub(info.long(Info::BYTES_RETRANSMITTED)),
        bytes_received: info.long(Info::BYTES_RECEIVED).saturating_sub(u64::from(counts_fin(header.state))),
        rtt_us: info.word(Info::RTT),
        retransmits: info.word(Info::TOTAL_RETRANSMITS),
    }
}

/// Whether the peer's FIN, which the kernel counts as a byte received, has arrived in this state.
const fn counts_fin(state: u8) -> bool {
    const CLOSE_WAIT: u8 = 8;
    const LAST_ACK: u8 = 9;
    const CLOSING: u8 = 11;
    matches!(state, CLOSE_WAIT | LAST_ACK | CLOSING)
}

/// `struct tcp_info`, of which older kernels send less. Source: Linux, include/uapi/linux/tcp.h.
struct Info<'a>(&'a [u8]);

impl Info<'_> {
    const RTT: usize = 68;
    const TOTAL_RETRANSMITS: usize = 100;
    const BYTES_RECEIVED: usize = 128;
    const BYTES_SENT: usize = 200;
    const BYTES_RETRANSMITTED: usize = 208;

    fn word(&self, at: usize) -> u32 {
        self.0.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
    }

    fn long(&self, at: usize) -> u64 {
        self.0.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_ne_bytes)
    }
}
