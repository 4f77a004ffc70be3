//! A file broken in every way we could think of, while traffic flows: nothing is cut, the log says
//! where and what, and the next good file applies. `check` says the same with exit code 78.

mod support;

use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::proxy::Ran;
use support::{
    Broker, Client, Connect, Files, Proxy, SOON, cli, config, config_with, free_ports, wait_until,
};

/// The file that all cases break; the number of a line is its place in this list, from 1.
const GOOD: &[&str] = &[
    "stream_routes:",
    "  - id: 1",
    "    server_port: LISTEN",
    "    remote_addr: 127.0.0.0/8",
    "    plugins:",
    "      mqtt-proxy:",
    "        protocol_level: 4",
    "    upstream_id: 1",
    "upstreams:",
    "  - id: 1",
    "    type: chash",
    "    key: mqtt_client_id",
    "    retries: 1",
    "    timeout: {connect: 5, send: 60, read: 60}",
    "    nodes:",
    "      - host: 127.0.0.1",
    "        port: BROKER",
    "        weight: 1",
    "#END",
    "",
];

/// What a broken file costs: nothing of it applies; or all applies but the one object, which goes
/// on as it was; or, where its id is what is broken, nothing tells which it was and it is gone.
#[derive(Clone, Copy, PartialEq)]
enum Loses {
    File,
    Object,
    Id,
}
use Loses::{File, Id, Object};

struct Case {
    what: &'static str,
    loses: Loses,
    /// The text that is replaced (empty: the whole file), and what stands there instead.
    from: &'static str,
    to: &'static str,
    /// The line that the message must name; 0 where several are right.
    line: usize,
    /// What the message must say.
    says: &'static [&'static str],
}

const fn case(
    what: &'static str,
    loses: Loses,
    from: &'static str,
    to: &'static str,
    line: usize,
    says: &'static [&'static str],
) -> Case {
    Case {
        what,
        loses,
        from,
        to,
        line,
        says,
    }
}

