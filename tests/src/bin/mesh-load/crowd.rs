//! A crowd: all connections at once, as when every client of a service that has gone tries again.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use mesh_tests::protocol::CrowdReport;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

/// Who hears nothing by then hangs.
const LIMIT: Duration = Duration::from_secs(60);

/// Comes, and says how each was received.
pub async fn come(target: SocketAddr, connections: usize) -> CrowdReport {
    let mut all = JoinSet::new();
    for _ in 0..connections {
        all.spawn(async move {
            let begun = Instant::now();
            (timeout(LIMIT, ask(target)).await, begun.elapsed())
        });
    }
    let mut report = CrowdReport::default();
    while let Some(ended) = all.join_next().await {
        let Ok((outcome, after)) = ended else { continue };
        match outcome {
            Ok(Ok(())) => report.answered += 1,
            Ok(Err(_)) => report.refused += 1,
            Err(_) => report.hung += 1,
        }
        report.slowest_ms = report.slowest_ms.max(u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
    }
    report
}

async fn ask(target: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(target).await?;
    stream.write_all(b"Eping").await?;
    stream.read_exact(&mut [0; 4]).await.map(drop)
}
