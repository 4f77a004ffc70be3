//! The calls into OpenSSL that the `openssl` crate has no safe form of. Nothing here outlives its call
//! but what OpenSSL counts references of.

use std::ffi::{CStr, c_char, c_int, c_uchar, c_uint, c_ulong, c_void};
use std::ptr;
use std::sync::{Arc, OnceLock};

use foreign_types::{ForeignType, ForeignTypeRef};
use openssl::cipher::Cipher;
use openssl::error::ErrorStack;
use openssl::ex_data::Index;
use openssl::ssl::{
    SslContext, SslContextBuilder, SslContextRef, SslRef, SslSessionRef, SslVersion,
};
use openssl::x509::{X509, X509Crl, X509NameRef};
use openssl_sys as sys;

/// Bytes of a ticket key's name, which stands in clear at the beginning of each ticket.
pub(crate) const KEY_NAME_LENGTH: usize = 16;
/// Bytes of the initialisation vector behind it.
const IV_LENGTH: usize = 16;

/// One key of session tickets. Debug output hides it, and it is overwritten when dropped.
#[derive(Clone)]
pub struct TicketKey {
    /// Its name.
    pub(crate) name: [u8; KEY_NAME_LENGTH],
    /// Of AES-256.
    pub(crate) aes: [u8; 32],
    /// Of HMAC-SHA256.
    pub(crate) hmac: [u8; 32],
}

impl std::fmt::Debug for TicketKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("TicketKey(hidden)")
    }
}

impl Drop for TicketKey {
    fn drop(&mut self) {
        cleanse(&mut self.aes);
        cleanse(&mut self.hmac);
    }
}

/// The keys that a name in a ticket may belong to.
pub(crate) enum Found {
    /// The key that encrypts now.
    Current(TicketKey),
    /// One from before: the client gets a new ticket.
    Older(TicketKey),
    /// None: the ticket is not ours, or too old.
    Unknown,
}

/// Where a context has its ticket keys from.
pub(crate) trait TicketSource: Send + Sync {
    /// The key for a new ticket.
    fn to_encrypt(&self) -> TicketKey;
    /// The key with this name.
    fn to_decrypt(&self, name: &[u8; KEY_NAME_LENGTH]) -> Found;
}

type SourceIndex = Index<SslContext, Arc<dyn TicketSource>>;

fn source_index() -> Result<SourceIndex, ErrorStack> {
    static INDEX: OnceLock<SourceIndex> = OnceLock::new();
    index_once(&INDEX, SslContext::new_ex_index)
}

/// The index of this kind of data in OpenSSL's objects; made with the first use.
pub(crate) fn index_once<T, U>(
    place: &OnceLock<Index<T, U>>,
    fresh: impl FnOnce() -> Result<Index<T, U>, ErrorStack>,
) -> Result<Index<T, U>, ErrorStack> {
    if let Some(index) = place.get() {
        return Ok(*index);
    }
    let fresh = fresh()?;
    Ok(*place.get_or_init(|| fresh))
}

type TicketCallback = unsafe extern "C" fn(
    *mut sys::SSL,
    *mut c_uchar,
    *mut c_uchar,
    *mut sys::EVP_CIPHER_CTX,
    *mut sys::EVP_MAC_CTX,
    c_int,
) -> c_int;

/// `OSSL_PARAM` of `openssl/core.h`, a public structure of OpenSSL 3.
#[repr(C)]
pub(super) struct Param {
    pub key: *const c_char,
    pub data_type: c_uint,
    pub data: *mut c_void,
    pub data_size: usize,
    pub return_size: usize,
}

const PARAM_UTF8_STRING: c_uint = 4;
const PARAM_OCTET_STRING: c_uint = 5;
const PARAM_UNMODIFIED: usize = usize::MAX;

unsafe extern "C" {
    fn X509_STORE_add_crl(store: *mut sys::X509_STORE, crl: *mut sys::X509_CRL) -> c_int;
    fn SSL_CTX_set_tlsext_ticket_key_evp_cb(
        context: *mut sys::SSL_CTX,
        callback: Option<TicketCallback>,
    ) -> c_int;
    fn X509_NAME_print_ex(
        out: *mut sys::BIO,
        name: *const sys::X509_NAME,
        indent: c_int,
        flags: c_ulong,
    ) -> c_int;
    fn OPENSSL_cleanse(memory: *mut c_void, size: usize);
    fn SSL_has_pending(ssl: *const sys::SSL) -> c_int;
    fn SSL_SESSION_get_max_fragment_length(session: *const sys::SSL_SESSION) -> u8;
    #[cfg(test)]
    fn SSL_CTX_set_tlsext_max_fragment_length(context: *mut sys::SSL_CTX, mode: u8) -> c_int;
    #[cfg(test)]
    fn SSL_key_update(ssl: *mut sys::SSL, kind: c_int) -> c_int;
}

fn checked(result: c_int) -> Result<(), ErrorStack> {
    match result {
        1 => Ok(()),
        _ => Err(ErrorStack::get()),
    }
}

