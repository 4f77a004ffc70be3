//! The properties of MQTT 5: which there are, what they hold, and walking through them.

use super::cursor::Cursor;

/// What a property holds (MQTT 5.0 §2.2.2.2, table 2-4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Byte,
    Two,
    Four,
    VarInt,
    Text,
    Binary,
    Pair,
}

/// One row of table 2-4 of MQTT 5.0, as far as CONNECT is concerned.
#[derive(Debug)]
pub(super) struct Property {
    pub(super) id: u8,
    kind: Kind,
    /// The section of MQTT 5.0 that describes it in CONNECT, where it may stand there.
    pub(super) in_connect: Option<&'static str>,
    /// The same for the Will Properties.
    pub(super) in_will: Option<&'static str>,
    /// What is wrong when it stands where it may not.
    pub(super) misplaced: &'static str,
    /// What is wrong when it stands there twice.
    pub(super) repeated: &'static str,
    /// What is wrong when the properties end before its value does.
    pub(super) cut_short: &'static str,
}

macro_rules! property {
    ($id:expr, $kind:ident, $name:literal, $in_connect:expr, $in_will:expr) => {
        Property {
            id: $id,
            kind: Kind::$kind,
            in_connect: $in_connect,
            in_will: $in_will,
            misplaced: concat!("property ", $name, " is not allowed here"),
            repeated: concat!("property ", $name, " is given more than once"),
            cut_short: concat!("property ", $name, " runs past the end of the properties"),
        }
    };
}

pub(super) const PAYLOAD_FORMAT_INDICATOR: u8 = 0x01;
pub(super) const RESPONSE_TOPIC: u8 = 0x08;
pub(super) const SESSION_EXPIRY_INTERVAL: u8 = 0x11;
pub(super) const SERVER_KEEP_ALIVE: u8 = 0x13;
pub(super) const AUTHENTICATION_METHOD: u8 = 0x15;
pub(super) const AUTHENTICATION_DATA: u8 = 0x16;
pub(super) const REQUEST_PROBLEM_INFORMATION: u8 = 0x17;
pub(super) const REQUEST_RESPONSE_INFORMATION: u8 = 0x19;
pub(super) const RECEIVE_MAXIMUM: u8 = 0x21;
pub(super) const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
pub(super) const USER_PROPERTY: u8 = 0x26;
pub(super) const MAXIMUM_PACKET_SIZE: u8 = 0x27;

/// Every property that MQTT 5.0 defines, by identifier.
#[rustfmt::skip]
static TABLE: [Property; 27] = [
    property!(PAYLOAD_FORMAT_INDICATOR, Byte, "Payload Format Indicator", None, Some("MQTT 5.0 §3.1.3.2.3")),
    property!(0x02, Four, "Message Expiry Interval", None, Some("MQTT 5.0 §3.1.3.2.4")),
    property!(0x03, Text, "Content Type", None, Some("MQTT 5.0 §3.1.3.2.5")),
    property!(RESPONSE_TOPIC, Text, "Response Topic", None, Some("MQTT 5.0 §3.1.3.2.6")),
    property!(0x09, Binary, "Correlation Data", None, Some("MQTT 5.0 §3.1.3.2.7")),
    property!(0x0b, VarInt, "Subscription Identifier", None, None),
    property!(SESSION_EXPIRY_INTERVAL, Four, "Session Expiry Interval", Some("MQTT 5.0 §3.1.2.11.2"), None),
    property!(0x12, Text, "Assigned Client Identifier", None, None),
    property!(SERVER_KEEP_ALIVE, Two, "Server Keep Alive", None, None),
    property!(AUTHENTICATION_METHOD, Text, "Authentication Method", Some("MQTT 5.0 §3.1.2.11.9"), None),
    property!(AUTHENTICATION_DATA, Binary, "Authentication Data", Some("MQTT 5.0 §3.1.2.11.10"), None),
    property!(REQUEST_PROBLEM_INFORMATION, Byte, "Request Problem Information", Some("MQTT 5.0 §3.1.2.11.7"), None),
    property!(0x18, Four, "Will Delay Interval", None, Some("MQTT 5.0 §3.1.3.2.2")),
    property!(REQUEST_RESPONSE_INFORMATION, Byte, "Request Response Information", Some("MQTT 5.0 §3.1.2.11.6"), None),
    property!(0x1a, Text, "Response Information", None, None),
    property!(0x1c, Text, "Server Reference", None, None),
    property!(0x1f, Text, "Reason String", None, None),
    property!(RECEIVE_MAXIMUM, Two, "Receive Maximum", Some("MQTT 5.0 §3.1.2.11.3"), None),
    property!(TOPIC_ALIAS_MAXIMUM, Two, "Topic Alias Maximum", Some("MQTT 5.0 §3.1.2.11.5"), None),
    property!(0x23, Two, "Topic Alias", None, None),
    property!(0x24, Byte, "Maximum QoS", None, None),
    property!(0x25, Byte, "Retain Available", None, None),
    property!(USER_PROPERTY, Pair, "User Property", Some("MQTT 5.0 §3.1.2.11.8"), Some("MQTT 5.0 §3.1.3.2.8")),
    property!(MAXIMUM_PACKET_SIZE, Four, "Maximum Packet Size", Some("MQTT 5.0 §3.1.2.11.4"), None),
    property!(0x28, Byte, "Wildcard Subscription Available", None, None),
    property!(0x29, Byte, "Subscription Identifier Available", None, None),
    property!(0x2a, Byte, "Shared Subscription Available", None, None),
];

