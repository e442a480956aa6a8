//! The server: the first byte of a connection says what it wants. `E` echoes, `S` swallows and answers the count at the
//! end, `D` sends without end, anything else is taken for HTTP/1.1.

use std::{net::SocketAddr, thread};

use anyhow::{Context, Result, anyhow};
use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const HTTP_BODY: usize = 1024;

/// More than all threads of a client open at once.
const BACKLOG: i32 = 1024;

/// Answers on a thread for each processor; whichever comes first takes a connection.
///
/// # Errors
/// The address cannot be listened on, or a thread fails.
pub fn serve(listen: SocketAddr) -> Result<()> {
    let socket = Socket::new(Domain::for_address(listen), Type::STREAM, None).context("socket")?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&listen.into()).and_then(|()| socket.listen(BACKLOG)).with_context(|| format!("bind {listen}"))?;
    println!("{{\"listening\":\"{listen}\"}}");
    thread::scope(|scope| {
        let serving = (0..thread::available_parallelism()?.get()).map(|_| {
            let listener = std::net::TcpListener::from(socket.try_clone()?);
            Ok(scope.spawn(move || accept(listener)))
        });
        let serving = serving.collect::<Result<Vec<_>>>()?;
        serving.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
    })
}

fn accept(listener: std::net::TcpListener) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(accept_all(listener))
}

async fn accept_all(listener: std::net::TcpListener) -> Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await.context("accept")?;
        stream.set_nodelay(true)?;
        // A connection that ends early is the client's business: it counts its own errors.
        tokio::spawn(async move { answer(stream).await.ok() });
    }
}

async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let first = stream.read_u8().await?;
    match first {
        b'E' => echo(stream).await,
        b'S' => swallow(stream).await,
        b'D' => pour(stream).await,
        _ => http(stream).await,
    }
}

async fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return stream.shutdown().await;
        }
        stream.write_all(&buffer[..read]).await?;
    }
}

async fn swallow(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    let mut total = 0_u64;
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            stream.write_all(&total.to_be_bytes()).await?;
            return stream.shutdown().await;
        }
        total += read as u64;
    }
}

/// Until the client goes.
async fn pour(mut stream: TcpStream) -> std::io::Result<()> {
    let buffer = vec![7; 256 * 1024];
    loop {
        stream.write_all(&buffer).await?;
    }
}

/// Answers every blank line with a fixed response: the requests of the client have no body.
async fn http(mut stream: TcpStream) -> std::io::Result<()> {
    let response = format!("HTTP/1.1 200 OK\r\ncontent-length: {HTTP_BODY}\r\n\r\n{}", "x".repeat(HTTP_BODY));
    let mut buffer = vec![0; 16 * 1024];
    let mut tail = [0_u8; 4];
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return stream.shutdown().await;
        }
        for byte in &buffer[..read] {
            tail.rotate_left(1);
            tail[3] = *byte;
            if &tail == b"\r\n\r\n" {
                stream.write_all(response.as_bytes()).await?;
            }
        }
    }
}
