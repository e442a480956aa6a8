//! The access log: a thread that formats and writes, behind a queue that never blocks who logs.

use std::{
    io::{self, Write},
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use prometheus_client::metrics::counter::Counter;

use super::{ConnectionRecord, Template, line};

/// Lines that may wait for the writer.
const QUEUE: usize = 4096;

/// Bytes of formatted lines that may wait for the writer beside those: two seconds of a node with 10,000 direct connections
/// a second.
const FORMATTED: usize = 8 << 20;

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
    /// Lines that are formatted.
    Lines(String),
    /// Answered when all before it is written.
    Flush(SyncSender<()>),
}

/// The queue's end that is written to.
#[derive(Debug)]
pub struct AccessLog {
    queue: Option<SyncSender<Message>>,
    format: AccessFormat,
    /// Bytes of formatted lines that wait.
    formatted: Arc<AtomicUsize>,
    dropped: Counter,
}

impl AccessLog {
    /// Starts the writer.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn start(format: AccessFormat, out: impl Write + Send + 'static) -> io::Result<Self> {
        let mut log = Self { queue: None, format, formatted: Arc::default(), dropped: Counter::default() };
        let line = match format {
            AccessFormat::Text => line::text,
            AccessFormat::Json => line::json,
            AccessFormat::Off => return Ok(log),
        };
        let (queue, messages) = sync_channel(QUEUE);
        let formatted = log.formatted.clone();
        let write = move || write_all(&messages, &formatted, out, line);
        thread::Builder::new().name("access-log".into()).spawn(write)?;
        log.queue = Some(queue);
        Ok(log)
    }

    /// Queues a line, or drops and counts it.
    pub fn write(&self, record: ConnectionRecord) {
        let Some(queue) = &self.queue else { return };
        if queue.try_send(Message::Line(Box::new(record))).is_err() {
            self.dropped.inc();
        }
    }

    /// Queues so many lines that are formatted, or drops and counts them.
    pub fn write_lines(&self, lines: String, count: u64) {
        let Some(queue) = &self.queue else { return };
        let length = lines.len();
        let is_room = self.formatted.fetch_add(length, Ordering::Relaxed) + length <= FORMATTED;
        if !is_room || queue.try_send(Message::Lines(lines)).is_err() {
            self.formatted.fetch_sub(length, Ordering::Relaxed);
            self.dropped.inc_by(count);
        }
    }

    /// The line of connections like this one; none without a log.
    pub fn template(&self, record: &ConnectionRecord) -> Option<Template> {
        let is_json = self.format == AccessFormat::Json;
        self.queue.is_some().then(|| Template::new(record, is_json))
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
fn write_all(
    messages: &Receiver<Message>,
    formatted: &AtomicUsize,
    mut out: impl Write,
    line: fn(&ConnectionRecord, &mut String),
) {
    let mut lines = String::new();
    while let Ok(first) = messages.recv() {
        let mut flush = None;
        let mut message = Some(first);
        while let Some(next) = message {
            match next {
                Message::Line(record) => line(&record, &mut lines),
                Message::Lines(more) => {
                    formatted.fetch_sub(more.len(), Ordering::Relaxed);
                    if lines.is_empty() {
                        lines = more;
                    } else {
                        lines.push_str(&more);
                    }
                }
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
