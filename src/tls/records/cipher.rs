//! OpenSSL's cipher contexts, which a thread has and every session of it works with.
//!
//! To set a key costs a fraction of a microsecond; to keep a context for each direction of each
//! connection would cost more than a kilobyte. A context has the key of the session that worked last
//! until the next one sets its own.

use std::cell::Cell;

use openssl::cipher::Cipher;
use openssl::cipher_ctx::CipherCtx;
use openssl::error::ErrorStack;

use super::suite::Aead;

/// A context, and whether it has the key of the session that works.
pub struct Keyed {
    /// The context.
    pub(super) context: CipherCtx,
    /// Whether the session's key is set.
    pub(super) keyed: bool,
}

/// The contexts of one cipher.
pub struct Contexts {
    /// To seal records.
    pub seal: Keyed,
    /// To open them.
    pub open: Keyed,
}

/// What a thread has.
#[derive(Default)]
pub struct Ciphers {
    contexts: [Option<Contexts>; 3],
    /// Room for the contents of a record that the reader has no room for.
    spare: Vec<u8>,
}

thread_local! {
    static OF_THIS_THREAD: Cell<Option<Box<Ciphers>>> = const { Cell::new(None) };
}

impl Contexts {
    fn new(aead: Aead) -> Result<Self, ErrorStack> {
        let name = match aead {
            Aead::Aes128Gcm => "AES-128-GCM",
            Aead::Aes256Gcm => "AES-256-GCM",
            Aead::ChaCha20Poly1305 => "ChaCha20-Poly1305",
        };
        let cipher = Cipher::fetch(None, name, None)?;
        let (mut seal, mut open) = (CipherCtx::new()?, CipherCtx::new()?);
        seal.encrypt_init(Some(&cipher), None, None)?;
        open.decrypt_init(Some(&cipher), None, None)?;
        let unkeyed = |context| Keyed {
            context,
            keyed: false,
        };
        Ok(Contexts {
            seal: unkeyed(seal),
            open: unkeyed(open),
        })
    }
}

impl Ciphers {
    /// The contexts for a session that begins to work, and the room.
    fn of(&mut self, aead: Aead) -> Result<(&mut Contexts, &mut Vec<u8>), ErrorStack> {
        let place = &mut self.contexts[aead as usize];
        let mut contexts = match place.take() {
            Some(contexts) => contexts,
            None => Contexts::new(aead)?,
        };
        contexts.seal.keyed = false;
        contexts.open.keyed = false;
        Ok((place.insert(contexts), &mut self.spare))
    }
}

/// Calls `work` with what this thread has for a cipher.
///
/// # Errors
/// When OpenSSL does not provide the cipher or has no memory.
pub fn with_contexts<T>(
    aead: Aead,
    work: impl FnOnce(&mut Contexts, &mut Vec<u8>) -> T,
) -> Result<T, ErrorStack> {
    let mut ciphers = OF_THIS_THREAD.take().unwrap_or_default();
    let result = match ciphers.of(aead) {
        Ok((contexts, spare)) => Ok(work(contexts, spare)),
        Err(error) => Err(error),
    };
    OF_THIS_THREAD.set(Some(ciphers));
    result
}
