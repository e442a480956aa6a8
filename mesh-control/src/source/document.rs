//! YAML text to trees whose every key and value knows its line and column. Splits a file into its documents first, so
//! that a syntax error in one of them does not hide the others. Knows nothing of Kubernetes objects.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::Spanned;

use super::problem::{Position, Problem};

/// A value and where it stands in its file.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Line and column of the value's first character.
    pub at: Position,
    /// The value itself.
    pub value: Value,
}

/// What YAML can say, without tags and anchors (those are resolved while reading).
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `null`, `~` or nothing.
    Null,
    /// `true` or `false`.
    Boolean(bool),
    /// A whole number.
    Integer(i64),
    /// Any other number.
    Float(f64),
    /// Text, quoted or plain.
    Text(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping in the order of the file; keys are unique.
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    /// Line and column of the key.
    pub at: Position,
    /// The key's text.
    pub name: String,
}

impl Value {
    /// What a person calls this type of value.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Null => "nothing",
            Value::Boolean(_) => "a boolean",
            Value::Integer(_) => "a whole number",
            Value::Float(_) => "a number with a fraction",
            Value::Text(_) => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

/// One document of a file: its text, and the number of lines before it.
#[derive(Clone, Copy, Debug)]
pub struct Chunk<'a> {
    /// The document's own text, from its `---` on.
    pub text: &'a str,
    /// Lines of the file before `text`.
    pub lines_before: u32,
}

/// Cuts a file at lines that start a document (`---`). YAML allows such a line nowhere else: block scalars are
/// indented at the top level, and quoted ones must not contain it.
pub fn split(text: &str) -> Vec<Chunk<'_>> {
    let mut chunks = Vec::new();
    let (mut start, mut offset, mut line, mut start_line) = (0, 0, 0, 0);
    for content in text.split_inclusive('\n') {
        let marker = content.strip_prefix("---");
        if marker.is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace)) && offset > start {
            chunks.push(Chunk { text: &text[start..offset], lines_before: start_line });
            (start, start_line) = (offset, line);
        }
        offset += content.len();
        line += 1;
    }
    chunks.push(Chunk { text: &text[start..], lines_before: start_line });
    chunks.retain(|chunk| !is_blank(chunk.text));
    chunks
}

/// True when there is nothing but white space, comments, directives and document markers.
pub fn is_blank(text: &str) -> bool {
    text.lines().all(|line| {
        let line = line.trim();
        let rest = line.strip_prefix("---").map_or(line, str::trim_start);
        rest.is_empty() || rest == "..." || rest.starts_with('#') || line.starts_with('%')
    })
}

/// Mappings and lists inside each other. Reading recurses, and a thread's stack has to hold that in a debug build too;
/// the deepest Kubernetes objects have about twenty.
const DEEPEST: usize = 32;
/// Values that all aliases of a document may stand for.
const MOST_REPEATED: usize = 100_000;

/// Reads one document.
///
/// # Errors
/// The syntax error with its place in the file; the author of the file is at fault.
pub fn parse(chunk: Chunk<'_>) -> Result<Node, Problem> {
    // The file's size bounds how much a document holds.
    let budget = serde_saphyr::budget! { max_events: usize::MAX, max_nodes: usize::MAX, max_depth: DEEPEST };
    let options = serde_saphyr::options! {
        budget: budget,
        with_snippet: false,
        emit_comments: false,
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MOST_REPEATED },
        // YAML 1.2: only true and false are booleans, so that `n` can be a name.
        strict_booleans: true,
    };
    let mut node: Node = serde_saphyr::from_str_with_options(chunk.text, options).map_err(|error| {
        let at = error.location().map_or(Position { line: 1, column: 1 }, |at| position(&at));
        let reason = error.render_with_formatter(&serde_saphyr::UserMessageFormatter);
        Problem { at: at.below(chunk.lines_before), field: String::new(), reason: sentence(&reason) }
    })?;
    node.shift(chunk.lines_before);
    Ok(node)
}

/// The parser's message on one line, without the place, which is reported beside it.
fn sentence(message: &str) -> String {
    let first = message.lines().find(|line| !line.trim().is_empty()).unwrap_or("not valid YAML");
    let cut = first.find(" at line ").map_or(first, |end| &first[..end]);
    cut.trim().trim_start_matches("error: ").to_owned()
}

