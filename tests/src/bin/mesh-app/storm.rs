//! Many connections, and big ones, with every answer checked.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use mesh_tests::protocol::{Bytes, Dial, Reply, Storm, StormReport};

use crate::client;

/// Of failures only so many are described.
const DESCRIBED: usize = 5;

/// Makes all connections, the client closing first, and sums up.
pub fn run(storm: &Storm) -> StormReport {
    let report = Mutex::new((StormReport::default(), BTreeMap::<SocketAddr, u32>::new()));
    let next = AtomicU32::new(0);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..storm.threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= storm.connections {
                        return;
                    }
                    std::thread::sleep(due(storm, number).saturating_sub(begun.elapsed()));
                    let to = storm.to[number as usize % storm.to.len()];
                    let outcome = ask(to);
                    let mut shared = report.lock().expect("no panic under this lock");
                    let (report, by_server) = &mut *shared;
                    record(report, by_server, storm, to, outcome);
                    if (number + 1).is_multiple_of((storm.connections / 12).max(1)) {
                        report.twelfths_ms.push(u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX));
                    }
                }
            });
        }
    });
    let (mut report, by_server) = report.into_inner().expect("no thread panicked");
    report.by_server = by_server.into_iter().collect();
    report
}

/// When a connection is to begin.
fn due(storm: &Storm, number: u32) -> Duration {
    Duration::from_secs(1).checked_div(storm.per_second).unwrap_or_default() * number
}

fn record(
    report: &mut StormReport,
    by_server: &mut BTreeMap<SocketAddr, u32>,
    storm: &Storm,
    to: SocketAddr,
    outcome: Result<(SocketAddr, SocketAddr, SocketAddr), String>,
) {
    match outcome {
        Ok((server, ..)) if storm.same_address && plain(server) != plain(to) => report.wrong_destination += 1,
        Ok((_, seen, own)) if plain(seen) != plain(own) => report.wrong_source += 1,
        Ok((server, ..)) => {
            report.answered += 1;
            *by_server.entry(plain(server)).or_default() += 1;
        }
        Err(text) => {
            report.failed += 1;
            if report.failures.len() < DESCRIBED {
                report.failures.push(format!("{to}: {text}"));
            }
        }
    }
}

/// The server's own address, the client's address as the server sees it, and as the client sees it.
fn ask(to: SocketAddr) -> Result<(SocketAddr, SocketAddr, SocketAddr), String> {
    let dial = Dial { to, from: None, first_to: None, non_blocking: false, send: "who\n".to_owned(), limit_ms: 20_000 };
    let report = client::dial(&dial);
    if let Some(failure) = report.failure {
        return Err(format!("{:?}: {}", failure.step, failure.text));
    }
    let mut words = report.received.split_whitespace().map(|word| word.parse::<SocketAddr>().ok());
    match (words.next().flatten(), words.next().flatten(), report.local) {
        (Some(server), Some(seen), Some(own)) => Ok((server, seen, own)),
        _ => Err(format!("an answer of no {}: {:?}", "server of ours", report.received)),
    }
}

/// v4-mapped and plain IPv4 are the same place.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Sends, half-closes, and compares what the sink says it read.
pub fn transfer(to: SocketAddr, bytes: u64) -> Result<Reply> {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut sum = Bytes::default();
    let mut buffer = vec![0; 256 << 10];
    let mut left = bytes;
    while left > 0 {
        let length = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        sum.fill(&mut buffer[..length]);
        stream.write_all(&buffer[..length])?;
        left -= length as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let is_intact = answer == format!("{bytes} {:016x}\n", sum.sum());
    Ok(Reply::Transfer { is_intact, took_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX) })
}
