//! `mqtt_proxy` of `config.yaml`: what APISIX has no key for.

use super::upstream::{RATE, WILL};
use super::{Field, Kind, List, Literal, Object, Pattern, Rest, Text};
use crate::config::resource::leaving::{DEFAULT_RATE, MAX_RATE};

/// Seconds above zero, at most a year.
const SECONDS: Kind = Kind::Number {
    min: 0.0,
    above: true,
    max: 31_536_000.0,
};

/// Seconds from zero, at most a year.
const SECONDS_OR_ZERO: Kind = Kind::Number {
    min: 0.0,
    above: false,
    max: 31_536_000.0,
};

const SOCKET_ADDRESS: Pattern = Pattern {
    regex: "^.+:[0-9]+$",
    test: |text| text.parse::<std::net::SocketAddr>().is_ok(),
    expected: "an address with a port, such as 127.0.0.1:9091",
};

const IP_ADDRESS: Pattern = Pattern {
    regex: "^[0-9A-Fa-f:.]+$",
    test: |text| text.parse::<std::net::IpAddr>().is_ok(),
    expected: "an IPv4 or IPv6 address",
};

const IP: Kind = Kind::Text(Text::ANY.pattern(&IP_ADDRESS));

const URL_PATH: Pattern = Pattern {
    regex: "^/[!-~]*$",
    test: |text| text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic()),
    expected: "a path that begins with /",
};

/// A path of an HTTP request.
pub const PATH: Kind = Kind::Text(Text::ANY.pattern(&URL_PATH));

/// `mqtt_proxy`.
pub static MQTT_PROXY: Object = Object::strict(
    "MqttProxySettings",
    "What APISIX has no key for.",
    &[
        Field::new(
            "standalone_file",
            Kind::Text(Text::sized(1, 4096)),
            "The file with the routes, relative to the folder of config.yaml; default \
             apisix.yaml, or apisix.json when config_provider is json.",
        ),
        Field::new(
            "connect",
            Kind::Choice(&["strict", "tolerant"]),
            "How CONNECT is judged: by the OASIS standards, or as APISIX does.",
        )
        .default(Literal::Text("strict")),
        Field::new(
            "refusal",
            Kind::Choice(&["connack", "close"]),
            "What a refused MQTT client gets: a CONNACK with the reason, or nothing.",
        )
        .default(Literal::Text("connack")),
        Field::new(
            "ring_identity",
            Kind::Choice(&["name", "address"]),
            "What a node given by name is on the hash ring.",
        )
        .default(Literal::Text("name")),
        Field::new(
            "upstream_bind",
            Kind::List(List::of(&IP).at_most(1024).unique()),
            "Local addresses from which nodes are connected to, by turns: each one has its own \
             28,000 ports towards a node. Default: the kernel chooses.",
        ),
        Field::new("limits", Kind::Object(&LIMITS), "Limits on clients."),
        Field::new(
            "idle",
            Kind::Object(&IDLE),
            "Idle timeouts of MQTT connections.",
        ),
        Field::new(
            "tls",
            Kind::Object(&TLS),
            "TLS on listeners and toward brokers.",
        ),
        Field::new(
            "metrics",
            Kind::Object(&METRICS),
            "Where Prometheus metrics are served.",
        ),
        Field::new(
            "access_log",
            Kind::Object(&ACCESS_LOG),
            "The access log; off unless here or enabled in nginx_config.stream.",
        ),
        Field::new("shutdown", Kind::Object(&SHUTDOWN), "How the process ends."),
        Field::new(
            "upgrade",
            Kind::Object(&UPGRADE),
            "What becomes of connections that an upgrade cannot hand over.",
        ),
    ],
)
.rest(Rest::Warn);

static LIMITS: Object = Object::strict(
    "",
    "Limits on clients.",
    &[
        Field::new(
            "first_byte_timeout",
            SECONDS,
            "Seconds from accept to the first byte of CONNECT.",
        )
        .default(Literal::Int(5)),
        Field::new(
            "connect_timeout",
            SECONDS,
            "Seconds from accept to the whole CONNECT.",
        )
        .default(Literal::Int(10)),
        Field::new(
            "max_connect_size",
            Kind::Int {
                min: 64,
                max: 1_048_576,
            },
            "Bytes of the whole CONNECT packet.",
        )
        .default(Literal::Int(16_384)),
        Field::new(
            "max_connections",
            Kind::Int {
                min: 0,
                max: 1_000_000_000,
            },
            "Live client connections; 0 = as many as open files allow.",
        )
        .default(Literal::Int(0)),
    ],
)
.rest(Rest::Warn);

