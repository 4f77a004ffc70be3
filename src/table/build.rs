//! Resources → [`Table`].

use std::collections::HashMap;
use std::sync::Arc;

use super::{NoUpstream, Route, RouteCounts, Table};
use crate::config::resource::plugin::Plugins;
use crate::config::resource::service::Service;
use crate::config::resource::stream_route::StreamRoute;
use crate::config::resource::upstream as resource;
use crate::config::standalone::Resources;
use crate::plugin::mqtt_proxy::MqttProxy;
use crate::route::RouteIndex;
use crate::tls::server::Certificates;
use crate::upstream::{Context, Upstream};

impl Table {
    /// Builds the table for `resources`. An upstream whose object is the same as in `previous` is
    /// taken over as it is, with its place in the round and its counts.
    pub fn build(resources: &Resources, context: &Context<'_>, previous: &Table) -> Self {
        let mut builder = Builder {
            context,
            previous,
            counts: previous
                .routes
                .iter()
                .map(|route| (route.id.as_str(), &route.counts))
                .collect(),
            upstreams: HashMap::new(),
        };
        for named in &resources.upstreams {
            builder.upstream(named.id.clone(), &named.upstream);
        }
        let services = resources.services.iter();
        let services: HashMap<&str, &Service> = services
            .map(|service| (service.id.as_str(), &**service))
            .collect();
        let routes = resources
            .stream_routes
            .iter()
            .map(|route| Arc::new(builder.route(route, &services)))
            .collect();
        Table {
            index: RouteIndex::new(resources.stream_routes.iter().map(|route| &**route)),
            routes,
            upstreams: builder.upstreams,
            certificates: Certificates::build(
                &resources.ssls,
                &context.tls.settings,
                &context.tls.tickets,
                &previous.certificates,
            ),
        }
    }
}

struct Builder<'a> {
    context: &'a Context<'a>,
    previous: &'a Table,
    /// By the id of a route of `previous`.
    counts: HashMap<&'a str, &'a Arc<RouteCounts>>,
    upstreams: HashMap<String, Arc<Upstream>>,
}

impl Builder<'_> {
    fn upstream(&mut self, label: String, config: &resource::Upstream) -> Arc<Upstream> {
        if let Some(built) = self.upstreams.get(&label) {
            return built.clone();
        }
        let before = self.previous.upstreams.get(&label);
        let upstream = match before {
            Some(same) if same.is_same(config, self.context) => same.clone(),
            _ => Upstream::build(
                label.clone(),
                config,
                self.context,
                before.map(|upstream| &**upstream),
            ),
        };
        self.upstreams.insert(label, upstream.clone());
        upstream
    }

    fn known(&self, id: &str) -> Result<Arc<Upstream>, NoUpstream> {
        let found = self.upstreams.get(id).cloned();
        found.ok_or_else(|| NoUpstream::UnknownUpstream(id.to_owned()))
    }

    /// Merges a route with its service. `upstream_id` on the route shuts the service out
    /// altogether, plugins included; otherwise inline upstreams come before ids and the route
    /// before the service, and a plugin of the route replaces the service's as a whole (APISIX).
    fn route(&mut self, route: &StreamRoute, services: &HashMap<&str, &Service>) -> Route {
        let service = match (&route.upstream_id, &route.service_id) {
            (None, Some(id)) => match services.get(id.as_str()) {
                Some(service) => Some(*service),
                None => {
                    let missing = NoUpstream::UnknownService(id.clone());
                    return self.finish(route, None, route.plugins.clone(), Err(missing));
                }
            },
            _ => None,
        };
        let plugins = Plugins {
            mqtt_proxy: route
                .plugins
                .mqtt_proxy
                .clone()
                .or_else(|| service?.plugins.mqtt_proxy.clone()),
        };
        let inline_of_service = || {
            let service = service?;
            Some((
                format!("service/{}", service.id),
                service.upstream.as_ref()?,
            ))
        };
        let upstream = if let Some(id) = &route.upstream_id {
            self.known(id)
        } else if let Some(inline) = &route.upstream {
            Ok(self.upstream(format!("route/{}", route.id), inline))
        } else if let Some((label, inline)) = inline_of_service() {
            Ok(self.upstream(label, inline))
        } else if let Some(id) = service.and_then(|service| service.upstream_id.as_ref()) {
            self.known(id)
        } else if let Some(inline) = plugins
            .mqtt_proxy
            .as_ref()
            .and_then(|p| p.upstream.as_ref())
        {
            // The form of APISIX 2.x, for routes that have nothing else.
            Ok(self.upstream(format!("route/{}/mqtt-proxy", route.id), inline))
        } else {
            Err(NoUpstream::Missing)
        };
        self.finish(route, service, plugins, upstream)
    }

    fn finish(
        &self,
        route: &StreamRoute,
        service: Option<&Service>,
        plugins: Plugins,
        upstream: Result<Arc<Upstream>, NoUpstream>,
    ) -> Route {
        Route {
            id: route.id.clone(),
            name: route.name.clone(),
            service_id: service.map(|service| service.id.clone()),
            service_name: service.and_then(|service| service.name.clone()),
            mqtt_proxy: plugins.mqtt_proxy.as_ref().map(MqttProxy::new),
            tls_passthrough: route.tls_passthrough.unwrap_or(false),
            upstream,
            counts: self
                .counts
                .get(route.id.as_str())
                .map(|&counts| counts.clone())
                .unwrap_or_default(),
        }
    }
}
