//! The way of a connection: accept, TLS, match the route, read CONNECT, connect to a broker, relay.
//!
//! Pingora drives it: [`service::ListenService`] is a Pingora service that hands each connection to
//! a Pingora `ServerApp`, [`app::ProxyApp`]. Connections are accepted on the relay threads, which wait
//! for TLS ([`handshake`]) and CONNECT (`beginning`) and connect to the broker (`at_once`); what is out
//! of the ordinary takes the same way in a task (`admit`). Once both sides stand, the connection is a record of a relay thread ([`relay`]), which
//! is where it spends its weeks.

pub(crate) mod admit;
pub mod app;
pub(crate) mod at_once;
mod beginning;
pub mod client_stream;
pub mod connections;
mod door;
pub mod end;
pub mod handshake;
pub mod heartbeat;
pub mod listener;
pub mod outcome;
pub mod preread;
pub mod refusal;
pub mod relay;
pub mod service;
