//! Where unsafe code may be: the modules that talk to the kernel, and a few files, each with its reason. clippy asks for a
//! SAFETY comment at every block; this asks that there are few places.

use std::{collections::BTreeSet, fs};

use anyhow::{Result, bail};

use crate::workspace;

const CRATES: &[&str] = &[
    "mesh-common",
    "mesh-ebpf",
    "mesh-api",
    "mesh-listen",
    "mesh-agent",
    "mesh-cni",
    "mesh-control",
    "mesh-ctl",
    "xtask",
    "tests",
    "fuzz",
];

/// A directory, ending in a slash, or a file.
const ALLOWED: &[(&str, &str)] = &[
    (
        "mesh-ebpf/",
        "programs in the kernel: contexts, helpers and map values are raw pointers; the verifier checks them",
    ),
    ("mesh-agent/src/kernel/", "bpf(2), netlink and sockets' options that no crate has"),
    ("mesh-common/src/abi/mod.rs", "promises that map types are plain bytes"),
    ("mesh-agent/src/memory.rs", "the allocator's own functions, madvise"),
    ("mesh-agent/src/net.rs", "setsockopt for options that socket2 lacks"),
    ("mesh-agent/src/steer/records.rs", "tokio's registration of a descriptor that others keep open"),
    ("mesh-agent/src/enrol/wakeups.rs", "the same, of inotify"),
    ("mesh-agent/src/enrol/sysctl.rs", "a test that unshares a thread's network namespace"),
    ("mesh-agent/src/admin/rights.rs", "a test that starts processes with fewer capabilities"),
    ("tests/src/namespace.rs", "SO_NETNS_COOKIE, which no crate has"),
    ("tests/src/process.rs", "entering namespace and cgroup between fork and exec"),
    ("tests/src/weather.rs", "TUNSETIFF, which no crate has"),
    ("tests/src/bin/mesh-demo/signals.rs", "sigwait"),
];

/// # Errors
/// Unsafe code elsewhere, or a place that needs none any more.
pub fn check() -> Result<()> {
    let mut unused: BTreeSet<&str> = ALLOWED.iter().map(|(place, _)| *place).collect();
    let mut found = Vec::new();
    for directory in CRATES {
        for file in workspace::sources(directory) {
            let source = fs::read_to_string(&file)?;
            let lines: Vec<usize> = unsafe_lines(&source).collect();
            let shown = file.strip_prefix(workspace::root()).unwrap_or(&file).to_string_lossy().into_owned();
            let place =
                ALLOWED.iter().find(|(place, _)| shown == *place || place.ends_with('/') && shown.starts_with(place));
            match place {
                _ if lines.is_empty() => {}
                Some((place, _)) => drop(unused.remove(place)),
                None => found.extend(lines.iter().map(|line| format!("{shown}:{line}"))),
            }
        }
    }
    if !found.is_empty() {
        bail!(
            "unsafe code in a place that is not in xtask/src/unsafety.rs (use what rustix, socket2 or std offer, or add \
             the file with its reason):\n  {}",
            found.join("\n  ")
        );
    }
    if !unused.is_empty() {
        bail!(
            "xtask/src/unsafety.rs allows what nobody needs any more: {}",
            unused.into_iter().collect::<Vec<_>>().join(", ")
        );
    }
    Ok(())
}

/// Numbers of the lines that have an unsafe block, function, trait, implementation or attribute.
fn unsafe_lines(source: &str) -> impl Iterator<Item = usize> {
    const FORMS: [&str; 6] = ["unsafe {", "unsafe fn ", "unsafe impl", "unsafe trait ", "unsafe extern ", "#[unsafe("];
    source.lines().enumerate().filter_map(|(index, line)| {
        let code = line.split("//").next().unwrap_or_default();
        let is_unsafe = FORMS.iter().any(|form| {
            // A word of its own, and no text in quotes.
            code.match_indices(form)
                .any(|(at, _)| !code[..at].ends_with(|before: char| before.is_alphanumeric() || "_\"".contains(before)))
        });
        is_unsafe.then_some(index + 1)
    })
}

#[cfg(test)]
mod tests {
    use super::{check, unsafe_lines};

    #[test]
    fn unsafe_code_is_where_it_may_be() {
        check().unwrap();
    }

    #[test]
    fn unsafe_code_is_found_and_talk_of_it_is_not() {
        // Put in afterwards, because this file is looked at too.
        let source = "let x = UN { f() };\n// UN { f() }\nlet words = [\"UN\", \"UN { \"];\npub UN fn f() {}\nis_UN { }\n\
                      UN impl<T> Plain for T {}\n    #[UN(no_mangle)]\n";
        assert_eq!(unsafe_lines(&source.replace("UN", "unsafe")).collect::<Vec<_>>(), [1, 4, 6, 7]);
    }
}
