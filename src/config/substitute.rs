//! `${{VAR}}` and `${{VAR:=default}}`.
//!
//! In `apisix.yaml` they are replaced in the raw text, comments included, before it is parsed; in
//! `config.yaml` and `apisix.json` in every text of the parsed tree, keys included. The default is
//! used only when the variable does not exist: an empty variable is a value.

use std::borrow::Cow;

use super::diagnostic::{Position, quote};
use super::document::{Node, Value, last_of_each_key};

/// A problem with a variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VariableProblem {
    /// Where `${{` stands, or the value in which it stands.
    pub position: Position,
    /// What is wrong.
    pub message: String,
}

/// A text with its variables replaced.
#[derive(Debug, Clone)]
pub struct Substituted<'a> {
    /// The text to parse.
    pub text: Cow<'a, str>,
    /// Leads positions back; `None` when nothing was replaced.
    pub map: Option<SourceMap>,
    /// What should be told although it does no harm.
    pub warnings: Vec<VariableProblem>,
}

/// Leads from a text with replaced variables back to the text that people edit.
#[derive(Debug, Clone)]
pub struct SourceMap {
    /// Offsets in characters, ascending.
    pieces: Vec<Piece>,
    /// Offset in characters of the first character of every line of the original.
    lines: Vec<usize>,
}

#[derive(Debug, Clone, Copy)]
struct Piece {
    /// Where it begins in the new text.
    new: usize,
    /// Where it begins in the original.
    original: usize,
    /// Copied character by character, or the value of a variable.
    copied: bool,
}

impl SourceMap {
    /// The place in the original of character `index` (from 0) of the new text; inside a replaced
    /// variable, the place of its `${{`.
    pub fn position(&self, index: usize) -> Position {
        let after = self.pieces.partition_point(|piece| piece.new <= index);
        let original = match after.checked_sub(1).and_then(|last| self.pieces.get(last)) {
            Some(piece) if piece.copied => piece.original + (index - piece.new),
            Some(piece) => piece.original,
            None => index,
        };
        place(&self.lines, original)
    }
}

fn place(lines: &[usize], index: usize) -> Position {
    let line = lines.partition_point(|start| *start <= index).max(1);
    let start = lines.get(line - 1).copied().unwrap_or(0);
    Position {
        line: u32::try_from(line).unwrap_or(u32::MAX),
        column: u32::try_from(index - start + 1).unwrap_or(u32::MAX),
    }
}

/// Lines as YAML has them: they end with `\n`, `\r\n`, or a `\r` alone.
fn line_starts(text: &str) -> Vec<usize> {
    let mut starts = vec![0];
    let mut characters = text.chars().enumerate().peekable();
    while let Some((index, character)) = characters.next() {
        let followed = matches!(characters.peek(), Some((_, '\n')));
        if character == '\n' || (character == '\r' && !followed) {
            starts.push(index + 1);
        }
    }
    starts
}

/// A `${{…}}` in a text; offsets in bytes.
struct Reference<'a> {
    start: usize,
    end: usize,
    name: &'a str,
    default: Option<&'a str>,
}

/// Lua's `%s`.
fn is_blank(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\n' | '\r' | '\u{b}' | '\u{c}')
}

/// The first reference at or after byte `from`.
fn next_reference(text: &str, mut from: usize) -> Option<Reference<'_>> {
    loop {
        let start = from + text.get(from..)?.find("${{")?;
        let inside = text[start + 3..].trim_start_matches(is_blank);
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if !inside.starts_with(is_word) {
            from = start + 1;
            continue;
        }
        let length = inside.find("}}")?;
        let end = text.len() - inside.len() + length + 2;
        let body = inside[..length].trim_end_matches(is_blank);
        let (name, default) = match body.split_once(":=") {
            Some((name, default)) => (name, Some(default.trim_matches(is_blank))),
            None => (body, None),
        };
        return Some(Reference {
            start,
            end,
            name,
            default,
        });
    }
}

impl<'a> Reference<'a> {
    fn value(&self, env: &dyn Fn(&str) -> Option<String>) -> Result<Cow<'a, str>, String> {
        match (env(self.name), self.default) {
            (Some(value), _) => Ok(Cow::Owned(value)),
            (None, Some(default)) => Ok(Cow::Borrowed(default)),
            (None, None) => Err(missing(self.name)),
        }
    }

    /// APISIX takes a blank before `:=` for a part of the name, so that no variable is ever found.
    fn warning(&self) -> Option<String> {
        let trimmed = self.name.trim_end_matches(is_blank);
        (self.default.is_some() && trimmed != self.name).then(|| {
            format!(
                "the blank before := makes APISIX and this program look for a variable named \
                 {}, so the default always counts; put no blank there",
                quote(self.name)
            )
        })
    }
}

/// The message about a variable that is not set. A name with blanks and the like is quoted, so that
/// the message stays one line.
fn missing(name: &str) -> String {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if plain {
        format!(
            "environment variable {name} is not set and has no default (write \
             ${{{{{name}:=default}}}})"
        )
    } else {
        format!(
            "environment variable {} is not set and has no default",
            quote(name)
        )
    }
}

