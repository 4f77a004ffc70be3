//! The standalone file as a whole.

use super::service::SERVICE;
use super::ssl::SSL;
use super::stream_route::STREAM_ROUTE;
use super::upstream::{ANYTHING, UPSTREAM};
use super::{Field, Kind, List, Object, Rest, Text};

static OTHER_ITEM: Kind = Kind::Object(&ANYTHING);
const OTHER: Kind = Kind::List(List::of(&OTHER_ITEM));

/// `apisix.yaml` and `apisix.json`. The loader judges every item by itself, so that a bad one
/// harms no other; this table is for editors and for the names of sections.
pub static STANDALONE: Object = Object::strict(
    "apisix.yaml",
    "Routes, upstreams, services and certificates; apisix.yaml ends with a line #END.",
    &[
        Field::new(
            "stream_routes",
            Kind::List(List::of(&Kind::Object(&STREAM_ROUTE))),
            "Which connections go where, first match first.",
        ),
        Field::new(
            "upstreams",
            Kind::List(List::of(&Kind::Object(&UPSTREAM))),
            "Upstreams that routes and services name by id.",
        ),
        Field::new(
            "services",
            Kind::List(List::of(&Kind::Object(&SERVICE))),
            "Upstreams and plugins that routes share.",
        ),
        Field::new(
            "ssls",
            Kind::List(List::of(&Kind::Object(&SSL))),
            "Certificates.",
        ),
        Field::new(
            "plugins",
            Kind::List(List::of(&Kind::Object(&PLUGIN_ENTRY))),
            "Replaces stream_plugins of config.yaml.",
        ),
        Field::new("routes", OTHER, "").no_effect(),
        Field::new("consumers", OTHER, "").no_effect(),
        Field::new("consumer_groups", OTHER, "").no_effect(),
        Field::new("global_rules", OTHER, "").no_effect(),
        Field::new("plugin_configs", OTHER, "").no_effect(),
        Field::new("plugin_metadata", OTHER, "").no_effect(),
        Field::new("protos", OTHER, "").no_effect(),
        Field::new("secrets", OTHER, "").no_effect(),
    ],
)
.rest(Rest::Warn);

/// An item of `plugins`.
pub static PLUGIN_ENTRY: Object = Object::strict(
    "",
    "",
    &[
        Field::new(
            "name",
            Kind::Text(Text::sized(1, usize::MAX)),
            "Name of the plugin.",
        )
        .required(),
        Field::new(
            "stream",
            Kind::Bool,
            "Whether it is the stream plugin of that name.",
        ),
    ],
)
.rest(Rest::Allow);
