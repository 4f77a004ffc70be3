//! The MQTT probe: CONNECT, a CONNACK that accepts, DISCONNECT.

use async_trait::async_trait;
use pingora_core::{Error, ErrorType};
use pingora_load_balancing::Backend;
use pingora_load_balancing::health_check::HealthCheck;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::probe::{AsClient, REFUSED, broken};
use crate::config::resource::checks::MqttProbe;
use crate::mqtt::{BrokerFirst, read_connack};
use crate::upstream::random::random;

/// The same bytes in MQTT 3.1.1 and in 5 with reason 0 [MQTT-3.14.2.1].
const DISCONNECT: &[u8] = &[0xe0, 0x00];
/// Keep alive of the probe in seconds; it is over long before.
const KEEP_ALIVE: u16 = 60;

pub(super) struct MqttCheck {
    pub dialler: AsClient,
    pub probe: MqttProbe,
}

/// A CONNECT with a clean session and a client id of its own, so that neither a session of
/// another probe is taken over nor one is left behind.
fn connect_packet(probe: &MqttProbe, suffix: u32) -> Vec<u8> {
    let five = probe.level == 5;
    let mut flags = 0x02;
    flags |= if probe.username.is_some() { 0x80 } else { 0 };
    flags |= if probe.password.is_some() { 0x40 } else { 0 };
    let mut body = b"\0\x04MQTT".to_vec();
    body.extend([probe.level, flags]);
    body.extend(KEEP_ALIVE.to_be_bytes());
    if five {
        body.push(0);
    }
    let client_id = format!("{}{suffix:08x}", probe.client_id_prefix);
    let fields = [
        Some(&client_id),
        probe.username.as_ref(),
        probe.password.as_ref(),
    ];
    for field in fields.into_iter().flatten() {
        // The configuration bounds each to 8 KiB.
        let length = field.len().min(u16::MAX.into());
        body.extend((length as u16).to_be_bytes());
        body.extend(&field.as_bytes()[..length]);
    }
    let mut packet = vec![0x10];
    let mut rest = body.len();
    while rest > 0x7f {
        packet.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    packet.push(rest as u8);
    packet.extend(body);
    packet
}

#[async_trait]
impl HealthCheck for MqttCheck {
    async fn check(&self, target: &Backend) -> pingora_core::Result<()> {
        let mut stream = self.dialler.dial(target).await?;
        let connect = connect_packet(&self.probe, random() as u32);
        stream.write_all(&connect).await.map_err(broken)?;
        stream.flush().await.map_err(broken)?;
        let mut received = Vec::new();
        let code = loop {
            match read_connack(&received, self.probe.level) {
                BrokerFirst::NeedMore => {}
                BrokerFirst::Connack { code, .. } => break code,
                BrokerFirst::Other => return Err(refused("the answer is no CONNACK")),
            }
            let count = stream.read_buf(&mut received).await.map_err(broken)?;
            if count == 0 {
                // A broker that refuses a CONNECT may also just hang up.
                return Err(refused("the connection ended before CONNACK"));
            }
        };
        if code != 0 {
            return Err(refused(&format!("CONNACK {code}")));
        }
        stream.write_all(DISCONNECT).await.map_err(broken)?;
        stream.flush().await.map_err(broken)?;
        let _ = stream.shutdown().await;
        Ok(())
    }

    fn health_threshold(&self, _success: bool) -> usize {
        1
    }
}

fn refused(what: &str) -> Box<Error> {
    Error::explain(ErrorType::Custom(REFUSED), what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::{DecodeOptions, Mode, Protocol, decode};

    #[test]
    fn the_connect_is_one_that_strict_brokers_accept() {
        let long = "p".repeat(300);
        for level in [4, 5] {
            for (username, password) in [
                (None, None),
                (Some("u"), None),
                (Some("u"), Some(long.as_str())),
            ] {
                let probe = MqttProbe {
                    client_id_prefix: "probe-".to_owned(),
                    username: username.map(str::to_owned),
                    password: password.map(str::to_owned),
                    level,
                };
                let packet = connect_packet(&probe, 0xab);
                let options = DecodeOptions {
                    mode: Mode::Strict,
                    max_packet_size: packet.len(),
                    accepted: &[Protocol::new("MQTT", level.into())],
                };
                let connect = decode(&packet, &options).unwrap().expect("it is whole");
                assert_eq!(connect.client_id, b"probe-000000ab");
                assert_eq!(connect.username, username.map(str::as_bytes));
                assert_eq!(connect.has_password, password.is_some());
                assert!(connect.clean_start);
            }
        }
    }
}
