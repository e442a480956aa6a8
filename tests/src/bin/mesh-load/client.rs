//! The client: closed loops that count operations and their latencies between a common start and end.

use std::{cell::RefCell, net::SocketAddr, rc::Rc, thread, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
    task::LocalSet,
    time::Instant,
};

use crate::Mode;

const MESSAGE: usize = 128;
const HTTP_REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: bench\r\n\r\n";
const WRITE: usize = 256 * 1024;
/// Of one thread; a listener has room for those of several.
const QUEUE: usize = 128;

/// What was measured.
#[derive(Serialize)]
pub struct Report {
    seconds: f64,
    operations: u64,
    bytes: u64,
    errors: u64,
    p50_us: f64,
    p99_us: f64,
}

#[derive(Default)]
struct Tally {
    operations: u64,
    bytes: u64,
    errors: u64,
    latencies_ns: Vec<u32>,
}

/// One loop's share of the run.
#[derive(Clone)]
struct Loop {
    target: SocketAddr,
    start: Instant,
    end: Instant,
    tally: Rc<RefCell<Tally>>,
    /// Of those that open connections to hold them: more at once than a listener queues would wait for a second SYN.
    queue: Rc<Semaphore>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.operations += other.operations;
        self.bytes += other.bytes;
        self.errors += other.errors;
        self.latencies_ns.extend(other.latencies_ns);
    }
}

impl Loop {
    fn count(&self, begun: Instant, bytes: usize) {
        if begun < self.start || Instant::now() > self.end {
            return;
        }
        let mut tally = self.tally.borrow_mut();
        tally.operations += 1;
        tally.bytes += bytes as u64;
        tally.latencies_ns.push(u32::try_from(begun.elapsed().as_nanos()).unwrap_or(u32::MAX));
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.end
    }

    async fn connect(&self) -> std::io::Result<TcpStream> {
        let stream = TcpStream::connect(self.target).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// Runs the load: a thread for each processor, if there are so many connections.
///
/// # Errors
/// The first connection fails, or nothing at all was measured.
pub fn load(target: SocketAddr, mode: Mode, connections: usize, length: Duration) -> Result<Report> {
    std::net::TcpStream::connect(target).with_context(|| format!("connect {target}"))?;
    let start = Instant::now() + length / 10;
    let threads = thread::available_parallelism()?.get().min(connections);
    let mut tally = Tally::default();
    thread::scope(|scope| -> Result<()> {
        let share = |number| connections / threads + usize::from(number < connections % threads);
        let shares = (0..threads).map(|number| {
            let run = move || run(target, mode, share(number), start, start + length);
            scope.spawn(run)
        });
        for thread in shares.collect::<Vec<_>>() {
            tally.add(thread.join().map_err(|_| anyhow!("a thread of the load panicked"))??);
        }
        Ok(())
    })?;
    if tally.operations == 0 {
        bail!("no operation was completed; {} errors", tally.errors);
    }
    tally.latencies_ns.sort_unstable();
    let quantile = |q: f64| {
        let index = (tally.latencies_ns.len() as f64 * q) as usize;
        tally.latencies_ns.get(index).map_or(0.0, |ns| f64::from(*ns) / 1000.0)
    };
    Ok(Report {
        seconds: length.as_secs_f64(),
        operations: tally.operations,
        bytes: tally.bytes,
        errors: tally.errors,
        p50_us: quantile(0.5),
        p99_us: quantile(0.99),
    })
}

/// One thread's share of the connections.
fn run(target: SocketAddr, mode: Mode, connections: usize, start: Instant, end: Instant) -> Result<Tally> {
    let round = Loop { target, start, end, tally: Rc::default(), queue: Rc::new(Semaphore::new(QUEUE)) };
    let tasks = LocalSet::new();
    for _ in 0..connections {
        let round = round.clone();
        tasks.spawn_local(async move {
            let result = match mode {
                Mode::Stream => stream(&round).await,
                Mode::Request => request(&round).await,
                Mode::Connect => connect(&round).await,
                Mode::Http => http(&round).await,
                Mode::Hold => hold(&round).await,
            };
            if result.is_err() {
                round.tally.borrow_mut().errors += 1;
            }
        });
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(tasks);
    Ok(round.tally.take())
}

async fn stream(round: &Loop) -> std::io::Result<()> {
    let mut stream = round.connect().await?;
    stream.write_all(b"S").await?;
    let buffer = vec![7; WRITE];
    let mut total = 0_u64;
    while !round.is_over() {
        let begun = Instant::now();
        stream.write_all(&buffer).await?;
        total += WRITE as u64;
        round.count(begun, WRITE);
    }
    stream.shutdown().await?;
    let swallowed = stream.read_u64().await?;
    if swallowed != total { Err(std::io::Error::other("the server counted other bytes")) } else { Ok(()) }
}

async fn request(round: &Loop) -> std::io::Result<()> {
    let mut stream = round.connect().await?;
    stream.write_all(b"E").await?;
    let mut buffer = [7; MESSAGE];
    while !round.is_over() {
        let begun = Instant::now();
        stream.write_all(&buffer).await?;
        stream.read_exact(&mut buffer).await?;
        round.count(begun, MESSAGE);
    }
    Ok(())
}

async fn connect(round: &Loop) -> std::io::Result<()> {
    let mut buffer = [b'E'; MESSAGE + 1];
    while !round.is_over() {
        let begun = Instant::now();
        let mut stream = round.connect().await?;
        stream.write_all(&buffer).await?;
        stream.read_exact(&mut buffer[1..]).await?;
        drop(stream);
        round.count(begun, MESSAGE);
    }
    Ok(())
}

async fn http(round: &Loop) -> std::io::Result<()> {
    let mut stream = round.connect().await?;
    let mut buffer = vec![0; 4096];
    while !round.is_over() {
        let begun = Instant::now();
        stream.write_all(HTTP_REQUEST).await?;
        let mut held = 0;
        let whole = loop {
            let read = stream.read(&mut buffer[held..]).await?;
            if read == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            held += read;
            if let Some(whole) = response_length(&buffer[..held])
                && held >= whole
            {
                break whole;
            }
        };
        round.count(begun, whole);
    }
    Ok(())
}

/// Length of head and body, once the head is whole.
fn response_length(held: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(held).ok()?;
    let (head, _) = text.split_once("\r\n\r\n")?;
    let length = head
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse::<usize>().ok())?;
    Some(head.len() + 4 + length)
}

async fn hold(round: &Loop) -> std::io::Result<()> {
    let begun = round.start;
    let queued = round.queue.acquire().await.map_err(std::io::Error::other)?;
    let mut stream = round.connect().await?;
    drop(queued);
    stream.write_all(b"E").await?;
    round.count(begun, 0);
    tokio::time::sleep_until(round.end).await;
    Ok(())
}
