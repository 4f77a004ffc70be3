//! What `packaging/` has for Prometheus and Grafana: every metric and label that it names exists in
//! a real scrape, and promtool, where there is one, agrees with the rules and their tests.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use support::metrics::{PATH, get};
use support::tls::{Authority, TlsClient, ssl};
use support::{
    Broker, Client, Connect, DeadPort, Files, Proxy, SOON, free_ports, local, wait_until,
};

fn packaged(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("packaging")
        .join(file)
}

fn read(file: &str) -> String {
    let path = packaged(file);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A scrape of a proxy to which everything has happened that a metric counts.
fn scrape() -> String {
    let (broker, dead) = (Broker::mqtt(), DeadPort::new());
    let [port, tls, dead_end, scrape] = free_ports();
    let config = format!(
        "apisix:\n  stream_proxy:\n    tcp: [\"127.0.0.1:{port}\", \"127.0.0.1:{dead_end}\", \
         {{addr: \"127.0.0.1:{tls}\", tls: true}}]\n\
         deployment: {{role: data_plane, role_data_plane: {{config_provider: yaml}}}}\n\
         mqtt_proxy: {{metrics: {{addr: \"127.0.0.1:{scrape}\"}}}}\n"
    );
    let plugins = "plugins: {mqtt-proxy: {protocol_level: 4}}";
    let certificate = Authority::new("root").issue(&["a.test"]);
    let routes = format!(
        "stream_routes:\n  - {{id: 1, server_port: {dead_end}, {plugins}, upstream: {{nodes: {{\"{}\": 1}}}}}}\n  \
         - {{id: 2, {plugins}, upstream: {{type: chash, key: mqtt_client_id, nodes: {{\"{}\": 1}}}}}}\n\
         ssls:\n  - {}\n#END\n",
        dead.addr(),
        broker.addr(),
        ssl("1", "a.test", &certificate, "")
    );
    let _proxy = Proxy::start(&Files::new(&config, &routes), &[port, dead_end, tls]);
    drop(Client::mqtt(port, &Connect::v311("")));
    support::send(dead_end, &Connect::v311("a").build()).read_to_end(SOON);
    let over_tls = TlsClient::to(tls).name("a.test");
    drop(over_tls.mqtt(&Connect::v311("b")).expect("a handshake"));
    wait_until("all ends to be counted", SOON, || {
        let text = get(local(scrape), PATH).2;
        let ended = support::metrics::sum(&text, "mqtt_proxy_connections_ended_total", &[]);
        (ended == 3.0).then_some(text)
    })
}

/// The values of each label of each metric.
type Labels = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

fn labels_of(scrape: &str) -> Labels {
    let mut all = Labels::new();
    for line in scrape.lines().filter(|line| !line.starts_with('#')) {
        let (series, _) = line.rsplit_once(' ').expect("a sample");
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let known = all.entry(name.to_owned()).or_default();
        // Prometheus adds these.
        known.entry("job".to_owned()).or_default();
        known.entry("instance".to_owned()).or_default();
        for label in labels.trim_end_matches('}').split("\",") {
            if let Some((name, value)) = label.split_once("=\"") {
                let values = known.entry(name.to_owned()).or_default();
                values.insert(value.trim_end_matches('"').to_owned());
            }
        }
    }
    all
}

/// Every metric that an expression names, with what stands in its braces.
fn selectors(expression: &str) -> Vec<(String, String)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some(at) = rest.find(|c: char| c.is_ascii_alphabetic()) {
        let word = &rest[at..];
        let end = word.find(|c| !is_name(c)).unwrap_or(word.len());
        let (name, behind) = word.split_at(end);
        let inside = behind.strip_prefix('{').and_then(|in_| in_.split_once('}'));
        if ["mqtt_proxy_", "apisix_", "process_"]
            .iter()
            .any(|own| name.starts_with(own))
        {
            let inside = inside.map_or("", |(inside, _)| inside);
            found.push((name.to_owned(), inside.to_owned()));
        }
        // What is quoted in the braces is no metric.
        rest = inside.map_or(behind, |(_, behind)| behind);
    }
    found
}

/// Fails for a metric, a label or a value of a fixed label that the scrape does not have.
fn exists(expression: &str, known: &Labels) {
    for (name, inside) in selectors(expression) {
        let labels = known.get(&name);
        let labels = labels.unwrap_or_else(|| panic!("no metric {name}: {expression}"));
        for matcher in inside.split(", ").filter(|matcher| !matcher.is_empty()) {
            let (label, value) = matcher.split_once('=').expect("a matcher");
            let negative = label.ends_with('!');
            let label = label.trim_end_matches('!');
            let values = labels.get(label);
            let values =
                values.unwrap_or_else(|| panic!("{name} has no label {label}: {expression}"));
            let value = value.trim_start_matches('~').trim_matches('"');
            if label == "instance" || negative {
                continue;
            }
            for value in value.split('|') {
                assert!(
                    values.contains(value),
                    "{name} has no {label}={value}: {values:?}"
                );
            }
        }
    }
}

