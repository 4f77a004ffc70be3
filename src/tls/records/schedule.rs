//! Keys from secrets: HKDF-Expand-Label of TLS 1.3 [RFC 8446 §7.1] and the pseudorandom function of
//! TLS 1.2 [RFC 5246 §5], both of which are HMAC and nothing else.
//!
//! OpenSSL has both behind `EVP_KDF`, whose look-ups cost several times what the hashing does.

use openssl::sha::{Sha256, Sha384};

use crate::ffi::kdf::Derivation;
use crate::ffi::openssl::cleanse;

/// What stands before every label of TLS 1.3.
const PREFIX: &[u8] = b"tls13 ";

/// The longest output of a hash here, in bytes.
pub const MAX_HASH: usize = 48;
/// The longest input block of a hash here.
const MAX_BLOCK: usize = 128;

/// The hash of a cipher suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hash {
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
}

impl Hash {
    /// Bytes of its output.
    pub fn size(self) -> usize {
        match self {
            Hash::Sha256 => 32,
            Hash::Sha384 => 48,
        }
    }

    fn block(self) -> usize {
        match self {
            Hash::Sha256 => 64,
            Hash::Sha384 => 128,
        }
    }

    /// The hash of all parts, one after the other; only the first [`Hash::size`] bytes count.
    fn of(self, first: &[u8], parts: &[&[u8]]) -> [u8; MAX_HASH] {
        let mut digest = [0; MAX_HASH];
        match self {
            Hash::Sha256 => {
                let mut hash = Sha256::new();
                hash.update(first);
                parts.iter().for_each(|part| hash.update(part));
                digest[..32].copy_from_slice(&hash.finish());
            }
            Hash::Sha384 => {
                let mut hash = Sha384::new();
                hash.update(first);
                parts.iter().for_each(|part| hash.update(part));
                digest.copy_from_slice(&hash.finish());
            }
        }
        digest
    }

    /// HMAC [RFC 2104] with a key that is no longer than a block.
    fn hmac(self, key: &[u8], parts: &[&[u8]]) -> [u8; MAX_HASH] {
        let (mut inner, mut outer) = ([0x36; MAX_BLOCK], [0x5c; MAX_BLOCK]);
        for (index, byte) in key.iter().enumerate() {
            inner[index] ^= byte;
            outer[index] ^= byte;
        }
        let block = self.block();
        let mut digest = self.of(&inner[..block], parts);
        let result = self.of(&outer[..block], &[&digest[..self.size()]]);
        cleanse(&mut digest);
        cleanse(&mut inner);
        cleanse(&mut outer);
        result
    }

    /// HKDF-Expand-Label with an empty context, into `output`, which is no longer than one hash.
    /// `secret` is as long as one.
    pub fn expand_label(self, secret: &[u8], label: &str, output: &mut [u8]) {
        self.expand(secret, PREFIX, label.as_bytes(), &[], output);
    }

    /// HKDF-Expand-Label with this prefix and label, each shorter than 128 bytes, and a context of
    /// less than 256.
    fn expand(self, secret: &[u8], prefix: &[u8], label: &[u8], data: &[u8], output: &mut [u8]) {
        let size = output.len();
        let [high, low] = (size as u16).to_be_bytes();
        let info = [high, low, (prefix.len() + label.len()) as u8];
        let parts = [&info, prefix, label, &[data.len() as u8], data, &[1]];
        let mut expanded = self.hmac(secret, &parts);
        output.copy_from_slice(&expanded[..size]);
        cleanse(&mut expanded);
    }

    /// What OpenSSL asks for; false if it is nothing that TLS 1.3 has.
    pub fn derive(wanted: &Derivation<'_>, output: &mut [u8]) -> bool {
        let is = |names: [&str; 3]| {
            let mut names = names.iter();
            names.any(|name| wanted.hash.eq_ignore_ascii_case(name.as_bytes()))
        };
        let hash = if is(["SHA2-256", "SHA-256", "SHA256"]) {
            Hash::Sha256
        } else if is(["SHA2-384", "SHA-384", "SHA384"]) {
            Hash::Sha384
        } else {
            return false;
        };
        let Derivation {
            prefix,
            label,
            data,
            ..
        } = *wanted;
        let size = hash.size();
        // A ticket's nonce may have 255 bytes.
        let long = prefix.len() > 127 || label.len() > 127 || data.len() > 255;
        // What is extracted from is no key of an HMAC: with P-521 or finite fields it is longer.
        let of_hmac = if wanted.extracts {
            wanted.salt
        } else {
            wanted.key
        };
        let fit = of_hmac.is_none_or(|secret| secret.len() <= hash.block());
        if long || !fit || output.len() > size {
            return false;
        }
        let zeros = [0; MAX_HASH];
        let key = wanted.key.unwrap_or(&zeros[..size]);
        if !wanted.extracts {
            hash.expand(key, prefix, label, data, output);
            return true;
        }
        if output.len() != size {
            return false;
        }
        let mut salt = zeros;
        if let Some(before) = wanted.salt {
            let empty = hash.of(&[], &[]);
            hash.expand(before, prefix, label, &empty[..size], &mut salt[..size]);
        }
        let mut extracted = hash.hmac(&salt[..size], &[key]);
        output.copy_from_slice(&extracted[..size]);
        cleanse(&mut extracted);
        cleanse(&mut salt);
        true
    }

