//! MQTT 3.1, 3.1.1 and 5 on one port, with real clients of each version against real brokers.

mod support;

use std::path::PathBuf;
use std::process::Command;

use support::mosquitto::{self, Mosquitto};
use support::process::Process;
use support::{
    Broker, Client, Connect, Files, Proxy, Ring, SOON, config, explain, free_port, free_ports, on,
};

const UNACCEPTABLE: &[u8] = &[0x20, 0x02, 0x00, 0x01];
const UNSUPPORTED_5: &[u8] = &[0x20, 0x03, 0x00, 0x84, 0x00];

/// Routes by port, each with its own configuration of the plugin, all to one broker.
fn routes(broker: &Broker, plugins: &[(u16, &str)]) -> String {
    let mut text = String::from("stream_routes:\n");
    for (port, plugin) in plugins {
        text.push_str(&format!(
            "  - {{id: \"{port}\", server_port: {port}, plugins: {{mqtt-proxy: {plugin}}}, \
             upstream: {{nodes: {{\"{}\": 1}}}}}}\n",
            broker.addr()
        ));
    }
    text.push_str("#END\n");
    text
}

#[test]
fn a_level_takes_exactly_its_own_version_and_a_list_takes_several() {
    let broker = Broker::mqtt();
    let ports: [u16; 7] = free_ports();
    let cases: [(&str, &[u8]); 7] = [
        ("{protocol_level: 4}", &[4]),
        ("{protocol_name: MQTT, protocol_level: 5}", &[5]),
        ("{protocol_name: MQIsdp, protocol_level: 3}", &[3]),
        ("{protocol_level: [3]}", &[3]),
        ("{protocol_level: [3, 4, 5]}", &[3, 4, 5]),
        ("{protocol_level: [4, 5]}", &[4, 5]),
        ("{protocol_level: 4.0}", &[4]),
    ];
    let plugins: Vec<(u16, &str)> = ports.into_iter().zip(cases.map(|case| case.0)).collect();
    let files = Files::new(&config(&ports), &routes(&broker, &plugins));
    let _proxy = Proxy::start(&files, &ports);

    for (port, (plugin, accepted)) in ports.into_iter().zip(cases) {
        for level in [3, 4, 5] {
            let connect = Connect::level(level, "dev-1");
            let told = explain_code(&files, port, level);
            if accepted.contains(&level) {
                Client::mqtt(port, &connect).expect_alive();
                assert_eq!(told, 0, "explain: {plugin} takes level {level}");
            } else {
                let mut client = Client::to(port);
                client.send(&connect.build());
                // MQIsdp on a port for MQTT only is a known protocol at an unwanted level.
                client.expect_last(if level == 5 {
                    UNSUPPORTED_5
                } else {
                    UNACCEPTABLE
                });
                assert_eq!(told, 1, "explain: {plugin} refuses level {level}");
            }
        }
    }
}

fn explain_code(files: &Files, port: u16, level: u8) -> i32 {
    let level = level.to_string();
    support::explain::run(
        files,
        &port.to_string(),
        &["--client-id", "dev-1", "--level", &level],
    )
    .code
}

#[test]
fn explain_names_the_level_that_a_plugin_accepts() {
    let files = Files::new(
        &config(&[9100]),
        "stream_routes:\n  - {id: 1, plugins: {mqtt-proxy: {protocol_level: [3, 4, 5]}}, upstream: {nodes: {\"127.0.0.1:1883\": 1}}}\n#END\n",
    );
    let told = explain(&files, "9100", &["--client-id", "a", "--level", "5"]);
    assert_eq!(told["plugins"][0]["name"], "mqtt-proxy");
    let verdict = told["plugins"][0]["verdict"].as_str().expect("a verdict");
    assert!(verdict.contains('5'), "{verdict}");
}

/// Two persistent brokers behind one port for all versions.
struct House {
    port: u16,
    brokers: [Mosquitto; 2],
    ring: Ring,
    files: Files,
    proxy: Option<Proxy>,
}

impl House {
    fn open() -> Self {
        let port = free_port();
        let broker_port = free_port();
        let addrs = [on("127.0.0.1", broker_port), on("127.0.0.2", broker_port)];
        let brokers = addrs.map(Mosquitto::start_at);
        let nodes = addrs.map(|addr| addr.to_string());
        let text = format!(
            "stream_routes:\n  - id: 1\n    plugins:\n      mqtt-proxy:\n        protocol_level: [3, 4, 5]\n    \
             upstream_id: brokers\nupstreams:\n  - id: brokers\n    type: chash\n    key: mqtt_client_id\n    \
             nodes: {{\"{}\": 1, \"{}\": 1}}\n#END\n",
            nodes[0], nodes[1]
        );
        let files = Files::new(&config(&[port]), &text);
        let proxy = Some(Proxy::start(&files, &[port]));
        Self {
            port,
            brokers,
            ring: Ring::equal(&nodes),
            files,
            proxy,
        }
    }
}

const VERSIONS: [&str; 3] = ["mqttv31", "mqttv311", "mqttv5"];

