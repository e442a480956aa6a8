//! Sockets of the path and their options, in one place. Application legs never leave the node; tunnels do. Every socket
//! carries SO_LINGER {1, 0} from its first moment, so that a killed agent resets its connections: a clean FIN would make a
//! cut answer look complete.

use std::{
    io::{self, Read},
    net::SocketAddr,
    os::fd::AsFd,
    task::{Context, Poll, ready},
    time::Duration,
};

use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};
use tokio::{io::Interest, net::TcpStream};

use crate::kernel::{Kernel, KernelError, NetworkNamespace};

/// TCP's own keepalive on every socket: the applications' cannot pass through a proxy.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(180)).with_interval(Duration::from_secs(180)).with_retries(9);

/// Between application and agent: bbr, if it is the system's default, paces with timers and costs a third of the throughput.
const APP_CONGESTION: &[u8] = b"cubic";

/// Room for four frames of 256 KiB, so that a full pipe does not stop the sealing.
const TUNNEL_SEND_BUFFER: usize = 1 << 20;

/// Longest wait between retransmissions on a tunnel; with the system's 120 s a stream stays stalled as long again as the
/// network was away. Source: Linux 6.15, include/uapi/linux/tcp.h.
const TCP_RTO_MAX_MS: libc::c_int = 44;
const TUNNEL_RTO_MAX_MS: u32 = 5000;

/// A connection attempt takes at most this.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a socket could not be dialled.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The pod's namespace could not be entered, or the kernel's mark not set.
    #[error("preparing the socket: {0}")]
    Kernel(#[from] KernelError),
    /// Descriptors ran out, or an option is not there.
    #[error("opening the socket: {0}")]
    Open(#[source] io::Error),
    /// The source address could not be bound.
    #[error("binding {address}: {source}")]
    Bind {
        /// What was to be bound.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// Nobody answers, or somebody refuses.
    #[error("connecting to {address}: {source}")]
    Connect {
        /// What was dialled.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// Nobody answered within [`DIAL_TIMEOUT`].
    #[error("connecting to {0}: no answer (a network policy between the nodes?)")]
    Timeout(SocketAddr),
}

/// How the hooks shall see a socket of the agent.
#[derive(Debug, Clone, Copy)]
pub enum Mark {
    /// They let it pass.
    Exempt,
    /// They let it pass, and the application that accepts it sees this peer.
    ShowSource(SocketAddr),
}

/// What kind of leg a socket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leg {
    /// To an application, or from one.
    App,
    /// To another node, under HTTP/2.
    Tunnel,
    /// To whatever a pod dialled, as it is.
    Outside,
}

/// Where sockets are opened and marked.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// In a pod's namespace, with a mark for the hooks.
    Pod(&'a Kernel, &'a NetworkNamespace),
    /// In the thread's own namespace, where no hook is attached.
    #[cfg(test)]
    Here,
}

/// One thing to dial.
#[derive(Debug, Clone, Copy)]
pub struct Dial {
    /// What.
    pub to: SocketAddr,
    /// From which address; the port is the kernel's choice. None: the address is, too.
    pub from: Option<std::net::IpAddr>,
    /// What the hooks are told.
    pub mark: Mark,
    /// Which options the socket gets.
    pub leg: Leg,
}

/// Opens a socket in its place and connects it.
///
/// # Errors
/// See [`DialError`]; nothing is left open.
pub async fn dial(place: Place<'_>, what: Dial) -> Result<TcpStream, DialError> {
    let socket = open(place, what.to)?;
    prepare(&socket, what.leg).map_err(DialError::Open)?;
    match (place, what.mark) {
        (Place::Pod(kernel, _), Mark::Exempt) => kernel.mark_exempt(&socket)?,
        (Place::Pod(kernel, _), Mark::ShowSource(source)) => kernel.show_source(&socket, source)?,
        #[cfg(test)]
        (Place::Here, _) => (),
    }
    if let Some(from) = what.from {
        let address = SocketAddr::new(from, 0);
        // Else the port is taken for all destinations at once, and 28,000 are the end.
        set_bind_address_no_port(&socket).map_err(DialError::Open)?;
        socket.bind(&address.into()).map_err(|source| DialError::Bind { address, source })?;
    }
    let address = what.to;
    let connect = tokio::net::TcpSocket::from_std_stream(socket.into()).connect(address);
    match tokio::time::timeout(DIAL_TIMEOUT, connect).await {
        Ok(connected) => connected.map_err(|source| DialError::Connect { address, source }),
        Err(_) => Err(DialError::Timeout(address)),
    }
}

/// A socket belongs to the namespace it was opened in, for good; only this call is made inside.
fn open(place: Place<'_>, to: SocketAddr) -> Result<Socket, DialError> {
    let open = || Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), None);
    match place {
        Place::Pod(_, namespace) => namespace.run(open)?.map_err(DialError::Open),
        #[cfg(test)]
        Place::Here => open().map_err(DialError::Open),
    }
}

