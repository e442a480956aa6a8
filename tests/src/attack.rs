//! An attacker's end of a connection: writes whatever bytes a story gives it, to a TCP port, through TLS or to a Unix socket,
//! and says how the other side took it. Obeys no protocol but the one below that it has to speak to be heard.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{ClientConnection, ConnectionTrafficSecrets, StreamOwned, pki_types::ServerName};

use crate::{forge::Credentials, namespace::Namespace, peer};

/// How long the other side may take to end what it will not have.
const PATIENCE: Duration = Duration::from_secs(15);

/// Bytes both ways.
pub trait Transport: Read + Write + Send {}
impl<T: Read + Write + Send> Transport for T {}

/// One connection.
pub struct Attacker {
    transport: Box<dyn Transport>,
    /// The socket below, whatever is spoken on it.
    socket: OwnedFd,
}

impl Attacker {
    /// To a TCP port, from inside `namespace`.
    ///
    /// # Errors
    /// Refused.
    pub fn plain(namespace: &Namespace, to: SocketAddr) -> io::Result<Self> {
        Self::new(dial(namespace, to)?)
    }

    /// To a Unix socket.
    ///
    /// # Errors
    /// Refused.
    pub fn local(path: &Path) -> io::Result<Self> {
        let socket = UnixStream::connect(path)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Self::new(socket)
    }

    fn new(socket: impl Transport + AsFd + 'static) -> io::Result<Self> {
        Ok(Self { socket: socket.as_fd().try_clone_to_owned()?, transport: Box::new(socket) })
    }

    /// Through TLS, once the handshake is done.
    ///
    /// # Errors
    /// Refused, or the handshake failed.
    pub fn sealed(namespace: &Namespace, to: SocketAddr, credentials: Option<Credentials>) -> io::Result<Self> {
        let (session, tcp) = handshake(namespace, to, credentials)?;
        Ok(Self { socket: tcp.as_fd().try_clone_to_owned()?, transport: Box::new(StreamOwned::new(session, tcp)) })
    }

    /// Writes until all is written or the other side takes no more.
    pub fn sends(&mut self, bytes: &[u8]) -> &mut Self {
        // Who is cut in the middle of an attack has been answered; `is_ended` tells.
        let _ = self.transport.write_all(bytes).and_then(|()| self.transport.flush());
        self
    }

    /// FIN, whatever was said before.
    pub fn falls_silent(&mut self) -> &mut Self {
        let _ = socket2::SockRef::from(&self.socket).shutdown(std::net::Shutdown::Write);
        self
    }

    /// Whether the other side ends it, with whatever it says before.
    pub fn is_ended(&mut self) -> bool {
        let (mut buffer, begun) = ([0; 16 << 10], Instant::now());
        while begun.elapsed() < PATIENCE {
            match self.transport.read(&mut buffer) {
                Ok(0) => return true,
                Ok(_) => (),
                Err(error) if is_silence(&error) => return false,
                Err(_) => return true,
            }
        }
        false
    }

    /// What there is to read, or comes within `limit`; nothing when nothing comes.
    ///
    /// # Panics
    /// When the socket has no time limit to set.
    pub fn hears(&mut self, limit: Duration) -> Vec<u8> {
        let socket = socket2::SockRef::from(&self.socket);
        socket.set_read_timeout(Some(limit)).expect("a socket option");
        let mut heard = vec![0; 64 << 10];
        let read = self.transport.read(&mut heard).unwrap_or_default();
        socket.set_read_timeout(Some(PATIENCE)).expect("a socket option");
        heard.truncate(read);
        heard
    }
}

