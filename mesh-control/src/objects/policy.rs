//! AuthorizationPolicy: who may open a connection. Reads every term that can be judged when a connection opens and
//! refuses the others with the reason: a term that is read but not enforced would open what its author closed.
//! Validation follows Istio's. Source: istio/istio pkg/config/validation/validation.go.

use std::collections::BTreeMap;

use super::{
    fields::{Fields, Problems},
    metadata::{self, Metadata},
    terms::{Terms, read_condition, read_operation, read_source},
};

/// An AuthorizationPolicy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    /// `metadata`.
    pub metadata: Metadata,
    /// Labels of the workloads it holds for; empty: all of its namespace.
    pub selector: BTreeMap<String, String>,
    /// True for DENY, false for ALLOW.
    pub is_deny: bool,
    /// Only logs what it would have done.
    pub is_dry_run: bool,
    /// Any of them has to match.
    pub rules: Vec<Rule>,
}

/// All clauses have to match; inside a clause, any of the terms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// One for `from`, one for `to`, one for each `when`.
    pub clauses: Vec<Vec<Terms>>,
}

/// Reads an AuthorizationPolicy.
pub fn read(object: &mut Fields<'_>) -> Option<AuthorizationPolicy> {
    let problems = object.problems();
    let metadata = metadata::read(object, true)?;
    let is_dry_run = dry_run(&metadata, problems);
    let mut policy =
        AuthorizationPolicy { selector: BTreeMap::new(), is_deny: false, is_dry_run, rules: Vec::new(), metadata };
    object.accept(&["status"]);
    // Without `spec` the policy is an ALLOW without rules: it allows nothing.
    let Some(mut spec) = object.map("spec") else { return Some(policy) };
    policy.selector = read_selector(&mut spec);
    policy.is_deny = read_action(&mut spec);
    for name in ["targetRef", "targetRefs"] {
        spec.refuse(name, "policies for waypoints and gateways are not supported; select workloads with spec.selector");
    }
    if policy.is_deny && !spec.has("rules") {
        problems.push(
            spec.at(),
            "spec.rules",
            "a DENY policy without rules denies nothing; to deny everything write `rules: [{}]`",
        );
    }
    policy.rules = spec.maps("rules").into_iter().map(|rule| read_rule(rule, &policy.metadata.namespace)).collect();
    spec.refuse("provider", "external authorizers (CUSTOM) are not supported");
    spec.finish();
    Some(policy)
}

fn dry_run(metadata: &Metadata, problems: &Problems) -> bool {
    match metadata.annotations.get("istio.io/dry-run").map(String::as_str) {
        None | Some("" | "false" | "False" | "FALSE" | "f" | "F" | "0") => false,
        Some("true" | "True" | "TRUE" | "t" | "T" | "1") => true,
        Some(other) => {
            let reason = format!("{other:?} is neither \"true\" nor \"false\"");
            problems.push(metadata.at, "metadata.annotations[istio.io/dry-run]", reason);
            false
        }
    }
}

/// Reads `selector.matchLabels`.
pub fn read_selector(spec: &mut Fields<'_>) -> BTreeMap<String, String> {
    let Some(mut selector) = spec.map("selector") else { return BTreeMap::new() };
    let problems = selector.problems();
    let labels = selector.labels("matchLabels");
    for (name, value) in &labels {
        if name.is_empty() || name.contains('*') || value.contains('*') {
            let reason = format!("{name:?}: {value:?}: a label is matched exactly; no wildcards, no empty name");
            problems.push(selector.at(), selector.path_of("matchLabels"), reason);
        }
    }
    selector.finish();
    labels
}

fn read_action(spec: &mut Fields<'_>) -> bool {
    let Some(action) = spec.text("action") else { return false };
    let reason = match action.value.as_str() {
        "ALLOW" => return false,
        "DENY" => return true,
        "AUDIT" => "AUDIT is not supported; the annotation istio.io/dry-run logs what a policy would do".to_owned(),
        "CUSTOM" => "external authorizers (CUSTOM) are not supported".to_owned(),
        other => format!("{other:?} is not one of ALLOW, DENY"),
    };
    action.refuse(spec.problems(), reason);
    false
}

fn read_rule(mut fields: Fields<'_>, namespace: &str) -> Rule {
    let mut rule = Rule::default();
    for (list, item) in [("from", "source"), ("to", "operation")] {
        if !fields.has(list) {
            continue;
        }
        let at = fields.at();
        let entries = fields.maps(list);
        if entries.is_empty() {
            fields.problems().push(at, fields.path_of(list), "must not be empty; leave it out to match everything");
        }
        let clause = entries.into_iter().map(|entry| read_entry(entry, item, namespace)).collect();
        rule.clauses.push(clause);
    }
    for condition in fields.maps("when") {
        rule.clauses.push(vec![read_condition(condition, namespace)]);
    }
    fields.finish();
    rule
}

fn read_entry(mut entry: Fields<'_>, item: &str, namespace: &str) -> Terms {
    let problems = entry.problems();
    if !entry.has(item) {
        problems.push(entry.at(), entry.path_of(item), "is required");
    }
    let mut terms = Terms::default();
    if let Some(mut fields) = entry.map(item) {
        if fields.names().is_empty() {
            problems.push(fields.at(), entry.path_of(item), "must not be empty: it would never match");
        }
        match item {
            "source" => read_source(&mut fields, &mut terms, namespace),
            _ => read_operation(&mut fields, &mut terms),
        }
        fields.finish();
    }
    entry.finish();
    terms
}
