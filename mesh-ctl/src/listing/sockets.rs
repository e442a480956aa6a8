//! Columns of `meshctl sockets`, and which of the sockets are in the clear or denied.

use mesh_api::proto::admin::SocketRow;

use super::{always, short, wide};
use crate::table::{Cell, Column};

/// Every socket of an enrolled pod that the mesh steers or lets pass.
pub const SOCKETS: &[Column<SocketRow>] = &[
    always("POD", "pod", "namespace/name of the end on this node", |r| Cell::text(&r.pod)),
    always("PROCESS", "process", "name[pid] of its process; - when it has gone", |r| Cell::text(&r.process)),
    always("DIRECTION", "direction", "outbound or inbound, seen from POD", |r| Cell::text(&r.direction)),
    always("PATH", "path", "hbone, node_local, self, passthrough, plaintext, before_enrolment, denied", |r| {
        Cell::text(&r.path)
    }),
    wide("SOURCE", "source", "address:port of the caller", |r| Cell::text(&r.source)),
    always("DESTINATION", "original_destination", "address:port that the caller dialled", |r| {
        Cell::text(&r.original_destination)
    }),
    wide("SERVICE", "service", "service that DESTINATION belongs to", |r| Cell::text(&r.service)),
    always("ENDPOINT", "endpoint", "address:port that was chosen", |r| Cell::text(&r.endpoint)),
    short("PEER", "identity of the other end, without its trust domain", |r| Cell::text(without_domain(peer(r)))),
    wide("SOURCE IDENTITY", "source_identity", "proved SPIFFE name of the caller; - when it proved none", |r| {
        Cell::text(&r.source_identity)
    }),
    wide("DESTINATION IDENTITY", "destination_identity", "proved SPIFFE name of the called", |r| {
        Cell::text(&r.destination_identity)
    }),
    wide("SECURITY", "connection_security_policy", "mutual_tls, node_local or none, as in the metrics", |r| {
        Cell::text(&r.connection_security_policy)
    }),
    always("CIPHER", "cipher", "TLS cipher suite; - when not encrypted", |r| Cell::text(&r.cipher)),
    always("POLICY", "policy", "namespace/name that decided; - when no policy selects it", |r| Cell::text(&r.policy)),
    wide("REASON", "reason", "why in the clear, or why denied", |r| Cell::text(&r.reason)),
    always("SENT", "bytes_sent", "bytes that POD has sent", |r| Cell::Bytes(r.bytes_sent)),
    always("RECEIVED", "bytes_received", "bytes that POD has received", |r| Cell::Bytes(r.bytes_received)),
    always("RTT", "rtt_us", "smoothed round trip (JSON: microseconds); - (JSON: 0) when not measured", |r| {
        Cell::Microseconds(r.rtt_us.into())
    }),
    always("RETRANS", "retransmits", "segments sent again", |r| Cell::Number(r.retransmits.into())),
    always("AGE", "age_ms", "time since it was opened (JSON: milliseconds)", |r| Cell::Milliseconds(r.age_ms)),
    wide("COOKIE", "cookie", "the kernel's number of the socket", |r| Cell::Number(r.cookie)),
];

/// `--why-plaintext` as a table; the other forms show [`SOCKETS`].
pub const PLAINTEXT: &[Column<SocketRow>] = &[
    short("POD", "", |r| Cell::text(&r.pod)),
    short("PROCESS", "", |r| Cell::text(&r.process)),
    short("DIRECTION", "", |r| Cell::text(&r.direction)),
    short("SOURCE", "", |r| Cell::text(&r.source)),
    short("DESTINATION", "", |r| Cell::text(&r.original_destination)),
    short("PATH", "", |r| Cell::text(&r.path)),
    short("LEAVES THE NODE", "", |r| Cell::Flag(!stays_on_the_node(r))),
    short("AGE", "", |r| Cell::Milliseconds(r.age_ms)),
    short("REASON", "", |r| Cell::text(why_in_the_clear(r))),
];

/// `--why-denied` as a table; the other forms show [`SOCKETS`].
pub const DENIED: &[Column<SocketRow>] = &[
    short("POD", "", |r| Cell::text(&r.pod)),
    short("DIRECTION", "", |r| Cell::text(&r.direction)),
    short("SOURCE", "", |r| Cell::text(&r.source)),
    short("SOURCE IDENTITY", "", |r| Cell::text(&r.source_identity)),
    short("DESTINATION", "", |r| Cell::text(&r.original_destination)),
    short("POLICY", "", |r| Cell::text(&r.policy)),
    short("AGE", "", |r| Cell::Milliseconds(r.age_ms)),
    short("REASON", "", |r| Cell::text(&r.reason)),
];

