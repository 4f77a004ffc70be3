//! TLS toward brokers: one context for each upstream, built with the table, and the sessions that
//! its brokers gave it.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use openssl::error::ErrorStack;
use openssl::ex_data::Index;
use openssl::ssl::{
    Ssl, SslContext, SslMethod, SslSession, SslSessionCacheMode, SslVerifyMode, SslVersion,
};
use openssl::x509::X509VerifyResult;
use tokio::net::TcpStream;

use super::link::TlsStream;
use super::records::keylog;
use super::server::{certificate, common, reason};
use super::session::HandshakeError;
use crate::config::resource::credentials::CertificatePair;
use crate::config::resource::upstream::{ServerName, UpstreamTls};
use crate::config::settings::RecordLayer;
use crate::ffi::openssl as ffi;

/// The server name that APISIX sends for a client that came without TLS.
pub const PLACEHOLDER: &str = "apisix_backend";
/// Sessions that an upstream keeps: one for each address and name.
const MAX_SESSIONS: usize = 1024;

/// Whom a session belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Peer {
    address: SocketAddr,
    /// The server name that was sent.
    sent: Option<String>,
    /// The name that its certificate was verified for: a resumed session is not verified again.
    verified: Option<String>,
}

/// The sessions of one context.
#[derive(Default)]
struct Sessions(Mutex<HashMap<Peer, SslSession>>);

impl Sessions {
    fn keep(&self, peer: &Peer, session: SslSession) {
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if sessions.len() >= MAX_SESSIONS && !sessions.contains_key(peer) {
            sessions.clear();
        }
        sessions.insert(peer.clone(), session);
    }

    fn of(&self, peer: &Peer) -> Option<SslSession> {
        let sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.get(peer).cloned()
    }
}

/// Why an upstream cannot speak TLS.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ClientTlsError {
    /// `ssl_trusted_certificate` cannot be read.
    #[error("trusted certificates {path}: {error}")]
    Trusted {
        /// The file.
        path: String,
        /// Why not.
        error: String,
    },
    /// The client certificate that is named does not exist.
    #[error("failed to find upstream ssl object for client_cert_id: {0}")]
    NoCertificate(String),
    /// OpenSSL takes something of it not.
    #[error("OpenSSL: {0}")]
    OpenSsl(&'static str),
}

impl From<ErrorStack> for ClientTlsError {
    fn from(error: ErrorStack) -> Self {
        ClientTlsError::OpenSsl(reason(&error))
    }
}

