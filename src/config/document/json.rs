//! JSON text to a positioned tree. The syntax is judged by `serde_json`; this module then only has
//! to find its way through a text that is known to be JSON.

use super::{Duplicate, Entry, MAX_DEPTH, Node, Parsed, SyntaxError, Value, last_of_each_key};
use crate::config::diagnostic::{At, Position};

/// Reads a JSON document. Numbers and strings have JSON's types, never YAML's.
///
/// # Errors
/// Syntax errors with `serde_json`'s message, numbers out of range, and documents that are deeper
/// than [`MAX_DEPTH`].
pub fn parse_json(text: &str) -> Result<Parsed, SyntaxError> {
    serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|error| {
        let line = u32::try_from(error.line()).unwrap_or(u32::MAX).max(1);
        let full = error.to_string();
        let message = full
            .rsplit_once(" at line ")
            .map_or(full.as_str(), |(message, _)| message);
        SyntaxError {
            position: Position {
                line,
                column: character_column(text, line, error.column()),
            },
            message: message.to_string(),
        }
    })?;
    let mut reader = Reader {
        text,
        offset: 0,
        position: Position::START,
        depth: 0,
        duplicates: Vec::new(),
    };
    let root = reader.value(&At::Root)?;
    Ok(Parsed {
        root,
        duplicates: reader.duplicates,
        second_document: None,
    })
}

/// `serde_json` counts columns in bytes.
fn character_column(text: &str, line: u32, bytes: usize) -> u32 {
    let characters = text.lines().nth(line as usize - 1).map_or(1, |content| {
        content
            .char_indices()
            .take_while(|(offset, _)| *offset < bytes)
            .count()
            .max(1)
    });
    u32::try_from(characters).unwrap_or(u32::MAX)
}

