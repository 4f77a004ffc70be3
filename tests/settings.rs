//! `config.yaml` as APISIX users have it: every form of a listener, older keys, YAML 1.1 words, and
//! settings that mean nothing here, accepted and named once.

mod support;

use std::net::TcpStream;

use support::{
    Broker, Client, Connect, DeadPort, Files, Proxy, SOON, cli, config, config_with, explain,
    free_port, free_ports, local, on, wait_until,
};

fn routes(broker: &Broker) -> String {
    format!(
        "stream_routes:\n  - id: 1\n    plugins: {{mqtt-proxy: {{protocol_level: 4}}}}\n    \
         upstream: {{nodes: {{\"{}\": 1}}}}\n#END\n",
        broker.addr()
    )
}

/// Any route: these tests are about listeners.
const ROUTES: &str =
    "stream_routes:\n  - {id: 1, upstream: {nodes: {\"127.0.0.1:1883\": 1}}}\n#END\n";

fn check(files: &Files) -> support::proxy::Ran {
    cli(&[
        "check".as_ref(),
        "-c".as_ref(),
        files.config_path().as_os_str(),
    ])
}

/// A run of `count` free ports in a row.
fn ports_in_a_row(count: u16) -> u16 {
    loop {
        let first = free_port();
        let rest: Vec<u16> = (1..count).map(|_| free_port()).collect();
        if rest
            .iter()
            .zip(first + 1..)
            .all(|(got, wanted)| *got == wanted)
        {
            return first;
        }
    }
}

#[test]
fn every_form_of_a_listener_works() {
    let broker = Broker::mqtt();
    let [a, b, c] = free_ports();
    let range = ports_in_a_row(5);
    let text = format!(
        "apisix:\n  proxy_mode: http&stream\n  stream_proxy:\n    tcp:\n      - \"127.0.0.1:{a}\"\n      \
         - \"[::1]:{b}\"\n      - addr: \"127.0.0.1:{c}\"\n        tls: false\n      \
         - \"127.0.0.1:{range}-{}\"\n\
         deployment: {{role: data_plane, role_data_plane: {{config_provider: yaml}}}}\n",
        range + 3
    );
    let files = Files::new(&text, &routes(&broker));
    let mut addrs = vec![local(a), on("::1", b), local(c)];
    addrs.extend((range..range + 4).map(local));
    let _behind = DeadPort::at(local(range + 4));
    let _proxy = Proxy::start_at(&files, &addrs);
    for addr in addrs {
        let mut client = Client::to_addr(addr);
        client.send(&Connect::v311("a").build());
        client.expect(support::mqtt::ACCEPTED);
    }
    assert!(
        TcpStream::connect(local(range + 4)).is_err(),
        "the range ends where it says"
    );
}

#[test]
fn a_bare_port_listens_on_all_ipv4_addresses_and_ranges_need_no_address() {
    let text = "apisix:\n  stream_proxy:\n    tcp:\n      - 9100\n      - \"9101\"\n      - 2000-2003\n      \
                - addr: 9200\n      - addr: \"[::]:3000-3001\"\n";
    let files = Files::new(text, ROUTES);
    assert_eq!(check(&files).code, 0, "{}", check(&files).all());
    for port in [9100, 9101, 2000, 2003, 9200, 3001] {
        assert_eq!(
            explain(&files, &port.to_string(), &[])["route"],
            "1",
            "{port}"
        );
    }
    for port in [2004, 3002, 9102] {
        let ran = support::explain::run(&files, &port.to_string(), &[]);
        assert_ne!(ran.code, 0, "nothing listens on {port}: {}", ran.all());
    }
}

#[test]
fn impossible_listeners_are_refused_with_their_line() {
    for (item, says) in [
        ("0", "out of range (1-65535)"),
        ("65536", "out of range (1-65535)"),
        ("\"127.0.0.1:70000\"", "out of range (1-65535)"),
        ("\"2005-2000\"", "2005-2000"),
        ("\"1-70000\"", "out of range (1-65535)"),
        ("\"80.5\"", "80.5"),
        ("80.5", "80.5"),
        ("{tls: false}", "addr"),
        ("[9100]", "tcp"),
    ] {
        let text = format!("apisix:\n  stream_proxy:\n    tcp:\n      - {item}\n");
        let ran = check(&Files::new(&text, ROUTES));
        assert_eq!(ran.code, 78, "{item}: {}", ran.all());
        assert!(
            ran.stdout.contains(says),
            "{item}: {says:?} in {}",
            ran.all()
        );
        assert!(
            ran.stdout.contains("config.yaml:4:"),
            "{item}: the line: {}",
            ran.all()
        );
    }
    for text in ["tcp: []", "tcp: 9100", "tcp: [9100, 9100]"] {
        let ran = check(&Files::new(
            &format!("apisix:\n  stream_proxy:\n    {text}\n"),
            ROUTES,
        ));
        assert_eq!(ran.code, 78, "{text}: {}", ran.all());
    }
}