/// Replaces the variables in the raw text of `apisix.yaml`.
///
/// # Errors
/// Every variable that is not set and has no default.
pub fn substitute_text<'a>(
    text: &'a str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Substituted<'a>, Vec<VariableProblem>> {
    let Some(mut reference) = next_reference(text, 0) else {
        return Ok(Substituted {
            text: Cow::Borrowed(text),
            map: None,
            warnings: Vec::new(),
        });
    };
    let lines = line_starts(text);
    let mut out = String::with_capacity(text.len());
    let mut pieces = Vec::new();
    let (mut warnings, mut missing) = (Vec::new(), Vec::new());
    let (mut copied_to, mut new, mut original) = (0, 0, 0);
    loop {
        let between = &text[copied_to..reference.start];
        pieces.push(Piece {
            new,
            original,
            copied: true,
        });
        out.push_str(between);
        let characters = between.chars().count();
        new += characters;
        original += characters;
        let position = place(&lines, original);
        if let Some(message) = reference.warning() {
            warnings.push(VariableProblem { position, message });
        }
        match reference.value(env) {
            Ok(value) => {
                pieces.push(Piece {
                    new,
                    original,
                    copied: false,
                });
                out.push_str(&value);
                new += value.chars().count();
            }
            Err(message) => missing.push(VariableProblem { position, message }),
        }
        original += text[reference.start..reference.end].chars().count();
        copied_to = reference.end;
        match next_reference(text, copied_to) {
            Some(next) => reference = next,
            None => break,
        }
    }
    pieces.push(Piece {
        new,
        original,
        copied: true,
    });
    out.push_str(&text[copied_to..]);
    if !missing.is_empty() {
        return Err(missing);
    }
    Ok(Substituted {
        text: Cow::Owned(out),
        map: Some(SourceMap { pieces, lines }),
        warnings,
    })
}

/// Replaces the variables in every text and key of a parsed tree. A value in which something was
/// replaced becomes a number or a boolean when it then looks like one. Returns warnings.
///
/// # Errors
/// Every variable that is not set and has no default.
pub fn substitute_tree(
    root: &mut Node,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<VariableProblem>, Vec<VariableProblem>> {
    let mut walk = Walk {
        env,
        warnings: Vec::new(),
        missing: Vec::new(),
    };
    walk.node(root);
    if walk.missing.is_empty() {
        Ok(walk.warnings)
    } else {
        Err(walk.missing)
    }
}

struct Walk<'a> {
    env: &'a dyn Fn(&str) -> Option<String>,
    warnings: Vec<VariableProblem>,
    missing: Vec<VariableProblem>,
}

impl Walk<'_> {
    fn node(&mut self, node: &mut Node) {
        match &mut node.value {
            Value::String(text) => {
                if let Some(new) = self.text(text, node.position) {
                    node.value = converted(new);
                }
            }
            Value::Seq(items) => items.iter_mut().for_each(|item| self.node(item)),
            Value::Map(entries) => {
                let mut renamed = false;
                for entry in entries.iter_mut() {
                    if let Some(new) = self.text(&entry.key, entry.key_position) {
                        entry.key = new;
                        renamed = true;
                    }
                    self.node(&mut entry.value);
                }
                if renamed {
                    last_of_each_key(entries);
                }
            }
            _ => {}
        }
    }

    /// The text with its variables replaced; `None` when it has none.
    fn text(&mut self, text: &str, position: Position) -> Option<String> {
        let mut reference = next_reference(text, 0)?;
        let mut out = String::new();
        let mut copied_to = 0;
        loop {
            out.push_str(&text[copied_to..reference.start]);
            if let Some(message) = reference.warning() {
                self.warnings.push(VariableProblem { position, message });
            }
            match reference.value(self.env) {
                Ok(value) => out.push_str(&value),
                Err(message) => self.missing.push(VariableProblem { position, message }),
            }
            copied_to = reference.end;
            match next_reference(text, copied_to) {
                Some(next) => reference = next,
                None => break,
            }
        }
        out.push_str(&text[copied_to..]);
        Some(out)
    }
}

/// What Lua's `tonumber` and APISIX make of a replaced text.
fn converted(text: String) -> Value {
    match text.as_str() {
        "true" => return Value::Bool(true),
        "false" => return Value::Bool(false),
        _ => {}
    }
    let trimmed = text.trim_matches(is_blank);
    let (negative, digits) = match trimmed.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, trimmed.strip_prefix('+').unwrap_or(trimmed)),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return Value::String(text);
    }
    let hex = digits
        .strip_prefix("0x")
        .or_else(|| digits.strip_prefix("0X"));
    let integer = match hex {
        Some(hex) if !hex.starts_with(['+', '-']) => i64::from_str_radix(hex, 16),
        _ => digits.parse::<i64>(),
    };
    if let Ok(value) = integer {
        return Value::Int(if negative { -value } else { value });
    }
    match digits.parse::<f64>() {
        Ok(value) => Value::Float(if negative { -value } else { value }),
        Err(_) => Value::String(text),
    }
}

#[cfg(test)]
#[path = "substitute_tests.rs"]
mod tests;
