//! Client certificates: who gets in, what is known of him, and who cannot sneak in by resumption.

mod support;

use openssl::ssl::SslVersion;
use support::s_client::{Visitor, is_resumed};
use support::tls::{
    Authority, Days, Identity, TlsClient, one_node, ssl, tls_config, tls_routes, write,
};
use support::*;

const VERSIONS: [SslVersion; 2] = [SslVersion::TLS1_2, SslVersion::TLS1_3];

/// `client` of an ssl object.
fn client(authority: &str, more: &str) -> String {
    format!(", client: {{ca: {authority:?}{more}}}")
}

fn start(broker: &Broker, ssls: &[String]) -> (u16, Files, Proxy) {
    let port = free_port();
    let files = Files::new(
        &tls_config(&[port], "", ""),
        &tls_routes(&one_node(broker.addr()), ssls),
    );
    let proxy = Proxy::start(&files, &[port]);
    (port, files, proxy)
}

#[test]
fn a_client_without_a_good_certificate_ends_in_the_handshake() {
    let (root, other) = (Authority::new("root"), Authority::new("other"));
    let middle = root.intermediate("middle");
    let deep = middle.intermediate("deep");
    let server = root.issue(&["a.test"]);
    let broker = Broker::mqtt();
    let ssls = [
        ssl("1", "a.test", &server, &client(&root.pem(), "")),
        ssl(
            "2",
            "shallow.test",
            &server,
            &client(&root.pem(), ", depth: 0"),
        ),
    ];
    let (port, _files, mut proxy) = start(&broker, &ssls);
    let connect = Connect::v311("device-1");
    let judged = |name: &str, identity: Option<&Identity>, version: SslVersion| {
        let client = TlsClient::to(port).name(name).version(version);
        let client = match identity {
            Some(identity) => client.identity(identity),
            None => client,
        };
        client.mqtt(&connect).map(drop)
    };
    let mut good = 0;
    for version in VERSIONS {
        for identity in [root.issue(&["dev"]), middle.issue(&["dev"])] {
            judged("a.test", Some(&identity), version).unwrap();
            good += 1;
        }
        judged("shallow.test", Some(&root.issue(&["dev"])), version).unwrap();
        good += 1;
        let refused = [
            ("a.test", None),
            ("a.test", Some(other.issue(&["dev"]))),
            ("a.test", Some(root.issue_valid(&["dev"], Days(-9, -2)))),
            // Two intermediates are one more than the default depth allows.
            ("a.test", Some(deep.issue(&["dev"]))),
            ("shallow.test", Some(middle.issue(&["dev"]))),
        ];
        for (name, identity) in &refused {
            let error = judged(name, identity.as_ref(), version).unwrap_err();
            assert!(error.contains("alert"), "{name} {version:?}: {error}");
        }
    }
    assert_eq!(broker.accepted(), good, "nobody else reached the broker");
    proxy.wait_for_log("tls_client_certificate: client certificate: the client shows none");
}

#[test]
fn a_revoked_certificate_is_refused_as_soon_as_the_list_says_so() {
    let (root, other) = (Authority::new("root"), Authority::new("other"));
    let broker = Broker::mqtt();
    let (good, stolen) = (root.issue(&["good"]), root.issue(&["stolen"]));
    let port = free_port();
    let files = Files::new(&tls_config(&[port], "", ""), "stream_routes: []\n#END\n");
    // The lists of two authorities in one text.
    let lists = |revoked: &[&Identity]| root.revoke(revoked) + &other.revoke(&[]);
    files.replace("lists.pem", lists(&[]));
    let more = format!(", crl: \"file://{}\"", files.path("lists.pem").display());
    let both = root.pem() + &other.pem();
    let ssls = [ssl(
        "1",
        "a.test",
        &root.issue(&["a.test"]),
        &client(&both, &more),
    )];
    files.replace_routes(tls_routes(&one_node(broker.addr()), &ssls));
    let mut proxy = Proxy::start(&files, &[port]);
    let enters = |identity: &Identity| {
        let client = TlsClient::to(port).name("a.test").identity(identity);
        client.mqtt(&Connect::v311("device-1")).map(drop)
    };
    for identity in [&good, &stolen, &other.issue(&["third"])] {
        enters(identity).unwrap();
    }
    // A session of the stolen certificate, made while it was good, is worth nothing afterwards.
    let cert = write(files.dir(), "stolen.pem", &stolen.cert);
    let key = write(files.dir(), "stolen.key", &stolen.key);
    let thief = Visitor {
        port,
        folder: files.dir(),
        version: "-tls1_3",
    };
    thief.get_session("a.test", &["-cert", &cert, "-key", &key]);
    let mark = proxy.mark();
    files.replace("lists.pem", lists(&[&stolen]));
    proxy.wait_for_log_after(mark, " reloaded");
    enters(&good).unwrap();
    let error = enters(&stolen).unwrap_err();
    assert!(error.contains("certificate revoked"), "{error}");
    let said = thief.use_session("a.test");
    assert!(!is_resumed(&said) && said.contains("alert"), "{said}");
    proxy.wait_for_log("client certificate: certificate revoked");
}

