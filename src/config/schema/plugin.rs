//! Plugin configurations.

use super::upstream::ANYTHING;
use super::{Field, Kind, List, Literal, Object, Rest};

/// `plugins` of a route or service, for editors; [`crate::config::resource::plugin`] judges each.
pub static PLUGINS: Object = Object::strict(
    "Plugins",
    "Plugins by name.",
    &[
        Field::new(
            "mqtt-proxy",
            Kind::Object(&MQTT_PROXY),
            "Reads CONNECT before the upstream is picked.",
        ),
        Field::new(
            "prometheus",
            Kind::Object(&ANYTHING),
            "Counts connections of the route.",
        ),
        Field::new("syslog", Kind::Object(&ANYTHING), "").no_effect(),
    ],
)
.rest(Rest::Allow);

/// `mqtt-proxy`. APISIX ignores keys it does not know here.
pub static MQTT_PROXY: Object = Object::strict(
    "MqttProxy",
    "Reads CONNECT before the upstream is picked.",
    &[
        Field::new("protocol_name", Kind::TEXT, "Protocol name in CONNECT.")
            .default(Literal::Text("MQTT")),
        Field::new(
            "protocol_level",
            Kind::Either(&[
                Kind::INT,
                Kind::List(
                    List::of(&Kind::Int { min: 0, max: 255 })
                        .at_least(1)
                        .unique(),
                ),
            ]),
            "Protocol level in CONNECT: 3 = MQTT 3.1, 4 = 3.1.1, 5 = 5.0; or a list such as \
             [3, 4, 5] to accept several.",
        )
        .required(),
        Field::new(
            "upstream",
            Kind::Any,
            "The form of APISIX 2.x, {ip or host, port}; write an upstream in the route instead.",
        ),
        Field::new("_meta", Kind::Object(&META), "What every plugin takes."),
    ],
)
.rest(Rest::Warn);

/// `upstream` inside `mqtt-proxy`, the form of APISIX 2.x.
pub static LEGACY_UPSTREAM: Object = Object::strict(
    "",
    "",
    &[
        Field::new("ip", Kind::TEXT, ""),
        Field::new("host", Kind::TEXT, ""),
        Field::new("port", Kind::PORT, "").required(),
    ],
)
.rest(Rest::Warn);

/// `_meta` of every plugin.
pub static META: Object = Object::strict(
    "Meta",
    "What every plugin takes.",
    &[
        Field::new("disable", Kind::Bool, "The plugin counts as absent.")
            .default(Literal::Bool(false)),
        Field::new("priority", Kind::INT, "").no_effect(),
        Field::new(
            "error_response",
            Kind::Either(&[Kind::TEXT, Kind::Object(&ANYTHING)]),
            "",
        )
        .no_effect(),
        Field::new(
            "filter",
            Kind::List(List::of(&Kind::Any)),
            "Not supported yet.",
        ),
        Field::new("pre_function", Kind::TEXT, "Not supported."),
    ],
);
