//! `config.yaml` as [`Settings`]: what the process is, read once at start.
//!
//! A `config.yaml` written for APISIX loads unchanged. Keys of APISIX that mean nothing here are
//! listed in [`Settings::without_effect`]; a key that APISIX does not have is a warning.

mod access_log;
mod control;
mod dns;
mod listen;
mod load;
mod upstream_bind;

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::diagnostic::Origin;
use crate::config::resource::leaving::{DEFAULT_RATE, Will};

pub use access_log::{
    AccessLogFormat, AccessLogSettings, AccessLogTarget, ClientIdPolicy, DEFAULT_FORMAT, Escape,
    Part,
};
pub use dns::{DiscoverySettings, DnsSettings, RecordType};
pub use load::load;

/// Everything `config.yaml` says that this program acts on.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// `apisix.stream_proxy.tcp`, ranges expanded, in file order, without duplicates.
    pub listeners: Vec<Listener>,
    /// How many entries `apisix.stream_proxy.udp` has; UDP is not served.
    pub udp_listeners: usize,
    /// The format of the standalone file.
    pub provider: Provider,
    /// `mqtt_proxy.standalone_file` as written; relative to the folder of `config.yaml`.
    pub standalone_file: Option<PathBuf>,
    /// How many worker threads.
    pub workers: Workers,
    /// `apisix.enable_ipv6`: look up IPv6 addresses of names too. Default true.
    pub enable_ipv6: bool,
    /// How nodes given by name are resolved.
    pub dns: DnsSettings,
    /// How services are resolved.
    pub discovery: DiscoverySettings,
    /// Whether `checks` of upstreams count: `apisix.disable_upstream_healthcheck` is not set.
    pub health_checks: bool,
    /// `mqtt_proxy.upstream_bind`: the addresses from which nodes are connected to, by turns;
    /// empty = the kernel chooses. At most 1,024, none twice.
    pub upstream_bind: Vec<IpAddr>,
    /// `stream_plugins`; APISIX's default list when the file has none.
    pub stream_plugins: Vec<String>,
    /// `apisix.ssl.fallback_sni`: the name of clients that send none.
    pub fallback_sni: Option<String>,
    /// `apisix.ssl.ssl_trusted_certificate`, unless it is `system`.
    pub trusted_certificate: Option<PathBuf>,
    /// The metrics endpoint, unless it is turned off.
    pub metrics: Option<MetricsSettings>,
    /// The control API, unless it is switched off.
    pub control: Option<ControlSettings>,
    /// `apisix.status`: where `/status` and `/status/ready` are served besides.
    pub status: Option<SocketAddr>,
    /// The access log, when it is asked for.
    pub access_log: Option<AccessLogSettings>,
    /// How strictly CONNECT is judged.
    pub connect: ConnectMode,
    /// What a refused MQTT client gets.
    pub refusal: RefusalMode,
    /// What a node given by name is on the hash ring.
    pub ring_identity: RingIdentity,
    /// Limits on clients.
    pub limits: Limits,
    /// Idle timeouts of MQTT connections.
    pub idle: Idle,
    /// TLS on listeners and toward brokers.
    pub tls: TlsSettings,
    /// `mqtt_proxy.shutdown`: how the process ends.
    pub shutdown: ShutdownSettings,
    /// `mqtt_proxy.upgrade`: what becomes of connections that are not handed over.
    pub upgrade: UpgradeSettings,
    /// What stands under `pingora:`, if anything.
    pub pingora: Option<PingoraSettings>,
    /// Dotted paths of the keys APISIX knows that have no effect here, in file order.
    pub without_effect: Vec<String>,
}

/// One address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Address and port.
    pub addr: SocketAddr,
    /// `tls`: end TLS here.
    pub tls: bool,
    /// `tls_passthrough`: route by SNI without ending TLS.
    pub tls_passthrough: bool,
    /// Expect a PROXY protocol header from clients.
    pub proxy_protocol: bool,
    /// Send a PROXY protocol header to nodes.
    pub proxy_protocol_to_upstream: bool,
    /// The entry as written, for messages; a range appears with each of its listeners.
    pub written: String,
    /// Where the entry stands; never part of equality.
    pub position: Origin,
}

/// The format of the standalone file (`deployment.*.config_provider`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Provider {
    /// `apisix.yaml`, ends with `#END`.
    #[default]
    Yaml,
    /// `apisix.json`.
    Json,
}

/// `nginx_config.worker_processes`, or the variable `APISIX_WORKER_PROCESSES`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Workers {
    /// As many as there are processors.
    #[default]
    Auto,
    /// That many.
    Count(NonZeroUsize),
}

/// Where Prometheus text is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsSettings {
    /// Address and port.
    pub addr: SocketAddr,
    /// Path, begins with `/`.
    pub path: String,
    /// Whether it was asked for: the process does not start then without it. Otherwise another
    /// program may have the default port.
    pub required: bool,
}

