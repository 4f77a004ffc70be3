//! `nginx_config`, `deployment`, `discovery` and `plugin_attr` of `config.yaml`.

use super::config_own::PATH;
use super::{Field, Kind, List, Literal, Object, Rest, Text};

/// `nginx_config`.
pub static NGINX_CONFIG: Object = Object::strict(
    "NginxConfig",
    "The number of workers.",
    &[
        Field::new(
            "worker_processes",
            Kind::Either(&[Kind::Int { min: 1, max: 1024 }, Kind::TEXT]),
            "Worker threads; auto = as many as processors. The variable \
             APISIX_WORKER_PROCESSES goes before it.",
        )
        .default(Literal::Text("auto")),
        Field::new("user", Kind::Any, "").no_effect(),
        Field::new("error_log", Kind::Any, "").no_effect(),
        Field::new("error_log_level", Kind::Any, "").no_effect(),
        Field::new("enable_cpu_affinity", Kind::Any, "").no_effect(),
        Field::new("worker_rlimit_nofile", Kind::Any, "").no_effect(),
        Field::new("worker_rlimit_core", Kind::Any, "").no_effect(),
        Field::new("worker_shutdown_timeout", Kind::Any, "").no_effect(),
        Field::new("max_pending_timers", Kind::Any, "").no_effect(),
        Field::new("max_running_timers", Kind::Any, "").no_effect(),
        Field::new("event", Kind::Any, "").no_effect(),
        Field::new("envs", Kind::Any, "").no_effect(),
        Field::new("meta", Kind::Any, "").no_effect(),
        Field::new("stream", Kind::Object(&NGINX_STREAM), ""),
        Field::new("http", Kind::Any, "").no_effect(),
        Field::new("main_configuration_snippet", Kind::Any, "").no_effect(),
        Field::new("http_configuration_snippet", Kind::Any, "").no_effect(),
        Field::new("http_server_configuration_snippet", Kind::Any, "").no_effect(),
        Field::new("http_server_location_configuration_snippet", Kind::Any, "").no_effect(),
        Field::new("http_admin_configuration_snippet", Kind::Any, "").no_effect(),
        Field::new("http_end_configuration_snippet", Kind::Any, "").no_effect(),
        Field::new("stream_configuration_snippet", Kind::Any, "").no_effect(),
    ],
)
.rest(Rest::Warn);

static NGINX_STREAM: Object = Object::strict(
    "",
    "",
    &[
        Field::new("real_ip_from", Kind::Any, "").no_effect(),
        Field::new(
            "enable_access_log",
            Kind::Bool,
            "Write an access log; mqtt_proxy.access_log goes before it.",
        )
        .default(Literal::Bool(false)),
        Field::new(
            "access_log",
            Kind::Text(Text::sized(1, 4096)),
            "Its file, relative to the folder above one named conf.",
        )
        .default(Literal::Text("logs/access_stream.log")),
        Field::new(
            "access_log_format",
            Kind::TEXT,
            "Its format: text with nginx's variables.",
        )
        .default(Literal::Text(crate::config::settings::DEFAULT_FORMAT)),
        Field::new(
            "access_log_format_escape",
            Kind::Choice(&["default", "json", "none"]),
            "How values are escaped.",
        )
        .default(Literal::Text("default")),
        Field::new("metrics_zone_size", Kind::Any, "").no_effect(),
        Field::new("lua_shared_dict", Kind::Any, "").no_effect(),
    ],
)
.rest(Rest::Warn);

const PROVIDERS: Kind = Kind::Choice(&["etcd", "yaml", "json", "xds"]);

static ROLE: Object = Object::strict(
    "",
    "",
    &[Field::new(
        "config_provider",
        PROVIDERS,
        "Format of the standalone file: yaml or json.",
    )],
)
.rest(Rest::Warn);

/// `deployment`.
pub static DEPLOYMENT: Object = Object::strict(
    "Deployment",
    "Where the routes come from.",
    &[
        Field::new(
            "role",
            Kind::Choice(&["traditional", "data_plane", "control_plane", "standalone"]),
            "Which of the role_… blocks counts.",
        )
        .default(Literal::Text("traditional")),
        Field::new("role_traditional", Kind::Object(&ROLE), ""),
        Field::new("role_data_plane", Kind::Object(&ROLE), ""),
        Field::new("role_control_plane", Kind::Object(&ROLE), ""),
        Field::new("admin", Kind::Object(&ADMIN), "").secret(),
        Field::new("etcd", Kind::Object(&ETCD), "").secret(),
        Field::new("certs", Kind::Any, "").no_effect(),
    ],
)
.rest(Rest::Warn);

static ADMIN: Object = Object::strict(
    "",
    "",
    &[
        Field::new("admin_key_required", Kind::Any, "").no_effect(),
        Field::new("admin_key", Kind::Any, "").no_effect().secret(),
        Field::new("enable_admin_cors", Kind::Any, "").no_effect(),
        Field::new("enable_admin_ui", Kind::Any, "").no_effect(),
        Field::new("allow_admin", Kind::Any, "").no_effect(),
        Field::new("admin_listen", Kind::Any, "").no_effect(),
        Field::new("https_admin", Kind::Any, "").no_effect(),
        Field::new("admin_api_mtls", Kind::Any, "").no_effect(),
        Field::new("admin_api_version", Kind::Any, "").no_effect(),
    ],
)
.rest(Rest::Warn);

