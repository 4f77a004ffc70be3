//! The stream route object.

use super::common::{
    CREATE_TIME_FIELD, DESC_FIELD, HOST, ID, ID_FIELD, LABELS_FIELD, NAME_FIELD, NETWORK, SNIS,
    UPDATE_TIME_FIELD,
};
use super::plugin::PLUGINS;
use super::upstream::UPSTREAM;
use super::{Field, Kind, Object, Rule};

/// An item of `stream_routes`.
pub static STREAM_ROUTE: Object = Object::strict(
    "StreamRoute",
    "Which connections go where; the first route that matches takes the connection.",
    &[
        ID_FIELD,
        NAME_FIELD,
        DESC_FIELD,
        LABELS_FIELD,
        CREATE_TIME_FIELD,
        UPDATE_TIME_FIELD,
        Field::new(
            "remote_addr",
            NETWORK,
            "Clients it takes: an address or a CIDR block.",
        ),
        Field::new(
            "server_addr",
            NETWORK,
            "Local addresses it takes: an address or a CIDR block.",
        ),
        Field::new("server_port", Kind::PORT, "Local port it takes."),
        Field::new(
            "sni",
            HOST,
            "Server name it takes; a leading * is a wildcard.",
        ),
        Field::new("snis", SNIS, "Server names it takes."),
        Field::new(
            "tls_passthrough",
            Kind::Bool,
            "On a listener with tls and tls_passthrough: do not end TLS.",
        ),
        Field::new(
            "upstream",
            Kind::Object(&UPSTREAM),
            "Where its connections go.",
        ),
        Field::new(
            "upstream_id",
            ID,
            "An item of upstreams; goes before upstream and service_id.",
        ),
        Field::new("service_id", ID, "An item of services."),
        Field::new("plugins", Kind::Elsewhere(&PLUGINS), "Plugins by name."),
        Field::new("protocol", Kind::Any, "xRPC; not supported."),
    ],
)
.rules(&[Rule::NotTogether(&["sni", "snis"])]);