    /// The pseudorandom function of TLS 1.2 for this secret, label and seed.
    pub fn pseudorandom(self, secret: &[u8], label: &str, seed: &[u8], output: &mut [u8]) {
        let size = self.size();
        let label = label.as_bytes();
        let mut chained = self.hmac(secret, &[label, seed]);
        for part in output.chunks_mut(size) {
            let mut bytes = self.hmac(secret, &[&chained[..size], label, seed]);
            part.copy_from_slice(&bytes[..part.len()]);
            cleanse(&mut bytes);
            chained = self.hmac(secret, &[&chained[..size]]);
        }
        cleanse(&mut chained);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::records::testing::bytes;

    /// RFC 8448 §3: the application traffic secrets, and the keys from them.
    #[test]
    fn the_keys_of_rfc_8448() {
        for (secret, key, iv) in [
            (
                "9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5",
                "17422dda596ed5d9acd890e3c63f5051",
                "5b78923dee08579033e523d9",
            ),
            (
                "a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643",
                "9f02283b6c9c07efc26bb9f2ac92e356",
                "cf782b88dd83549aadf1e984",
            ),
        ] {
            let (mut derived_key, mut derived_iv) = ([0; 16], [0; 12]);
            Hash::Sha256.expand_label(&bytes(secret), "key", &mut derived_key);
            Hash::Sha256.expand_label(&bytes(secret), "iv", &mut derived_iv);
            assert_eq!(derived_key[..], bytes(key));
            assert_eq!(derived_iv[..], bytes(iv));
        }
    }

    /// RFC 8448 §3: the handshake secret from the early one, its traffic secret, the master secret.
    #[test]
    fn the_secrets_of_rfc_8448() {
        let derived = |wanted: Derivation<'_>| {
            let mut output = [0; 32];
            assert!(Hash::derive(&wanted, &mut output));
            output
        };
        let extract = Derivation {
            extracts: true,
            hash: b"sha2-256",
            key: None,
            salt: None,
            prefix: PREFIX,
            label: b"derived",
            data: &[],
        };
        let early = derived(Derivation { ..extract });
        assert_eq!(
            early[..],
            bytes("33ad0a1c607ec03b09e6cd9893680ce210adf300aa1f2660e1b22e10f170f92a")
        );
        let shared = bytes("8bd4054fb55b9d63fdfbacf9f04b9f0d35e6d63f537563efd46272900f89492d");
        let handshake = derived(Derivation {
            key: Some(&shared),
            salt: Some(&early),
            ..extract
        });
        assert_eq!(
            handshake[..],
            bytes("1dc826e93606aa6fdc0aadc12f741b01046aa6b99f691ed221a9f0ca043fbeac")
        );
        let master = derived(Derivation {
            salt: Some(&handshake),
            ..extract
        });
        assert_eq!(
            master[..],
            bytes("18df06843d13a08bf2a449844c5f8a478001bc4d4c627984d5a41da8d0402919")
        );
        let wrong = [
            Derivation {
                hash: b"MD5",
                ..extract
            },
            Derivation {
                label: &[b'x'; 128],
                ..extract
            },
            Derivation {
                data: &[0; 256],
                ..extract
            },
            Derivation {
                extracts: false,
                key: Some(&[0; 65]),
                ..extract
            },
            Derivation {
                salt: Some(&[0; 65]),
                ..extract
            },
        ];
        for wanted in wrong {
            assert!(!Hash::derive(&wanted, &mut [0; 32]));
        }
        assert!(!Hash::derive(&extract, &mut [0; 33]), "longer than a hash");
        assert!(!Hash::derive(&extract, &mut [0; 31]), "not the whole hash");
    }

    /// The vector for P_SHA256 that the TLS working group's list has carried since 2008.
    #[test]
    fn the_pseudorandom_function_of_tls_1_2() {
        let mut output = [0; 100];
        Hash::Sha256.pseudorandom(
            &bytes("9bbe436ba940f017b17652849a71db35"),
            "test label",
            &bytes("a0ba9f936cda311827a6f796ffd5198c"),
            &mut output,
        );
        let expected = bytes(
            "e3f229ba727be17b8d122620557cd453c2aab21d07c3d495329b52d4e61edb5a6b301791e90d35c9c9\
             a46b4e14baf9af0fa022f7077def17abfd3797c0564bab4fbc91666e9def9b97fce34f796789baa480\
             82d122ee42c5a72e5a5110fff70187347b66",
        );
        assert_eq!(output[..], expected);
    }

    /// HMAC-SHA384 of RFC 4231 §4.3.
    #[test]
    fn hmac_of_rfc_4231() {
        let digest = Hash::Sha384.hmac(b"Jefe", &[b"what do ya want ", b"for ", b"nothing?"]);
        let expected = bytes(
            "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e\
             8e2240ca5e69e2c78b3239ecfab21649",
        );
        assert_eq!(digest[..], expected);
    }
}
