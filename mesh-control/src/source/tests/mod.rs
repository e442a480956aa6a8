//! What a folder of manifests with mistakes comes to: each mistake by file, line, field and reason; the last good state
//! in force; mended files picked up.

mod damage;
mod kept;
mod mistakes;

use mistakes::MISTAKES;

use super::{
    folder::{Desired, FileState, Folder},
    problem::Problem,
};
use crate::{objects::metadata::Name, testing::TempFolder};

/// Every kind as people write it, with fields that are not the mesh's.
const EVERYTHING: &str = include_str!("everything.yaml");

fn read(folder: &mut Folder) -> Desired {
    folder.read().expect("the folder is there")
}

fn problems(desired: &Desired, file: &str) -> (FileState, Vec<Problem>) {
    let report = desired.reports.iter().find(|report| report.file == file).expect("a report for each file");
    (report.state, report.problems.clone())
}

#[test]
fn every_mistake_is_named_by_file_line_field_and_reason() {
    for wrong in &MISTAKES {
        let folder = TempFolder::new();
        // Below another document, so that lines are counted in the file and not in the document.
        folder.write(
            "wrong.yaml",
            &format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: n}}\n---\n{}", wrong.text),
        );
        let desired = read(&mut folder.source());
        let (state, problems) = problems(&desired, "wrong.yaml");
        assert_eq!(state, FileState::NeverGood, "{}", wrong.text);
        let found = problems.iter().any(|problem| {
            problem.at.line == wrong.line + 4 && problem.field == wrong.field && problem.reason.contains(wrong.reason)
        });
        assert!(found, "{}\n{}:{} {:?} is not in {problems:#?}", wrong.text, wrong.line + 4, wrong.field, wrong.reason);
        assert!(desired.objects.namespaces.is_empty(), "a file with a mistake counts as a whole");
    }
}

#[test]
fn with_a_mistake_the_last_good_form_of_a_file_stays_until_it_is_mended() {
    let folder = TempFolder::new();
    let mut source = folder.source();
    for wrong in &MISTAKES {
        folder.write("a.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: first}\n");
        assert!(read(&mut source).objects.namespaces.contains_key("first"));

        folder.write("a.yaml", wrong.text);
        let desired = read(&mut source);
        assert_eq!(problems(&desired, "a.yaml").0, FileState::LastGood, "{}", wrong.text);
        assert!(desired.objects.namespaces.contains_key("first"), "{}", wrong.text);
        assert!(desired.objects.refused.is_empty(), "its last good form is in force; nothing has to be closed");
        assert_eq!(read(&mut source).reports, desired.reports, "reading again finds the same");

        folder.write("a.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: second}\n");
        let desired = read(&mut source);
        assert_eq!(problems(&desired, "a.yaml"), (FileState::InForce, vec![]));
        assert!(desired.objects.namespaces.contains_key("second") && !desired.objects.namespaces.contains_key("first"));
    }
}

#[test]
fn what_kubernetes_users_write_is_accepted() {
    let folder = TempFolder::new();
    folder.write("everything.yaml", EVERYTHING);
    let desired = read(&mut folder.source());
    assert_eq!(problems(&desired, "everything.yaml"), (FileState::InForce, vec![]));
    let objects = &desired.objects;
    let counts = [
        objects.namespaces.len(),
        objects.nodes.len(),
        objects.pods.len(),
        objects.services.len(),
        objects.slices.len(),
        objects.service_ranges.len(),
        objects.policies.len(),
        objects.peers.len(),
        objects.workload_entries.len(),
        objects.service_entries.len(),
        usize::from(objects.mesh.is_some()),
    ];
    assert_eq!(counts, [1; 11]);
    let ignored = &desired.reports[0].ignored;
    assert_eq!(ignored.len(), 1, "a Deployment is not read, and that is said: {ignored:?}");
}

#[test]
fn a_policy_that_never_was_good_closes_its_scope_and_nothing_else_of_its_file_counts() {
    let folder = TempFolder::new();
    let text = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: good, namespace: shop}
