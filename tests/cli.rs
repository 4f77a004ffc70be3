//! The command line: what each command prints, where it prints it, and its exit code.

mod support;

use serde_json::Value;
use support::proxy::{Ran, cli_with};
use support::{Files, cli, config, config_with, explain};

const ROUTES: &str = "stream_routes:\n  - id: mqtt\n    server_port: 9100\n    plugins: {mqtt-proxy: {protocol_level: 4}}\n    \
                      upstream_id: brokers\n  - id: inline\n    server_port: 9101\n    upstream: {nodes: {\"127.0.0.1:1883\": 1}}\n\
                      upstreams:\n  - id: brokers\n    type: chash\n    key: mqtt_client_id\n    \
                      nodes: {\"127.0.0.1:1883\": 1, \"127.0.0.1:1884\": 1, \"127.0.0.1:1885\": 1}\n#END\n";

fn files() -> Files {
    Files::new(&config(&[9100, 9101, 9102]), ROUTES)
}

fn with(files: &Files, command: &[&str], more: &[&str]) -> Ran {
    let config = files.config_path().display().to_string();
    let mut args: Vec<&str> = command.to_vec();
    args.extend(["-c", &config]);
    args.extend(more);
    cli(&args)
}

#[test]
fn help_names_every_command_and_version_is_the_packages() {
    for flag in ["--help", "-h"] {
        let ran = cli(&[flag]);
        assert_eq!(ran.code, 0, "{}", ran.all());
        for word in ["run", "check", "explain", "schema"] {
            assert!(ran.stdout.contains(word), "{word} in {}", ran.all());
        }
    }
    for command in ["run", "check", "explain", "schema"] {
        let ran = cli(&[command, "--help"]);
        assert_eq!(ran.code, 0, "{command}: {}", ran.all());
    }
    let ran = cli(&["--version"]);
    assert_eq!(ran.code, 0);
    assert!(
        ran.stdout.contains(env!("CARGO_PKG_VERSION")),
        "{}",
        ran.all()
    );
}