fn is_silence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn dial(namespace: &Namespace, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = namespace.inside(|| TcpStream::connect_timeout(&to, PATIENCE))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

fn handshake(
    namespace: &Namespace,
    to: SocketAddr,
    credentials: Option<Credentials>,
) -> io::Result<(ClientConnection, TcpStream)> {
    let mut tcp = dial(namespace, to)?;
    let mut configuration = peer::configuration(credentials);
    configuration.enable_secret_extraction = true;
    let name = ServerName::IpAddress(to.ip().into());
    let mut session = ClientConnection::new(Arc::new(configuration), name).map_err(io::Error::other)?;
    while session.is_handshaking() || session.wants_write() {
        session.complete_io(&mut tcp)?;
    }
    Ok((session, tcp))
}

/// Records of no content after a good handshake, `times`, each sealed with the session's key; whether the other side ends it.
/// Source: RFC 8446, section 5.2.
///
/// # Errors
/// The handshake failed.
///
/// # Panics
/// When the suite is another than AES-GCM.
pub fn sends_empty_records(
    namespace: &Namespace,
    to: SocketAddr,
    credentials: Option<Credentials>,
    times: u64,
) -> io::Result<bool> {
    use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
    let (session, tcp) = handshake(namespace, to, credentials)?;
    let (sequence, secrets) = session.dangerous_extract_secrets().map_err(io::Error::other)?.tx;
    let (algorithm, key, iv) = match &secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
        ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
        _ => panic!("another suite was agreed on"),
    };
    let key = LessSafeKey::new(UnboundKey::new(algorithm, key.as_ref()).expect("a key of its kind"));
    let mut records = Vec::new();
    for number in sequence..sequence + times {
        let mut nonce: [u8; 12] = iv.as_ref().try_into().expect("twelve bytes");
        nonce[4..].iter_mut().zip(number.to_be_bytes()).for_each(|(byte, other)| *byte ^= other);
        // Nothing but the type: application data.
        let (mut sealed, head) = (vec![23], [23, 3, 3, 0, 17]);
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(head), &mut sealed)
            .expect("sealed");
        records.extend(head.into_iter().chain(sealed));
    }
    Ok(Attacker::new(tcp)?.sends(&records).is_ended())
}

/// Words of HTTP/2. Source: RFC 9113, sections 3.4, 4.1 and 6.
pub mod h2 {
    /// What a client says first, with SETTINGS of its own.
    pub fn hello(settings: &[(u16, u32)]) -> Vec<u8> {
        let pairs: Vec<u8> =
            settings.iter().flat_map(|(key, value)| [&key.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, &pairs)].concat()
    }

    /// DATA
    pub const DATA: u8 = 0;
    /// HEADERS
    pub const HEADERS: u8 = 1;
    /// PRIORITY
    pub const PRIORITY: u8 = 2;
    /// RST_STREAM
    pub const RESET: u8 = 3;
    /// SETTINGS
    pub const SETTINGS: u8 = 4;
    /// PING
    pub const PING: u8 = 6;
    /// WINDOW_UPDATE
    pub const WINDOW: u8 = 8;
    /// CONTINUATION
    pub const CONTINUATION: u8 = 9;
    /// Flag of SETTINGS and PING.
    pub const ACK: u8 = 1;
    /// Flag of HEADERS and CONTINUATION.
    pub const END_HEADERS: u8 = 4;

    /// A frame.
    pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut frame = head(payload.len(), kind, flags, stream);
        frame.extend_from_slice(payload);
        frame
    }

    /// A frame's head, which need not be true.
    pub fn head(length: usize, kind: u8, flags: u8, stream: u32) -> Vec<u8> {
        let length = u32::try_from(length).expect("a length").to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat()
    }

    /// A header block without the table: literal fields. Source: RFC 7541, sections 5.1, 5.2 and 6.2.2.
    pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
        let mut block = Vec::new();
        for (name, value) in fields {
            block.push(0);
            text(&mut block, name);
            text(&mut block, value);
        }
        block
    }

    fn text(block: &mut Vec<u8>, text: &str) {
        let mut length = text.len();
        if length < 127 {
            block.push(u8::try_from(length).expect("it is small"));
        } else {
            block.push(127);
            length -= 127;
            while length >= 128 {
                block.push(u8::try_from(length % 128 + 128).expect("a byte"));
                length /= 128;
            }
            block.push(u8::try_from(length).expect("it is small"));
        }
        block.extend_from_slice(text.as_bytes());
    }

    /// A frame that was heard.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Heard {
        /// As [`DATA`] and the like.
        pub kind: u8,
        /// 1 is ACK, or END_STREAM.
        pub flags: u8,
        /// 0 is the connection.
        pub stream: usize,
        /// What it carries.
        pub payload: Vec<u8>,
    }

    /// The whole frames of `heard`.
    pub fn frames(heard: &[u8]) -> Vec<Heard> {
        let (mut rest, mut frames) = (heard, Vec::new());
        while let Some((head, tail)) = rest.split_at_checked(9) {
            let Some((payload, tail)) = tail.split_at_checked(number(&head[..3])) else { break };
            let (kind, flags, stream) = (head[3], head[4], number(&head[5..]));
            frames.push(Heard { kind, flags, stream, payload: payload.to_vec() });
            rest = tail;
        }
        frames
    }

    /// How much the peer's WINDOW_UPDATEs allow on `stream`.
    pub fn allowed(heard: &[u8], stream: usize) -> usize {
        let opened = |frame: &&Heard| frame.kind == WINDOW && frame.stream == stream;
        frames(heard).iter().filter(opened).map(|frame| number(&frame.payload)).sum()
    }

    fn number(bytes: &[u8]) -> usize {
        bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
    }
}
