//! Two hundred changes of the nodes of an upstream under traffic, by edits of the file and by answers
//! of a name server: no connection is cut, no byte is lost, and newcomers are always served.

mod support;

use std::net::SocketAddr;
use std::time::Instant;

use support::dns::{Dns, Srv};
use support::process::more_open_files;
use support::traffic::{Device, under_traffic};
use support::{Client, Connect, Files, Proxy, free_ports, local};

const DEVICES: usize = 500;
/// By edits, and as often as it is asked again by the name server.
const CHANGES: usize = 200;
const BROKERS: usize = 6;

/// Which brokers take part at step `n`: between three and six, always others.
fn taking_part(n: usize) -> Vec<usize> {
    let count = 3 + n % (BROKERS - 2);
    (0..count).map(|k| (n * 5 + k) % BROKERS).collect()
}

fn routes(n: usize, ports: [u16; 2], brokers: &[SocketAddr]) -> String {
    let nodes: Vec<String> = taking_part(n)
        .into_iter()
        .map(|k| format!("\"{}\": {}", brokers[k], 1 + (n + k) % 3))
        .collect();
    let route = |id: &str, port: u16| {
        format!(
            "  - {{id: {id}, server_port: {port}, plugins: {{mqtt-proxy: {{protocol_level: 4}}}}, upstream_id: {id}}}\n"
        )
    };
    format!(
        "stream_routes:\n{}{}upstreams:\n  - {{id: edited, type: chash, key: mqtt_client_id, \
         nodes: {{{}}}}}\n  - {{id: found, type: chash, key: mqtt_client_id, \
         discovery_type: dns, service_name: brokers.test}}\n#END\n",
        route("edited", ports[0]),
        route("found", ports[1]),
        nodes.join(", ")
    )
}

fn services(n: usize, brokers: &[SocketAddr]) -> Vec<Srv> {
    taking_part(n)
        .into_iter()
        .map(|k| Srv {
            priority: 0,
            weight: (1 + (n + k) % 3) as u16,
            port: brokers[k].port(),
            target: format!("broker-{k}.test"),
        })
        .collect()
}

#[test]
fn two_hundred_node_changes_cut_nobody() {
    more_open_files();
    let ports: [u16; 2] = free_ports();
    let broker_ports: [u16; BROKERS] = free_ports();
    let brokers: Vec<SocketAddr> = broker_ports.into_iter().map(local).collect();
    let dns = Dns::start();
    for k in 0..BROKERS {
        dns.set(&format!("broker-{k}.test"), &["127.0.0.1"], 60);
    }
    // A TTL of a second is the shortest that is followed: the name server's changes set the pace.
    dns.set_srv("brokers.test", &services(0, &brokers), 1);
    let config = format!(
        "apisix: {{proxy_mode: stream, stream_proxy: {{tcp: [\"127.0.0.1:{}\", \"127.0.0.1:{}\"]}}}}\n\
         discovery: {{dns: {{servers: [\"{}\"]}}}}\n\
         deployment: {{role: data_plane, role_data_plane: {{config_provider: yaml}}}}\n",
        ports[0],
        ports[1],
        dns.addr()
    );
    let files = Files::new(&config, &routes(0, ports, &brokers));
    let mut proxy = Proxy::start(&files, &ports);
    let devices: Vec<Device> = (0..DEVICES)
        .map(|n| Device {
            id: format!("device-{n}"),
            port: ports[n % 2],
            pause: std::time::Duration::from_millis(100),
            ahead: 1,
            payload: 200,
        })
        .collect();
    let targets = brokers.clone();
    let outcome = under_traffic(&brokers, devices, move |view| {
        let start = Instant::now();
        let (mut edits, mut answers) = (0, 0);
        // Said after the nodes of an answer have begun to serve.
        let served = |proxy: &Proxy| proxy.count("upstream found: service brokers.test has");
        let first = served(&proxy);
        while edits + answers < CHANGES {
            edits += 1;
            let before = view.answers();
            proxy.reload(|| files.replace_routes(routes(edits, ports, &targets)));
            // Another answer as soon as the last one is served.
            if served(&proxy) >= first + answers {
                answers += 1;
                dns.set_srv("brokers.test", &services(answers, &targets), 1);
            }
            for port in ports {
                Client::mqtt(port, &Connect::v311(&format!("newcomer-{edits}")));
            }
            // Traffic flows between any two changes.
            view.wait_for_answers(before, DEVICES as u64 / 2);
        }
        eprintln!(
            "{edits} edits and {answers} answers in {:?}, {} round trips, the slowest {:?}",
            start.elapsed(),
            view.answers(),
            view.take_slowest()
        );
        assert!(
            answers > 3,
            "the name server's changes are among them: {answers}"
        );
        assert!(proxy.is_running());
        (proxy, dns)
    });
    outcome.expect_flawless(DEVICES);
}
