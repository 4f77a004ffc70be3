//! One declarative table per object, from which come both the check with its messages and the
//! JSON Schema that editors complete from.

mod check;
pub mod checks;
pub mod common;
pub mod config;
mod config_apisix;
mod config_own;
mod config_rest;
mod json_schema;
pub mod plugin;
pub mod service;
pub mod ssl;
pub mod standalone;
pub mod stream_route;
pub mod upstream;

pub use check::{Checker, check};
pub use json_schema::json_schema;

/// A mapping with known fields.
#[derive(Debug, Clone, Copy)]
pub struct Object {
    /// Name in the JSON Schema's `$defs`; empty = written where it is used.
    pub title: &'static str,
    /// What it is, in one sentence.
    pub doc: &'static str,
    /// The fields it knows.
    pub fields: &'static [Field],
    /// What other keys are.
    pub rest: Rest,
    /// What fields ask of each other.
    pub rules: &'static [Rule],
}

impl Object {
    /// An object that refuses keys it does not know.
    pub const fn strict(
        title: &'static str,
        doc: &'static str,
        fields: &'static [Field],
    ) -> Object {
        Object {
            title,
            doc,
            fields,
            rest: Rest::Refuse,
            rules: &[],
        }
    }

    /// The same with other keys treated as `rest` says.
    pub const fn rest(mut self, rest: Rest) -> Object {
        self.rest = rest;
        self
    }

    /// The same with `rules`.
    pub const fn rules(mut self, rules: &'static [Rule]) -> Object {
        self.rules = rules;
        self
    }

    /// The field of that name.
    pub fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}

/// What keys are that an [`Object`] does not know.
#[derive(Debug, Clone, Copy)]
pub enum Rest {
    /// Errors.
    Refuse,
    /// Warnings.
    Warn,
    /// Nobody's business.
    Allow,
    /// Entries of a map whose values are all of one kind.
    Each(&'static Kind),
}

/// A field of an [`Object`].
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// The key.
    pub name: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// What it does, in one sentence.
    pub doc: &'static str,
    /// Whether it must be there.
    pub required: bool,
    /// What it is when it is not there.
    pub default: Option<Literal>,
    /// Whether this program acts on it.
    pub has_effect: bool,
    /// Whether messages must not show its value.
    pub secret: bool,
}

impl Field {
    /// An optional field without default.
    pub const fn new(name: &'static str, kind: Kind, doc: &'static str) -> Field {
        Field {
            name,
            kind,
            doc,
            required: false,
            default: None,
            has_effect: true,
            secret: false,
        }
    }

    /// The same, mandatory.
    pub const fn required(mut self) -> Field {
        self.required = true;
        self
    }

    /// The same with a default.
    pub const fn default(mut self, default: Literal) -> Field {
        self.default = Some(default);
        self
    }

    /// The same, known to APISIX but without effect here.
    pub const fn no_effect(mut self) -> Field {
        self.has_effect = false;
        self
    }

    /// The same, never shown.
    pub const fn secret(mut self) -> Field {
        self.secret = true;
        self
    }
}

