//! The main job: the configurations that APISIX's blog and its plugin page publish run as they are,
//! over two real brokers, and every client lands on the broker that APISIX would choose, before and
//! after a restart of the proxy. Only ports and the listen address are adapted to the test machine.

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use support::dns::Dns;
use support::mosquitto::{self, Mosquitto};
use support::mqtt::{self, ACCEPTED, ACCEPTED_5, hex};
use support::{
    Broker, Brokers, Client, Connect, Files, Proxy, Ring, SOON, cli, config, explain,
    explained_nodes, free_port, free_ports, local, on, wait_until,
};

/// The blog's `config.yaml`, word for word.
const BLOG_CONFIG: &str = r#"apisix:
  enable_admin: false
  stream_proxy:
    only: false # allow HTTP as well
    tcp:
      - addr: 9000
        tls: false
deployment:
  role: data_plane # deploy APISIX in standalone mode as a data plane
  role_data_plane:
    config_provider: yaml
stream_plugins:
  - mqtt-proxy # enable the mqtt-proxy plugin
#END
"#;

/// The blog's `apisix.yaml`, word for word.
const BLOG_ROUTES: &str = r#"stream_routes:
  - id: 1
    upstream_id: 1
    plugins:
      mqtt-proxy:
        protocol_name: "MQTT"
        protocol_level: 5 # use MQTT 5.0
upstreams:
  # configure multiple brokers
  - nodes:
      "host.docker.internal:1883": 1
      "host.docker.internal:1884": 1
    type: chash
    key: mqtt_client_id
    id: 1
#END
"#;

/// The chash example of the plugin page, as `apisix.yaml`.
const PLUGIN_PAGE_ROUTES: &str = r#"stream_routes:
  - id: 1
    plugins:
      mqtt-proxy:
        protocol_name: MQTT
        protocol_level: 4
    upstream:
      type: chash
      key: mqtt_client_id
      nodes:
        - host: 127.0.0.1
          port: 1995
          weight: 1
        - host: 127.0.0.2
          port: 1995
          weight: 1
#END
"#;

/// The first example of the plugin page, as `apisix.yaml`.
const ONE_BROKER_ROUTES: &str = r#"stream_routes:
  - id: 1
    plugins:
      mqtt-proxy:
        protocol_name: MQTT
        protocol_level: 4
    upstream:
      type: roundrobin
      nodes:
        - host: 127.0.0.1
          port: 1980
          weight: 1
#END
"#;

/// The example of the plugin page of APISIX 2, where the plugin itself names the broker.
const APISIX_2_ROUTES: &str = r#"stream_routes:
  - id: 1
    remote_addr: "127.0.0.1"
    plugins:
      mqtt-proxy:
        protocol_name: MQTT
        protocol_level: 4
        upstream:
          ip: "127.0.0.1"
          port: 1980
#END
"#;

fn ids() -> Vec<String> {
    (0..24)
        .map(|n| format!("warehouse-{}-meter-{n}", n % 3))
        .collect()
}

/// Connects every id once and says which of the two brokers has seen it.
fn landed(port: u16, level: u8, brokers: &[Mosquitto], ids: &[String]) -> BTreeMap<String, usize> {
    let before: Vec<Vec<usize>> = brokers
        .iter()
        .map(|broker| ids.iter().map(|id| broker.times_seen(id)).collect())
        .collect();
    for id in ids {
        let mut client = Client::to(port);
        client.send(&Connect::level(level, id).build());
        let answer = client.read_exactly(2);
        assert_eq!(answer[0], 0x20, "a CONNACK for {id}");
        let rest = client.read_exactly(usize::from(answer[1]));
        assert_eq!(rest[1], 0, "client {id} is accepted");
        client.send(&mqtt::disconnect());
    }
    ids.iter()
        .enumerate()
        .map(|(n, id)| {
            let broker = wait_until("a broker to log the client", SOON, || {
                (0..brokers.len()).find(|b| brokers[*b].times_seen(id) > before[*b][n])
            });
            (id.clone(), broker)
        })
        .collect()
}

/// The files of the blog with the ports of this test. `more` goes under `apisix:`.
fn blog(port: u16, brokers: [u16; 2], dns: &Dns) -> (String, String) {
    let config = BLOG_CONFIG
        .replace("- addr: 9000", &format!("- addr: 127.0.0.1:{port}"))
        .replace(
            "  enable_admin: false\n",
            &format!(
                "  enable_admin: false\n  dns_resolver: [\"{}\"]\n",
                dns.addr()
            ),
        );
    let routes = BLOG_ROUTES
        .replace(":1883", &format!(":{}", brokers[0]))
        .replace(":1884", &format!(":{}", brokers[1]));
    (config, routes)
}

