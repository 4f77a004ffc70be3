//! Where something is wrong (file, line, column, path) and what.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};

/// A place in a text file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Position {
    /// Line, counted from 1.
    pub line: u32,
    /// Column in characters, counted from 1.
    pub column: u32,
}

impl Position {
    /// The first character of a file.
    pub const START: Position = Position { line: 1, column: 1 };
}

impl Default for Position {
    fn default() -> Self {
        Position::START
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// The [`Position`] a configured object was read from. It never takes part in equality: an object
/// that merely moved within its file is the same object, and a reload keeps its state.
#[derive(Debug, Clone, Copy, Default)]
pub struct Origin(pub Position);

impl PartialEq for Origin {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Origin {}

impl std::ops::Deref for Origin {
    type Target = Position;
    fn deref(&self) -> &Position {
        &self.0
    }
}

impl From<Position> for Origin {
    fn from(position: Position) -> Self {
        Origin(position)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How bad a [`Diagnostic`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The file, or the object it names, is not used as written.
    Error,
    /// Accepted, but the operator should know.
    Warning,
}

/// One problem found in a file.
///
/// Displayed as `FILE:LINE:COL: PATH: message`, a warning as
/// `FILE:LINE:COL: warning: PATH: message`; an absent position or an empty path is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// The file as it was named when it was read.
    pub file: Arc<Path>,
    /// Where in the file; `None` when the problem has no place (an unreadable file).
    pub position: Option<Position>,
    /// The value within the document, for instance `upstreams[1].nodes[0].port`; indexes count
    /// from 0 as in JSON paths. Empty for the document as a whole.
    pub path: String,
    /// What is wrong, in one line.
    pub message: String,
    /// Error or warning.
    pub severity: Severity,
}

impl Diagnostic {
    /// Whether this is an error, not a warning.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(position) = self.position {
            write!(f, "{position}:")?;
        }
        if self.severity == Severity::Warning {
            f.write_str(" warning:")?;
        }
        if !self.path.is_empty() {
            write!(f, " {}:", self.path)?;
        }
        write!(f, " {}", self.message)
    }
}

impl Serialize for Diagnostic {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_struct("Diagnostic", 6)?;
        out.serialize_field("file", &self.file.to_string_lossy())?;
        out.serialize_field("line", &self.position.map(|position| position.line))?;
        out.serialize_field("column", &self.position.map(|position| position.column))?;
        out.serialize_field("path", &self.path)?;
        out.serialize_field("message", &self.message)?;
        out.serialize_field("severity", &self.severity)?;
        out.end()
    }
}

/// A path to a value while a document is walked: a chain on the stack that costs nothing until a
/// problem has to be named.
#[derive(Debug, Clone, Copy)]
pub enum At<'a> {
    /// The document itself.
    Root,
    /// A value in a mapping.
    Key(&'a At<'a>, &'a str),
    /// A value in a sequence, counted from 0.
    Index(&'a At<'a>, usize),
}

impl<'a> At<'a> {
    /// The path of the value under `key`.
    pub fn key(&'a self, key: &'a str) -> At<'a> {
        At::Key(self, key)
    }

    /// The path of item `index`.
    pub fn index(&'a self, index: usize) -> At<'a> {
        At::Index(self, index)
    }
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            At::Root => Ok(()),
            At::Index(parent, index) => write!(f, "{parent}[{index}]"),
            At::Key(parent, key) => {
                let plain = !key.is_empty()
                    && key
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
                if !plain {
                    // Node addresses and the like contain dots and colons.
                    return write!(f, "{parent}[{}]", quote(key));
                }
                if !matches!(parent, At::Root) {
                    write!(f, "{parent}.")?;
                }
                f.write_str(key)
            }
        }
    }
}

/// Longest text of a value that a message repeats, in characters.
const QUOTED: usize = 60;

/// `text` in double quotes for a message: one line, control characters escaped, long texts cut,
/// and private keys never shown.
pub fn quote(text: &str) -> String {
    if text.contains("PRIVATE KEY") {
        return "\"(a private key, not shown)\"".to_string();
    }
    if text.chars().nth(QUOTED).is_some() {
        let cut: String = text.chars().take(QUOTED).collect();
        return format!("{:?}…", cut);
    }
    format!("{text:?}")
}

/// Collects the diagnostics of one file.
#[derive(Debug, Clone)]
pub struct Problems {
    file: Arc<Path>,
    list: Vec<Diagnostic>,
    errors: usize,
}

