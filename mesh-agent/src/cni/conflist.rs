//! Lists of CNI configurations as text: with the plug-in in them, and without. Never touches a file.

use mesh_api::CNI_VERSIONS;
use serde_json::{Map, Value, json};

use crate::config::PLUGIN;

/// Fields of a lone configuration that belong to the whole list. Source: CNI specification, section 1.
const OF_LIST: [&str; 3] = ["cniVersion", "name", "disableCheck"];

/// Why a text is no list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ListError {
    /// It is no JSON; perhaps it is being written.
    #[error("is no JSON: {0}")]
    Json(String),
    /// The plug-in does not speak it, and would refuse every pod.
    #[error("is of cniVersion {0:?}, which the plug-in does not speak: {all} are", all = CNI_VERSIONS.join(", "))]
    Version(String),
    /// It has no plug-ins.
    #[error("has no plug-in that makes a network")]
    Empty,
}

/// A list of configurations, or a lone one made into a list.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct List(Map<String, Value>);

impl List {
    /// Reads either kind.
    pub(crate) fn read(text: &str) -> Result<Self, ListError> {
        let value: Value = serde_json::from_str(text).map_err(|error| ListError::Json(error.to_string()))?;
        let Value::Object(fields) = value else { return Err(ListError::Empty) };
        let list = Self(if fields.contains_key("plugins") { fields } else { around(fields) });
        let is_plugin = |entry: &Value| entry["type"].as_str().is_some_and(|name| !name.is_empty());
        let is_usable = list.plugins().iter().any(|entry| is_plugin(entry) && !is_ours(entry));
        if is_usable { Ok(list) } else { Err(ListError::Empty) }
    }

    /// Whether the plug-in can be called with it.
    ///
    /// # Errors
    /// [`ListError::Version`].
    pub(crate) fn is_spoken(&self) -> Result<(), ListError> {
        let version = self.0.get("cniVersion").and_then(Value::as_str).unwrap_or("0.1.0");
        match CNI_VERSIONS.contains(&version) {
            true => Ok(()),
            false => Err(ListError::Version(version.to_owned())),
        }
    }

    fn plugins(&self) -> &[Value] {
        self.0.get("plugins").and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// Whether the plug-in is in it, once and with just this entry.
    pub(crate) fn holds(&self, entry: &Value) -> bool {
        let ours: Vec<&Value> = self.plugins().iter().filter(|entry| is_ours(entry)).collect();
        ours == [entry]
    }

    /// Whether the plug-in is in it, with whatever entry.
    pub(crate) fn holds_any(&self) -> bool {
        self.plugins().iter().any(is_ours)
    }

    /// With this entry, behind all others.
    pub(crate) fn with(&self, entry: &Value) -> Self {
        let mut with = self.without();
        if let Some(plugins) = with.0.get_mut("plugins").and_then(Value::as_array_mut) {
            plugins.push(entry.clone());
        }
        with
    }

    /// Without the plug-in.
    pub(crate) fn without(&self) -> Self {
        let mut without = self.clone();
        if let Some(plugins) = without.0.get_mut("plugins").and_then(Value::as_array_mut) {
            plugins.retain(|entry| !is_ours(entry));
        }
        without
    }

    /// As it is written.
    pub(crate) fn text(&self) -> String {
        // Maps of text always can be written.
        let mut text = serde_json::to_string_pretty(&self.0).unwrap_or_default();
        text.push('\n');
        text
    }
}

fn is_ours(entry: &Value) -> bool {
    entry["type"] == PLUGIN
}

fn around(mut lone: Map<String, Value>) -> Map<String, Value> {
    let mut list: Map<String, Value> =
        OF_LIST.iter().filter_map(|name| Some(((*name).to_owned(), lone.remove(*name)?))).collect();
    list.insert("plugins".into(), json!([lone]));
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Value {
        json!({"type": "mesh-cni", "socket": "/run/mesh/admin.sock", "excludeNamespaces": ["kube-system"]})
    }

    #[test]
    fn the_plug_in_goes_behind_all_others_and_out_again() {
        let text = r#"{"name": "pods", "cniVersion": "1.0.0", "plugins": [{"type": "ptp"}, {"type": "portmap"}]}"#;
        let list = List::read(text).unwrap();
        assert!(!list.holds(&entry()) && !list.holds_any());
        let with = List::read(&list.with(&entry()).text()).unwrap();
        assert!(with.holds(&entry()));
        assert_eq!(
            with.plugins().iter().map(|entry| &entry["type"]).collect::<Vec<_>>(),
            ["ptp", "portmap", "mesh-cni"]
        );
        assert_eq!(with.with(&entry()), with);
        assert_eq!(with.without(), list);
    }

    #[test]
    fn another_entry_of_ours_is_replaced() {
        let text = r#"{"plugins": [{"type": "mesh-cni", "socket": "/old"}, {"type": "ptp"}, {"type": "mesh-cni"}]}"#;
        let list = List::read(text).unwrap();
        assert!(list.holds_any() && !list.holds(&entry()));
        assert_eq!(list.with(&entry()).plugins(), [json!({"type": "ptp"}), entry()]);
    }

    #[test]
    fn numbers_of_others_stay_what_they_are() {
        // Digits that a parser in a hurry takes for a neighbour of the number.
        let text = r#"{"plugins": [{"type": "ptp", "weight": 4.444448888888889e44}]}"#;
        let list = List::read(text).unwrap();
        assert!(list.text().contains("4.444448888888889e+44"), "{}", list.text());
    }

    #[test]
    fn a_lone_configuration_becomes_a_list() {
        let text = r#"{"cniVersion": "0.3.1", "name": "net", "type": "bridge", "ipam": {"type": "host-local"}}"#;
        let list = List::read(text).unwrap().with(&entry());
        let expected = json!({"cniVersion": "0.3.1", "name": "net",
            "plugins": [{"type": "bridge", "ipam": {"type": "host-local"}}, entry()]});
        assert_eq!(serde_json::from_str::<Value>(&list.text()).unwrap(), expected);
    }

    #[test]
    fn what_makes_no_network_is_left_alone() {
        let cases = ["", "{", "[]", "1", "{}", r#"{"plugins": []}"#, r#"{"plugins": [{"type": "mesh-cni"}]}"#];
        for text in cases {
            assert!(List::read(text).is_err(), "{text}");
        }
    }
}
