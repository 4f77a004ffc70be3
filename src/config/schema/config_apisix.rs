//! `apisix` of `config.yaml`.

use super::{Field, Kind, List, Literal, Object, Rest};

/// `apisix`.
pub static APISIX: Object = Object::strict(
    "Apisix",
    "Listeners, TLS and name resolution.",
    &[
        Field::new(
            "proxy_mode",
            Kind::Choice(&["http", "stream", "http&stream"]),
            "Listeners exist when stream_proxy lists them, whatever this says.",
        )
        .default(Literal::Text("http")),
        Field::new(
            "stream_proxy",
            Kind::Object(&STREAM_PROXY),
            "Where to listen.",
        ),
        Field::new(
            "proxy_protocol",
            Kind::Object(&PROXY_PROTOCOL),
            "PROXY protocol defaults.",
        ),
        Field::new(
            "enable_ipv6",
            Kind::Bool,
            "Look up IPv6 addresses of names too.",
        )
        .default(Literal::Bool(true)),
        Field::new(
            "dns_resolver",
            Kind::List(List::of(&Kind::TEXT).at_least(1)),
            "Name servers, \"ip\" or \"ip:port\"; default: those of the system.",
        ),
        Field::new(
            "dns_resolver_valid",
            Kind::Int {
                min: 0,
                max: 31_536_000,
            },
            "Seconds a name's addresses are used, instead of the records' TTL.",
        ),
        Field::new(
            "resolver_timeout",
            Kind::Number {
                min: 0.0,
                above: true,
                max: 3600.0,
            },
            "Seconds until a name server's answer counts as missing.",
        )
        .default(Literal::Int(5)),
        Field::new(
            "enable_resolv_search_opt",
            Kind::Bool,
            "Apply the search domains of the system.",
        )
        .default(Literal::Bool(true)),
        Field::new(
            "disable_upstream_healthcheck",
            Kind::Bool,
            "Act as if no upstream had checks.",
        )
        .default(Literal::Bool(false)),
        Field::new("ssl", Kind::Object(&SSL), "TLS defaults."),
        Field::new("enable_control", Kind::Bool, "Serve the control API.")
            .default(Literal::Bool(true)),
        Field::new(
            "control",
            Kind::Object(&CONTROL),
            "Where the control API is served.",
        ),
        Field::new(
            "status",
            Kind::Object(&STATUS),
            "Where /status and /status/ready are served for everybody; nowhere unless here.",
        ),
        Field::new("enable_dev_mode", Kind::Bool, "One worker.").default(Literal::Bool(false)),
        Field::new("node_listen", Kind::Any, "Ports of HTTP.").no_effect(),
        Field::new(
            "enable_admin",
            Kind::Any,
            "The standalone file is read whatever this says.",
        )
        .no_effect(),
        Field::new("enable_reuseport", Kind::Any, "").no_effect(),
        Field::new("show_upstream_status_in_response_header", Kind::Any, "").no_effect(),
        Field::new("enable_http2", Kind::Any, "").no_effect(),
        Field::new("enable_server_tokens", Kind::Any, "").no_effect(),
        Field::new("extra_lua_path", Kind::Any, "").no_effect(),
        Field::new("extra_lua_cpath", Kind::Any, "").no_effect(),
        Field::new("lua_module_hook", Kind::Any, "").no_effect(),
        Field::new("proxy_cache", Kind::Any, "").no_effect(),
        Field::new("delete_uri_tail_slash", Kind::Any, "").no_effect(),
        Field::new("normalize_uri_like_servlet", Kind::Any, "").no_effect(),
        Field::new("match_uri_encoded_slash", Kind::Any, "").no_effect(),
        Field::new("max_post_args_readable_size", Kind::Any, "").no_effect(),
        Field::new("router", Kind::Any, "").no_effect(),
        Field::new("disable_sync_configuration_during_start", Kind::Any, "").no_effect(),
        Field::new("worker_startup_time_threshold", Kind::Any, "").no_effect(),
        Field::new("data_encryption", Kind::Any, "")
            .no_effect()
            .secret(),
        Field::new("trusted_addresses", Kind::Any, "").no_effect(),
        Field::new("lru", Kind::Any, "").no_effect(),
        Field::new("tracing", Kind::Any, "").no_effect(),
        // Keys of APISIX 2.x, of which files in the field still carry some.
        Field::new("config_center", Kind::Any, "").no_effect(),
        Field::new("admin_key", Kind::Any, "").no_effect().secret(),
        Field::new("allow_admin", Kind::Any, "").no_effect(),
        Field::new("admin_listen", Kind::Any, "").no_effect(),
        Field::new("port_admin", Kind::Any, "").no_effect(),
        Field::new("https_admin", Kind::Any, "").no_effect(),
        Field::new("admin_api_mtls", Kind::Any, "").no_effect(),
        Field::new("admin_api_version", Kind::Any, "").no_effect(),
        Field::new("enable_admin_cors", Kind::Any, "").no_effect(),
        Field::new("enable_debug", Kind::Any, "").no_effect(),
        Field::new("real_ip_header", Kind::Any, "").no_effect(),
    ],
)
.rest(Rest::Warn);

