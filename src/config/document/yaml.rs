//! YAML text to a positioned tree.

use std::collections::{HashMap, HashSet};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, StrInput, Tag};

use super::{Entry, MAX_DEPTH, MAX_NODES, Node, SyntaxError, Value, last_of_each_key};
use crate::config::diagnostic::{At, Position, quote};
use crate::config::scalar;
use crate::config::substitute::SourceMap;

/// A document and what was odd about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// The document; null when the text has none.
    pub root: Node,
    /// Keys that a mapping has more than once; the last one counts, as in APISIX.
    pub duplicates: Vec<Duplicate>,
    /// Where a second document begins, which nobody reads.
    pub second_document: Option<Position>,
}

/// A key that is written again later in its mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Duplicate {
    /// Path of the value that does not count.
    pub path: String,
    /// Where its key stands.
    pub position: Position,
    /// The key.
    pub key: String,
}

/// Reads the first document of `text`.
///
/// Plain scalars are typed as in YAML 1.1 ([`scalar`]), anchors, aliases and merge keys (`<<`) are
/// expanded. `map` leads positions back to the text the operator edits, where variables were
/// replaced.
///
/// # Errors
/// Syntax errors, and documents that are deeper than [`MAX_DEPTH`] or have more than [`MAX_NODES`]
/// values.
pub fn parse_yaml(text: &str, map: Option<&SourceMap>) -> Result<Parsed, SyntaxError> {
    Builder {
        map,
        stack: Vec::new(),
        anchors: HashMap::new(),
        cost: 0,
        root: None,
        duplicates: Vec::new(),
    }
    .build(text)
}

/// A finished anchored node, with what its copies cost.
struct Anchored {
    node: Node,
    cost: usize,
    depth: usize,
}

/// A collection that is being read.
struct Frame {
    position: Position,
    anchor: usize,
    /// Cost of the document when the collection began.
    cost: usize,
    /// Deepest nesting seen inside, in levels below this one.
    depth: usize,
    kind: Kind,
}

enum Kind {
    Seq(Vec<Node>),
    Map {
        entries: Vec<Entry>,
        key: Option<(String, Position)>,
        /// Values of `<<` keys in order.
        merges: Vec<Node>,
        /// The pending key is a merge key.
        merging: bool,
    },
}

struct Builder<'a> {
    map: Option<&'a SourceMap>,
    stack: Vec<Frame>,
    anchors: HashMap<usize, Anchored>,
    cost: usize,
    root: Option<Node>,
    duplicates: Vec<Duplicate>,
}