struct Reader<'a> {
    text: &'a str,
    offset: usize,
    position: Position,
    depth: usize,
    duplicates: Vec<Duplicate>,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.offset).copied()
    }

    /// Goes `bytes` on, counting lines and characters.
    fn advance(&mut self, bytes: usize) -> &'a str {
        let end = self.offset.saturating_add(bytes).min(self.text.len());
        let passed = self.text.get(self.offset..end).unwrap_or_default();
        for character in passed.chars() {
            if character == '\n' {
                self.position.line = self.position.line.saturating_add(1);
                self.position.column = 1;
            } else {
                self.position.column = self.position.column.saturating_add(1);
            }
        }
        self.offset = end;
        passed
    }

    fn blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.advance(1);
        }
    }

    fn error(&self, message: impl Into<String>) -> SyntaxError {
        SyntaxError {
            position: self.position,
            message: message.into(),
        }
    }

    fn value(&mut self, at: &At<'_>) -> Result<Node, SyntaxError> {
        self.blanks();
        let position = self.position;
        let value = match self.peek() {
            Some(b'{') => self.nested(|reader| reader.object(at))?,
            Some(b'[') => self.nested(|reader| reader.array(at))?,
            Some(b'"') => Value::String(self.string()?),
            Some(b't') => {
                self.advance(4);
                Value::Bool(true)
            }
            Some(b'f') => {
                self.advance(5);
                Value::Bool(false)
            }
            Some(b'n') => {
                self.advance(4);
                Value::Null
            }
            Some(_) => self.number()?,
            None => return Err(self.error("the text ends early")),
        };
        Ok(Node { position, value })
    }

    fn nested(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<Value, SyntaxError>,
    ) -> Result<Value, SyntaxError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.error(format!("nested more than {MAX_DEPTH} levels deep")));
        }
        self.advance(1);
        let value = read(self)?;
        self.depth -= 1;
        Ok(value)
    }

    fn object(&mut self, at: &At<'_>) -> Result<Value, SyntaxError> {
        let mut entries = Vec::new();
        loop {
            self.blanks();
            match self.peek() {
                Some(b'}') => {
                    self.advance(1);
                    break;
                }
                Some(b',') => {
                    self.advance(1);
                }
                Some(b'"') => {
                    let key_position = self.position;
                    let key = self.string()?;
                    self.blanks();
                    self.advance(1);
                    let value = self.value(&at.key(&key))?;
                    entries.push(Entry {
                        key,
                        key_position,
                        value,
                    });
                }
                _ => return Err(self.error("expected a key")),
            }
        }
        for removed in last_of_each_key(&mut entries) {
            self.duplicates.push(Duplicate {
                path: at.key(&removed.key).to_string(),
                position: removed.key_position,
                key: removed.key,
            });
        }
        Ok(Value::Map(entries))
    }

    fn array(&mut self, at: &At<'_>) -> Result<Value, SyntaxError> {
        let mut items = Vec::new();
        loop {
            self.blanks();
            match self.peek() {
                Some(b']') => {
                    self.advance(1);
                    return Ok(Value::Seq(items));
                }
                Some(b',') => {
                    self.advance(1);
                }
                _ => items.push(self.value(&at.index(items.len()))?),
            }
        }
    }

    fn string(&mut self) -> Result<String, SyntaxError> {
        let bytes = &self.text.as_bytes()[self.offset..];
        let mut length = 1;
        loop {
            match bytes.get(length) {
                Some(b'"') => break,
                Some(b'\\') => length += 2,
                Some(_) => length += 1,
                None => return Err(self.error("the text ends early")),
            }
        }
        let position = self.position;
        let written = self.advance(length + 1);
        if !written.contains('\\') {
            return Ok(written.trim_matches('"').to_string());
        }
        serde_json::from_str(written).map_err(|_| SyntaxError {
            position,
            message: "the string has an escape that stands for no character".to_string(),
        })
    }

    fn number(&mut self) -> Result<Value, SyntaxError> {
        let length = self.text.as_bytes()[self.offset..]
            .iter()
            .take_while(|b| matches!(b, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'))
            .count();
        let position = self.position;
        let written = self.advance(length);
        if let Ok(value) = written.parse::<i64>() {
            return Ok(Value::Int(value));
        }
        match written.parse::<f64>() {
            Ok(value) if value.is_finite() => Ok(Value::Float(value)),
            _ => Err(SyntaxError {
                position,
                message: "number out of range".to_string(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse_json(text).unwrap_err().to_string()
    }

    #[test]
    fn values_have_the_types_of_json() {
        let parsed = parse_json(
            "{\"a\": \"yes\", \"b\": [1, 1.5, -2e3, true, null], \"c\": \"\\u00e9\\n\"}",
        )
        .unwrap();
        let expected: serde_yaml::Value =
            serde_yaml::from_str("{a: 'yes', b: [1, 1.5, -2000.0, true, null], c: \"é\\n\"}")
                .unwrap();
        assert_eq!(parsed.root.to_yaml(), expected);
    }

    #[test]
    fn positions_count_characters() {
        let parsed = parse_json("{\n  \"é\": [1,\n    \"x\"]\n}").unwrap();
        let list = &parsed.root.entries()[0];
        assert_eq!(list.key_position.to_string(), "2:3");
        assert_eq!(list.value.position.to_string(), "2:8");
        assert_eq!(list.value.items()[1].position.to_string(), "3:5");
    }

    #[test]
    fn duplicate_keys_are_told() {
        let parsed = parse_json("{\"a\": {\"b\": 1, \"b\": 2}}").unwrap();
        assert_eq!(parsed.duplicates[0].path, "a.b");
        assert_eq!(parsed.duplicates[0].position.to_string(), "1:8");
    }

    #[test]
    fn yaml_is_no_json() {
        assert_eq!(error("{a: 1}"), "1:2: key must be a string");
        assert_eq!(error("{\"a\": 1,}"), "1:9: key must be a string");
        assert!(error("# comment\n{}").starts_with("1:1: expected value"));
        assert!(error("").starts_with("1:1: EOF"));
        assert!(error("{}{}").contains("trailing characters"));
        assert_eq!(error("[1e999]"), "1:2: number out of range");
        assert!(error("[\"\\ud800\"]").contains("escape"));
        assert!(error(&"[".repeat(100)).len() < 100);
        let deep = format!("{}{}", "[".repeat(65), "]".repeat(65));
        assert_eq!(error(&deep), "1:65: nested more than 64 levels deep");
    }

    #[test]
    fn strings_with_quotes_inside() {
        let parsed = parse_json("[\"\\\"\", \"a\\\\\", \"\"]").unwrap();
        let texts: Vec<_> = parsed
            .root
            .items()
            .iter()
            .filter_map(Node::as_str)
            .collect();
        assert_eq!(texts, ["\"", "a\\", ""]);
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "[\\[\\]{},:\"\\\\ntrue0-9.eE\\- \n]*") {
            let _ = parse_json(&text);
        }
    }
}
