//! TLS of the load generator: certificates for the proxies, and clients.
//!
//! A client's TLS lives between two buffers in memory. Reading and writing the socket is up to the
//! caller, who can so take many records with one system call: the load is to cost less than what
//! it measures.

use std::io::{self, Read, Write};
use std::sync::OnceLock;

use foreign_types::ForeignTypeRef;
use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::ssl::{
    ErrorCode, ShutdownState, Ssl, SslContext, SslMethod, SslMode, SslSession, SslSessionCacheMode,
    SslStream, SslVerifyMode, SslVersion,
};
use openssl::x509::extension::SubjectAlternativeName;
use openssl::x509::{X509, X509NameBuilder};
use openssl_sys::SSL_SESSION;

/// The server name of the certificates.
pub const SERVER_NAME: &str = "bench.test";
/// What the clients offer: one version, one cipher suite, one group, so that every proxy does the
/// same work.
const CIPHER_SUITE: &str = "TLS_AES_128_GCM_SHA256";
const GROUP: &str = "X25519";
/// Records are made in advance until this much waits for the socket.
const AHEAD: usize = 256 * 1024;

/// The key of the proxy's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Certificate {
    /// ECDSA on P-256.
    Ecdsa,
    /// RSA of 2,048 bits.
    Rsa,
}

/// A certificate and its key, PEM.
#[derive(Debug)]
pub struct Identity {
    pub cert: String,
    pub key: String,
}

impl Certificate {
    /// The certificate, which signs itself; made when it is first asked for.
    pub fn identity(self) -> io::Result<&'static Identity> {
        static ECDSA: OnceLock<Identity> = OnceLock::new();
        static RSA: OnceLock<Identity> = OnceLock::new();
        let made = match self {
            Certificate::Ecdsa => &ECDSA,
            Certificate::Rsa => &RSA,
        };
        match made.get() {
            Some(identity) => Ok(identity),
            None => {
                let identity = self.make(1)?;
                Ok(made.get_or_init(|| identity))
            }
        }
    }

    /// Makes a certificate that signs itself.
    pub fn make(self, serial: u32) -> Result<Identity, ErrorStack> {
        let key: PKey<Private> = match self {
            Certificate::Ecdsa => {
                let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
                PKey::from_ec_key(EcKey::generate(&group)?)?
            }
            Certificate::Rsa => PKey::from_rsa(Rsa::generate(2048)?)?,
        };
        let mut name = X509NameBuilder::new()?;
        name.append_entry_by_text("CN", SERVER_NAME)?;
        let name = name.build();
        let mut builder = X509::builder()?;
        builder.set_version(2)?;
        let serial = BigNum::from_u32(serial)?.to_asn1_integer()?;
        builder.set_serial_number(&serial)?;
        builder.set_subject_name(&name)?;
        builder.set_issuer_name(&name)?;
        builder.set_pubkey(&key)?;
        let [yesterday, later] = [
            Asn1Time::from_unix(now() - 86_400)?,
            Asn1Time::days_from_now(90)?,
        ];
        builder.set_not_before(&yesterday)?;
        builder.set_not_after(&later)?;
        let names = SubjectAlternativeName::new()
            .dns(SERVER_NAME)
            .build(&builder.x509v3_context(None, None))?;
        builder.append_extension(names)?;
        builder.sign(&key, MessageDigest::sha256())?;
        let text = |pem: Vec<u8>| String::from_utf8_lossy(&pem).into_owned();
        Ok(Identity {
            cert: text(builder.build().to_pem()?),
            key: text(key.private_key_to_pem_pkcs8()?),
        })
    }
}

fn now() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs() as i64)
}

/// What all TLS clients of a run have in common.
pub struct Connector {
    context: SslContext,
    /// Sessions to resume, in turns; none for full handshakes.
    pub sessions: Vec<SslSession>,
    turn: usize,
    /// Handshakes that were completed, and those of them that resumed a session.
    pub handshakes: u64,
    pub resumed: u64,
    /// Connections that got a new ticket.
    pub tickets: u64,
}

impl Connector {
    /// Clients of TLS 1.3 with full handshakes. They take any certificate: whom they reach is
    /// checked by the client ids that the brokers see.
    pub fn new() -> Result<Self, ErrorStack> {
        let mut builder = SslContext::builder(SslMethod::tls_client())?;
        builder.set_min_proto_version(Some(SslVersion::TLS1_3))?;
        builder.set_max_proto_version(Some(SslVersion::TLS1_3))?;
        builder.set_ciphersuites(CIPHER_SUITE)?;
        builder.set_groups_list(GROUP)?;
        builder.set_verify(SslVerifyMode::NONE);
        // With a cache OpenSSL would let each session be resumed once only.
        builder.set_session_cache_mode(SslSessionCacheMode::OFF);
        builder.set_read_ahead(true);
        builder.set_mode(
            SslMode::RELEASE_BUFFERS
                | SslMode::ENABLE_PARTIAL_WRITE
                | SslMode::ACCEPT_MOVING_WRITE_BUFFER,
        );
        Ok(Connector {
            context: builder.build(),
            sessions: Vec::new(),
            turn: 0,
            handshakes: 0,
            resumed: 0,
            tickets: 0,
        })
    }