#[test]
fn wrong_usage_is_exit_code_2_and_goes_to_standard_error() {
    for args in [
        &["dance"][..],
        &["--no-such-option"],
        &["check", "--format", "xml"],
        &["check", "extra", "words"],
        &["explain"],
        &["explain", "--listen", "here", "--client-id", "a"],
        &["explain", "--listen", "9100", "--from", "home"],
        &["schema"],
        &["schema", "everything"],
        &["run", "-c"],
    ] {
        let ran = cli(args);
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.all());
        assert_eq!(ran.stdout, "", "{args:?}");
        assert!(!ran.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn check_of_good_files_is_silent_on_standard_output_and_ends_with_0() {
    let files = files();
    for command in [&["check"][..], &["-t"]] {
        let ran = with(&files, command, &[]);
        assert_eq!(ran.code, 0, "{command:?}: {}", ran.all());
        assert_eq!(ran.stdout, "", "{command:?}");
        assert_eq!(
            ran.stderr.lines().count(),
            1,
            "one summary line: {}",
            ran.all()
        );
    }
}

#[test]
fn check_prints_problems_on_standard_output_and_one_summary_line_on_standard_error() {
    let files = files();
    files.replace_routes(ROUTES.replace("9101", "91010").replace("chash", "chahs"));
    for command in [&["check"][..], &["-t"]] {
        let ran = with(&files, command, &[]);
        assert_eq!(ran.code, 78, "{}", ran.all());
        let lines: Vec<&str> = ran.stdout.lines().collect();
        assert!(lines.len() >= 2, "{}", ran.all());
        let path = files.routes_path().display().to_string();
        for line in lines {
            let rest = line
                .strip_prefix(&format!("{path}:"))
                .unwrap_or_else(|| panic!("{line}"));
            let mut parts = rest.splitn(4, ':');
            for _ in 0..2 {
                let number: usize = parts.next().expect("a number").parse().expect("a number");
                assert!(number > 0);
            }
            let rest = parts.next().expect("a place").trim();
            let place = if rest == "warning" {
                parts.next().expect("a place").trim()
            } else {
                rest
            };
            assert!(
                place.starts_with("stream_routes[") || place.starts_with("upstreams["),
                "{line}"
            );
        }
        assert_eq!(
            ran.stderr.lines().count(),
            1,
            "one summary line: {}",
            ran.all()
        );
    }
}

#[test]
fn check_prints_json_when_asked() {
    let files = files();
    files.replace_routes(
        ROUTES
            .replace("9101", "91010")
            .replace("upstream_id: brokers", "upstream_id: gone"),
    );
    let ran = with(&files, &["check"], &["--format", "json"]);
    assert_eq!(ran.code, 78, "{}", ran.all());
    let said: Value =
        serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {}", ran.all()));
    let text = said.to_string();
    for part in [
        "apisix.yaml",
        "stream_routes[1].server_port",
        "\"line\":7",
        "warning",
        "error",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let ran = with(&self::files(), &["check"], &["--format", "json"]);
    assert_eq!(ran.code, 0);
    serde_json::from_str::<Value>(&ran.stdout).expect("JSON for good files too");
}

#[test]
fn check_takes_another_routes_file() {
    let files = files();
    std::fs::write(files.path("other.yaml"), "stream_routes: [\n").expect("write");
    let other = files.path("other.yaml").display().to_string();
    let ran = with(&files, &["check"], &["--routes", &other]);
    assert_eq!(ran.code, 78);
    assert!(ran.stdout.contains("other.yaml:"), "{}", ran.all());
}

#[test]
fn missing_files_are_named() {
    let files = Files::empty("apisix.yaml");
    let ran = with(&files, &["check"], &[]);
    assert_ne!(ran.code, 0);
    assert!(ran.all().contains("config.yaml"), "{}", ran.all());
    let ran = with(&files, &["run"], &[]);
    assert!(ran.code == 78 || ran.code == 1, "{}", ran.all());
    assert!(ran.stderr.contains("config.yaml"), "{}", ran.all());

    files.replace("config.yaml", config(&[9100]));
    let ran = with(&files, &["check"], &[]);
    assert_eq!(ran.code, 78, "{}", ran.all());
    assert!(ran.stdout.contains("apisix.yaml"), "{}", ran.all());
}

#[test]
fn the_default_configuration_is_conf_config_yaml_of_the_current_folder() {
    let files = Files::empty("apisix.yaml");
    let conf = files.path("conf");
    std::fs::create_dir(&conf).expect("mkdir");
    std::fs::write(conf.join("config.yaml"), config(&[9100])).expect("write");
    std::fs::write(conf.join("apisix.yaml"), ROUTES).expect("write");
    let ran = cli_with(&["check"], |command| {
        command.current_dir(files.dir());
    });
    assert_eq!(ran.code, 0, "{}", ran.all());
}

/// A self-signed certificate and its key, as PEM.
fn certificate() -> (String, String) {
    use openssl::{asn1::Asn1Time, ec, hash::MessageDigest, nid::Nid, pkey::PKey, x509};
    let group = ec::EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).expect("a curve");
    let key = PKey::from_ec_key(ec::EcKey::generate(&group).expect("a key")).expect("a key");
    let mut name = x509::X509NameBuilder::new().expect("a name");
    name.append_entry_by_text("CN", "mqtt.example.com")
        .expect("a name");
    let name = name.build();
    let mut builder = x509::X509::builder().expect("a certificate");
    builder.set_version(2).expect("version");
    builder.set_subject_name(&name).expect("subject");
    builder.set_issuer_name(&name).expect("issuer");
    builder.set_pubkey(&key).expect("key");
    builder
        .set_not_before(&Asn1Time::days_from_now(0).expect("a time"))
        .expect("start");
    builder
        .set_not_after(&Asn1Time::days_from_now(30).expect("a time"))
        .expect("end");
    builder
        .sign(&key, MessageDigest::sha256())
        .expect("signature");
    let text = |pem: Vec<u8>| String::from_utf8(pem).expect("PEM is text");
    (
        text(builder.build().to_pem().expect("PEM")),
        text(key.private_key_to_pem_pkcs8().expect("PEM")),
    )
}

#[test]
fn check_reads_certificates_too() {
    let (cert, key) = certificate();
    let block = |pem: &str| {
        pem.lines()
            .map(|line| format!("      {line}\n"))
            .collect::<String>()
    };
    let ssl = |cert: &str, key: &str| {
        format!(
            "ssls:\n  - id: 1\n    sni: mqtt.example.com\n    cert: |\n{}    key: |\n{}#END\n",
            block(cert),
            block(key)
        )
    };
    let files = files();
    files.replace_routes(ROUTES.replace("#END\n", &ssl(&cert, &key)));
    let ran = with(&files, &["check"], &[]);
    assert_eq!(ran.code, 0, "{}", ran.all());

    let broken = cert.replacen("MI", "XX", 1);
    files.replace_routes(ROUTES.replace("#END\n", &ssl(&broken, &key)));
    let ran = with(&files, &["check"], &[]);
    assert_eq!(ran.code, 78, "{}", ran.all());
    assert!(ran.stdout.contains("ssls[0].cert"), "{}", ran.all());
    assert!(
        !ran.all().contains(key.lines().nth(1).expect("a line")),
        "no key in a message"
    );

    files.replace_routes(ROUTES.replace("#END\n", &ssl(&cert, &cert)));
    let ran = with(&files, &["check"], &[]);
    assert_eq!(ran.code, 78, "{}", ran.all());
    assert!(ran.stdout.contains("ssls[0].key"), "{}", ran.all());
}

#[test]
fn explain_tells_the_whole_way_of_a_connection_as_text() {
    let ran = with(
        &files(),
        &["explain"],
        &["--listen", "9100", "--client-id", "foo"],
    );
    assert_eq!(ran.code, 0, "{}", ran.all());
    let lines: Vec<&str> = ran.stdout.lines().collect();
    for expected in [
        "listen: 127.0.0.1:9100",
        "route: mqtt",
        "plugin mqtt-proxy: accepts MQTT level 4",
        "upstream: brokers (chash on mqtt_client_id)",
        "hash key: foo",
        "1. 127.0.0.1:1883",
        "2. 127.0.0.1:1884",
        "3. 127.0.0.1:1885",
    ] {
        assert!(
            lines.iter().any(|line| line.trim() == expected),
            "{expected:?} in {}",
            ran.all()
        );
    }
}

#[test]
fn explain_tells_the_same_as_json() {
    let files = files();
    let said = explain(&files, "127.0.0.1:9100", &["--client-id", "foo"]);
    assert_eq!(said["listen"], "127.0.0.1:9100");
    assert_eq!(said["route"], "mqtt");
    assert_eq!(said["plugins"][0]["name"], "mqtt-proxy");
    assert_eq!(said["upstream"], "brokers");
    assert!(said["balancer"].to_string().contains("chash"));
    assert_eq!(said["hash_key"], "foo");
    let nodes = serde_json::json!(["127.0.0.1:1883", "127.0.0.1:1884", "127.0.0.1:1885"]);
    assert_eq!(said["nodes"], nodes);

    let plain = explain(&files, "9101", &["--client-id", "foo"]);
    assert_eq!(plain["route"], "inline");
    assert_eq!(plain["upstream"], "inline", "it has no id of its own");
    assert_eq!(plain["nodes"], serde_json::json!(["127.0.0.1:1883"]));
}

#[test]
fn explain_ends_with_1_when_nothing_would_take_the_connection() {
    let files = files();
    for args in [
        &["--listen", "9102", "--client-id", "a"][..],
        &["--listen", "9100", "--client-id", "a", "--level", "5"],
    ] {
        let ran = with(&files, &["explain"], args);
        assert_eq!(ran.code, 1, "{args:?}: {}", ran.all());
        assert!(!ran.all().is_empty());
    }
    files.replace_routes(ROUTES.replace("upstream_id: brokers", "upstream_id: gone"));
    let ran = with(
        &files,
        &["explain"],
        &["--listen", "9100", "--client-id", "a"],
    );
    assert_eq!(ran.code, 1, "{}", ran.all());
    files.replace_routes("stream_routes: [\n#END\n");
    let ran = with(
        &files,
        &["explain"],
        &["--listen", "9100", "--client-id", "a"],
    );
    assert_eq!(ran.code, 78, "{}", ran.all());
}

/// The schema of `what`, compiled: it must be a valid one of its own dialect.
fn schema(what: &str) -> jsonschema::Validator {
    let ran = cli(&["schema", what]);
    assert_eq!(ran.code, 0, "{}", ran.all());
    let schema: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(
        schema["$schema"],
        "https://json-schema.org/draft/2020-12/schema"
    );
    jsonschema::meta::validate(&schema).expect("valid by its own meta-schema");
    jsonschema::validator_for(&schema).expect("a usable schema")
}

fn yaml(text: &str) -> Value {
    serde_yaml::from_str(text).expect("YAML")
}

#[test]
fn the_published_schemas_accept_good_files() {
    let [settings, resources] = ["config", "apisix"].map(schema);
    let problems = |schema: &jsonschema::Validator, value: &Value| {
        schema
            .iter_errors(value)
            .map(|e| format!("{}: {e}", e.instance_path()))
            .collect::<Vec<_>>()
    };
    assert_eq!(problems(&resources, &yaml(ROUTES)), Vec::<String>::new());
    assert_eq!(
        problems(&settings, &yaml(&config(&[9100]))),
        Vec::<String>::new()
    );
    let own = "mqtt_proxy:\n  connect: tolerant\n  limits: {max_connect_size: 1024, first_byte_timeout: 1.5}\n  \
               metrics: {addr: \"127.0.0.1:9091\"}\n";
    assert_eq!(
        problems(&settings, &yaml(&config_with(&[9100], own))),
        Vec::<String>::new()
    );
    let lists = "stream_routes:\n  - {id: 1, plugins: {mqtt-proxy: {protocol_level: [3, 4, 5]}}, upstream_id: 1}\n#END\n";
    assert_eq!(problems(&resources, &yaml(lists)), Vec::<String>::new());
}

#[test]
fn the_published_schemas_refuse_what_check_refuses() {
    let [settings, resources] = ["config", "apisix"].map(schema);
    for bad in [
        ROUTES.replace("server_port: 9100", "server_port: 70000"),
        ROUTES.replace("server_port: 9100", "server_prot: 9100"),
        ROUTES.replace("protocol_level: 4", "protocol_level: \"4\""),
        ROUTES.replace("protocol_level: 4", "protocol_name: MQTT"),
        ROUTES.replace("\"127.0.0.1:1885\": 1", "\"127.0.0.1:1885\": -1"),
    ] {
        assert!(!resources.is_valid(&yaml(&bad)), "{bad}");
    }
    for bad in [
        "mqtt_proxy: {connect: lenient}\n",
        "mqtt_proxy: {limits: {max_connect_size: 10}}\n",
        "mqtt_proxy: {limits: {connect_timeout: 0}}\n",
    ] {
        assert!(
            !settings.is_valid(&yaml(&config_with(&[9100], bad))),
            "{bad}"
        );
    }
}

#[test]
fn completions_and_manual_pages_come_from_the_command_line_that_is_parsed() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = cli(&["completions", shell]);
        assert_eq!(ran.code, 0, "{}", ran.all());
        for word in ["explain", "client-id", "against"] {
            assert!(ran.stdout.contains(word), "{shell}: {word}");
        }
    }
    let whole = cli(&["man"]);
    assert_eq!(whole.code, 0, "{}", whole.all());
    for section in [
        "NAME",
        "OPTIONS",
        "SUBCOMMANDS",
        "SIGNALS",
        "\"EXIT STATUS\"",
    ] {
        let heading = format!(".SH {section}\n");
        assert!(whole.stdout.contains(&heading), "{section}");
    }
    let one = cli(&["man", "check"]);
    assert_eq!(one.code, 0, "{}", one.all());
    assert!(one.stdout.contains(".TH mqtt-proxy-check 1"));
    assert!(one.stdout.contains("\\-\\-against"), "its own options");
    let none = cli(&["man", "nothing"]);
    assert_eq!(none.code, 2, "{}", none.all());
    assert!(none.stderr.contains("no command 'nothing' (known: run,"));
}
