//! What must hold for both configuration files whatever they contain.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use mqtt_proxy::config::diagnostic::Diagnostic;
use mqtt_proxy::config::settings::{self, DEFAULT_STREAM_PLUGINS, Provider};
use mqtt_proxy::config::standalone;

fn env(name: &str) -> Option<String> {
    (name.len() < 4).then(|| name.to_string())
}

/// Every position lies in the text, and every message is one line.
fn judge(text: &str, diagnostics: &[Diagnostic]) {
    // A carriage return alone ends a line in YAML.
    let lines = text.split(['\n', '\r']).count();
    for diagnostic in diagnostics {
        if let Some(position) = diagnostic.position {
            assert!(position.line as usize <= lines + 1, "{diagnostic}");
        }
        assert!(!diagnostic.to_string().contains('\n'), "{diagnostic:?}");
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let file = Path::new("file");

    let loaded = settings::load(text, file, &env);
    assert!(loaded.value.is_some() || loaded.has_errors());
    judge(text, &loaded.diagnostics);

    let plugins = DEFAULT_STREAM_PLUGINS.map(str::to_string);
    let marked = format!("{text}\n#END\n");
    for (text, format) in [(marked.as_str(), Provider::Yaml), (text, Provider::Json)] {
        match standalone::load(text, file, format, &env, &plugins, None) {
            Err(problems) => {
                assert!(problems.iter().any(Diagnostic::is_error));
                judge(text, &problems);
            }
            Ok((resources, problems)) => {
                judge(text, &problems);
                // The same file again changes nothing.
                let again = standalone::load(text, file, format, &env, &plugins, Some(&resources));
                let (again, _) = again.expect("it was read before");
                assert_eq!(again, resources);
            }
        }
    }
});
