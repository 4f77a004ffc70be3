//! The key that a connection is hashed by.

use super::variables::Variables;
use crate::config::resource::upstream::HashKey;

/// Where the bytes of a key came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The variable or template that the upstream names.
    Configured,
    /// The client address, because nothing of what the upstream names has a value: an empty
    /// client id, most often. APISIX does the same and logs it; here a counter shows it.
    AddressFallback,
}

/// A hash key and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// The bytes that are hashed.
    pub bytes: Vec<u8>,
    /// Whether they are what the upstream asks for.
    pub source: Source,
}

/// The key of one connection (APISIX: `hash_on` `vars` and `vars_combinations`; every other
/// `hash_on` hashes the address there and here).
pub fn resolve(configured: &HashKey, variables: &Variables<'_>) -> Key {
    // `$remote_addr`: the textual address without the port.
    let address = || variables.client.ip().to_string().into_bytes();
    let value = match configured {
        HashKey::Address => Some(address()),
        HashKey::Variable(name) => variables.get(name).map(|value| value.into_owned()),
        HashKey::Template(template) => template.render(|name, bytes| {
            let value = variables.get(name);
            bytes.extend_from_slice(value.as_deref().unwrap_or_default());
            value.is_some()
        }),
    };
    let source = match value {
        Some(_) => Source::Configured,
        None => Source::AddressFallback,
    };
    Key {
        bytes: value.unwrap_or_else(address),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::super::variables::MqttVariables;
    use super::*;
    use crate::config::template::Template;

    fn key(configured: &HashKey, client_id: &str) -> (String, Source) {
        let mqtt = MqttVariables {
            client_id: client_id.into(),
            ..MqttVariables::default()
        };
        let key = resolve(
            configured,
            &Variables {
                client: "10.0.0.7:1".parse().unwrap(),
                server: "127.0.0.1:9100".parse().unwrap(),
                route_id: "1",
                route_name: None,
                service_id: None,
                service_name: None,
                mqtt: Some(&mqtt),
                tls: None,
            },
        );
        (String::from_utf8(key.bytes).unwrap(), key.source)
    }

    #[test]
    fn a_variable_without_value_falls_back_to_the_address() {
        let by_id = HashKey::Variable("mqtt_client_id".into());
        assert_eq!(key(&by_id, "foo"), ("foo".into(), Source::Configured));
        assert_eq!(
            key(&by_id, ""),
            ("10.0.0.7".into(), Source::AddressFallback)
        );
        let constant = HashKey::Variable("server_name".into());
        assert_eq!(key(&constant, "foo"), ("".into(), Source::Configured));
    }

    #[test]
    fn a_template_falls_back_only_when_nothing_resolves() {
        let template = |text| HashKey::Template(Template::parse(text));
        let both = template("$mqtt_client_id-$server_port");
        assert_eq!(key(&both, "a"), ("a-9100".into(), Source::Configured));
        assert_eq!(key(&both, ""), ("-9100".into(), Source::Configured));
        let none = template("x-$mqtt_client_id");
        assert_eq!(key(&none, ""), ("10.0.0.7".into(), Source::AddressFallback));
    }

    #[test]
    fn hashing_the_address_is_no_fallback() {
        assert_eq!(
            key(&HashKey::Address, "foo"),
            ("10.0.0.7".into(), Source::Configured)
        );
    }
}
