//! Certificates for clients: one OpenSSL context for each `ssl` object, found by server name.
//!
//! A context is built when its object is first loaded and kept for as long as the object stays
//! equal, across reloads. A connection begins in the context of its name (see
//! [`super::client_hello`]), so certificate, versions, ciphers and client verification are all
//! that context's own.
//!
//! Tickets of all contexts have the same keys. Each context has a session id context that hashes
//! its names and its client verification, lists and all; OpenSSL takes no session back under
//! another one, in TLS 1.2 and 1.3 alike. Without it, a session of a name that asks for no
//! certificate could be resumed under one that does.

use std::collections::HashMap;
use std::sync::Arc;

use openssl::error::ErrorStack;
use openssl::hash::{Hasher, MessageDigest};
use openssl::ssl::{
    SslContext, SslContextBuilder, SslMethod, SslMode, SslOptions, SslSessionCacheMode,
    SslVerifyMode, SslVersion,
};
use openssl::stack::Stack;
use openssl::x509::X509Name;
use openssl::x509::verify::X509VerifyFlags;

use super::names::Names;
use super::records::keylog;
use super::tickets::TicketKeys;
use crate::config::resource::credentials::CertificatePair;
use crate::config::resource::ssl::{ClientVerification, Ssl, SslKind, TlsVersion};
use crate::config::settings::{RecordLayer, TlsSettings};
use crate::ffi::openssl as ffi;

/// Ciphers of TLS 1.2 and before unless `mqtt_proxy.tls.ciphers` names others: Mozilla's
/// intermediate list without finite-field Diffie-Hellman.
pub const DEFAULT_CIPHERS: &str = "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:\
     ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:\
     ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305";

/// An `ssl` object as it is served.
pub struct Served {
    config: Arc<Ssl>,
    context: SslContext,
}

impl Served {
    /// The id of the object.
    pub fn id(&self) -> &str {
        &self.config.id
    }

    /// The context in which its connections begin.
    pub fn context(&self) -> &SslContext {
        &self.context
    }
}

impl std::fmt::Debug for Served {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("Served").field(&self.id()).finish()
    }
}

/// All certificates of one load.
#[derive(Debug, Default)]
pub struct Certificates {
    names: Names<Arc<Served>>,
    by_id: HashMap<String, Arc<Served>>,
}

impl Certificates {
    /// Builds contexts for the `ssl` objects that are served (`type: server`, `status: 1`). Those
    /// of `previous` are kept where their object is the same.
    pub fn build(
        ssls: &[Arc<Ssl>],
        settings: &TlsSettings,
        tickets: &Arc<TicketKeys>,
        previous: &Certificates,
    ) -> Self {
        let mut certificates = Certificates::default();
        let served = ssls
            .iter()
            .filter(|ssl| ssl.enabled && ssl.kind == SslKind::Server);
        for ssl in served {
            let known = previous.by_id.get(&ssl.id);
            let served = match known.filter(|known| known.config == *ssl) {
                Some(same) => same.clone(),
                None => match context(ssl, settings, tickets) {
                    Ok(context) => Arc::new(Served {
                        config: ssl.clone(),
                        context,
                    }),
                    Err(error) => {
                        log::error!("ssl {} is not served: {}", ssl.id, reason(&error));
                        continue;
                    }
                },
            };
            for name in &ssl.snis {
                certificates.names.add(name, served.clone());
            }
            certificates.by_id.insert(ssl.id.clone(), served);
        }
        certificates
    }

    /// The object for a server name in lower case without a trailing dot.
    pub fn find(&self, name: &str) -> Option<&Arc<Served>> {
        self.names.find(name)
    }
}

/// OpenSSL's reason in words, never data.
pub(super) fn reason(error: &ErrorStack) -> &'static str {
    let first = error.errors().first();
    first
        .and_then(openssl::error::Error::reason)
        .unwrap_or("OpenSSL gave no reason")
}

