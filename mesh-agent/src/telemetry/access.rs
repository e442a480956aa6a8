//! The access log: a thread that formats and writes, behind a queue that never blocks who logs.

use std::{
    fmt::Write as _,
    io::{self, Write},
    str::FromStr,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    time::UNIX_EPOCH,
};

use prometheus_client::metrics::counter::Counter;
use serde_json::{Map, Value, json};

use super::{ConnectionRecord, Party};
use crate::path::Flag;

/// Lines that may wait for the writer.
const QUEUE: usize = 4096;

/// Bytes after which a batch is written, whatever else waits.
const BATCH: usize = 64 << 10;

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

/// The queue's end that is written to.
#[derive(Debug)]
pub struct AccessLog {
    queue: Option<SyncSender<ConnectionRecord>>,
    dropped: Counter,
}

impl AccessLog {
    /// Starts the writer.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn start(format: AccessFormat, out: impl Write + Send + 'static) -> io::Result<Self> {
        let line = match format {
            AccessFormat::Text => text,
            AccessFormat::Json => json_line,
            AccessFormat::Off => return Ok(Self { queue: None, dropped: Counter::default() }),
        };
        let (queue, records) = sync_channel(QUEUE);
        std::thread::Builder::new().name("access-log".into()).spawn(move || write_all(&records, out, line))?;
        Ok(Self { queue: Some(queue), dropped: Counter::default() })
    }

    /// Queues a line, or drops and counts it.
    pub fn write(&self, record: ConnectionRecord) {
        let Some(queue) = &self.queue else { return };
        if queue.try_send(record).is_err() {
            self.dropped.inc();
        }
    }

    /// Lines that were dropped.
    pub fn dropped(&self) -> Counter {
        self.dropped.clone()
    }
}

/// Writes what has come in batches, then waits for more.
fn write_all(records: &Receiver<ConnectionRecord>, mut out: impl Write, line: fn(&ConnectionRecord) -> String) {
    while let Ok(record) = records.recv() {
        let mut lines = line(&record);
        while lines.len() < BATCH {
            let Ok(record) = records.try_recv() else { break };
            lines.push('\n');
            lines.push_str(&line(&record));
        }
        lines.push('\n');
        // Nobody is left to be told when the log cannot be written.
        out.write_all(lines.as_bytes()).and_then(|()| out.flush()).ok();
    }
}

/// The fields of a line, without those that are empty. Names as ztunnel's where it has one.
fn fields(record: &ConnectionRecord) -> Vec<(&'static str, Value)> {
    let mut fields = Vec::with_capacity(32);
    let started = record.started.duration_since(UNIX_EPOCH).unwrap_or_default();
    fields.push(("time", json!(started.as_secs_f64())));
    fields.push(("direction", json!(record.direction)));
    fields.push(("path", json!(record.path)));
    let keys = ["src.addr", "src.workload", "src.namespace", "src.identity", "src.cluster"];
    party(&mut fields, keys, &record.source);
    let keys = ["dst.addr", "dst.workload", "dst.namespace", "dst.identity", "dst.cluster"];
    party(&mut fields, keys, &record.destination);
    let text = |value: Option<String>| json!(value.unwrap_or_default());
    fields.push(("dst.original", text(record.original_destination.map(|address| address.to_string()))));
    fields.push(("dst.service", text(record.service.as_ref().map(|service| service.name.hostname.to_string()))));
    fields.push(("security", json!(record.security.label())));
    fields.push(("cipher", json!(record.cipher)));
    fields.push(("plaintext.reason", json!(record.plaintext_reason)));
    fields.push(("policy.verdict", json!(record.verdict.map_or("", |verdict| verdict.label()))));
    fields.push(("policy", text(record.policy.as_ref().map(ToString::to_string))));
    let dry_run: Vec<_> = record.dry_run.iter().map(ToString::to_string).collect();
    fields.push(("policy.dry_run", json!(dry_run.join(","))));
    // Seen from the source, as in ztunnel's log.
    fields.push(("bytes_sent", json!(record.to_destination)));
    fields.push(("bytes_recv", json!(record.to_source)));
    fields.push(("duration_ms", json!(record.duration.as_secs_f64() * 1000.0)));
    fields.push(("flag", json!(if record.flag == Flag::None { "" } else { record.flag.label() })));
    fields.push(("error", json!(record.error)));
    fields.retain(|(_, value)| value.as_str() != Some(""));
    fields
}

fn party(fields: &mut Vec<(&'static str, Value)>, keys: [&'static str; 5], party: &Party) {
    let claimed = party.claimed.as_ref();
    let known = |of: fn(&crate::view::Workload) -> &str, or: fn(&crate::hbone::Baggage) -> &str| {
        let known = party.workload.as_deref().map(of).or_else(|| claimed.map(or));
        json!(known.unwrap_or_default())
    };
    fields.push((keys[0], json!(party.address.map(|address| address.to_string()).unwrap_or_default())));
    fields.push((keys[1], known(|workload| &workload.name, |claimed| &claimed.workload)));
    fields.push((keys[2], known(|workload| &workload.namespace, |claimed| &claimed.namespace)));
    fields.push((keys[3], json!(party.identity.as_ref().map(ToString::to_string).unwrap_or_default())));
    fields.push((keys[4], known(|workload| &workload.cluster, |claimed| &claimed.cluster)));
}

fn json_line(record: &ConnectionRecord) -> String {
    let object: Map<_, _> = fields(record).into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    Value::Object(object).to_string()
}

/// Values that hold blanks, quotes or control characters are written as JSON strings: one line stays one line.
fn text(record: &ConnectionRecord) -> String {
    let mut line = String::with_capacity(512);
    for (key, value) in fields(record) {
        if !line.is_empty() {
            line.push(' ');
        }
        let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"');
        // Writing into a String cannot fail.
        match value.as_str() {
            Some(text) if is_plain(text) => write!(line, "{key}={text}").ok(),
            _ => write!(line, "{key}={value}").ok(),
        };
    }
    line
}
