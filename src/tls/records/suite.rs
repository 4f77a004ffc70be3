//! Versions of TLS and the ciphers whose records are done here.

use serde::{Deserialize, Serialize};

use super::schedule::Hash;

/// Bytes of an initialisation vector.
pub const IV: usize = 12;
/// Of an IV of AES-GCM in TLS 1.2 that the handshake establishes.
pub const SALT: usize = 4;
/// Blocks of 16 bytes that a key of AES-GCM may protect: 2²⁴ records of 16 KiB, which stays below
/// the bound of RFC 8446 §5.5. That bound is one of blocks; as many records of a few bytes are far
/// from it, and not every client of TLS 1.3 can change its keys.
pub const MAX_BLOCKS: u64 = 1 << 34;

/// What protects records here. All else stays with OpenSSL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aead {
    /// AES-128-GCM.
    Aes128Gcm,
    /// AES-256-GCM.
    Aes256Gcm,
    /// ChaCha20-Poly1305.
    ChaCha20Poly1305,
}

/// The versions of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Version {
    /// 1.2
    #[serde(rename = "1.2")]
    V1_2,
    /// 1.3
    #[serde(rename = "1.3")]
    V1_3,
}

/// Version and cipher of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suite {
    /// The version.
    pub version: Version,
    /// What protects its records.
    pub aead: Aead,
}

impl Aead {
    /// Bytes of its key.
    pub fn key_size(self) -> usize {
        match self {
            Aead::Aes128Gcm => 16,
            Aead::Aes256Gcm | Aead::ChaCha20Poly1305 => 32,
        }
    }
}

impl Suite {
    /// The hash of the suites with this cipher; it is the same in both versions.
    pub fn hash(self) -> Hash {
        match self.aead {
            Aead::Aes256Gcm => Hash::Sha384,
            Aead::Aes128Gcm | Aead::ChaCha20Poly1305 => Hash::Sha256,
        }
    }

    /// Bytes of the initialisation vector that the handshake establishes.
    pub fn iv_size(self) -> usize {
        match self.has_explicit_nonce() {
            true => SALT,
            false => IV,
        }
    }

    /// Whether a nonce goes with each record.
    pub fn has_explicit_nonce(self) -> bool {
        self.version == Version::V1_2 && self.aead != Aead::ChaCha20Poly1305
    }

    /// Blocks of 16 bytes that a key may protect.
    pub fn max_blocks(self) -> u64 {
        match (self.version, self.aead) {
            (Version::V1_3, Aead::Aes128Gcm | Aead::Aes256Gcm) => MAX_BLOCKS,
            // ChaCha20 has no such bound, and TLS 1.2 no way to change keys.
            _ => u64::MAX,
        }
    }
}