#[test]
fn every_metric_of_the_dashboard_and_the_alerts_exists() {
    let known = labels_of(&scrape());
    let mut used = BTreeSet::new();
    let mut look = |expression: &str| {
        exists(expression, &known);
        used.extend(selectors(expression).into_iter().map(|(name, _)| name));
    };
    let rules: Value =
        serde_yaml::from_str(&read("prometheus/mqtt-proxy.rules.yml")).expect("YAML");
    let rules = rules["groups"][0]["rules"]
        .as_array()
        .expect("rules")
        .clone();
    let tests = read("prometheus/mqtt-proxy.test.yml");
    for rule in &rules {
        look(rule["expr"].as_str().expect("an expression"));
        let name = rule["alert"].as_str().expect("a name");
        let fires = format!("alertname: {name}\n        exp_alerts:");
        assert!(tests.contains(&fires), "no test in which {name} fires");
        let silent = format!("alertname: {name}}}");
        assert!(tests.contains(&silent), "no test in which {name} does not");
        assert!(rule["labels"]["severity"].is_string(), "{name}");
        assert!(rule["annotations"]["summary"].is_string(), "{name}");
    }
    let dashboard: Value = serde_json::from_str(&read("grafana/mqtt-proxy.json")).expect("JSON");
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().unwrap_or(&Vec::new()) {
            look(target["expr"].as_str().expect("an expression"));
        }
    }
    for annotation in dashboard["annotations"]["list"].as_array().expect("a list") {
        look(annotation["expr"].as_str().expect("an expression"));
    }
    let unused = known
        .keys()
        .map(|name| name.trim_end_matches("_count").trim_end_matches("_sum"))
        .filter(|name| !used.iter().any(|used| used.starts_with(name)))
        .filter(|name| !name.starts_with("process_"))
        .collect::<Vec<_>>();
    assert_eq!(
        unused,
        ["mqtt_proxy_config_last_success_timestamp_seconds"],
        "metrics that neither shows"
    );
}

#[test]
fn the_dashboard_is_one_that_grafana_can_import() {
    let dashboard: Value = serde_json::from_str(&read("grafana/mqtt-proxy.json")).expect("JSON");
    assert_eq!(dashboard["uid"], "mqtt-proxy");
    assert!(
        dashboard["schemaVersion"]
            .as_u64()
            .is_some_and(|version| version >= 36)
    );
    assert!(
        dashboard.get("id").is_none(),
        "an id belongs to one Grafana only"
    );
    let variables = dashboard["templating"]["list"]
        .as_array()
        .expect("variables");
    let names: Vec<&str> = variables
        .iter()
        .filter_map(|v| v["name"].as_str())
        .collect();
    assert_eq!(names, ["datasource", "instance"]);
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        let title = panel["title"].as_str().expect("a title");
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{title}");
        let place = |name: &str| panel["gridPos"][name].as_u64().expect("a place");
        let (x, y, width, height) = (place("x"), place("y"), place("w"), place("h"));
        assert!(x + width <= 24, "{title} is wider than the page");
        for cell in (x..x + width).flat_map(|x| (y..y + height).map(move |y| (x, y))) {
            assert!(taken.insert(cell), "{title} lies on another panel");
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(panel["description"].is_string(), "{title}");
        let targets = panel["targets"].as_array().expect("targets");
        assert!(!targets.is_empty(), "{title}");
        for source in targets.iter().chain([panel]) {
            assert_eq!(source["datasource"]["uid"], "${datasource}", "{title}");
        }
    }
}

#[test]
fn promtool_agrees() {
    let promtool = std::env::var("PROMTOOL").unwrap_or_else(|_| "promtool".to_owned());
    if Command::new(&promtool).arg("--version").output().is_err() {
        eprintln!("skipped: no promtool (Debian package prometheus; PROMTOOL names another one)");
        return;
    }
    let run = |arguments: &[&str], input: Option<&str>| {
        let mut command = Command::new(&promtool);
        command.args(arguments).current_dir(packaged("prometheus"));
        if let Some(input) = input {
            let file = tempfile::NamedTempFile::new().expect("a file");
            std::fs::write(file.path(), input).expect("write");
            command.stdin(std::fs::File::open(file.path()).expect("open"));
        }
        let output = command.output().expect("promtool");
        let told = [output.stdout, output.stderr].concat();
        let told = String::from_utf8_lossy(&told).into_owned();
        (output.status.success(), told)
    };
    for arguments in [
        ["check", "rules", "mqtt-proxy.rules.yml"],
        ["test", "rules", "mqtt-proxy.test.yml"],
    ] {
        let (good, told) = run(&arguments, None);
        assert!(good, "{arguments:?}: {told}");
    }
    let (_, told) = run(&["check", "metrics"], Some(&scrape()));
    // APISIX's own names are what they are.
    let ours: Vec<&str> = told
        .lines()
        .filter(|line| !line.starts_with("apisix_") && !line.is_empty())
        .collect();
    assert!(ours.is_empty(), "{ours:#?}");
}
