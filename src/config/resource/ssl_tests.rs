use openssl::pkey::{PKey, Private};
use openssl::x509::X509;

use super::*;
use crate::config::resource::credentials::Credentials;
use crate::config::resource::testing::{Judged, pair};
use crate::config::schema::ssl::SSL;

fn parsed(key: &str) -> PKey<Private> {
    PKey::private_key_from_pem(key.as_bytes()).unwrap()
}

/// A YAML block scalar.
fn block(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(|line| format!("    {line}")).collect();
    format!("|\n{}\n", lines.join("\n"))
}

fn judge(text: &str) -> Judged<Ssl> {
    Judged::new(text, &SSL, build)
}

#[test]
fn a_server_certificate() {
    let (cert, key) = pair();
    let judged = judge(&format!(
        "snis: [A.test, '*.b.test']\nstatus: 0\nssl_protocols: [TLSv1.3, TLSv1.2]\ncert: {}key: {}client:\n  depth: 2\n  ca: {}",
        block(&cert),
        block(&key),
        block(&cert)
    ));
    assert_eq!(judged.messages, Vec::<String>::new());
    let ssl = judged.value;
    assert_eq!(ssl.kind, SslKind::Server);
    assert_eq!(ssl.snis, ["a.test", "*.b.test"]);
    assert!(!ssl.enabled);
    assert_eq!(ssl.ssl_protocols, [TlsVersion::V1_2, TlsVersion::V1_3]);
    assert_eq!(ssl.client.as_ref().unwrap().depth, 2);
    assert_eq!(ssl.certs.len(), 1);
    assert!(ssl.certs[0].key().public_eq(&parsed(&key)));
    assert_eq!(ssl.certs[0].chain().len(), 1);
    let shown = format!("{ssl:?}");
    let pair = format!("certs: [{:?}]", ssl.certs[0]);
    assert!(shown.contains(&pair) && pair.len() < 60, "{shown}");
}

#[test]
fn several_pairs_and_a_client_certificate() {
    let ((cert, key), (more_cert, more_key)) = (pair(), pair());
    let item = |text: &str| format!("\n  - {}", block(text));
    let judged = judge(&format!(
        "type: client\ncert: {}key: {}certs:{}keys:{}",
        block(&cert),
        block(&key),
        item(&more_cert),
        item(&more_key)
    ));
    assert_eq!(judged.messages, Vec::<String>::new());
    assert_eq!(judged.value.kind, SslKind::Client);
    assert_eq!(judged.value.certs.len(), 2);
    let judged = judge(&format!(
        "sni: a\ncert: {}key: {}certs:{}keys: []\n",
        block(&cert),
        block(&key),
        item(&more_cert)
    ));
    assert_eq!(
        judged.messages,
        ["x: mismatched number of certs and keys: 1 and 0"]
    );
}

#[test]
fn keys_must_belong_to_their_certificates_and_are_never_shown() {
    let ((cert, key), (_, other)) = (pair(), pair());
    let judged = judge(&format!(
        "sni: a\ncert: {}key: {}",
        block(&cert),
        block(&other)
    ));
    assert_eq!(
        judged.messages,
        ["x.key: the key does not belong to the certificate"]
    );
    // The two swapped, and what is no PEM at all.
    let judged = judge(&format!(
        "sni: a\ncert: {}key: {}",
        block(&key),
        block(&cert)
    ));
    assert_eq!(judged.messages.len(), 2, "{:?}", judged.messages);
    assert!(judged.messages[0].starts_with("x.cert: failed to parse cert: "));
    assert!(judged.messages[1].starts_with("x.key: failed to parse key: "));
    let secret: String = key.lines().nth(1).unwrap().to_string();
    assert!(!judged.messages.concat().contains(&secret));
    let judged = judge(&format!(
        "sni: a\ncert: {}\nkey: {}\n",
        "c".repeat(128),
        "hush".repeat(16)
    ));
    assert_eq!(
        judged.messages,
        [
            "x.cert: failed to parse cert: no PEM certificate in it",
            "x.key: failed to parse key: not PEM (keys encrypted with APISIX's data_encryption.keyring are not supported)",
        ]
    );
}

