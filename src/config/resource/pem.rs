//! Certificates and keys in PEM form. Messages never repeat anything of a key.

use std::cell::RefCell;

use openssl::error::ErrorStack;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{SslContext, SslContextBuilder, SslMethod};
use openssl::x509::{X509, X509Crl};

/// Which of the two texts a problem is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// The certificate.
    Cert,
    /// The private key.
    Key,
}

/// What is wrong with one of the two.
pub(crate) type Problem = (Part, String);

/// The certificates in `text`, at least one.
///
/// # Errors
/// Why there is none.
pub(crate) fn certificates(text: &str) -> Result<Vec<X509>, String> {
    match X509::stack_from_pem(text.as_bytes()) {
        Ok(stack) if !stack.is_empty() => Ok(stack),
        Ok(_) => Err("no PEM certificate in it".to_string()),
        Err(error) => Err(reason(&error)),
    }
}

fn private_key(text: &str) -> Result<PKey<Private>, String> {
    if !text.contains("-----BEGIN") {
        return Err(
            "not PEM (keys encrypted with APISIX's data_encryption.keyring are not supported)"
                .to_string(),
        );
    }
    // Without an answer of our own, OpenSSL would ask on the terminal for the passphrase.
    let no_passphrase = |_: &mut [u8]| Ok(0);
    PKey::private_key_from_pem_callback(text.as_bytes(), no_passphrase)
        .map_err(|error| reason(&error))
}

/// OpenSSL's reason in words; never data of the text.
fn reason(error: &openssl::error::ErrorStack) -> String {
    error
        .errors()
        .first()
        .and_then(openssl::error::Error::reason)
        .unwrap_or("not PEM")
        .to_string()
}

/// The revocation lists in `text`, at least one.
///
/// # Errors
/// Why there is none.
pub(crate) fn revocation_lists(text: &str) -> Result<Vec<X509Crl>, String> {
    const END: &str = "-----END X509 CRL-----";
    let blocks = text
        .split_inclusive(END)
        .filter(|block| block.ends_with(END));
    let lists: Result<Vec<X509Crl>, ErrorStack> = blocks
        .map(|block| X509Crl::from_pem(block.as_bytes()))
        .collect();
    match lists {
        Ok(lists) if !lists.is_empty() => Ok(lists),
        Ok(_) => Err("no PEM revocation list in it".to_string()),
        Err(error) => Err(reason(&error)),
    }
}

fn with_context(set: impl FnOnce(&mut SslContextBuilder) -> Result<(), ErrorStack>) -> bool {
    let builder = SslContext::builder(SslMethod::tls());
    builder.is_ok_and(|mut builder| set(&mut builder).is_ok())
}

/// Whether OpenSSL takes `text` for ciphers of TLS 1.2 and before.
pub(crate) fn is_cipher_list(text: &str) -> bool {
    with_context(|builder| builder.set_cipher_list(text))
}

/// Whether OpenSSL takes `text` for cipher suites of TLS 1.3.
pub(crate) fn are_ciphersuites(text: &str) -> bool {
    with_context(|builder| builder.set_ciphersuites(text))
}

/// Whether OpenSSL serves the certificate; its security level refuses short keys, for instance.
fn servable(leaf: &X509) -> Result<(), String> {
    thread_local! {
        // Contexts are not cheap, and a file may hold 10,000 certificates.
        static CONTEXT: Option<RefCell<SslContextBuilder>> =
            SslContext::builder(SslMethod::tls()).ok().map(RefCell::new);
    }
    CONTEXT.with(|context| match context {
        Some(builder) => {
            let set = builder.borrow_mut().set_certificate(leaf);
            set.map_err(|error| reason(&error))
        }
        None => Ok(()),
    })
}

/// A certificate chain, leaf first, and the private key that belongs to it.
///
/// # Errors
/// Everything that is wrong with them.
pub(crate) fn pair(cert: &str, key: &str) -> Result<(Vec<X509>, PKey<Private>), Vec<Problem>> {
    let mut problems = Vec::new();
    let chain = certificates(cert)
        .map_err(|why| problems.push((Part::Cert, format!("failed to parse cert: {why}"))))
        .unwrap_or_default();
    let key = private_key(key)
        .map_err(|why| problems.push((Part::Key, format!("failed to parse key: {why}"))))
        .ok();
    let leaf = chain.first();
    if let Some(Err(why)) = leaf.map(servable) {
        problems.push((
            Part::Cert,
            format!("the certificate cannot be served: {why}"),
        ));
    }
    if let (Some(leaf), Some(key)) = (leaf, &key) {
        let belongs = leaf.public_key().is_ok_and(|public| public.public_eq(key));
        if !belongs {
            problems.push((
                Part::Key,
                "the key does not belong to the certificate".to_string(),
            ));
        }
    }
    match key {
        Some(key) if problems.is_empty() => Ok((chain, key)),
        _ => Err(problems),
    }
}
