//! The way of a connection: accept, TLS, match the route, read CONNECT, connect to a broker, relay.
//!
//! Pingora drives it: [`service::ListenService`] is a Pingora service that hands each connection to
//! a Pingora `ServerApp`, [`app::ProxyApp`]. Plain connections are accepted on the relay threads and,
//! if CONNECT is there, need no runtime at all (`at_once`); the others take the same way in a task
//! (`admit`). Once both sides stand, the connection is a record of a relay thread ([`relay`]), which
//! is where it spends its weeks.

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
