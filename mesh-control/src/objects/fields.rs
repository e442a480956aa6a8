//! Reads the fields of a mapping one by one and refuses what is left over: nothing in a file is accepted and ignored
//! without being named here. Collects every problem of a document rather than stopping at the first.

use std::{cell::RefCell, collections::BTreeMap, net::IpAddr};

use crate::source::{
    document::{Node, Value},
    problem::{Position, Problem},
};

/// Where the problems of one document are collected.
#[derive(Debug, Default)]
pub struct Problems {
    refused: RefCell<Vec<Problem>>,
    unknown: RefCell<Vec<Problem>>,
    is_checked: bool,
}

impl Problems {
    /// Of an object that an API server has checked against its own schema: a field that is unknown here is not its
    /// author's mistake but of a newer Kubernetes. It is told and does not refuse the object.
    pub fn of_checked_object() -> Problems {
        Problems { is_checked: true, ..Problems::default() }
    }

    /// Records one.
    pub fn push(&self, at: Position, field: impl Into<String>, reason: impl Into<String>) {
        self.refused.borrow_mut().push(Problem { at, field: field.into(), reason: reason.into() });
    }

    fn push_unknown(&self, at: Position, field: String) {
        match self.is_checked {
            false => self.push(at, field, "unknown field"),
            true => {
                let reason = "is not known to this version of the mesh and has no effect".to_owned();
                self.unknown.borrow_mut().push(Problem { at, field, reason });
            }
        }
    }

    /// All that refuse the document, in the order of the file.
    pub fn into_sorted(self) -> Vec<Problem> {
        self.into_parts().0
    }

    /// Those that refuse the document, and the unknown fields of an object that was checked before.
    pub fn into_parts(self) -> (Vec<Problem>, Vec<Problem>) {
        let mut refused = self.refused.into_inner();
        refused.sort_by_key(|problem| problem.at);
        (refused, self.unknown.into_inner())
    }
}

/// A value with its path and place, so that a later check can still name it.
#[derive(Clone, Debug)]
pub struct Spot<T> {
    /// The value.
    pub value: T,
    /// Path of the field inside its object.
    pub path: String,
    /// Place in the file.
    pub at: Position,
}

impl<T> Spot<T> {
    /// Records a problem with this value.
    pub fn refuse(&self, problems: &Problems, reason: impl Into<String>) {
        problems.push(self.at, self.path.clone(), reason);
    }
}

/// The fields of one mapping, each to be read at most once.
pub struct Fields<'a> {
    entries: Vec<(&'a str, Position, &'a Node, bool)>,
    path: String,
    at: Position,
    problems: &'a Problems,
}

