//! JSON of an API server to the trees that manifests are read into. There are no lines in it: every place is the default
//! one, and whoever reports a problem names the object instead.

use serde_json::Value as Json;

use super::{
    document::{Key, Node, Value},
    problem::Position,
};

/// The tree of a JSON value.
pub fn tree(json: Json) -> Node {
    let value = match json {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Boolean(value),
        // A number beyond 64 bits with sign is in no field that the mesh reads.
        Json::Number(number) => {
            number.as_i64().map_or(Value::Float(number.as_f64().unwrap_or(f64::NAN)), Value::Integer)
        }
        Json::String(text) => Value::Text(text),
        Json::Array(items) => Value::List(items.into_iter().map(tree).collect()),
        Json::Object(entries) => Value::Map(
            entries.into_iter().map(|(name, value)| (Key { at: Position::default(), name }, tree(value))).collect(),
        ),
    };
    Node { at: Position::default(), value }
}

#[cfg(test)]
mod tests {
    use super::tree;
    use crate::source::document;

    #[test]
    fn json_reads_as_the_same_text_does_in_yaml() {
        let text = r#"{"a": [1, -2.5, "x"], "b": {"c": null, "d": true}}"#;
        let mut written = document::parse(document::split(text)[0]).expect("JSON is YAML");
        forget_places(&mut written);
        assert_eq!(tree(serde_json::from_str(text).expect("JSON")), written);
    }

    fn forget_places(node: &mut document::Node) {
        node.at = Default::default();
        match &mut node.value {
            document::Value::List(items) => items.iter_mut().for_each(forget_places),
            document::Value::Map(entries) => entries.iter_mut().for_each(|(key, value)| {
                key.at = Default::default();
                forget_places(value);
            }),
            _ => {}
        }
    }
}
