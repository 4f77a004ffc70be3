//! A proxy with one MQTT route to one broker: what most tests of the CONNECT phase need.

use super::broker::Broker;
use super::client::Client;
use super::files::{Files, config_with};
use super::ports::free_port;
use super::proxy::Proxy;

/// The three of them.
pub struct Door {
    /// Where the proxy listens.
    pub port: u16,
    /// The only node.
    pub broker: Broker,
    /// The proxy.
    pub proxy: Proxy,
}

/// A proxy with one MQTT route of these levels; `more` goes under `mqtt_proxy:`.
pub fn door(levels: &str, more: &str) -> Door {
    door_to(Broker::mqtt(), levels, more)
}

/// The same in front of this broker.
pub fn door_to(broker: Broker, levels: &str, more: &str) -> Door {
    let port = free_port();
    let block = if more.is_empty() {
        String::new()
    } else {
        format!("mqtt_proxy:\n{more}")
    };
    let routes = format!(
        "stream_routes:\n  - id: 1\n    plugins: {{mqtt-proxy: {{protocol_level: {levels}}}}}\n    \
         upstream: {{nodes: {{\"{}\": 1}}}}\n#END\n",
        broker.addr()
    );
    let files = Files::new(&config_with(&[port], &block), &routes);
    let proxy = Proxy::start(&files, &[port]);
    Door {
        port,
        broker,
        proxy,
    }
}

/// Connects and sends these bytes at once.
pub fn send(port: u16, bytes: &[u8]) -> Client {
    let mut client = Client::to(port);
    client.send(bytes);
    client
}
