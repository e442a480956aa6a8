//! Servers: one thread per listening socket, one per connection. They record what their sockets answer about every
//! connection before its first byte is read.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use mesh_tests::protocol::{Accepted, Behaviour, Bytes, Listen, Reply};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// A listening socket and what it has accepted.
struct Server {
    listener: TcpListener,
    accepted: Mutex<Vec<Accepted>>,
}

/// The servers of this process.
#[derive(Default)]
pub struct Servers {
    next: AtomicU32,
    open: Mutex<HashMap<u32, Arc<Server>>>,
}

impl Servers {
    /// Opens a server and its thread.
    pub fn listen(&self, listen: &Listen) -> Result<Reply> {
        let listener = bind(listen)?;
        let address = listener.local_addr()?;
        let server = Arc::new(Server { listener, accepted: Mutex::default() });
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.lock().expect("no panic under this lock").insert(number, Arc::clone(&server));
        let behaviour = listen.behaviour.clone();
        std::thread::spawn(move || accept(&server, &behaviour));
        Ok(Reply::Listening { server: number, address })
    }

    /// Stops accepting: what is queued is reset by the kernel.
    pub fn unlisten(&self, number: u32) -> Result<Reply> {
        let server = self.open.lock().expect("no panic under this lock").remove(&number).context("no such server")?;
        // It wakes the thread in accept.
        rustix::net::shutdown(&server.listener, rustix::net::Shutdown::Both)?;
        Ok(Reply::Done)
    }

    /// What a server has accepted so far.
    pub fn accepted(&self, number: u32) -> Result<Reply> {
        let servers = self.open.lock().expect("no panic under this lock");
        let server = servers.get(&number).context("no such server")?;
        Ok(Reply::Accepted(server.accepted.lock().expect("no panic under this lock").clone()))
    }
}

fn bind(listen: &Listen) -> Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(listen.address), Type::STREAM, Some(Protocol::TCP))?;
    if listen.address.is_ipv6() {
        socket.set_only_v6(listen.only_v6)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(listen.reuse_port)?;
    socket.bind(&listen.address.into()).with_context(|| format!("bind {}", listen.address))?;
    socket.listen(4096)?;
    Ok(socket.into())
}

fn accept(server: &Arc<Server>, behaviour: &Behaviour) {
    loop {
        let (stream, peer) = match server.listener.accept() {
            Ok(accepted) => accepted,
            // Gone before it was accepted, or interrupted: the next one.
            Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) => continue,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return,
            Err(error) => panic!("accept: {error}"),
        };
        let Ok(local) = stream.local_addr() else { continue };
        let record = Accepted { peer, peer_name: stream.peer_addr().ok(), local };
        server.accepted.lock().expect("no panic under this lock").push(record);
        let behaviour = behaviour.clone();
        std::thread::spawn(move || {
            // A client that goes away is the client's business.
            let _ = serve(&stream, &behaviour);
        });
    }
}

fn serve(mut stream: &TcpStream, behaviour: &Behaviour) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    match behaviour {
        Behaviour::Echo => echo(stream),
        Behaviour::Name => name(stream),
        Behaviour::Greet(text) => {
            stream.write_all(text.as_bytes())?;
            echo(stream)
        }
        Behaviour::Sink => sink(stream),
        Behaviour::Source(bytes) => source(stream, *bytes),
        Behaviour::Drip => loop {
            stream.write_all(b".")?;
            std::thread::sleep(Duration::from_millis(5));
        },
        Behaviour::Reset => {
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line)?;
            stream.write_all(line.as_bytes())?;
            // The answer must have arrived: RST would overtake it.
            BufReader::new(stream).read_line(&mut line)?;
            SockRef::from(stream).set_linger(Some(Duration::ZERO))
        }
        Behaviour::FinishThenReset => {
            stream.shutdown(std::net::Shutdown::Write)?;
            BufReader::new(stream).read_line(&mut String::new())?;
            SockRef::from(stream).set_linger(Some(Duration::ZERO))
        }
        Behaviour::Hold => loop {
            std::thread::park();
        },
    }
}

fn echo(mut stream: &TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.shutdown(std::net::Shutdown::Write),
            length => stream.write_all(&buffer[..length])?,
        }
    }
}

fn name(mut stream: &TcpStream) -> std::io::Result<()> {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let answer = format!("{} {}\n", stream.local_addr()?, stream.peer_addr()?);
    stream.write_all(answer.as_bytes())?;
    stream.read_to_end(&mut Vec::new()).map(drop)
}

fn sink(mut stream: &TcpStream) -> std::io::Result<()> {
    let mut sum = Bytes::default();
    let mut total = 0_u64;
    let mut buffer = vec![0; 256 << 10];
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.write_all(format!("{total} {:016x}\n", sum.sum()).as_bytes()),
            length => {
                sum.add(&buffer[..length]);
                total += length as u64;
            }
        }
    }
}

fn source(mut stream: &TcpStream, bytes: u64) -> std::io::Result<()> {
    let mut sum = Bytes::default();
    let mut left = bytes;
    let mut buffer = vec![0; 256 << 10];
    while left > 0 {
        let length = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        sum.fill(&mut buffer[..length]);
        stream.write_all(&buffer[..length])?;
        left -= length as u64;
    }
    stream.shutdown(std::net::Shutdown::Write)
}
