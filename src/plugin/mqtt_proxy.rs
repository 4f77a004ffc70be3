//! The `mqtt-proxy` plugin: which CONNECT a route accepts.

use crate::config::resource::plugin as config;
use crate::mqtt::{Connect, DecodeError, DecodeOptions, Mode, Protocol, decode};

/// The plugin of one route, ready to judge what its clients send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MqttProxy {
    accepted: Box<[Protocol<'static>]>,
}

impl MqttProxy {
    /// Prepares the plugin from its configuration.
    pub fn new(config: &config::MqttProxy) -> Self {
        let accepted = config.protocols.iter();
        MqttProxy {
            accepted: accepted
                .map(|protocol| Protocol::new(protocol.name.clone(), protocol.level))
                .collect(),
        }
    }

    /// Judges everything received so far; `Ok(None)` asks for more.
    ///
    /// # Errors
    /// As [`decode`]: the client is to be refused, and the error knows how to say why.
    pub fn judge<'a>(
        &self,
        received: &'a [u8],
        mode: Mode,
        max_packet_size: usize,
    ) -> Result<Option<Connect<'a>>, DecodeError> {
        decode(
            received,
            &DecodeOptions {
                mode,
                max_packet_size,
                accepted: &self.accepted,
            },
        )
    }

    /// The accepted protocols for people: `MQTT level 4, MQIsdp level 3`.
    pub fn describe(&self) -> String {
        let each = self
            .accepted
            .iter()
            .map(|protocol| format!("{} level {}", protocol.name, protocol.level));
        each.collect::<Vec<_>>().join(", ")
    }

    /// Whether a CONNECT of this level could be accepted under the standard name of that level.
    pub fn accepts_level(&self, level: u8) -> bool {
        let name = if level == 3 { "MQIsdp" } else { "MQTT" };
        self.accepted
            .iter()
            .any(|protocol| protocol.level == i64::from(level) && protocol.name == name)
    }

    /// The first accepted level that fits in a CONNECT, for commands that make one up.
    pub fn first_level(&self) -> Option<u8> {
        self.accepted
            .iter()
            .find_map(|protocol| u8::try_from(protocol.level).ok())
    }
}
