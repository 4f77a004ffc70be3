//! Every rule that CONNECT is held to, with the clause that sets it in each version.
//!
//! `docs/mqtt-parser.md` shows the same list; a test compares the two.

use super::error::DecodeError;

/// Which document a CONNECT is judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// MQTT 3.1 (IBM and Eurotech, 2010): protocol level 3.
    V31,
    /// MQTT 3.1.1 (OASIS, 2014): protocol level 4, and whatever is neither 3 nor 5.
    V311,
    /// MQTT 5.0 (OASIS, 2019): protocol level 5.
    V5,
}

impl Version {
    /// By the protocol level of a CONNECT. Bit 7 marks a bridge and does not change the layout.
    pub(super) fn of(level: u8) -> Self {
        match level & 0x7f {
            3 => Self::V31,
            5 => Self::V5,
            _ => Self::V311,
        }
    }
}

/// The version and level that a broken rule is reported with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Judged {
    pub(super) version: Version,
    /// The byte of the client's CONNECT.
    pub(super) level: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Malformed,
    ProtocolError,
}

/// One thing that can be wrong with a CONNECT.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    class: Class,
    pub(super) what: &'static str,
    /// The clause in MQTT 3.1, 3.1.1 and 5.0; empty where the version does not have the rule.
    clauses: [&'static str; 3],
}

impl Rule {
    pub(super) const fn malformed(what: &'static str, clauses: [&'static str; 3]) -> Self {
        Self {
            class: Class::Malformed,
            what,
            clauses,
        }
    }

    pub(super) const fn malformed_v5(what: &'static str, clause: &'static str) -> Self {
        Self::malformed(what, ["", "", clause])
    }

    pub(super) const fn protocol_error_v5(what: &'static str, clause: &'static str) -> Self {
        Self {
            class: Class::ProtocolError,
            what,
            clauses: ["", "", clause],
        }
    }

    /// Whether the version of this CONNECT has the rule at all.
    pub(super) fn holds_in(&self, version: Version) -> bool {
        !self.clause(version).is_empty()
    }

    pub(super) fn clause(&self, version: Version) -> &'static str {
        let [v31, v311, v5] = self.clauses;
        match version {
            Version::V31 => v31,
            Version::V311 => v311,
            Version::V5 => v5,
        }
    }

    /// The error that says that this rule is broken at byte `at` of the packet.
    pub(super) fn broken(&self, judged: Judged, at: usize) -> DecodeError {
        let clause = self.clause(judged.version);
        let (what, level) = (self.what, Some(judged.level));
        match self.class {
            Class::Malformed => DecodeError::Malformed {
                clause,
                what,
                at,
                level,
            },
            Class::ProtocolError => DecodeError::ProtocolError {
                clause,
                what,
                at,
                level,
            },
        }
    }

    /// The error for a rule that is broken before the protocol level is known, and with it whether
    /// the client could read a CONNACK. The clause it names is that of MQTT 3.1.1.
    pub(super) fn broken_early(&self, at: usize) -> DecodeError {
        DecodeError::Malformed {
            clause: self.clause(Version::V311),
            what: self.what,
            at,
            level: None,
        }
    }
}

/// The rules for the characters of a UTF-8 Encoded String.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text {
    pub(super) ill_formed: Rule,
    pub(super) null: Rule,
}

/// The rules for a string of the payload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    pub(super) cut_short: Rule,
    pub(super) text: Text,
}

const ILL_FORMED: [&str; 3] = ["MQTT 3.1 §2.5", "MQTT-1.5.3-1", "MQTT-1.5.4-1"];
const NULL: [&str; 3] = ["MQTT 3.1 §2.5", "MQTT-1.5.3-2", "MQTT-1.5.4-2"];
const PAYLOAD: &str = "MQTT 3.1 §3.1";

macro_rules! field {
    ($name:literal, $presence:expr) => {
        Field {
            cut_short: Rule::malformed(
                concat!($name, " runs past the end of the packet"),
                $presence,
            ),
            text: Text {
                ill_formed: Rule::malformed(
                    concat!($name, " is not well-formed UTF-8"),
                    ILL_FORMED,
                ),
                null: Rule::malformed(concat!($name, " contains U+0000"), NULL),
            },
        }
    };
}

pub(super) const CLIENT_ID: Field =
    field!("the client id", [PAYLOAD, "MQTT-3.1.3-3", "MQTT-3.1.3-3"]);
