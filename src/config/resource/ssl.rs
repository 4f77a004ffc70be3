//! Certificates.

use std::sync::Arc;

use super::credentials::{Authorities, CertificatePair, RevocationLists};
use super::pem::Part;
use super::read::{Context, snis};
use crate::config::diagnostic::{At, Origin};
use crate::config::document::Node;

/// One item of `ssls`.
#[derive(Debug, Clone, PartialEq)]
pub struct Ssl {
    /// The id as text; `arr_N` (N from 1) when the file gives none.
    pub id: String,
    /// For listeners, or as client certificate toward upstreams.
    pub kind: SslKind,
    /// Names it serves (`sni` or `snis`), in lower case without a trailing dot.
    pub snis: Vec<String>,
    /// `cert`/`key` first, then `certs`/`keys`; never empty. Each key belongs to its certificate;
    /// references to the environment are resolved.
    pub certs: Vec<Arc<CertificatePair>>,
    /// Ask clients for a certificate.
    pub client: Option<ClientVerification>,
    /// `status`: false = not served.
    pub enabled: bool,
    /// Versions allowed for these names; empty = the library's default.
    pub ssl_protocols: Vec<TlsVersion>,
    /// Where the object stands in the file; never part of equality.
    pub position: Origin,
}

/// `type` of an [`Ssl`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SslKind {
    /// Served to clients.
    #[default]
    Server,
    /// Shown to upstreams.
    Client,
}

/// `client` of an [`Ssl`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientVerification {
    /// Certificates that may sign client certificates.
    pub ca: Arc<Authorities>,
    /// Most intermediates between them, as OpenSSL counts; default 1.
    pub depth: u32,
    /// Revocation lists of these authorities.
    pub crl: Option<Arc<RevocationLists>>,
}

/// A TLS version in `ssl_protocols`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.1
    V1_1,
    /// TLS 1.2
    V1_2,
    /// TLS 1.3
    V1_3,
}

/// Builds the object from an item that its table has judged.
pub(crate) fn build(node: &Node, id_text: String, at: &At<'_>, context: &mut Context<'_>) -> Ssl {
    Ssl {
        id: id_text,
        kind: match node.get("type").and_then(Node::as_str) {
            Some("client") => SslKind::Client,
            _ => SslKind::Server,
        },
        snis: snis(node),
        certs: pairs(node, at, context),
        client: node
            .get("client")
            .and_then(|client| verification(client, &at.key("client"), context)),
        enabled: node.get("status").and_then(Node::as_i64) != Some(0),
        ssl_protocols: versions(node),
        position: Origin(node.position),
    }
}

fn versions(node: &Node) -> Vec<TlsVersion> {
    let written = node
        .get("ssl_protocols")
        .map(Node::items)
        .unwrap_or_default();
    let mut versions: Vec<TlsVersion> = written
        .iter()
        .filter_map(|version| match version.as_str()? {
            "TLSv1.1" => Some(TlsVersion::V1_1),
            "TLSv1.2" => Some(TlsVersion::V1_2),
            "TLSv1.3" => Some(TlsVersion::V1_3),
            _ => None,
        })
        .collect();
    versions.sort_unstable();
    versions
}

/// `cert`/`key`, then `certs`/`keys`, with references resolved.
fn pairs(node: &Node, at: &At<'_>, context: &mut Context<'_>) -> Vec<Arc<CertificatePair>> {
    let mut out = Vec::new();
    let (at_cert, at_key) = (at.key("cert"), at.key("key"));
    if let (Some(cert), Some(key)) = (node.get("cert"), node.get("key")) {
        out.extend(pair((cert, &at_cert), (key, &at_key), context));
    }
    let certs = node.get("certs").map(Node::items).unwrap_or_default();
    let keys = node.get("keys").map(Node::items).unwrap_or_default();
    let (at_certs, at_keys) = (at.key("certs"), at.key("keys"));
    if certs.len() != keys.len() {
        let message = format!(
            "mismatched number of certs and keys: {} and {}",
            certs.len(),
            keys.len()
        );
        context.error(node.position, at, message);
    }
    for (index, (cert, key)) in certs.iter().zip(keys).enumerate() {
        let (at_cert, at_key) = (at_certs.index(index), at_keys.index(index));
        out.extend(pair((cert, &at_cert), (key, &at_key), context));
    }
    out
}

fn pair(
    (cert, at_cert): (&Node, &At<'_>),
    (key, at_key): (&Node, &At<'_>),
    context: &mut Context<'_>,
) -> Option<Arc<CertificatePair>> {
    let cert_text = resolved(cert, at_cert, context);
    let key_text = resolved(key, at_key, context);
    let problems = match context.credentials.pair(&cert_text?, &key_text?) {
        Ok(pair) => return Some(pair),
        Err(problems) => problems,
    };
    for (part, message) in problems {
        match part {
            Part::Cert => context.error(cert.position, at_cert, message),
            Part::Key => context.error(key.position, at_key, message),
        }
    }
    None
}

/// The text, or what the reference in it stands for.
fn resolved(node: &Node, at: &At<'_>, context: &mut Context<'_>) -> Option<String> {
    match context.resolve(node.as_str()?) {
        Ok(text) => Some(text),
        Err(message) => {
            context.error(node.position, at, message);
            None
        }
    }
}

fn verification(node: &Node, at: &At<'_>, context: &mut Context<'_>) -> Option<ClientVerification> {
    let written = node.get("ca")?;
    let at_ca = at.key("ca");
    let text = resolved(written, &at_ca, context)?;
    let ca = context.credentials.authorities(&text).map_err(|why| {
        let message = format!("failed to validate client_cert: {why}");
        context.error(written.position, &at_ca, message);
    });
    let crl = node.get("crl").and_then(|written| {
        let at_crl = at.key("crl");
        let text = resolved(written, &at_crl, context)?;
        let lists = context.credentials.revocation_lists(&text);
        let told = lists.map_err(|why| {
            let message = format!("failed to parse crl: {why}");
            context.error(written.position, &at_crl, message);
        });
        told.ok()
    });
    Some(ClientVerification {
        ca: ca.ok()?,
        depth: node
            .get("depth")
            .and_then(Node::as_i64)
            .and_then(|depth| u32::try_from(depth).ok())
            .unwrap_or(1),
        crl,
    })
}

#[cfg(test)]
#[path = "ssl_tests.rs"]
mod tests;
