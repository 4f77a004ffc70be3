//! Routes by server name, over real TLS connections.

mod support;

use support::tls::{Authority, TlsClient, ssl, tls_config};
use support::*;

#[test]
fn names_before_routes_without_and_addresses_within_a_name() {
    let port = free_port();
    let brokers = ["a", "b", "c", "d", "e", "f"]
        .map(|name| Broker::greeting(local(free_port()), name.as_bytes()));
    let [any, every_name, short, long, near, exact] = &brokers;
    let route = |predicates: &str, broker: &Broker| {
        let node = broker.addr();
        format!("  - {{{predicates}, upstream: {{nodes: {{\"{node}\": 1}}}}}}\n")
    };
    let routes = [
        route("id: 1", any),
        route("id: 2, sni: '*', remote_addr: 127.0.0.2", every_name),
        route("id: 3, sni: '*.b.test'", short),
        route("id: 4, sni: '*.a.b.test'", long),
        route(
            "id: 5, snis: [x.a.b.test, Y.a.b.test], remote_addr: 127.0.0.2",
            near,
        ),
        route("id: 6, sni: x.a.b.test", exact),
    ];
    let ca = Authority::new("root");
    let routes = format!(
        "stream_routes:\n{}ssls:\n  - {}\n#END\n",
        routes.concat(),
        ssl("1", "'*'", &ca.issue(&["any"]), "")
    );
    let files = Files::new(&tls_config(&[port], "", ""), &routes);
    let _proxy = Proxy::start(&files, &[port]);
    let reached = |name: &str, from: &str| {
        let socket = Client::from(from, local(port)).stream;
        socket.set_read_timeout(Some(SOON)).unwrap();
        let mut talk = TlsClient::to(port).name(name).over(socket).unwrap();
        let mut greeting = [0];
        std::io::Read::read_exact(&mut talk.stream, &mut greeting).unwrap();
        char::from(greeting[0])
    };
    for (name, from, broker) in [
        ("x.a.b.test", "127.0.0.2", 'e'),
        ("x.a.b.test", "127.0.0.1", 'f'),
        ("X.A.B.test", "127.0.0.1", 'f'),
        ("y.a.b.test", "127.0.0.2", 'e'),
        // The exact name does not take this address: the longest wildcard comes next.
        ("y.a.b.test", "127.0.0.1", 'd'),
        ("q.z.a.b.test", "127.0.0.1", 'd'),
        ("c.b.test", "127.0.0.1", 'c'),
        ("elsewhere.test", "127.0.0.2", 'b'),
        // First in the file, and last to be asked.
        ("elsewhere.test", "127.0.0.1", 'a'),
    ] {
        assert_eq!(reached(name, from), broker, "{name} from {from}");
    }
}