#[test]
fn the_published_files_pass_the_check_word_for_word() {
    for (config, routes) in [
        (BLOG_CONFIG.to_owned(), BLOG_ROUTES),
        (self::config(&[9100]), PLUGIN_PAGE_ROUTES),
        (self::config(&[9100]), ONE_BROKER_ROUTES),
        (self::config(&[9100]), APISIX_2_ROUTES),
    ] {
        let files = Files::new(&config, routes);
        let ran = cli(&[
            "check".as_ref(),
            "-c".as_ref(),
            files.config_path().as_os_str(),
        ]);
        assert_eq!(ran.code, 0, "{routes}\n{}", ran.all());
    }
    let files = Files::new(BLOG_CONFIG, BLOG_ROUTES);
    let told = explain(&files, "9000", &["--client-id", "dev-42", "--level", "5"]);
    assert_eq!(told["route"], "1");
    assert_eq!(told["upstream"], "1");
    assert_eq!(told["hash_key"], "dev-42");
    assert_eq!(told["nodes"].as_array().map(Vec::len), Some(2));
}

#[test]
fn the_blogs_files_balance_mqtt_5_clients_over_two_brokers_and_a_restart_changes_nothing() {
    let dns = Dns::start();
    dns.set("host.docker.internal", &["127.0.0.1"], 60);
    let brokers = [Mosquitto::start(), Mosquitto::start()];
    let broker_ports = [brokers[0].addr().port(), brokers[1].addr().port()];
    let port = free_port();
    let (config, routes) = blog(port, broker_ports, &dns);
    let files = Files::new(&config, &routes);

    let proxy = Proxy::start(&files, &[port]);
    let first = landed(port, 5, &brokers, &ids());
    for broker in 0..2 {
        let share = first.values().filter(|b| **b == broker).count();
        assert!(share > 0, "both brokers get clients: {first:?}");
    }
    // A node given by name is on the ring by its name, whatever it resolves to: `explain`, which
    // resolves nothing, knows where each client goes.
    let names = broker_ports.map(|p| format!("host.docker.internal:{p}"));
    for (id, broker) in &first {
        let more = ["--client-id", id.as_str(), "--level", "5"];
        let told = explained_nodes(&files, &port.to_string(), &more);
        assert_eq!(told[0], names[*broker], "client {id}");
    }

    assert_eq!(
        landed(port, 5, &brokers, &ids()),
        first,
        "the same on a second visit"
    );
    assert!(proxy.stop().success(), "the proxy ends cleanly");
    let _proxy = Proxy::start(&files, &[port]);
    assert_eq!(
        landed(port, 5, &brokers, &ids()),
        first,
        "the same after a restart"
    );
}

#[test]
fn the_blogs_files_with_ring_identity_address_give_apisix_its_ring_over_resolved_addresses() {
    let dns = Dns::start();
    dns.set("host.docker.internal", &["127.0.0.1"], 60);
    let brokers = Brokers::mqtt(2);
    let broker_ports = [brokers.0[0].port(), brokers.0[1].port()];
    let port = free_port();
    let (config, routes) = blog(port, broker_ports, &dns);
    let config = format!("{config}mqtt_proxy:\n  ring_identity: address\n");
    let _proxy = Proxy::start(&Files::new(&config, &routes), &[port]);

    let ring = Ring::equal(&brokers.nodes());
    for id in ids() {
        let (broker, _client) = brokers.visit(port, &Connect::v5(&id));
        assert_eq!(broker, ring.pick(&id), "client {id}");
    }
}

#[test]
fn the_plugin_pages_files_send_every_client_where_apisix_sends_it() {
    let port = free_port();
    let broker_port = free_port();
    let brokers = [
        Mosquitto::start_at(on("127.0.0.1", broker_port)),
        Mosquitto::start_at(on("127.0.0.2", broker_port)),
    ];
    let routes = PLUGIN_PAGE_ROUTES.replace("1995", &broker_port.to_string());
    let files = Files::new(&config(&[port]), &routes);
    let proxy = Proxy::start(&files, &[port]);

    let ring = Ring::equal(&[
        format!("127.0.0.1:{broker_port}"),
        format!("127.0.0.2:{broker_port}"),
    ]);
    let first = landed(port, 4, &brokers, &ids());
    for (id, broker) in &first {
        assert_eq!(*broker, ring.pick(id), "client {id}");
    }
    assert!(proxy.stop().success());
    let _proxy = Proxy::start(&files, &[port]);
    assert_eq!(
        landed(port, 4, &brokers, &ids()),
        first,
        "the same after a restart"
    );
}

