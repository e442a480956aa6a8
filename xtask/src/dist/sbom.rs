//! The list of what is in an image, as SPDX has it: Debian's packages, and every crate that is linked into a program or
//! into the eBPF object. It is in the image and beside it.
//! Source: SPDX 2.3, clauses 6, 7 and 11.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Facts, VERSION, base::Package, binaries::PROGRAMS, image::digest};
use crate::{shell, workspace};

/// Where it is in the image.
pub const PLACE: &str = "usr/share/doc/mesh/sbom.spdx.json";
const IMAGE: &str = "SPDXRef-image";

/// The document.
///
/// # Errors
/// cargo does not say which crates there are.
pub fn write(packages: &[Package], facts: &Facts) -> Result<Vec<u8>> {
    let mut all: Vec<Value> = packages.iter().map(debian).collect();
    all.extend(crates()?.iter().map(linked));
    all.push(compiler()?);
    let mut relations = vec![relation("SPDXRef-DOCUMENT", "DESCRIBES", IMAGE)];
    relations.extend(all.iter().filter_map(|package| Some(relation(IMAGE, "CONTAINS", package["SPDXID"].as_str()?))));
    let image = json!({
        "SPDXID": IMAGE,
        "name": facts.name,
        "versionInfo": VERSION,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": env!("CARGO_PKG_LICENSE"),
        "copyrightText": "NOASSERTION",
        "primaryPackagePurpose": "CONTAINER",
    });
    all.insert(0, image);
    // The name has to be another for every content.
    let content = digest(json!(all).to_string().as_bytes()).replace("sha256:", "");
    let document = json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": facts.name,
        "documentNamespace": format!("{}/spdx/{VERSION}/{content}", env!("CARGO_PKG_REPOSITORY")),
        "creationInfo": {"created": facts.created, "creators": [format!("Tool: cargo-xtask-{VERSION}")]},
        "packages": all,
        "relationships": relations,
    });
    Ok(serde_json::to_vec_pretty(&document)?)
}