/// Sets a leg's options. On a listener they are inherited by what it accepts.
///
/// # Errors
/// No socket, or an option that every kernel from 5.15 on has is refused.
pub fn prepare(socket: &impl AsFd, leg: Leg) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&KEEPALIVE)?;
    match leg {
        Leg::App => {
            // cubic can be a module that is not there; then the default stays.
            socket.set_tcp_congestion(APP_CONGESTION).ok();
        }
        Leg::Outside => (),
        Leg::Tunnel => {
            socket.set_send_buffer_size(TUNNEL_SEND_BUFFER)?;
            // Older kernels do not know it: the limit is 120 s then.
            set_option(&socket, libc::IPPROTO_TCP, TCP_RTO_MAX_MS, TUNNEL_RTO_MAX_MS).ok();
        }
    }
    Ok(())
}

/// Reads what is there. Unlike tokio's own, through a shared reference, so that somebody else may wait for the socket's error.
///
/// # Errors
/// Those of the socket.
pub fn poll_read(socket: &TcpStream, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
    loop {
        ready!(socket.poll_read_ready(context))?;
        let room = buffer.len();
        match attempt(socket, Interest::READABLE, room, || (&*SockRef::from(socket)).read(buffer)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
            read => return Poll::Ready(read),
        }
    }
}

/// Writes what the socket takes, through a shared reference as well.
///
/// # Errors
/// Those of the socket.
pub fn poll_write(socket: &TcpStream, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
    loop {
        ready!(socket.poll_write_ready(context))?;
        let send = || SockRef::from(socket).send_with_flags(bytes, libc::MSG_NOSIGNAL);
        match attempt(socket, Interest::WRITABLE, bytes.len(), send) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
            written => return Poll::Ready(written),
        }
    }
}

/// A call that was served in part has used up what there was, and epoll tells of more: the next call need not ask. tokio is
/// told so by WouldBlock.
fn attempt(
    socket: &TcpStream,
    interest: Interest,
    wanted: usize,
    mut call: impl FnMut() -> io::Result<usize>,
) -> io::Result<usize> {
    let mut done = 0;
    let result = socket.try_io(interest, || {
        done = call()?;
        if 0 < done && done < wanted { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    match result {
        Err(error) if done == 0 => Err(error),
        _ => Ok(done),
    }
}

/// For an orderly end, when both FINs have passed and everything is written: closing no longer resets.
pub fn close_gently(socket: &TcpStream) {
    // It can only fail when the peer's reset has been here first.
    SockRef::from(socket).set_linger(None).ok();
}

fn set_bind_address_no_port(socket: &Socket) -> io::Result<()> {
    set_option(&SockRef::from(socket), libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)
}

fn set_option(socket: &SockRef<'_>, level: libc::c_int, option: libc::c_int, value: u32) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let length = size_of::<u32>() as libc::socklen_t;
    // SAFETY: the pointer is to a live u32 and the length is its own, as every option used here asks.
    let status = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
