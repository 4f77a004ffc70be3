//! `config.yaml` as a whole.

use super::config_apisix::APISIX;
use super::config_own::MQTT_PROXY;
use super::config_rest::{DEPLOYMENT, DISCOVERY, NGINX_CONFIG, PLUGIN_ATTR};
use super::upstream::ANYTHING;
use super::{Field, Kind, Literal, Object, Rest};

/// `config.yaml`. Unknown keys are warnings, known ones without effect are collected; null is as
/// good as absent.
pub static CONFIG: Object = Object::strict(
    "config.yaml",
    "What the process is: listeners, limits, where the routes come from. Read once, at start.",
    &[
        Field::new(
            "apisix",
            Kind::Object(&APISIX),
            "Listeners, TLS and name resolution.",
        ),
        Field::new(
            "nginx_config",
            Kind::Object(&NGINX_CONFIG),
            "The number of workers.",
        ),
        Field::new(
            "deployment",
            Kind::Object(&DEPLOYMENT),
            "Where the routes come from.",
        ),
        Field::new(
            "stream_plugins",
            Kind::TEXTS,
            "Stream plugins that routes may use.",
        )
        .default(Literal::Texts(
            &crate::config::settings::DEFAULT_STREAM_PLUGINS,
        )),
        Field::new(
            "discovery",
            Kind::Object(&DISCOVERY),
            "Where the nodes of services are found.",
        ),
        Field::new(
            "plugin_attr",
            Kind::Object(&PLUGIN_ATTR),
            "Attributes of plugins.",
        ),
        Field::new(
            "mqtt_proxy",
            Kind::Object(&MQTT_PROXY),
            "What APISIX has no key for.",
        ),
        Field::new(
            "pingora",
            Kind::Object(&ANYTHING),
            "Keys of Pingora's ServerConf, as they are.",
        ),
        Field::new("plugins", Kind::Any, "Plugins of HTTP.").no_effect(),
        Field::new("etcd", Kind::Any, "").no_effect(),
        Field::new("graphql", Kind::Any, "").no_effect(),
        Field::new("ext-plugin", Kind::Any, "").no_effect(),
        Field::new("wasm", Kind::Any, "").no_effect(),
        Field::new("xrpc", Kind::Any, "").no_effect(),
        Field::new("http", Kind::Any, "").no_effect(),
        Field::new("api_breaker", Kind::Any, "").no_effect(),
    ],
)
.rest(Rest::Warn);