    /// OpenSSL's part of one more client.
    pub fn ssl(&mut self) -> Result<Ssl, ErrorStack> {
        let mut ssl = Ssl::new(&self.context)?;
        ssl.set_hostname(SERVER_NAME)?;
        if let Some(session) = self.sessions.get(self.turn) {
            // SAFETY: no session comes from another context than ours, which is the condition.
            unsafe { ssl.set_session(session)? };
            self.turn = (self.turn + 1) % self.sessions.len();
        }
        Ok(ssl)
    }

    /// TLS of one more client.
    pub fn client(&mut self) -> Result<Tls, ErrorStack> {
        let ssl = self.ssl()?;
        Ok(Tls {
            began_with: ssl.session().map(ForeignTypeRef::as_ptr),
            stream: SslStream::new(ssl, Wire::default())?,
            open: false,
        })
    }

    /// Counts a handshake that was completed.
    pub fn count(&mut self, client: &Tls) {
        self.handshakes += 1;
        self.resumed += u64::from(client.stream.ssl().session_reused());
    }

    /// Counts the ticket of a connection that ends.
    pub fn count_ticket(&mut self, client: &Tls) {
        self.tickets += u64::from(client.has_new_ticket());
    }
}

/// TLS of one client.
pub struct Tls {
    stream: SslStream<Wire>,
    open: bool,
    /// The session that it began with, by its place.
    began_with: Option<*mut SSL_SESSION>,
}

impl Tls {
    /// Takes bytes that came.
    pub fn receive(&mut self, bytes: &[u8]) {
        let wire = self.stream.get_mut();
        if wire.taken == wire.incoming.len() {
            wire.incoming.clear();
            wire.taken = 0;
        }
        wire.incoming.extend_from_slice(bytes);
    }

    /// Whether the handshake is complete.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Goes on with the handshake; true when it is complete now.
    pub fn handshake(&mut self) -> io::Result<bool> {
        match self.stream.connect() {
            Ok(()) => {
                self.open = true;
                Ok(true)
            }
            Err(error) if error.code() == ErrorCode::WANT_READ => Ok(false),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// The next bytes of plain text, or none before more has come; 0 is the end.
    pub fn read(&mut self, plain: &mut [u8]) -> io::Result<Option<usize>> {
        match self.stream.ssl_read(plain) {
            Ok(count) => Ok(Some(count)),
            Err(error) if error.code() == ErrorCode::WANT_READ => Ok(None),
            Err(error) if error.code() == ErrorCode::ZERO_RETURN => Ok(Some(0)),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// Makes a record of the start of `plain`.
    pub fn write(&mut self, plain: &[u8]) -> io::Result<usize> {
        self.stream.ssl_write(plain).map_err(io::Error::other)
    }

    /// Whether another record may be made before the socket takes some.
    pub fn has_room(&self) -> bool {
        self.stream.get_ref().waiting().len() < AHEAD
    }

    /// What waits for the socket.
    pub fn waiting(&self) -> &[u8] {
        self.stream.get_ref().waiting()
    }

    /// The socket took `count` bytes.
    pub fn sent(&mut self, count: usize) {
        let wire = self.stream.get_mut();
        wire.sent += count;
        if wire.sent == wire.outgoing.len() || wire.sent >= AHEAD {
            wire.outgoing.drain(..wire.sent);
            wire.sent = 0;
        }
    }

    /// The session, to be resumed later. Its ticket has come when the proxy has sent anything.
    pub fn session(&self) -> Option<SslSession> {
        self.stream.ssl().session().map(ToOwned::to_owned)
    }

    /// Whether a ticket came. It makes a new session of one that was resumed, and gives a new one
    /// its id.
    fn has_new_ticket(&self) -> bool {
        self.stream.ssl().session().is_some_and(|session| {
            Some(session.as_ptr()) != self.began_with && !session.id().is_empty()
        })
    }

    /// Says that nothing more comes: makes a close_notify.
    pub fn end(&mut self) {
        if !self.open {
            return;
        }
        // What fails here has failed the connection before.
        let _ = self.stream.shutdown();
        // Otherwise OpenSSL holds a session that ends without the peer's close_notify for broken.
        let both = ShutdownState::SENT | ShutdownState::RECEIVED;
        self.stream.set_shutdown(both);
    }
}

/// The two directions of a socket, in memory.
#[derive(Default)]
struct Wire {
    incoming: Vec<u8>,
    taken: usize,
    outgoing: Vec<u8>,
    sent: usize,
}

impl Wire {
    fn waiting(&self) -> &[u8] {
        &self.outgoing[self.sent..]
    }
}

impl Read for Wire {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let waiting = &self.incoming[self.taken..];
        if waiting.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = waiting.len().min(into.len());
        into[..count].copy_from_slice(&waiting[..count]);
        self.taken += count;
        Ok(count)
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.outgoing.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
