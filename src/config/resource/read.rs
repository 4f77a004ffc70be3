//! Reading values from a tree that a table has judged: what has the wrong type was told there and
//! reads as absent here.

use std::time::Duration;

use crate::config::diagnostic::{At, Position, Problems, quote};
use crate::config::document::{Node, Value};
use crate::config::resource::credentials::Credentials;

/// Longest timeout, ten years: beyond it sums of times overflow somewhere.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86400);

/// A text.
pub(crate) fn text(node: &Node, key: &str) -> Option<String> {
    node.get(key)?.as_str().map(str::to_string)
}

/// An id as text.
pub(crate) fn id(node: &Node, key: &str) -> Option<String> {
    let value = node.get(key)?;
    match &value.value {
        Value::String(text) => Some(text.clone()),
        _ => value.as_i64().map(|id| id.to_string()),
    }
}

/// Seconds, cut to ten years; zero and less are absent.
pub(crate) fn seconds(node: &Node, key: &str) -> Option<Duration> {
    let seconds = node.get(key)?.as_f64().filter(|seconds| *seconds > 0.0)?;
    Some(Duration::try_from_secs_f64(seconds).map_or(LONGEST, |time| time.min(LONGEST)))
}

/// Names of `sni` or `snis`, lower-case, without a trailing dot.
pub(crate) fn snis(node: &Node) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let several = node.get("snis").map(Node::items).unwrap_or_default();
    for name in node.get("sni").into_iter().chain(several) {
        let Some(name) = name.as_str() else { continue };
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// What goes wrong while objects are built from a tree.
pub(crate) struct Context<'a> {
    /// Where problems go.
    pub problems: &'a mut Problems,
    /// The names of the plugins that may be used.
    pub plugins: &'a [String],
    /// Looks up environment variables, and files by `file:///path`.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// What PEM texts hold.
    pub credentials: Credentials,
}

impl Context<'_> {
    /// Adds an error.
    pub fn error(&mut self, position: Position, at: &At<'_>, message: impl Into<String>) {
        self.problems.error(position, at, message);
    }

    /// Adds a warning.
    pub fn warn(&mut self, position: Position, at: &At<'_>, message: impl Into<String>) {
        self.problems.warn(position, at, message);
    }

    /// The text that `$env://NAME`, `$env://NAME/json/key` or `file:///path` stands for; other
    /// texts stand for themselves.
    ///
    /// # Errors
    /// Why the reference cannot be resolved.
    pub fn resolve(&self, written: &str) -> Result<String, String> {
        if written.starts_with("$secret://") {
            return Err(format!(
                "{} is not supported: there are no secret managers here",
                quote(written)
            ));
        }
        if written.starts_with("file:///") {
            let unreadable = || {
                let name = quote(written);
                format!("{name} cannot be read as a text of at most 16 MiB")
            };
            return (self.env)(written).ok_or_else(unreadable);
        }
        let is_env = written
            .get(..7)
            .is_some_and(|prefix| prefix.eq_ignore_ascii_case("$env://"));
        if !is_env {
            return Ok(written.to_string());
        }
        let mut parts = written[7..].split('/');
        let name = parts.next().unwrap_or_default();
        let value = (self.env)(name)
            .ok_or_else(|| format!("environment variable {} is not set", quote(name)))?;
        let keys: Vec<&str> = parts.collect();
        if keys.is_empty() {
            return Ok(value);
        }
        let missing = || {
            let (name, path) = (quote(name), quote(&keys.join("/")));
            format!("environment variable {name} has no text at {path}")
        };
        let document: serde_json::Value = serde_json::from_str(&value).map_err(|_| missing())?;
        keys.iter()
            .try_fold(&document, |value, key| value.get(key))
            .and_then(serde_json::Value::as_str)
            .map(str::to_string)
            .ok_or_else(missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::document::parse_yaml;

    fn node(text: &str) -> Node {
        parse_yaml(text, None).unwrap().root
    }

    #[test]
    fn ids_are_texts() {
        let object = node("{a: x, b: 7, c: 7.0, d: [1], e: ~}");
        assert_eq!(id(&object, "a"), Some("x".into()));
        assert_eq!(id(&object, "b"), Some("7".into()));
        assert_eq!(id(&object, "c"), Some("7".into()));
        assert_eq!(id(&object, "d"), None);
        assert_eq!(id(&object, "e"), None);
    }

    #[test]
    fn seconds_are_bounded() {
        let object = node("{a: 1.5, b: 0, c: 1e300, d: .inf, e: -1, f: .nan, g: 1e-300}");
        assert_eq!(seconds(&object, "a"), Some(Duration::from_millis(1500)));
        assert_eq!(seconds(&object, "b"), None);
        assert_eq!(seconds(&object, "c"), Some(LONGEST));
        assert_eq!(seconds(&object, "d"), Some(LONGEST));
        assert_eq!(seconds(&object, "e"), None);
        assert_eq!(seconds(&object, "f"), None);
        assert!(seconds(&object, "g").is_some());
    }

    #[test]
    fn names_are_lower_case_and_unique() {
        assert_eq!(snis(&node("{sni: A.Test.com.}")), ["a.test.com"]);
        assert_eq!(snis(&node("{snis: ['*.B', b, '*.b']}")), ["*.b", "b"]);
        assert!(snis(&node("{}")).is_empty());
    }

    #[test]
    fn references_to_the_environment() {
        let mut problems = Problems::new(std::path::Path::new("x"));
        let env = |name: &str| match name {
            "CERT" => Some("pem".to_string()),
            "file:///run/cert.pem" => Some("from a file".to_string()),
            "JSON" => Some("{\"a\": {\"b\": \"deep\", \"n\": 1}}".to_string()),
            _ => None,
        };
        let context = Context {
            problems: &mut problems,
            plugins: &[],
            env: &env,
            credentials: Credentials::default(),
        };
        assert_eq!(context.resolve("plain"), Ok("plain".into()));
        assert_eq!(context.resolve("$ENV://CERT"), Ok("pem".into()));
        assert_eq!(context.resolve("$env://JSON/a/b"), Ok("deep".into()));
        assert_eq!(
            context.resolve("file:///run/cert.pem"),
            Ok("from a file".into())
        );
        for (written, part) in [
            ("file:///none", "\"file:///none\" cannot be read"),
            ("$env://NONE", "\"NONE\" is not set"),
            ("$env://JSON/a/n", "has no text at \"a/n\""),
            ("$env://CERT/a", "has no text at \"a\""),
            ("$secret://vault/1/x", "no secret managers"),
        ] {
            assert!(
                context.resolve(written).unwrap_err().contains(part),
                "{written}"
            );
        }
    }
}