/// One order for every answer, so that `-w` does not jump and two runs can be compared.
pub fn sort_sockets(rows: &mut [SocketRow]) {
    rows.sort_by(|a, b| order(a).cmp(&order(b)));
}

fn order(row: &SocketRow) -> (&str, &str, &str, &str, u64) {
    (&row.pod, &row.direction, &row.original_destination, &row.source, row.cookie)
}

/// Refused by policy or by the mesh: no byte of it passed.
pub fn is_denied(row: &SocketRow) -> bool {
    row.path == "denied"
}

/// Bytes pass, and nothing encrypts them. Judged by the cipher alone: a path that is not known here counts as clear.
pub fn is_in_the_clear(row: &SocketRow) -> bool {
    row.cipher.is_empty() && !is_denied(row)
}

fn stays_on_the_node(row: &SocketRow) -> bool {
    matches!(row.path.as_str(), "node_local" | "self")
}

/// The agent's reason; for the paths that need none, what the path itself means.
fn why_in_the_clear(row: &SocketRow) -> &str {
    match row.path.as_str() {
        _ if !row.reason.is_empty() => &row.reason,
        "node_local" => "same node: the kernel proves both ends",
        "self" => "the pod calls itself",
        "before_enrolment" => "opened before the pod was enrolled",
        _ => "",
    }
}

fn peer(row: &SocketRow) -> &str {
    if row.direction == "inbound" { &row.source_identity } else { &row.destination_identity }
}

fn without_domain(identity: &str) -> &str {
    identity.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/')).map_or(identity, |(_, path)| path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::chosen;

    fn row(path: &str, cipher: &str) -> SocketRow {
        SocketRow { path: path.into(), cipher: cipher.into(), ..SocketRow::default() }
    }

    #[test]
    fn in_the_clear_is_what_passes_without_a_cipher() {
        let cases = [
            ("hbone", "TLS13_AES_128_GCM_SHA256", false),
            ("hbone", "", true),
            ("node_local", "", true),
            ("passthrough", "", true),
            ("a path of a later agent", "", true),
            ("denied", "", false),
        ];
        for (path, cipher, expected) in cases {
            assert_eq!(is_in_the_clear(&row(path, cipher)), expected, "{path} {cipher}");
        }
    }

    #[test]
    fn the_agents_own_reason_comes_first() {
        let mut local = row("node_local", "");
        assert_eq!(why_in_the_clear(&local), "same node: the kernel proves both ends");
        local.reason = "other".into();
        assert_eq!(why_in_the_clear(&local), "other");
        assert_eq!(why_in_the_clear(&row("passthrough", "")), "");
    }

    #[test]
    fn the_peer_is_the_other_end() {
        let both = SocketRow {
            source_identity: "spiffe://cluster.local/ns/a/sa/web".into(),
            destination_identity: "spiffe://cluster.local/ns/b/sa/db".into(),
            ..SocketRow::default()
        };
        let outbound = SocketRow { direction: "outbound".into(), ..both.clone() };
        let inbound = SocketRow { direction: "inbound".into(), ..both };

        assert_eq!(without_domain(peer(&outbound)), "ns/b/sa/db");
        assert_eq!(without_domain(peer(&inbound)), "ns/a/sa/web");
        assert_eq!(without_domain("not a SPIFFE name"), "not a SPIFFE name");
    }

    #[test]
    fn the_default_columns_are_those_an_operator_asks_for_first() {
        let headers: Vec<_> = chosen(SOCKETS, false).iter().map(|column| column.header).collect();

        let expected =
            "POD PROCESS DIRECTION PATH DESTINATION ENDPOINT PEER CIPHER POLICY SENT RECEIVED RTT RETRANS AGE";
        assert_eq!(headers.join(" "), expected);
    }

    #[test]
    fn the_order_does_not_depend_on_the_answers() {
        let named = |pod: &str, cookie| SocketRow { pod: pod.into(), cookie, ..SocketRow::default() };
        let mut rows = vec![named("b/x", 1), named("a/x", 3), named("a/x", 2)];

        sort_sockets(&mut rows);

        assert_eq!(rows.iter().map(|row| row.cookie).collect::<Vec<_>>(), [2, 3, 1]);
    }
}
