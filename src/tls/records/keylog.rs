//! How the traffic secrets of a connection are had: this program derives them itself, for OpenSSL.
//! Where it may not, OpenSSL's key log writes them to the connection that they belong to, and nowhere
//! else.

use std::cell::RefCell;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use openssl::error::ErrorStack;
use openssl::ex_data::Index;
use openssl::ssl::{Ssl, SslContext, SslContextBuilder, SslMethod, SslRef};

use super::schedule::{Hash, MAX_HASH};
use crate::ffi::kdf::{self, Derivation};
use crate::ffi::openssl::{cleanse, index_once};

/// Marks a context whose connections get records of our own.
#[derive(Debug)]
struct Marked;

type ContextIndex = Index<SslContext, Marked>;
type LogIndex = Index<Ssl, KeyLog>;

/// One secret, overwritten when dropped.
#[derive(Clone)]
pub struct Secret {
    bytes: [u8; MAX_HASH],
    size: usize,
}

/// The application traffic secrets of TLS 1.3.
#[derive(Clone, Default)]
pub struct TrafficSecrets {
    /// The client's, if it has been logged.
    pub client: Option<Secret>,
    /// The server's.
    pub server: Option<Secret>,
}

/// Goes with a connection for as long as OpenSSL has it.
#[derive(Default)]
struct KeyLog(Mutex<TrafficSecrets>);

impl Drop for Secret {
    fn drop(&mut self) {
        cleanse(&mut self.bytes);
    }
}

impl Secret {
    fn of(bytes: &[u8]) -> Option<Self> {
        let mut secret = Secret {
            bytes: [0; MAX_HASH],
            size: bytes.len(),
        };
        secret.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(secret)
    }

    /// From what the key log has: hexadecimal digits.
    fn from_hex(text: &str) -> Option<Self> {
        let mut secret = Secret {
            bytes: [0; MAX_HASH],
            size: text.len() / 2,
        };
        let place = secret.bytes.get_mut(..secret.size)?;
        let (pairs, []) = text.as_bytes().as_chunks::<2>() else {
            return None;
        };
        let digit = |byte: u8| char::from(byte).to_digit(16);
        for (byte, [high, low]) in place.iter_mut().zip(pairs) {
            *byte = (digit(*high)? << 4 | digit(*low)?) as u8;
        }
        Some(secret)
    }

    /// The secret itself.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.size]
    }
}

fn context_index() -> Result<ContextIndex, ErrorStack> {
    static INDEX: OnceLock<ContextIndex> = OnceLock::new();
    index_once(&INDEX, SslContext::new_ex_index)
}

fn log_index() -> Result<LogIndex, ErrorStack> {
    static INDEX: OnceLock<LogIndex> = OnceLock::new();
    index_once(&INDEX, Ssl::new_ex_index)
}

/// What a connection that was prepared has kept.
fn log_of(ssl: &SslRef) -> Option<MutexGuard<'_, TrafficSecrets>> {
    let log = ssl.ex_data(log_index().ok()?)?;
    Some(log.0.lock().unwrap_or_else(PoisonError::into_inner))
}

fn mark(builder: &mut SslContextBuilder) -> Result<(), ErrorStack> {
    builder.set_ex_data(context_index()?, Marked);
    log_index()?;
    Ok(())
}

/// Has the connections of a context get records of our own.
///
/// # Errors
/// When OpenSSL has no memory.
pub fn use_own_records(builder: &mut SslContextBuilder) -> Result<(), ErrorStack> {
    mark(builder)?;
    builder.set_keylog_callback(note);
    Ok(())
}

/// A context of the server's side whose connections get records of our own. Where it can be had, it
/// derives its secrets by [`Hash::derive`], which costs a fraction of what OpenSSL's look-ups and its
/// key log do.
///
/// # Errors
/// When OpenSSL has no memory.
pub fn server_context() -> Result<SslContextBuilder, ErrorStack> {
    context(SslMethod::tls_server)
}

