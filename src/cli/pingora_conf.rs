//! What stands under `pingora:` in config.yaml: keys of Pingora's `ServerConf`.

use pingora_core::server::configuration::ServerConf;
use serde_yaml::Value;

use crate::config::names::did_you_mean;

/// The typed form; Pingora's defaults where nothing is set.
///
/// # Errors
/// What is wrong, for people.
pub(super) fn parse(configured: &Value) -> Result<ServerConf, String> {
    match configured {
        Value::Null => Ok(ServerConf::default()),
        own => serde_yaml::from_value(own.clone()).map_err(|error| error.to_string()),
    }
}

/// A sentence for each key that Pingora does not have; it would ignore them silently.
pub(super) fn unknown_keys(configured: &Value) -> Vec<String> {
    let known = serde_yaml::to_value(ServerConf::default()).unwrap_or(Value::Null);
    let keys = |value: &Value| -> Vec<String> {
        let entries = value.as_mapping().into_iter().flatten();
        let names = entries.filter_map(|(key, _)| key.as_str().map(str::to_owned));
        names.collect()
    };
    let known = keys(&known);
    keys(configured)
        .into_iter()
        .filter(|key| !known.contains(key))
        .map(|key| {
            let hint = did_you_mean(&key, known.iter().map(String::as_str));
            format!("unknown field \"{key}\"{hint}")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Value {
        serde_yaml::from_str(text).unwrap()
    }

    #[test]
    fn keys_of_pingora_are_taken() {
        assert_eq!(parse(&value("threads: 3")).unwrap().threads, 3);
        assert_eq!(
            parse(&Value::Null).unwrap().threads,
            ServerConf::default().threads
        );
        assert!(unknown_keys(&value("{threads: 3, pid_file: /run/x.pid}")).is_empty());
    }

    #[test]
    fn what_pingora_would_choke_on_or_ignore_is_told() {
        assert!(parse(&value("threads: abc")).is_err());
        let unknown = unknown_keys(&value("treads: 3"));
        assert_eq!(
            unknown,
            ["unknown field \"treads\"; did you mean \"threads\"?"]
        );
    }
}
