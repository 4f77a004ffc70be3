//! From the text of a standalone file to the route of a connection and what serves it.

use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::config::settings::Provider;
use crate::config::standalone;
use crate::upstream::{Context, Shared};

fn table(text: &str, previous: &Table) -> Table {
    let plugins = ["mqtt-proxy".to_owned()];
    let path = Path::new("apisix.yaml");
    let text = format!("{text}\n#END\n");
    let loaded = standalone::load(&text, path, Provider::Yaml, &|_| None, &plugins, None);
    let shared = Shared::default();
    let tls = crate::tls::Shared::offline().unwrap();
    let context = Context {
        shared: &shared,
        tls: &tls,
        ssls: &[],
    };
    Table::build(&loaded.expect("the file is good").0, &context, previous)
}

fn route(table: &Table, port: u16) -> &Arc<Route> {
    let request = Request {
        client: "192.0.2.1".parse().unwrap(),
        server: ([127, 0, 0, 1], port).into(),
        sni: None,
    };
    table.route(&request).expect("no route")
}

/// Which upstream a route leads to, or why it leads nowhere.
fn upstream(table: &Table, port: u16) -> String {
    match &route(table, port).upstream {
        Ok(upstream) => upstream.label().to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn where_a_route_gets_its_upstream_from() {
    let table = table(
        "
stream_routes:
  - {id: a, server_port: 1, upstream_id: 1, service_id: s, upstream: {nodes: {\"127.0.0.1:9\": 1}}}
  - {id: b, server_port: 2, service_id: s, upstream: {nodes: {\"127.0.0.1:9\": 1}}}
  - {id: c, server_port: 3, service_id: s}
  - {id: d, server_port: 4, service_id: by-id}
  - {id: e, server_port: 5, upstream_id: nobody}
  - {id: f, server_port: 6, service_id: nobody, upstream: {nodes: {\"127.0.0.1:9\": 1}}}
  - {id: g, server_port: 7}
  - {id: h, server_port: 8, plugins: {mqtt-proxy: {protocol_level: 4, upstream: {ip: 127.0.0.1, port: 9}}}}
services:
  - {id: s, upstream: {nodes: {\"127.0.0.1:8\": 1}}, upstream_id: 1}
  - {id: by-id, upstream_id: 1}
upstreams:
  - {id: 1, nodes: {\"127.0.0.1:7\": 1}}",
        &Table::default(),
    );
    let found: Vec<String> = (1..=8).map(|port| upstream(&table, port)).collect();
    assert_eq!(
        found,
        [
            "1",
            "route/b",
            "service/s",
            "1",
            "failed to find upstream by id: nobody",
            "failed to fetch service configuration by id: nobody",
            "missing upstream configuration in Route or Service",
            "route/h/mqtt-proxy",
        ]
    );
}

#[test]
fn plugins_of_a_service_serve_its_routes_unless_upstream_id_shuts_it_out() {
    let table = table(
        "
stream_routes:
  - {id: a, server_port: 1, service_id: s}
  - {id: b, server_port: 2, service_id: s, plugins: {mqtt-proxy: {protocol_level: 5}}}
  - {id: c, server_port: 3, service_id: s, upstream_id: 1}
services:
  - {id: s, name: fleet, upstream_id: 1, plugins: {mqtt-proxy: {protocol_level: 4}}}
upstreams:
  - {id: 1, nodes: {\"127.0.0.1:7\": 1}}",
        &Table::default(),
    );
    let accepts = |port| {
        route(&table, port)
            .mqtt_proxy
            .as_ref()
            .map(|p| p.describe())
    };
    assert_eq!(accepts(1).as_deref(), Some("MQTT level 4"));
    assert_eq!(
        accepts(2).as_deref(),
        Some("MQTT level 5"),
        "replaced as a whole"
    );
    assert_eq!(accepts(3), None);
    assert_eq!(route(&table, 1).service_name.as_deref(), Some("fleet"));
    assert_eq!(route(&table, 3).service_id, None);
}

#[test]
fn a_reload_keeps_upstreams_that_are_the_same_and_the_nodes_of_those_that_are_not() {
    let text = |weight| {
        format!(
            "
stream_routes:
  - {{id: a, server_port: 1, upstream_id: same}}
  - {{id: b, server_port: 2, upstream_id: changed}}
upstreams:
  - {{id: same, nodes: {{\"127.0.0.1:7\": 1}}}}
  - {{id: changed, nodes: {{\"127.0.0.1:8\": {weight}, \"127.0.0.1:9\": 1}}}}"
        )
    };
    let before = table(&text(1), &Table::default());
    let after = table(&text(2), &before);
    let of = |table: &Table, port| route(table, port).upstream.clone().unwrap();
    assert!(Arc::ptr_eq(&of(&before, 1), &of(&after, 1)));
    let (old, new) = (of(&before, 2), of(&after, 2));
    assert!(!Arc::ptr_eq(&old, &new));
    for (old, new) in old.nodes().zip(new.nodes()) {
        assert!(Arc::ptr_eq(old, new), "{} keeps its counts", old.label());
    }
}