#[test]
fn clients_of_one_broker_exchange_messages_through_the_proxy() {
    let port = free_port();
    let brokers = [Mosquitto::start(), Mosquitto::start()];
    let nodes = brokers.each_ref().map(|b| b.addr().to_string());
    let routes = format!(
        "stream_routes:\n  - id: 1\n    plugins: {{mqtt-proxy: {{protocol_level: 4}}}}\n    \
         upstream: {{type: chash, key: mqtt_client_id, nodes: {{\"{}\": 1, \"{}\": 1}}}}\n#END\n",
        nodes[0], nodes[1]
    );
    let _proxy = Proxy::start(&Files::new(&config(&[port]), &routes), &[port]);
    let ring = Ring::equal(&nodes);

    for (index, broker) in brokers.iter().enumerate() {
        let receiver = ring.id_for(index, "receiver-");
        let sender = ring.id_for(index, "sender-");
        let mut subscriber =
            mosquitto::subscriber(port, &["-i", &receiver, "-t", "flow/#", "-v", "-q", "1"]);
        broker.wait_for_subscriber(&receiver);
        let sent = mosquitto::publish(
            port,
            &["-i", &sender, "-t", "flow/1", "-m", "42 l/min", "-q", "1"],
        );
        assert_eq!(sent.code, 0, "{}", sent.all());
        subscriber.wait_for_line_after(0, "flow/1 42 l/min", SOON);
        broker.wait_for_client(&receiver);
        broker.wait_for_client(&sender);
    }
}

#[test]
fn the_one_broker_example_of_the_plugin_page_works() {
    let port = free_port();
    let broker = Broker::mqtt();
    let routes = ONE_BROKER_ROUTES.replace("1980", &broker.port().to_string());
    let _proxy = Proxy::start(&Files::new(&config(&[port]), &routes), &[port]);
    let mut client = Client::mqtt(port, &Connect::v311("foo"));
    client.expect_alive();
}

#[test]
fn the_apisix_2_form_with_the_broker_inside_the_plugin_works_and_is_called_deprecated() {
    for form in [
        "ip: \"127.0.0.1\"",
        "host: \"127.0.0.1\"",
        "host: \"localhost\"",
    ] {
        let port = free_port();
        let broker = Broker::mqtt();
        let routes = APISIX_2_ROUTES
            .replace("ip: \"127.0.0.1\"", form)
            .replace("1980", &broker.port().to_string());
        let files = Files::new(&config(&[port]), &routes);
        let mut proxy = Proxy::start(&files, &[port]);
        let warning = proxy.wait_for_log("deprecated");
        assert!(
            warning.contains("mqtt-proxy"),
            "it names the plugin: {warning}"
        );
        let mut client = Client::mqtt(port, &Connect::v311("foo"));
        client.expect_alive();

        let ran = cli(&[
            "check".as_ref(),
            "-c".as_ref(),
            files.config_path().as_os_str(),
        ]);
        assert_eq!(ran.code, 0, "{}", ran.all());
        assert!(ran.stdout.contains("warning") && ran.stdout.contains("deprecated"));
    }
}

#[test]
fn an_upstream_of_the_route_wins_over_the_apisix_2_form() {
    let port = free_port();
    let [inside, outside] = [Broker::mqtt(), Broker::mqtt()];
    let routes = APISIX_2_ROUTES
        .replace("1980", &inside.port().to_string())
        .replace(
            "#END\n",
            &format!(
                "    upstream: {{nodes: {{\"{}\": 1}}}}\n#END\n",
                outside.addr()
            ),
        );
    let _proxy = Proxy::start(&Files::new(&config(&[port]), &routes), &[port]);
    let _client = Client::mqtt(port, &Connect::v311("foo"));
    assert_eq!((inside.accepted(), outside.accepted()), (0, 1));
}

#[test]
fn the_packets_of_apisix_own_tests_pass() {
    let [port4, port5] = free_ports();
    let broker = Broker::mqtt();
    let routes = format!(
        "stream_routes:\n  - {{id: 4, server_port: {port4}, plugins: {{mqtt-proxy: {{protocol_level: 4}}}}, upstream_id: 1}}\n  \
         - {{id: 5, server_port: {port5}, plugins: {{mqtt-proxy: {{protocol_level: 5}}}}, upstream_id: 1}}\n\
         upstreams:\n  - {{id: 1, type: chash, key: mqtt_client_id, nodes: {{\"{}\": 1}}}}\n#END\n",
        broker.addr()
    );
    let files = Files::new(&config(&[port4, port5]), &routes);
    let _proxy = Proxy::start(&files, &[port4, port5]);
    let packets = [
        (
            port4,
            "10 0f 00 04 4d 51 54 54 04 02 00 3c 00 03 66 6f 6f",
            ACCEPTED,
        ),
        (port4, "10 0c 00 04 4d 51 54 54 04 02 00 3c 00 00", ACCEPTED),
        (
            port5,
            "10 0d 00 04 4d 51 54 54 05 02 00 3c 00 00 00",
            ACCEPTED_5,
        ),
        (
            port5,
            "10 1b 00 04 4d 51 54 54 05 02 00 3c 05 11 00 00 0e 10 00 09 63 6c 69 6e 74 2d 31 31 31",
            ACCEPTED_5,
        ),
        (
            port5,
            "10 0e 00 04 4d 51 54 54 05 02 00 3c 00 00 01 66",
            ACCEPTED_5,
        ),
    ];
    for (number, (port, packet, answer)) in packets.into_iter().enumerate() {
        let mut client = Client::to_addr(local(port));
        client.send(&hex(packet));
        client.expect(answer);
        broker.connection(number).wait_for(&hex(packet));
        client.expect_silence(Duration::from_millis(20));
    }
}
