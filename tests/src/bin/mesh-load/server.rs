//! The server: the first byte of a connection says what it wants. `E` echoes, `S` swallows and answers the count at the
//! end, `D` sends without end, anything else is taken for HTTP/1.1.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const HTTP_BODY: usize = 1024;

pub async fn serve(listen: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen).await.with_context(|| format!("bind {listen}"))?;
    println!("{{\"listening\":\"{listen}\"}}");
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
