//! A proxy before one upstream whose metrics a test looks at.

use super::{Files, Proxy, config_with, free_port};

/// A proxy before one upstream, with its metrics endpoint.
pub struct Setup {
    /// The proxy.
    pub proxy: Proxy,
    /// Its files.
    pub files: Files,
    /// Where it listens.
    pub port: u16,
    /// Where its metrics are.
    pub metrics: u16,
}

/// One MQTT route to this upstream (YAML flow form, without braces).
pub fn routes(upstream: &str) -> String {
    format!(
        "stream_routes:\n  - id: 1\n    plugins: {{mqtt-proxy: {{protocol_level: [4, 5]}}}}\n    \
         upstream: {{{upstream}}}\n#END\n"
    )
}

/// Starts a proxy before this upstream.
pub fn start(upstream: &str) -> Setup {
    let (port, metrics) = (free_port(), free_port());
    let own = format!("mqtt_proxy: {{metrics: {{addr: \"127.0.0.1:{metrics}\"}}}}\n");
    let files = Files::new(&config_with(&[port], &own), &routes(upstream));
    Setup {
        proxy: Proxy::start(&files, &[port]),
        files,
        port,
        metrics,
    }
}