#[rustfmt::skip] // a table: one case a line
const CASES: &[Case] = &[
    case("no end mark", File, "#END", "", 0, &["#END"]),
    case("text behind the end mark", File, "#END", "#END\nstream_routes: []", 0, &["#END"]),
    case("empty file", File, "", "", 0, &["#END"]),
    case("nothing but the end mark", File, "", "#END\n", 0, &[]),
    case("a list at the top", File, "", "- 1\n- 2\n#END\n", 1, &[]),
    case("plain text", File, "", "stream_routes\n#END\n", 1, &[]),
    case("unclosed quote", File, "type: chash", "type: \"chash", 0, &[]),
    case("unclosed brace", File, "read: 60}", "read: 60", 0, &[]),
    case("tab as indentation", File, "    key:", "\tkey:", 0, &[]),
    case("broken indentation", File, "    remote_addr:", "   remote_addr:", 4, &[]),
    case("two keys on one line", File, "retries: 1", "retries: 1: 2", 13, &[]),
    case("unknown alias", File, "remote_addr: 127.0.0.0/8", "remote_addr: *nowhere", 4, &[]),
    case("missing variable", File, "127.0.0.0/8", "${{NO_SUCH_VARIABLE}}", 4, &["NO_SUCH_VARIABLE"]),
    case("not UTF-8", File, "127.0.0.0/8", "LATIN-1", 4, &["UTF-8"]),
    case("misspelt field", Object, "server_port:", "server_prot:", 3, &["server_prot", "server_port"]),
    case("port too large", Object, "server_port: LISTEN", "server_port: 70000", 3, &["server_port", "65535"]),
    case("port as a word", Object, "server_port: LISTEN", "server_port: mqtt", 3, &["server_port", "integer"]),
    case("address that is none", Object, "127.0.0.0/8", "\":/8\"", 4, &["remote_addr", ":/8"]),
    case("prefix too long", Object, "127.0.0.0/8", "127.0.0.0/33", 4, &["remote_addr", "127.0.0.0/33"]),
    case("no protocol level", Object, "protocol_level: 4", "protocol_name: MQTT", 0, &["protocol_level", "required"]),
    case("level as a string", Object, "protocol_level: 4", "protocol_level: \"4\"", 7, &["protocol_level", "integer"]),
    case("no level in the list", Object, "protocol_level: 4", "protocol_level: []", 7, &["protocol_level"]),
    case("fractional level", Object, "protocol_level: 4", "protocol_level: 4.5", 7, &["protocol_level", "integer"]),
    case("unknown plugin", Object, "mqtt-proxy:", "mqtt-prox:", 6, &["unknown plugin", "mqtt-prox", "mqtt-proxy"]),
    case("impossible id", Id, "- id: 1\n    server", "- id: \"a b\"\n    server", 2, &["id"]),
    case("id 0", Id, "- id: 1\n    server", "- id: 0\n    server", 2, &["id"]),
    case("object where an id belongs", Object, "upstream_id: 1", "upstream_id: {a: 1}", 8, &["upstream_id"]),
    case("misspelt balancer", Object, "type: chash", "type: chahs", 11, &["chahs", "chash"]),
    case("unknown hash key", Object, "key: mqtt_client_id", "key: mqtt_clientid", 12, &["key", "mqtt_clientid"]),
    case("no hash key", Object, "    key: mqtt_client_id\n", "", 0, &["missing key"]),
    case("unknown hash_on", Object, "retries: 1", "hash_on: query", 13, &["hash_on", "query"]),
    case("negative retries", Object, "retries: 1", "retries: -1", 13, &["retries"]),
    case("timeout without read", Object, ", read: 60}", "}", 14, &["read", "required"]),
    case("timeout 0", Object, "connect: 5", "connect: 0", 14, &["connect"]),
    case("node without host", Object, "      - host: 127.0.0.1\n        port", "      - port", 0, &["host", "required"]),
    case("node port 0", Object, "port: BROKER", "port: 0", 17, &["port"]),
    case("negative weight", Object, "weight: 1", "weight: -1", 18, &["weight"]),
    case("fractional weight", Object, "weight: 1", "weight: 1.5", 18, &["weight", "integer"]),
    case("misspelt node field", Object, "weight: 1", "wieght: 1", 0, &["weight"]),
    case("nodes that are none", Object, "nodes:\n      - host: 127.0.0.1\n        port: BROKER\n        weight: 1", "nodes: 5", 15, &["nodes"]),
    case("no nodes", Object, "    nodes:\n      - host: 127.0.0.1\n        port: BROKER\n        weight: 1\n", "", 0, &["nodes"]),
];

impl Case {
    fn bytes(&self, listen: u16, broker: u16) -> Vec<u8> {
        let good = good(0, listen, broker).replace("# edit 0\n", "");
        let numbers = |text: &str| {
            text.replace("LISTEN", &listen.to_string())
                .replace("BROKER", &broker.to_string())
        };
        if self.from.is_empty() {
            return self.to.as_bytes().to_vec();
        }
        let from = numbers(self.from);
        assert!(
            good.contains(&from),
            "{}: {from:?} is in the good file",
            self.what
        );
        let broken = good.replacen(&from, &numbers(self.to), 1).into_bytes();
        if self.to != "LATIN-1" {
            return broken;
        }
        let at = broken
            .windows(7)
            .position(|w| w == b"LATIN-1")
            .expect("the mark");
        [&broken[..at], b"k\xfcche", &broken[at + 7..]].concat()
    }
}

/// The good file with a comment at its end that makes each edit a change.
fn good(edit: usize, listen: u16, broker: u16) -> String {
    GOOD.join("\n")
        .replace("LISTEN", &listen.to_string())
        .replace("BROKER", &broker.to_string())
        .replace("#END", &format!("# edit {edit}\n#END"))
}

#[test]
fn there_are_far_more_than_twenty_ways() {
    assert!(CASES.len() >= 20);
}

