//! A proxy before one upstream whose metrics a test looks at.

use std::process::Command;

use super::{
    Client, Connect, Files, Proxy, SOON, config_with, free_port, local, metrics, wait_until,
};

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
    start_with(upstream, "", |_| {})
}

/// Starts a proxy before this upstream that tells of every probe in its log.
pub fn start_verbose(upstream: &str) -> Setup {
    start_with(upstream, "", |command| {
        command.env("RUST_LOG", "info,mqtt_proxy::upstream=debug");
    })
}

/// The same with more below `mqtt_proxy` (begins with a comma) and a changed environment.
pub fn start_with(upstream: &str, own: &str, change: impl FnOnce(&mut Command)) -> Setup {
    let (port, metrics) = (free_port(), free_port());
    let own = format!("mqtt_proxy: {{metrics: {{addr: \"127.0.0.1:{metrics}\"}}{own}}}\n");
    let files = Files::new(&config_with(&[port], &own), &routes(upstream));
    Setup {
        proxy: Proxy::start_with(&files, &[local(port)], change),
        files,
        port,
        metrics,
    }
}

impl Setup {
    /// Reloads with this upstream instead.
    pub fn edit(&mut self, upstream: &str) {
        let files = self.files.clone();
        self.proxy.reload(|| files.replace_routes(routes(upstream)));
    }

    /// How many connections have ended for this reason.
    pub fn ended(&self, reason: &str) -> f64 {
        let label = format!("reason=\"{reason}\"");
        self.value("mqtt_proxy_connections_ended_total", &[&label])
    }

    /// The sum of a metric over all series with these labels.
    pub fn value(&self, name: &str, labels: &[&str]) -> f64 {
        metrics::value(local(self.metrics), name, labels)
    }

    /// A metric of one node.
    pub fn of_node(&self, name: &str, node: &str) -> f64 {
        self.value(name, &[&format!("node=\"{node}\"")])
    }

    /// The live connections of a node.
    pub fn live(&self, node: &str) -> usize {
        self.of_node("mqtt_proxy_upstream_connections", node) as usize
    }

    /// Whether a node counts as healthy.
    pub fn is_healthy(&self, node: &str) -> bool {
        self.of_node("mqtt_proxy_upstream_healthy", node) == 1.0
    }

    /// Waits until it does, or does not, and the balancers have followed.
    pub fn wait_until_healthy(&self, node: &str, healthy: bool) {
        wait_until(&format!("{node} healthy: {healthy}"), SOON, || {
            (self.is_healthy(node) == healthy).then_some(())
        });
        if healthy {
            // Logged behind both; a node that was never anything else is in use from the start.
            let times = self.transitions(node, "healthy");
            wait_until(&format!("{node} in use again"), SOON, || {
                let said = format!("node {node} is healthy again");
                (self.proxy.count(&said) as f64 >= times).then_some(())
            });
        }
    }

    /// How often a node became `healthy` or `unhealthy`.
    pub fn transitions(&self, node: &str, to: &str) -> f64 {
        let labels = [format!("node=\"{node}\""), format!("to=\"{to}\"")];
        let name = "mqtt_proxy_upstream_health_transitions_total";
        self.value(name, &[&labels[0], &labels[1]])
    }

    /// How many connects to nodes failed.
    pub fn connect_failures(&self) -> f64 {
        self.value("mqtt_proxy_upstream_connect_failures_total", &[])
    }

    /// So many MQTT clients, with numbers behind `prefix` as their ids.
    pub fn clients(&self, prefix: &str, count: usize) -> Vec<Client> {
        (0..count)
            .map(|n| Client::mqtt(self.port, &Connect::v311(&format!("{prefix}{n}"))))
            .collect()
    }
}
