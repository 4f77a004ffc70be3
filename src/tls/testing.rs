//! What the tests of both TLS and the relay need: contexts of two sides that trust each other.

use openssl::asn1::Asn1Time;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{SslContext, SslContextBuilder, SslMethod, SslVersion};
use openssl::x509::{X509, X509NameBuilder};

use super::server::common;

/// A key and a certificate that it has signed itself.
pub fn certificate() -> (X509, PKey<Private>) {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
    (certify(&key), key)
}

/// A certificate that this key has signed itself.
pub fn certify(key: &PKey<Private>) -> X509 {
    let mut name = X509NameBuilder::new().unwrap();
    name.append_entry_by_text("CN", "localhost").unwrap();
    let name = name.build();
    let mut certificate = X509::builder().unwrap();
    certificate.set_version(2).unwrap();
    certificate.set_subject_name(&name).unwrap();
    certificate.set_issuer_name(&name).unwrap();
    certificate.set_pubkey(key).unwrap();
    let from = Asn1Time::days_from_now(0).unwrap();
    let until = Asn1Time::days_from_now(1).unwrap();
    certificate.set_not_before(&from).unwrap();
    certificate.set_not_after(&until).unwrap();
    certificate.sign(key, MessageDigest::sha256()).unwrap();
    certificate.build()
}

/// A server's context with a certificate of its own, of these protocol versions only.
pub fn server(version: SslVersion, more: impl FnOnce(&mut SslContextBuilder)) -> SslContext {
    let builder = SslContext::builder(SslMethod::tls_server()).unwrap();
    server_from(builder, version, more)
}

/// The same, begun by somebody else.
pub fn server_from(
    mut builder: SslContextBuilder,
    version: SslVersion,
    more: impl FnOnce(&mut SslContextBuilder),
) -> SslContext {
    let (certificate, key) = certificate();
    common(&mut builder);
    limit(&mut builder, version);
    builder.set_certificate(&certificate).unwrap();
    builder.set_private_key(&key).unwrap();
    more(&mut builder);
    builder.build()
}

/// A client's context that takes any certificate.
pub fn client(version: SslVersion, more: impl FnOnce(&mut SslContextBuilder)) -> SslContext {
    let builder = SslContext::builder(SslMethod::tls_client()).unwrap();
    client_from(builder, version, more)
}

/// The same, begun by somebody else.
pub fn client_from(
    mut builder: SslContextBuilder,
    version: SslVersion,
    more: impl FnOnce(&mut SslContextBuilder),
) -> SslContext {
    common(&mut builder);
    limit(&mut builder, version);
    more(&mut builder);
    builder.build()
}

fn limit(builder: &mut SslContextBuilder, version: SslVersion) {
    builder.set_min_proto_version(Some(version)).unwrap();
    builder.set_max_proto_version(Some(version)).unwrap();
}
