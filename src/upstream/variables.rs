//! Session variables: what a hash key may name.
//!
//! The names are those of APISIX's stream subsystem as far as they mean something before a broker
//! has been picked, and `mqtt_*` for what CONNECT said. A variable that has no value is absent,
//! which is not the same as empty: the hash falls back to the client address only for an absent one.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use crate::mqtt::Connect;
use crate::tls::identity::TlsVariables;

/// What CONNECT said, as far as hash keys and logs want it. Bytes are the client's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MqttVariables {
    /// Client id; empty when the client sent an empty one.
    pub client_id: Vec<u8>,
    /// User name, if CONNECT has one.
    pub username: Option<Vec<u8>>,
    /// Protocol level byte: 3, 4 or 5 for the published versions.
    pub level: u8,
    /// Keep alive in seconds; 0 means that the client does not promise to send anything.
    pub keep_alive: u16,
    /// Clean session (3.x) or clean start (5).
    pub clean_start: bool,
    /// Session Expiry Interval in seconds; MQTT 5 only.
    pub session_expiry: Option<u32>,
}

impl MqttVariables {
    /// Those of this CONNECT.
    pub fn of(connect: &Connect<'_>) -> Self {
        MqttVariables {
            client_id: connect.client_id.to_vec(),
            username: connect.username.map(<[u8]>::to_vec),
            level: connect.level,
            keep_alive: connect.keep_alive,
            clean_start: connect.clean_start,
            session_expiry: connect.session_expiry_interval,
        }
    }
}

/// Everything a hash key or an `explain` may ask about one connection.
#[derive(Debug, Clone)]
pub struct Variables<'a> {
    /// The client's address.
    pub client: SocketAddr,
    /// The address on which the connection arrived.
    pub server: SocketAddr,
    /// Id of the route that took the connection.
    pub route_id: &'a str,
    /// Name of that route, if it has one.
    pub route_name: Option<&'a str>,
    /// Id of the service, when the route reached its upstream through one.
    pub service_id: Option<&'a str>,
    /// Name of that service.
    pub service_name: Option<&'a str>,
    /// What CONNECT said; absent on a plain TCP route.
    pub mqtt: Option<&'a MqttVariables>,
    /// What TLS said; absent on a plain connection.
    pub tls: Option<&'a TlsVariables>,
}

impl Variables<'_> {
    /// The value of the variable `name`, or `None` where it has none for this connection.
    ///
    /// `mqtt_client_id` is absent when the client id is empty, as in APISIX.
    pub fn get(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        let text = |value: &str| Some(Cow::Owned(value.as_bytes().to_vec()));
        let number = |value: u64| Some(Cow::Owned(value.to_string().into_bytes()));
        match name {
            "mqtt_client_id" => {
                let id = &self.mqtt?.client_id;
                (!id.is_empty()).then_some(Cow::Borrowed(id.as_slice()))
            }
            "mqtt_username" => self.mqtt?.username.as_deref().map(Cow::Borrowed),
            "mqtt_protocol_level" => number(self.mqtt?.level.into()),
            "mqtt_keep_alive" => number(self.mqtt?.keep_alive.into()),
            "mqtt_clean_start" => number(self.mqtt?.clean_start.into()),
            "remote_addr" | "realip_remote_addr" => text(&self.client.ip().to_string()),
            "remote_port" | "realip_remote_port" => number(self.client.port().into()),
            "binary_remote_addr" => Some(Cow::Owned(match self.client.ip() {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            })),
            "server_addr" => text(&self.server.ip().to_string()),
            "server_port" => number(self.server.port().into()),
            "protocol" => text("TCP"),
            // A constant, empty variable in APISIX's nginx: one key for everybody.
            "server_name" => text(""),
            "hostname" => Some(Cow::Owned(
                rustix::system::uname().nodename().to_bytes().to_vec(),
            )),
            _ if name.starts_with("ssl_") => {
                let value = self.tls?.get(name)?;
                Some(Cow::Borrowed(value.as_bytes()))
            }
            "route_id" => text(self.route_id),
            "route_name" => text(self.route_name?),
            "service_id" => text(self.service_id?),
            "service_name" => text(self.service_name?),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::identity::ClientCertificate;

    fn mqtt(client_id: &str) -> MqttVariables {
        MqttVariables {
            client_id: client_id.into(),
            username: Some(b"fleet".to_vec()),
            level: 5,
            keep_alive: 60,
            clean_start: true,
            session_expiry: None,
        }
    }

    fn value(name: &str, mqtt: Option<&MqttVariables>) -> Option<String> {
        let variables = Variables {
            client: "10.1.2.3:4567".parse().unwrap(),
            server: "[::1]:9100".parse().unwrap(),
            route_id: "1",
            route_name: None,
            service_id: Some("s"),
            service_name: None,
            mqtt,
            tls: None,
        };
        variables
            .get(name)
            .map(|value| String::from_utf8_lossy(&value).into_owned())
    }

    #[test]
    fn connect_variables_exist_only_behind_connect() {
        let connect = mqtt("dev-42");
        assert_eq!(value("mqtt_client_id", Some(&connect)).unwrap(), "dev-42");
        assert_eq!(value("mqtt_username", Some(&connect)).unwrap(), "fleet");
        assert_eq!(value("mqtt_protocol_level", Some(&connect)).unwrap(), "5");
        assert_eq!(value("mqtt_keep_alive", Some(&connect)).unwrap(), "60");
        assert_eq!(value("mqtt_clean_start", Some(&connect)).unwrap(), "1");
        for name in ["mqtt_client_id", "mqtt_username", "mqtt_protocol_level"] {
            assert_eq!(value(name, None), None, "{name}");
        }
    }

    #[test]
    fn every_variable_that_check_takes_has_a_value() {
        let connect = mqtt("dev-42");
        let tls = TlsVariables {
            server_name: Some("a.test".to_owned()),
            protocol: Some("TLSv1.3"),
            cipher: Some("TLS_AES_128_GCM_SHA256"),
            reused: false,
            client: Some(ClientCertificate {
                common_name: Some("dev-42".to_owned()),
                ..ClientCertificate::default()
            }),
        };
        let variables = Variables {
            client: "10.1.2.3:4567".parse().unwrap(),
            server: "[::1]:9100".parse().unwrap(),
            route_id: "1",
            route_name: Some("r"),
            service_id: Some("s"),
            service_name: Some("t"),
            mqtt: Some(&connect),
            tls: Some(&tls),
        };
        for name in crate::config::variables::RESOLVABLE {
            assert!(variables.get(name).is_some(), "{name}");
        }
    }

    #[test]
    fn an_empty_client_id_is_absent_not_empty() {
        assert_eq!(value("mqtt_client_id", Some(&mqtt(""))), None);
    }

    #[test]
    fn addresses_and_names() {
        assert_eq!(value("remote_addr", None).unwrap(), "10.1.2.3");
        assert_eq!(value("remote_port", None).unwrap(), "4567");
        assert_eq!(value("server_addr", None).unwrap(), "::1");
        assert_eq!(value("server_port", None).unwrap(), "9100");
        assert_eq!(value("route_id", None).unwrap(), "1");
        assert_eq!(value("route_name", None), None);
        assert_eq!(value("service_id", None).unwrap(), "s");
        assert_eq!(value("server_name", None).unwrap(), "");
        assert_eq!(value("uri", None), None);
    }
}
