//! What a daemon that starts anew finds of the one before it.

use std::{fs, os::unix::fs::PermissionsExt};

use super::{Desired, FileState, problems, read};
use crate::testing::TempFolder;

const GOOD: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: good}\n";
const BETTER: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: better}\n";
const DAMAGED: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {nam: good}\n";

/// A daemon's whole life: it starts, reads the folder once, publishes, and ends.
fn life(folder: &TempFolder) -> Desired {
    let mut source = folder.source();
    let desired = read(&mut source);
    source.keep();
    desired
}

fn namespaces(desired: &Desired) -> Vec<&str> {
    desired.objects.namespaces.keys().map(AsRef::as_ref).collect()
}

#[test]
fn a_file_that_is_damaged_at_the_start_is_served_as_it_last_was() {
    let folder = TempFolder::new();
    fs::create_dir(folder.0.join("below")).expect("created");
    folder.write("a.yaml", GOOD);
    fs::write(folder.0.join("below/a.yaml"), BETTER).expect("written");
    assert_eq!(namespaces(&life(&folder)), ["better", "good"]);
    let kept = folder.0.join(".last-good/below/a.yaml");
    assert_eq!(fs::metadata(&kept).expect("kept").permissions().mode() & 0o777, 0o600);

    for text in [DAMAGED, "", "metadata: ["] {
        folder.write("a.yaml", text);
        for _ in 0..2 {
            let desired = life(&folder);
            assert_eq!(namespaces(&desired), ["better", "good"], "{text:?}");
            let (state, problems) = problems(&desired, "a.yaml");
            assert_eq!((state, problems.is_empty()), (FileState::LastGood, false), "{text:?}");
            assert_eq!(desired.reports.len(), 2, "what is kept is no manifest, here below the folder too");
        }
    }
    folder.write("a.yaml", &GOOD.replace("good", "mended"));
    assert_eq!(namespaces(&life(&folder)), ["better", "mended"]);
    folder.write("a.yaml", DAMAGED);
    assert_eq!(namespaces(&life(&folder)), ["better", "mended"], "the later form is kept");
}

#[test]
fn what_was_withdrawn_does_not_come_back_with_a_file_of_the_same_name() {
    let folder = TempFolder::new();
    folder.write("a.yaml", GOOD);
    life(&folder);
    folder.remove("a.yaml");
    assert!(namespaces(&life(&folder)).is_empty());
    folder.write("a.yaml", DAMAGED);
    let desired = life(&folder);
    assert_eq!((problems(&desired, "a.yaml").0, namespaces(&desired).len()), (FileState::NeverGood, 0));
}

#[test]
fn a_kept_form_that_is_damaged_too_is_not_used() {
    let folder = TempFolder::new();
    folder.write("a.yaml", &format!("{GOOD}---\n{BETTER}"));
    life(&folder);
    folder.write("a.yaml", DAMAGED);
    let kept = folder.0.join(".last-good/a.yaml");
    let text = fs::read_to_string(&kept).expect("kept");
    // Cut between two documents: what is left is well-formed.
    fs::write(&kept, text.strip_suffix(&format!("---\n{BETTER}")).expect("the second document")).expect("written");
    let desired = life(&folder);
    assert_eq!((problems(&desired, "a.yaml").0, namespaces(&desired).len()), (FileState::NeverGood, 0));
    folder.write("a.yaml", GOOD);
    life(&folder);
    folder.write("a.yaml", DAMAGED);
    assert_eq!(namespaces(&life(&folder)), ["good"], "a good form is kept anew");
}

#[test]
fn a_form_that_cannot_be_replaced_is_forgotten_rather_than_brought_back() {
    let folder = TempFolder::new();
    folder.write("a.yaml", GOOD);
    life(&folder);
    // Where the new form is written first.
    let beside = folder.0.join(".last-good/.a.yaml");
    fs::create_dir(&beside).expect("created");
    folder.write("a.yaml", BETTER);
    assert_eq!(namespaces(&life(&folder)), ["better"]);
    folder.write("a.yaml", DAMAGED);
    let desired = life(&folder);
    assert_eq!((problems(&desired, "a.yaml").0, namespaces(&desired).len()), (FileState::NeverGood, 0));

    fs::remove_dir(&beside).expect("still there");
    folder.write("a.yaml", BETTER);
    life(&folder);
    folder.write("a.yaml", DAMAGED);
    assert_eq!(namespaces(&life(&folder)), ["better"], "kept again");
}
