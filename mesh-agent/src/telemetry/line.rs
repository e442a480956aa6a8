//! How a connection's line of the access log looks. Writes straight into the batch: at ten thousand connections a second a
//! line's cost is the agent's.

use std::{
    fmt::{Display, Write as _},
    time::UNIX_EPOCH,
};

use super::{ConnectionRecord, Party};
use crate::{hbone::Baggage, path::Flag, view::Workload};

/// `key=value` pairs. Values that hold blanks, quotes or control characters are written as JSON strings: one line stays one
/// line.
pub(super) fn text(record: &ConnectionRecord, out: &mut String) {
    fields(record, &mut Line { out, is_json: false, is_empty: true });
    out.push('\n');
}

/// One object.
pub(super) fn json(record: &ConnectionRecord, out: &mut String) {
    out.push('{');
    fields(record, &mut Line { out, is_json: true, is_empty: true });
    out.push_str("}\n");
}

/// Names as ztunnel's where it has one.
fn fields(record: &ConnectionRecord, line: &mut Line<'_>) {
    let started = record.started.duration_since(UNIX_EPOCH).unwrap_or_default();
    line.number("time", format_args!("{}.{:06}", started.as_secs(), started.subsec_micros()));
    line.text("direction", record.direction);
    line.text("path", record.path);
    party(line, ["src.addr", "src.workload", "src.namespace", "src.identity", "src.cluster"], &record.source);
    party(line, ["dst.addr", "dst.workload", "dst.namespace", "dst.identity", "dst.cluster"], &record.destination);
    line.known("dst.original", record.original_destination);
    line.known("dst.service", record.service.as_ref().map(|service| &service.name.hostname));
    line.text("security", record.security.label());
    line.text("cipher", record.cipher);
    line.text("plaintext.reason", record.plaintext_reason);
    line.known("policy.verdict", record.verdict.map(|verdict| verdict.label()));
    line.known("policy", record.policy.as_ref());
    if !record.dry_run.is_empty() {
        let dry_run: Vec<_> = record.dry_run.iter().map(ToString::to_string).collect();
        line.text("policy.dry_run", dry_run.join(","));
    }
    // Seen from the source, as in ztunnel's log.
    line.number("bytes_sent", record.to_destination);
    line.number("bytes_recv", record.to_source);
    let duration = record.duration.as_micros();
    line.number("duration_ms", format_args!("{}.{:03}", duration / 1000, duration % 1000));
    line.known("flag", (record.flag != Flag::None).then(|| record.flag.label()));
    line.text("error", &record.error);
}

fn party(line: &mut Line<'_>, keys: [&str; 5], party: &Party) {
    let claimed = party.claimed.as_ref();
    let known = |of: fn(&Workload) -> &str, or: fn(&Baggage) -> &str| {
        party.workload.as_deref().map(of).or_else(|| claimed.map(or))
    };
    line.known(keys[0], party.address);
    line.known(keys[1], known(|workload| &workload.name, |claimed| &claimed.workload));
    line.known(keys[2], known(|workload| &workload.namespace, |claimed| &claimed.namespace));
    line.known(keys[3], party.identity.as_ref());
    line.known(keys[4], known(|workload| &workload.cluster, |claimed| &claimed.cluster));
}

/// A line being written. Writing into a String cannot fail.
struct Line<'a> {
    out: &'a mut String,
    is_json: bool,
    is_empty: bool,
}

impl Line<'_> {
    fn number(&mut self, key: &str, value: impl Display) {
        self.key(key);
        write!(self.out, "{value}").ok();
    }

    fn known(&mut self, key: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.text(key, value);
        }
    }

    /// Leaves out what is empty.
    fn text(&mut self, key: &str, value: impl Display) {
        let before = (self.out.len(), self.is_empty);
        self.key(key);
        let start = self.out.len();
        write!(self.out, "{value}").ok();
        let text = &self.out[start..];
        if text.is_empty() {
            self.out.truncate(before.0);
            self.is_empty = before.1;
            return;
        }
        let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\');
        if !is_plain {
            let text = serde_json::Value::from(self.out.split_off(start)).to_string();
            self.out.push_str(&text);
        } else if self.is_json {
            self.out.insert(start, '"');
            self.out.push('"');
        }
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