#[test]
fn mosquitto_clients_of_all_versions_publish_and_subscribe_through_one_port() {
    let house = House::open();
    for (n, version) in VERSIONS.into_iter().enumerate() {
        let node = n % 2;
        let receiver = house.ring.id_for(node, &format!("{version}-r"));
        let sender = house.ring.id_for(node, &format!("{version}-s"));
        let topic = format!("hall/{version}");
        let mut subscriber = mosquitto::subscriber(
            house.port,
            &[
                "-V", version, "-i", &receiver, "-t", &topic, "-q", "2", "-F", "%q %p",
            ],
        );
        house.brokers[node].wait_for_subscriber(&receiver);
        for qos in ["0", "1", "2"] {
            let message = format!("message of qos {qos}");
            let sent = mosquitto::publish(
                house.port,
                &[
                    "-V", version, "-i", &sender, "-t", &topic, "-q", qos, "-m", &message,
                ],
            );
            assert_eq!(sent.code, 0, "{version} qos {qos}: {}", sent.all());
            subscriber.wait_for_line_after(0, &format!("{qos} {message}"), SOON);
        }
        assert!(
            house.brokers[node].has_seen(&receiver),
            "{receiver} is on its broker"
        );
        assert!(
            !house.brokers[1 - node].has_seen(&receiver),
            "and on no other"
        );
    }
}

#[test]
fn retained_messages_reach_later_subscribers_of_the_same_broker() {
    let house = House::open();
    for (n, version) in VERSIONS.into_iter().enumerate() {
        let node = n % 2;
        let topic = format!("kept/{version}");
        let sender = house.ring.id_for(node, &format!("{version}-s"));
        let reader = house.ring.id_for(node, &format!("{version}-late"));
        let sent = mosquitto::publish(
            house.port,
            &[
                "-V", version, "-i", &sender, "-t", &topic, "-q", "1", "-r", "-m", "42",
            ],
        );
        assert_eq!(sent.code, 0, "{}", sent.all());
        let got = mosquitto::receive(
            house.port,
            &[
                "-V", version, "-i", &reader, "-t", &topic, "-C", "1", "-W", "10", "-F", "%r %p",
            ],
        );
        assert_eq!(
            (got.code, got.stdout.trim()),
            (0, "1 42"),
            "{version}: {}",
            got.all()
        );
    }
}

#[test]
fn a_persistent_session_is_found_again_after_a_reconnect_a_proxy_restart_and_a_broker_restart() {
    let mut house = House::open();
    for (n, version) in VERSIONS.into_iter().enumerate() {
        let node = n % 2;
        let keeper = house.ring.id_for(node, &format!("{version}-keeper"));
        let sender = house.ring.id_for(node, &format!("{version}-s"));
        let topic = format!("queue/{version}");
        let mut session = vec!["-V", version, "-i", &keeper, "-c", "-t", &topic, "-q", "1"];
        if version == "mqttv5" {
            session.extend(["-x", "3600"]);
        }
        // Subscribe once and leave (-E: exit when all topics are subscribed).
        let mut once = session.clone();
        once.push("-E");
        let subscribed = mosquitto::receive(house.port, &once);
        assert_eq!(subscribed.code, 0, "{version}: {}", subscribed.all());

        for round in ["reconnect", "proxy restart", "broker restart"] {
            let sent = mosquitto::publish(
                house.port,
                &[
                    "-V", version, "-i", &sender, "-t", &topic, "-q", "1", "-m", round,
                ],
            );
            assert_eq!(sent.code, 0, "{}", sent.all());
            match round {
                "proxy restart" => {
                    let old = house.proxy.take().expect("it runs");
                    assert!(old.stop().success());
                    house.proxy = Some(Proxy::start(&house.files, &[house.port]));
                }
                "broker restart" => house.brokers[node].restart(),
                _ => {}
            }
            let mut again = session.clone();
            again.extend(["-C", "1", "-W", "10"]);
            let got = mosquitto::receive(house.port, &again);
            assert_eq!(got.stdout.trim(), round, "{version}: {}", got.all());
        }
    }
}

#[test]
fn the_paho_client_lives_its_whole_story_in_all_three_versions() {
    let house = House::open();
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/support/paho_session.py");
    let mut stories = Vec::new();
    for (n, level) in ["3", "4", "5"].into_iter().enumerate() {
        let ids = ["sub", "pub", "read"]
            .map(|role| house.ring.id_for(n % 2, &format!("paho{level}-{role}-")));
        let mut command = Command::new("/usr/bin/python3");
        command
            .arg(&script)
            .arg(house.port.to_string())
            .arg(level)
            .args(&ids);
        stories.push(Process::spawn(
            "paho",
            &mut command,
            "`make test` installs it (Debian: apt-get install python3-paho-mqtt)",
        ));
    }
    for mut story in stories {
        story.wait_for_line_after(0, "the whole story went well", SOON * 3);
        assert!(story.wait_for_exit(SOON).success());
    }
}
