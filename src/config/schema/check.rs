//! Judges a tree by a table: all problems at once.

use std::path::Path;

use super::{Field, Kind, List, Object, Rest, Rule, Text};
use crate::config::diagnostic::{At, Diagnostic, Position, Problems, quote};
use crate::config::document::{Node, Value};
use crate::config::names::did_you_mean;

/// Judges `node` by `object` and returns everything that is wrong.
pub fn check(node: &Node, object: &'static Object, file: &Path) -> Vec<Diagnostic> {
    let mut problems = Problems::new(file);
    Checker::new(&mut problems).object(node, object, &At::Root, false);
    problems.finish()
}

/// Judges trees by tables and collects what it finds.
pub struct Checker<'p> {
    problems: &'p mut Problems,
    /// A null is as good as no entry (`config.yaml`), not a value of the wrong type.
    pub null_is_absent: bool,
    /// Paths of the fields that were there and have no effect.
    pub without_effect: Vec<String>,
}

impl<'p> Checker<'p> {
    /// A checker that adds to `problems`.
    pub fn new(problems: &'p mut Problems) -> Self {
        Checker {
            problems,
            null_is_absent: false,
            without_effect: Vec::new(),
        }
    }

    /// Judges a mapping.
    pub fn object(&mut self, node: &Node, object: &'static Object, at: &At<'_>, secret: bool) {
        if !node.is_object() {
            return self.wrong_type(node, "a mapping", at, secret);
        }
        for entry in node.entries() {
            let here = at.key(&entry.key);
            if self.null_is_absent && entry.value.is_null() {
                if let (None, Rest::Refuse | Rest::Warn) = (object.field(&entry.key), object.rest) {
                    self.unknown_field(&entry.key, entry.key_position, object, &here);
                }
                continue;
            }
            match object.field(&entry.key) {
                Some(field) => self.field(&entry.value, entry.key_position, field, &here, secret),
                None => match object.rest {
                    Rest::Allow => {}
                    Rest::Each(kind) => self.value(&entry.value, kind, "value", &here, secret),
                    Rest::Refuse | Rest::Warn => {
                        self.unknown_field(&entry.key, entry.key_position, object, &here);
                    }
                },
            }
        }
        for field in object.fields.iter().filter(|field| field.required) {
            if !self.present(node, field.name) {
                self.problems.error(
                    node.position,
                    at,
                    format!("property \"{}\" is required", field.name),
                );
            }
        }
        for rule in object.rules {
            self.rule(node, rule, at);
        }
    }

    fn present(&self, node: &Node, name: &str) -> bool {
        node.entry(name)
            .is_some_and(|entry| !(self.null_is_absent && entry.value.is_null()))
    }

    fn field(
        &mut self,
        value: &Node,
        key_position: Position,
        field: &'static Field,
        at: &At<'_>,
        secret: bool,
    ) {
        if !field.has_effect {
            self.without_effect.push(at.to_string());
        }
        if value.is_null() && !matches!(field.kind, Kind::Any) {
            // An empty value has no place of its own.
            let message = format!("expected {}, found null", expected(&field.kind));
            return self.problems.error(key_position, at, message);
        }
        self.value(value, &field.kind, field.name, at, secret || field.secret);
    }

    fn unknown_field(
        &mut self,
        key: &str,
        position: Position,
        object: &'static Object,
        at: &At<'_>,
    ) {
        let names = object.fields.iter().map(|field| field.name);
        let message = format!("unknown field {}{}", quote(key), did_you_mean(key, names));
        match object.rest {
            Rest::Warn => self.problems.warn(position, at, message),
            _ => self.problems.error(position, at, message),
        }
    }

