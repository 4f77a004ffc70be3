//! Texts with variables, as `vars_combinations` keys have them: `$var`, `${var}` and
//! `${var ?? default}`.

use std::fmt;

/// A parsed text with variables.
///
/// As in APISIX: a name after a bare `$` is the longest run of letters, digits, `_` and `.`; blanks
/// inside braces are trimmed; `\$` is no variable and keeps its backslash; a variable without value
/// and default is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    text: String,
    parts: Vec<Part>,
}

/// A piece of a [`Template`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Taken as it is.
    Text(String),
    /// Replaced by the variable's value.
    Variable {
        /// Name without `$`.
        name: String,
        /// Used when the variable has no value; an empty value is a value.
        default: Option<String>,
    },
}

impl Template {
    /// Parses `text`. Every text is a template; a `$` that begins no variable stands for itself.
    pub fn parse(text: &str) -> Template {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        let mut escaped = false;
        while let Some(character) = rest.chars().next() {
            if character == '$'
                && !escaped
                && let Some((part, length)) = variable(rest)
            {
                if !literal.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut literal)));
                }
                parts.push(part);
                rest = &rest[length..];
                continue;
            }
            escaped = character == '\\';
            literal.push(character);
            rest = &rest[character.len_utf8()..];
        }
        if !literal.is_empty() {
            parts.push(Part::Text(literal));
        }
        Template {
            text: text.to_string(),
            parts,
        }
    }

    /// The pieces in order.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The names of the variables in order, repetitions included.
    pub fn variables(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Variable { name, .. } => Some(name.as_str()),
            Part::Text(_) => None,
        })
    }

    /// The text with every variable replaced by what `append` adds for it to the buffer; `append`
    /// returns false when the variable has no value. `None` when no variable had a value or a
    /// default: APISIX then hashes the client's address.
    pub fn render(&self, mut append: impl FnMut(&str, &mut Vec<u8>) -> bool) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(self.text.len());
        let mut resolved = false;
        for part in &self.parts {
            match part {
                Part::Text(text) => out.extend_from_slice(text.as_bytes()),
                Part::Variable { name, default } => {
                    if append(name, &mut out) {
                        resolved = true;
                    } else if let Some(default) = default {
                        resolved = true;
                        out.extend_from_slice(default.as_bytes());
                    }
                }
            }
        }
        resolved.then_some(out)
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The variable at the start of `rest`, which begins with `$`, and its length in bytes.
fn variable(rest: &str) -> Option<(Part, usize)> {
    let after = &rest[1..];
    if let Some(inner) = after.strip_prefix('{') {
        let end = inner.find('}')?;
        let body = inner[..end].trim();
        if body.is_empty() {
            return None;
        }
        let mut segments = body.split("??").map(str::trim);
        let name = segments.next().unwrap_or_default().to_string();
        let default = segments.next().map(str::to_string);
        return Some((Part::Variable { name, default }, end + 3));
    }
    let length = after
        .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.'))
        .unwrap_or(after.len());
    (length > 0).then(|| {
        let part = Part::Variable {
            name: after[..length].to_string(),
            default: None,
        };
        (part, length + 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(text: &str) -> Option<String> {
        Template::parse(text)
            .render(|name, out| {
                let value: &[u8] = match name {
                    "a" => b"A",
                    "b.c" => b"BC",
                    "empty" => b"",
                    _ => return false,
                };
                out.extend_from_slice(value);
                true
            })
            .map(|bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn variables_in_all_forms() {
        assert_eq!(render("$a"), Some("A".into()));
        assert_eq!(render("x-${a}-y"), Some("x-A-y".into()));
        assert_eq!(render("${ a }$b.c"), Some("ABC".into()));
        assert_eq!(render("$a$none"), Some("A".into()));
        assert_eq!(render("${none ?? dev}"), Some("dev".into()));
        assert_eq!(render("${none??}"), Some("".into()));
        assert_eq!(render("${a ?? dev}"), Some("A".into()));
    }

    #[test]
    fn an_empty_value_is_a_value() {
        assert_eq!(render("$empty"), Some("".into()));
        assert_eq!(render("${empty ?? x}"), Some("".into()));
    }

    #[test]
    fn nothing_resolved_is_none() {
        assert_eq!(render("$none"), None);
        assert_eq!(render("plain"), None);
        assert_eq!(render(""), None);
        assert_eq!(render("\\$a"), None);
        assert_eq!(render("$"), None);
        assert_eq!(render("${}"), None);
        assert_eq!(render("${a"), None);
    }

    #[test]
    fn odd_texts_stay_as_they_are() {
        assert_eq!(render("\\$a$a"), Some("\\$aA".into()));
        assert_eq!(render("$ $a"), Some("$ A".into()));
        assert_eq!(render("$$a"), Some("$A".into()));
        assert_eq!(render("é${a}é"), Some("éAé".into()));
        assert_eq!(Template::parse("$a-${b ?? c}").to_string(), "$a-${b ?? c}");
    }

    #[test]
    fn names_are_listed() {
        let template = Template::parse("$a-${b ?? c}-$a");
        assert_eq!(template.variables().collect::<Vec<_>>(), ["a", "b", "a"]);
    }
}
