//! What a run of faults cost, as a table for a person and for the documentation.

use std::{fmt, time::Duration};

/// One fault, or several at once.
#[derive(Debug)]
pub struct Row {
    pub fault: String,
    /// Calls of all kinds from its beginning until everything worked again.
    pub requests: usize,
    /// Of those, how many failed.
    pub errors_during: usize,
    /// In the calm that follows; none may.
    pub errors_after: usize,
    /// On the link, of enrolled pods, outside tunnels.
    pub clear_bytes: u64,
    /// From the fault's end until the slowest kind of call worked again.
    pub recovery: Duration,
    /// Promises that were not kept.
    pub findings: Vec<String>,
}

/// All rows of a run, in order.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Row>,
}

impl Table {
    pub(super) fn add(&mut self, row: Row, tell: &mut impl FnMut(&Row)) {
        tell(&row);
        self.rows.push(row);
    }

    /// Every promise that was not kept, with its fault.
    pub fn findings(&self) -> Vec<String> {
        let named =
            |row: &Row| row.findings.iter().map(|finding| format!("{}: {finding}", row.fault)).collect::<Vec<_>>();
        self.rows.iter().flat_map(named).collect()
    }

    /// One line per fault: its rows added up, the longest recovery.
    fn summed(&self) -> Vec<Row> {
        let mut summed: Vec<Row> = Vec::new();
        let mut order: Vec<&Row> = self.rows.iter().collect();
        order.sort_by(|a, b| a.fault.cmp(&b.fault));
        for row in order {
            match summed.last_mut().filter(|last| last.fault == row.fault) {
                Some(last) => last.take_in(row),
                None => {
                    let findings = row.findings.clone();
                    summed.push(Row { fault: row.fault.clone(), findings, ..*row });
                }
            }
        }
        summed
    }
}

impl Row {
    fn take_in(&mut self, other: &Self) {
        self.requests += other.requests;
        self.errors_during += other.errors_during;
        self.errors_after += other.errors_after;
        self.clear_bytes += other.clear_bytes;
        self.recovery = self.recovery.max(other.recovery);
        self.findings.extend_from_slice(&other.findings);
    }
}

impl fmt::Display for Row {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "| {} | {} | {} | {} | {} | {:.1} |",
            self.fault,
            self.requests,
            self.errors_during,
            self.errors_after,
            self.clear_bytes,
            self.recovery.as_secs_f64(),
        )
    }
}

impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "| fault | calls | errors during | errors after | bytes in the clear | recovery, s |")?;
        writeln!(formatter, "|---|---|---|---|---|---|")?;
        self.summed().iter().try_for_each(|row| writeln!(formatter, "{row}"))
    }
}
