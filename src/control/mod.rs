//! The control API: what a running proxy says about itself, over HTTP and in JSON.
//!
//! Paths and shapes are those of APISIX's control and status API as far as it has them
//! (`/v1/healthcheck…`, `/v1/schema`, `/v1/upstreams`, `/v1/upstream/{id}`, `/status`,
//! `/status/ready`); `/v1/stream_routes`, `/v1/connections` and `/v1/status` are ours. Everything is
//! read-only, and every answer is put together field by field: what may be secret (private keys,
//! credentials, headers and bodies of probes) has no way into one.

pub mod api;
mod connections;
mod health;
mod objects;
pub mod service;
mod state;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use pingora_core::server::ShutdownWatch;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::session::connections::Connections;
use crate::session::listener::Listener;
use crate::session::relay::Relays;
use crate::source::Source;
use crate::table::CurrentTable;
use crate::upstream::Upstream;

/// Everything that the answers come from.
pub struct Control {
    /// Routes and upstreams that serve now.
    pub table: Arc<CurrentTable>,
    /// The same as the file says them, and the last load.
    pub source: Arc<Source>,
    /// Where established connections are.
    pub relays: Arc<Relays>,
    /// How many client connections live.
    pub connections: Arc<Connections>,
    /// How many may live.
    pub limit: usize,
    /// The listeners of clients, in file order.
    pub listeners: Vec<Arc<Listener>>,
    /// False while another process accepts on the same sockets (an upgrade).
    pub accepting: watch::Receiver<bool>,
    /// Set once all listeners of clients accept.
    pub accepts: Arc<OnceLock<Handle>>,
    /// Where `config.yaml` is, as an absolute path.
    pub config: PathBuf,
    /// When this process began.
    pub started: Instant,
    /// True once this process is leaving; set when the service starts.
    pub leaving: OnceLock<ShutdownWatch>,
}

/// A section of the standalone file and the id of an item.
type Place<'a> = (&'static str, &'a str);

/// Where the upstream of this label is written: an item of `upstreams`, or inside a route or
/// service.
fn place_of(upstream: &Upstream) -> Place<'_> {
    let label = upstream.label();
    match label.split_once('/') {
        Some(("service", id)) => ("services", id),
        Some((_, id)) => ("stream_routes", id.trim_end_matches("/mqtt-proxy")),
        None => ("upstreams", label),
    }
}