/// Adds an intermediate to the chain of the certificate that was set last, so that each of
/// several certificates has a chain of its own (`SSL_CTX_add1_chain_cert`).
pub(crate) fn add_chain_certificate(
    builder: &mut SslContextBuilder,
    certificate: &X509,
) -> Result<(), ErrorStack> {
    const KEEP_A_REFERENCE: std::ffi::c_long = 1;
    // SAFETY: both pointers are valid for the call; with `larg` 1 OpenSSL takes a reference of its
    // own to the certificate.
    let added = unsafe {
        sys::SSL_CTX_ctrl(
            builder.as_ptr(),
            sys::SSL_CTRL_CHAIN_CERT,
            KEEP_A_REFERENCE,
            certificate.as_ptr().cast(),
        )
    };
    checked(c_int::from(added == 1))
}

/// Adds a revocation list to the certificates by which clients are verified.
pub(crate) fn add_crl(builder: &mut SslContextBuilder, crl: &X509Crl) -> Result<(), ErrorStack> {
    // SAFETY: the store belongs to the context and lives as long; the list is valid for the call,
    // and OpenSSL takes a reference of its own to it.
    checked(unsafe {
        let store = sys::SSL_CTX_get_cert_store(builder.as_ptr());
        X509_STORE_add_crl(store, crl.as_ptr())
    })
}

/// A distinguished name as RFC 2253 writes it, the last component first.
pub(crate) fn rfc2253(name: &X509NameRef) -> Option<String> {
    /// `XN_FLAG_RFC2253` of `openssl/x509.h`.
    const XN_FLAG_RFC2253: c_ulong = 0x0111_0317;
    // SAFETY: the name is valid for the call; the BIO is freed on every way out, after its bytes
    // have been copied.
    unsafe {
        let out = sys::BIO_new(sys::BIO_s_mem());
        if out.is_null() {
            return None;
        }
        let written = X509_NAME_print_ex(out, name.as_ptr(), 0, XN_FLAG_RFC2253);
        let mut data: *mut c_char = ptr::null_mut();
        let length = usize::try_from(sys::BIO_get_mem_data(out, &mut data)).unwrap_or(0);
        let text = (written >= 0 && !data.is_null() && length > 0).then(|| {
            let bytes = std::slice::from_raw_parts(data.cast::<u8>(), length);
            String::from_utf8_lossy(bytes).into_owned()
        });
        sys::BIO_free_all(out);
        text
    }
}

/// Overwrites a secret; the compiler cannot leave it out.
pub(crate) fn cleanse(secret: &mut [u8]) {
    // SAFETY: the pointer is valid for as many bytes, which nobody else refers to.
    unsafe { OPENSSL_cleanse(secret.as_mut_ptr().cast(), secret.len()) }
}

/// Whether OpenSSL holds bytes that it has been given and nobody has read, in whatever state.
pub(crate) fn has_pending(ssl: &SslRef) -> bool {
    // SAFETY: it is valid, and only looked at.
    unsafe { SSL_has_pending(ssl.as_ptr()) != 0 }
}

/// `max_fragment_length` of the client by its code [RFC 6066 §4]; 0 when it has sent none.
pub(crate) fn max_fragment_length(session: &SslSessionRef) -> u8 {
    // SAFETY: it is valid, and only looked at.
    unsafe { SSL_SESSION_get_max_fragment_length(session.as_ptr()) }
}

/// Has a client ask for records of 2⁸⁺ᶜᵒᵈᵉ bytes at most.
#[cfg(test)]
pub(crate) fn ask_for_fragments(builder: &mut SslContextBuilder, code: u8) {
    // SAFETY: the context is valid.
    let asked = unsafe { SSL_CTX_set_tlsext_max_fragment_length(builder.as_ptr(), code) };
    assert_eq!(asked, 1);
}

/// Has the next write begin with a KeyUpdate; `ask` asks the peer for one.
#[cfg(test)]
pub(crate) fn key_update(ssl: &SslRef, ask: bool) {
    // SAFETY: it is valid and nobody else uses it during the call.
    assert_eq!(unsafe { SSL_key_update(ssl.as_ptr(), c_int::from(ask)) }, 1);
}

/// Offers `session` for resumption.
///
/// The session must have been made by the context of `ssl`: the client side keeps one cache for
/// each context.
pub(crate) fn offer_session(ssl: &mut SslRef, session: &SslSessionRef) -> Result<(), ErrorStack> {
    // SAFETY: both are valid, no handshake has begun, and the session comes from the cache of the
    // context that `ssl` was made from, which is what `set_session` asks for.
    unsafe { ssl.set_session(session) }
}

/// Has `builder` protect its session tickets with keys of this source.
pub(crate) fn use_ticket_keys(
    builder: &mut SslContextBuilder,
    source: Arc<dyn TicketSource>,
) -> Result<(), ErrorStack> {
    builder.set_ex_data(source_index()?, source);
    // SAFETY: the context is valid, and the function has the signature that OpenSSL 3 calls.
    checked(unsafe { SSL_CTX_set_tlsext_ticket_key_evp_cb(builder.as_ptr(), Some(ticket_key)) })
}

