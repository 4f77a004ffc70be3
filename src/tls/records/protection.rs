//! The protection of records in one direction: keys, sequence number, and one record sealed or
//! opened [RFC 8446 §5.2, RFC 5246 §6.2.3.3, RFC 5288, RFC 7905].

use openssl::error::ErrorStack;

use super::cipher::Keyed;
use super::schedule::MAX_HASH;
use super::suite::{IV, SALT, Suite, Version};
use super::{ALERT, APPLICATION_DATA, HANDSHAKE};
use crate::ffi::openssl::cleanse;
use crate::tls::staging::RECORD_HEADER;

/// Bytes that authenticate a record.
pub const TAG: usize = 16;
/// Bytes of the nonce that a record of AES-GCM in TLS 1.2 carries.
pub const EXPLICIT: usize = 8;
/// Bytes of the longest key.
pub const MAX_KEY: usize = 32;
/// Bytes of a master secret of TLS 1.2.
pub const MASTER: usize = 48;
/// Records with one key, of whatever size: sequence numbers never come near their end.
const MAX_RECORDS: u64 = 1 << 60;

/// A record that is not authentic, or one more than the keys may protect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused;

impl From<ErrorStack> for Refused {
    fn from(_: ErrorStack) -> Self {
        Refused
    }
}

/// Secrets of one direction. Debug output hides them, and they are overwritten when dropped.
#[derive(Clone)]
pub struct Protection {
    suite: Suite,
    pub(super) key: [u8; MAX_KEY],
    pub(super) iv: [u8; IV],
    /// What the next keys come from, in TLS 1.3.
    pub(super) secret: [u8; MAX_HASH],
    /// Number of the next record.
    pub(super) sequence: u64,
    /// Explicit nonce of the next record that is sealed, in TLS 1.2 with AES-GCM.
    pub(super) explicit: u64,
    /// Blocks that the key may still protect.
    pub(super) blocks_left: u64,
}

impl Drop for Protection {
    fn drop(&mut self) {
        cleanse(&mut self.key);
        cleanse(&mut self.iv);
        cleanse(&mut self.secret);
    }
}

impl std::fmt::Debug for Protection {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Protection(hidden)")
    }
}

/// Copies a secret of exactly the right length.
fn exactly<const N: usize>(bytes: &[u8], size: usize) -> Option<[u8; N]> {
    let mut own = [0; N];
    let place = own.get_mut(..size)?;
    (place.len() == bytes.len()).then(|| place.copy_from_slice(bytes))?;
    Some(own)
}

impl Protection {
    /// From an application traffic secret of TLS 1.3, with which `sequence` records have been
    /// protected. `None` when the secret has another length than those of the suite.
    pub fn from_secret(suite: Suite, secret: &[u8], sequence: u64) -> Option<Self> {
        let mut protection = Protection {
            suite,
            key: [0; MAX_KEY],
            iv: [0; IV],
            secret: exactly(secret, suite.hash().size())?,
            sequence,
            explicit: 0,
            blocks_left: suite.max_blocks(),
        };
        protection.derive();
        Some(protection)
    }

    /// From key and initialisation vector of TLS 1.2. `None` when they have other lengths than
    /// those of the suite.
    pub fn from_key(
        suite: Suite,
        key: &[u8],
        iv: &[u8],
        sequence: u64,
        explicit: u64,
    ) -> Option<Self> {
        Some(Protection {
            suite,
            key: exactly(key, suite.aead.key_size())?,
            iv: exactly(iv, suite.iv_size())?,
            secret: [0; MAX_HASH],
            sequence,
            explicit,
            blocks_left: suite.max_blocks(),
        })
    }

