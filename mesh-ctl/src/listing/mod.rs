//! The columns of every listing and the order of its rows. Pure: from the agent's messages to cells.

mod agents;
mod pods;
mod report;
mod sockets;
mod view;

pub use self::{
    agents::AGENTS,
    pods::PODS,
    report::{CERTIFICATES, CHECKS, RESOURCE_TYPES, STATUS, STEPS, VERDICT, failed_checks, sort_certificates},
    sockets::{DENIED, PLAINTEXT, SOCKETS, is_denied, is_in_the_clear, sort_sockets},
    view::{POLICIES, SERVICES, WORKLOADS},
};

use crate::table::{Cell, Column, Shown};

/// A column in every form.
const fn always<R>(
    header: &'static str,
    field: &'static str,
    meaning: &'static str,
    cell: fn(&R) -> Cell,
) -> Column<R> {
    Column { header, field, meaning, shown: Shown::Always, cell }
}

/// A column of `-o wide` and `-o json`.
const fn wide<R>(header: &'static str, field: &'static str, meaning: &'static str, cell: fn(&R) -> Cell) -> Column<R> {
    Column { header, field, meaning, shown: Shown::Wide, cell }
}

/// A column of `-o table` that stands for one or two wide ones.
const fn short<R>(header: &'static str, meaning: &'static str, cell: fn(&R) -> Cell) -> Column<R> {
    Column { header, field: "", meaning, shown: Shown::Short, cell }
}

fn list(items: &[String]) -> Cell {
    Cell::List(items.to_vec())
}

fn count(items: &[String]) -> Cell {
    Cell::Number(items.len() as u64)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn assert_fields_are_distinct<R>(columns: &[Column<R>]) {
        let mut fields = HashSet::new();
        for Column { header, field, meaning, shown, .. } in columns {
            assert_eq!(header.to_uppercase(), *header);
            assert!(!meaning.is_empty(), "{header}");
            assert_eq!(field.is_empty(), *shown == Shown::Short, "{header}");
            assert!(field.is_empty() || fields.insert(*field), "{field} is there twice");
        }
    }

    #[test]
    fn every_column_has_an_upper_case_header_a_meaning_and_a_field_of_its_own() {
        assert_fields_are_distinct(AGENTS);
        assert_fields_are_distinct(PODS);
        assert_fields_are_distinct(WORKLOADS);
        assert_fields_are_distinct(SERVICES);
        assert_fields_are_distinct(POLICIES);
        assert_fields_are_distinct(SOCKETS);
        assert_fields_are_distinct(CERTIFICATES);
        assert_fields_are_distinct(CHECKS);
        assert_fields_are_distinct(STEPS);
        assert_fields_are_distinct(RESOURCE_TYPES);
        assert_fields_are_distinct(STATUS);
        assert_fields_are_distinct(VERDICT);
    }
}
