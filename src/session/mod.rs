//! The way of a connection: accept, TLS, match the route, read CONNECT, connect to a broker, relay.
//!
//! Pingora drives it: [`service::ListenService`] is a Pingora service that accepts and hands each
//! connection to a Pingora `ServerApp`, [`app::ProxyApp`]. Once both sides stand, the connection
//! leaves the future of `process_new` for a small task of its own ([`relay`]), which is where it
//! spends its weeks.

pub(crate) mod admit;
pub mod app;
pub(crate) mod at_once;
pub mod client_stream;
pub mod connections;
mod door;
pub mod end;
pub mod heartbeat;
pub mod listener;
pub mod opening;
pub mod outcome;
pub mod preread;
pub mod refusal;
pub mod relay;
pub mod service;