/// The same of the client's side.
///
/// # Errors
/// When OpenSSL has no memory.
pub fn client_context() -> Result<SslContextBuilder, ErrorStack> {
    context(SslMethod::tls_client)
}

fn context(method: fn() -> SslMethod) -> Result<SslContextBuilder, ErrorStack> {
    match kdf::context(method(), derive) {
        Some(mut builder) => {
            mark(&mut builder)?;
            Ok(builder)
        }
        None => {
            let mut builder = SslContext::builder(method())?;
            use_own_records(&mut builder)?;
            Ok(builder)
        }
    }
}

thread_local! {
    /// What is derived on this thread, while somebody wants to know.
    static DERIVED: RefCell<Option<TrafficSecrets>> = const { RefCell::new(None) };
}

fn derive(wanted: &Derivation<'_>, output: &mut [u8]) -> bool {
    let derived = Hash::derive(wanted, output);
    if derived && !wanted.extracts {
        DERIVED.with_borrow_mut(|secrets| {
            let Some(secrets) = secrets else { return };
            match wanted.label {
                b"c ap traffic" => secrets.client = Secret::of(output),
                b"s ap traffic" => secrets.server = Secret::of(output),
                _ => {}
            }
        });
    }
    derived
}

/// Takes note from now on of the secrets that are derived on this thread.
pub fn listen() {
    // Dropped in its place, and so overwritten, as below.
    DERIVED.with_borrow_mut(|derived| *derived = Some(TrafficSecrets::default()));
}

/// Ends that. A connection that was prepared keeps what was derived.
pub fn keep(ssl: &SslRef) {
    DERIVED.with_borrow_mut(|derived| {
        if let (Some(mut secrets), Some(derived)) = (log_of(ssl), &*derived) {
            if derived.client.is_some() {
                secrets.client.clone_from(&derived.client);
            }
            if derived.server.is_some() {
                secrets.server.clone_from(&derived.server);
            }
        }
        *derived = None;
    });
}

/// Prepares a connection of such a context and says so; others stay as they are.
pub fn attach(ssl: &mut Ssl) -> bool {
    let (Ok(context), Ok(log)) = (context_index(), log_index()) else {
        return false;
    };
    let ours = ssl.ssl_context().ex_data(context).is_some();
    if ours {
        ssl.set_ex_data(log, KeyLog::default());
    }
    ours
}

/// The secrets of a connection that was prepared; it has none any more.
pub fn take(ssl: &SslRef) -> Option<TrafficSecrets> {
    let mut secrets = log_of(ssl)?;
    // Not moved out of there, which would leave them behind.
    let taken = secrets.clone();
    *secrets = TrafficSecrets::default();
    Some(taken)
}