/// What the ticket callback may answer (`SSL_CTX_set_tlsext_ticket_key_evp_cb(3)`).
const TICKET_ERROR: c_int = -1;
const TICKET_UNUSABLE: c_int = 0;
const TICKET_USABLE: c_int = 1;
const TICKET_USABLE_RENEW: c_int = 2;

unsafe extern "C" fn ticket_key(
    ssl: *mut sys::SSL,
    name: *mut c_uchar,
    iv: *mut c_uchar,
    cipher: *mut sys::EVP_CIPHER_CTX,
    mac: *mut sys::EVP_MAC_CTX,
    encrypt: c_int,
) -> c_int {
    // SAFETY: OpenSSL calls this during a handshake with a live SSL, whose context outlives the
    // call; `name` and `iv` are the 16 bytes each that the interface promises, and nobody else
    // refers to them.
    let (ssl, context, name, iv) = unsafe {
        (
            SslRef::from_ptr(ssl),
            SslContextRef::from_ptr(sys::SSL_get_SSL_CTX(ssl)),
            &mut *name.cast::<[u8; KEY_NAME_LENGTH]>(),
            &mut *iv.cast::<[u8; IV_LENGTH]>(),
        )
    };
    let keys = source_index().ok().and_then(|index| context.ex_data(index));
    let Some(keys) = keys else {
        return TICKET_ERROR;
    };
    if encrypt == 1 {
        let key = keys.to_encrypt();
        if openssl::rand::rand_bytes(iv).is_err() {
            return TICKET_ERROR;
        }
        *name = key.name;
        // SAFETY: as for `prepare`.
        match unsafe { prepare(&key, iv, cipher, mac, true) } {
            true => TICKET_USABLE,
            false => TICKET_ERROR,
        }
    } else {
        // In 1.3 a client uses a ticket once [RFC 8446 C.4] and would shake hands in full the next
        // time; OpenSSL renews those of its own keys, too.
        let used_up = ssl.version2() == Some(SslVersion::TLS1_3);
        let (key, answer) = match keys.to_decrypt(name) {
            Found::Current(key) if !used_up => (key, TICKET_USABLE),
            Found::Current(key) | Found::Older(key) => (key, TICKET_USABLE_RENEW),
            Found::Unknown => return TICKET_UNUSABLE,
        };
        // SAFETY: as for `prepare`.
        match unsafe { prepare(&key, iv, cipher, mac, false) } {
            true => answer,
            false => TICKET_ERROR,
        }
    }
}

/// The cipher of tickets. OpenSSL looks one that is named only up anew, under locks, whenever it is
/// used.
fn ticket_cipher() -> Option<*const sys::EVP_CIPHER> {
    static FETCHED: OnceLock<Option<Cipher>> = OnceLock::new();
    let fetched = FETCHED.get_or_init(|| Cipher::fetch(None, "AES-256-CBC", None).ok());
    fetched.as_ref().map(|cipher| cipher.as_ptr().cast_const())
}

/// Gives OpenSSL cipher and MAC of one ticket: AES-256-CBC and HMAC-SHA256, as nginx.
///
/// # Safety
/// `cipher` and `mac` must be the live contexts that OpenSSL handed to the ticket callback.
unsafe fn prepare(
    key: &TicketKey,
    iv: &[u8; IV_LENGTH],
    cipher: *mut sys::EVP_CIPHER_CTX,
    mac: *mut sys::EVP_MAC_CTX,
    encrypt: bool,
) -> bool {
    const KEY: &CStr = c"key";
    const DIGEST: &CStr = c"digest";
    const SHA256: &CStr = c"SHA256";
    let param = |key: &CStr, data_type, data: *const c_void, data_size| Param {
        key: key.as_ptr(),
        data_type,
        data: data.cast_mut(),
        data_size,
        return_size: PARAM_UNMODIFIED,
    };
    let end = Param {
        key: ptr::null(),
        data_type: 0,
        data: ptr::null_mut(),
        data_size: 0,
        return_size: 0,
    };
    let secret = &key.hmac;
    let params = [
        param(
            KEY,
            PARAM_OCTET_STRING,
            secret.as_ptr().cast(),
            secret.len(),
        ),
        param(
            DIGEST,
            PARAM_UTF8_STRING,
            SHA256.as_ptr().cast(),
            SHA256.count_bytes(),
        ),
        end,
    ];
    let Some(aes) = ticket_cipher() else {
        return false;
    };
    // SAFETY: both contexts are live by contract, and the cipher is for ever; key and IV have the
    // lengths of AES-256-CBC; the parameters end with the empty one and live until the call is over, which copies and never
    // writes them.
    unsafe {
        if sys::EVP_MAC_CTX_set_params(mac, params.as_ptr().cast()) != 1 {
            return false;
        }
        let init = match encrypt {
            true => sys::EVP_EncryptInit_ex,
            false => sys::EVP_DecryptInit_ex,
        };
        let (key, iv) = (key.aes.as_ptr(), iv.as_ptr());
        init(cipher, aes, ptr::null_mut(), key, iv) == 1
    }
}