pub(super) const WILL_TOPIC: Field =
    field!("the Will Topic", [PAYLOAD, "MQTT-3.1.2-9", "MQTT-3.1.2-9"]);
pub(super) const USER_NAME: Field =
    field!("the user name", [PAYLOAD, "MQTT-3.1.2-19", "MQTT-3.1.2-17"]);
pub(super) const PROPERTY_TEXT: Text = Text {
    ill_formed: Rule::malformed_v5(
        "a string of a property is not well-formed UTF-8",
        "MQTT-1.5.4-1",
    ),
    null: Rule::malformed_v5("a string of a property contains U+0000", "MQTT-1.5.4-2"),
};
pub(super) const WILL_PAYLOAD_CUT_SHORT: Rule = Rule::malformed(
    "the Will Payload runs past the end of the packet",
    [PAYLOAD, "MQTT-3.1.2-9", "MQTT-3.1.2-9"],
);
pub(super) const PASSWORD_CUT_SHORT: Rule = Rule::malformed(
    "the password runs past the end of the packet",
    [PAYLOAD, "MQTT-3.1.2-21", "MQTT-3.1.2-19"],
);

pub(super) const FIXED_HEADER_FLAGS: Rule = Rule::malformed(
    "the flags of the fixed header are not 0",
    ["MQTT-2.2.2-2", "MQTT-2.2.2-2", "MQTT-2.1.3-1"],
);
pub(super) const REMAINING_LENGTH: Rule = Rule::malformed(
    "the Remaining Length takes more than four bytes",
    ["MQTT 3.1 §2.1", "MQTT 3.1.1 §2.2.3", "MQTT 5.0 §1.5.5"],
);
pub(super) const REMAINING_LENGTH_MINIMAL: Rule = Rule::malformed_v5(
    "the Remaining Length takes more bytes than it needs",
    "MQTT-1.5.5-1",
);
pub(super) const VARIABLE_HEADER: Rule = Rule::malformed(
    "the packet ends inside its variable header",
    [PAYLOAD, "MQTT 3.1.1 §3.1.2", "MQTT 5.0 §3.1.2"],
);
pub(super) const RESERVED_FLAG: Rule = Rule::malformed(
    "reserved bit 0 of the connect flags is set",
    ["", "MQTT-3.1.2-3", "MQTT-3.1.2-3"],
);
pub(super) const WILL_QOS: Rule = Rule::malformed(
    "the Will QoS is 3",
    [PAYLOAD, "MQTT-3.1.2-14", "MQTT-3.1.2-12"],
);
pub(super) const WILL_QOS_ALONE: Rule = Rule::malformed(
    "the Will QoS is not 0 although there is no Will",
    ["", "MQTT-3.1.2-13", "MQTT-3.1.2-11"],
);
pub(super) const WILL_RETAIN_ALONE: Rule = Rule::malformed(
    "Will Retain is set although there is no Will",
    ["", "MQTT-3.1.2-15", "MQTT-3.1.2-13"],
);
pub(super) const PASSWORD_ALONE: Rule = Rule::malformed(
    "there is a password but no user name",
    [PAYLOAD, "MQTT-3.1.2-22", ""],
);
pub(super) const WILL_TOPIC_EMPTY: Rule = Rule::malformed(
    "the Will Topic is empty",
    ["MQTT 3.1 §3.1", "MQTT-4.7.3-1", "MQTT-4.7.3-1"],
);
pub(super) const WILL_TOPIC_WILDCARD: Rule = Rule::malformed(
    "the Will Topic contains a wildcard",
    ["MQTT 3.1 §3.3", "MQTT-4.7.1-1", "MQTT-4.7.0-1"],
);
pub(super) const LEFT_OVER: Rule = Rule::malformed(
    "bytes are left over behind the payload",
    [PAYLOAD, "MQTT 3.1.1 §3.1.3", "MQTT 5.0 §3.1.3"],
);

pub(super) const PROPERTY_LENGTH: Rule = Rule::malformed_v5(
    "the Property Length is no Variable Byte Integer of minimal length",
    "MQTT-1.5.5-1",
);
pub(super) const PROPERTIES_CUT_SHORT: Rule = Rule::malformed_v5(
    "the properties run past the end of the packet",
    "MQTT 5.0 §3.1.2.11.1",
);
pub(super) const WILL_PROPERTIES_CUT_SHORT: Rule = Rule::malformed_v5(
    "the Will Properties run past the end of the packet",
    "MQTT 5.0 §3.1.3.2.1",
);
pub(super) const PROPERTY_IDENTIFIER: Rule = Rule::malformed_v5(
    "a property identifier is no Variable Byte Integer of minimal length",
    "MQTT-1.5.5-1",
);
pub(super) const PROPERTY_UNKNOWN: Rule =
    Rule::malformed_v5("a property identifier is not defined", "MQTT 5.0 §2.2.2.2");