/// How an upstream speaks TLS to its nodes.
pub struct ClientTls {
    context: SslContext,
    verify: bool,
    name: ServerName,
    sessions: Arc<Sessions>,
}

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("ClientTls")
            .field("verify", &self.verify)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl ClientTls {
    /// Builds the context of an upstream. `identity` is its client certificate, `trusted` the file
    /// of authorities where the upstream names none; without one those of the system are trusted.
    /// `layer` does the records of its established connections.
    ///
    /// # Errors
    /// See [`ClientTlsError`].
    pub fn build(
        config: &UpstreamTls,
        identity: Option<&CertificatePair>,
        trusted: Option<&Path>,
        layer: RecordLayer,
    ) -> Result<Self, ClientTlsError> {
        let mut builder = match layer {
            RecordLayer::Own => keylog::client_context()?,
            RecordLayer::OpenSsl => SslContext::builder(SslMethod::tls_client())?,
        };
        common(&mut builder);
        builder.set_min_proto_version(Some(SslVersion::TLS1_2))?;
        if let Some(identity) = identity {
            certificate(&mut builder, identity)?;
        }
        if config.verify {
            builder.set_verify(SslVerifyMode::PEER);
            match (&config.ca, trusted) {
                (Some(authorities), _) => {
                    for authority in authorities.certificates() {
                        builder.cert_store_mut().add_cert(authority.clone())?;
                    }
                }
                (None, Some(path)) => {
                    builder
                        .set_ca_file(path)
                        .map_err(|error| ClientTlsError::Trusted {
                            path: path.display().to_string(),
                            error: reason(&error).to_owned(),
                        })?;
                }
                (None, None) => builder.set_default_verify_paths()?,
            }
        } else {
            builder.set_verify(SslVerifyMode::NONE);
        }
        let sessions: Arc<Sessions> = Arc::default();
        let (kept, index) = (sessions.clone(), index()?);
        builder
            .set_session_cache_mode(SslSessionCacheMode::CLIENT | SslSessionCacheMode::NO_INTERNAL);
        builder.set_new_session_callback(move |ssl, session| {
            if let Some(peer) = ssl.ex_data(index) {
                kept.keep(peer, session);
            }
        });
        Ok(ClientTls {
            context: builder.build(),
            verify: config.verify,
            name: config.name.clone(),
            sessions,
        })
    }

    /// Shakes hands with the node `host` at `address`; `client` is the server name that the client
    /// itself asked for.
    ///
    /// # Errors
    /// Why not; the connection counts as one that could not be made.
    pub async fn handshake(
        &self,
        socket: TcpStream,
        address: SocketAddr,
        host: &str,
        client: Option<&str>,
    ) -> io::Result<TlsStream> {
        let (sent, verified) = match (&self.name, client) {
            (ServerName::Client, Some(client)) => (client, client),
            (ServerName::Client, None) => (PLACEHOLDER, host),
            (ServerName::Node, _) => (host, host),
            (ServerName::Fixed(name), _) => (name.as_str(), name.as_str()),
        };
        // An address is no server name [RFC 6066 §3].
        let is_name = sent.parse::<IpAddr>().is_err();
        let peer = Peer {
            address,
            sent: is_name.then(|| sent.to_owned()),
            verified: self.verify.then(|| verified.to_owned()),
        };
        let ssl = self.prepare(&peer).map_err(io::Error::other)?;
        let mut stream = TlsStream::connecting(socket, ssl)?;
        match stream.handshake().await {
            Ok(()) => Ok(stream),
            Err(error) => Err(self.explain(&error, &stream, verified)),
        }
    }

    fn prepare(&self, peer: &Peer) -> Result<Ssl, ErrorStack> {
        let mut ssl = Ssl::new(&self.context)?;
        if let Some(name) = &peer.sent {
            ssl.set_hostname(name)?;
        }
        if let Some(verified) = &peer.verified {
            match verified.parse::<IpAddr>() {
                Ok(address) => ssl.param_mut().set_ip(address)?,
                Err(_) => ssl.param_mut().set_host(verified)?,
            }
        }
        if let Some(session) = self.sessions.of(peer) {
            ffi::offer_session(&mut ssl, &session)?;
        }
        ssl.set_ex_data(index()?, peer.clone());
        Ok(ssl)
    }

    fn explain(&self, error: &HandshakeError, stream: &TlsStream, verified: &str) -> io::Error {
        let result = stream.ssl().map(|ssl| ssl.verify_result());
        if self.verify
            && let Some(result) = result.filter(|result| *result != X509VerifyResult::OK)
        {
            let why = result.error_string();
            return io::Error::other(format!(
                "TLS handshake: certificate for {}: {why}",
                verified.escape_default()
            ));
        }
        let why = match error {
            HandshakeError::OpenSsl(stack) => reason(stack),
            HandshakeError::Left => "the broker closed the connection",
        };
        io::Error::other(format!("TLS handshake: {why}"))
    }
}

fn index() -> Result<Index<Ssl, Peer>, ErrorStack> {
    static INDEX: OnceLock<Index<Ssl, Peer>> = OnceLock::new();
    if let Some(index) = INDEX.get() {
        return Ok(*index);
    }
    let fresh = Ssl::new_ex_index()?;
    Ok(*INDEX.get_or_init(|| fresh))
}
