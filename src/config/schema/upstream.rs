//! The upstream object.

use super::checks::CHECKS;
use super::common::{
    CREATE_TIME_FIELD, DESC_FIELD, HOST, ID, ID_FIELD, LABELS_FIELD, NAME_FIELD, SSL_CERTIFICATE,
    SSL_PRIVATE_KEY, UPDATE_TIME_FIELD,
};
use super::{Field, Kind, List, Literal, Object, Rest, Rule, Text};
use crate::config::resource::leaving::{DEFAULT_RATE, DEFAULT_TIMEOUT, MAX_RATE, MIN_RATE};

/// Weight of a node.
const WEIGHT: Kind = Kind::Int {
    min: 0,
    max: u32::MAX as i64,
};

/// An upstream, as an item of `upstreams` or inside a route or service.
pub static UPSTREAM: Object = Object::strict(
    "Upstream",
    "Where connections go: nodes, balancing, retries, timeouts.",
    &[
        ID_FIELD,
        NAME_FIELD,
        DESC_FIELD,
        LABELS_FIELD,
        CREATE_TIME_FIELD,
        UPDATE_TIME_FIELD,
        Field::new(
            "nodes",
            Kind::Either(&[
                Kind::Object(&NODE_MAP),
                Kind::List(List::of(&Kind::Object(&NODE)).at_most(65535)),
            ]),
            "The nodes: a mapping \"host:port\": weight, or a list.",
        ),
        Field::new(
            "type",
            Kind::TEXT,
            "How a node is chosen: roundrobin, chash, least_conn or ewma.",
        )
        .default(Literal::Text("roundrobin")),
        Field::new(
            "hash_on",
            Kind::Choice(&["vars", "header", "cookie", "consumer", "vars_combinations"]),
            "What the key of chash is: a variable, or a text with variables. The others have \
             nothing to read in a stream and hash the client's address.",
        )
        .default(Literal::Text("vars")),
        Field::new(
            "key",
            Kind::TEXT,
            "Key of chash: the name of a variable such as mqtt_client_id, or with \
             vars_combinations a text such as \"$mqtt_username-$remote_addr\".",
        ),
        Field::new(
            "retries",
            Kind::Int {
                min: 0,
                max: u32::MAX as i64,
            },
            "Further attempts to connect after the first; default: number of nodes - 1.",
        ),
        Field::new(
            "retry_timeout",
            Kind::number_from(0.0),
            "Seconds after the first attempt in which a retry may start; 0 = no limit.",
        )
        .default(Literal::Int(0)),
        Field::new("timeout", Kind::Object(&TIMEOUT), "Timeouts in seconds."),
        Field::new(
            "scheme",
            Kind::Choice(&[
                "grpc", "grpcs", "http", "https", "tcp", "tls", "udp", "kafka",
            ]),
            "tls = TLS toward the nodes; everything else = plain TCP.",
        )
        .default(Literal::Text("http")),
        Field::new(
            "tls",
            Kind::Object(&TLS),
            "Client certificate for scheme tls.",
        ),
        Field::new("checks", Kind::Object(&CHECKS), "Health checks."),
        Field::new(
            "slow_start",
            Kind::number_from(0.0),
            "Seconds in which a node that is healthy again gets a growing share of the new \
             connections; 0 = its full share at once. Not in APISIX.",
        )
        .default(Literal::Int(0)),
        Field::new(
            "hash_balance_factor",
            Kind::Int { min: 0, max: 65535 },
            "With chash: percent of its share of the live connections (101 or more) that a node may \
             have before further ones go to the next on the ring; 0 = no bound. Not in APISIX.",
        )
        .default(Literal::Int(0)),
        Field::new(
            "drain",
            Kind::Object(&DRAIN),
            "How live connections leave nodes of weight 0 and nodes that were removed; without it \
             they stay. Not in APISIX.",
        ),
        Field::new(
            "rebalance",
            Kind::Object(&REBALANCE),
            "With chash: how live connections move to a node that is back or was added, as far as \
             they belong there; without it they stay where they are. Not in APISIX.",
        ),
        Field::new(
            "discovery_type",
            Kind::TEXT,
            "Registry to ask for the nodes of service_name.",
        ),
        Field::new(
            "service_name",
            Kind::Text(Text::sized(1, 256)),
            "Service to look up, for instance a DNS name.",
        ),
        Field::new(
            "discovery_args",
            Kind::Object(&DISCOVERY_ARGS),
            "Arguments of the look-up.",
        ),
        Field::new(
            "keepalive_pool",
            Kind::Object(&KEEPALIVE_POOL),
            "HTTP only.",
        )
        .no_effect(),
        Field::new(
            "pass_host",
            Kind::Choice(&["pass", "node", "rewrite"]),
            "Server name sent to nodes with scheme tls: the client's own or apisix_backend, the \
             host of the node, or upstream_host.",
        )
        .default(Literal::Text("pass")),
        Field::new(
            "upstream_host",
            HOST,
            "Server name of pass_host rewrite.",
        ),
    ],
)
.rules(&[Rule::ExactlyOne(&[
    &["nodes"],
    &["service_name", "discovery_type"],
])]);