fn find(id: u32) -> Option<&'static Property> {
    let id = u8::try_from(id).ok()?;
    let row = TABLE.binary_search_by_key(&id, |row| row.id).ok()?;
    TABLE.get(row)
}

/// What one property says. Text is as it was sent; its characters are for the caller to judge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Byte(u8),
    Two(u16),
    Four(u32),
    /// A Variable Byte Integer, which no property has that this crate reads.
    VarInt,
    Text(&'a [u8]),
    Binary(&'a [u8]),
    Pair(&'a [u8], &'a [u8]),
}

/// One property, and where in the packet its identifier stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item<'a> {
    pub(super) property: &'static Property,
    pub(super) value: Value<'a>,
    pub(super) at: usize,
}

/// Why the walk cannot go on.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// The identifier is no Variable Byte Integer of minimal length.
    Identifier,
    /// MQTT 5.0 defines no such property, so its length is unknown too.
    Unknown,
    /// The properties end inside the value of this one.
    CutShort(&'static Property),
}

/// Walks through properties; ends at the first one that cannot be read, with its fault and place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Properties<'a> {
    cursor: Cursor<'a>,
    failed: bool,
}

impl<'a> Properties<'a> {
    /// Over the bytes behind a Property Length; `at` is where in the packet they begin.
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Self {
        Self {
            cursor: Cursor::new(bytes, at),
            failed: false,
        }
    }

    fn read(&mut self) -> Result<(&'static Property, Value<'a>), Fault> {
        let cursor = &mut self.cursor;
        let id = cursor
            .varint()
            .filter(|id| id.is_sound())
            .ok_or(Fault::Identifier)?;
        let property = find(id.value).ok_or(Fault::Unknown)?;
        let value = match property.kind {
            Kind::Byte => cursor.byte().map(Value::Byte),
            Kind::Two => cursor.two().map(Value::Two),
            Kind::Four => cursor.four().map(Value::Four),
            Kind::VarInt => cursor.varint().map(|_| Value::VarInt),
            Kind::Text => cursor.counted().map(Value::Text),
            Kind::Binary => cursor.counted().map(Value::Binary),
            Kind::Pair => cursor
                .counted()
                .and_then(|name| Some(Value::Pair(name, cursor.counted()?))),
        };
        Ok((property, value.ok_or(Fault::CutShort(property))?))
    }
}

impl<'a> Iterator for Properties<'a> {
    type Item = Result<Item<'a>, (Fault, usize)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.cursor.is_empty() {
            return None;
        }
        let at = self.cursor.at();
        Some(match self.read() {
            Ok((property, value)) => Ok(Item {
                property,
                value,
                at,
            }),
            Err(fault) => {
                self.failed = true;
                Err((fault, at))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order_and_fits_a_bit_set() {
        assert!(TABLE.windows(2).all(|pair| pair[0].id < pair[1].id));
        assert!(TABLE.iter().all(|row| row.id < 64));
        assert_eq!(TABLE.iter().filter(|p| p.in_connect.is_some()).count(), 9);
        assert_eq!(TABLE.iter().filter(|p| p.in_will.is_some()).count(), 7);
    }

    #[test]
    fn the_walk_yields_values_and_places() {
        let bytes = [0x11, 0, 0, 0x0e, 0x10, 0x26, 0, 1, b'k', 0, 2, b'v', b'w'];
        let mut walk = Properties::new(&bytes, 100);
        let item = walk.next().unwrap().unwrap();
        assert_eq!(
            (item.property.id, item.value, item.at),
            (0x11, Value::Four(3600), 100)
        );
        let item = walk.next().unwrap().unwrap();
        assert_eq!((item.value, item.at), (Value::Pair(b"k", b"vw"), 105));
        assert!(walk.next().is_none());
    }

    #[test]
    fn the_walk_ends_at_the_first_fault() {
        let fault = |bytes: &[u8]| {
            let mut walk = Properties::new(bytes, 0);
            let fault = walk.next().unwrap().unwrap_err().0;
            assert!(walk.next().is_none());
            fault
        };
        assert!(matches!(fault(&[0x00, 1]), Fault::Unknown));
        assert!(matches!(fault(&[0x7f, 1]), Fault::Unknown));
        assert!(matches!(fault(&[0x91, 0x02, 1]), Fault::Unknown));
        assert!(matches!(
            fault(&[0x91, 0x00, 0, 0, 0, 1]),
            Fault::Identifier
        ));
        assert!(matches!(fault(&[0x80]), Fault::Identifier));
        assert!(matches!(fault(&[0x11, 0, 0, 0]), Fault::CutShort(_)));
        assert!(matches!(
            fault(&[0x26, 0, 1, b'k', 0, 2, b'v']),
            Fault::CutShort(_)
        ));
    }
}