/// A line of the key log [RFC 9850]: label, random value of the client, secret.
fn note(ssl: &SslRef, line: &str) {
    let Some(mut secrets) = log_of(ssl) else {
        return;
    };
    let mut words = line.split(' ');
    let (label, secret) = (words.next(), words.nth(1));
    let place = match label {
        Some("CLIENT_TRAFFIC_SECRET_0") => &mut secrets.client,
        Some("SERVER_TRAFFIC_SECRET_0") => &mut secrets.server,
        _ => return,
    };
    *place = secret.and_then(Secret::from_hex);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use openssl::ssl::{SslStream, SslVersion};

    use super::*;
    use crate::tls::records::testing::Memory;
    use crate::tls::testing;

    /// The secrets that a connection has kept after its handshake.
    fn secrets_of(builder: SslContextBuilder, suite: &str) -> TrafficSecrets {
        secrets_in(builder, suite, "X25519")
    }

    /// The same, of a handshake that agrees on its first secret in this group.
    fn secrets_in(builder: SslContextBuilder, suite: &str, group: &str) -> TrafficSecrets {
        let server = testing::server_from(builder, SslVersion::TLS1_3, |builder| {
            builder.set_ciphersuites(suite).unwrap();
            builder.set_groups_list(group).unwrap();
        });
        let client = testing::client(SslVersion::TLS1_3, |_| {});
        let (mut server, mut client) = (Ssl::new(&server).unwrap(), Ssl::new(&client).unwrap());
        attach(&mut server);
        server.set_accept_state();
        client.set_connect_state();
        let mut server = SslStream::new(server, Memory::default()).unwrap();
        let mut client = SslStream::new(client, Memory::default()).unwrap();
        for _ in 0..4 {
            let _ = client.do_handshake();
            let input = &mut server.get_mut().input;
            input.extend(client.get_mut().output.drain(..));
            listen();
            let _ = server.do_handshake();
            keep(server.ssl());
            let input = &mut client.get_mut().input;
            input.extend(server.get_mut().output.drain(..));
        }
        assert!(server.ssl().is_init_finished() && client.ssl().is_init_finished());
        take(server.ssl()).unwrap()
    }

    const SUITES: [(&str, usize); 3] = [
        ("TLS_AES_128_GCM_SHA256", 32),
        ("TLS_AES_256_GCM_SHA384", 48),
        ("TLS_CHACHA20_POLY1305_SHA256", 32),
    ];

    #[test]
    fn the_secrets_that_are_derived_here_are_those_of_the_key_log() {
        for (suite, size) in SUITES {
            let lines = Arc::new(Mutex::new(Vec::new()));
            let mut builder = server_context().unwrap();
            let log = lines.clone();
            builder.set_keylog_callback(move |_, line| log.lock().unwrap().push(line.to_owned()));
            let secrets = secrets_of(builder, suite);
            let lines = lines.lock().unwrap();
            for (label, secret) in [
                ("CLIENT_TRAFFIC_SECRET_0 ", secrets.client),
                ("SERVER_TRAFFIC_SECRET_0 ", secrets.server),
            ] {
                let line = lines.iter().find(|line| line.starts_with(label)).unwrap();
                let logged = line.rsplit(' ').next().and_then(Secret::from_hex).unwrap();
                assert_eq!(logged.bytes(), secret.unwrap().bytes(), "{suite} {label}");
                assert_eq!(logged.bytes().len(), size);
            }
        }
    }

    #[test]
    fn every_group_that_openssl_has_will_do() {
        for group in ["P-256", "P-384", "P-521", "ffdhe2048", "X448"] {
            for (suite, _) in SUITES {
                let secrets = secrets_in(server_context().unwrap(), suite, group);
                assert!(secrets.client.is_some(), "{group} {suite}");
            }
        }
    }

    #[test]
    fn the_provider_is_there() {
        assert!(kdf::context(SslMethod::tls_server(), derive).is_some());
    }

    #[test]
    fn a_context_without_the_provider_has_its_key_log() {
        let mut builder = SslContext::builder(SslMethod::tls_server()).unwrap();
        use_own_records(&mut builder).unwrap();
        let secrets = secrets_of(builder, SUITES[0].0);
        assert!(secrets.client.is_some() && secrets.server.is_some());
    }

    #[test]
    fn a_connection_that_was_not_prepared_keeps_nothing() {
        let context = testing::server_from(server_context().unwrap(), SslVersion::TLS1_3, |_| {});
        let ssl = Ssl::new(&context).unwrap();
        listen();
        keep(&ssl);
        assert!(take(&ssl).is_none());
        assert!(DERIVED.with_borrow(Option::is_none));
    }

    #[test]
    fn secrets_are_read_from_hexadecimal_digits() {
        let secret = Secret::from_hex("00fF10").unwrap();
        assert_eq!(secret.bytes(), [0, 255, 16]);
        for wrong in ["0", "zz", "0g", &"00".repeat(49)] {
            assert!(Secret::from_hex(wrong).is_none(), "{wrong}");
        }
    }
}