spec: {action: DENY, rules: [{}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: bad, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  rules: [{to: [{operation: {paths: [/]}}]}]
---
kind: PeerAuthentication
metadata:
  name: broken
  namespace: shop
spec: [
";
    folder.write("a.yaml", text);
    let desired = read(&mut folder.source());
    assert!(desired.objects.namespaces.is_empty());
    assert!(desired.objects.policies.contains_key(&Name::new("shop", "good")));
    let refused: Vec<_> =
        desired.objects.refused.iter().map(|refused| (refused.name.to_string(), refused.selector.len())).collect();
    assert_eq!(refused, [("shop/bad".to_owned(), 1), ("shop/broken".to_owned(), 0)]);
}

#[test]
fn emptying_a_file_is_a_mistake_and_removing_it_is_not() {
    let folder = TempFolder::new();
    let mut source = folder.source();
    folder.write("a.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: n}\n");
    read(&mut source);
    folder.write("a.yaml", "# nothing\n");
    let desired = read(&mut source);
    assert_eq!((problems(&desired, "a.yaml").0, desired.objects.namespaces.len()), (FileState::LastGood, 1));
    folder.remove("a.yaml");
    let desired = read(&mut source);
    assert!(desired.objects.namespaces.is_empty() && desired.reports.is_empty());
}

#[test]
fn an_object_belongs_to_the_first_file_that_defines_it() {
    let folder = TempFolder::new();
    folder.write("a.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: n, labels: {from: a}}\n");
    folder.write("b.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: n, labels: {from: b}}\n");
    folder.write("ignored.txt", "not: yaml: at: all");
    folder.write(
        "twice.yaml",
        "apiVersion: v1\nkind: Node\nmetadata: {name: x}\n---\napiVersion: v1\nkind: Node\nmetadata: {name: x}\n",
    );
    let desired = read(&mut folder.source());
    assert_eq!(desired.objects.namespaces["n"].metadata.labels["from"], "a");
    assert!(problems(&desired, "b.yaml").1[0].reason.contains("is already defined in a.yaml:1"));
    let (_, twice) = problems(&desired, "twice.yaml");
    assert_eq!((twice[0].at.line, twice[0].reason.as_str()), (5, "Node /x is already defined in line 1"));
}

#[test]
fn a_list_is_read_item_by_item() {
    let folder = TempFolder::new();
    let text = "\
apiVersion: v1
kind: List
metadata: {resourceVersion: \"\"}
items:
- apiVersion: v1
  kind: Namespace
  metadata: {name: one}
- apiVersion: v1
  kind: Namespace
  metadata: {name: two}
";
    folder.write("a.yaml", text);
    let mut source = folder.source();
    assert_eq!(read(&mut source).objects.namespaces.len(), 2);
    folder.write("a.yaml", &text.replace("name: two", "nam: two"));
    let (_, problems) = problems(&read(&mut source), "a.yaml");
    let found: Vec<_> = problems.iter().map(|problem| (problem.at.line, problem.field.as_str())).collect();
    assert!(found.contains(&(10, "items[1].metadata.nam")), "{found:?}");
}

#[test]
fn links_pipes_and_missing_files_neither_hang_nor_withdraw() {
    use std::os::unix::fs::symlink;
    let (folder, elsewhere) = (TempFolder::new(), TempFolder::new());
    let mut source = folder.source();
    elsewhere.write("real.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: linked}\n");
    symlink(elsewhere.0.join("real.yaml"), folder.0.join("link.yaml")).expect("linked");
    symlink(&folder.0, folder.0.join("circle")).expect("linked");
    let pipe = folder.0.join("pipe.yaml");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("a pipe");
    let desired = read(&mut source);
    assert!(desired.objects.namespaces.contains_key("linked"));
    assert_eq!(desired.reports.len(), 2, "the circle is not followed");
    assert!(problems(&desired, "pipe.yaml").1[0].reason.contains("is not a file"));

    elsewhere.remove("real.yaml");
    let desired = read(&mut source);
    assert!(desired.objects.namespaces.contains_key("linked"), "its file is missed, not withdrawn");
    assert_eq!(problems(&desired, "link.yaml").0, FileState::LastGood);
    elsewhere.write("real.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: linked}\n");
    assert_eq!(problems(&read(&mut source), "link.yaml"), (FileState::InForce, vec![]));
}
