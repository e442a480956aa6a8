//! Clients: one connection, made in any of the ways in which applications make them. A refusal is a result here, never
//! an error.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::Result;
use mesh_tests::protocol::{Dial, Failure, Reply, Report, Step};
use socket2::{Domain, Protocol, Socket, Type};

/// Connects, sends, reads a line, closes.
pub fn dial(dial: &Dial) -> Report {
    let (stream, mut report) = connect(dial);
    let begun = Instant::now();
    if let Some(stream) = stream
        && !dial.send.is_empty()
    {
        match exchange(&stream, dial) {
            Ok(received) => report.received = received,
            Err(failure) => report.failure = Some(failure),
        }
    }
    report.total_us = report.connect_us + micros(begun);
    report
}

/// Connects; the stream when that succeeded, and the report either way.
pub fn connect(dial: &Dial) -> (Option<TcpStream>, Report) {
    let mut report =
        Report { local: None, peer: None, received: String::new(), failure: None, connect_us: 0, total_us: 0 };
    let begun = Instant::now();
    let result = socket(dial).and_then(|socket| {
        let connected = connect_socket(&socket, dial).map_err(|error| failure(Step::Connect, &error));
        report.connect_us = micros(begun);
        connected.map(|()| socket)
    });
    report.total_us = micros(begun);
    match result {
        Ok(socket) => {
            let stream: TcpStream = socket.into();
            report.local = stream.local_addr().ok();
            report.peer = stream.peer_addr().ok();
            (Some(stream), report)
        }
        Err(failure) => {
            report.failure = Some(failure);
            (None, report)
        }
    }
}

/// A socket as `dial` wants it before it connects.
fn socket(dial: &Dial) -> Result<Socket, Failure> {
    let bind = |error: io::Error| failure(Step::Bind, &error);
    let socket = Socket::new(Domain::for_address(dial.to), Type::STREAM, Some(Protocol::TCP)).map_err(bind)?;
    if let Some(from) = dial.from {
        socket.set_reuse_address(true).map_err(bind)?;
        socket.bind(&from.into()).map_err(bind)?;
    }
    let limit = Some(Duration::from_millis(dial.limit_ms));
    socket.set_read_timeout(limit).map_err(bind)?;
    socket.set_write_timeout(limit).map_err(bind)?;
    socket.set_tcp_nodelay(true).map_err(bind)?;
    if let Some(first) = dial.first_to
        && socket.connect(&first.into()).is_ok()
    {
        let text = format!("the first connection, to {first}, was meant to fail");
        return Err(Failure { step: Step::Connect, errno: 0, text });
    }
    Ok(socket)
}

fn connect_socket(socket: &Socket, dial: &Dial) -> io::Result<()> {
    if !dial.non_blocking {
        // SO_SNDTIMEO limits this.
        return socket.connect(&dial.to.into());
    }
    socket.set_nonblocking(true)?;
    match socket.connect(&dial.to.into()) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => wait_writable(socket, dial.limit_ms)?,
        result => result?,
    }
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    socket.set_nonblocking(false)
}

fn wait_writable(socket: &Socket, limit_ms: u64) -> io::Result<()> {
    let timeout = Duration::from_millis(limit_ms).try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut wanted = [rustix::event::PollFd::new(socket, rustix::event::PollFlags::OUT)];
    match rustix::event::poll(&mut wanted, Some(&timeout))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

fn exchange(mut stream: &TcpStream, dial: &Dial) -> Result<String, Failure> {
    stream.write_all(dial.send.as_bytes()).map_err(|error| failure(Step::Write, &error))?;
    let mut received = Vec::new();
    let mut buffer = [0; 4096];
    while !received.ends_with(b"\n") {
        match stream.read(&mut buffer).map_err(|error| failure(Step::Read, &error))? {
            0 => {
                let text = "the connection ended before the answer".to_owned();
                return Err(Failure { step: Step::Read, errno: 0, text });
            }
            length => received.extend_from_slice(&buffer[..length]),
        }
    }
    Ok(String::from_utf8_lossy(&received).into_owned())
}

/// A connected datagram socket: who it says its peer is, and what comes back.
pub fn datagram(to: SocketAddr, text: &str) -> Result<Reply> {
    let any: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.connect(to)?;
    socket.send(text.as_bytes())?;
    let mut buffer = [0; 2048];
    let answer = socket.recv(&mut buffer).ok();
    let answer = answer.map(|length| String::from_utf8_lossy(&buffer[..length]).into_owned());
    Ok(Reply::Datagram { peer: socket.peer_addr()?, answer })
}

/// What `error` means for a report.
pub fn failure(step: Step, error: &io::Error) -> Failure {
    Failure { step, errno: error.raw_os_error().unwrap_or(libc::ETIMEDOUT), text: error.to_string() }
}

fn micros(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX)
}
