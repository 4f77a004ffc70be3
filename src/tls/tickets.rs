//! Keys of session tickets.
//!
//! Sessions are resumed by tickets alone: the server keeps nothing per session. All contexts share
//! one set of keys, so that a reload, which may build contexts anew, cuts off nobody; what must
//! not be resumed together is kept apart by the session id context (see [`super::server`]).
//!
//! Without a file the keys are random and rotate by themselves. With `ticket_key_file` they come
//! from a file that several proxies share, in nginx's form: 80 random bytes a key (name, AES key,
//! HMAC key), here as many keys as wanted one after the other; the first encrypts, all decrypt.

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use openssl::error::ErrorStack;
use openssl::ex_data::Index;
use openssl::ssl::{SslContext, SslContextBuilder, SslContextRef};

use super::ffi;

/// Bytes of a key's name, which stands in clear at the beginning of each ticket.
pub const KEY_NAME_LENGTH: usize = 16;
/// Bytes of the initialisation vector behind it.
pub const IV_LENGTH: usize = 16;
/// Bytes of one key in a file: name, AES-256 key, HMAC-SHA256 key.
pub const KEY_LENGTH: usize = KEY_NAME_LENGTH + 32 + 32;
/// Keys that a file may hold.
pub const MAX_KEYS: usize = 16;

/// How long a random key encrypts. A ticket lives two hours (OpenSSL's session timeout).
const ROTATION: Duration = Duration::from_secs(3600);
/// Random keys that are kept: one that encrypts and those of the two hours before.
const KEPT: usize = 3;

/// One key. Debug output hides it.
#[derive(Clone)]
pub struct TicketKey {
    pub(super) name: [u8; KEY_NAME_LENGTH],
    pub(super) aes: [u8; 32],
    pub(super) hmac: [u8; 32],
}

impl std::fmt::Debug for TicketKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("TicketKey(hidden)")
    }
}

impl TicketKey {
    fn random() -> Result<Self, ErrorStack> {
        let mut bytes = [0; KEY_LENGTH];
        openssl::rand::rand_priv_bytes(&mut bytes)?;
        Ok(Self::from_bytes(&bytes))
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

/// The keys that a name in a ticket may belong to.
pub(super) enum Found {
    /// The key that encrypts now.
    Current(TicketKey),
    /// One from before: the client gets a new ticket.
    Older(TicketKey),
    /// None: the ticket is not ours, or too old.
    Unknown,
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

    /// The key for a new ticket.
    pub(super) fn to_encrypt(&self) -> TicketKey {
        self.rotate_at(Instant::now());
        self.keys.load()[0].clone()
    }

    pub(super) fn to_decrypt(&self, name: &[u8; KEY_NAME_LENGTH]) -> Found {
        let keys = self.keys.load();
        match keys.iter().position(|key| key.name == *name) {
            Some(0) => Found::Current(keys[0].clone()),
            Some(position) => Found::Older(keys[position].clone()),
            None => Found::Unknown,
        }
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
        builder.set_ex_data(index()?, self.clone());
        ffi::use_ticket_keys(builder)
    }
}

fn read(path: &Path) -> Result<Vec<TicketKey>, KeyFileError> {
    let size = std::fs::metadata(path)?.len();
    let most = (MAX_KEYS * KEY_LENGTH) as u64;
    if size == 0 || size > most || size % KEY_LENGTH as u64 != 0 {
        return Err(KeyFileError::Size(size));
    }
    let bytes = std::fs::read(path)?;
    let (keys, rest) = bytes.as_chunks::<KEY_LENGTH>();
    if keys.is_empty() || !rest.is_empty() {
        return Err(KeyFileError::Size(bytes.len() as u64));
    }
    Ok(keys.iter().map(TicketKey::from_bytes).collect())
}

type KeysIndex = Index<SslContext, Arc<TicketKeys>>;

fn index() -> Result<KeysIndex, ErrorStack> {
    static INDEX: OnceLock<KeysIndex> = OnceLock::new();
    if let Some(index) = INDEX.get() {
        return Ok(*index);
    }
    let fresh = SslContext::new_ex_index()?;
    Ok(*INDEX.get_or_init(|| fresh))
}

/// The keys that a context was built with.
pub(super) fn in_context(context: &SslContextRef) -> Option<&TicketKeys> {
    context.ex_data(index().ok()?).map(|keys| &**keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    fn is_current(keys: &TicketKeys, name: u8) -> bool {
        matches!(keys.to_decrypt(&[name; 16]), Found::Current(_))
    }

    fn is_older(keys: &TicketKeys, name: u8) -> bool {
        matches!(keys.to_decrypt(&[name; 16]), Found::Older(_))
    }

    #[test]
    fn the_first_key_of_a_file_encrypts_and_all_decrypt() {
        let file = file(&[[1; KEY_LENGTH], [2; KEY_LENGTH]].concat());
        let keys = TicketKeys::from_file(file.path()).unwrap();
        assert_eq!(keys.to_encrypt().name, [1; 16]);
        assert!(is_current(&keys, 1) && is_older(&keys, 2));
        assert!(matches!(keys.to_decrypt(&[3; 16]), Found::Unknown));
        std::fs::write(file.path(), [[3; KEY_LENGTH], [1; KEY_LENGTH]].concat()).unwrap();
        keys.reread(file.path()).unwrap();
        assert!(is_current(&keys, 3) && is_older(&keys, 1));
        // Keys of a file do not rotate by themselves.
        keys.rotate_at(Instant::now() + 10 * ROTATION);
        assert!(is_current(&keys, 3));
    }

    #[test]
    fn a_file_of_another_size_is_refused_and_changes_nothing() {
        let good = file(&[7; KEY_LENGTH]);
        let keys = TicketKeys::from_file(good.path()).unwrap();
        for size in [0, 48, 79, 81, 17 * KEY_LENGTH] {
            let bad = file(&vec![7; size]);
            let error = keys.reread(bad.path()).unwrap_err();
            assert!(matches!(error, KeyFileError::Size(_)), "{size}");
        }
        assert!(is_current(&keys, 7));
        assert!(matches!(
            keys.reread(Path::new("none")),
            Err(KeyFileError::Read(_))
        ));
    }

    #[test]
    fn random_keys_rotate_and_stay_usable_for_two_periods() {
        let keys = TicketKeys::random().unwrap();
        let begun = Instant::now();
        let first = keys.to_encrypt();
        let mut names = vec![first.name];
        for hour in 1..4_u32 {
            keys.rotate_at(begun + ROTATION * hour + Duration::from_secs(1));
            names.push(keys.keys.load()[0].name);
        }
        let known = |name| !matches!(keys.to_decrypt(name), Found::Unknown);
        assert!(!known(&names[0]), "three periods old");
        assert!(names[1..].iter().all(known));
        // After a long pause no ticket of the old keys can be alive.
        keys.rotate_at(begun + ROTATION * 100);
        assert_eq!(keys.keys.load().len(), 1);
    }

    #[test]
    fn keys_are_never_printed() {
        let file = file(&[0x41; KEY_LENGTH]);
        let shown = format!("{:?}", TicketKeys::from_file(file.path()).unwrap());
        assert!(shown.contains("hidden") && !shown.contains("65"), "{shown}");
    }
}