#[test]
fn the_verified_identity_is_a_hash_key() {
    let root = Authority::new("root");
    let brokers = Brokers::mqtt(4);
    let port = free_port();
    let upstream = |key: &str| {
        format!(
            "type: chash, hash_on: vars_combinations, key: \"{key}\", nodes: {}",
            brokers.equal()
        )
    };
    let ssls = [ssl(
        "1",
        "'*.test'",
        &root.issue(&["a.test"]),
        &client(&root.pem(), ""),
    )];
    let files = Files::new(
        &tls_config(&[port], "", ""),
        &tls_routes(&upstream("$ssl_client_cn"), &ssls),
    );
    let mut proxy = Proxy::start(&files, &[port]);
    let ring = Ring::equal(&brokers.nodes());
    let visit = |name: &str, identity: &Identity| {
        let before = brokers.accepted();
        let tls = TlsClient::to(port).name(name).identity(identity);
        let mut talk = tls.mqtt(&Connect::v311("same-id")).unwrap();
        talk.expect_alive();
        let now = brokers.accepted();
        now.iter()
            .zip(&before)
            .position(|(now, then)| now > then)
            .unwrap()
    };
    for device in ["dev-1", "dev-2", "dev-3", "dev-4", "dev-5", "dev-6"] {
        let identity = root.issue(&[device]);
        assert_eq!(visit("a.test", &identity), ring.pick(device), "{device}");
    }
    let identity = root.issue(&["dev-1"]);
    let leaf = openssl::x509::X509::from_pem(identity.cert.as_bytes()).unwrap();
    let serial = leaf
        .serial_number()
        .to_bn()
        .unwrap()
        .to_hex_str()
        .unwrap()
        .to_string();
    let sha1 = leaf.digest(openssl::hash::MessageDigest::sha1()).unwrap();
    let fingerprint: String = sha1.iter().map(|byte| format!("{byte:02x}")).collect();
    for (key, value) in [
        ("$ssl_client_s_dn", "CN=dev-1,O=mqtt-proxy tests".to_owned()),
        ("$ssl_client_serial", serial),
        ("$ssl_client_fingerprint", fingerprint),
        ("$ssl_server_name", "b.test".to_owned()),
        (
            "$ssl_protocol $ssl_cipher",
            "TLSv1.3 TLS_AES_256_GCM_SHA384".to_owned(),
        ),
    ] {
        proxy.reload(|| files.replace_routes(tls_routes(&upstream(key), &ssls)));
        assert_eq!(
            visit("b.test", &identity),
            ring.pick(&value),
            "{key} = {value}"
        );
    }
}

