//! What can still be told of a policy that cannot be read, so that everything in its scope is denied until it can:
//! a policy nobody understands must never open what it may have been written to close.

use std::collections::BTreeMap;

use super::{
    document::{self, Chunk, Key, Node, Value},
    problem::Position,
};
use crate::objects::{
    POLICIES, RefusedPolicy,
    metadata::{Name, is_label, is_subdomain},
};

/// The policy that a well-formed but refused document was meant to be; `None` when it is no policy or has no name.
pub fn of_document(node: &Node) -> Option<RefusedPolicy> {
    let kind = POLICIES.into_iter().find(|kind| text(node, "kind") == Some(kind))?;
    let metadata = node.child("metadata")?;
    let name = text(metadata, "name").filter(|name| is_subdomain(name))?;
    let namespace = text(metadata, "namespace").unwrap_or("default");
    let path = ["spec", "selector", "matchLabels"];
    let labels = path.iter().try_fold(node, |node, name| node.child(name));
    let selector = labels.and_then(selector).unwrap_or_default();
    is_label(namespace).then(|| RefusedPolicy { kind, name: Name::new(namespace, name), selector, at: node.at })
}

/// The same for a document with a syntax error: each of its top-level keys is read as if it stood alone, so that an
/// error in one leaves the others. A second `kind` or `apiVersion` begins another object: a forgotten `---` is such an
/// error too. Where `metadata` itself is broken, its lines are looked at one by one. Documents all on one line, as JSON
/// may be, tell nothing.
pub fn of_text(chunk: Chunk<'_>) -> Vec<RefusedPolicy> {
    let mut fragments: Vec<Fragment<'_>> = Vec::new();
    for section in sections(chunk) {
        let (map, is_whole) = parse_start(section);
        let begins = |fragment: &Fragment<'_>| {
            map.iter().any(|(key, _)| matches!(key.name.as_str(), "kind" | "apiVersion") && fragment.has(&key.name))
        };
        if fragments.last().is_none_or(begins) {
            fragments.push(Fragment {
                whole: Vec::new(),
                started: Vec::new(),
                texts: Vec::new(),
                line: section.lines_before + 1,
            });
        }
        if let Some(fragment) = fragments.last_mut() {
            fragment.texts.push(section.text);
            let fresh: Vec<_> = map.into_iter().filter(|(key, _)| !fragment.has(&key.name)).collect();
            if is_whole { fragment.whole.extend(fresh) } else { fragment.started.extend(fresh) }
        }
    }
    fragments.into_iter().filter_map(Fragment::refused).collect()
}

/// Lines of a broken section that are tried: names and selectors stand at its start.
const TRIED_LINES: usize = 32;

/// The keys of a section, and whether that is all of it: else of the most lines from its start that can be read.
fn parse_start(section: Chunk<'_>) -> (Vec<(Key, Node)>, bool) {
    let map = |text| match document::parse(Chunk { text, ..section }) {
        Ok(Node { value: Value::Map(map), .. }) => Some(map),
        _ => None,
    };
    if let Some(map) = map(section.text) {
        return (map, true);
    }
    let ends = section.text.match_indices('\n').map(|(end, _)| end + 1).take(TRIED_LINES).collect::<Vec<_>>();
    let started = ends.into_iter().rev().find_map(|end| map(&section.text[..end]));
    (started.unwrap_or_default(), false)
}

/// What is left of one object of a broken document.
struct Fragment<'a> {
    whole: Vec<(Key, Node)>,
    started: Vec<(Key, Node)>,
    texts: Vec<&'a str>,
    line: u32,
}

impl Fragment<'_> {
    fn has(&self, name: &str) -> bool {
        self.whole.iter().chain(&self.started).any(|(key, _)| key.name == name)
    }

    /// From keys that can be read whole; else from the lines, which know a namespace behind the error; else from
    /// what can be read.
    fn refused(mut self) -> Option<RefusedPolicy> {
        let at = Position { line: self.line, column: 1 };
        let whole = Node { at, value: Value::Map(self.whole.clone()) };
        self.whole.append(&mut self.started);
        let all = Node { at, value: Value::Map(self.whole) };
        let of_lines = || of_lines(&self.texts.concat(), text(&all, "kind")?, at);
        of_document(&whole).or_else(of_lines).or_else(|| of_document(&all))
    }
}

