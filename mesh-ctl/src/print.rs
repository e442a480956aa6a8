//! From rows to the text of one answer in the asked format, and onto standard output.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::{
    arguments::Format,
    failure::Failure,
    table::{Column, Record, aligned, chosen, records},
};

/// Whether the answer is yes, for the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Yes,
    No,
}

/// One answer, ready to be written.
pub struct Page {
    pub text: String,
    pub answer: Answer,
}

impl Page {
    /// An answer that cannot be no.
    pub fn yes(text: String) -> Self {
        Self { text, answer: Answer::Yes }
    }
}

/// How JSON is laid out: indented for one answer, on one line for each answer of a watch.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    pub format: Format,
    pub is_watch: bool,
}

impl Style {
    /// Whether all columns are asked for.
    pub fn is_wide(self) -> bool {
        self.format == Format::Wide
    }

    /// A listing: a table, or `{"name": [rows]}`.
    pub fn listing<R>(self, name: &str, columns: &[Column<R>], rows: &[R]) -> String {
        match self.format {
            Format::Json => self.json(&std::collections::BTreeMap::from([(name, records(columns, rows))])),
            Format::Table | Format::Wide => self.table(columns, rows),
        }
    }

    /// The rows as `-o table` or `-o wide` shows them.
    pub fn table<R>(self, columns: &[Column<R>], rows: &[R]) -> String {
        aligned(&chosen(columns, self.is_wide()), rows)
    }

    /// A sentence, or one JSON field.
    pub fn sentence(self, field: &str, value: &str, sentence: &str) -> String {
        match self.format {
            Format::Json => self.json(&std::collections::BTreeMap::from([(field, value)])),
            Format::Table | Format::Wide => format!("{}\n", crate::table::printable(sentence)),
        }
    }

    /// Any JSON document with its end of line.
    pub fn json(self, document: &impl Serialize) -> String {
        let written =
            if self.is_watch { serde_json::to_string(document) } else { serde_json::to_string_pretty(document) };
        written.expect("documents hold texts, numbers and lists only, with texts as keys") + "\n"
    }
}

/// One object with a list inside, as `status` and `explain` answer in JSON.
#[derive(Serialize)]
#[serde(bound = "")] // rows themselves are never serialized, only their cells
pub struct Nested<'a, R, S> {
    #[serde(flatten)]
    outer: Record<'a, R>,
    #[serde(flatten)]
    inner: std::collections::BTreeMap<&'static str, Vec<Record<'a, S>>>,
}

impl<'a, R, S> Nested<'a, R, S> {
    /// The fields of `row`, then the list under `name`.
    pub fn new(columns: &'a [Column<R>], row: &'a R, name: &'static str, list: Vec<Record<'a, S>>) -> Self {
        Self { outer: Record { columns, row }, inner: std::collections::BTreeMap::from([(name, list)]) }
    }
}

/// One row from top to bottom, header before value.
pub fn upright<R>(columns: &[Column<R>], row: &R) -> String {
    let width = columns.iter().map(|column| column.header.len()).max().unwrap_or(0);
    columns.iter().map(|column| format!("{:<width$}   {}\n", column.header, (column.cell)(row).in_table())).collect()
}

/// Standard output, which is a terminal or is not.
pub struct Screen {
    output: io::Stdout,
    is_terminal: bool,
    has_shown: bool,
}

impl Screen {
    /// The process's standard output.
    pub fn new() -> Self {
        let output = io::stdout();
        let is_terminal = output.is_terminal();
        Self { output, is_terminal, has_shown: false }
    }

    /// Writes one answer. Of a watch, a terminal shows the last one only; elsewhere they follow each other.
    ///
    /// # Errors
    /// Standard output is full or closed.
    pub fn show(&mut self, page: &Page, style: Style) -> Result<(), Failure> {
        let before = match (style.is_watch, style.format) {
            (true, Format::Table | Format::Wide) if self.is_terminal => "\u{1b}[H\u{1b}[2J",
            (true, Format::Table | Format::Wide) if self.has_shown => "\n",
            _ => "",
        };
        self.has_shown = true;
        let mut output = self.output.lock();
        let written = output
            .write_all(before.as_bytes())
            .and_then(|()| output.write_all(page.text.as_bytes()))
            .and_then(|()| output.flush());
        written.map_err(Failure::Output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Cell, Shown};

    const COLUMNS: &[Column<u64>] =
        &[Column { header: "N", field: "n", meaning: "it", shown: Shown::Always, cell: |n| Cell::Number(*n) }];

    fn style(format: Format, is_watch: bool) -> Style {
        Style { format, is_watch }
    }

    #[test]
    fn a_listing_is_a_table_or_an_object_with_one_list() {
        assert_eq!(style(Format::Table, false).listing("rows", COLUMNS, &[1, 20]), " N\n 1\n20\n");
        assert_eq!(
            style(Format::Json, false).listing("rows", COLUMNS, &[1]),
            "{\n  \"rows\": [\n    {\n      \"n\": 1\n    }\n  ]\n}\n"
        );
    }

    #[test]
    fn json_of_a_watch_is_one_line_per_answer() {
        assert_eq!(style(Format::Json, true).listing("rows", COLUMNS, &[1]), "{\"rows\":[{\"n\":1}]}\n");
    }

    #[test]
    fn nested_documents_keep_the_fields_of_both() {
        let document = Nested::new(COLUMNS, &7, "list", records(COLUMNS, &[8]));

        assert_eq!(style(Format::Json, true).json(&document), "{\"n\":7,\"list\":[{\"n\":8}]}\n");
    }
}
