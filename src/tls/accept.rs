//! The beginning of a client's TLS connection.

use std::time::Duration;

use openssl::ssl::{Ssl, SslContext, SslRef};
use openssl::x509::X509VerifyResult;

use super::client_hello::HelloError;
use super::session::{HandshakeError, Session};

/// Why a TLS connection does not come about.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// What came is no ClientHello.
    #[error(transparent)]
    Hello(#[from] HelloError),
    /// No server name, and no `fallback_sni`.
    #[error(
        "failed to find SNI: please check if the client requests via IP or uses an outdated protocol"
    )]
    NoName,
    /// No certificate for the name.
    #[error("failed to match any SSL certificate by SNI: {}", .0.escape_default())]
    UnknownName(String),
    /// The deadline passed.
    #[error("TLS handshake not complete within {0:?}")]
    Timeout(Duration),
    /// The client shows no certificate, or one that does not verify.
    #[error("client certificate: {0}")]
    Certificate(&'static str),
    /// The handshake failed otherwise.
    #[error("TLS handshake: {0}")]
    Handshake(&'static str),
}

impl TlsError {
    /// The label in logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            TlsError::Hello(_) => "tls_client_hello",
            TlsError::NoName => "tls_no_name",
            TlsError::UnknownName(_) => "tls_unknown_name",
            TlsError::Timeout(_) => "tls_timeout",
            TlsError::Certificate(_) => "tls_client_certificate",
            TlsError::Handshake(_) => "tls_handshake",
        }
    }

    /// The fatal alert that tells the client, where OpenSSL has not sent one itself: a record as
    /// [RFC 8446 §6] has it, in clear because there are no keys yet.
    pub fn alert(&self) -> Option<[u8; 7]> {
        let description = match self {
            TlsError::Hello(HelloError::NotTls(_)) => 10, // unexpected_message
            TlsError::Hello(HelloError::Malformed(_)) => 50, // decode_error
            TlsError::Hello(HelloError::TooLarge) => 50,
            TlsError::NoName => 109, // missing_extension [RFC 8446 §9.2]
            TlsError::UnknownName(_) => 112, // unrecognized_name [RFC 6066 §3]
            TlsError::Timeout(_) | TlsError::Certificate(_) | TlsError::Handshake(_) => {
                return None;
            }
        };
        Some([21, 3, 3, 0, 2, 2, description])
    }
}

/// How a ClientHello or a handshake can end short.
#[derive(Debug)]
pub enum Failed {
    /// The client is to be told, or has been.
    Refused(TlsError),
    /// The client went away.
    ClientLeft,
}

impl From<HelloError> for Failed {
    fn from(error: HelloError) -> Self {
        Failed::Refused(error.into())
    }
}

/// A session in `context` with a client of which `received` was read.
///
/// # Errors
/// When OpenSSL has no memory.
pub fn begin(context: &SslContext, received: Vec<u8>) -> Result<Session, TlsError> {
    let session = Ssl::new(context).and_then(|ssl| Session::accept(ssl, received));
    session.map_err(|_| TlsError::Handshake("out of memory"))
}

/// Why a handshake has failed; an alert of OpenSSL's is on its way where there is one.
pub fn judge(error: &HandshakeError, ssl: Option<&SslRef>) -> Failed {
    let HandshakeError::OpenSsl(stack) = error else {
        return Failed::ClientLeft;
    };
    let verified = ssl.map(|ssl| ssl.verify_result());
    if let Some(verified) = verified.filter(|verified| *verified != X509VerifyResult::OK) {
        return Failed::Refused(TlsError::Certificate(verified.error_string()));
    }
    Failed::Refused(match super::server::reason(stack) {
        "peer did not return a certificate" => TlsError::Certificate("the client shows none"),
        other => TlsError::Handshake(other),
    })
}
