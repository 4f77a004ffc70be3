//! Every way in which a connection can end, provoked one after the other: the line that the access
//! log has for it, and what the metrics count.

mod support;

use std::collections::BTreeSet;
use std::net::SocketAddr;

use mqtt_proxy::session::outcome::End;
use mqtt_proxy::session::refusal::Refusal;
use openssl::ssl::SslVersion;
use serde_json::Value;
use support::mqtt::{disconnect, hex};
use support::ports::BlackHole;
use support::tls::{Authority, TlsClient, ssl};
use support::{
    Broker, Client, Connect, DeadPort, Files, Proxy, SOON, free_ports, local, metrics, send,
    wait_until,
};

/// Ends that no client and no broker can bring about while metrics are served. A process that
/// leaves logs `shutdown` (tests/access_log.rs); an operator brings about `drained` (tests/drain.rs)
/// and `rebalanced` (tests/rebalance.rs); `aborted` would be a defect of the program.
const NOT_HERE: [&str; 4] = ["shutdown", "drained", "rebalanced", "aborted"];

/// A proxy with a listener for each way to a broker, or to none.
struct Stage {
    broker: Broker,
    dead: DeadPort,
    holes: [BlackHole; 2],
    files: Files,
    proxy: Proxy,
    scrape: SocketAddr,
    seen: usize,
    ends: BTreeSet<String>,
    refusals: BTreeSet<String>,
}

/// What is to be found of an ended connection.
#[derive(Clone, Copy)]
struct Found<'a> {
    /// `end_side`, `end_phase` and `end_reason` of its last line.
    line: [&'a str; 3],
    /// Whether there is a line of its admission before it.
    admitted: bool,
    /// `code` and `node` of APISIX's session status; none without a route.
    session: Option<(&'a str, &'a str)>,
    /// What came of the TLS handshake.
    handshake: Option<&'a str>,
    /// Origin and code of the CONNACK that the client got.
    connack: Option<(&'a str, &'a str)>,
}

