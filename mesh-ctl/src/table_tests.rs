//! What tables, cells and JSON fields look like.

use super::*;

struct Row {
    name: &'static str,
    bytes: u64,
    hosts: &'static [&'static str],
}

const COLUMNS: &[Column<Row>] = &[
    Column { header: "NAME", field: "name", meaning: "its name", shown: Shown::Always, cell: |r| Cell::text(r.name) },
    Column { header: "SENT", field: "bytes", meaning: "bytes", shown: Shown::Always, cell: |r| Cell::Bytes(r.bytes) },
    Column {
        header: "HOSTS",
        field: "",
        meaning: "how many",
        shown: Shown::Short,
        cell: |r| Cell::Number(r.hosts.len() as u64),
    },
    Column {
        header: "HOSTS",
        field: "hosts",
        meaning: "all of them",
        shown: Shown::Wide,
        cell: |r| Cell::List(r.hosts.iter().map(|h| (*h).to_owned()).collect()),
    },
];

const ROWS: &[Row] =
    &[Row { name: "web", bytes: 1536, hosts: &["a", "b"] }, Row { name: "a-longer-name", bytes: 3, hosts: &[] }];

#[test]
fn columns_line_up_and_numbers_stand_at_the_right() {
    let table = aligned(&chosen(COLUMNS, false), ROWS);

    assert_eq!(
        table,
        "\
NAME              SENT   HOSTS
web             1.5KiB       2
a-longer-name       3B       0
"
    );
}

#[test]
fn wide_replaces_the_short_form() {
    let table = aligned(&chosen(COLUMNS, true), ROWS);

    assert_eq!(
        table,
        "\
NAME              SENT   HOSTS
web             1.5KiB   a,b
a-longer-name       3B   -
"
    );
}

#[test]
fn a_table_without_rows_is_its_header() {
    assert_eq!(aligned(&chosen(COLUMNS, false), &[]), "NAME   SENT   HOSTS\n");
}

#[test]
fn json_has_every_field_in_order_with_its_type() {
    let json = serde_json::to_string(&records(COLUMNS, ROWS)).expect("no map with other keys than texts");

    assert_eq!(
        json,
        r#"[{"name":"web","bytes":1536,"hosts":["a","b"]},{"name":"a-longer-name","bytes":3,"hosts":[]}]"#
    );
}

#[test]
fn nothing_to_say_is_a_dash_in_tables_and_null_in_json() {
    for cell in [Cell::text(""), Cell::Time(0)] {
        assert_eq!(cell.in_table(), "-");
        assert_eq!(serde_json::to_string(&cell).expect("plain value"), "null");
    }
    assert_eq!(Cell::Microseconds(0).in_table(), "-");
}

#[test]
fn values_are_scaled_with_their_unit() {
    let cases = [
        (Cell::Bytes(0), "0B"),
        (Cell::Bytes(1023), "1023B"),
        (Cell::Bytes(1024), "1.0KiB"),
        (Cell::Bytes(1024 * 1024 - 1), "1.0MiB"),
        (Cell::Bytes(104_857_600), "100.0MiB"),
        (Cell::Bytes(u64::MAX), "16.0EiB"),
        (Cell::Microseconds(87), "87us"),
        (Cell::Microseconds(999_949), "999.9ms"),
        (Cell::Microseconds(999_950), "1.0s"),
        (Cell::Milliseconds(0), "0ms"),
        (Cell::Milliseconds(59_999), "59s"),
        (Cell::Milliseconds(60_000), "1m00s"),
        (Cell::Milliseconds(7_500_000), "2h05m"),
        (Cell::Milliseconds(270_000_000), "3d03h"),
        (Cell::Flag(true), "yes"),
        (Cell::Flag(false), "no"),
    ];
    for (cell, text) in cases {
        assert_eq!(cell.in_table(), text, "{cell:?}");
    }
}

#[test]
fn times_are_utc_in_rfc_3339() {
    let cases = [
        (1, "1970-01-01T00:00:01Z"),
        (-1, "1969-12-31T23:59:59Z"),
        (951_782_400, "2000-02-29T00:00:00Z"),
        (1_795_445_043, "2026-11-23T14:44:03Z"),
        (4_107_542_400, "2100-03-01T00:00:00Z"),
    ];
    for (seconds, text) in cases {
        assert_eq!(Cell::Time(seconds).in_table(), text);
    }
}

#[test]
fn a_pods_process_cannot_steer_the_terminal() {
    assert_eq!(Cell::text("sh\u{1b}[2J\n[7]").in_table(), "sh\\u{1b}[2J\\u{a}[7]");
    assert_eq!(Cell::text("a\u{202e}b").in_table(), "a\\u{202e}b");
}

#[test]
fn the_glossary_names_header_field_and_meaning() {
    assert_eq!(
        glossary(COLUMNS),
        "\
Columns (header, JSON field, meaning):
  NAME   name   its name
  SENT   bytes  bytes
  HOSTS  -      how many [table]
  HOSTS  hosts  all of them [wide, json]
"
    );
}