    /// Those of client and server from the master secret of TLS 1.2 [RFC 5246 §6.3], after one
    /// record of each. `explicit` is the nonce of the server's next record, where records have
    /// one.
    pub fn from_master(
        suite: Suite,
        master: &[u8; MASTER],
        randoms: &Randoms,
        explicit: u64,
    ) -> Option<[Self; 2]> {
        let (key_size, iv_size) = (suite.aead.key_size(), suite.iv_size());
        let mut block = [0; 2 * (MAX_KEY + IV)];
        let mut seed = [0; 64];
        seed[..32].copy_from_slice(&randoms.server);
        seed[32..].copy_from_slice(&randoms.client);
        let filled = &mut block[..2 * (key_size + iv_size)];
        let hash = suite.hash();
        hash.pseudorandom(master, "key expansion", &seed, filled);
        let (keys, ivs) = filled.split_at(2 * key_size);
        let client = Self::from_key(suite, &keys[..key_size], &ivs[..iv_size], 1, 0);
        let server = Self::from_key(suite, &keys[key_size..], &ivs[iv_size..], 1, explicit);
        cleanse(&mut block);
        Some([client?, server?])
    }

    fn derive(&mut self) {
        let hash = self.suite.hash();
        let secret = &self.secret[..hash.size()];
        hash.expand_label(secret, "key", &mut self.key[..self.suite.aead.key_size()]);
        hash.expand_label(secret, "iv", &mut self.iv);
    }

    /// Version and cipher.
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// Takes the next keys [RFC 8446 §7.2], which the context that goes with it has to get.
    pub fn update(&mut self, keyed: &mut Keyed) {
        keyed.keyed = false;
        let hash = self.suite.hash();
        let mut next = [0; MAX_HASH];
        let secret = &self.secret[..hash.size()];
        hash.expand_label(secret, "traffic upd", &mut next[..hash.size()]);
        self.secret = next;
        cleanse(&mut next);
        self.sequence = 0;
        self.blocks_left = self.suite.max_blocks();
        self.derive();
    }

    /// Whether the key has protected as much as it should.
    pub fn is_used_up(&self) -> bool {
        self.blocks_left == 0 || self.sequence >= MAX_RECORDS
    }

    /// Bytes of a record besides its contents, header included; without padding.
    pub fn overhead(&self) -> usize {
        let inside = match self.suite.version {
            Version::V1_3 => 1,
            Version::V1_2 if self.suite.has_explicit_nonce() => EXPLICIT,
            Version::V1_2 => 0,
        };
        RECORD_HEADER + inside + TAG
    }

    /// How much room a body (a record without its header) of this size needs to be opened.
    pub fn room_to_open(&self, size: usize) -> usize {
        match self.suite.has_explicit_nonce() {
            true => size.saturating_sub(EXPLICIT + TAG),
            false => size.saturating_sub(TAG),
        }
    }

    fn nonce(&self, explicit: &[u8]) -> [u8; IV] {
        let mut nonce = self.iv;
        if self.suite.has_explicit_nonce() {
            nonce[SALT..].copy_from_slice(explicit);
        } else {
            let sequence = self.sequence.to_be_bytes();
            for (byte, other) in nonce[IV - sequence.len()..].iter_mut().zip(sequence) {
                *byte ^= other;
            }
        }
        nonce
    }

    /// What is authenticated besides the contents: the header in TLS 1.3; in TLS 1.2 the sequence
    /// number and the header as if the record were not protected. The second value is its length.
    fn additional(&self, header: [u8; RECORD_HEADER], contents: usize) -> ([u8; 13], usize) {
        let mut additional = [0; 13];
        match self.suite.version {
            Version::V1_3 => {
                additional[..RECORD_HEADER].copy_from_slice(&header);
                (additional, RECORD_HEADER)
            }
            Version::V1_2 => {
                additional[..8].copy_from_slice(&self.sequence.to_be_bytes());
                additional[8..11].copy_from_slice(&header[..3]);
                additional[11..].copy_from_slice(&(contents as u16).to_be_bytes());
                (additional, 13)
            }
        }
    }

    /// The number after this one, unless there is none.
    fn next(&self) -> Result<u64, Refused> {
        self.sequence.checked_add(1).ok_or(Refused)
    }

    fn count(&mut self, next: u64, bytes: usize) {
        self.sequence = next;
        let blocks = bytes as u64 / 16 + 1;
        self.blocks_left = self.blocks_left.saturating_sub(blocks);
    }