#[test]
fn listeners_exist_whatever_proxy_mode_and_only_say() {
    let broker = Broker::mqtt();
    for (mode, only) in [
        ("  proxy_mode: http\n", ""),
        ("", ""),
        ("  proxy_mode: http&stream\n", ""),
        ("", "    only: true\n"),
        ("", "    only: false\n"),
    ] {
        let port = free_port();
        let text = format!(
            "apisix:\n{mode}  stream_proxy:\n{only}    tcp: [\"127.0.0.1:{port}\"]\n\
             deployment: {{role: data_plane, role_data_plane: {{config_provider: yaml}}}}\n"
        );
        let files = Files::new(&text, &routes(&broker));
        let _proxy = Proxy::start(&files, &[port]);
        Client::mqtt(port, &Connect::v311("a")).expect_alive();
    }
}

#[test]
fn apisix_yaml_is_read_in_every_role_whatever_enable_admin_says() {
    let broker = Broker::mqtt();
    for deployment in [
        "deployment: {role: traditional, role_traditional: {config_provider: yaml}}\n",
        "deployment: {role: data_plane, role_data_plane: {config_provider: yaml}}\n",
        "",
    ] {
        for admin in ["", "  enable_admin: true\n", "  enable_admin: false\n"] {
            let port = free_port();
            let text = format!(
                "apisix:\n{admin}  stream_proxy: {{tcp: [\"127.0.0.1:{port}\"]}}\n{deployment}"
            );
            let files = Files::new(&text, &routes(&broker));
            let _proxy = Proxy::start(&files, &[port]);
            Client::mqtt(port, &Connect::v311("a")).expect_alive();
        }
    }
}

#[test]
fn worker_processes_is_the_number_of_worker_threads() {
    let broker = Broker::mqtt();
    let start = |workers: &str| {
        let port = free_port();
        // Metrics are a thread, and at their default address only one proxy of the machine has it.
        let more = format!(
            "nginx_config: {{worker_processes: {workers}}}\n\
             mqtt_proxy: {{metrics: {{enabled: false}}}}\n"
        );
        let files = Files::new(&config_with(&[port], &more), &routes(&broker));
        let proxy = Proxy::start(&files, &[port]);
        for n in 0..8 {
            Client::mqtt(port, &Connect::v311(&n.to_string()));
        }
        proxy
    };
    let threads = |proxy: &Proxy| {
        let dir = format!("/proc/{}/task", proxy.id());
        std::fs::read_dir(dir).expect("the proxy runs").count()
    };
    let [one, six] = ["1", "6"].map(start);
    // Threads of the start may not have ended yet.
    wait_until("six workers to be five times more than one", SOON, || {
        let (one, six) = (threads(&one), threads(&six));
        (six > one && (six - one) % 5 == 0).then_some(())
    });
    start("auto");
}

#[test]
fn keys_without_effect_here_are_accepted_and_named_once() {
    let broker = Broker::mqtt();
    let port = free_port();
    let text = format!(
        "apisix:\n  node_listen: 9080\n  enable_server_tokens: true\n  \
         enable_reuseport: true\n  ssl: {{enable: true, listen: [{{port: 9443}}], ssl_protocols: TLSv1.2 TLSv1.3}}\n  \
         router: {{http: radixtree_uri, ssl: radixtree_sni}}\n  proxy_mode: http&stream\n  \
         stream_proxy:\n    tcp: [\"127.0.0.1:{port}\"]\n    udp: [9200, \"127.0.0.1:9211\"]\n\
         nginx_config:\n  worker_processes: 2\n  error_log_level: warn\n  http: {{access_log: logs/access.log}}\n  \
         stream_configuration_snippet: |\n    preread_timeout 1s;\n\
         deployment:\n  role: traditional\n  role_traditional: {{config_provider: yaml}}\n  \
         admin: {{admin_key_required: false, allow_admin: [0.0.0.0/0]}}\n  etcd: {{host: [\"http://127.0.0.1:2379\"]}}\n\
         plugin_attr:\n  prometheus: {{export_addr: {{ip: 0.0.0.0, port: 9091}}}}\n\
         plugins: [real-ip, limit-count]\nstream_plugins: [mqtt-proxy]\n"
    );
    let files = Files::new(&text, &routes(&broker));
    let ran = check(&files);
    assert_eq!(ran.code, 0, "{}", ran.all());
    let mut proxy = Proxy::start(&files, &[port]);
    Client::mqtt(port, &Connect::v311("a")).expect_alive();
    for key in [
        "node_listen",
        "enable_server_tokens",
        "udp",
        "stream_configuration_snippet",
        "etcd",
    ] {
        proxy.wait_for_log(key);
        assert_eq!(
            proxy.count(key),
            1,
            "{key} is named once: {:#?}",
            proxy.lines()
        );
    }
    let mark = proxy.mark();
    proxy.signal(rustix::process::Signal::HUP);
    proxy.wait_for_log_after(mark, "reloaded");
    assert_eq!(proxy.count("node_listen"), 1, "at start only");
}

