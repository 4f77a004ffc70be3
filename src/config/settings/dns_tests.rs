//! `apisix.dns_resolver…` and `discovery.dns`.

use std::path::Path;

use super::*;
use crate::config::settings::{Settings, load};

fn good(text: &str) -> Settings {
    let loaded = load(text, Path::new("config.yaml"), &|_| None);
    assert!(!loaded.has_errors(), "{:?}", loaded.diagnostics);
    loaded.value.unwrap()
}

fn messages(text: &str) -> Vec<String> {
    let loaded = load(text, Path::new("config.yaml"), &|_| None);
    loaded.diagnostics.iter().map(ToString::to_string).collect()
}

#[test]
fn name_servers() {
    let settings = good(
        "apisix:\n  stream_proxy: {tcp: [1]}\n  dns_resolver: [1.1.1.1, '8.8.8.8:5353', '::1', '[::1]:54', '[fe80::1]']\n  \
         dns_resolver_valid: 30\n  resolver_timeout: 2\n  enable_resolv_search_opt: off\n  enable_ipv6: no\n",
    );
    let servers: Vec<String> = settings
        .dns
        .servers
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        servers,
        [
            "1.1.1.1:53",
            "8.8.8.8:5353",
            "[::1]:53",
            "[::1]:54",
            "[fe80::1]:53"
        ]
    );
    assert_eq!(settings.dns.valid, Some(Duration::from_secs(30)));
    assert_eq!(settings.dns.timeout, Duration::from_secs(2));
    assert!(!settings.dns.search && !settings.enable_ipv6);
    let told = messages("apisix: {stream_proxy: {tcp: [1]}, dns_resolver: [dns.test]}");
    assert!(
        told[0].contains("apisix.dns_resolver[0]: \"dns.test\" is no address of a name server")
    );
}

#[test]
fn services() {
    let settings = good(
        "apisix: {stream_proxy: {tcp: [1]}, dns_resolver_valid: 9, resolver_timeout: 2}\n\
         discovery:\n  dns:\n    servers: ['127.0.0.1:8600', '::1']\n    \
         resolv_conf: own.conf\n    order: [last, CNAME, A, SRV]\n  consul: {servers: []}\n",
    );
    let DiscoverySettings { dns, order } = settings.discovery;
    let shown: Vec<String> = dns.servers.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["127.0.0.1:8600", "[::1]:53"]);
    assert_eq!(dns.resolv_conf, Some("own.conf".into()));
    assert_eq!(order, [RecordType::Last, RecordType::A, RecordType::Srv]);
    assert_eq!((dns.valid, dns.hosts), (None, false));
    assert_eq!(dns.timeout, Duration::from_secs(2));
    assert_eq!(settings.without_effect, ["discovery.consul"]);
}

#[test]
fn services_without_servers_ask_those_of_nodes() {
    let nodes = "apisix: {stream_proxy: {tcp: [1]}, dns_resolver: [127.0.0.9], enable_ipv6: false}";
    let of = |more: &str| good(&format!("{nodes}\n{more}")).discovery;
    let absent = of("");
    assert_eq!(absent.dns.servers, ["127.0.0.9:53".parse().unwrap()]);
    let without_ipv6 = [RecordType::Last, RecordType::Srv, RecordType::A];
    assert_eq!(absent.order, without_ipv6);
    assert!(
        of("discovery: {dns: {resolv_conf: a}}")
            .dns
            .servers
            .is_empty()
    );
}

#[test]
fn wrong_ways_to_services() {
    let told = |block: &str| {
        messages(&format!(
            "apisix: {{stream_proxy: {{tcp: [1]}}}}\ndiscovery: {block}"
        ))
    };
    for (block, message) in [
        (
            "{dns: {servers: [dns.test]}}",
            "discovery.dns.servers[0]: \"dns.test\" is no address of a name server",
        ),
        ("{dns: {servers: []}}", "discovery.dns.servers: "),
        (
            "{dns: {order: [last, CNAME]}}",
            "discovery.dns.order: order asks for no record that leads to an address (SRV, A, AAAA)",
        ),
        (
            "{dns: {order: [SVR]}}",
            "discovery.dns.order[0]: unknown order \"SVR\"",
        ),
        ("{dns: {serves: []}}", "discovery.dns.serves: unknown field"),
        ("{dsn: {}}", "discovery.dsn: unknown field"),
    ] {
        let told = told(block);
        assert!(told[0].contains(message), "{block}: {told:?}");
    }
}