impl Builder<'_> {
    fn build(mut self, text: &str) -> Result<Parsed, SyntaxError> {
        let mut parser: Parser<'_, StrInput<'_>> = Parser::new_from_str(text);
        let mut documents = 0;
        let mut second_document = None;
        while let Some(event) = parser.next_event() {
            let (event, span) = event.map_err(|error| self.scan_error(&error))?;
            let position = self.position(&span.start);
            match event {
                Event::StreamEnd => break,
                Event::Nothing | Event::StreamStart | Event::DocumentEnd => {}
                Event::DocumentStart(_) => {
                    documents += 1;
                    if documents > 1 {
                        second_document = Some(position);
                        break;
                    }
                }
                Event::Alias(id) => self.alias(id, position)?,
                Event::Scalar(text, style, anchor, tag) => {
                    self.scalar(text.into_owned(), style, anchor, tag.as_deref(), position)?;
                }
                Event::SequenceStart(anchor, _) => {
                    self.open(position, anchor, Kind::Seq(Vec::new()))?;
                }
                Event::MappingStart(anchor, _) => {
                    let kind = Kind::Map {
                        entries: Vec::new(),
                        key: None,
                        merges: Vec::new(),
                        merging: false,
                    };
                    self.open(position, anchor, kind)?;
                }
                Event::SequenceEnd | Event::MappingEnd => self.close()?,
            }
        }
        Ok(Parsed {
            root: self.root.unwrap_or(Node {
                position: Position::START,
                value: Value::Null,
            }),
            duplicates: self.duplicates,
            second_document,
        })
    }

    fn position(&self, marker: &Marker) -> Position {
        match self.map {
            Some(map) => map.position(marker.index()),
            None => Position {
                line: u32::try_from(marker.line()).unwrap_or(u32::MAX).max(1),
                column: u32::try_from(marker.col())
                    .unwrap_or(u32::MAX)
                    .saturating_add(1),
            },
        }
    }

    fn scan_error(&self, error: &ScanError) -> SyntaxError {
        SyntaxError {
            position: self.position(error.marker()),
            message: error.info().to_string(),
        }
    }

    /// Counts `cost` more values.
    fn spend(&mut self, cost: usize, position: Position) -> Result<(), SyntaxError> {
        self.cost = self.cost.saturating_add(cost);
        if self.cost > MAX_NODES {
            return Err(SyntaxError {
                position,
                message: format!("the document has more than {MAX_NODES} values"),
            });
        }
        Ok(())
    }

    fn check_depth(&self, more: usize, position: Position) -> Result<(), SyntaxError> {
        if self.stack.len() + more > MAX_DEPTH {
            return Err(SyntaxError {
                position,
                message: format!("nested more than {MAX_DEPTH} levels deep"),
            });
        }
        Ok(())
    }

    fn open(&mut self, position: Position, anchor: usize, kind: Kind) -> Result<(), SyntaxError> {
        self.check_depth(1, position)?;
        let cost = self.cost;
        self.spend(1, position)?;
        self.stack.push(Frame {
            position,
            anchor,
            cost,
            depth: 0,
            kind,
        });
        Ok(())
    }

    fn close(&mut self) -> Result<(), SyntaxError> {
        let Some(frame) = self.stack.pop() else {
            return Ok(());
        };
        let value = match frame.kind {
            Kind::Seq(items) => Value::Seq(items),
            Kind::Map {
                mut entries,
                merges,
                ..
            } => {
                for removed in last_of_each_key(&mut entries) {
                    self.duplicates.push(Duplicate {
                        path: self.path_of(&removed.key),
                        position: removed.key_position,
                        key: removed.key,
                    });
                }
                for merge in merges {
                    merge_into(&mut entries, merge)?;
                }
                Value::Map(entries)
            }
        };
        let node = Node {
            position: frame.position,
            value,
        };
        let depth = frame.depth + 1;
        if frame.anchor != 0 {
            self.anchors.insert(
                frame.anchor,
                Anchored {
                    node: node.clone(),
                    cost: self.cost - frame.cost,
                    depth,
                },
            );
            // The copy that is kept for aliases is memory as well.
            let cost = self.cost - frame.cost;
            self.spend(cost, frame.position)?;
        }
        self.attach(node, depth, None)
    }

    fn alias(&mut self, id: usize, position: Position) -> Result<(), SyntaxError> {
        let Some(anchored) = self.anchors.get(&id) else {
            return Err(SyntaxError {
                position,
                message: "the alias stands inside the value it names".to_string(),
            });
        };
        let (cost, depth) = (anchored.cost, anchored.depth);
        self.check_depth(depth, position)?;
        self.spend(cost, position)?;
        if let Some(node) = self.anchors.get(&id).map(|anchored| anchored.node.clone()) {
            self.attach(node, depth, None)?;
        }
        Ok(())
    }

    fn scalar(
        &mut self,
        text: String,
        style: ScalarStyle,
        anchor: usize,
        tag: Option<&Tag>,
        position: Position,
    ) -> Result<(), SyntaxError> {
        let cost = 1 + text.len() / 64;
        self.spend(cost, position)?;
        if anchor == 0 && self.wants_key() {
            let merging = text == "<<" && style == ScalarStyle::Plain;
            self.set_key(text, position, merging);
            return Ok(());
        }
        let key = (self.wants_key()).then(|| text.clone());
        let node = Node {
            position,
            value: typed(text, style, tag),
        };
        if anchor != 0 {
            let node = node.clone();
            self.anchors.insert(
                anchor,
                Anchored {
                    node,
                    cost,
                    depth: 0,
                },
            );
        }
        self.attach(node, 0, key)
    }

    /// Whether the next value is the key of a mapping.
    fn wants_key(&self) -> bool {
        matches!(
            self.stack.last().map(|frame| &frame.kind),
            Some(Kind::Map { key: None, .. })
        )
    }

    fn set_key(&mut self, text: String, position: Position, merge: bool) {
        if let Some(Frame {
            kind: Kind::Map { key, merging, .. },
            ..
        }) = self.stack.last_mut()
        {
            *key = Some((text, position));
            *merging = merge;
        }
    }

    /// Puts a finished node where it belongs; `text` is what it reads as when it is a key.
    fn attach(
        &mut self,
        node: Node,
        depth: usize,
        text: Option<String>,
    ) -> Result<(), SyntaxError> {
        if self.wants_key() {
            let text = text
                .or_else(|| key_text(&node.value))
                .ok_or_else(|| SyntaxError {
                    position: node.position,
                    message: "the key of a mapping must not be a list or a mapping".to_string(),
                })?;
            self.set_key(text, node.position, false);
            return Ok(());
        }
        let Some(frame) = self.stack.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        frame.depth = frame.depth.max(depth);
        match &mut frame.kind {
            Kind::Seq(items) => items.push(node),
            Kind::Map {
                entries,
                key,
                merges,
                merging,
            } => {
                if let Some((key, key_position)) = key.take() {
                    if std::mem::take(merging) {
                        merges.push(node);
                    } else {
                        entries.push(Entry {
                            key,
                            key_position,
                            value: node,
                        });
                    }
                }
            }
        }
        // A parent learns the depth when this frame closes.
        Ok(())
    }

    /// The path of `key` in the mapping that was just taken off the stack.
    fn path_of(&self, key: &str) -> String {
        let mut path = String::new();
        for frame in &self.stack {
            let step = match &frame.kind {
                Kind::Seq(items) => At::Root.index(items.len()).to_string(),
                Kind::Map { key, .. } => match key {
                    Some((key, _)) => At::Root.key(key).to_string(),
                    None => continue,
                },
            };
            join(&mut path, &step);
        }
        join(&mut path, &At::Root.key(key).to_string());
        path
    }
}

