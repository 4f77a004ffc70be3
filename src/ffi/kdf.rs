//! The key derivation function of TLS 1.3 as an OpenSSL provider, so that handshakes derive their
//! secrets by a function of this program.
//!
//! OpenSSL asks the providers for each algorithm that it needs (provider(7), provider-kdf(7)). This one
//! has `TLS13-KDF` and nothing else, and only those contexts prefer it that are made here.

use std::ffi::{CStr, c_char, c_int, c_uchar, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::OnceLock;

use openssl::error::ErrorStack;
use openssl::ssl::{SslContextBuilder, SslMethod};
use openssl_sys as sys;

use super::openssl::Param;

/// What OpenSSL wants derived [RFC 8446 §7.1].
pub struct Derivation<'a> {
    /// HKDF-Extract of the next secret, else HKDF-Expand-Label.
    pub extracts: bool,
    /// The name of the hash, as OpenSSL writes it.
    pub hash: &'a [u8],
    /// The secret to expand, or the new input to extract from; `None` is as many zeros as the hash
    /// has bytes.
    pub key: Option<&'a [u8]>,
    /// For Extract: the secret before; `None` is zeros.
    pub salt: Option<&'a [u8]>,
    /// What stands before the label.
    pub prefix: &'a [u8],
    /// The label.
    pub label: &'a [u8],
    /// The context.
    pub data: &'a [u8],
}