    /// Judges a value; `noun` names it in messages.
    pub fn value(
        &mut self,
        node: &Node,
        kind: &'static Kind,
        noun: &str,
        at: &At<'_>,
        secret: bool,
    ) {
        if !admits(kind, node) {
            return self.wrong_type(node, &expected(kind), at, secret);
        }
        match kind {
            Kind::Any | Kind::Bool | Kind::Elsewhere(_) => {}
            Kind::Int { min, max } => {
                if let Some(value) = node.as_i64() {
                    self.integer(value, *min, *max, noun, node.position, at);
                }
            }
            Kind::Number { min, above, max } => {
                if let Some(value) = node.as_f64() {
                    self.number(value, (*min, *above, *max), noun, node.position, at);
                }
            }
            Kind::Text(bounds) => {
                if let Some(text) = node.as_str() {
                    self.text(text, bounds, noun, node.position, at, secret);
                }
            }
            Kind::Choice(names) => {
                if let Some(text) = node.as_str().filter(|text| !names.contains(text)) {
                    let message = format!(
                        "unknown {noun} {}{} (one of {})",
                        quote(text),
                        did_you_mean(text, names.iter().copied()),
                        names.join(", ")
                    );
                    self.problems.error(node.position, at, message);
                }
            }
            Kind::IntChoice(values) => {
                if let Some(value) = node.as_i64().filter(|value| !values.contains(value)) {
                    let known: Vec<_> = values.iter().map(i64::to_string).collect();
                    let message = format!("unknown {noun} {value} (one of {})", known.join(", "));
                    self.problems.error(node.position, at, message);
                }
            }
            Kind::Object(object) => self.object(node, object, at, secret),
            Kind::List(list) => self.list(node, list, noun, at, secret),
            Kind::Either(kinds) => {
                if let Some(kind) = kinds.iter().find(|kind| admits(kind, node)) {
                    self.value(node, kind, noun, at, secret);
                }
            }
        }
    }

    fn integer(
        &mut self,
        value: i64,
        min: i64,
        max: i64,
        noun: &str,
        position: Position,
        at: &At<'_>,
    ) {
        if (min..=max).contains(&value) {
            return;
        }
        let message = match max {
            i64::MAX => format!("{noun} {value} is too small (at least {min})"),
            _ => format!("{noun} {value} is out of range ({min}-{max})"),
        };
        self.problems.error(position, at, message);
    }

    fn number(
        &mut self,
        value: f64,
        (min, above, max): (f64, bool, f64),
        noun: &str,
        position: Position,
        at: &At<'_>,
    ) {
        let message = if !value.is_finite() {
            format!("{noun} must be a finite number")
        } else if value > max {
            format!("{noun} {value} is out of range ({min}-{max})")
        } else if above && value <= min {
            format!("{noun} {value} must be greater than {min}")
        } else if value < min && max.is_finite() {
            format!("{noun} {value} is out of range ({min}-{max})")
        } else if value < min {
            format!("{noun} {value} is too small (at least {min})")
        } else {
            return;
        };
        self.problems.error(position, at, message);
    }

    fn text(
        &mut self,
        text: &str,
        bounds: &Text,
        noun: &str,
        position: Position,
        at: &At<'_>,
        secret: bool,
    ) {
        if bounds.references && is_reference(text) {
            return;
        }
        if bounds.min > 0 || bounds.max < usize::MAX {
            let length = text.chars().count();
            if length < bounds.min && length == 0 {
                return self
                    .problems
                    .error(position, at, format!("{noun} is empty"));
            }
            if length < bounds.min {
                let message = format!(
                    "{noun} is too short: {length} characters, at least {}",
                    bounds.min
                );
                return self.problems.error(position, at, message);
            }
            if length > bounds.max {
                let message = format!(
                    "{noun} is too long: {length} characters, at most {}",
                    bounds.max
                );
                return self.problems.error(position, at, message);
            }
        }
        if let Some(pattern) = bounds.pattern.filter(|pattern| !(pattern.test)(text)) {
            let message = if secret {
                format!("invalid {noun}: expected {}", pattern.expected)
            } else {
                format!(
                    "invalid {noun} {}: expected {}",
                    quote(text),
                    pattern.expected
                )
            };
            self.problems.error(position, at, message);
        }
    }

    fn list(&mut self, node: &Node, list: &'static List, noun: &str, at: &At<'_>, secret: bool) {
        let items = node.items();
        if items.len() < list.min {
            let message = match items.len() {
                0 => format!("{noun} is an empty list"),
                length => format!("{noun} has {length} items, at least {}", list.min),
            };
            self.problems.error(node.position, at, message);
        }
        if items.len() > list.max {
            let message = format!("{noun} has {} items, at most {}", items.len(), list.max);
            self.problems.error(node.position, at, message);
        }
        for (index, item) in items.iter().enumerate() {
            self.value(item, list.items, noun, &at.index(index), secret);
        }
        if list.unique {
            self.unique(items, at, secret);
        }
    }

