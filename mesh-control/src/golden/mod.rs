//! The table of golden cases: objects as users write them, and what they come to. It is one for both sources; here it
//! runs over a folder, and in `kubernetes::tests` over an API server.
//!
//! A file of cases has parts that begin with `=== NAME`. A case is `--- given`, objects, `--- expect`, lines as [`lines`]
//! writes them; `--- with NAME` adds the objects of a part that is named `@NAME` and expects nothing. A name that ends in
//! `(folder only)` is of a state that an API server does not let exist.

use std::{collections::BTreeMap, net::IpAddr};

use crate::{
    compile::{Foundation, Resources, compile},
    source::{document, folder::Desired},
    testing::TempFolder,
};

mod lines;

pub use lines::lines;

/// The tables.
const TABLES: [(&str, &str); 5] = [
    ("services", include_str!("services.yaml")),
    ("pods", include_str!("pods.yaml")),
    ("slices", include_str!("slices.yaml")),
    ("entries", include_str!("entries.yaml")),
    ("policies", include_str!("policies.yaml")),
];

/// One case.
pub struct Case {
    /// What it shows.
    pub name: String,
    /// The objects, one YAML document each.
    pub given: Vec<String>,
    /// What they come to.
    pub expected: String,
}

impl Case {
    /// False when an API server does not take the objects.
    pub fn is_for_api_server(&self) -> bool {
        !self.name.ends_with("(folder only)")
    }
}

/// All cases.
pub fn cases() -> Vec<Case> {
    TABLES.iter().flat_map(|(table, text)| parse(table, text)).collect()
}

fn parse(table: &str, text: &str) -> Vec<Case> {
    let mut shared: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut cases = Vec::new();
    for part in text.split("\n=== ").skip(1) {
        let (name, body) = part.split_once('\n').expect("a name and a body");
        let (before, expected) = body.split_once("\n--- expect\n").unwrap_or((body, ""));
        let (with, given) = before.split_once("--- given\n").unwrap_or((before, ""));
        let with = with.lines().filter_map(|line| line.strip_prefix("--- with ")).flat_map(|name| shared[name].clone());
        let own = document::split(given).into_iter().map(|chunk| chunk.text.trim_start_matches("---").to_owned());
        let given = with.chain(own).collect();
        match name.strip_prefix('@') {
            Some(name) => drop(shared.insert(name, given)),
            None => cases.push(Case { name: format!("{table}: {name}"), given, expected: expected.trim().to_owned() }),
        }
    }
    cases
}

/// Compiles what a source says.
pub fn compiled(desired: &Desired) -> Resources {
    compile(&desired.objects, &Foundation { trust_domain: "cluster.local".into(), trust_bundle: Vec::new() })
}

fn shown(address: &[u8]) -> String {
    match address.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(address).expect("four bytes")).to_string(),
        _ => IpAddr::from(<[u8; 16]>::try_from(address).expect("sixteen bytes")).to_string(),
    }
}

/// The range that an API server of tests has from the start.
const RANGE: &str = "{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: kubernetes}, spec: {cidrs: [10.96.0.0/16, 'fd00:96::/108']}}";

/// What a folder with these objects comes to: each in a file of its own, so that one that is refused leaves the others.
fn of_folder(given: &[String]) -> String {
    let folder = TempFolder::new();
    folder.write("range.yaml", RANGE);
    let mut names = BTreeMap::new();
    for (index, text) in given.iter().enumerate() {
        let file = format!("{index:03}.yaml");
        folder.write(&file, text);
        names.insert(file, name(text));
    }
    let mut desired = folder.source().read().expect("read");
    for report in &mut desired.reports {
        report.file = names.get(&report.file).cloned().unwrap_or_default();
    }
    lines(&desired, &compiled(&desired))
}

/// `KIND NAMESPACE/NAME` of an object.
fn name(text: &str) -> String {
    let node = document::parse(document::split(text)[0]).expect("an object");
    let text = |node: Option<&document::Node>| match node.map(|node| &node.value) {
        Some(document::Value::Text(text)) => text.clone(),
        _ => String::new(),
    };
    let metadata = node.child("metadata").expect("an object");
    format!("{} {}/{}", text(node.child("kind")), text(metadata.child("namespace")), text(metadata.child("name")))
}

#[test]
fn a_folder_comes_to_what_the_table_says() {
    let cases = cases();
    assert!(cases.len() >= 80, "{} cases", cases.len());
    let wrong: Vec<String> = cases
        .iter()
        .filter_map(|case| {
            let found = of_folder(&case.given);
            (found != case.expected).then(|| format!("=== {}\n{found}\n", case.name))
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {} cases come to something else:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