/// Runs of lines that begin with a key at the left margin.
fn sections(chunk: Chunk<'_>) -> Vec<Chunk<'_>> {
    let mut sections: Vec<Chunk<'_>> = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 0, 0);
    let mut cut = |range: std::ops::Range<usize>, line: u32| {
        let lines_before = chunk.lines_before.saturating_add(line);
        sections.push(Chunk { text: &chunk.text[range], lines_before });
    };
    for (line, content) in (0_u32..).zip(chunk.text.split_inclusive('\n')) {
        let is_key = content.starts_with(|first: char| first.is_ascii_alphabetic() || first == '"' || first == '\'');
        if is_key && offset > start {
            cut(start..offset, start_line);
            (start, start_line) = (offset, line);
        }
        offset += content.len();
    }
    cut(start..offset, start_line);
    sections
}

/// Name and namespace from the lines below `metadata:`.
fn of_lines(lines: &str, kind: &str, at: Position) -> Option<RefusedPolicy> {
    let kind = POLICIES.into_iter().find(|known| *known == kind)?;
    let (mut name, mut namespace, mut is_in_metadata) = (None, None, false);
    for line in lines.lines() {
        let is_indented = line.starts_with([' ', '\t']);
        let Some((key, value)) = line.trim().split_once(':') else { continue };
        let value = value.split(" #").next().unwrap_or(value).trim().trim_matches(['"', '\'']);
        match (is_indented, key) {
            (false, _) => is_in_metadata = key == "metadata",
            (true, "name") if is_in_metadata && name.is_none() => name = Some(value),
            (true, "namespace") if is_in_metadata && namespace.is_none() => namespace = Some(value),
            _ => {}
        }
    }
    let (name, namespace) = (name.filter(|name| is_subdomain(name))?, namespace.unwrap_or("default"));
    let refused = RefusedPolicy { kind, name: Name::new(namespace, name), selector: BTreeMap::new(), at };
    is_label(namespace).then_some(refused)
}

fn text<'a>(node: &'a Node, name: &str) -> Option<&'a str> {
    match &node.child(name)?.value {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

/// Labels that are all text without wildcards; any other selector may have meant more workloads than it seems.
fn selector(node: &Node) -> Option<BTreeMap<String, String>> {
    let Value::Map(entries) = &node.value else { return None };
    let label = |(key, value): &(Key, Node)| match &value.value {
        Value::Text(text) if !text.contains('*') && !key.name.contains('*') => Some((key.name.clone(), text.clone())),
        _ => None,
    };
    entries.iter().map(label).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::document;

    fn first(text: &str) -> Chunk<'_> {
        document::split(text)[0]
    }

    fn one(text: &str) -> RefusedPolicy {
        let mut found = of_text(first(text));
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }

    #[test]
    fn a_refused_document_keeps_its_name_and_selector() {
        let text = "kind: AuthorizationPolicy\nmetadata: {name: a, namespace: b}\nspec: {selector: {matchLabels: {app: x}}, rulez: 1}";
        let refused = of_document(&document::parse(first(text)).expect("yaml")).expect("a policy");
        assert_eq!((refused.name.to_string().as_str(), refused.selector["app"].as_str()), ("b/a", "x"));
    }

    #[test]
    fn a_broken_text_still_tells_its_namespace() {
        let text = "kind: PeerAuthentication\nmetadata:\n  name: strict # why\n  namespace: \"shop\"\nspec:\n  mtls: {mode: STRICT\nx: [";
        assert!(document::parse(first(text)).is_err());
        let refused = one(text);
        assert_eq!((refused.kind, refused.name.to_string().as_str()), ("PeerAuthentication", "shop/strict"));
    }

    #[test]
    fn an_error_in_one_key_leaves_the_others() {
        let head = "kind: AuthorizationPolicy\nmetadata: {name: a, namespace: b}\n";
        let selected = format!("{head}spec: {{selector: {{matchLabels: {{app: x}}}}}}\nstatus: [");
        let refused = one(&selected);
        assert_eq!((refused.name.to_string().as_str(), refused.selector["app"].as_str()), ("b/a", "x"));
        let other = head.replace("name: a", "name: c");
        let both: Vec<_> =
            of_text(first(&format!("{head}{other}"))).iter().map(|refused| refused.name.to_string()).collect();
        assert_eq!(both, ["b/a", "b/c"], "a forgotten --- hides nothing");
        let broken = one(&format!("{head}spec:\n  selector: {{matchLabels: {{app: x}}}}\n  rules: ["));
        assert_eq!(broken.selector, BTreeMap::new(), "what a broken spec selects is not known");
        let inside = "kind: AuthorizationPolicy\nmetadata:\n  name: a\n  labels: {\nspec: {}\n";
        assert_eq!(one(inside).name.to_string(), "default/a");
    }

    #[test]
    fn other_kinds_leave_nothing_behind() {
        assert_eq!(of_text(first("kind: Pod\nmetadata:\n  name: a\nspec: [")), []);
        assert_eq!(of_document(&document::parse(first("kind: Pod\nmetadata: {name: a}")).expect("yaml")), None);
    }
}