#[test]
fn yaml_1_1_words_and_numbers_mean_what_they_mean_to_apisix() {
    let broker = Broker::mqtt();
    let port = free_port();
    // 0o17 in YAML 1.1 is 017; yes/off are booleans; 1_883 is 1883.
    let text = format!(
        "apisix:\n  enable_admin: off\n  enable_ipv6: yes\n  stream_proxy:\n    tcp:\n      - addr: \"127.0.0.1:{port}\"\n        proxy_protocol: no\n\
         deployment: {{role: data_plane, role_data_plane: {{config_provider: yaml}}}}\n"
    );
    let routes = format!(
        "stream_routes:\n  - id: 012\n    plugins: {{mqtt-proxy: {{protocol_level: 0x4, _meta: {{disable: off}}}}}}\n    \
         upstream: {{nodes: [{{host: 127.0.0.1, port: {}, weight: 1_0}}]}}\n#END\n",
        broker.port()
    );
    let files = Files::new(&text, &routes);
    let ran = check(&files);
    assert_eq!(ran.code, 0, "{}", ran.all());
    assert_eq!(
        explain(&files, &port.to_string(), &["--client-id", "a"])["route"],
        "10"
    );
    let _proxy = Proxy::start(&files, &[port]);
    Client::mqtt(port, &Connect::v311("a")).expect_alive();

    let on = text.replace("proxy_protocol: no", "proxy_protocol: on");
    let ran = check(&Files::new(&on, &routes));
    assert_eq!(ran.code, 78, "on is true: {}", ran.all());
    let quoted = text.replace("proxy_protocol: no", "proxy_protocol: \"no\"");
    let ran = check(&Files::new(&quoted, &routes));
    assert_eq!(ran.code, 78, "a quoted word is a string: {}", ran.all());
}

#[test]
fn substituted_values_have_the_types_that_apisix_gives_them() {
    let broker = Broker::mqtt();
    let with = |config_value: &str, level: &str| {
        let more = format!("mqtt_proxy: {{limits: {{connect_timeout: {config_value}}}}}\n");
        let routes =
            routes(&broker).replace("protocol_level: 4", &format!("protocol_level: {level}"));
        check(&Files::new(&config_with(&[9100], &more), &routes)).code
    };
    // config.yaml: after parsing, and what looks like a number becomes one.
    assert_eq!(with("\"${{NO_SUCH_VARIABLE:=2}}\"", "4"), 0);
    assert_eq!(with("\"${{NO_SUCH_VARIABLE:=many}}\"", "4"), 78);
    // apisix.yaml: in the text before parsing, so that quotes keep it a string.
    assert_eq!(with("2", "${{NO_SUCH_VARIABLE:=4}}"), 0);
    assert_eq!(with("2", "\"${{NO_SUCH_VARIABLE:=4}}\""), 78);
    // Without a default a missing variable is an error, in either file.
    assert_eq!(with("\"${{NO_SUCH_VARIABLE}}\"", "4"), 78);
    assert_eq!(with("2", "${{NO_SUCH_VARIABLE}}"), 78);
}

#[test]
fn the_end_mark_may_be_followed_by_a_little_white_space() {
    let broker = Broker::mqtt();
    for end in [
        "#END",
        "#END\n",
        "#END\r\n",
        "#END  \n\n",
        "stream_dummy: 1 #END\n",
    ] {
        let text = routes(&broker).replace("#END\n", end);
        let files = Files::new(&config(&[9100]), &text);
        let ran = check(&files);
        if end.starts_with("stream_dummy") {
            assert!(!ran.stdout.contains("end flag"), "{}", ran.all());
        } else {
            assert_eq!(ran.code, 0, "{end:?}: {}", ran.all());
        }
    }
}

#[test]
fn pingora_keys_are_accepted_and_unknown_ones_are_named() {
    let broker = Broker::mqtt();
    let port = free_port();
    let more = "pingora:\n  threads: 2\n  grace_period_seconds: 5\n";
    let files = Files::new(&config_with(&[port], more), &routes(&broker));
    assert_eq!(check(&files).code, 0, "{}", check(&files).all());
    let _proxy = Proxy::start(&files, &[port]);
    Client::mqtt(port, &Connect::v311("a")).expect_alive();

    let more = "pingora:\n  thread: 2\n";
    let ran = check(&Files::new(&config_with(&[port], more), &routes(&broker)));
    assert!(
        ran.stdout.contains("pingora.thread") && ran.stdout.contains("threads"),
        "{}",
        ran.all()
    );
    assert!(
        ran.stdout.contains("config.yaml:11:"),
        "with its line: {}",
        ran.all()
    );
    let more = "pingora:\n  threads: many\n";
    let ran = check(&Files::new(&config_with(&[port], more), &routes(&broker)));
    assert_eq!(ran.code, 78, "{}", ran.all());
}