#[test]
fn a_broken_file_cuts_nobody_and_the_next_good_one_applies() {
    let broker = Broker::mqtt();
    let [port] = free_ports();
    let files = Files::new(&config(&[port]), &good(0, port, broker.port()));
    let mut proxy = Proxy::start(&files, &[port]);
    let mut held: Vec<Client> = (0..5)
        .map(|n| Client::mqtt(port, &Connect::v311(&format!("held-{n}")).keep_alive(0)))
        .collect();

    let path = files.routes_path().display().to_string();
    let mut wrong = Vec::new();
    for (edit, case) in CASES.iter().enumerate() {
        let mark = proxy.mark();
        files.replace_routes(case.bytes(port, broker.port()));
        proxy.signal(Signal::HUP);
        // A whole file is refused at ERROR; a bad object is named at WARN and the rest applies.
        let start = Instant::now();
        let told = loop {
            let lines: Vec<String> = proxy.lines().split_off(mark);
            let done = match case.loses {
                File => lines
                    .iter()
                    .any(|l| l.contains(&format!("config file {path} not applied:"))),
                Object | Id => lines
                    .iter()
                    .any(|l| l.contains(&format!("config file {path} reloaded"))),
            };
            if done || start.elapsed() > Duration::from_secs(6) {
                break lines;
            }
            std::thread::sleep(Duration::from_millis(3));
        };
        let said = told.join("\n");
        let place = if case.line == 0 {
            format!("{path}:")
        } else {
            format!("{path}:{}:", case.line)
        };
        let level = if case.loses == File { "ERROR" } else { "WARN" };
        let named = told
            .iter()
            .any(|line| line.contains(&place) && line.contains(level) && has_position(line, &path));
        if !named || !case.says.iter().all(|part| said.contains(part)) {
            wrong.push(format!(
                "{}: expected {place} {level} {:?}, log:\n{said}",
                case.what, case.says
            ));
        }

        for client in &mut held {
            client.expect_alive();
        }
        match case.loses {
            File | Object => Client::mqtt(port, &Connect::v311("new")).expect_alive(),
            Id => Client::to(port).expect_fin(),
        }

        let mark = proxy.mark();
        files.replace_routes(good(edit + 1, port, broker.port()));
        proxy.signal(Signal::HUP);
        proxy.wait_for_log_after(mark, " reloaded");
        Client::mqtt(port, &Connect::v311("new")).expect_alive();
    }
    for client in &mut held {
        client.expect_alive();
    }
    assert!(
        wrong.is_empty(),
        "{} messages are wrong:\n{}",
        wrong.len(),
        wrong.join("\n\n")
    );
}

/// Whether a line has `path:LINE:COL:` in it.
fn has_position(line: &str, path: &str) -> bool {
    let Some((_, rest)) = line.split_once(&format!("{path}:")) else {
        return false;
    };
    let mut parts = rest.split(':');
    let mut number = || {
        parts
            .next()
            .is_some_and(|part| part.parse::<usize>().is_ok())
    };
    number() && number()
}

fn check(files: &Files, more: &[&str]) -> Ran {
    let mut args = vec!["check".to_owned(), "-c".to_owned()];
    args.push(files.config_path().display().to_string());
    args.extend(more.iter().map(|arg| (*arg).to_owned()));
    cli(&args)
}