/// Connections a second that are sent away.
pub const RATE: Kind = Kind::Number {
    min: MIN_RATE,
    above: false,
    max: MAX_RATE,
};

/// What becomes of wills.
pub const WILL: Field = Field::new(
    "will",
    Kind::Choice(&["publish", "suppress"]),
    "What the broker does with the clients' wills: it publishes them, as after any connection that \
     just ends, or it gets the client's DISCONNECT first and does not.",
)
.default(Literal::Text("publish"));

static DRAIN: Object = Object::strict(
    "Drain",
    "How live connections leave nodes that take no new ones.",
    &[
        Field::new(
            "rate",
            RATE,
            "Connections a second, for all leaving nodes of the upstream together.",
        )
        .default(Literal::Int(DEFAULT_RATE as i64)),
        Field::new(
            "timeout",
            Kind::Number {
                min: 0.0,
                above: false,
                max: 31_536_000.0,
            },
            "Seconds after which the last connection has left a node, if need be at a higher rate; \
             0 = the rate alone counts.",
        )
        .default(Literal::Int(DEFAULT_TIMEOUT as i64)),
        WILL,
    ],
);

static REBALANCE: Object = Object::strict(
    "Rebalance",
    "How live connections move to a node that is back or was added.",
    &[
        Field::new("rate", RATE, "Connections a second, for the upstream.")
            .default(Literal::Int(DEFAULT_RATE as i64)),
        WILL,
    ],
);

static NODE_MAP: Object =
    Object::strict("", "\"host:port\": weight", &[]).rest(Rest::Each(&WEIGHT));

/// A node of the list form. APISIX ignores keys it does not know here; they are told.
static NODE: Object = Object::strict(
    "Node",
    "One node of an upstream.",
    &[
        Field::new("host", HOST, "Address or name.").required(),
        Field::new("port", Kind::PORT, "TCP port; a stream has no default one."),
        Field::new("weight", WEIGHT, "Share of the connections.").required(),
        Field::new(
            "priority",
            Kind::INT,
            "Nodes of a lower priority are used when all of a higher one failed.",
        )
        .default(Literal::Int(0)),
        Field::new(
            "metadata",
            Kind::Object(&ANYTHING),
            "For discovery and people.",
        ),
    ],
)
.rest(Rest::Warn);

/// A mapping of anything.
pub static ANYTHING: Object = Object::strict("", "", &[]).rest(Rest::Allow);

static TIMEOUT: Object = Object::strict(
    "Timeout",
    "Timeouts in seconds; fractions are allowed.",
    &[
        Field::new("connect", Kind::POSITIVE, "For connecting to one node.").required(),
        Field::new(
            "send",
            Kind::POSITIVE,
            "The larger of send and read is the idle timeout.",
        )
        .required(),
        Field::new(
            "read",
            Kind::POSITIVE,
            "The larger of send and read is the idle timeout.",
        )
        .required(),
    ],
)
.rest(Rest::Warn);

static TLS: Object = Object::strict(
    "UpstreamTls",
    "Client certificate for scheme tls.",
    &[
        Field::new("client_cert_id", ID, "An item of ssls of type client."),
        Field::new("client_cert", SSL_CERTIFICATE, "Client certificate, PEM."),
        Field::new("client_key", SSL_PRIVATE_KEY, "Its private key, PEM.").secret(),
        Field::new(
            "verify",
            Kind::Bool,
            "Verify the node's certificate, chain and name.",
        )
        .default(Literal::Bool(false)),
        Field::new(
            "ca",
            SSL_CERTIFICATE,
            "Who may sign it, PEM; default apisix.ssl.ssl_trusted_certificate.",
        ),
    ],
)
.rest(Rest::Warn)
.rules(&[
    Rule::Needs("client_cert", "client_key"),
    Rule::Needs("client_key", "client_cert"),
    Rule::NotTogether(&["client_cert_id", "client_cert", "client_key"]),
]);

static KEEPALIVE_POOL: Object = Object::strict(
    "",
    "HTTP only.",
    &[
        Field::new("size", Kind::int_from(1), "").default(Literal::Int(320)),
        Field::new("idle_timeout", Kind::number_from(0.0), "").default(Literal::Int(60)),
        Field::new("requests", Kind::int_from(1), "").default(Literal::Int(1000)),
    ],
)
.rest(Rest::Allow);

static DISCOVERY_ARGS: Object = Object::strict(
    "",
    "Arguments of the look-up.",
    &[
        Field::new("namespace_id", Kind::TEXT, ""),
        Field::new("group_name", Kind::TEXT, ""),
    ],
)
.rest(Rest::Allow);
