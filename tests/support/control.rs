//! Asking the control API.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

use super::metrics;
use super::wait::wait_until;

/// Status code and document at `path`.
pub fn ask(addr: SocketAddr, path: &str) -> (u16, Value) {
    let (code, _, body) = metrics::get(addr, path);
    let document = serde_json::from_str(&body);
    (
        code,
        document.unwrap_or_else(|e| panic!("{path}: {e}: {body}")),
    )
}

/// The document at `path`.
///
/// # Panics
/// When there is none.
pub fn document(addr: SocketAddr, path: &str) -> Value {
    let (code, document) = ask(addr, path);
    assert_eq!(code, 200, "{path}: {document}");
    document
}

/// Asks until the answer is as wanted.
pub fn wait_for(
    addr: SocketAddr,
    path: &str,
    within: Duration,
    is_wanted: impl Fn(u16, &Value) -> bool,
) -> Value {
    wait_until(&format!("{path} to be as wanted"), within, || {
        let (code, document) = ask(addr, path);
        is_wanted(code, &document).then_some(document)
    })
}