/// Fills the output; false when it cannot.
pub type Derive = fn(&Derivation<'_>, &mut [u8]) -> bool;

/// See `OSSL_DISPATCH` in openssl/core.h.
#[repr(C)]
struct Dispatch {
    id: c_int,
    function: *const c_void,
}

/// See `OSSL_ALGORITHM` there.
#[repr(C)]
struct Algorithm {
    names: *const c_char,
    properties: *const c_char,
    implementation: *const Dispatch,
    description: *const c_char,
}

/// A constant that OpenSSL reads.
struct Table<T>(T);
// SAFETY: nobody writes to them; they are pointers to functions, to literals and to each other.
unsafe impl<T> Sync for Table<T> {}

type Init = unsafe extern "C" fn(
    *const c_void,
    *const Dispatch,
    *mut *const Dispatch,
    *mut *mut c_void,
) -> c_int;

unsafe extern "C" {
    fn OSSL_PROVIDER_available(context: *mut c_void, name: *const c_char) -> c_int;
    fn OSSL_PROVIDER_add_builtin(context: *mut c_void, name: *const c_char, init: Init) -> c_int;
    fn OSSL_PROVIDER_load(context: *mut c_void, name: *const c_char) -> *mut c_void;
    fn OSSL_PROVIDER_get0_name(provider: *const c_void) -> *const c_char;
    fn EVP_KDF_fetch(
        context: *mut c_void,
        algorithm: *const c_char,
        properties: *const c_char,
    ) -> *mut c_void;
    fn EVP_KDF_get0_provider(kdf: *const c_void) -> *const c_void;
    fn EVP_KDF_free(kdf: *mut c_void);
    fn SSL_CTX_new_ex(
        context: *mut c_void,
        properties: *const c_char,
        method: *const sys::SSL_METHOD,
    ) -> *mut sys::SSL_CTX;
}

// openssl/core_dispatch.h and openssl/kdf.h.
const PROVIDER_QUERY_OPERATION: c_int = 1027;
const OPERATION_KDF: c_int = 4;
const KDF_NEWCTX: c_int = 1;
const KDF_FREECTX: c_int = 3;
const KDF_RESET: c_int = 4;
const KDF_DERIVE: c_int = 5;
const KDF_SETTABLE_CTX_PARAMS: c_int = 8;
const KDF_SET_CTX_PARAMS: c_int = 11;
const MODE_EXTRACT_ONLY: c_int = 1;
const MODE_EXPAND_ONLY: c_int = 2;

const NAME: &CStr = c"mqtt-proxy";
/// A property of its own: `provider` would take the place of one that OpenSSL's configuration names.
const PROPERTIES: &CStr = c"provider=mqtt-proxy,mqtt_proxy.derives=yes";
const PREFERRED: &CStr = c"?mqtt_proxy.derives=yes";
const TLS13_KDF: &CStr = c"TLS13-KDF";
const DEFAULT: &CStr = c"default";

const fn entry(id: c_int, function: *const c_void) -> Dispatch {
    Dispatch { id, function }
}

/// The end of a table of functions.
const END: Dispatch = entry(0, ptr::null());

static KDF: Table<[Dispatch; 7]> = Table([
    entry(KDF_NEWCTX, new_context as *const c_void),
    entry(KDF_FREECTX, no_context as *const c_void),
    entry(KDF_RESET, no_context as *const c_void),
    entry(KDF_DERIVE, derive as *const c_void),
    entry(KDF_SETTABLE_CTX_PARAMS, settable as *const c_void),
    entry(KDF_SET_CTX_PARAMS, set_nothing as *const c_void),
    END,
]);
static ALGORITHMS: Table<[Algorithm; 2]> = Table([
    Algorithm {
        names: TLS13_KDF.as_ptr(),
        properties: PROPERTIES.as_ptr(),
        implementation: KDF.0.as_ptr(),
        description: ptr::null(),
    },
    Algorithm {
        names: ptr::null(),
        properties: ptr::null(),
        implementation: ptr::null(),
        description: ptr::null(),
    },
]);
static PROVIDER: Table<[Dispatch; 2]> =
    Table([entry(PROVIDER_QUERY_OPERATION, query as *const c_void), END]);
static NO_PARAMS: Table<[Param; 1]> = Table([Param {
    key: ptr::null(),
    data_type: 0,
    data: ptr::null_mut(),
    data_size: 0,
    return_size: 0,
}]);

static DERIVE: OnceLock<Derive> = OnceLock::new();

/// A builder of contexts whose handshakes derive their secrets with `derive`; `None` where that
/// cannot be had: in FIPS mode, or where OpenSSL's own configuration leaves its default provider out.
/// The first `derive` stays.
pub fn context(method: SslMethod, derive: Derive) -> Option<SslContextBuilder> {
    static LOADED: OnceLock<bool> = OnceLock::new();
    if !*LOADED.get_or_init(|| load(derive)) {
        return None;
    }
    // SAFETY: null is the default library context; the string is a literal that OpenSSL copies; the
    // method is a static of OpenSSL's. The new context is owned by the builder alone.
    unsafe {
        let context = SSL_CTX_new_ex(ptr::null_mut(), PREFERRED.as_ptr(), method.as_ptr());
        match context.is_null() {
            true => {
                drop(ErrorStack::get());
                None
            }
            false => Some(SslContextBuilder::from_ptr(context)),
        }
    }
}

fn load(derive: Derive) -> bool {
    let context = ptr::null_mut();
    // SAFETY: null is the default library context, the names are literals, `initialise` has the type
    // that is asked for. To ask for the default provider loads it where nothing else is configured;
    // loaded by name, it stays when another one is loaded.
    let loaded = unsafe {
        sys::EVP_default_properties_is_fips_enabled(ptr::null_mut()) == 0
            && OSSL_PROVIDER_available(context, DEFAULT.as_ptr()) == 1
            && !OSSL_PROVIDER_load(context, DEFAULT.as_ptr()).is_null()
            && DERIVE.set(derive).is_ok()
            && OSSL_PROVIDER_add_builtin(context, NAME.as_ptr(), initialise) == 1
            && !OSSL_PROVIDER_load(context, NAME.as_ptr()).is_null()
            && is_found()
    };
    if !loaded {
        drop(ErrorStack::get());
    }
    loaded
}

/// Whether contexts that prefer it get it; not so where OpenSSL's configuration insists on another one.
fn is_found() -> bool {
    // SAFETY: null is the default library context; the strings are literals; a name lives as long as its
    // provider, which is never unloaded; what was fetched is freed once.
    unsafe {
        let kdf = EVP_KDF_fetch(ptr::null_mut(), TLS13_KDF.as_ptr(), PREFERRED.as_ptr());
        if kdf.is_null() {
            return false;
        }
        let name = OSSL_PROVIDER_get0_name(EVP_KDF_get0_provider(kdf));
        let found = !name.is_null() && CStr::from_ptr(name) == NAME;
        EVP_KDF_free(kdf);
        found
    }
}

unsafe extern "C" fn initialise(
    handle: *const c_void,
    _core: *const Dispatch,
    functions: *mut *const Dispatch,
    context: *mut *mut c_void,
) -> c_int {
    // SAFETY: OpenSSL passes two places to write to.
    unsafe {
        *functions = PROVIDER.0.as_ptr();
        *context = handle.cast_mut();
    }
    1
}

unsafe extern "C" fn query(
    _: *mut c_void,
    operation: c_int,
    no_cache: *mut c_int,
) -> *const Algorithm {
    // SAFETY: OpenSSL passes a place to write to.
    unsafe { *no_cache = 0 };
    match operation {
        OPERATION_KDF => ALGORITHMS.0.as_ptr(),
        _ => ptr::null(),
    }
}

/// Nothing is kept between calls; what OpenSSL holds must only not be null.
unsafe extern "C" fn new_context(_: *mut c_void) -> *mut c_void {
    (&raw const KDF).cast_mut().cast()
}

unsafe extern "C" fn no_context(_: *mut c_void) {}

unsafe extern "C" fn settable(_: *mut c_void, _: *mut c_void) -> *const Param {
    NO_PARAMS.0.as_ptr()
}

unsafe extern "C" fn set_nothing(_: *mut c_void, _: *const Param) -> c_int {
    1
}

unsafe extern "C" fn derive(
    _: *mut c_void,
    output: *mut c_uchar,
    size: usize,
    mut params: *const Param,
) -> c_int {
    let (mut mode, mut wanted) = (
        None,
        Derivation {
            extracts: false,
            hash: &[],
            key: None,
            salt: None,
            prefix: &[],
            label: &[],
            data: &[],
        },
    );
    if params.is_null() || output.is_null() {
        return 0;
    }
    // SAFETY: OpenSSL passes an array that ends with a null key, whose entries have so many bytes at
    // their data as they say, and `size` bytes to write to. None of it is kept.
    let output = unsafe {
        while !(*params).key.is_null() {
            let param = &*params;
            params = params.add(1);
            if param.data.is_null() {
                continue;
            }
            let bytes = std::slice::from_raw_parts(param.data.cast::<u8>(), param.data_size);
            match CStr::from_ptr(param.key).to_bytes() {
                b"mode" => mode = bytes.try_into().ok().map(c_int::from_ne_bytes),
                b"digest" => wanted.hash = bytes,
                b"key" => wanted.key = Some(bytes),
                b"salt" => wanted.salt = Some(bytes),
                b"prefix" => wanted.prefix = bytes,
                b"label" => wanted.label = bytes,
                b"data" => wanted.data = bytes,
                _ => {}
            }
        }
        std::slice::from_raw_parts_mut(output, size)
    };
    wanted.extracts = match mode {
        Some(MODE_EXTRACT_ONLY) => true,
        Some(MODE_EXPAND_ONLY) => false,
        _ => return 0,
    };
    let Some(function) = DERIVE.get() else {
        return 0;
    };
    // A panic must not run through OpenSSL.
    let derived = catch_unwind(AssertUnwindSafe(|| function(&wanted, output)));
    c_int::from(derived.unwrap_or(false))
}
