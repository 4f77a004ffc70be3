//! CONNECT as the standards have it, from the connect flags to the last byte.

use super::connect::Connect;
use super::cursor::Cursor;
use super::error::DecodeError;
use super::header::Header;
use super::properties::{self as property, Fault, Item, Properties, Value};
use super::rules::{self, Field, Judged, Rule, Text, Version};

type Judgement<T = ()> = Result<T, DecodeError>;

/// The connect flags (§3.1.2.3 of both standards).
#[derive(Clone, Copy, Debug)]
pub(super) struct Flags(pub(super) u8);

impl Flags {
    fn reserved(self) -> bool {
        self.0 & 0x01 != 0
    }

    pub(super) fn clean_start(self) -> bool {
        self.0 & 0x02 != 0
    }

    pub(super) fn will(self) -> bool {
        self.0 & 0x04 != 0
    }

    fn will_qos(self) -> u8 {
        (self.0 >> 3) & 0x03
    }

    fn will_retain(self) -> bool {
        self.0 & 0x20 != 0
    }

    pub(super) fn password(self) -> bool {
        self.0 & 0x40 != 0
    }

    pub(super) fn username(self) -> bool {
        self.0 & 0x80 != 0
    }
}

/// Reads a packet that is wholly there.
pub(super) fn read<'a>(header: &Header<'a>) -> Judgement<Connect<'a>> {
    let Header { judged, .. } = *header;
    let mut reader = Reader {
        body: header.body,
        judged,
    };
    let mut connect = header.connect();

    let flags = reader.flags()?;
    connect.clean_start = flags.clean_start();
    connect.has_will = flags.will();
    connect.keep_alive = reader.keep_alive()?;
    if judged.version == Version::V5 {
        reader.connect_properties(&mut connect)?;
    }
    connect.client_id = reader.text(&rules::CLIENT_ID)?;
    if flags.will() {
        reader.will()?;
    }
    if flags.username() && !reader.ends_early() {
        connect.username = Some(reader.text(&rules::USER_NAME)?);
    }
    if flags.password() && !reader.ends_early() {
        connect.has_password = true;
        reader.binary(&rules::PASSWORD_CUT_SHORT)?;
    }
    let end = reader.body.at();
    reader.check(&rules::LEFT_OVER, reader.body.is_empty(), end)?;
    Ok(connect)
}

struct Reader<'a> {
    body: Cursor<'a>,
    judged: Judged,
}

impl<'a> Reader<'a> {
    /// Fails unless `fine`, or unless this version does not have the rule.
    fn check(&self, rule: &Rule, fine: bool, at: usize) -> Judgement {
        if fine || !rule.holds_in(self.judged.version) {
            return Ok(());
        }
        Err(rule.broken(self.judged, at))
    }

    fn flags(&mut self) -> Judgement<Flags> {
        let at = self.body.at();
        let Some(byte) = self.body.byte() else {
            return Err(rules::VARIABLE_HEADER.broken(self.judged, at));
        };
        let flags = Flags(byte);
        self.check(&rules::RESERVED_FLAG, !flags.reserved(), at)?;
        if flags.will() {
            self.check(&rules::WILL_QOS, flags.will_qos() != 3, at)?;
        } else {
            self.check(&rules::WILL_QOS_ALONE, flags.will_qos() == 0, at)?;
            self.check(&rules::WILL_RETAIN_ALONE, !flags.will_retain(), at)?;
        }
        let password_alone = flags.password() && !flags.username();
        self.check(&rules::PASSWORD_ALONE, !password_alone, at)?;
        Ok(flags)
    }

    fn keep_alive(&mut self) -> Judgement<u16> {
        let at = self.body.at();
        let read = self.body.two();
        read.ok_or_else(|| rules::VARIABLE_HEADER.broken(self.judged, at))
    }