/// A default.
#[derive(Debug, Clone, Copy)]
pub enum Literal {
    /// A boolean.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// Another number.
    Float(f64),
    /// A text.
    Text(&'static str),
    /// A list of texts.
    Texts(&'static [&'static str]),
    /// A list of integers.
    Ints(&'static [i64]),
}

/// What values a field takes.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// Anything.
    Any,
    /// A boolean.
    Bool,
    /// An integer within bounds, both included.
    Int {
        /// Smallest.
        min: i64,
        /// Largest.
        max: i64,
    },
    /// A number within bounds.
    Number {
        /// Smallest.
        min: f64,
        /// `min` itself is too small.
        above: bool,
        /// Largest.
        max: f64,
    },
    /// A text.
    Text(Text),
    /// One of several texts.
    Choice(&'static [&'static str]),
    /// One of several integers.
    IntChoice(&'static [i64]),
    /// A mapping.
    Object(&'static Object),
    /// A mapping that whoever reads it judges; the table is for editors.
    Elsewhere(&'static Object),
    /// A list.
    List(List),
    /// A value of one of several types; the type of the value says which one is meant.
    Either(&'static [Kind]),
}

impl Kind {
    /// Any integer.
    pub const INT: Kind = Kind::Int {
        min: i64::MIN,
        max: i64::MAX,
    };
    /// A TCP port.
    pub const PORT: Kind = Kind::Int { min: 1, max: 65535 };
    /// Any text.
    pub const TEXT: Kind = Kind::Text(Text::ANY);
    /// A list of texts.
    pub const TEXTS: Kind = Kind::List(List::of(&Kind::TEXT));

    /// An integer from `min`.
    pub const fn int_from(min: i64) -> Kind {
        Kind::Int { min, max: i64::MAX }
    }

    /// A number from `min`.
    pub const fn number_from(min: f64) -> Kind {
        Kind::Number {
            min,
            above: false,
            max: f64::INFINITY,
        }
    }

    /// A number above zero.
    pub const POSITIVE: Kind = Kind::Number {
        min: 0.0,
        above: true,
        max: f64::INFINITY,
    };
}

/// Bounds of a text.
#[derive(Debug, Clone, Copy)]
pub struct Text {
    /// Fewest characters.
    pub min: usize,
    /// Most characters.
    pub max: usize,
    /// What it must look like.
    pub pattern: Option<&'static Pattern>,
    /// `$env://…` and `$secret://…` are taken whatever the other bounds say, as in APISIX.
    pub references: bool,
}

impl Text {
    /// No bounds.
    pub const ANY: Text = Text {
        min: 0,
        max: usize::MAX,
        pattern: None,
        references: false,
    };

    /// From `min` to `max` characters.
    pub const fn sized(min: usize, max: usize) -> Text {
        Text {
            min,
            max,
            pattern: None,
            references: false,
        }
    }

    /// The same with a pattern.
    pub const fn pattern(mut self, pattern: &'static Pattern) -> Text {
        self.pattern = Some(pattern);
        self
    }

    /// The same, references allowed.
    pub const fn or_reference(mut self) -> Text {
        self.references = true;
        self
    }
}

/// What a text must look like, as a regular expression for editors and as a function for the check.
#[derive(Debug, Clone, Copy)]
pub struct Pattern {
    /// ECMA 262 regular expression; empty = not expressible.
    pub regex: &'static str,
    /// Whether a text fits.
    pub test: fn(&str) -> bool,
    /// What is expected, for messages: `an address or a CIDR block`.
    pub expected: &'static str,
}

/// Bounds of a list.
#[derive(Debug, Clone, Copy)]
pub struct List {
    /// What each item is.
    pub items: &'static Kind,
    /// Fewest items.
    pub min: usize,
    /// Most items.
    pub max: usize,
    /// No item twice.
    pub unique: bool,
}

impl List {
    /// Any number of `items`.
    pub const fn of(items: &'static Kind) -> List {
        List {
            items,
            min: 0,
            max: usize::MAX,
            unique: false,
        }
    }

    /// The same with at least `min` items.
    pub const fn at_least(mut self, min: usize) -> List {
        self.min = min;
        self
    }

    /// The same with at most `max` items.
    pub const fn at_most(mut self, max: usize) -> List {
        self.max = max;
        self
    }

    /// The same without repetitions.
    pub const fn unique(mut self) -> List {
        self.unique = true;
        self
    }
}

/// What fields of an object ask of each other.
#[derive(Debug, Clone, Copy)]
pub enum Rule {
    /// Exactly one of these sets of fields must be complete.
    ExactlyOne(&'static [&'static [&'static str]]),
    /// At least one of these fields.
    AnyOf(&'static [&'static str]),
    /// Not all of these fields at once.
    NotTogether(&'static [&'static str]),
    /// The first field asks for the second.
    Needs(&'static str, &'static str),
    /// The rule counts unless the field has this text.
    Unless(&'static str, &'static str, &'static Rule),
}

#[cfg(test)]
#[path = "schema_tests.rs"]
mod tests;