static IDLE: Object = Object::strict(
    "",
    "Idle timeout of an MQTT connection whose upstream sets none: keep alive times factor plus \
     margin; keep alive 0 = no timeout.",
    &[
        Field::new(
            "keep_alive_factor",
            Kind::Number {
                min: 1.0,
                above: false,
                max: 100.0,
            },
            "Factor.",
        )
        .default(Literal::Float(1.5)),
        Field::new("keep_alive_margin", SECONDS_OR_ZERO, "Seconds.").default(Literal::Int(10)),
    ],
)
.rest(Rest::Warn);

static TLS: Object = Object::strict(
    "",
    "TLS on listeners and toward brokers.",
    &[
        Field::new(
            "ciphers",
            Kind::Text(Text::sized(1, 4096)),
            "Ciphers of TLS 1.2 and before, in OpenSSL's notation.",
        ),
        Field::new(
            "ciphersuites",
            Kind::Text(Text::sized(1, 4096)),
            "Cipher suites of TLS 1.3.",
        ),
        Field::new(
            "handshake_timeout",
            SECONDS,
            "Seconds from accept to the end of the handshake.",
        )
        .default(Literal::Int(10)),
        Field::new(
            "max_handshakes",
            Kind::Int {
                min: 1,
                max: 1_000_000,
            },
            "Handshakes in flight; beyond it, clients wait in the kernel's queue.",
        )
        .default(Literal::Int(2_000)),
        Field::new(
            "record_layer",
            Kind::Choice(&["own", "openssl"]),
            "Who encrypts and decrypts once the handshake with a client or a broker is over: own = \
             this program, in a few hundred bytes a connection; openssl = OpenSSL's session.",
        )
        .default(Literal::Text("own")),
        Field::new(
            "ticket_key_file",
            Kind::Text(Text::sized(1, 4096)),
            "Keys of session tickets that several proxies share: 80 random bytes a key, the first \
             encrypts; relative to the folder of config.yaml. Default: random keys.",
        ),
    ],
)
.rest(Rest::Warn);

static METRICS: Object = Object::strict(
    "",
    "Where Prometheus metrics are served.",
    &[
        Field::new(
            "enabled",
            Kind::Bool,
            "Whether they are served. With this block, the process does not start without them.",
        )
        .default(Literal::Bool(true)),
        Field::new(
            "addr",
            Kind::Text(Text::ANY.pattern(&SOCKET_ADDRESS)),
            "Address and port.",
        )
        .default(Literal::Text("127.0.0.1:9091")),
        Field::new("path", PATH, "Path.").default(Literal::Text("/apisix/prometheus/metrics")),
    ],
)
.rest(Rest::Warn);

static ACCESS_LOG: Object = Object::strict(
    "",
    "The access log.",
    &[
        Field::new(
            "path",
            Kind::Text(Text::sized(1, 4096)),
            "stderr, stdout, or a file relative to the folder of config.yaml.",
        )
        .default(Literal::Text("stderr")),
        Field::new(
            "format",
            Kind::Choice(&["json", "logfmt", "nginx"]),
            "What a line looks like; nginx takes nginx_config.stream.access_log_format.",
        )
        .default(Literal::Text("json")),
        Field::new(
            "rotate_size",
            Kind::int_from(0),
            "Bytes at which the file is rotated; 0 = never.",
        )
        .default(Literal::Int(0)),
        Field::new(
            "rotate_keep",
            Kind::Int { min: 1, max: 1000 },
            "Rotated files that are kept.",
        )
        .default(Literal::Int(5)),
        Field::new(
            "client_id",
            Kind::Choice(&["plain", "hash", "omit"]),
            "What is shown of client ids and user names.",
        )
        .default(Literal::Text("plain")),
        Field::new(
            "queue",
            Kind::Int {
                min: 16,
                max: 1_048_576,
            },
            "Lines that may wait for the writer; those beyond are dropped and counted.",
        )
        .default(Literal::Int(8192)),
    ],
)
.rest(Rest::Warn);

static SHUTDOWN: Object = Object::strict(
    "",
    "How the process ends.",
    &[
        Field::new(
            "timeout",
            SECONDS_OR_ZERO,
            "Seconds from SIGTERM until the last connection has left.",
        )
        .default(Literal::Int(300)),
        Field::new(
            "rate",
            Kind::Number {
                min: 0.0,
                above: false,
                max: MAX_RATE,
            },
            "Connections a second that are sent away from SIGTERM on, and more where timeout would \
             not do otherwise; 0 = spread evenly over timeout.",
        )
        .default(Literal::Int(0)),
        WILL,
    ],
)
.rest(Rest::Warn);

static UPGRADE: Object = Object::strict(
    "",
    "What becomes of connections that an upgrade cannot hand over.",
    &[
        Field::new(
            "linger",
            SECONDS_OR_ZERO,
            "Seconds that they stay in the old process, unless they end before that.",
        )
        .default(Literal::Int(3600)),
        Field::new(
            "rate",
            RATE,
            "Connections a second that are sent away afterwards.",
        )
        .default(Literal::Int(DEFAULT_RATE as i64)),
        WILL,
    ],
)
.rest(Rest::Warn);
