//! What the files say, as typed data: `config.yaml` becomes [`Settings`](settings::Settings),
//! `apisix.yaml` or `apisix.json` becomes [`Resources`](standalone::Resources).
//!
//! Nothing here opens a socket, reads a clock or looks at the environment by itself: texts and a
//! look-up function for variables come in, values and [diagnostics](diagnostic::Diagnostic) go out.
//! So everything can be tested, fuzzed and read alone.
//!
//! The way of a file: text, variables ([`substitute`]), positioned tree ([`document`], typed by
//! [`scalar`]), check against a declarative table ([`schema`]), typed values ([`settings`],
//! [`standalone`], [`resource`]). The same tables yield the JSON Schemas that editors use.

pub mod diagnostic;
pub mod document;
pub mod names;
pub mod resource;
pub mod scalar;
pub mod schema;
pub mod settings;
pub mod standalone;
pub mod substitute;
pub mod template;
pub mod variables;

use diagnostic::{Diagnostic, Severity};

/// A value read from a file together with everything that was found on the way.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded<T> {
    /// What could be read, defaults in the place of what is wrong; to be used only to look for
    /// further problems when a diagnostic is an error. `None` when nothing could be read.
    pub value: Option<T>,
    /// All problems, in file order as far as they have a position.
    pub diagnostics: Vec<Diagnostic>,
}

impl<T> Loaded<T> {
    /// Whether any diagnostic is an error.
    pub fn has_errors(&self) -> bool {
        self.diagnostics
            .iter()
            .any(|diagnostic| diagnostic.severity == Severity::Error)
    }
}
