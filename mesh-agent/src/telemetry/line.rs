//! How a connection's line of the access log looks. Writes straight into the batch: at ten thousand connections a second a
//! line's cost is the agent's.

use std::{
    fmt::{Display, Write as _},
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{ConnectionRecord, Party};
use crate::{hbone::Baggage, path::Flag, view::Workload};

/// `key=value` pairs. Values that hold blanks, quotes or control characters are written as JSON strings: one line stays one
/// line.
pub(super) fn text(record: &ConnectionRecord, out: &mut String) {
    write(record, out, false, None);
}

/// One object.
pub(super) fn json(record: &ConnectionRecord, out: &mut String) {
    write(record, out, true, None);
}

/// What is a connection's own, among those between the same ends, to the same port, with the same verdict.
#[derive(Debug, Clone, Copy)]
pub struct Own {
    /// When it began.
    pub started: SystemTime,
    /// How long it lived.
    pub duration: Duration,
    /// Of the end that dialled.
    pub source_port: u16,
    /// Bytes from source to destination.
    pub to_destination: u64,
    /// Bytes from destination to source.
    pub to_source: u64,
}

impl Own {
    fn of(record: &ConnectionRecord) -> Self {
        Self {
            started: record.started,
            duration: record.duration,
            source_port: record.source.address.map_or(0, |address| address.port()),
            to_destination: record.to_destination,
            to_source: record.to_source,
        }
    }
}

/// A line with gaps for what is a connection's own: names and verdict of a kind are formatted once.
#[derive(Debug)]
pub struct Template {
    text: String,
    gaps: Vec<(usize, Gap)>,
}

impl Template {
    pub(super) fn new(record: &ConnectionRecord, is_json: bool) -> Self {
        let (mut text, mut gaps) = (String::new(), Vec::new());
        write(record, &mut text, is_json, Some(&mut gaps));
        Self { text, gaps }
    }

    /// Appends the line of one connection.
    pub fn fill(&self, own: &Own, out: &mut String) {
        let mut from = 0;
        for (to, gap) in &self.gaps {
            out.push_str(&self.text[from..*to]);
            gap.fill(own, out);
            from = *to;
        }
        out.push_str(&self.text[from..]);
    }
}

/// Where a value that is the connection's own belongs.
#[derive(Debug, Clone, Copy)]
enum Gap {
    Started,
    SourcePort,
    BytesSent,
    BytesReceived,
    Duration,
}

impl Gap {
    fn fill(self, own: &Own, out: &mut String) {
        match self {
            Self::Started => {
                let started = own.started.duration_since(UNIX_EPOCH).unwrap_or_default();
                decimal(out, started.as_secs(), started.subsec_micros(), 6);
            }
            Self::SourcePort => digits(out, own.source_port.into(), 1),
            // Seen from the source, as in ztunnel's log.
            Self::BytesSent => digits(out, own.to_destination, 1),
            Self::BytesReceived => digits(out, own.to_source, 1),
            Self::Duration => {
                let duration_ms = own.duration.as_secs() * 1000 + u64::from(own.duration.subsec_millis());
                decimal(out, duration_ms, own.duration.subsec_micros() % 1000, 3);
            }
        }
    }
}

fn write(record: &ConnectionRecord, out: &mut String, is_json: bool, gaps: Option<&mut Vec<(usize, Gap)>>) {
    let (begin, end) = if is_json { ("{", "}\n") } else { ("", "\n") };
    out.push_str(begin);
    fields(record, &mut Line { out, own: Own::of(record), gaps, is_json, is_empty: true });
    out.push_str(end);
}

/// Names as ztunnel's where it has one.
fn fields(record: &ConnectionRecord, line: &mut Line<'_>) {
    line.own("time", Gap::Started);
    line.text("direction", record.direction);
    line.text("path", record.path);
    line.caller("src.addr", record.source.address);
    party(line, ["src.workload", "src.namespace", "src.identity", "src.cluster"], &record.source);
    line.address("dst.addr", record.destination.address);
    party(line, ["dst.workload", "dst.namespace", "dst.identity", "dst.cluster"], &record.destination);
    line.address("dst.original", record.original_destination);
    line.text("dst.service", record.service.as_ref().map_or("", |service| &service.name.hostname));
    line.text("security", record.security.label());
    line.text("cipher", record.cipher);
    line.text("plaintext.reason", record.plaintext_reason);
    line.text("policy.verdict", record.verdict.map_or("", |verdict| verdict.label()));
    line.shown("policy", record.policy.as_ref());
    if !record.dry_run.is_empty() {
        let dry_run: Vec<_> = record.dry_run.iter().map(ToString::to_string).collect();
        line.text("policy.dry_run", &dry_run.join(","));
    }
    line.own("bytes_sent", Gap::BytesSent);
    line.own("bytes_recv", Gap::BytesReceived);
    line.own("duration_ms", Gap::Duration);
    line.text("flag", if record.flag == Flag::None { "" } else { record.flag.label() });
    line.text("error", &record.error);
}

fn party(line: &mut Line<'_>, keys: [&str; 4], party: &Party) {
    let claimed = party.claimed.as_ref();
    let known = |of: fn(&Workload) -> &str, or: fn(&Baggage) -> &str| {
        party.workload.as_deref().map(of).or_else(|| claimed.map(or)).unwrap_or_default()
    };
    line.text(keys[0], known(|workload| &workload.name, |claimed| &claimed.workload));
    line.text(keys[1], known(|workload| &workload.namespace, |claimed| &claimed.namespace));
    line.shown(keys[2], party.identity.as_ref());
    line.text(keys[3], known(|workload| &workload.cluster, |claimed| &claimed.cluster));
}

/// A line being written. Writing into a String cannot fail.
struct Line<'a> {
    out: &'a mut String,
    own: Own,
    /// Of a template: what is the connection's own is left out, and its place noted.
    gaps: Option<&'a mut Vec<(usize, Gap)>>,
    is_json: bool,
    is_empty: bool,
}

