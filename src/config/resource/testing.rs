//! For the tests of objects: judge and build one.

use std::path::Path;

use openssl::asn1::Asn1Time;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::PKey;
use openssl::x509::{X509, X509NameBuilder};

use super::credentials::Credentials;
use super::read::Context;
use crate::config::diagnostic::{At, Problems, Severity};
use crate::config::document::{Node, parse_yaml};
use crate::config::schema::{Checker, Object};

/// An object and what was told about it, each as `path: message`, warnings with `warning: ` before.
pub struct Judged<T> {
    pub value: T,
    pub messages: Vec<String>,
}

impl<T> Judged<T> {
    /// Judges YAML text as the object at path `x`; all stream plugins are listed but prometheus.
    pub fn new(
        text: &str,
        table: &'static Object,
        build: impl FnOnce(&Node, String, &At<'_>, &mut Context<'_>) -> T,
    ) -> Self {
        let node = parse_yaml(text, None).unwrap().root;
        let mut problems = Problems::new(Path::new("test.yaml"));
        let at = At::Root.key("x");
        Checker::new(&mut problems).object(&node, table, &at, false);
        let plugins = crate::config::settings::DEFAULT_STREAM_PLUGINS.map(str::to_string);
        let mut context = Context {
            problems: &mut problems,
            plugins: &plugins,
            env: &|_| None,
            credentials: Credentials::default(),
        };
        let value = build(&node, "id".to_string(), &at, &mut context);
        let messages = problems
            .finish()
            .into_iter()
            .map(|found| {
                let kind = match found.severity {
                    Severity::Error => "",
                    Severity::Warning => "warning: ",
                };
                format!("{kind}{}: {}", found.path, found.message)
            })
            .collect();
        Judged { value, messages }
    }
}

/// A self-signed certificate and its key, PEM.
pub fn pair() -> (String, String) {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
    let mut name = X509NameBuilder::new().unwrap();
    name.append_entry_by_text("CN", "broker.test").unwrap();
    let name = name.build();
    let mut builder = X509::builder().unwrap();
    builder.set_subject_name(&name).unwrap();
    builder.set_issuer_name(&name).unwrap();
    builder.set_pubkey(&key).unwrap();
    builder
        .set_not_before(&Asn1Time::days_from_now(0).unwrap())
        .unwrap();
    builder
        .set_not_after(&Asn1Time::days_from_now(1).unwrap())
        .unwrap();
    builder.sign(&key, MessageDigest::sha256()).unwrap();
    let cert = builder.build().to_pem().unwrap();
    let key = key.private_key_to_pem_pkcs8().unwrap();
    (
        String::from_utf8(cert).unwrap(),
        String::from_utf8(key).unwrap(),
    )
}