    /// Lists that must not repeat hold scalars; other items are left to those who read them.
    fn unique(&mut self, items: &[Node], at: &At<'_>, secret: bool) {
        let mut seen = std::collections::HashSet::new();
        for (index, item) in items.iter().enumerate() {
            let text = match &item.value {
                Value::String(text) => format!("s{text}"),
                Value::Seq(_) | Value::Map(_) => continue,
                _ => item.describe(),
            };
            if !seen.insert(text) {
                let what = if secret {
                    item.describe_kind().to_string()
                } else {
                    item.describe()
                };
                self.problems.error(
                    item.position,
                    &at.index(index),
                    format!("{what} is listed twice"),
                );
            }
        }
    }

    fn wrong_type(&mut self, node: &Node, expected: &str, at: &At<'_>, secret: bool) {
        let found = if secret {
            node.describe_kind().to_string()
        } else {
            node.describe()
        };
        let message = format!("expected {expected}, found {found}");
        self.problems.error(node.position, at, message);
    }

    fn rule(&mut self, node: &Node, rule: &'static Rule, at: &At<'_>) {
        let complete = |names: &[&str]| names.iter().all(|name| self.present(node, name));
        let message = match rule {
            Rule::ExactlyOne(sets) => {
                let written: Vec<String> = sets.iter().map(|names| names.join(" and ")).collect();
                match sets.iter().filter(|names| complete(names)).count() {
                    1 => return,
                    0 => format!("needs {}", written.join(", or ")),
                    _ => format!("takes only one of: {}", written.join("; ")),
                }
            }
            Rule::AnyOf(names) => {
                if names.iter().any(|name| self.present(node, name)) {
                    return;
                }
                format!("needs {}", names.join(" or "))
            }
            Rule::NotTogether(names) => {
                if !complete(names) {
                    return;
                }
                format!("{} exclude each other", names.join(" and "))
            }
            Rule::Needs(first, second) => {
                if !self.present(node, first) || self.present(node, second) {
                    return;
                }
                format!("{first} needs {second}")
            }
            Rule::Unless(field, text, rule) => {
                if node.entry(field).and_then(|entry| entry.value.as_str()) != Some(text) {
                    self.rule(node, rule, at);
                }
                return;
            }
        };
        self.problems.error(node.position, at, message);
    }
}

/// Whether `text` stands for another one: `$env://NAME` and `$secret://…` as in APISIX, or our
/// own `file:///path`.
pub(crate) fn is_reference(text: &str) -> bool {
    let env = text
        .get(..7)
        .is_some_and(|prefix| prefix.eq_ignore_ascii_case("$env://"));
    env || text.starts_with("$secret://") || text.starts_with("file:///")
}

/// Whether the type of `node` is one that `kind` takes.
fn admits(kind: &Kind, node: &Node) -> bool {
    match kind {
        Kind::Any => true,
        Kind::Bool => node.as_bool().is_some(),
        Kind::Int { .. } | Kind::IntChoice(_) => node.as_i64().is_some(),
        Kind::Number { .. } => node.as_f64().is_some(),
        Kind::Text(_) | Kind::Choice(_) => node.as_str().is_some(),
        Kind::Object(_) | Kind::Elsewhere(_) => node.is_object(),
        Kind::List(_) => node.is_list(),
        Kind::Either(kinds) => kinds.iter().any(|kind| admits(kind, node)),
    }
}

/// What `kind` takes, for messages.
fn expected(kind: &Kind) -> String {
    match kind {
        Kind::Any => "a value".to_string(),
        Kind::Bool => "a boolean".to_string(),
        Kind::Int { .. } | Kind::IntChoice(_) => "an integer".to_string(),
        Kind::Number { .. } => "a number".to_string(),
        Kind::Text(_) | Kind::Choice(_) => "a string".to_string(),
        Kind::Object(_) | Kind::Elsewhere(_) => "a mapping".to_string(),
        Kind::List(_) => "a list".to_string(),
        Kind::Either(kinds) => {
            let names: Vec<String> = kinds.iter().map(expected).collect();
            match names.split_last() {
                Some((last, [])) => last.clone(),
                Some((last, before)) => format!("{} or {last}", before.join(", ")),
                None => String::new(),
            }
        }
    }
}