#[test]
fn a_session_of_one_name_opens_no_other() {
    let (root, other) = (Authority::new("root"), Authority::new("other"));
    let server = root.issue(&["a.test"]);
    let broker = Broker::mqtt();
    let ssls = |first: &Authority| {
        [
            ssl("1", "open.test", &server, ""),
            ssl("2", "closed.test", &server, &client(&first.pem(), "")),
            ssl("3", "other.test", &server, &client(&other.pem(), "")),
        ]
    };
    let (port, files, mut proxy) = start(&broker, &ssls(&root));
    let device = root.issue(&["dev"]);
    let cert = write(files.dir(), "device.pem", &device.cert);
    let key = write(files.dir(), "device.key", &device.key);
    let identity = ["-cert", &*cert, "-key", &*key];
    for version in ["-tls1_2", "-tls1_3"] {
        let attack = Visitor {
            port,
            folder: files.dir(),
            version,
        };
        // A session is resumed where it belongs, the verified identity with it.
        attack.get_session("open.test", &[]);
        let said = attack.use_session("open.test");
        assert!(is_resumed(&said), "{version}: {said}");
        let mut reached = broker.accepted();
        // Under a name that asks for a certificate it is not, and the client has none.
        attack.get_session("open.test", &[]);
        reached += 1;
        let said = attack.use_session("closed.test");
        assert!(
            !is_resumed(&said) && said.contains("alert"),
            "{version}: {said}"
        );
        // Neither is one that was verified by another authority.
        attack.get_session("closed.test", &identity);
        reached += 1;
        let said = attack.use_session("other.test");
        assert!(
            !is_resumed(&said) && said.contains("alert"),
            "{version}: {said}"
        );
        assert_eq!(
            broker.accepted(),
            reached,
            "{version}: the attacker reached the broker"
        );
        // Without a certificate of its own the session is enough where it was made …
        attack.get_session("closed.test", &identity);
        let said = attack.use_session("closed.test");
        assert!(is_resumed(&said), "{version}: {said}");
        // … until its authority is no longer trusted.
        attack.get_session("closed.test", &identity);
        let routes = tls_routes(&one_node(broker.addr()), &ssls(&other));
        proxy.reload(|| files.replace_routes(&routes));
        let reached = broker.accepted();
        let said = attack.use_session("closed.test");
        assert!(
            !is_resumed(&said) && said.contains("alert"),
            "{version}: {said}"
        );
        assert_eq!(
            broker.accepted(),
            reached,
            "{version}: the attacker reached the broker"
        );
        let routes = tls_routes(&one_node(broker.addr()), &ssls(&root));
        proxy.reload(|| files.replace_routes(&routes));
    }
}

#[test]
fn sessions_outlive_a_reload_that_changes_the_certificate() {
    let root = Authority::new("root");
    let broker = Broker::mqtt();
    let ssls = || [ssl("1", "a.test", &root.issue(&["a.test"]), "")];
    let (port, files, mut proxy) = start(&broker, &ssls());
    for version in ["-tls1_2", "-tls1_3"] {
        let client = Visitor {
            port,
            folder: files.dir(),
            version,
        };
        client.get_session("a.test", &[]);
        let routes = tls_routes(&one_node(broker.addr()), &ssls());
        proxy.reload(|| files.replace_routes(&routes));
        let said = client.use_session("a.test");
        assert!(is_resumed(&said), "{version}: {said}");
    }
}

#[test]
fn two_proxies_with_one_key_file_resume_each_others_sessions() {
    let root = Authority::new("root");
    let broker = Broker::mqtt();
    let ssls = [ssl("1", "a.test", &root.issue(&["a.test"]), "")];
    let [port, second] = free_ports();
    let more = "mqtt_proxy: {tls: {ticket_key_file: tickets.key}}\n";
    let routes = tls_routes(&one_node(broker.addr()), &ssls);
    let files = Files::new(&tls_config(&[port], "", more), &routes);
    let other = Files::new(&tls_config(&[second], "", more), &routes);
    for folder in [&files, &other] {
        folder.replace("tickets.key", [7; 80]);
    }
    let (mut proxy, _other) = (
        Proxy::start(&files, &[port]),
        Proxy::start(&other, &[second]),
    );
    for version in ["-tls1_2", "-tls1_3"] {
        let at = |port| Visitor {
            port,
            folder: files.dir(),
            version,
        };
        at(port).get_session("a.test", &[]);
        let said = at(second).use_session("a.test");
        assert!(is_resumed(&said), "{version}: {said}");
    }
    // The keys rotate with the file: the old one still opens, then it is gone.
    for (keys, resumed) in [([[8; 80], [7; 80]].concat(), true), (vec![8; 80], false)] {
        let client = Visitor {
            port: second,
            folder: files.dir(),
            version: "-tls1_2",
        };
        client.get_session("a.test", &[]);
        let mark = proxy.mark();
        files.replace("tickets.key", keys);
        proxy.wait_for_log_after(mark, "tickets.key reloaded");
        let said = Visitor { port, ..client }.use_session("a.test");
        assert_eq!(is_resumed(&said), resumed, "{said}");
    }
    let mark = proxy.mark();
    files.replace("tickets.key", [9; 79]);
    proxy.wait_for_log_after(mark, "79 bytes are no ticket keys");
}