fn position(at: &serde_saphyr::Location) -> Position {
    let clamp = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    Position { line: clamp(at.line()), column: clamp(at.column()) }
}

impl Node {
    /// The value of a key of a mapping.
    pub fn child(&self, name: &str) -> Option<&Node> {
        let Value::Map(entries) = &self.value else { return None };
        entries.iter().find(|(key, _)| key.name == name).map(|(_, value)| value)
    }

    /// The items of a list; nothing for any other value.
    pub fn items(&self) -> &[Node] {
        if let Value::List(items) = &self.value { items } else { &[] }
    }

    fn shift(&mut self, lines: u32) {
        self.at = self.at.below(lines);
        match &mut self.value {
            Value::List(items) => items.iter_mut().for_each(|item| item.shift(lines)),
            Value::Map(entries) => entries.iter_mut().for_each(|(key, value)| {
                key.at = key.at.below(lines);
                value.shift(lines);
            }),
            _ => {}
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Node { at: position(&spanned.referenced), value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a YAML value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Boolean(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        i64::try_from(value).map(Value::Integer).map_err(|_| E::custom("the number is too large"))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = sequence.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            let key = Key { at: position(&key.referenced), name: key.value };
            entries.push((key, map.next_value()?));
        }
        Ok(Value::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_and_key_knows_its_line_and_column() {
        let text = "# head\n---\na: 1\n---\nb:\n  c: [x, 'y']\n";
        let chunks = split(text);
        assert_eq!(chunks.len(), 2, "the comment before the first document is not one");
        let node = parse(chunks[1]).expect("valid");
        let Value::Map(entries) = &node.value else { panic!("{node:?}") };
        assert_eq!((entries[0].0.name.as_str(), entries[0].0.at.line, entries[0].0.at.column), ("b", 5, 1));
        let Value::Map(inside) = &entries[0].1.value else { panic!("{node:?}") };
        assert_eq!((inside[0].0.at.line, inside[0].0.at.column), (6, 3));
        let Value::List(items) = &inside[0].1.value else { panic!("{node:?}") };
        assert_eq!((items[1].at.line, items[1].at.column), (6, 10));
    }

    #[test]
    fn scalars_keep_their_types() {
        let text = "{a: 80, b: '80', c: true, d: 'true', e: ~, f: 1.5, g: hello}";
        let node = parse(split(text)[0]).expect("valid");
        let Value::Map(entries) = node.value else { panic!("not a map") };
        let values: Vec<_> = entries.into_iter().map(|(_, node)| node.value).collect();
        let expected = [
            Value::Integer(80),
            Value::Text("80".into()),
            Value::Boolean(true),
            Value::Text("true".into()),
            Value::Null,
            Value::Float(1.5),
            Value::Text("hello".into()),
        ];
        assert_eq!(values, expected);
    }

    #[test]
    fn a_marker_inside_indented_text_does_not_split() {
        let text = "a: |\n  ---\n  x\n--- # next\nb: 1\n";
        assert_eq!(split(text).iter().map(|chunk| chunk.lines_before).collect::<Vec<_>>(), [0, 3]);
    }

    #[test]
    fn a_syntax_error_is_placed_in_the_file() {
        let chunks = split("a: 1\n---\nb: [1\nc: 2\n");
        let problem = parse(chunks[1]).expect_err("unclosed");
        assert!(problem.at.line >= 3, "{problem:?}");
        let twice = parse(split("a: 1\nb: 2\na: 3\n")[0]).expect_err("twice the same key");
        assert_eq!(twice.at.line, 3, "{twice:?}");
    }

    #[test]
    fn a_document_of_endless_depth_is_refused() {
        let flow = |depth: usize| format!("a: {}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(split(&flow(DEEPEST - 2))[0]).is_ok());
        let block: String = (0..2_000).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
        for text in [flow(DEEPEST + 1), flow(100_000), block] {
            assert!(parse(split(&text)[0]).is_err());
        }
    }

    #[test]
    fn aliases_without_end_are_refused() {
        let level = |name: u8, inner: &str| format!("{0}: &{0} [{1}]\n", char::from(name), [inner; 9].join(", "));
        let bomb: String = (b'b'..b'z')
            .fold(level(b'a', "x"), |text, name| text + &level(name, &format!("*{}", char::from(name - 1))));
        assert!(parse(split(&bomb)[0]).is_err());
        assert!(parse(split("a: &x {b: c}\nd: *x\n")[0]).is_ok());
    }
}