impl Line<'_> {
    fn own(&mut self, key: &str, gap: Gap) {
        self.key(key);
        self.gap(gap);
    }

    fn gap(&mut self, gap: Gap) {
        match &mut self.gaps {
            Some(gaps) => gaps.push((self.out.len(), gap)),
            None => gap.fill(&self.own, self.out),
        }
    }

    /// Leaves out what is empty.
    fn text(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            self.quoted(key, |out| out.push_str(value));
        }
    }

    fn shown(&mut self, key: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.quoted(key, |out| _ = write!(out, "{value}"));
        }
    }

    fn address(&mut self, key: &str, value: Option<SocketAddr>) {
        let Some(address) = value else { return };
        self.quoted(key, |out| {
            host(out, address.ip());
            digits(out, address.port().into(), 1);
        });
    }

    /// That of the end that dialled: its port is the connection's own. Needs no check of what is in it.
    fn caller(&mut self, key: &str, value: Option<SocketAddr>) {
        let Some(address) = value else { return };
        let quote = if self.is_json { "\"" } else { "" };
        self.key(key);
        self.out.push_str(quote);
        host(self.out, address.ip());
        self.gap(Gap::SourcePort);
        self.out.push_str(quote);
    }

    fn quoted(&mut self, key: &str, value: impl FnOnce(&mut String)) {
        self.key(key);
        if self.is_json {
            self.out.push('"');
        }
        let start = self.out.len();
        value(self.out);
        let is_plain = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\';
        if self.out.as_bytes()[start..].iter().all(|byte| is_plain(*byte)) {
            if self.is_json {
                self.out.push('"');
            }
            return;
        }
        let text = serde_json::Value::from(self.out.split_off(start)).to_string();
        if self.is_json {
            self.out.pop();
        }
        self.out.push_str(&text);
    }

    fn key(&mut self, key: &str) {
        let separator = if self.is_json { "," } else { " " };
        if !std::mem::replace(&mut self.is_empty, false) {
            self.out.push_str(separator);
        }
        // Ours, and plain.
        if self.is_json {
            self.out.push('"');
            self.out.push_str(key);
            self.out.push_str("\":");
        } else {
            self.out.push_str(key);
            self.out.push('=');
        }
    }
}

/// An address as it stands before a port, with the colon. The standard library's way to show one takes a tenth of the line's
/// time.
fn host(out: &mut String, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => {
            for (octet, end) in ip.octets().into_iter().zip(['.', '.', '.', ':']) {
                digits(out, octet.into(), 1);
                out.push(end);
            }
        }
        IpAddr::V6(ip) => _ = write!(out, "[{ip}]:"),
    }
}

/// `whole.fraction`, the fraction with that many digits.
fn decimal(out: &mut String, whole: u64, fraction: u32, places: usize) {
    digits(out, whole, 1);
    out.push('.');
    digits(out, fraction.into(), places);
}

/// Appends a number, with zeros in front of one that has fewer digits than `places`.
fn digits(out: &mut String, mut value: u64, places: usize) {
    let mut buffer = [b'0'; 20];
    let mut start = buffer.len();
    while value > 0 || buffer.len() - start < places {
        start -= 1;
        buffer[start] = b'0' + (value % 10) as u8;
        value /= 10;
    }
    out.extend(buffer[start..].iter().map(|digit| char::from(*digit)));
}
