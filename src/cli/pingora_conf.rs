//! What stands under `pingora:` in config.yaml: keys of Pingora's `ServerConf`.

use std::path::Path;

use pingora_core::server::configuration::ServerConf;

use crate::config::diagnostic::{Diagnostic, Origin, Severity};
use crate::config::names::did_you_mean;
use crate::config::settings::PingoraSettings;

/// The typed form; Pingora's defaults where nothing is set.
///
/// # Errors
/// What is wrong, for people.
pub(super) fn parse(configured: Option<&PingoraSettings>) -> Result<ServerConf, String> {
    match configured {
        None => Ok(ServerConf::default()),
        Some(own) => match serde_yaml::from_value::<ServerConf>(own.value.clone()) {
            Ok(conf) if conf.threads == 0 => Err("threads must be at least 1".to_owned()),
            Ok(conf) => Ok(conf),
            Err(error) => Err(error.to_string()),
        },
    }
}

/// What Pingora would choke on, and keys that it would ignore silently.
pub(super) fn judge(configured: &PingoraSettings, file: &Path) -> Vec<Diagnostic> {
    let diagnostic = |position: Origin, path: String, message, severity| Diagnostic {
        file: file.into(),
        position: Some(*position),
        path,
        message,
        severity,
    };
    let known = serde_yaml::to_value(ServerConf::default()).unwrap_or_default();
    let known: Vec<&str> = known
        .as_mapping()
        .into_iter()
        .flatten()
        .filter_map(|(key, _)| key.as_str())
        .collect();
    let mut problems = Vec::new();
    if let Err(message) = parse(Some(configured)) {
        let path = "pingora".to_owned();
        problems.push(diagnostic(
            configured.position,
            path,
            message,
            Severity::Error,
        ));
    }
    for (key, position) in &configured.keys {
        if !known.contains(&key.as_str()) {
            let hint = did_you_mean(key, known.iter().copied());
            let message = format!("unknown field \"{key}\"{hint}");
            let path = format!("pingora.{key}");
            problems.push(diagnostic(*position, path, message, Severity::Warning));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings;

    fn judged(pingora: &str) -> Vec<String> {
        let text = format!("apisix: {{stream_proxy: {{tcp: [9100]}}}}\npingora: {pingora}\n");
        let file = Path::new("config.yaml");
        let settings = settings::load(&text, file, &|_| None).value.unwrap();
        let problems = judge(&settings.pingora.unwrap(), file);
        problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn keys_of_pingora_are_taken() {
        assert!(judged("{threads: 3, pid_file: /run/x.pid}").is_empty());
    }

    #[test]
    fn what_pingora_would_choke_on_or_ignore_is_told_with_its_place() {
        assert_eq!(
            judged("{treads: 3}"),
            [
                "config.yaml:2:11: warning: pingora.treads: unknown field \"treads\"; did you mean \"threads\"?"
            ]
        );
        let wrong = judged("{threads: abc}");
        assert!(
            wrong[0].starts_with("config.yaml:2:10: pingora: "),
            "{wrong:?}"
        );
    }
}
