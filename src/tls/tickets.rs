//! Keys of session tickets.
//!
//! Sessions are resumed by tickets alone: the server keeps nothing per session. All contexts share
//! one set of keys, so that a reload, which may build contexts anew, cuts off nobody; what must
//! not be resumed together is kept apart by the session id context (see [`super::server`]).
//!
//! Without a file the keys are random and rotate by themselves. With `ticket_key_file` they come
//! from a file that several proxies share, in nginx's form: 80 random bytes a key (name, AES key,
//! HMAC key), here as many keys as wanted one after the other; the first encrypts, all decrypt.
//! Random keys are handed over in an upgrade, so that the new process resumes the old one's
//! sessions.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use openssl::error::ErrorStack;
use openssl::ssl::SslContextBuilder;
use serde::{Deserialize, Serialize};

use crate::ffi::openssl::{self as ffi, Found, KEY_NAME_LENGTH, TicketKey, TicketSource, cleanse};

/// Bytes of one key in a file: name, AES-256 key, HMAC-SHA256 key.
pub const KEY_LENGTH: usize = KEY_NAME_LENGTH + 32 + 32;
/// Keys that a file may hold.
pub const MAX_KEYS: usize = 16;

/// How long a random key encrypts. A ticket lives two hours (OpenSSL's session timeout).
const ROTATION: Duration = Duration::from_secs(3600);
/// Random keys that are kept: one that encrypts and those of the two hours before.
const KEPT: usize = 3;

/// The form of [`ExportedKeys`].
const EXPORT_FORM: u8 = 1;
/// The form and the age of the first key.
const EXPORT_HEADER: usize = 1 + 8;

/// The keys of a process as another one takes them over. Debug output hides them.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ExportedKeys(Vec<u8>);

impl std::fmt::Debug for ExportedKeys {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("ExportedKeys(hidden)")
    }
}

impl Drop for ExportedKeys {
    fn drop(&mut self) {
        cleanse(&mut self.0);
    }
}

/// What another process sent is no ticket keys that this one knows.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not in a form that this version knows")]
pub struct ImportError;

impl TicketKey {
    fn random() -> Result<Self, ErrorStack> {
        let mut bytes = [0; KEY_LENGTH];
        openssl::rand::rand_priv_bytes(&mut bytes)?;
        let key = Self::from_bytes(&bytes);
        cleanse(&mut bytes);
        Ok(key)
    }

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.name);
        out.extend_from_slice(&self.aes);
        out.extend_from_slice(&self.hmac);
    }

    fn from_bytes(bytes: &[u8; KEY_LENGTH]) -> Self {
        let mut key = TicketKey {
            name: [0; KEY_NAME_LENGTH],
            aes: [0; 32],
            hmac: [0; 32],
        };
        let (name, secrets) = bytes.split_at(KEY_NAME_LENGTH);
        key.name.copy_from_slice(name);
        key.aes.copy_from_slice(&secrets[..32]);
        key.hmac.copy_from_slice(&secrets[32..]);
        key
    }
}

/// Why a file of ticket keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Read(#[from] std::io::Error),
    /// It does not hold whole keys.
    #[error("{0} bytes are no ticket keys: each has 80 bytes, at most 16 keys")]
    Size(u64),
}

/// The keys of the process.
#[derive(Debug)]
pub struct TicketKeys {
    /// The first encrypts.
    keys: ArcSwap<Vec<TicketKey>>,
    /// When the first random key began to encrypt; `None` when a file says what the keys are.
    since: Mutex<Option<Instant>>,
}

impl TicketKeys {
    /// Random keys that rotate by themselves.
    ///
    /// # Errors
    /// When OpenSSL has no randomness.
    pub fn random() -> Result<Self, ErrorStack> {
        Ok(TicketKeys {
            keys: ArcSwap::from_pointee(vec![TicketKey::random()?]),
            since: Mutex::new(Some(Instant::now())),
        })
    }

    /// The keys in a file.
    ///
    /// # Errors
    /// See [`KeyFileError`].
    pub fn from_file(path: &Path) -> Result<Self, KeyFileError> {
        Ok(TicketKeys {
            keys: ArcSwap::from_pointee(read(path)?),
            since: Mutex::new(None),
        })
    }

    /// Takes the keys of the file from now on; on an error those in use stay.
    ///
    /// # Errors
    /// See [`KeyFileError`].
    pub fn reread(&self, path: &Path) -> Result<(), KeyFileError> {
        self.keys.store(Arc::new(read(path)?));
        Ok(())
    }

