//! The access log: a thread that formats and writes, behind a queue that never blocks who logs.

use std::{
    io::{self, Write},
    str::FromStr,
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    thread,
    time::Duration,
};

use prometheus_client::metrics::counter::Counter;

use super::{ConnectionRecord, line};

/// Lines that may wait for the writer.
const QUEUE: usize = 4096;

/// Bytes after which a batch is written, whatever else waits.
const BATCH: usize = 64 << 10;

/// What the writer sleeps after a batch: on a busy node, waking it and a write of its own for each line would cost more than
/// the line.
const REST: Duration = Duration::from_millis(20);

/// How long the end waits for a log that is not read.
const FLUSH: Duration = Duration::from_secs(1);

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessFormat {
    /// `key=value` pairs.
    Text,
    /// One object a line.
    Json,
    /// No log.
    Off,
}

impl FromStr for AccessFormat {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            "off" => Ok(Self::Off),
            _ => Err("expected text, json or off"),
        }
    }
}

/// What is queued. Boxed: the queue's memory is there from the start, and records are big.
#[derive(Debug)]
enum Message {
    Line(Box<ConnectionRecord>),
    /// Answered when all before it is written.
    Flush(SyncSender<()>),
}

/// The queue's end that is written to.
#[derive(Debug)]
pub struct AccessLog {
    queue: Option<SyncSender<Message>>,
    dropped: Counter,
}

impl AccessLog {
    /// Starts the writer.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn start(format: AccessFormat, out: impl Write + Send + 'static) -> io::Result<Self> {
        let line = match format {
            AccessFormat::Text => line::text,
            AccessFormat::Json => line::json,
            AccessFormat::Off => return Ok(Self { queue: None, dropped: Counter::default() }),
        };
        let (queue, messages) = sync_channel(QUEUE);
        thread::Builder::new().name("access-log".into()).spawn(move || write_all(&messages, out, line))?;
        Ok(Self { queue: Some(queue), dropped: Counter::default() })
    }

    /// Queues a line, or drops and counts it.
    pub fn write(&self, record: ConnectionRecord) {
        let Some(queue) = &self.queue else { return };
        if queue.try_send(Message::Line(Box::new(record))).is_err() {
            self.dropped.inc();
        }
    }

    /// Waits until what was queued is written, at most a second. Blocks: for the end of the process.
    pub fn flush(&self) {
        let Some(queue) = &self.queue else { return };
        let (written, is_written) = sync_channel(1);
        let is_stuck = queue.try_send(Message::Flush(written)).is_err()
            || is_written.recv_timeout(FLUSH) == Err(RecvTimeoutError::Timeout);
        if is_stuck {
            tracing::warn!("the access log does not keep up: its last lines are lost");
        }
    }

    /// Lines that were dropped.
    pub fn dropped(&self) -> Counter {
        self.dropped.clone()
    }
}

/// Writes what has come in batches, then waits for more.
fn write_all(messages: &Receiver<Message>, mut out: impl Write, line: fn(&ConnectionRecord, &mut String)) {
    let mut lines = String::new();
    while let Ok(first) = messages.recv() {
        let mut flush = None;
        let mut message = Some(first);
        while let Some(next) = message {
            match next {
                Message::Line(record) => line(&record, &mut lines),
                Message::Flush(written) => flush = Some(written),
            }
            let is_full = lines.len() >= BATCH || flush.is_some();
            message = if is_full { None } else { messages.try_recv().ok() };
        }
        // Nobody is left to be told when the log cannot be written.
        out.write_all(lines.as_bytes()).and_then(|()| out.flush()).ok();
        let is_all = lines.len() < BATCH;
        lines.clear();
        match flush {
            Some(written) => drop(written.send(())),
            None if is_all => thread::sleep(REST),
            None => (),
        }
    }
}