impl<'a> Fields<'a> {
    /// The fields of `node`; anything but a mapping is a problem and reads as an empty one.
    pub fn of(node: &'a Node, path: impl Into<String>, problems: &'a Problems) -> Fields<'a> {
        let path = path.into();
        let entries = match &node.value {
            Value::Map(entries) => {
                entries.iter().map(|(key, value)| (key.name.as_str(), key.at, value, false)).collect()
            }
            other => {
                problems.push(node.at, path.clone(), format!("expected a mapping, found {}", other.kind()));
                Vec::new()
            }
        };
        Fields { entries, path, at: node.at, problems }
    }

    /// Where problems of these fields go.
    pub fn problems(&self) -> &'a Problems {
        self.problems
    }

    /// Place of the mapping.
    pub fn at(&self) -> Position {
        self.at
    }

    /// Path of the field `name` of this mapping.
    pub fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// True when the field is there and not null.
    pub fn has(&self, name: &str) -> bool {
        self.entries.iter().any(|(key, _, node, _)| *key == name && node.value != Value::Null)
    }

    /// Takes a field as it is; null counts as absent, as Kubernetes has it.
    pub fn take(&mut self, name: &str) -> Option<Spot<&'a Node>> {
        let path = self.path_of(name);
        let entry = self.entries.iter_mut().find(|(key, ..)| *key == name)?;
        entry.3 = true;
        (entry.2.value != Value::Null).then_some(Spot { value: entry.2, path, at: entry.2.at })
    }

    /// Text, when there is some.
    pub fn text(&mut self, name: &str) -> Option<Spot<String>> {
        let spot = self.take(name)?;
        match &spot.value.value {
            Value::Text(text) => Some(Spot { value: text.clone(), path: spot.path, at: spot.at }),
            other => {
                spot.refuse(self.problems, format!("expected text, found {}", other.kind()));
                None
            }
        }
    }

    /// Text that must be there.
    pub fn required_text(&mut self, name: &str) -> Option<Spot<String>> {
        if !self.has(name) {
            self.problems.push(self.at, self.path_of(name), "is required");
        }
        self.text(name)
    }

    /// Text out of a fixed set, each with its meaning.
    pub fn choice<T: Copy>(&mut self, name: &str, choices: &[(&str, T)]) -> Option<T> {
        let spot = self.text(name)?;
        let found = choices.iter().find(|(text, _)| *text == spot.value).map(|(_, value)| *value);
        if found.is_none() {
            let names: Vec<_> = choices.iter().map(|(text, _)| *text).collect();
            spot.refuse(self.problems, format!("{:?} is not one of {}", spot.value, names.join(", ")));
        }
        found
    }

    /// A whole number within `range`.
    pub fn integer(&mut self, name: &str, range: std::ops::RangeInclusive<i64>) -> Option<i64> {
        let spot = self.take(name)?;
        match spot.value.value {
            Value::Integer(number) if range.contains(&number) => Some(number),
            Value::Integer(number) => {
                spot.refuse(self.problems, format!("{number} is not within {}-{}", range.start(), range.end()));
                None
            }
            ref other => {
                spot.refuse(self.problems, format!("expected a whole number, found {}", other.kind()));
                None
            }
        }
    }

    /// A port, 1 to 65535.
    pub fn port(&mut self, name: &str) -> Option<u16> {
        self.integer(name, 1..=65_535).and_then(|port| u16::try_from(port).ok())
    }

    /// A boolean.
    pub fn boolean(&mut self, name: &str) -> Option<bool> {
        let spot = self.take(name)?;
        match spot.value.value {
            Value::Boolean(value) => Some(value),
            ref other => {
                spot.refuse(self.problems, format!("expected true or false, found {}", other.kind()));
                None
            }
        }
    }

    /// An IP address.
    pub fn address(&mut self, name: &str) -> Option<IpAddr> {
        let spot = self.text(name)?;
        address(&spot, self.problems)
    }

    /// The items of a list; absent reads as empty.
    pub fn list(&mut self, name: &str) -> Vec<Spot<&'a Node>> {
        let Some(spot) = self.take(name) else { return Vec::new() };
        match &spot.value.value {
            Value::List(items) => items
                .iter()
                .enumerate()
                .map(|(index, item)| Spot { value: item, path: format!("{}[{index}]", spot.path), at: item.at })
                .collect(),
            other => {
                spot.refuse(self.problems, format!("expected a list, found {}", other.kind()));
                Vec::new()
            }
        }
    }

    /// A list of texts.
    pub fn texts(&mut self, name: &str) -> Vec<Spot<String>> {
        let mut texts = Vec::new();
        for item in self.list(name) {
            match &item.value.value {
                Value::Text(text) => texts.push(Spot { value: text.clone(), path: item.path, at: item.at }),
                other => item.refuse(self.problems, format!("expected text, found {}", other.kind())),
            }
        }
        texts
    }

    /// A list of IP addresses.
    pub fn addresses(&mut self, name: &str) -> Vec<IpAddr> {
        let problems = self.problems;
        self.texts(name).iter().filter_map(|spot| address(spot, problems)).collect()
    }

    /// The items of a list, each of them a mapping.
    pub fn maps(&mut self, name: &str) -> Vec<Fields<'a>> {
        let problems = self.problems;
        self.list(name).into_iter().map(|item| Fields::of(item.value, item.path, problems)).collect()
    }

    /// A mapping inside this one.
    pub fn map(&mut self, name: &str) -> Option<Fields<'a>> {
        let spot = self.take(name)?;
        Some(Fields::of(spot.value, spot.path, self.problems))
    }

    /// A mapping from text to text, as labels are.
    pub fn labels(&mut self, name: &str) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::new();
        let Some(mut fields) = self.map(name) else { return labels };
        for key in fields.names() {
            if let Some(value) = fields.text(key) {
                labels.insert(key.to_owned(), value.value);
            }
        }
        fields.finish();
        labels
    }

    /// The names of all fields.
    pub fn names(&self) -> Vec<&'a str> {
        self.entries.iter().map(|(name, ..)| *name).collect()
    }

    /// Accepts fields that Kubernetes users write and that do not concern the mesh.
    pub fn accept(&mut self, names: &[&str]) {
        for (name, _, _, is_read) in &mut self.entries {
            *is_read |= names.contains(name);
        }
    }

    /// Refuses a field that is known but not supported.
    pub fn refuse(&mut self, name: &str, reason: &str) {
        let path = self.path_of(name);
        if let Some(entry) = self.entries.iter_mut().find(|(key, _, node, _)| *key == name && node.value != Value::Null)
        {
            entry.3 = true;
            self.problems.push(entry.1, path, reason);
        }
    }

    /// Refuses every field that was not read.
    pub fn finish(self) {
        for (name, at, _, is_read) in &self.entries {
            if !is_read {
                self.problems.push_unknown(*at, self.path_of(name));
            }
        }
    }
}

/// Reads an IP address; an IPv4 address written inside IPv6 is read as IPv4.
pub fn address(spot: &Spot<String>, problems: &Problems) -> Option<IpAddr> {
    match spot.value.parse::<IpAddr>() {
        Ok(address) => Some(address.to_canonical()),
        Err(_) => {
            spot.refuse(problems, format!("{:?} is not an IP address", spot.value));
            None
        }
    }
}