fn join(path: &mut String, step: &str) {
    if !path.is_empty() && !step.starts_with('[') {
        path.push('.');
    }
    path.push_str(step);
}

/// A scalar by its tag and style.
fn typed(text: String, style: ScalarStyle, tag: Option<&Tag>) -> Value {
    if let Some(tag) = tag.filter(|tag| tag.is_yaml_core_schema()) {
        match tag.suffix.as_str() {
            "str" | "binary" => return Value::String(text),
            "null" => return Value::Null,
            // `!!int "9100"` and the like: what the text is when it stands unquoted.
            "int" | "float" | "bool" => return scalar::plain(text.trim()),
            _ => {}
        }
    }
    match (style, tag) {
        // `! text` is a string whatever it looks like.
        (ScalarStyle::Plain, Some(tag)) if tag.handle.is_empty() && tag.suffix == "!" => {
            Value::String(text)
        }
        (ScalarStyle::Plain, _) => scalar::plain(&text),
        _ => Value::String(text),
    }
}

/// A scalar as the key of a mapping.
fn key_text(value: &Value) -> Option<String> {
    match value {
        Value::Null => Some("null".to_string()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Int(value) => Some(value.to_string()),
        Value::Float(value) => Some(value.to_string()),
        Value::String(text) => Some(text.clone()),
        Value::Seq(_) | Value::Map(_) => None,
    }
}

/// Adds to `entries` what a merge key brings; what is there already stays.
fn merge_into(entries: &mut Vec<Entry>, merge: Node) -> Result<(), SyntaxError> {
    let sources = match merge.value {
        Value::Map(_) => vec![merge],
        Value::Seq(items) => items,
        Value::Null => return Ok(()),
        _ => {
            return Err(SyntaxError {
                position: merge.position,
                message: format!(
                    "the merge key << needs a mapping or a list of mappings, found {}",
                    merge.describe()
                ),
            });
        }
    };
    let mut present: HashSet<String> = entries.iter().map(|entry| entry.key.clone()).collect();
    for source in sources {
        let position = source.position;
        let Value::Map(more) = source.value else {
            return Err(SyntaxError {
                position,
                message: format!("the merge key {} needs mappings", quote("<<")),
            });
        };
        for entry in more {
            if present.insert(entry.key.clone()) {
                entries.push(entry);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "yaml_tests.rs"]
mod tests;
