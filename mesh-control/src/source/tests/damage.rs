//! Damaged manifests: whatever a file holds, reading it ends, never panics, and answers with places inside the file.

use proptest::prelude::*;

use super::{EVERYTHING, read};
use crate::{
    compile::{Foundation, compile},
    testing::TempFolder,
};

/// What is done to one line of a good manifest.
#[derive(Clone, Debug)]
enum Damage {
    Remove,
    Repeat,
    Indent(usize),
    Cut(usize),
    Put(usize, String),
    Swap(String),
}

fn damage() -> impl Strategy<Value = (usize, Damage)> {
    let scrap = prop_oneof![
        prop::sample::select(vec![
            "[",
            "]",
            "{",
            "}",
            ":",
            "- ",
            "&a ",
            "*a",
            "<<: *a",
            "!!int ",
            "|",
            ">",
            "'",
            "\"",
            "#",
            "\t",
            "%YAML 9",
            "---",
            "...",
            "\u{feff}",
            "\0",
            "é",
            "null",
            "~",
            "1e999",
            "-1",
            "99999999999999999999",
            "0x1F",
            ".nan",
            "true"
        ])
        .prop_map(str::to_owned),
        "[ -~]{0,12}",
    ];
    let what = prop_oneof![
        Just(Damage::Remove),
        Just(Damage::Repeat),
        (0..8_usize).prop_map(Damage::Indent),
        (0..60_usize).prop_map(Damage::Cut),
        (0..60_usize, scrap.clone()).prop_map(|(at, text)| Damage::Put(at, text)),
        scrap.prop_map(Damage::Swap),
    ];
    (0..EVERYTHING.lines().count(), what)
}

fn damaged(damages: &[(usize, Damage)]) -> String {
    let mut lines: Vec<String> = EVERYTHING.lines().map(str::to_owned).collect();
    for (index, damage) in damages {
        let line = &mut lines[*index];
        let at = |wanted: usize, line: &str| {
            (0..=wanted.min(line.len())).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0)
        };
        match damage {
            Damage::Remove => line.clear(),
            Damage::Repeat => *line = format!("{line}\n{line}"),
            Damage::Indent(by) => line.insert_str(0, &" ".repeat(*by)),
            Damage::Cut(wanted) => line.truncate(at(*wanted, line)),
            Damage::Put(wanted, text) => line.insert_str(at(*wanted, line), text),
            // The value of a key, so that a wrong type stands where a right one was.
            Damage::Swap(text) => match line.split_once(": ") {
                Some((key, _)) => *line = format!("{key}: {text}"),
                None => line.clone_from(text),
            },
        }
    }
    lines.join("\n")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_manifest_is_read_to_its_end(damages in prop::collection::vec(damage(), 1..4)) {
        let text = damaged(&damages);
        let folder = TempFolder::new();
        folder.write("a.yaml", &text);
        let desired = read(&mut folder.source());
        let lines = u32::try_from(text.lines().count()).expect("few lines");
        for problem in desired.reports.iter().flat_map(|report| &report.problems) {
            prop_assert!(problem.at.line <= lines + 1, "{problem} of {lines} lines");
            prop_assert!(!problem.reason.is_empty() && !problem.reason.contains('\n'), "{problem:?}");
        }
        let resources = compile(&desired.objects, &Foundation { trust_domain: "t".into(), trust_bundle: Vec::new() });
        for name in resources.workloads.values().flat_map(|workload| &workload.authorization_policies) {
            prop_assert!(resources.authorizations.contains_key(name), "{name} is named and not there");
        }
        // The file's policy is either in force as it is read, or everything in its scope is denied; it is never gone,
        // unless the damage took its kind or its name.
        let is_named = text.contains("\nkind: AuthorizationPolicy\nmetadata: {name: web, namespace: shop}\n");
        if is_named && !desired.objects.policies.contains_key(&crate::objects::metadata::Name::new("shop", "web")) {
            let is_split = desired.objects.refused.iter().any(|refused| refused.kind == "AuthorizationPolicy");
            prop_assert!(is_split, "{text}");
        }
    }
}
