//! What the PEM texts of a file hold, each text parsed once.
//!
//! Parsing a certificate and its key costs more than everything else about an object, so a reload
//! parses no text that the load before has parsed, and the objects that share a text share what
//! came of it. Contexts are built from it without parsing again.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use openssl::asn1::{Asn1Time, Asn1TimeRef};
use openssl::pkey::{PKey, Private};
use openssl::sha::Sha256;
use openssl::x509::{X509, X509Crl};

use super::pem::{self, Problem};
use crate::config::standalone::Resources;

const DAY: i64 = 86_400;

/// SHA-256 of the texts that something was parsed from.
type Digest = [u8; 32];

fn digest(texts: &[&str]) -> Digest {
    let mut hash = Sha256::new();
    for text in texts {
        hash.update(&text.len().to_be_bytes());
        hash.update(text.as_bytes());
    }
    hash.finish()
}

/// A certificate chain and the private key of its leaf, which belong together. Two are equal when
/// their texts are. Debug output shows neither.
pub struct CertificatePair {
    digest: Digest,
    chain: Vec<X509>,
    key: PKey<Private>,
    validity: Option<Validity>,
}

impl CertificatePair {
    /// The leaf, then the intermediates; never empty.
    pub fn chain(&self) -> &[X509] {
        &self.chain
    }

    /// The private key of the leaf.
    pub fn key(&self) -> &PKey<Private> {
        &self.key
    }

    /// When all certificates of the chain are valid; `None` when their times cannot be read.
    pub fn validity(&self) -> Option<Validity> {
        self.validity
    }
}

/// Certificates that may sign others. Two are equal when their texts are.
pub struct Authorities {
    digest: Digest,
    certificates: Vec<X509>,
}

impl Authorities {
    /// The certificates; never empty.
    pub fn certificates(&self) -> &[X509] {
        &self.certificates
    }

    /// SHA-256 of their text.
    pub fn digest(&self) -> &[u8] {
        &self.digest
    }
}

/// Revocation lists. Two are equal when their texts are.
pub struct RevocationLists {
    digest: Digest,
    lists: Vec<X509Crl>,
}

impl RevocationLists {
    /// The lists; never empty.
    pub fn lists(&self) -> &[X509Crl] {
        &self.lists
    }

    /// SHA-256 of their text.
    pub fn digest(&self) -> &[u8] {
        &self.digest
    }
}

macro_rules! told_by_its_digest {
    ($($name:ident),*) => {$(
        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.digest == other.digest
            }
        }

        impl Eq for $name {}

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(concat!(stringify!($name), "("))?;
                for byte in &self.digest[..8] {
                    write!(formatter, "{byte:02x}")?;
                }
                formatter.write_str("…)")
            }
        }
    )*};
}

told_by_its_digest!(CertificatePair, Authorities, RevocationLists);

/// From when to when a certificate is valid, in Unix seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// The first second.
    pub from: i64,
    /// The last one.
    pub until: i64,
}

impl Validity {
    fn of(chain: &[X509]) -> Option<Self> {
        let both = |certificate: &X509| {
            let from = unix(certificate.not_before())?;
            let until = unix(certificate.not_after())?;
            Some(Validity { from, until })
        };
        let each = chain.iter().filter_map(both);
        each.reduce(|all, one| Validity {
            from: all.from.max(one.from),
            until: all.until.min(one.until),
        })
    }
}

/// Seconds since 1970; negative before.
fn unix(time: &Asn1TimeRef) -> Option<i64> {
    let difference = Asn1Time::from_unix(0).ok()?.diff(time).ok()?;
    Some(i64::from(difference.days) * DAY + i64::from(difference.secs))
}

/// Everything that was parsed, by the digest of its text.
#[derive(Default)]
pub(crate) struct Credentials {
    pairs: HashMap<Digest, Arc<CertificatePair>>,
    authorities: HashMap<Digest, Arc<Authorities>>,
    lists: HashMap<Digest, Arc<RevocationLists>>,
}

impl Credentials {
    /// Those that the load before has parsed.
    pub fn of(previous: &Resources) -> Self {
        let mut known = Credentials::default();
        for ssl in &previous.ssls {
            for pair in &ssl.certs {
                known.pairs.insert(pair.digest, pair.clone());
            }
            if let Some(client) = &ssl.client {
                let authorities = client.ca.clone();
                known.authorities.insert(authorities.digest, authorities);
                if let Some(lists) = &client.crl {
                    known.lists.insert(lists.digest, lists.clone());
                }
            }
        }
        let named = previous.upstreams.iter().map(|named| &named.upstream);
        let of_routes = previous.stream_routes.iter();
        let of_routes = of_routes.filter_map(|route| route.upstream.as_ref());
        let of_services = previous.services.iter();
        let of_services = of_services.filter_map(|service| service.upstream.as_ref());
        for upstream in named.chain(of_routes).chain(of_services) {
            let tls = &upstream.upstream_tls;
            if let Some(pair) = &tls.client_pair {
                known.pairs.insert(pair.digest, pair.clone());
            }
            if let Some(authorities) = &tls.ca {
                let digest = authorities.digest;
                known.authorities.insert(digest, authorities.clone());
            }
        }
        known
    }

