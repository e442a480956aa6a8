//! Tables and JSON from one list of columns per kind of row, so that they cannot say different things. Pure: never
//! writes anywhere, never asks for the time or the size of the terminal.

use serde::{Serialize, Serializer, ser::SerializeMap};

/// Where a column appears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// In every form.
    Always,
    /// In `-o wide` and `-o json`.
    Wide,
    /// In `-o table` only: a short form of what `wide` shows in full.
    Short,
}

/// One column: its header, its JSON field, what it says, and how it is taken from a row.
pub struct Column<R> {
    pub header: &'static str,
    /// Name of the JSON field; stable. Empty for [`Shown::Short`].
    pub field: &'static str,
    pub meaning: &'static str,
    pub shown: Shown,
    pub cell: fn(&R) -> Cell,
}

/// One value with its unit.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    Text(String),
    List(Vec<String>),
    Number(u64),
    Flag(bool),
    Bytes(u64),
    Microseconds(u64),
    Milliseconds(u64),
    /// Seconds since 1970; 0 means none.
    Time(i64),
}

impl Cell {
    /// A text cell.
    pub fn text(text: &str) -> Self {
        Self::Text(text.into())
    }

    fn is_right_aligned(&self) -> bool {
        matches!(self, Self::Number(_) | Self::Bytes(_) | Self::Microseconds(_) | Self::Milliseconds(_))
    }

    /// What a table shows; `-` when there is nothing to say.
    pub fn in_table(&self) -> String {
        let text = match self {
            Self::Text(text) => printable(text),
            Self::List(items) => printable(&items.join(",")),
            Self::Number(number) => number.to_string(),
            Self::Flag(flag) => if *flag { "yes" } else { "no" }.into(),
            Self::Bytes(bytes) => scaled_bytes(*bytes),
            Self::Microseconds(us) => scaled_microseconds(*us),
            Self::Milliseconds(ms) => scaled_milliseconds(*ms),
            Self::Time(seconds) => rfc3339(*seconds).unwrap_or_default(),
        };
        if text.is_empty() { "-".into() } else { text }
    }
}

impl Serialize for Cell {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) if text.is_empty() => serializer.serialize_none(),
            Self::Text(text) => serializer.serialize_str(text),
            Self::List(items) => items.serialize(serializer),
            Self::Flag(flag) => serializer.serialize_bool(*flag),
            Self::Number(n) | Self::Bytes(n) | Self::Microseconds(n) | Self::Milliseconds(n) => {
                serializer.serialize_u64(*n)
            }
            Self::Time(seconds) => rfc3339(*seconds).serialize(serializer),
        }
    }
}

/// One row as a JSON object with the columns' fields in their order.
pub struct Record<'a, R> {
    pub columns: &'a [Column<R>],
    pub row: &'a R,
}

impl<R> Serialize for Record<'_, R> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for column in self.columns.iter().filter(|column| column.shown != Shown::Short) {
            map.serialize_entry(column.field, &(column.cell)(self.row))?;
        }
        map.end()
    }
}

/// Rows as JSON objects.
pub fn records<'a, R>(columns: &'a [Column<R>], rows: &'a [R]) -> Vec<Record<'a, R>> {
    rows.iter().map(|row| Record { columns, row }).collect()
}

/// The columns of `-o table`, or of `-o wide`.
pub fn chosen<R>(columns: &[Column<R>], is_wide: bool) -> Vec<&Column<R>> {
    let left_out = if is_wide { Shown::Short } else { Shown::Wide };
    columns.iter().filter(|column| column.shown != left_out).collect()
}

/// An aligned table, one line per row, with its header even when there is no row. Numbers stand at the right.
pub fn aligned<R>(columns: &[&Column<R>], rows: &[R]) -> String {
    let cells: Vec<Vec<Cell>> = rows.iter().map(|row| columns.iter().map(|c| (c.cell)(row)).collect()).collect();
    let right: Vec<bool> =
        (0..columns.len()).map(|index| cells.first().is_some_and(|row| row[index].is_right_aligned())).collect();
    let mut lines = vec![columns.iter().map(|column| column.header.to_owned()).collect::<Vec<_>>()];
    lines.extend(cells.iter().map(|row| row.iter().map(Cell::in_table).collect()));
    let widths: Vec<usize> = (0..columns.len())
        .map(|index| lines.iter().map(|line| line[index].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for line in &lines {
        let mut padded = String::new();
        for (index, cell) in line.iter().enumerate() {
            let width = widths[index];
            let gap = if index == 0 { "" } else { "   " };
            padded += gap;
            padded += &if right[index] { format!("{cell:>width$}") } else { format!("{cell:<width$}") };
        }
        text += padded.trim_end();
        text.push('\n');
    }
    text
}

/// What `--help` says about the columns.
pub fn glossary<R>(columns: &[Column<R>]) -> String {
    let width = columns.iter().map(|column| column.header.len()).max().unwrap_or(0);
    let field_width = columns.iter().map(|column| column.field.len()).max().unwrap_or(0);
    let mut text = String::from("Columns (header, JSON field, meaning):\n");
    for Column { header, field, meaning, shown, .. } in columns {
        let (field, note) = match shown {
            Shown::Always => (*field, ""),
            Shown::Wide => (*field, " [wide, json]"),
            Shown::Short => ("-", " [table]"),
        };
        text += &format!("  {header:<width$}  {field:<field_width$}  {meaning}{note}\n");
    }
    text
}

/// Text without control characters: a pod chooses the names of its processes, and must not steer an operator's terminal.
pub fn printable(text: &str) -> String {
    let is_unsafe = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().flat_map(|c| if is_unsafe(c) { c.escape_unicode().collect() } else { vec![c] }).collect()
}

/// Bytes in powers of 1024 with one decimal: `812B`, `1.5KiB`.
fn scaled_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes}B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would print as 1024.0.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1}{}", UNITS[unit])
}

/// `87us`, `1.2ms`, `2.0s`; nothing for 0, which means not measured.
fn scaled_microseconds(us: u64) -> String {
    match us {
        0 => String::new(),
        1..1_000 => format!("{us}us"),
        1_000..999_950 => format!("{:.1}ms", us as f64 / 1e3),
        _ => format!("{:.1}s", us as f64 / 1e6),
    }
}

/// `250ms`, `12s`, `3m05s`, `2h05m`, `3d04h`.
fn scaled_milliseconds(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0 => format!("{ms}ms"),
        1..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// UTC as RFC 3339; none for 0.
///
/// Source: H. Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
fn rfc3339(seconds: i64) -> Option<String> {
    if seconds == 0 {
        return None;
    }
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let shifted = days.checked_add(719_468)?;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second % 3600 / 60, second % 60);
    Some(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"))
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