    /// The keys, for the process that takes over from this one. `None` when they come from a
    /// file: the other process has it too.
    pub fn export(&self) -> Option<ExportedKeys> {
        let now = Instant::now();
        self.rotate_at(now);
        let since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let age = now.saturating_duration_since((*since)?).as_secs();
        let keys = self.keys.load();
        // Never grown: what it moved out of would keep a copy.
        let mut bytes = Vec::with_capacity(EXPORT_HEADER + keys.len() * KEY_LENGTH);
        bytes.push(EXPORT_FORM);
        bytes.extend(age.to_be_bytes());
        keys.iter().for_each(|key| key.put(&mut bytes));
        Some(ExportedKeys(bytes))
    }

    /// Takes the keys of the process before this one in place of the random ones it has, with
    /// their age. Where a file says what the keys are, nothing changes.
    ///
    /// # Errors
    /// When they are not in a form that this version knows; nothing changes then.
    pub fn import(&self, exported: &ExportedKeys) -> Result<(), ImportError> {
        let bytes = exported.0.strip_prefix(&[EXPORT_FORM]);
        let (age, bytes) = bytes
            .and_then(|bytes| bytes.split_first_chunk())
            .ok_or(ImportError)?;
        let (keys, rest) = bytes.as_chunks::<KEY_LENGTH>();
        if !(1..=MAX_KEYS).contains(&keys.len()) || !rest.is_empty() {
            return Err(ImportError);
        }
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        if since.is_none() {
            return Ok(());
        }
        let keys = keys.iter().map(TicketKey::from_bytes).collect();
        self.keys.store(Arc::new(keys));
        // A key whose age cannot be is replaced at the next rotation, however old it is.
        let age = Duration::from_secs(u64::from_be_bytes(*age)).min(ROTATION);
        let now = Instant::now();
        *since = Some(now.checked_sub(age).unwrap_or(now));
        Ok(())
    }

    fn rotate_at(&self, now: Instant) {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(begun) = *since else { return };
        let periods = now.saturating_duration_since(begun).as_secs() / ROTATION.as_secs();
        if periods == 0 {
            return;
        }
        // Without randomness the key of before goes on.
        let Ok(fresh) = TicketKey::random() else {
            return;
        };
        let before = self.keys.load();
        // A key that was not used for hours has no tickets alive.
        let kept = KEPT.saturating_sub(usize::try_from(periods).unwrap_or(KEPT));
        let older = before.iter().take(kept).cloned();
        let keys = std::iter::once(fresh).chain(older).collect();
        self.keys.store(Arc::new(keys));
        *since = Some(now);
    }

    /// Has `builder` protect its tickets with these keys.
    pub(super) fn serve(
        self: &Arc<Self>,
        builder: &mut SslContextBuilder,
    ) -> Result<(), ErrorStack> {
        ffi::use_ticket_keys(builder, self.clone())
    }
}

impl TicketSource for TicketKeys {
    fn to_encrypt(&self) -> TicketKey {
        self.rotate_at(Instant::now());
        self.keys.load()[0].clone()
    }

    fn to_decrypt(&self, name: &[u8; KEY_NAME_LENGTH]) -> Found {
        let keys = self.keys.load();
        match keys.iter().position(|key| key.name == *name) {
            Some(0) => Found::Current(keys[0].clone()),
            Some(position) => Found::Older(keys[position].clone()),
            None => Found::Unknown,
        }
    }
}

fn read(path: &Path) -> Result<Vec<TicketKey>, KeyFileError> {
    let size = std::fs::metadata(path)?.len();
    let most = (MAX_KEYS * KEY_LENGTH) as u64;
    if size == 0 || size > most || size % KEY_LENGTH as u64 != 0 {
        return Err(KeyFileError::Size(size));
    }
    let mut bytes = std::fs::read(path)?;
    let (keys, rest) = bytes.as_chunks::<KEY_LENGTH>();
    if keys.is_empty() || !rest.is_empty() {
        return Err(KeyFileError::Size(bytes.len() as u64));
    }
    let keys = keys.iter().map(TicketKey::from_bytes).collect();
    cleanse(&mut bytes);
    Ok(keys)
}

#[cfg(test)]
#[path = "tickets_tests.rs"]
mod tests;
