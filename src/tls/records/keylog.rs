//! How OpenSSL's traffic secrets are had: its key log writes them to the connection that they
//! belong to, and nowhere else.

use std::sync::{Mutex, OnceLock, PoisonError};

use openssl::error::ErrorStack;
use openssl::ex_data::Index;
use openssl::ssl::{Ssl, SslContext, SslContextBuilder, SslRef};

use super::schedule::MAX_HASH;
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

/// Has the connections of a context of the server's side get records of our own.
///
/// # Errors
/// When OpenSSL has no memory.
pub fn use_own_records(builder: &mut SslContextBuilder) -> Result<(), ErrorStack> {
    builder.set_ex_data(context_index()?, Marked);
    log_index()?;
    builder.set_keylog_callback(note);
    Ok(())
}

/// Prepares a connection of such a context; others stay as they are.
pub fn attach(ssl: &mut Ssl) {
    if let (Ok(context), Ok(log)) = (context_index(), log_index())
        && ssl.ssl_context().ex_data(context).is_some()
    {
        ssl.set_ex_data(log, KeyLog::default());
    }
}

/// The secrets of a connection that was prepared; it has none any more.
pub fn take(ssl: &SslRef) -> Option<TrafficSecrets> {
    let log = ssl.ex_data(log_index().ok()?)?;
    let mut secrets = log.0.lock().unwrap_or_else(PoisonError::into_inner);
    // Not moved out of there, which would leave them behind.
    let taken = secrets.clone();
    *secrets = TrafficSecrets::default();
    Some(taken)
}

/// A line of the key log [RFC 9850]: label, random value of the client, secret.
fn note(ssl: &SslRef, line: &str) {
    let Some(log) = log_index().ok().and_then(|index| ssl.ex_data(index)) else {
        return;
    };
    let mut words = line.split(' ');
    let (label, secret) = (words.next(), words.nth(1));
    let mut secrets = log.0.lock().unwrap_or_else(PoisonError::into_inner);
    let place = match label {
        Some("CLIENT_TRAFFIC_SECRET_0") => &mut secrets.client,
        Some("SERVER_TRAFFIC_SECRET_0") => &mut secrets.server,
        _ => return,
    };
    *place = secret.and_then(Secret::from_hex);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_read_from_hexadecimal_digits() {
        let secret = Secret::from_hex("00fF10").unwrap();
        assert_eq!(secret.bytes(), [0, 255, 16]);
        for wrong in ["0", "zz", "0g", &"00".repeat(49)] {
            assert!(Secret::from_hex(wrong).is_none(), "{wrong}");
        }
    }
}
