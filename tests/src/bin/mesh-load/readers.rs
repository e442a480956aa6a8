//! Readers that hardly read beside readers that do: what the second kind loses by the first, in one run, by turns.

use std::{
    cell::Cell,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use mesh_tests::protocol::ReadersReport;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::{AbortHandle, LocalSet},
};

/// What a slow reader takes at a time, and how often: 20 KiB a second.
const SIP: usize = 1024;
const PAUSE: Duration = Duration::from_millis(50);
/// Until all that slow readers can have in front of them is there: megabytes for each, in the buffers of four sockets.
const FILL: Duration = Duration::from_millis(2500);
/// Until all of it has gone, and until fast ones are at full speed.
const SETTLE: Duration = Duration::from_millis(700);
/// Of a slow reader's socket, so that less has to be filled.
const RECEIVE_BUFFER: u32 = 64 << 10;

/// Measures by turns without and with slow readers.
pub async fn compare(
    target: SocketAddr,
    [fast, slow]: [usize; 2],
    rounds: usize,
    length: Duration,
) -> Result<ReadersReport> {
    let tasks = LocalSet::new();
    let total = Rc::new(Cell::new(0_u64));
    for _ in 0..fast {
        let total = total.clone();
        tasks.spawn_local(async move { gulp(target, &total).await.ok() });
    }
    tasks
        .run_until(async {
            tokio::time::sleep(SETTLE).await;
            let mut report = ReadersReport::default();
            for _ in 0..rounds {
                report.without.push(rate(&total, length).await);
                let slow: Vec<AbortHandle> = (0..slow)
                    .map(|_| tokio::task::spawn_local(async move { sip(target).await.ok() }).abort_handle())
                    .collect();
                tokio::time::sleep(FILL).await;
                report.with.push(rate(&total, length).await);
                if slow.iter().any(AbortHandle::is_finished) {
                    bail!("a slow reader was cut");
                }
                slow.iter().for_each(AbortHandle::abort);
                tokio::time::sleep(SETTLE).await;
            }
            Ok(report)
        })
        .await
}

/// Bytes per second from now on.
async fn rate(total: &Cell<u64>, length: Duration) -> f64 {
    let (before, begun) = (total.get(), Instant::now());
    tokio::time::sleep(length).await;
    (total.get() - before) as f64 / begun.elapsed().as_secs_f64()
}

async fn gulp(target: SocketAddr, total: &Cell<u64>) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(target).await?;
    stream.write_all(b"D").await?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        let read = stream.read(&mut buffer).await?;
        total.set(total.get() + read as u64);
    }
}

async fn sip(target: SocketAddr) -> std::io::Result<()> {
    let socket = if target.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    let mut stream = socket.connect(target).await?;
    stream.write_all(b"D").await?;
    let mut buffer = [0; SIP];
    while stream.read(&mut buffer).await? > 0 {
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}