impl Problems {
    /// An empty collection for `file`.
    pub fn new(file: &Path) -> Self {
        Problems {
            file: Arc::from(file),
            list: Vec::new(),
            errors: 0,
        }
    }

    /// Adds an error at `position`.
    pub fn error(&mut self, position: Position, at: &At<'_>, message: impl Into<String>) {
        self.errors += 1;
        self.push(position, at, message.into(), Severity::Error);
    }

    /// Adds a warning at `position`.
    pub fn warn(&mut self, position: Position, at: &At<'_>, message: impl Into<String>) {
        self.push(position, at, message.into(), Severity::Warning);
    }

    /// Adds an error whose path is written out already.
    pub fn error_path(&mut self, position: Position, path: &str, message: impl Into<String>) {
        self.errors += 1;
        self.push(position, path, message.into(), Severity::Error);
    }

    /// Adds a warning whose path is written out already.
    pub fn warn_path(&mut self, position: Position, path: &str, message: impl Into<String>) {
        self.push(position, path, message.into(), Severity::Warning);
    }

    fn push(
        &mut self,
        position: Position,
        path: impl fmt::Display,
        message: String,
        severity: Severity,
    ) {
        self.list.push(Diagnostic {
            file: Arc::clone(&self.file),
            position: Some(position),
            path: path.to_string(),
            message,
            severity,
        });
    }

    /// How many errors there are so far.
    pub fn errors(&self) -> usize {
        self.errors
    }

    /// How many diagnostics there are so far.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether nothing was found so far.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Appends `text` to the message of every error from number `start` on.
    pub fn append_to_errors_since(&mut self, start: usize, text: &str) {
        for diagnostic in self.list.iter_mut().skip(start) {
            if diagnostic.is_error() {
                diagnostic.message.push_str(text);
            }
        }
    }

    /// The diagnostics in file order.
    pub fn finish(mut self) -> Vec<Diagnostic> {
        self.list
            .sort_by_key(|diagnostic| diagnostic.position.unwrap_or_default());
        self.list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(severity: Severity, path: &str) -> Diagnostic {
        Diagnostic {
            file: Arc::from(Path::new("conf/apisix.yaml")),
            position: Some(Position { line: 3, column: 7 }),
            path: path.to_string(),
            message: "is wrong".to_string(),
            severity,
        }
    }

    #[test]
    fn displayed_as_compilers_do() {
        assert_eq!(
            one(Severity::Error, "upstreams[0]").to_string(),
            "conf/apisix.yaml:3:7: upstreams[0]: is wrong"
        );
        assert_eq!(
            one(Severity::Warning, "upstreams[0]").to_string(),
            "conf/apisix.yaml:3:7: warning: upstreams[0]: is wrong"
        );
        assert_eq!(
            one(Severity::Error, "").to_string(),
            "conf/apisix.yaml:3:7: is wrong"
        );
        let mut without = one(Severity::Error, "");
        without.position = None;
        assert_eq!(without.to_string(), "conf/apisix.yaml: is wrong");
    }

    #[test]
    fn serialised_flat() {
        let json = serde_json::to_value(one(Severity::Warning, "x")).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"file": "conf/apisix.yaml", "line": 3, "column": 7, "path": "x",
                "message": "is wrong", "severity": "warning"})
        );
    }

    #[test]
    fn paths_quote_what_is_no_plain_name() {
        let root = At::Root;
        let upstreams = root.key("upstreams");
        let second = upstreams.index(1);
        let nodes = second.key("nodes");
        assert_eq!(
            nodes.key("127.0.0.1:1883").to_string(),
            "upstreams[1].nodes[\"127.0.0.1:1883\"]"
        );
        assert_eq!(
            second.key("mqtt-proxy").to_string(),
            "upstreams[1].mqtt-proxy"
        );
    }

    #[test]
    fn quoting_is_one_line_short_and_discreet() {
        assert_eq!(quote("a\nb\u{1b}"), "\"a\\nb\\u{1b}\"");
        assert!(quote(&"x".repeat(1000)).chars().count() < 70);
        assert!(!quote("-----BEGIN PRIVATE KEY-----\nMIIE").contains("MIIE"));
    }

    #[test]
    fn origins_are_always_equal() {
        assert_eq!(
            Origin(Position { line: 1, column: 2 }),
            Origin(Position { line: 9, column: 9 })
        );
    }
}