impl<'a> Found<'a> {
    fn refused(line: [&'a str; 3]) -> Self {
        Found {
            line,
            admitted: false,
            session: Some(("503", "")),
            handshake: None,
            connack: None,
        }
    }

    fn relayed(line: [&'a str; 3], code: &'a str, node: &'a str) -> Self {
        Found {
            line,
            admitted: true,
            session: Some((code, node)),
            handshake: None,
            connack: Some(("broker", "0x00")),
        }
    }

    fn session(self, code: &'a str, node: &'a str) -> Self {
        let session = Some((code, node));
        Found { session, ..self }
    }

    fn without_route(self) -> Self {
        let session = None;
        Found { session, ..self }
    }

    fn handshake(self, result: &'a str) -> Self {
        let handshake = Some(result);
        Found { handshake, ..self }
    }

    fn told(self, code: &'a str) -> Self {
        let connack = Some(("proxy", code));
        Found { connack, ..self }
    }

    /// Every series that is one more afterwards.
    fn series(&self) -> Vec<(&'static str, Vec<String>)> {
        let label = |name: &str, value: &str| format!("{name}=\"{value}\"");
        let reason = self.line[2];
        let mut series = match Refusal::REASONS.contains(&reason) {
            true => vec![
                ("mqtt_proxy_refused_total", vec![label("reason", reason)]),
                (
                    "mqtt_proxy_connections_ended_total",
                    vec![label("reason", "refused")],
                ),
            ],
            false => vec![(
                "mqtt_proxy_connections_ended_total",
                vec![label("reason", reason)],
            )],
        };
        if let Some((code, node)) = self.session {
            let mut labels = vec![label("code", code)];
            // "*": whichever was tried last.
            if node != "*" {
                labels.push(label("node", node));
            }
            series.push(("apisix_stream_status", labels));
        }
        if let Some(result) = self.handshake {
            let labels = vec![label("result", result)];
            series.push(("mqtt_proxy_tls_handshakes_total", labels));
        }
        if let Some((origin, code)) = self.connack {
            let labels = vec![label("origin", origin), label("code", code)];
            series.push(("mqtt_proxy_connack_total", labels));
        }
        series.push(("mqtt_proxy_connections_accepted_total", Vec::new()));
        series
    }
}

fn value(text: &str, (name, labels): &(&str, Vec<String>)) -> f64 {
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    metrics::sum(text, name, &labels)
}

impl Stage {
    fn scraped(&self) -> String {
        metrics::get(self.scrape, metrics::PATH).2
    }

    /// Provokes an end and looks for its line and in the metrics.
    fn shows(&mut self, what: &str, found: Found<'_>, provoke: impl FnOnce()) {
        eprintln!("{what}");
        let before = self.scraped();
        provoke();
        self.seen += 1 + usize::from(found.admitted);
        let path = self.files.path("access.log");
        let lines = wait_until("the lines of the access log", SOON, || {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            (lines.len() >= self.seen && text.ends_with('\n')).then_some(lines)
        });
        assert_eq!(lines.len(), self.seen, "{what}: {lines:#?}");
        let line: Value = serde_json::from_str(&lines[self.seen - 1]).expect("JSON");
        let end = ["end_side", "end_phase", "end_reason"].map(|name| line[name].as_str());
        assert_eq!(end, found.line.map(Some), "{what}: {line}");
        // The line is written before some of the counters move.
        for series in found.series() {
            let expected = value(&before, &series) + 1.0;
            wait_until(&format!("{what}: {series:?} to be counted"), SOON, || {
                (value(&self.scraped(), &series) == expected).then_some(())
            });
        }
        let set = match Refusal::REASONS.contains(&found.line[2]) {
            true => &mut self.refusals,
            false => &mut self.ends,
        };
        set.insert(found.line[2].to_owned());
    }
}

/// The first packet behind CONNECT says how the broker ends: a DISCONNECT is answered with a reset.
fn broker() -> Broker {
    Broker::scripted(|mut conn| {
        conn.accept_mqtt();
        match conn.read_packet().as_deref() {
            Some([0xe0, ..]) => conn.reset(),
            _ => conn.finish_sending(),
        }
    })
}

#[test]
fn every_end_has_its_line_and_is_counted() {
    let ports: [u16; 8] = free_ports();
    let [port, silent, dead_end, retry, lost, empty, nobody, tls] = ports;
    let [scrape] = free_ports();
    let ca = Authority::new("root");
    let (broker, dead) = (broker(), DeadPort::new());
    let holes = [BlackHole::new(), BlackHole::new()];
    let listen: String = ports[..7]
        .iter()
        .map(|port| format!("\"127.0.0.1:{port}\", "))
        .collect();
    let config = format!(
        "apisix:\n  stream_proxy:\n    tcp: [{listen}{{addr: \"127.0.0.1:{tls}\", tls: true}}]\n\
         deployment: {{role: data_plane, role_data_plane: {{config_provider: yaml}}}}\n\
         mqtt_proxy:\n  metrics: {{addr: \"127.0.0.1:{scrape}\"}}\n  access_log: {{path: access.log}}\n  \
         limits: {{first_byte_timeout: 2, connect_timeout: 3}}\n  tls: {{handshake_timeout: 4}}\n"
    );
    let node = broker.addr().to_string();
    let route = |id: &str, port: u16, rest: &str| {
        format!(
            "  - {{id: {id}, server_port: {port}, plugins: {{mqtt-proxy: {{protocol_level: [4, 5]}}}}, \
             {rest}}}\n"
        )
    };
    let client = format!(", client: {{ca: {:?}}}", ca.pem());
    let routes = [
        "stream_routes:\n".to_owned(),
        route("devices", port, "upstream_id: brokers"),
        route(
            "silent",
            silent,
            &format!(
                "upstream: {{timeout: {{connect: 6, send: 3, read: 3}}, nodes: {{\"{node}\": 1}}}}"
            ),
        ),
        route(
            "dead",
            dead_end,
            &format!("upstream: {{nodes: {{\"{}\": 1}}}}", dead.addr()),
        ),
        route(
            "retry",
            retry,
            &format!(
                "upstream: {{timeout: {{connect: 0.4, send: 6, read: 6}}, retry_timeout: 0.2, \
                 nodes: {{\"{}\": 1, \"{}\": 1}}}}",
                holes[0].addr(),
                holes[1].addr()
            ),
        ),
        route("lost", lost, "upstream_id: missing"),
        route("empty", empty, "upstream: {nodes: []}"),
        route("secure", tls, "upstream_id: brokers"),
        format!("upstreams:\n  - {{id: brokers, nodes: {{\"{node}\": 1}}}}\nssls:\n"),
        format!("  - {}\n", ssl("1", "a.test", &ca.issue(&["a.test"]), "")),
        format!(
            "  - {}\n",
            ssl("2", "m.test", &ca.issue(&["m.test"]), &client)
        ),
        "#END\n".to_owned(),
    ]
    .concat();
    let files = Files::new(&config, &routes);
    let proxy = Proxy::start(&files, &ports);
    let mut stage = Stage {
        broker,
        dead,
        holes,
        files,
        proxy,
        scrape: local(scrape),
        seen: 0,
        ends: BTreeSet::new(),
        refusals: BTreeSet::new(),
    };
    relayed_ends(&mut stage, port, silent);
    refused_before_a_broker(&mut stage, port, nobody);
    refused_for_want_of_a_broker(&mut stage, [dead_end, retry, lost, empty]);
    refused_in_tls(&mut stage, tls);

    let all: BTreeSet<String> = Refusal::REASONS.map(str::to_owned).into();
    assert_eq!(stage.refusals, all, "each reason of a refusal was seen");
    let ends = End::REASONS.iter().filter(|end| **end != "refused");
    let ends = ends.filter(|end| !NOT_HERE.contains(end));
    let all: BTreeSet<String> = ends.map(|end| (*end).to_owned()).collect();
    assert_eq!(stage.ends, all, "each other end was seen");
    assert!(stage.proxy.is_running());
}

fn relayed_ends(stage: &mut Stage, port: u16, silent: u16) {
    let node = stage.broker.addr().to_string();
    let found = |line, code| Found::relayed(line, code, &node);
    stage.shows(
        "the client ends first",
        found(["client", "relay", "client_closed"], "200"),
        || {
            let mut client = Client::mqtt(port, &Connect::v311("a"));
            client.finish_sending();
            client.expect_fin();
        },
    );
    stage.shows(
        "the client resets",
        found(["client", "relay", "client_error"], "400"),
        || Client::mqtt(port, &Connect::v5("b")).reset(),
    );
    stage.shows(
        "the broker ends first",
        found(["broker", "relay", "broker_closed"], "200"),
        || {
            let mut client = Client::mqtt(port, &Connect::v311("c"));
            client.send(support::mqtt::PINGREQ);
            client.expect_fin();
        },
    );
    stage.shows(
        "the broker resets",
        found(["broker", "relay", "broker_error"], "502"),
        || {
            let mut client = Client::mqtt(port, &Connect::v311("d"));
            client.send(&disconnect());
            client.expect_closed();
        },
    );
    stage.shows(
        "nobody says anything",
        found(["proxy", "relay", "idle_timeout"], "502"),
        || {
            let mut client = send(silent, &Connect::v311("e").build());
            client.read_to_end(SOON);
        },
    );
}

fn refused_before_a_broker(stage: &mut Stage, port: u16, nobody: u16) {
    let refused = |reason| Found::refused(["proxy", "connect", reason]);
    stage.shows(
        "the client leaves before CONNECT",
        Found::refused(["client", "connect", "client_left_early"]).session("200", ""),
        || Client::to(port).finish_sending(),
    );
    stage.shows(
        "no route",
        Found::refused(["proxy", "accept", "no_route"]).without_route(),
        || Client::to(nobody).expect_closed(),
    );
    stage.shows(
        "not one byte",
        refused("first_byte_timeout").session("200", ""),
        || Client::to(port).expect_fin(),
    );
    stage.shows(
        "half a CONNECT",
        refused("connect_timeout").session("200", ""),
        || send(port, &[0x10]).expect_fin(),
    );
    stage.shows("HTTP", refused("not_mqtt"), || {
        let mut client = Client::to(port);
        client.try_send(b"GET / HTTP/1.1\r\n\r\n");
        client.expect_closed();
    });
    let answered = |packet: Vec<u8>| {
        move || {
            send(port, &packet).read_to_end(SOON);
        }
    };
    stage.shows(
        "an older version",
        refused("unsupported_version").told("0x01"),
        answered(Connect::v31("a").build()),
    );
    stage.shows(
        "a reserved flag",
        refused("malformed").told("0x81"),
        answered(Connect::v5("a").flags(0x03).build()),
    );
    stage.shows(
        "a receive maximum of 0",
        refused("protocol_error").told("0x82"),
        answered(Connect::v5("a").properties(&hex("21 0000")).build()),
    );
    stage.shows(
        "256 MiB announced",
        refused("too_large").told("0x95").session("400", ""),
        answered(hex("10 ff ff ff 7f 0004 4d515454 05 02 003c")),
    );
}

fn refused_for_want_of_a_broker(stage: &mut Stage, ports: [u16; 4]) {
    let [dead_end, retry, lost, empty] = ports;
    let told = |port: u16| {
        move || {
            let mut client = send(port, &Connect::v5("a").build());
            client.expect_last(&[0x20, 3, 0, 0x88, 0]);
        }
    };
    let dead = stage.dead.addr().to_string();
    let unreachable = |reason| Found::refused(["broker", "dial", reason]).told("0x88");
    stage.shows(
        "a dead broker",
        unreachable("connect_failed").session("502", &dead),
        told(dead_end),
    );
    assert!(stage.holes[0].addr() != stage.holes[1].addr());
    stage.shows(
        "brokers that do not answer",
        unreachable("retry_timeout").session("502", "*"),
        told(retry),
    );
    stage.shows(
        "an upstream that is not there",
        Found::refused(["proxy", "connect", "no_upstream"])
            .told("0x88")
            .session("001", ""),
        told(lost),
    );
    stage.shows(
        "an upstream without nodes",
        Found::refused(["proxy", "dial", "no_node"])
            .told("0x88")
            .session("502", ""),
        told(empty),
    );
}

fn refused_in_tls(stage: &mut Stage, port: u16) {
    let node = stage.broker.addr().to_string();
    let refused = |reason| {
        let found = Found::refused(["proxy", "handshake", reason]);
        found.without_route().handshake(reason)
    };
    stage.shows(
        "a good client over TLS",
        Found::relayed(["client", "relay", "client_closed"], "200", &node).handshake("ok"),
        || {
            let client = TlsClient::to(port).name("a.test");
            drop(client.mqtt(&Connect::v311("a")).expect("a handshake"));
        },
    );
    stage.shows(
        "a client that leaves before its ClientHello",
        Found::refused(["client", "handshake", "client_left_early"])
            .without_route()
            .handshake("client_left"),
        || Client::to(port).finish_sending(),
    );
    stage.shows("no TLS at all", refused("tls_client_hello"), || {
        send(port, b"GET / HTTP/1.1\r\n\r\n").read_to_end(SOON);
    });
    stage.shows("no server name", refused("tls_no_name"), || {
        assert!(TlsClient::to(port).connect().is_err());
    });
    stage.shows(
        "a name without certificate",
        refused("tls_unknown_name"),
        || {
            assert!(TlsClient::to(port).name("b.test").connect().is_err());
        },
    );
    stage.shows("no common cipher", refused("tls_handshake"), || {
        let client = TlsClient::to(port).name("a.test").ciphers("AES128-SHA");
        assert!(client.connect().is_err());
    });
    stage.shows(
        "no client certificate",
        refused("tls_client_certificate"),
        || {
            let client = TlsClient::to(port).name("m.test");
            assert!(client.version(SslVersion::TLS1_2).connect().is_err());
        },
    );
    stage.shows("half a ClientHello", refused("tls_timeout"), || {
        send(port, &[22, 3, 1, 2, 0, 1, 0]).expect_closed();
    });
}
