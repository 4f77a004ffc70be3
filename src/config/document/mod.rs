//! A YAML or JSON document as a tree in which every value knows its place in the file.

mod json;
mod yaml;

pub use json::parse_json;
pub use yaml::{Duplicate, Parsed, parse_yaml};

use super::diagnostic::{Position, quote};

/// Deepest nesting of collections that is read.
pub const MAX_DEPTH: usize = 64;

/// Most values a document may have once aliases are expanded; 64 characters of text count as one
/// more, so that a small file cannot ask for much memory.
pub const MAX_NODES: usize = 4_000_000;

/// A value and where it begins.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The first character of the value; of the anchored original for an alias.
    pub position: Position,
    /// The value.
    pub value: Value,
}

/// A value of a document.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `null`, `~` or nothing.
    Null,
    /// A boolean.
    Bool(bool),
    /// An integer that fits.
    Int(i64),
    /// Any other number.
    Float(f64),
    /// A text.
    String(String),
    /// A sequence.
    Seq(Vec<Node>),
    /// A mapping in file order; no key twice.
    Map(Vec<Entry>),
}

/// One entry of a mapping.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The key as text: `1: x` has the key `1`.
    pub key: String,
    /// Where the key begins.
    pub key_position: Position,
    /// The value.
    pub value: Node,
}

/// A document that cannot be read at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{position}: {message}")]
pub struct SyntaxError {
    /// Where reading stopped.
    pub position: Position,
    /// Why.
    pub message: String,
}

impl Node {
    /// The entry of this mapping whose key is `key`; `None` also when this is no mapping.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|entry| entry.key == key)
    }

    /// The value under `key`; null counts as absent.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key)
            .map(|entry| &entry.value)
            .filter(|node| !node.is_null())
    }

    /// The entries of a mapping; none for anything else.
    pub fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The items of a sequence; none for anything else.
    pub fn items(&self) -> &[Node] {
        match &self.value {
            Value::Seq(items) => items,
            _ => &[],
        }
    }

    /// The text of a string.
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// An integer; a float without fraction is one too, as in APISIX.
    pub fn as_i64(&self) -> Option<i64> {
        match self.value {
            Value::Int(value) => Some(value),
            // Above 2^53 a float no longer says which integer was meant.
            Value::Float(value)
                if value.fract() == 0.0 && value.abs() <= 9_007_199_254_740_992.0 =>
            {
                Some(value as i64)
            }
            _ => None,
        }
    }

    /// A number.
    pub fn as_f64(&self) -> Option<f64> {
        match self.value {
            Value::Int(value) => Some(value as f64),
            Value::Float(value) => Some(value),
            _ => None,
        }
    }

    /// A boolean.
    pub fn as_bool(&self) -> Option<bool> {
        match self.value {
            Value::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// Whether this is null.
    pub fn is_null(&self) -> bool {
        self.value == Value::Null
    }

    /// Whether this is a mapping, or the empty sequence that Lua cannot tell from one.
    pub fn is_object(&self) -> bool {
        match &self.value {
            Value::Map(_) => true,
            Value::Seq(items) => items.is_empty(),
            _ => false,
        }
    }

    /// Whether this is a sequence, or the empty mapping that Lua cannot tell from one.
    pub fn is_list(&self) -> bool {
        match &self.value {
            Value::Seq(_) => true,
            Value::Map(entries) => entries.is_empty(),
            _ => false,
        }
    }

    /// What this is, for messages: `the string "x"`, `a mapping`.
    pub fn describe(&self) -> String {
        match &self.value {
            Value::Null => "null".to_string(),
            Value::Bool(value) => format!("the boolean {value}"),
            Value::Int(value) => format!("the integer {value}"),
            Value::Float(value) => format!("the number {value}"),
            Value::String(text) => format!("the string {}", quote(text)),
            Value::Seq(_) => "a list".to_string(),
            Value::Map(_) => "a mapping".to_string(),
        }
    }

    /// What kind of value this is, for messages that must not show it.
    pub fn describe_kind(&self) -> &'static str {
        match &self.value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Int(_) => "an integer",
            Value::Float(_) => "a number",
            Value::String(_) => "a string",
            Value::Seq(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }

    /// The tree without positions, ready for `serde_yaml::from_value`.
    pub fn to_yaml(&self) -> serde_yaml::Value {
        match &self.value {
            Value::Null => serde_yaml::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Int(value) => (*value).into(),
            Value::Float(value) => (*value).into(),
            Value::String(text) => text.as_str().into(),
            Value::Seq(items) => {
                serde_yaml::Value::Sequence(items.iter().map(Node::to_yaml).collect())
            }
            Value::Map(entries) => serde_yaml::Value::Mapping(
                entries
                    .iter()
                    .map(|entry| (entry.key.as_str().into(), entry.value.to_yaml()))
                    .collect(),
            ),
        }
    }
}

/// Removes all but the last entry of every key and returns the removed ones.
pub(crate) fn last_of_each_key(entries: &mut Vec<Entry>) -> Vec<Entry> {
    let mut seen = std::collections::HashSet::with_capacity(entries.len());
    let later: Vec<bool> = entries
        .iter()
        .rev()
        .map(|entry| !seen.insert(entry.key.as_str()))
        .collect();
    if !later.contains(&true) {
        return Vec::new();
    }
    let mut removed = Vec::new();
    let mut kept = Vec::with_capacity(entries.len());
    for (entry, drop) in entries.drain(..).zip(later.into_iter().rev()) {
        if drop { &mut removed } else { &mut kept }.push(entry);
    }
    *entries = kept;
    removed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integral_floats_are_integers() {
        let node = |value| Node {
            position: Position::START,
            value,
        };
        assert_eq!(node(Value::Float(4.0)).as_i64(), Some(4));
        assert_eq!(node(Value::Float(4.5)).as_i64(), None);
        assert_eq!(node(Value::Float(1e300)).as_i64(), None);
        assert_eq!(node(Value::Float(f64::NAN)).as_i64(), None);
        assert_eq!(node(Value::Int(4)).as_f64(), Some(4.0));
    }

    #[test]
    fn the_last_of_each_key_stays() {
        let parsed = parse_json("{\"a\":1,\"b\":2,\"a\":3}").unwrap();
        assert_eq!(
            parsed.root.to_yaml(),
            serde_yaml::from_str::<serde_yaml::Value>("{b: 2, a: 3}").unwrap()
        );
        assert_eq!(parsed.duplicates.len(), 1);
    }
}