#[test]
fn an_encrypted_key_is_refused_without_asking() {
    let (cert, key) = pair();
    let key = PKey::private_key_from_pem(key.as_bytes()).unwrap();
    let sealed = key
        .private_key_to_pem_pkcs8_passphrase(openssl::symm::Cipher::aes_128_cbc(), b"pass")
        .unwrap();
    let sealed = String::from_utf8(sealed).unwrap();
    let judged = judge(&format!(
        "sni: a\ncert: {}key: {}",
        block(&cert),
        block(&sealed)
    ));
    assert_eq!(judged.messages.len(), 1);
    assert!(
        judged.messages[0].starts_with("x.key: failed to parse key: "),
        "{:?}",
        judged.messages
    );
}

#[test]
fn references_are_resolved() {
    let (cert, key) = pair();
    let env = |name: &str| match name {
        "CERT" => Some(cert.clone()),
        "KEY" => Some(key.clone()),
        _ => None,
    };
    let text = "{sni: a, cert: '$ENV://CERT', key: '$env://KEY'}";
    let node = crate::config::document::parse_yaml(text, None)
        .unwrap()
        .root;
    let mut problems = crate::config::diagnostic::Problems::new(std::path::Path::new("x"));
    let mut context = Context {
        problems: &mut problems,
        plugins: &[],
        env: &env,
        credentials: Credentials::default(),
    };
    let ssl = build(&node, "1".into(), &At::Root, &mut context);
    assert!(problems.is_empty());
    assert_eq!(
        ssl.certs[0].chain(),
        [X509::from_pem(cert.as_bytes()).unwrap()]
    );
    assert!(ssl.certs[0].key().public_eq(&parsed(&key)));
    let judged = judge("{sni: a, cert: '$env://NONE', key: '$secret://vault/1/k'}");
    assert_eq!(
        judged.messages,
        [
            "x.cert: environment variable \"NONE\" is not set",
            "x.key: \"$secret://vault/1/k\" is not supported: there are no secret managers here",
        ]
    );
}

#[test]
fn wrong_objects() {
    let fill = format!("cert: {}, key: {}", "c".repeat(128), "k".repeat(64));
    let errors = |text: &str| -> Vec<String> {
        let all = judge(text).messages;
        all.into_iter()
            .filter(|m| !m.contains("failed to parse"))
            .collect()
    };
    assert_eq!(errors(&format!("{{{fill}}}")), ["x: needs sni, or snis"]);
    assert_eq!(
        errors(&format!("{{type: client, {fill}}}")),
        Vec::<String>::new()
    );
    assert_eq!(
        errors(&format!("{{sni: a, snis: [b], {fill}}}")),
        ["x: takes only one of: sni; snis"]
    );
    assert_eq!(
        errors(&format!("{{sni: a, status: 2, {fill}}}")),
        ["x.status: unknown status 2 (one of 1, 0)"]
    );
    assert_eq!(
        errors(&format!("{{sni: a, ssl_protocols: [TLSv1], {fill}}}")),
        [
            "x.ssl_protocols[0]: unknown ssl_protocols \"TLSv1\"; did you mean \"TLSv1.1\"? (one of TLSv1.1, TLSv1.2, TLSv1.3)"
        ]
    );
    assert_eq!(
        errors(&format!("{{sni: a, name: b, {fill}}}")),
        ["x.name: unknown field \"name\""]
    );
    assert_eq!(
        errors("{sni: a, cert: short, key: hush}"),
        [
            "x.cert: cert is too short: 5 characters, at least 128",
            "x.key: key is too short: 4 characters, at least 64",
        ]
    );
    assert_eq!(
        errors(&format!("{{sni: a, client: {{}}, {fill}}}")),
        ["x.client: property \"ca\" is required"]
    );
    let ca = "a".repeat(128);
    assert_eq!(
        errors(&format!("{{sni: a, client: {{ca: {ca}}}, {fill}}}")),
        ["x.client.ca: failed to validate client_cert: no PEM certificate in it"]
    );
}