    /// Writes the record with these contents, which are no longer than a record may have, into
    /// `record`, which is longer by [`Protection::overhead`] exactly.
    ///
    /// # Errors
    /// When no more records can be protected.
    pub fn seal(
        &mut self,
        keyed: &mut Keyed,
        kind: u8,
        contents: &[u8],
        record: &mut [u8],
    ) -> Result<(), Refused> {
        let next = self.next()?;
        let (head, mut body) = record.split_at_mut(RECORD_HEADER);
        let [high, low] = (body.len() as u16).to_be_bytes();
        let outer = match self.suite.version {
            Version::V1_3 => APPLICATION_DATA,
            Version::V1_2 => kind,
        };
        let header = [outer, 3, 3, high, low];
        head.copy_from_slice(&header);
        let explicit = self.explicit.to_be_bytes();
        let nonce = self.nonce(&explicit);
        if self.suite.has_explicit_nonce() {
            let (own, rest) = body.split_at_mut(EXPLICIT);
            own.copy_from_slice(&explicit);
            // Also if something fails below: a nonce is never used again.
            self.explicit = self.explicit.wrapping_add(1);
            body = rest;
        }
        let (sealed, tag) = body.split_at_mut(body.len() - TAG);
        let (additional, length) = self.additional(header, contents.len());
        let key = (!keyed.keyed).then_some(&self.key[..]);
        let context = &mut keyed.context;
        context.encrypt_init(None, key, Some(&nonce))?;
        keyed.keyed = true;
        context.cipher_update(&additional[..length], None)?;
        let done = match contents {
            [] => 0,
            contents => context.cipher_update(contents, Some(sealed))?,
        };
        if self.suite.version == Version::V1_3 {
            context.cipher_update(&[kind], Some(&mut sealed[done..]))?;
        }
        context.cipher_final(&mut [])?;
        context.tag(tag)?;
        self.count(next, sealed.len());
        Ok(())
    }

    /// Opens a record into `contents`, of which it fills no more than
    /// [`Protection::room_to_open`]. Gives the kind of the contents and how many there are; in TLS
    /// 1.3 no kind at all is 0.
    ///
    /// # Errors
    /// When the record is not authentic; then nothing of it is in `contents`.
    pub fn open(
        &mut self,
        keyed: &mut Keyed,
        header: [u8; RECORD_HEADER],
        body: &[u8],
        contents: &mut [u8],
    ) -> Result<(u8, usize), Refused> {
        let next = self.next()?;
        let (explicit, sealed) = match self.suite.has_explicit_nonce() {
            true => body.split_at_checked(EXPLICIT).ok_or(Refused)?,
            false => (&[][..], body),
        };
        let size = sealed.len().checked_sub(TAG).ok_or(Refused)?;
        let (sealed, tag) = sealed.split_at(size);
        let contents = contents.get_mut(..size).ok_or(Refused)?;
        let nonce = self.nonce(explicit);
        let (additional, length) = self.additional(header, size);
        let key = (!keyed.keyed).then_some(&self.key[..]);
        let context = &mut keyed.context;
        let mut open = || {
            context.decrypt_init(None, key, Some(&nonce))?;
            context.cipher_update(&additional[..length], None)?;
            if size > 0 {
                context.cipher_update(sealed, Some(contents))?;
            }
            context.set_tag(tag)?;
            context.cipher_final(&mut [])
        };
        if open().is_err() {
            keyed.keyed = false;
            contents.fill(0);
            return Err(Refused);
        }
        keyed.keyed = true;
        self.count(next, size);
        match self.suite.version {
            Version::V1_2 => Ok((header[0], size)),
            // The kind stands behind the contents, and padding of zeros behind it.
            Version::V1_3 => match contents.iter().rposition(|byte| *byte != 0) {
                Some(end) => Ok((contents[end], end)),
                None => Ok((0, 0)),
            },
        }
    }

    /// Whether a record of this kind can come under protection.
    pub fn can_be(&self, kind: u8) -> bool {
        match self.suite.version {
            Version::V1_3 => kind == APPLICATION_DATA,
            Version::V1_2 => [ALERT, HANDSHAKE, APPLICATION_DATA].contains(&kind),
        }
    }
}

/// The random values of both sides' first messages.
#[derive(Debug, Clone, Copy)]
pub struct Randoms {
    /// The client's.
    pub client: [u8; 32],
    /// The server's.
    pub server: [u8; 32],
}
