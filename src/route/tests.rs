//! Stories about matching; the last one compares the index with the rule as APISIX words it.

use super::*;
use ipnet::IpNet;
use proptest::prelude::*;

fn route(
    snis: &[&str],
    remote: Option<&str>,
    server: Option<&str>,
    port: Option<u16>,
) -> StreamRoute {
    StreamRoute {
        id: "1".to_owned(),
        name: None,
        remote_addr: remote.map(|net| net.parse().unwrap()),
        server_addr: server.map(|net| net.parse().unwrap()),
        server_port: port,
        snis: snis.iter().map(|&sni| sni.to_owned()).collect(),
        tls_passthrough: None,
        upstream: None,
        upstream_id: None,
        service_id: None,
        plugins: Default::default(),
        position: Default::default(),
    }
}

fn find(routes: &[StreamRoute], client: &str, server: &str, sni: Option<&str>) -> Option<usize> {
    RouteIndex::new(routes).find(&Request {
        client: client.parse().unwrap(),
        server: server.parse().unwrap(),
        sni,
    })
}

#[test]
fn the_first_route_in_file_order_wins() {
    let routes = [
        route(&[], Some("10.0.0.0/8"), None, Some(9100)),
        route(&[], None, None, None),
        route(&[], Some("192.0.2.1/32"), None, Some(9100)),
    ];
    assert_eq!(find(&routes, "10.9.9.9", "127.0.0.1:9100", None), Some(0));
    assert_eq!(
        find(&routes, "192.0.2.1", "127.0.0.1:9100", None),
        Some(1),
        "a catch-all shadows what follows, however exact"
    );
    assert_eq!(
        find(&routes[2..], "192.0.2.2", "127.0.0.1:9100", None),
        None
    );
}

#[test]
fn every_predicate_must_hold() {
    let routes = [route(
        &[],
        Some("10.0.0.0/8"),
        Some("127.0.0.10/32"),
        Some(9101),
    )];
    assert_eq!(find(&routes, "10.1.1.1", "127.0.0.10:9101", None), Some(0));
    assert_eq!(find(&routes, "11.1.1.1", "127.0.0.10:9101", None), None);
    assert_eq!(find(&routes, "10.1.1.1", "127.0.0.11:9101", None), None);
    assert_eq!(find(&routes, "10.1.1.1", "127.0.0.10:9102", None), None);
}

#[test]
fn address_families_are_apart() {
    let routes = [
        route(&[], Some("0.0.0.0/0"), None, None),
        route(&[], Some("::/0"), None, None),
    ];
    assert_eq!(find(&routes, "127.0.0.1", "127.0.0.1:1", None), Some(0));
    assert_eq!(find(&routes, "::1", "[::1]:1", None), Some(1));
}

#[test]
fn host_bits_of_a_network_are_masked() {
    let routes = [route(&[], Some("127.0.0.1/26"), None, None)];
    assert_eq!(find(&routes, "127.0.0.60", "127.0.0.1:1", None), Some(0));
    assert_eq!(find(&routes, "127.0.0.64", "127.0.0.1:1", None), None);
}

#[test]
fn names_are_asked_before_routes_without_one() {
    let routes = [
        route(&[], None, None, None),
        route(&["*"], None, None, None),
        route(&["*.test.com"], None, None, None),
        route(&["*.b.test.com"], None, None, None),
        route(&["a.test.com"], Some("127.0.0.2/32"), None, None),
    ];
    let by_name = |client, sni| find(&routes, client, "127.0.0.1:1", Some(sni));
    assert_eq!(
        by_name("127.0.0.2", "A.Test.com."),
        Some(4),
        "case and final dot"
    );
    assert_eq!(
        by_name("127.0.0.1", "a.test.com"),
        Some(2),
        "no address fits the exact name: the wildcard is next"
    );
    assert_eq!(
        by_name("127.0.0.1", "x.b.test.com"),
        Some(3),
        "longest wildcard"
    );
    assert_eq!(by_name("127.0.0.1", "x.y.test.com"), Some(2), "any depth");
    assert_eq!(by_name("127.0.0.1", "test.com"), Some(1));
    assert_eq!(find(&routes, "127.0.0.1", "127.0.0.1:1", None), Some(0));
    assert_eq!(find(&routes[1..], "127.0.0.1", "127.0.0.1:1", None), None);
}

#[test]
fn a_star_without_a_dot_matches_the_bare_name_too() {
    let routes = [route(&["*test.com"], None, None, None)];
    for name in ["test.com", "mytest.com", "a.b.test.com"] {
        assert_eq!(
            find(&routes, "::1", "[::1]:1", Some(name)),
            Some(0),
            "{name}"
        );
    }
}

/// The rule without an index, word for word.
fn by_the_book(routes: &[StreamRoute], request: &Request<'_>) -> Option<usize> {
    let holds = |route: &StreamRoute| {
        let contains = |net: Option<IpNet>, ip: IpAddr| net.is_none_or(|net| net.contains(&ip));
        contains(route.remote_addr, request.client)
            && contains(route.server_addr, request.server.ip())
            && route
                .server_port
                .is_none_or(|port| port == request.server.port())
    };
    let first = |of: &dyn Fn(&StreamRoute) -> bool| {
        routes.iter().position(|route| of(route) && holds(route))
    };
    let mut found = None;
    if let Some(sni) = request.sni {
        found = first(&|route| route.snis.iter().any(|name| name == sni));
        let mut suffixes: Vec<&str> = routes
            .iter()
            .flat_map(|route| &route.snis)
            .filter_map(|name| name.strip_prefix('*'))
            .filter(|suffix| sni.ends_with(suffix))
            .collect();
        suffixes.sort_by_key(|suffix| std::cmp::Reverse(suffix.len()));
        for suffix in suffixes {
            let name = format!("*{suffix}");
            found = found.or_else(|| first(&|route| route.snis.contains(&name)));
        }
    }
    found.or_else(|| first(&|route| route.snis.is_empty()))
}

fn any_route() -> impl Strategy<Value = StreamRoute> {
    let net = prop::option::of(prop::sample::select(vec![
        "10.0.0.0/8",
        "10.1.0.0/16",
        "10.1.1.1/32",
        "0.0.0.0/0",
        "fe80::/10",
        "::/0",
        "::1/128",
    ]));
    let sni = prop::collection::vec(
        prop::sample::select(vec!["a.x.y", "*.y", "*.x.y", "*", "*y"]),
        0..2,
    );
    let port = prop::option::of(1_u16..4);
    (sni, net.clone(), net, port).prop_map(|(snis, a, b, port)| route(&snis, a, b, port))
}

proptest! {
    #[test]
    fn the_index_agrees_with_the_rule(
        routes in prop::collection::vec(any_route(), 0..24),
        client in prop::sample::select(vec!["10.0.0.1", "10.1.0.1", "10.1.1.1", "192.0.2.1", "fe80::1", "::1"]),
        server in prop::sample::select(vec!["10.1.1.1", "127.0.0.1", "::1"]),
        port in 1_u16..5,
        sni in prop::option::of(prop::sample::select(vec!["a.x.y", "b.x.y", "y", "zy", "other"])),
    ) {
        let request = Request {
            client: client.parse().unwrap(),
            server: SocketAddr::new(server.parse().unwrap(), port),
            sni,
        };
        prop_assert_eq!(RouteIndex::new(&routes).find(&request), by_the_book(&routes, &request));
    }
}
