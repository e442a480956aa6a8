//! Every fault once, under load: what it may cost, and that nothing else fails. The long form is `cargo xtask torture`.

use mesh_tests::torture::{self, Plan};

#[test]
fn every_fault_costs_what_is_promised_and_nothing_else() {
    let table = torture::run(Plan { seed: 1, duration: None }, |row| eprintln!("{row}"));
    eprintln!("{table}");
    assert_eq!(table.findings(), [""; 0]);
}