#[test]
fn check_names_the_place_of_every_one_of_them_with_exit_code_78() {
    let mut wrong = Vec::new();
    for case in CASES {
        let files = Files::new(&config(&[9100]), "");
        files.replace_routes(case.bytes(9100, 1883));
        let path = files.routes_path().display().to_string();
        let ran = check(&files, &[]);
        let place = if case.line == 0 {
            format!("{path}:")
        } else {
            format!("{path}:{}:", case.line)
        };
        let named = ran
            .stdout
            .lines()
            .any(|line| line.starts_with(&place) && has_position(line, &path));
        if ran.code != 78 || !named || !case.says.iter().all(|part| ran.stdout.contains(part)) {
            wrong.push(format!(
                "{}: expected {place} {:?}\n{}",
                case.what,
                case.says,
                ran.all()
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} cases are wrong:\n{}",
        wrong.len(),
        wrong.join("\n\n")
    );
}

#[test]
fn check_passes_the_good_file() {
    let files = Files::new(&config(&[9100]), &good(0, 9100, 1883));
    let ran = check(&files, &["--strict"]);
    assert_eq!(ran.code, 0, "{}", ran.all());
    assert_eq!(ran.stdout, "", "nothing to complain about");
}

#[test]
fn check_names_all_problems_of_both_files_at_once() {
    let text = good(0, 9100, 1883)
        .replace("server_port: 9100", "server_port: 70000")
        .replace("protocol_level: 4", "protocol_level: four")
        .replace("weight: 1", "weight: -1")
        .replace("retries: 1", "retries: x");
    let broken = config(&[9100]).replace("127.0.0.1:9100", "127.0.0.1:91000");
    let files = Files::new(&broken, &text);
    let ran = check(&files, &[]);
    assert_eq!(ran.code, 78, "{}", ran.all());
    for part in [
        "config.yaml:5:",
        "apisix.yaml:3:",
        "apisix.yaml:7:",
        "apisix.yaml:13:",
        "apisix.yaml:18:",
        "stream_routes[0].server_port",
        "upstreams[0].nodes[0].weight",
    ] {
        assert!(
            ran.stdout.contains(part),
            "{part} is missing:\n{}",
            ran.all()
        );
    }
}

#[test]
fn duplicate_ids_and_dangling_references_are_warnings() {
    let broker = Broker::mqtt();
    let [port, other] = free_ports();
    let text = format!(
        "stream_routes:\n  - {{id: 1, server_port: {port}, upstream_id: nowhere}}\n  \
         - {{id: 2, server_port: {other}, service_id: neither}}\n  \
         - {{id: \"1\", server_port: {port}, upstream: {{nodes: {{\"{}\": 1}}}}}}\n#END\n",
        broker.addr()
    );
    let files = Files::new(&config(&[port, other]), &text);
    let ran = check(&files, &[]);
    assert_eq!(ran.code, 0, "{}", ran.all());
    assert!(
        ran.stdout.contains("apisix.yaml:4:") && ran.stdout.contains("warning"),
        "{}",
        ran.all()
    );
    assert!(
        ran.stdout.contains("apisix.yaml:3:") && ran.stdout.contains("neither"),
        "{}",
        ran.all()
    );
    assert_eq!(
        check(&files, &["--strict"]).code,
        78,
        "a warning is an error with --strict"
    );

    // The later one of two objects with one id is served, as in APISIX.
    let _proxy = Proxy::start(&files, &[port, other]);
    let mut client = Client::to(port);
    client.send(&Connect::v311("a").build());
    client.expect(support::mqtt::ACCEPTED);
}

#[test]
fn a_certificate_that_cannot_be_parsed_is_an_error() {
    let filler = "x".repeat(200);
    let text = format!(
        "{}ssls:\n  - id: 1\n    sni: a.example.com\n    cert: \"{filler}\"\n    key: \"{filler}\"\n#END\n",
        good(0, 9100, 1883).replace("#END\n", "")
    );
    let files = Files::new(&config(&[9100]), &text);
    let ran = check(&files, &[]);
    assert_eq!(ran.code, 78, "{}", ran.all());
    assert!(ran.stdout.contains("ssls[0].cert"), "{}", ran.all());
}

/// Misspelt and impossible settings: the text of config.yaml behind the listeners, what the message
/// must say, and whether it is an error without --strict.
const SETTINGS: &[(&str, &[&str], bool)] = &[
    (
        "stream_plugin:\n  - mqtt-proxy\n",
        &["stream_plugin", "stream_plugins"],
        false,
    ),
    (
        "nginx_confg: {worker_processes: 2}\n",
        &["nginx_confg", "nginx_config"],
        false,
    ),
    (
        "mqtt_proxi: {connect: strict}\n",
        &["mqtt_proxi", "mqtt_proxy"],
        false,
    ),
    (
        "mqtt_proxy: {connect: lenient}\n",
        &["mqtt_proxy.connect", "strict", "tolerant"],
        true,
    ),
    (
        "mqtt_proxy: {refusal: silently}\n",
        &["mqtt_proxy.refusal", "connack"],
        true,
    ),
    (
        "mqtt_proxy: {ring_identity: dns}\n",
        &["mqtt_proxy.ring_identity", "address"],
        true,
    ),
    (
        "mqtt_proxy: {limits: {max_connect_size: 10}}\n",
        &["max_connect_size", "64"],
        true,
    ),
    (
        "mqtt_proxy: {limits: {max_connect_size: 2000000}}\n",
        &["max_connect_size", "1048576"],
        true,
    ),
    (
        "mqtt_proxy: {limits: {connect_timeout: 0}}\n",
        &["connect_timeout"],
        true,
    ),
    (
        "mqtt_proxy: {limits: {first_byte_timeout: soon}}\n",
        &["first_byte_timeout"],
        true,
    ),
    (
        "mqtt_proxy: {metrics: {addr: nowhere}}\n",
        &["mqtt_proxy.metrics.addr"],
        true,
    ),
    ("mqtt_proxy: [1]\n", &["mqtt_proxy"], true),
    (
        "nginx_config: {worker_processes: [1]}\n",
        &["worker_processes"],
        true,
    ),
];

#[test]
fn typos_in_config_yaml_are_found_with_the_nearest_known_name() {
    let mut wrong = Vec::new();
    for (text, says, is_error) in SETTINGS {
        let files = Files::new(&config_with(&[9100], text), &good(0, 9100, 1883));
        let ran = check(&files, &[]);
        let expected = if *is_error { 78 } else { 0 };
        let path = files.config_path().display().to_string();
        let placed = ran.stdout.lines().any(|line| has_position(line, &path));
        if ran.code != expected || !placed || !says.iter().all(|part| ran.stdout.contains(part)) {
            wrong.push(format!(
                "{text}expected exit {expected}, {says:?}\n{}",
                ran.all()
            ));
        }
        let strict = check(&files, &["--strict"]).code;
        if strict != 78 {
            wrong.push(format!("{text}with --strict: exit {strict}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} are wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn an_impossible_setting_stops_the_start_with_exit_code_78() {
    let [port] = free_ports();
    for text in [
        "mqtt_proxy: {connect: lenient}\n",
        "mqtt_proxy:\n\tconnect: strict\n",
    ] {
        let files = Files::new(&config_with(&[port], text), &good(0, port, 1883));
        let mut proxy = Proxy::spawn(&files, |_| {});
        assert_eq!(proxy.wait_for_exit(SOON).code(), Some(78), "{text}");
        wait_until("the place to be named", SOON, || {
            (proxy.count("config.yaml:") > 0).then_some(())
        });
    }
}

#[test]
fn a_warning_in_config_yaml_does_not_stop_the_start_but_strict_does() {
    let broker = Broker::mqtt();
    let [port] = free_ports();
    let text = good(0, port, broker.port());
    let files = Files::new(&config_with(&[port], "stream_plugin: []\n"), &text);
    let mut proxy = Proxy::start(&files, &[port]);
    let line = proxy.wait_for_log("stream_plugin");
    assert!(
        line.contains("stream_plugins"),
        "the nearest known name: {line}"
    );
    Client::mqtt(port, &Connect::v311("a")).expect_alive();
    drop(proxy);

    let mut strict = Proxy::spawn(&files, |command| {
        command.arg("--strict");
    });
    assert_eq!(strict.wait_for_exit(SOON).code(), Some(78));
}

#[test]
fn files_made_to_exhaust_the_reader_are_refused_quickly() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for n in 1..40 {
        let last = n - 1;
        let many = vec![format!("*a{last}"); 10].join(", ");
        bomb.push_str(&format!("a{n}: &a{n} [{many}]\n"));
    }
    bomb.push_str("stream_routes: *a39\n#END\n");
    let deep = format!(
        "stream_routes: {}{}\n#END\n",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let long = format!(
        "stream_routes:\n  - {{id: 1, desc: \"{}\"}}\n#END\n",
        "d".repeat(1_000_000)
    );
    for (what, text) in [
        ("alias bomb", bomb),
        ("deep nesting", deep),
        ("a long value", long),
    ] {
        let files = Files::new(&config(&[9100]), &text);
        let start = Instant::now();
        let ran = check(&files, &[]);
        assert_eq!(
            ran.code,
            78,
            "{what}: {}",
            ran.all().chars().take(2_000).collect::<String>()
        );
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "{what} took {:?}",
            start.elapsed()
        );
        assert!(ran.stdout.len() < 100_000, "{what}: the message is short");
    }
}
