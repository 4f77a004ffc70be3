//! The table: everything that a new connection is served by, built from the resources of one
//! load and swapped in as a whole.

mod build;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;

use crate::plugin::mqtt_proxy::MqttProxy;
use crate::route::{Request, RouteIndex};
use crate::tls::server::Certificates;
use crate::upstream::Upstream;

/// A stream route with everything that serves its connections.
#[derive(Debug)]
pub struct Route {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: Option<String>,
    /// Id of the service through which it gets its upstream and plugins.
    pub service_id: Option<String>,
    /// Name of that service.
    pub service_name: Option<String>,
    /// The `mqtt-proxy` plugin; without it the route is plain TCP.
    pub mqtt_proxy: Option<MqttProxy>,
    /// Where a listener leaves it to the route: TLS is passed through and not ended.
    pub tls_passthrough: bool,
    /// Where its connections go, or why they can go nowhere.
    pub upstream: Result<Arc<Upstream>, NoUpstream>,
    /// What is counted of it.
    pub counts: Arc<RouteCounts>,
}

impl Route {
    /// It has taken a connection.
    pub fn count_connection(&self) {
        self.counts.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection was hashed by its address for want of a key.
    pub fn count_missing_key(&self) {
        self.counts.hash_key_missing.fetch_add(1, Ordering::Relaxed);
    }
}

/// What is counted of a route, over all loads that have one with its id.
#[derive(Debug, Default)]
pub struct RouteCounts {
    /// Connections that it took.
    pub connections: AtomicU64,
    /// Those that were hashed by their address for want of a key.
    pub hash_key_missing: AtomicU64,
}

impl Route {
    /// A route that the configuration does not have any more, for connections that it took.
    pub fn gone(id: &str) -> Self {
        Route {
            id: id.to_owned(),
            name: None,
            service_id: None,
            service_name: None,
            tls_passthrough: false,
            mqtt_proxy: None,
            upstream: Err(NoUpstream::Missing),
            counts: Arc::default(),
        }
    }
}

/// Why a route has no upstream. APISIX finds out at the first connection; here `check` and the
/// log of a load say it before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoUpstream {
    /// `upstream_id` names an upstream that does not exist (or was refused).
    #[error("failed to find upstream by id: {0}")]
    UnknownUpstream(String),
    /// `service_id` names a service that does not exist (or was refused).
    #[error("failed to fetch service configuration by id: {0}")]
    UnknownService(String),
    /// Neither the route nor its service says where to go.
    #[error("missing upstream configuration in Route or Service")]
    Missing,
}

/// All routes and upstreams of one load. Immutable.
#[derive(Debug, Default)]
pub struct Table {
    index: RouteIndex,
    routes: Vec<Arc<Route>>,
    upstreams: HashMap<String, Arc<Upstream>>,
    certificates: Certificates,
}

impl Table {
    /// The route that takes a connection.
    pub fn route(&self, request: &Request<'_>) -> Option<&Arc<Route>> {
        self.index
            .find(request)
            .map(|position| &self.routes[position])
    }

    /// All routes, in file order.
    pub fn routes(&self) -> &[Arc<Route>] {
        &self.routes
    }

    /// Called when the table starts to serve: from now on its upstreams follow what happens to
    /// their nodes.
    pub fn enter_service(&self) {
        for upstream in self.upstreams.values() {
            upstream.enter_service();
        }
    }

    /// All upstreams, those written inline included.
    pub fn upstreams(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.upstreams.values()
    }

    /// The upstream of this label, if there is one.
    pub fn upstream(&self, label: &str) -> Option<&Arc<Upstream>> {
        self.upstreams.get(label)
    }

    /// The certificates for clients.
    pub fn certificates(&self) -> &Certificates {
        &self.certificates
    }
}

/// The table that new connections are served by. Swapped as a whole by a reload.
pub type CurrentTable = ArcSwap<Table>;

#[cfg(test)]
mod tests;