    /// MQTT 3.1 §3.1 lets a client set the flags for user name and password and leave them out:
    /// the Remaining Length takes precedence over the flags there.
    fn ends_early(&self) -> bool {
        self.judged.version == Version::V31 && self.body.is_empty()
    }

    fn binary(&mut self, cut_short: &Rule) -> Judgement<&'a [u8]> {
        let at = self.body.at();
        let read = self.body.counted();
        read.ok_or_else(|| cut_short.broken(self.judged, at))
    }

    fn text(&mut self, field: &Field) -> Judgement<&'a [u8]> {
        let at = self.body.at();
        let bytes = self.binary(&field.cut_short)?;
        self.check_text(bytes, &field.text, at)?;
        Ok(bytes)
    }

    /// `str` knows surrogates, overlong forms and code points past U+10FFFF for what they are.
    fn check_text(&self, bytes: &[u8], text: &Text, at: usize) -> Judgement {
        self.check(&text.ill_formed, std::str::from_utf8(bytes).is_ok(), at)?;
        self.check(&text.null, !bytes.contains(&0), at)
    }

    fn will(&mut self) -> Judgement {
        if self.judged.version == Version::V5 {
            self.will_properties()?;
        }
        let at = self.body.at();
        let topic = self.text(&rules::WILL_TOPIC)?;
        self.check(&rules::WILL_TOPIC_EMPTY, !topic.is_empty(), at)?;
        self.check(&rules::WILL_TOPIC_WILDCARD, !has_wildcard(topic), at)?;
        self.binary(&rules::WILL_PAYLOAD_CUT_SHORT)?;
        Ok(())
    }

    /// The bytes of a property section, and where they begin.
    fn section(&mut self, cut_short: &Rule) -> Judgement<(&'a [u8], usize)> {
        let start = self.body.at();
        let Some(len) = self.body.varint() else {
            return Err(cut_short.broken(self.judged, start));
        };
        self.check(&rules::PROPERTY_LENGTH, len.is_sound(), start)?;
        let at = self.body.at();
        let len = usize::try_from(len.value).unwrap_or(usize::MAX);
        let Some(bytes) = self.body.take(len) else {
            return Err(cut_short.broken(self.judged, start));
        };
        Ok((bytes, at))
    }

    fn connect_properties(&mut self, connect: &mut Connect<'a>) -> Judgement {
        let (bytes, start) = self.section(&rules::PROPERTIES_CUT_SHORT)?;
        let mut seen = Seen::default();
        let mut authentication_data_at = None;
        for item in Properties::new(bytes, start) {
            let item = self.allowed(item, |p| p.in_connect, &mut seen)?;
            let (rule, fine) = match (item.property.id, item.value) {
                (property::RECEIVE_MAXIMUM, Value::Two(max)) => {
                    (&rules::RECEIVE_MAXIMUM_ZERO, max != 0)
                }
                (property::MAXIMUM_PACKET_SIZE, Value::Four(max)) => {
                    (&rules::MAXIMUM_PACKET_SIZE_ZERO, max != 0)
                }
                (property::REQUEST_RESPONSE_INFORMATION, Value::Byte(flag)) => {
                    (&rules::REQUEST_RESPONSE_VALUE, flag <= 1)
                }
                (property::REQUEST_PROBLEM_INFORMATION, Value::Byte(flag)) => {
                    (&rules::REQUEST_PROBLEM_VALUE, flag <= 1)
                }
                (property::AUTHENTICATION_DATA, _) => {
                    authentication_data_at = Some(item.at);
                    continue;
                }
                _ => {
                    connect.note(&item);
                    continue;
                }
            };
            self.check(rule, fine, item.at)?;
            connect.note(&item);
        }
        if let Some(at) = authentication_data_at {
            let fine = connect.authentication_method.is_some();
            self.check(&rules::AUTHENTICATION_DATA_ALONE, fine, at)?;
        }
        connect.properties = bytes;
        Ok(())
    }

    fn will_properties(&mut self) -> Judgement {
        let (bytes, start) = self.section(&rules::WILL_PROPERTIES_CUT_SHORT)?;
        let mut seen = Seen::default();
        for item in Properties::new(bytes, start) {
            let item = self.allowed(item, |p| p.in_will, &mut seen)?;
            match (item.property.id, item.value) {
                (property::PAYLOAD_FORMAT_INDICATOR, Value::Byte(format)) => {
                    self.check(&rules::PAYLOAD_FORMAT_VALUE, format <= 1, item.at)?;
                }
                (property::RESPONSE_TOPIC, Value::Text(topic)) => {
                    self.check(&rules::RESPONSE_TOPIC_EMPTY, !topic.is_empty(), item.at)?;
                    let fine = !has_wildcard(topic);
                    self.check(&rules::RESPONSE_TOPIC_WILDCARD, fine, item.at)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What holds for every property: readable, allowed in this place, once unless it is a User
    /// Property, and its text in order.
    fn allowed(
        &self,
        item: Result<Item<'a>, (Fault, usize)>,
        section: impl Fn(&property::Property) -> Option<&'static str>,
        seen: &mut Seen,
    ) -> Judgement<Item<'a>> {
        let item = item.map_err(|(fault, at)| match fault {
            Fault::Identifier => rules::PROPERTY_IDENTIFIER.broken(self.judged, at),
            Fault::Unknown => rules::PROPERTY_UNKNOWN.broken(self.judged, at),
            Fault::CutShort(property) => {
                let rule = Rule::malformed_v5(property.cut_short, "MQTT 5.0 §2.2.2.2");
                rule.broken(self.judged, at)
            }
        })?;
        let Some(clause) = section(item.property) else {
            let rule = Rule::malformed_v5(item.property.misplaced, "MQTT 5.0 §2.2.2.2");
            return Err(rule.broken(self.judged, item.at));
        };
        if seen.again(item.property.id) && item.property.id != property::USER_PROPERTY {
            let rule = Rule::protocol_error_v5(item.property.repeated, clause);
            return Err(rule.broken(self.judged, item.at));
        }
        match item.value {
            Value::Text(text) => self.check_text(text, &rules::PROPERTY_TEXT, item.at)?,
            Value::Pair(name, value) => {
                self.check_text(name, &rules::PROPERTY_TEXT, item.at)?;
                self.check_text(value, &rules::PROPERTY_TEXT, item.at)?;
            }
            _ => {}
        }
        Ok(item)
    }
}

/// Which properties a section has had; identifiers are below 64.
#[derive(Default)]
struct Seen(u64);

impl Seen {
    /// Notes a property, and says whether it was noted before.
    fn again(&mut self, id: u8) -> bool {
        let bit = 1_u64.checked_shl(u32::from(id)).unwrap_or(0);
        let before = self.0 & bit != 0;
        self.0 |= bit;
        before
    }
}

fn has_wildcard(topic: &[u8]) -> bool {
    topic.iter().any(|byte| matches!(byte, b'+' | b'#'))
}

impl<'a> Connect<'a> {
    /// Keeps what a property says, if it is one that somebody asks for.
    pub(super) fn note(&mut self, item: &Item<'a>) {
        match (item.property.id, item.value) {
            (property::SESSION_EXPIRY_INTERVAL, Value::Four(seconds)) => {
                self.session_expiry_interval = Some(seconds);
            }
            (property::RECEIVE_MAXIMUM, Value::Two(max)) => self.receive_maximum = Some(max),
            (property::MAXIMUM_PACKET_SIZE, Value::Four(max)) => {
                self.maximum_packet_size = Some(max);
            }
            (property::TOPIC_ALIAS_MAXIMUM, Value::Two(max)) => {
                self.topic_alias_maximum = Some(max);
            }
            (property::AUTHENTICATION_METHOD, Value::Text(method)) => {
                self.authentication_method = Some(method);
            }
            _ => {}
        }
    }
}