fn relation(from: &str, kind: &str, to: &str) -> Value {
    json!({"spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to})
}

/// A package of the image; `purl` is how scanners look it up.
fn package(name: &str, version: &str, location: &str, licence: &str, purl: &str) -> Value {
    json!({
        "SPDXID": format!("SPDXRef-{}", identifier(purl)),
        "name": name,
        "versionInfo": version,
        "downloadLocation": location,
        "filesAnalyzed": false,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": licence,
        "copyrightText": "NOASSERTION",
        "externalRefs": [
            {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": purl},
        ],
    })
}

/// Letters, digits, dots and hyphens are all that an identifier may have.
fn identifier(text: &str) -> String {
    text.chars().map(|letter| if letter.is_ascii_alphanumeric() || letter == '.' { letter } else { '-' }).collect()
}

fn debian(found: &Package) -> Value {
    let version = found.version.replace('+', "%2B").replace(':', "%3A");
    let purl = format!("pkg:deb/debian/{}@{version}?arch={}", found.name, found.architecture);
    // Its licences are in usr/share/doc, in words.
    package(&found.name, &found.version, "NOASSERTION", "NOASSERTION", &purl)
}

/// A crate that is linked.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Linked {
    name: String,
    version: String,
    licence: String,
    /// SHA-256 of what was downloaded; none for our own.
    checksum: Option<String>,
}

fn linked(found: &Linked) -> Value {
    let Linked { name, version, licence, checksum } = found;
    let location = match checksum {
        Some(_) => format!("https://crates.io/api/v1/crates/{name}/{version}/download"),
        None => "NOASSERTION".to_owned(),
    };
    let licence = licence.replace('/', " OR ");
    let mut package = package(name, version, &location, &licence, &format!("pkg:cargo/{name}@{version}"));
    if let Some(checksum) = checksum {
        package["checksums"] = json!([{"algorithm": "SHA256", "checksumValue": checksum}]);
    }
    package
}

/// The standard library is linked as well.
fn compiler() -> Result<Value> {
    let version = shell::answer(Command::new("rustc").current_dir(workspace::root()).arg("--version"));
    let version = version.context("`rustc --version` does not answer")?;
    let number = version.split(' ').nth(1).context("rustc has a version")?;
    let location = format!("https://static.rust-lang.org/dist/rustc-{number}-src.tar.gz");
    Ok(package("rust-std", number, &location, "MIT OR Apache-2.0", &format!("pkg:generic/rust-std@{number}")))
}

/// Those of the programs and of the eBPF object.
fn crates() -> Result<BTreeSet<Linked>> {
    let mut programs = workspace::cargo();
    programs.arg("tree").args(PROGRAMS.iter().flat_map(|program| ["--package", program.package]));
    let mut object = workspace::cargo();
    object.current_dir(workspace::root().join("mesh-ebpf")).arg("tree");
    let mut all = BTreeSet::new();
    for (mut command, lock) in [(programs, "Cargo.lock"), (object, "mesh-ebpf/Cargo.lock")] {
        // Neither build scripts nor macros are in a program.
        command.args(["--locked", "--edges", "normal,no-proc-macro", "--prefix", "none"]);
        let text = shell::answer(command.args(["--format", "{p}\t{l}"])).context("`cargo tree` does not answer")?;
        let checksums = checksums(&std::fs::read_to_string(workspace::root().join(lock))?);
        all.extend(text.lines().filter_map(|line| crate_of(line, &checksums)));
    }
    Ok(all)
}

/// `NAME vVERSION [(PATH)]`, a tab, the licence, and a mark where the crate was named before.
fn crate_of(line: &str, checksums: &BTreeMap<(String, String), String>) -> Option<Linked> {
    let (package, licence) = line.trim_end_matches(" (*)").split_once('\t')?;
    let mut words = package.split(' ');
    let (name, version) = (words.next()?.to_owned(), words.next()?.strip_prefix('v')?.to_owned());
    let checksum = checksums.get(&(name.clone(), version.clone())).cloned();
    let licence = if licence.is_empty() { "NOASSERTION" } else { licence };
    Some(Linked { name, version, licence: licence.to_owned(), checksum })
}

/// By name and version, out of a Cargo.lock.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let field = |block: &str, name: &str| {
        let line = block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = \""))?;
        Some(line.trim_end_matches('"').to_owned())
    };
    let blocks = lock.split("[[package]]");
    blocks
        .filter_map(|block| Some(((field(block, "name")?, field(block, "version")?), field(block, "checksum")?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crates_are_found_with_their_checksums() {
        let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nchecksum = \"abc\"\n\n\
                    [[package]]\nname = \"own\"\nversion = \"0.1.0\"\ndependencies = [\n \"a\",\n]\n";
        let checksums = checksums(lock);
        let found = crate_of("a v1.0.0\tMIT/Apache-2.0", &checksums).unwrap();
        assert_eq!((found.name.as_str(), found.checksum.as_deref()), ("a", Some("abc")));
        assert_eq!(linked(&found)["licenseDeclared"], "MIT OR Apache-2.0");
        let own = crate_of("own v0.1.0 (/somewhere)\tApache-2.0", &checksums).unwrap();
        assert_eq!((own.version.as_str(), own.checksum), ("0.1.0", None));
        assert_eq!(linked(&crate_of("own v0.1.0 (/x)\t", &checksums).unwrap())["licenseDeclared"], "NOASSERTION");
    }

    #[test]
    fn what_is_linked_is_listed_and_what_only_builds_is_not() {
        let all = crates().unwrap();
        let has = |name: &str| all.iter().any(|found| found.name == name);
        for name in ["mesh-agent", "mesh-control", "mesh-ctl", "aya", "aya-ebpf", "rustls", "kube-client"] {
            assert!(has(name), "{name} is linked");
        }
        for name in ["protox", "syn", "proptest", "xtask", "serde_derive"] {
            assert!(!has(name), "{name} is not linked");
        }
        let foreign = all.iter().filter(|found| !found.name.starts_with("mesh"));
        assert!(foreign.clone().count() > 100 && foreign.clone().all(|found| found.checksum.is_some()));
    }
}
