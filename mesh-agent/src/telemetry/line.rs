//! How a connection's line of the access log looks. Writes straight into the batch: at ten thousand connections a second a
//! line's cost is the agent's.

use std::{
    fmt::{Display, Write as _},
    net::{IpAddr, SocketAddr},
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
    line.decimal("time", started.as_secs(), started.subsec_micros(), 6);
    line.text("direction", record.direction);
    line.text("path", record.path);
    party(line, ["src.addr", "src.workload", "src.namespace", "src.identity", "src.cluster"], &record.source);
    party(line, ["dst.addr", "dst.workload", "dst.namespace", "dst.identity", "dst.cluster"], &record.destination);
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
    // Seen from the source, as in ztunnel's log.
    line.number("bytes_sent", record.to_destination);
    line.number("bytes_recv", record.to_source);
    let duration = record.duration;
    let duration_ms = duration.as_secs() * 1000 + u64::from(duration.subsec_millis());
    line.decimal("duration_ms", duration_ms, duration.subsec_micros() % 1000, 3);
    line.text("flag", if record.flag == Flag::None { "" } else { record.flag.label() });
    line.text("error", &record.error);
}

fn party(line: &mut Line<'_>, keys: [&str; 5], party: &Party) {
    let claimed = party.claimed.as_ref();
    let known = |of: fn(&Workload) -> &str, or: fn(&Baggage) -> &str| {
        party.workload.as_deref().map(of).or_else(|| claimed.map(or)).unwrap_or_default()
    };
    line.address(keys[0], party.address);
    line.text(keys[1], known(|workload| &workload.name, |claimed| &claimed.workload));
    line.text(keys[2], known(|workload| &workload.namespace, |claimed| &claimed.namespace));
    line.shown(keys[3], party.identity.as_ref());
    line.text(keys[4], known(|workload| &workload.cluster, |claimed| &claimed.cluster));
}

/// A line being written. Writing into a String cannot fail.
struct Line<'a> {
    out: &'a mut String,
    is_json: bool,
    is_empty: bool,
}

impl Line<'_> {
    fn number(&mut self, key: &str, value: u64) {
        self.key(key);
        digits(self.out, value, 1);
    }

    /// `whole.fraction`, the fraction with that many digits.
    fn decimal(&mut self, key: &str, whole: u64, fraction: u32, places: usize) {
        self.number(key, whole);
        self.out.push('.');
        digits(self.out, fraction.into(), places);
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

    /// The standard library's way to show one takes a tenth of the line's time.
    fn address(&mut self, key: &str, value: Option<SocketAddr>) {
        let Some(address) = value else { return };
        self.quoted(key, |out| match address.ip() {
            IpAddr::V4(ip) => {
                for (octet, end) in ip.octets().into_iter().zip(['.', '.', '.', ':']) {
                    digits(out, octet.into(), 1);
                    out.push(end);
                }
                digits(out, address.port().into(), 1);
            }
            IpAddr::V6(_) => _ = write!(out, "{address}"),
        });
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