static ETCD: Object = Object::strict(
    "",
    "",
    &[
        Field::new("host", Kind::Any, "").no_effect(),
        Field::new("prefix", Kind::Any, "").no_effect(),
        Field::new("timeout", Kind::Any, "").no_effect(),
        Field::new("watch_timeout", Kind::Any, "").no_effect(),
        Field::new("resync_delay", Kind::Any, "").no_effect(),
        Field::new("health_check_timeout", Kind::Any, "").no_effect(),
        Field::new("startup_retry", Kind::Any, "").no_effect(),
        Field::new("user", Kind::Any, "").no_effect(),
        Field::new("password", Kind::Any, "").no_effect().secret(),
        Field::new("use_grpc", Kind::Any, "").no_effect(),
        Field::new("tls", Kind::Any, "").no_effect(),
    ],
)
.rest(Rest::Warn);

/// `discovery`: of APISIX's registries, DNS counts.
pub static DISCOVERY: Object = Object::strict(
    "Discovery",
    "Where the nodes of services are found.",
    &[
        Field::new("dns", Kind::Object(&DISCOVERY_DNS), "Services in DNS."),
        Field::new("consul", Kind::Any, "").no_effect().secret(),
        Field::new("consul_kv", Kind::Any, "").no_effect().secret(),
        Field::new("eureka", Kind::Any, "").no_effect().secret(),
        Field::new("kubernetes", Kind::Any, "").no_effect().secret(),
        Field::new("nacos", Kind::Any, "").no_effect().secret(),
        Field::new("tars", Kind::Any, "").no_effect().secret(),
    ],
)
.rest(Rest::Warn);

static DISCOVERY_DNS: Object = Object::strict(
    "DiscoveryDns",
    "Services in DNS.",
    &[
        Field::new(
            "servers",
            Kind::List(List::of(&Kind::TEXT).at_least(1)),
            "Name servers, \"ip\" or \"ip:port\"; default: those of resolv_conf, else those of \
             apisix.dns_resolver, else those of the system.",
        ),
        Field::new(
            "resolv_conf",
            Kind::Text(Text::sized(1, 4096)),
            "File to read instead of /etc/resolv.conf, relative to the folder of config.yaml.",
        ),
        Field::new(
            "order",
            Kind::List(
                List::of(&Kind::Choice(&["last", "SRV", "A", "AAAA", "CNAME"]))
                    .at_least(1)
                    .at_most(5)
                    .unique(),
            ),
            "Record types in the order in which they are asked for; last = the type that had an \
             answer last time.",
        )
        .default(Literal::Texts(&["last", "SRV", "A", "AAAA", "CNAME"])),
    ],
)
.rest(Rest::Warn);

/// `plugin_attr`: every plugin has a key; only that of `prometheus` counts.
pub static PLUGIN_ATTR: Object = Object::strict(
    "PluginAttr",
    "Attributes of plugins.",
    &[
        Field::new(
            "prometheus",
            Kind::Object(&PROMETHEUS),
            "Where metrics are served.",
        ),
        Field::new("ai-proxy", Kind::Any, "").no_effect(),
        Field::new("log-rotate", Kind::Any, "").no_effect(),
        Field::new("skywalking", Kind::Any, "").no_effect(),
        Field::new("opentelemetry", Kind::Any, "").no_effect(),
        Field::new("server-info", Kind::Any, "").no_effect(),
        Field::new("dubbo-proxy", Kind::Any, "").no_effect(),
        Field::new("proxy-mirror", Kind::Any, "").no_effect(),
        Field::new("redirect", Kind::Any, "").no_effect(),
        Field::new("inspect", Kind::Any, "").no_effect(),
        Field::new("zipkin", Kind::Any, "").no_effect(),
    ],
)
// Plugins of the operator's own have attributes too.
.rest(Rest::Allow);

static PROMETHEUS: Object = Object::strict(
    "",
    "Where metrics are served, unless mqtt_proxy.metrics says so.",
    &[
        Field::new("export_uri", PATH, "Path.")
            .default(Literal::Text("/apisix/prometheus/metrics")),
        Field::new(
            "export_addr",
            Kind::Object(&EXPORT_ADDR),
            "Address and port.",
        ),
        Field::new(
            "enable_export_server",
            Kind::Bool,
            "False serves none; an error when prometheus is in stream_plugins.",
        )
        .default(Literal::Bool(true)),
        Field::new("metric_prefix", Kind::Any, "").no_effect(),
        Field::new("refresh_interval", Kind::Any, "").no_effect(),
        Field::new("metrics", Kind::Any, "").no_effect(),
        Field::new("default_buckets", Kind::Any, "").no_effect(),
        Field::new("llm_latency_buckets", Kind::Any, "").no_effect(),
        Field::new("llm_prompt_tokens_buckets", Kind::Any, "").no_effect(),
        Field::new("llm_completion_tokens_buckets", Kind::Any, "").no_effect(),
        Field::new("allow_degradation", Kind::Any, "").no_effect(),
        Field::new("degradation_pause_steps", Kind::Any, "").no_effect(),
    ],
)
.rest(Rest::Warn);

static EXPORT_ADDR: Object = Object::strict(
    "",
    "Address and port.",
    &[
        Field::new("ip", Kind::TEXT, "Address.").default(Literal::Text("127.0.0.1")),
        Field::new("port", Kind::PORT, "Port.").default(Literal::Int(9091)),
    ],
)
.rest(Rest::Warn);
