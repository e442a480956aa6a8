//! What is wrong with a file, and where. Only words and places; nobody acts on it here.

use std::fmt;

use serde::Serialize;

/// A place in a file; both count from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Position {
    /// Line of the file.
    pub line: u32,
    /// Character of the line.
    pub column: u32,
}

impl Position {
    /// The same place in a text that has `lines` more before it.
    pub fn below(self, lines: u32) -> Position {
        Position { line: self.line.saturating_add(lines), column: self.column }
    }
}

/// One thing that is wrong, for the author of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Where to look.
    #[serde(flatten)]
    pub at: Position,
    /// The field's path inside its object, like `spec.rules[0].from`; empty when the text itself is broken.
    pub field: String,
    /// What is wrong and, where it is known, what to write instead.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Objects of an API server have no lines.
        if self.at != Position::default() {
            write!(formatter, "{}:{}: ", self.at.line, self.at.column)?;
        }
        if !self.field.is_empty() {
            write!(formatter, "{}: ", self.field)?;
        }
        formatter.write_str(&self.reason)
    }
}