static CONTROL: Object = Object::strict(
    "",
    "Where the control API is served.",
    &[
        Field::new("ip", Kind::TEXT, "Address.").default(Literal::Text("127.0.0.1")),
        Field::new("port", Kind::PORT, "Port.").default(Literal::Int(9090)),
    ],
)
.rest(Rest::Warn);

static STATUS: Object = Object::strict(
    "",
    "Where /status and /status/ready are served.",
    &[
        Field::new("ip", Kind::TEXT, "Address.").default(Literal::Text("127.0.0.1")),
        Field::new("port", Kind::PORT, "Port.").default(Literal::Int(7085)),
    ],
)
.rest(Rest::Warn);

static STREAM_PROXY: Object = Object::strict(
    "StreamProxy",
    "Where to listen.",
    &[
        Field::new(
            "tcp",
            Kind::List(List::of(&Kind::Either(&[
                Kind::INT,
                Kind::TEXT,
                Kind::Object(&LISTENER),
            ]))),
            "TCP listeners: 9100, \"127.0.0.1:9100\", \"[::1]:9100\", \"9100-9110\", \
             \"127.0.0.1:9100-9110\", or {addr, tls, …}.",
        ),
        Field::new(
            "udp",
            Kind::List(List::of(&Kind::Any)),
            "UDP is not served.",
        ),
        Field::new("only", Kind::Any, "Removed in APISIX 3.5.").no_effect(),
    ],
)
.rest(Rest::Warn);

/// The long form of a TCP listener.
static LISTENER: Object = Object::strict(
    "Listener",
    "A TCP listener.",
    &[
        Field::new(
            "addr",
            Kind::Either(&[Kind::INT, Kind::TEXT]),
            "Port, address or range.",
        )
        .required(),
        Field::new("tls", Kind::Bool, "End TLS here.").default(Literal::Bool(false)),
        Field::new(
            "tls_passthrough",
            Kind::Bool,
            "Route by server name without ending TLS.",
        )
        .default(Literal::Bool(false)),
        Field::new(
            "proxy_protocol",
            Kind::Bool,
            "Expect a PROXY protocol header; default apisix.proxy_protocol.enable_tcp_pp.",
        ),
        Field::new(
            "proxy_protocol_to_upstream",
            Kind::Bool,
            "Send a PROXY protocol header; default \
             apisix.proxy_protocol.enable_tcp_pp_to_upstream.",
        ),
    ],
)
.rest(Rest::Warn);

static PROXY_PROTOCOL: Object = Object::strict(
    "",
    "PROXY protocol defaults.",
    &[
        Field::new(
            "enable_tcp_pp",
            Kind::Bool,
            "Expect a header on every TCP listener.",
        )
        .default(Literal::Bool(false)),
        Field::new(
            "enable_tcp_pp_to_upstream",
            Kind::Bool,
            "Send a header from every listener.",
        )
        .default(Literal::Bool(false)),
        Field::new("listen_http_port", Kind::Any, "").no_effect(),
        Field::new("listen_https_port", Kind::Any, "").no_effect(),
    ],
)
.rest(Rest::Warn);

static SSL: Object = Object::strict(
    "",
    "TLS defaults.",
    &[
        Field::new(
            "fallback_sni",
            Kind::TEXT,
            "Server name of clients that send none.",
        ),
        Field::new(
            "ssl_trusted_certificate",
            Kind::TEXT,
            "File of trusted certificates, PEM, or system.",
        )
        .default(Literal::Text("system")),
        Field::new("enable", Kind::Any, "").no_effect(),
        Field::new("listen", Kind::Any, "").no_effect(),
        Field::new("ssl_protocols", Kind::Any, "").no_effect(),
        Field::new("ssl_ciphers", Kind::Any, "").no_effect(),
        Field::new("ssl_session_tickets", Kind::Any, "").no_effect(),
        Field::new("enable_http2", Kind::Any, "").no_effect(),
        Field::new("enable_http3", Kind::Any, "").no_effect(),
        Field::new("listen_port", Kind::Any, "").no_effect(),
        Field::new("key_encrypt_salt", Kind::Any, "")
            .no_effect()
            .secret(),
        Field::new("ssl_cert", Kind::Any, "").no_effect(),
        Field::new("ssl_cert_key", Kind::Any, "").no_effect(),
    ],
)
.rest(Rest::Warn);