fn context(
    ssl: &Ssl,
    settings: &TlsSettings,
    tickets: &Arc<TicketKeys>,
) -> Result<SslContext, ErrorStack> {
    let mut builder = match settings.record_layer {
        RecordLayer::Own => keylog::server_context()?,
        RecordLayer::OpenSsl => SslContext::builder(SslMethod::tls_server())?,
    };
    common(&mut builder);
    builder.set_options(SslOptions::NO_RENEGOTIATION);
    builder.set_session_cache_mode(SslSessionCacheMode::OFF);
    // One ticket is what a device that reconnects needs; OpenSSL would send two.
    builder.set_num_tickets(1)?;
    tickets.serve(&mut builder)?;
    versions(&mut builder, &ssl.ssl_protocols)?;
    let ciphers = settings.ciphers.as_deref();
    builder.set_cipher_list(ciphers.unwrap_or(DEFAULT_CIPHERS))?;
    if let Some(suites) = &settings.ciphersuites {
        builder.set_ciphersuites(suites)?;
    }
    for pair in &ssl.certs {
        certificate(&mut builder, pair)?;
    }
    let mut policy = Hasher::new(MessageDigest::sha256())?;
    for name in &ssl.snis {
        policy.update(name.as_bytes())?;
        policy.update(b"\n")?;
    }
    if let Some(client) = &ssl.client {
        verify_clients(&mut builder, client)?;
        policy.update(&client.depth.to_be_bytes())?;
        policy.update(client.ca.digest())?;
        if let Some(crl) = &client.crl {
            policy.update(crl.digest())?;
        }
    }
    builder.set_session_id_context(&policy.finish()?)?;
    Ok(builder.build())
}

/// What contexts of both sides have in common.
pub(super) fn common(builder: &mut SslContextBuilder) {
    // An idle connection holds no record buffers; writes may be partial and retried from another
    // place, as those of a relay are. The chain is what the configuration says and no more.
    builder.set_mode(
        SslMode::AUTO_RETRY
            | SslMode::ACCEPT_MOVING_WRITE_BUFFER
            | SslMode::ENABLE_PARTIAL_WRITE
            | SslMode::RELEASE_BUFFERS
            | SslMode::NO_AUTO_CHAIN,
    );
    // Devices close their sockets without a close_notify. MQTT knows its own packets' ends, and
    // what is relayed is an end of the stream either way.
    builder.set_options(
        SslOptions::NO_COMPRESSION | SslOptions::NO_SSLV3 | SslOptions::IGNORE_UNEXPECTED_EOF,
    );
}

/// Installs a certificate chain and its key beside those of other types that are there.
pub(super) fn certificate(
    builder: &mut SslContextBuilder,
    pair: &CertificatePair,
) -> Result<(), ErrorStack> {
    if let Some((leaf, intermediates)) = pair.chain().split_first() {
        builder.set_certificate(leaf)?;
        for intermediate in intermediates {
            ffi::add_chain_certificate(builder, intermediate)?;
        }
    }
    builder.set_private_key(pair.key())
}

fn versions(builder: &mut SslContextBuilder, allowed: &[TlsVersion]) -> Result<(), ErrorStack> {
    let default = [TlsVersion::V1_2, TlsVersion::V1_3];
    let allowed = match allowed.is_empty() {
        true => &default,
        false => allowed,
    };
    let openssl = |version: &TlsVersion| match version {
        TlsVersion::V1_1 => SslVersion::TLS1_1,
        TlsVersion::V1_2 => SslVersion::TLS1_2,
        TlsVersion::V1_3 => SslVersion::TLS1_3,
    };
    builder.set_min_proto_version(allowed.iter().min().map(openssl))?;
    builder.set_max_proto_version(allowed.iter().max().map(openssl))?;
    if !allowed.contains(&TlsVersion::V1_2) {
        builder.set_options(SslOptions::NO_TLSV1_2);
    }
    if allowed.contains(&TlsVersion::V1_1) {
        // Signatures of TLS 1.1 are SHA-1, which OpenSSL 3 allows on this level only.
        builder.set_security_level(0);
    }
    Ok(())
}

fn verify_clients(
    builder: &mut SslContextBuilder,
    client: &ClientVerification,
) -> Result<(), ErrorStack> {
    let mut names: Stack<X509Name> = Stack::new()?;
    for authority in client.ca.certificates() {
        names.push(authority.subject_name().to_owned()?)?;
        builder.cert_store_mut().add_cert(authority.clone())?;
    }
    builder.set_client_ca_list(names);
    builder.set_verify_depth(client.depth);
    builder.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
    if let Some(crl) = &client.crl {
        for list in crl.lists() {
            ffi::add_crl(builder, list)?;
        }
        // As nginx: every certificate of the chain needs a list of its authority.
        builder
            .verify_param_mut()
            .set_flags(X509VerifyFlags::CRL_CHECK | X509VerifyFlags::CRL_CHECK_ALL)?;
    }
    Ok(())
}