pub(super) const RECEIVE_MAXIMUM_ZERO: Rule =
    Rule::protocol_error_v5("Receive Maximum is 0", "MQTT 5.0 §3.1.2.11.3");
pub(super) const MAXIMUM_PACKET_SIZE_ZERO: Rule =
    Rule::protocol_error_v5("Maximum Packet Size is 0", "MQTT 5.0 §3.1.2.11.4");
pub(super) const REQUEST_RESPONSE_VALUE: Rule = Rule::protocol_error_v5(
    "Request Response Information is neither 0 nor 1",
    "MQTT 5.0 §3.1.2.11.6",
);
pub(super) const REQUEST_PROBLEM_VALUE: Rule = Rule::protocol_error_v5(
    "Request Problem Information is neither 0 nor 1",
    "MQTT 5.0 §3.1.2.11.7",
);
pub(super) const AUTHENTICATION_DATA_ALONE: Rule = Rule::protocol_error_v5(
    "there is Authentication Data but no Authentication Method",
    "MQTT 5.0 §3.1.2.11.10",
);
pub(super) const PAYLOAD_FORMAT_VALUE: Rule = Rule::protocol_error_v5(
    "Payload Format Indicator is neither 0 nor 1",
    "MQTT 5.0 §3.1.3.2.3",
);
pub(super) const RESPONSE_TOPIC_EMPTY: Rule =
    Rule::malformed_v5("the Response Topic is empty", "MQTT-4.7.3-1");
pub(super) const RESPONSE_TOPIC_WILDCARD: Rule =
    Rule::malformed_v5("the Response Topic contains a wildcard", "MQTT-3.3.2-14");

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Rule; 38] = [
        FIXED_HEADER_FLAGS,
        REMAINING_LENGTH,
        REMAINING_LENGTH_MINIMAL,
        VARIABLE_HEADER,
        RESERVED_FLAG,
        WILL_QOS,
        WILL_QOS_ALONE,
        WILL_RETAIN_ALONE,
        PASSWORD_ALONE,
        CLIENT_ID.cut_short,
        CLIENT_ID.text.ill_formed,
        CLIENT_ID.text.null,
        WILL_TOPIC.cut_short,
        WILL_TOPIC.text.ill_formed,
        WILL_TOPIC.text.null,
        WILL_TOPIC_EMPTY,
        WILL_TOPIC_WILDCARD,
        WILL_PAYLOAD_CUT_SHORT,
        USER_NAME.cut_short,
        USER_NAME.text.ill_formed,
        USER_NAME.text.null,
        PASSWORD_CUT_SHORT,
        LEFT_OVER,
        PROPERTY_LENGTH,
        PROPERTIES_CUT_SHORT,
        WILL_PROPERTIES_CUT_SHORT,
        PROPERTY_IDENTIFIER,
        PROPERTY_UNKNOWN,
        PROPERTY_TEXT.ill_formed,
        PROPERTY_TEXT.null,
        RECEIVE_MAXIMUM_ZERO,
        MAXIMUM_PACKET_SIZE_ZERO,
        REQUEST_RESPONSE_VALUE,
        REQUEST_PROBLEM_VALUE,
        AUTHENTICATION_DATA_ALONE,
        PAYLOAD_FORMAT_VALUE,
        RESPONSE_TOPIC_EMPTY,
        RESPONSE_TOPIC_WILDCARD,
    ];

    #[test]
    fn the_documentation_lists_every_rule_with_its_clauses() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/mqtt-parser.md");
        let document = std::fs::read_to_string(path).unwrap();
        let cell = |clause: &'static str| if clause.is_empty() { "–" } else { clause };
        for rule in ALL {
            let class = match rule.class {
                Class::Malformed => "malformed",
                Class::ProtocolError => "protocol error",
            };
            let [v31, v311, v5] = rule.clauses.map(cell);
            let row = format!("| {} | {v31} | {v311} | {v5} | {class} |", rule.what);
            assert!(document.contains(&row), "docs/mqtt-parser.md lacks: {row}");
        }
    }
}
