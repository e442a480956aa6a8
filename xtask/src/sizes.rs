//! Sizes of files and functions. Long ones are reported; on the path of a connection, which a reader must be able to
//! hold in the head, a long function is an error. Relies on rustfmt's indentation, which the lint checks first.

use std::{fs, path::Path};

use anyhow::{Result, bail};

use crate::{shell, workspace};

const FILE_LINES: usize = 400;
const FUNCTION_LINES: usize = 60;
const PATH: &str = "mesh-agent/src/path";
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

/// A function and how many lines it takes, from its signature to its closing brace.
#[derive(Debug, PartialEq)]
struct Function<'a> {
    name: &'a str,
    line: usize,
    lines: usize,
}

/// Reports long files and functions.
///
/// # Errors
/// When a function on the path is longer than the limit.
pub fn check() -> Result<()> {
    let mut failures = Vec::new();
    for directory in CRATES {
        for file in workspace::sources(directory) {
            let source = fs::read_to_string(&file)?;
            let shown = file.strip_prefix(workspace::root()).unwrap_or(&file);
            if source.lines().count() > FILE_LINES {
                shell::say(&format!("sizes: {}: {} lines", shown.display(), source.lines().count()));
            }
            for function in functions(&source).filter(|function| function.lines > FUNCTION_LINES) {
                let text = describe(shown, &function);
                shell::say(&format!("sizes: {text}"));
                // A table test is as long as its table.
                let is_test = shown.components().any(|part| part.as_os_str() == "tests");
                if shown.starts_with(PATH) && !is_test {
                    failures.push(text);
                }
            }
        }
    }
    if !failures.is_empty() {
        bail!("functions on the path of a connection over {FUNCTION_LINES} lines: {}", failures.join(", "));
    }
    Ok(())
}

fn describe(file: &Path, function: &Function<'_>) -> String {
    format!("{}:{}: fn {} has {} lines", file.display(), function.line, function.name, function.lines)
}

/// The functions of a formatted source file.
fn functions(source: &str) -> impl Iterator<Item = Function<'_>> {
    let lines: Vec<&str> = source.lines().collect();
    (0..source.lines().count()).filter_map(move |start| {
        let name = function_name(lines[start])?;
        Some(Function { name, line: start + 1, lines: length(&lines[start..])? })
    })
}

/// Lines from a signature to the closing brace; `None` for a declaration and for a function on one line.
fn length(lines: &[&str]) -> Option<usize> {
    let indentation = lines[0].len() - lines[0].trim_start().len();
    if lines[0].ends_with(['}', ';']) {
        return None;
    }
    for (index, line) in lines.iter().enumerate().skip(1) {
        let text = line.trim_start();
        if text.is_empty() || line.len() - text.len() > indentation {
            continue;
        }
        match text {
            "}" => return Some(index + 1),
            // The end of a signature that takes several lines.
            _ if text.starts_with(')') && text.ends_with(';') => return None,
            _ if text.starts_with(')') || text == "where" || text == "{" => {}
            // A text over several lines may reach further left; anything else at this depth means there was no body.
            _ if line.len() - text.len() == indentation && indentation > 0 => return None,
            _ => {}
        }
    }
    None
}

fn function_name(line: &str) -> Option<&str> {
    let mut words = line.trim_start().split(' ');
    let qualifiers = ["pub", "pub(crate)", "pub(super)", "async", "unsafe", "const", "extern", "\"C\""];
    let word = words.find(|word| !qualifiers.contains(word))?;
    (word == "fn").then(|| words.next())??.split(['(', '<']).next()
}

#[cfg(test)]
mod tests {
    use super::{Function, functions};

    #[test]
    fn functions_are_measured_from_signature_to_brace() {
        let source = "fn one() {\n    a();\n}\n\nimpl X {\n    pub(crate) async fn two<T>(\n        a: T,\n    ) {\n        b();\n    }\n    fn three() {}\n}\n";
        let found: Vec<_> = functions(source).collect();
        assert_eq!(found, [Function { name: "one", line: 1, lines: 3 }, Function { name: "two", line: 6, lines: 5 },]);
    }
}