/// Where the control API is served (`apisix.enable_control` and `apisix.control`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlSettings {
    /// Address and port. Default 127.0.0.1:9090.
    pub addr: SocketAddr,
    /// Whether somebody asked for it; by default it is served where nobody else has the port.
    pub written: bool,
}

/// `mqtt_proxy.connect`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ConnectMode {
    /// By the OASIS standards.
    #[default]
    Strict,
    /// As APISIX: whatever lets a client id be read.
    Tolerant,
}

/// `mqtt_proxy.refusal`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RefusalMode {
    /// CONNACK with the reason, then close.
    #[default]
    Connack,
    /// Close only, as APISIX.
    Close,
}

/// `mqtt_proxy.ring_identity`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RingIdentity {
    /// The name as written: the node keeps its clients when its address changes.
    #[default]
    Name,
    /// The resolved address, as APISIX.
    Address,
}

/// `mqtt_proxy.limits`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From accept to the first byte of CONNECT; above zero. Default 5 s.
    pub first_byte_timeout: Duration,
    /// From accept to the whole CONNECT; above zero. Default 10 s.
    pub connect_timeout: Duration,
    /// Bytes of a whole CONNECT packet, 64–1,048,576. Default 16,384, as nginx's preread buffer.
    pub max_connect_size: usize,
    /// Live client connections of the process; 0 = as many as open files allow.
    pub max_connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            first_byte_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(10),
            max_connect_size: 16_384,
            max_connections: 0,
        }
    }
}

/// `mqtt_proxy.tls`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// Ciphers of TLS 1.2 and before in OpenSSL's notation; `None` = Mozilla's intermediate list.
    pub ciphers: Option<String>,
    /// Cipher suites of TLS 1.3; `None` = OpenSSL's default.
    pub ciphersuites: Option<String>,
    /// From accept to the end of the handshake; above zero. Default 10 s.
    pub handshake_timeout: Duration,
    /// Handshakes in flight; beyond it, clients wait in the kernel's queue. Default 2,000.
    pub max_handshakes: usize,
    /// Who does the records of established connections. Default own.
    pub record_layer: RecordLayer,
    /// Keys of session tickets that several proxies share, as written; relative to the folder of
    /// `config.yaml`. `None` = random keys.
    pub ticket_key_file: Option<PathBuf>,
}

impl Default for TlsSettings {
    fn default() -> Self {
        TlsSettings {
            ciphers: None,
            ciphersuites: None,
            handshake_timeout: Duration::from_secs(10),
            max_handshakes: 2_000,
            record_layer: RecordLayer::Own,
            ticket_key_file: None,
        }
    }
}

/// `mqtt_proxy.tls.record_layer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordLayer {
    /// This program, where it can.
    Own,
    /// OpenSSL's session.
    OpenSsl,
}

/// `mqtt_proxy.idle`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Idle {
    /// Keep alive of CONNECT times this, 1–100. Default 1.5 \[MQTT-3.1.2-22\].
    pub keep_alive_factor: f64,
    /// Added to the product. Default 10 s.
    pub keep_alive_margin: Duration,
}

impl Default for Idle {
    fn default() -> Self {
        Idle {
            keep_alive_factor: 1.5,
            keep_alive_margin: Duration::from_secs(10),
        }
    }
}

/// `mqtt_proxy.shutdown`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ShutdownSettings {
    /// From SIGTERM until the last connection has left. Default 300 s.
    pub timeout: Duration,
    /// Connections a second that are sent away, and more where the timeout wants it. Default
    /// `None`: spread evenly over the timeout.
    pub rate: Option<f64>,
    /// What becomes of their wills.
    pub will: Will,
}

impl Default for ShutdownSettings {
    fn default() -> Self {
        ShutdownSettings {
            timeout: Duration::from_secs(300),
            rate: None,
            will: Will::Publish,
        }
    }
}

/// `mqtt_proxy.upgrade`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpgradeSettings {
    /// How long connections that cannot be handed over stay in the old process. Default 1 h.
    pub linger: Duration,
    /// Connections a second that are sent away afterwards. Default 200.
    pub rate: f64,
    /// What becomes of their wills.
    pub will: Will,
}

impl Default for UpgradeSettings {
    fn default() -> Self {
        UpgradeSettings {
            linger: Duration::from_secs(3600),
            rate: DEFAULT_RATE,
            will: Will::Publish,
        }
    }
}

/// The plugins APISIX enables in stream when `stream_plugins` is absent.
pub const DEFAULT_STREAM_PLUGINS: [&str; 5] = [
    "ip-restriction",
    "limit-conn",
    "mqtt-proxy",
    "syslog",
    "traffic-split",
];

/// Pingora's own settings as they are written: this room does not know them.
#[derive(Debug, Clone, PartialEq)]
pub struct PingoraSettings {
    /// The mapping.
    pub value: serde_yaml::Value,
    /// Where it begins.
    pub position: Origin,
    /// Its keys, and where each stands.
    pub keys: Vec<(String, Origin)>,
}
