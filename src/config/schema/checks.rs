//! `checks` of an upstream: health checks. Unknown keys are allowed everywhere in it, as in APISIX.
//!
//! Extensions of ours: `passive` without `active`, `type: mqtt` with `mqtt` and `mqtt_failures`,
//! and `passive.recovery_time`.

use super::common::HOST;
use super::{Field, Kind, List, Literal, Object, Rest, Rule, Text};

const STATUSES: Kind = Kind::List(
    List::of(&Kind::Int { min: 200, max: 599 })
        .at_least(1)
        .unique(),
);
const FROM_1: Kind = Kind::Int { min: 1, max: 254 };
const FROM_0: Kind = Kind::Int { min: 0, max: 254 };
const PROBES: Kind = Kind::Choice(&["http", "https", "tcp", "mqtt"]);
const PASSIVE_TYPES: Kind = Kind::Choice(&["http", "https", "tcp"]);
const METHODS: Kind = Kind::Choice(&[
    "GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "CONNECT", "TRACE", "PURGE",
]);

/// `checks`.
pub static CHECKS: Object = Object::strict(
    "Checks",
    "Health checks of the nodes.",
    &[
        Field::new(
            "active",
            Kind::Object(&ACTIVE),
            "Probes of the proxy's own.",
        ),
        Field::new(
            "passive",
            Kind::Object(&PASSIVE),
            "What connections of clients show about nodes.",
        ),
    ],
)
.rest(Rest::Allow)
.rules(&[Rule::AnyOf(&["active", "passive"])]);

static ACTIVE: Object = Object::strict(
    "",
    "Probes of the proxy's own.",
    &[
        Field::new("type", PROBES, "What a probe is.").default(Literal::Text("http")),
        Field::new(
            "timeout",
            Kind::number_from(f64::NEG_INFINITY),
            "Longest time of a probe in seconds.",
        )
        .default(Literal::Int(1)),
        Field::new("concurrency", Kind::INT, "Probes at a time.").default(Literal::Int(10)),
        Field::new("host", HOST, "Host header and server name of a probe."),
        Field::new("port", Kind::PORT, "Port to probe instead of the node's."),
        Field::new("http_method", METHODS, "Method of a probe.").default(Literal::Text("GET")),
        Field::new("http_path", Kind::TEXT, "Path of a probe.").default(Literal::Text("/")),
        Field::new("http_req_body", Kind::TEXT, "Body of a probe.").default(Literal::Text("")),
        Field::new(
            "https_verify_certificate",
            Kind::Bool,
            "Whether a probe verifies the node's certificate.",
        )
        .default(Literal::Bool(true)),
        Field::new(
            "req_headers",
            Kind::List(List::of(&Kind::Text(Text::ANY)).at_least(1)),
            "Further headers of a probe, each \"Name: value\".",
        ),
        Field::new(
            "mqtt",
            Kind::Object(&MQTT),
            "What a probe of type mqtt sends.",
        ),
        Field::new(
            "healthy",
            Kind::Object(&ACTIVE_HEALTHY),
            "Probing of healthy nodes.",
        ),
        Field::new(
            "unhealthy",
            Kind::Object(&ACTIVE_UNHEALTHY),
            "Probing of unhealthy nodes.",
        ),
    ],
)
.rest(Rest::Allow);

const INTERVAL: Field = Field::new(
    "interval",
    Kind::int_from(1),
    "Seconds from probe to probe.",
)
.default(Literal::Int(1));

static ACTIVE_HEALTHY: Object = Object::strict(
    "",
    "",
    &[
        INTERVAL,
        Field::new("http_statuses", STATUSES, "Answers that count as success.")
            .default(Literal::Ints(&[200, 302])),
        Field::new("successes", FROM_1, "Successes that make a node healthy.")
            .default(Literal::Int(2)),
    ],
)
.rest(Rest::Allow);

static ACTIVE_UNHEALTHY: Object = Object::strict(
    "",
    "",
    &[
        INTERVAL,
        Field::new("http_statuses", STATUSES, "Answers that count as failure.")
            .default(Literal::Ints(&[429, 404, 500, 501, 502, 503, 504, 505])),
        Field::new(
            "http_failures",
            FROM_1,
            "HTTP failures that make a node unhealthy.",
        )
        .default(Literal::Int(5)),
        Field::new(
            "tcp_failures",
            FROM_1,
            "TCP failures that make a node unhealthy.",
        )
        .default(Literal::Int(2)),
        Field::new("timeouts", FROM_1, "Timeouts that make a node unhealthy.")
            .default(Literal::Int(3)),
        Field::new(
            "mqtt_failures",
            FROM_1,
            "Answers other than CONNACK 0 that make a node unhealthy.",
        )
        .default(Literal::Int(2)),
    ],
)
.rest(Rest::Allow);

static MQTT: Object = Object::strict(
    "",
    "What a probe of type mqtt sends.",
    &[
        Field::new(
            "client_id_prefix",
            Kind::Text(Text::sized(1, 64)),
            "The client id is this and eight random characters.",
        )
        .default(Literal::Text("mqtt-health-")),
        Field::new("username", Kind::TEXT, "User name of the probe."),
        Field::new("password", Kind::TEXT, "Password of the probe.").secret(),
        Field::new(
            "protocol_level",
            Kind::IntChoice(&[4, 5]),
            "MQTT 3.1.1 (4) or 5.",
        )
        .default(Literal::Int(4)),
    ],
)
.rest(Rest::Warn)
.rules(&[Rule::Needs("password", "username")]);

static PASSIVE: Object = Object::strict(
    "",
    "What connections of clients show about nodes.",
    &[
        Field::new(
            "type",
            PASSIVE_TYPES,
            "Of no effect: in a stream connects are what is seen.",
        )
        .default(Literal::Text("http")),
        Field::new(
            "healthy",
            Kind::Object(&PASSIVE_HEALTHY),
            "When a node becomes healthy.",
        ),
        Field::new(
            "unhealthy",
            Kind::Object(&PASSIVE_UNHEALTHY),
            "When a node becomes unhealthy.",
        ),
        Field::new(
            "recovery_time",
            Kind::POSITIVE,
            "Seconds after which an unhealthy node is tried again where there are no active probes.",
        )
        .default(Literal::Int(30)),
    ],
)
.rest(Rest::Allow);

static PASSIVE_HEALTHY: Object = Object::strict(
    "",
    "",
    &[
        Field::new("http_statuses", STATUSES, "Answers that count as success.").default(
            Literal::Ints(&[
                200, 201, 202, 203, 204, 205, 206, 207, 208, 226, 300, 301, 302, 303, 304, 305,
                306, 307, 308,
            ]),
        ),
        Field::new("successes", FROM_0, "Successes that make a node healthy.")
            .default(Literal::Int(5)),
    ],
)
.rest(Rest::Allow);

static PASSIVE_UNHEALTHY: Object = Object::strict(
    "",
    "",
    &[
        Field::new("http_statuses", STATUSES, "Answers that count as failure.")
            .default(Literal::Ints(&[429, 500, 503])),
        Field::new(
            "tcp_failures",
            FROM_0,
            "Failed connects that make a node unhealthy.",
        )
        .default(Literal::Int(2)),
        Field::new("timeouts", FROM_0, "Timeouts that make a node unhealthy.")
            .default(Literal::Int(7)),
        Field::new(
            "http_failures",
            FROM_0,
            "HTTP failures that make a node unhealthy.",
        )
        .default(Literal::Int(5)),
    ],
)
.rest(Rest::Allow);
