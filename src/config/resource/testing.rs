//! For the tests of objects: judge and build one.

use std::path::Path;

use super::read::Context;
use crate::config::diagnostic::{At, Problems, Severity};
use crate::config::document::{Node, parse_yaml};
use crate::config::schema::{Checker, Object};

/// An object and what was told about it, each as `path: message`, warnings with `warning: ` before.
pub struct Judged<T> {
    pub value: T,
    pub messages: Vec<String>,
}

impl<T> Judged<T> {
    /// Judges YAML text as the object at path `x`; all stream plugins are listed but prometheus.
    pub fn new(
        text: &str,
        table: &'static Object,
        build: impl FnOnce(&Node, String, &At<'_>, &mut Context<'_>) -> T,
    ) -> Self {
        let node = parse_yaml(text, None).unwrap().root;
        let mut problems = Problems::new(Path::new("test.yaml"));
        let at = At::Root.key("x");
        Checker::new(&mut problems).object(&node, table, &at, false);
        let plugins = crate::config::settings::DEFAULT_STREAM_PLUGINS.map(str::to_string);
        let mut context = Context {
            problems: &mut problems,
            plugins: &plugins,
            env: &|_| None,
        };
        let value = build(&node, "id".to_string(), &at, &mut context);
        let messages = problems
            .finish()
            .into_iter()
            .map(|found| {
                let kind = match found.severity {
                    Severity::Error => "",
                    Severity::Warning => "warning: ",
                };
                format!("{kind}{}: {}", found.path, found.message)
            })
            .collect();
        Judged { value, messages }
    }
}
