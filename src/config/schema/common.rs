//! Kinds that several objects share.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Field, Kind, List, Object, Pattern, Rest, Text};

/// The text form of an id.
const ID_PATTERN: Pattern = Pattern {
    regex: "^[a-zA-Z0-9\\-_.]+$",
    test: |text| {
        !text.is_empty()
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    },
    expected: "letters, digits, '-', '_' and '.'",
};

/// An id: a text of 1–64 letters, digits, `-`, `_`, `.`, or an integer from 1.
pub const ID: Kind = Kind::Either(&[
    Kind::Text(Text::sized(1, 64).pattern(&ID_PATTERN)),
    Kind::int_from(1),
]);

/// A host as APISIX's `host_def` has it: a name or address, or a name with a leading `*`.
pub const HOST_PATTERN: Pattern = Pattern {
    regex: "^\\*$|^\\*?[0-9a-zA-Z\\-._\\[\\]:]+$",
    test: |text| {
        if text == "*" {
            return true;
        }
        let rest = text.strip_prefix('*').unwrap_or(text);
        !rest.is_empty()
            && rest.bytes().all(|b| {
                b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'[' | b']' | b':')
            })
    },
    expected: "a host name, possibly with a leading *",
};

/// A host or a wildcard.
pub const HOST: Kind = Kind::Text(Text::ANY.pattern(&HOST_PATTERN));

/// Whether `text` is an address or a CIDR block; bits behind the prefix are allowed and masked.
fn is_network(text: &str) -> bool {
    match text.split_once('/') {
        None => text.parse::<Ipv4Addr>().is_ok() || text.parse::<Ipv6Addr>().is_ok(),
        Some(_) => text.parse::<ipnet::IpNet>().is_ok(),
    }
}

/// An address or CIDR block; whether it really is one, only the check can tell.
const NETWORK_PATTERN: Pattern = Pattern {
    regex: "^[0-9a-fA-F:.]+(/[0-9]{1,3})?$",
    test: is_network,
    expected: "an address or a CIDR block",
};

/// An address or CIDR block, IPv4 or IPv6.
pub const NETWORK: Kind = Kind::Text(Text::ANY.pattern(&NETWORK_PATTERN));

/// A name: 1–256 characters.
pub const NAME: Kind = Kind::Text(Text::sized(1, 256));

const LABEL_PATTERN: Pattern = Pattern {
    regex: "^\\S+$",
    test: |text| !text.is_empty() && !text.chars().any(char::is_whitespace),
    expected: "a text without blanks",
};

/// Labels: texts of 1–256 characters without blanks.
pub const LABELS: Object = Object::strict("", "", &[]).rest(Rest::Each(&Kind::Text(
    Text::sized(1, 256).pattern(&LABEL_PATTERN),
)));

/// `id` of an object.
pub const ID_FIELD: Field = Field::new(
    "id",
    ID,
    "Identity of the object; \"arr_N\" by its place in the list, from 1, when it has none.",
);

/// `name` of an object.
pub const NAME_FIELD: Field = Field::new("name", NAME, "Name for people.");

/// `desc` of an object.
pub const DESC_FIELD: Field = Field::new(
    "desc",
    Kind::Text(Text::sized(0, 256)),
    "Description for people.",
);

/// `labels` of an object.
pub const LABELS_FIELD: Field = Field::new("labels", Kind::Object(&LABELS), "Labels for people.");

/// `create_time` of an object.
pub const CREATE_TIME_FIELD: Field = Field::new(
    "create_time",
    Kind::INT,
    "When the object was made, Unix seconds.",
);

/// `update_time` of an object.
pub const UPDATE_TIME_FIELD: Field = Field::new(
    "update_time",
    Kind::INT,
    "When the object was changed, Unix seconds.",
);

/// A PEM certificate, or a reference to it.
pub const SSL_CERTIFICATE: Kind = Kind::Text(Text::sized(128, 65536).or_reference());

/// A PEM private key, or a reference to it.
pub const SSL_PRIVATE_KEY: Kind = Kind::Text(Text::sized(64, 65536).or_reference());

/// Several server names.
pub const SNIS: Kind = Kind::List(List::of(&HOST).at_least(1));
