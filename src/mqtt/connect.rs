//! The one entry point of the decoder, and what it yields.

use std::borrow::Cow;

use super::error::DecodeError;
use super::header;
use super::properties::{Properties, Value};
use super::{strict, tolerant};

/// How strictly CONNECT is judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// By the OASIS standards 3.1.1 and 5.0, and by MQTT 3.1 for level 3.
    #[default]
    Strict,
    /// As the `mqtt-proxy` plugin of APISIX does: protocol name, level and client id must be
    /// readable, nothing else is looked at.
    Tolerant,
}

/// A protocol name and level that a route accepts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Protocol<'a> {
    /// Compared byte for byte, as APISIX does: `MQTT`, `MQIsdp`, or whatever the route says.
    pub name: Cow<'a, str>,
    /// Compared as a number, bridge bit 0x80 included; out of 0 … 255 it never matches.
    pub level: i64,
}

impl<'a> Protocol<'a> {
    /// A pair of name and level, borrowed or owned.
    pub fn new(name: impl Into<Cow<'a, str>>, level: i64) -> Self {
        let name = name.into();
        Self { name, level }
    }
}

/// What [`decode`] judges by.
#[derive(Clone, Copy, Debug)]
pub struct DecodeOptions<'a> {
    /// How strictly.
    pub mode: Mode,
    /// The longest CONNECT that is taken, in bytes of the whole packet, fixed header included.
    pub max_packet_size: usize,
    /// The protocol names and levels that are taken. Short: it is searched for every packet.
    pub accepted: &'a [Protocol<'a>],
}

/// A CONNECT packet. Everything in it borrows from the bytes that the client sent.
///
/// In [`Mode::Tolerant`], what stands behind the client id is read as far as it can be, and so are
/// the properties; fields that could not be read are as if the client had not sent them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Connect<'a> {
    /// The length of the packet in bytes. What was received behind it is the client's next packet.
    pub packet_len: usize,
    /// `MQTT`, `MQIsdp`, or another name that the options accept.
    pub protocol_name: &'a [u8],
    /// The protocol level as it was sent: 3, 4, 5, or one of them with the bridge bit 0x80.
    pub level: u8,
    /// May be empty: the client asks for an id of the broker's choice. Well-formed UTF-8 without
    /// U+0000 in [`Mode::Strict`], any bytes in [`Mode::Tolerant`].
    pub client_id: &'a [u8],
    /// The user name, if there is one; its bytes are as sure as those of the client id.
    pub username: Option<&'a [u8]>,
    /// Whether there is a password. It is not kept.
    pub has_password: bool,
    /// Seconds between packets of the client that it promises not to exceed; 0 promises nothing.
    pub keep_alive: u16,
    /// Clean Start (5.0), Clean Session (3.1.1): the client wants no earlier session.
    pub clean_start: bool,
    /// Whether the broker is to publish a Will when the client is lost.
    pub has_will: bool,
    /// Seconds the session outlives the connection; 0xFFFF_FFFF is for ever. MQTT 5 only.
    pub session_expiry_interval: Option<u32>,
    /// QoS 1 and 2 messages the client takes at a time, 1 … 65,535. MQTT 5 only.
    pub receive_maximum: Option<u16>,
    /// The longest packet in bytes that the client takes, at least 1. MQTT 5 only.
    pub maximum_packet_size: Option<u32>,
    /// Topic aliases that the client takes. MQTT 5 only.
    pub topic_alias_maximum: Option<u16>,
    /// The name of the enhanced authentication that the client begins, in which case the broker's
    /// first packet may be AUTH. MQTT 5 only.
    pub authentication_method: Option<&'a [u8]>,
    pub(super) properties: &'a [u8],
}

impl<'a> Connect<'a> {
    /// The User Properties in the order they were sent [MQTT-3.1.3-10]; none before MQTT 5. A pair
    /// that is not well-formed UTF-8, possible in [`Mode::Tolerant`] only, is left out.
    pub fn user_properties(&self) -> UserProperties<'a> {
        UserProperties(Properties::new(self.properties, 0))
    }

    /// Whether bit 7 of the level says that the client is a bridge (a mosquitto convention).
    pub fn is_bridge(&self) -> bool {
        self.level & 0x80 != 0
    }
}

/// What [`Connect::user_properties`] returns: names and values.
#[derive(Clone, Debug)]
pub struct UserProperties<'a>(Properties<'a>);

impl<'a> Iterator for UserProperties<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.find_map(|item| match item.ok()?.value {
            Value::Pair(name, value) => {
                let name = std::str::from_utf8(name).ok()?;
                Some((name, std::str::from_utf8(value).ok()?))
            }
            _ => None,
        })
    }
}

/// Looks at everything a client has sent so far, from its first byte on.
///
/// `Ok(None)` means that more bytes are needed; that answer costs the same few comparisons however
/// much has arrived, so a client that dribbles its bytes costs nothing, and it is never given once
/// `max_packet_size` bytes are there. What can be judged early is: the first byte at once, the
/// protocol name and level as soon as they are there, the declared size before the body arrives.
///
/// ```
/// use mqtt_proxy::mqtt::{DecodeOptions, Mode, Protocol, decode};
///
/// let options = DecodeOptions {
///     mode: Mode::Strict,
///     max_packet_size: 16 * 1024,
///     accepted: &[Protocol::new("MQTT", 4), Protocol::new("MQTT", 5)],
/// };
/// let received = b"\x10\x0f\0\x04MQTT\x04\x02\0\x3c\0\x03foo";
/// assert_eq!(decode(&received[..9], &options), Ok(None));
/// let connect = decode(received, &options)?.expect("the whole packet is there");
/// assert_eq!(connect.client_id, b"foo");
/// assert_eq!(connect.keep_alive, 60);
/// # Ok::<(), mqtt_proxy::mqtt::DecodeError>(())
/// ```
///
/// # Errors
///
/// See [`DecodeError`]; the verdict is final, more bytes do not change it.
pub fn decode<'a>(
    received: &'a [u8],
    options: &DecodeOptions<'_>,
) -> Result<Option<Connect<'a>>, DecodeError> {
    let Some(header) = header::read(received, options)? else {
        return Ok(None);
    };
    match options.mode {
        Mode::Strict => strict::read(&header),
        Mode::Tolerant => tolerant::read(&header),
    }
    .map(Some)
}

#[cfg(test)]
mod tests;