    /// A certificate and its key.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn pair(&mut self, cert: &str, key: &str) -> Result<Arc<CertificatePair>, Vec<Problem>> {
        let digest = digest(&[cert, key]);
        kept(&mut self.pairs, digest, || {
            let (chain, key) = pem::pair(cert, key)?;
            let validity = Validity::of(&chain);
            Ok(CertificatePair {
                digest,
                chain,
                key,
                validity,
            })
        })
    }

    /// The certificates in `text`, at least one.
    ///
    /// # Errors
    /// Why there is none.
    pub fn authorities(&mut self, text: &str) -> Result<Arc<Authorities>, String> {
        let digest = digest(&[text]);
        kept(&mut self.authorities, digest, || {
            let certificates = pem::certificates(text)?;
            Ok(Authorities {
                digest,
                certificates,
            })
        })
    }

    /// The revocation lists in `text`, at least one.
    ///
    /// # Errors
    /// Why there is none.
    pub fn revocation_lists(&mut self, text: &str) -> Result<Arc<RevocationLists>, String> {
        let digest = digest(&[text]);
        kept(&mut self.lists, digest, || {
            let lists = pem::revocation_lists(text)?;
            Ok(RevocationLists { digest, lists })
        })
    }
}

/// What is known by this digest, or else what `parse` makes, which is known from then on.
fn kept<T, E>(
    known: &mut HashMap<Digest, Arc<T>>,
    digest: Digest,
    parse: impl FnOnce() -> Result<T, E>,
) -> Result<Arc<T>, E> {
    if let Some(same) = known.get(&digest) {
        return Ok(same.clone());
    }
    let fresh = Arc::new(parse()?);
    known.insert(digest, fresh.clone());
    Ok(fresh)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::resource::pem::Part;
    use crate::config::resource::testing::pair;
    use crate::config::settings::Provider;
    use crate::config::standalone::load;

    /// A file with this `ssl`, and the same pair at an upstream.
    fn file((cert, key): &(String, String), names: &str) -> String {
        format!(
            "ssls:\n  - {{id: 1, snis: [{names}], cert: {cert:?}, key: {key:?}, \
             client: {{ca: {cert:?}}}}}\n\
             upstreams:\n  - {{id: 1, nodes: {{\"a:1\": 1}}, tls: {{client_cert: {cert:?}, \
             client_key: {key:?}, ca: {cert:?}}}}}\n#END\n"
        )
    }

    fn read(text: &str, previous: Option<&Resources>) -> Resources {
        let path = Path::new("apisix.yaml");
        let loaded = load(text, path, Provider::Yaml, &|_| None, &[], previous);
        let (resources, problems) = loaded.unwrap();
        assert!(problems.is_empty(), "{problems:?}");
        resources
    }

    fn parsed(resources: &Resources) -> [&Arc<CertificatePair>; 2] {
        let of_upstream = &resources.upstreams[0].upstream.upstream_tls.client_pair;
        [&resources.ssls[0].certs[0], of_upstream.as_ref().unwrap()]
    }

    fn authorities(resources: &Resources) -> [&Arc<Authorities>; 2] {
        let of_clients = &resources.ssls[0].client.as_ref().unwrap().ca;
        let of_nodes = resources.upstreams[0].upstream.upstream_tls.ca.as_ref();
        [of_clients, of_nodes.unwrap()]
    }

    #[test]
    fn a_text_is_parsed_once_over_all_objects_and_loads() {
        let (one, two) = (pair(), pair());
        let first = read(&file(&one, "a"), None);
        let kept = parsed(&first)[0];
        assert!(Arc::ptr_eq(kept, parsed(&first)[1]));
        let trusted = authorities(&first)[0];
        assert!(Arc::ptr_eq(trusted, authorities(&first)[1]));
        // Another name: another object with what was parsed before.
        let again = read(&file(&one, "a, b"), Some(&first));
        assert_ne!(first.ssls, again.ssls);
        assert!(parsed(&again).iter().all(|pair| Arc::ptr_eq(pair, kept)));
        let same = |authorities: &&Arc<Authorities>| Arc::ptr_eq(authorities, trusted);
        assert!(authorities(&again).iter().all(same));
        // Another text is another pair.
        let changed = read(&file(&two, "a"), Some(&again));
        assert!(parsed(&changed).iter().all(|pair| *pair != kept));
        assert!(authorities(&changed).iter().all(|other| *other != trusted));
        assert_ne!(first.upstreams, changed.upstreams);
    }

    #[test]
    fn a_key_of_another_certificate_is_found_however_well_both_are_known() {
        let ((cert, key), (other_cert, other_key)) = (pair(), pair());
        let mut known = Credentials::default();
        known.pair(&cert, &key).unwrap();
        known.pair(&other_cert, &other_key).unwrap();
        let problems = known.pair(&cert, &other_key).unwrap_err();
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].0, Part::Key);
    }
}
