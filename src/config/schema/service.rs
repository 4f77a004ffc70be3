//! The service object.

use super::common::{
    CREATE_TIME_FIELD, DESC_FIELD, HOST, ID, ID_FIELD, LABELS_FIELD, NAME_FIELD, UPDATE_TIME_FIELD,
};
use super::plugin::PLUGINS;
use super::upstream::UPSTREAM;
use super::{Field, Kind, List, Object, Text};

/// An item of `services`.
pub static SERVICE: Object = Object::strict(
    "Service",
    "An upstream and plugins that several routes share.",
    &[
        ID_FIELD,
        NAME_FIELD,
        DESC_FIELD,
        LABELS_FIELD,
        CREATE_TIME_FIELD,
        UPDATE_TIME_FIELD,
        Field::new("upstream", Kind::Object(&UPSTREAM), "Where connections go."),
        Field::new("upstream_id", ID, "An item of upstreams."),
        Field::new("plugins", Kind::Elsewhere(&PLUGINS), "Plugins by name."),
        Field::new("script", Kind::Text(Text::sized(10, 102_400)), "HTTP only.").no_effect(),
        Field::new("enable_websocket", Kind::Bool, "HTTP only.").no_effect(),
        Field::new(
            "hosts",
            Kind::List(List::of(&HOST).at_least(1).unique()),
            "HTTP only.",
        )
        .no_effect(),
    ],
);
