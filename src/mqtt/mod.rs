//! MQTT as far as a load balancer needs it: CONNECT is read, CONNACK and DISCONNECT are written.
//!
//! Bytes in, values out. Nothing here does I/O, waits, allocates or can panic, and every value
//! borrows from the bytes that the client sent, so the module can be fuzzed, measured and read
//! alone.
//!
//! * [`decode`] judges what a client has sent so far and yields its [`Connect`]. [`Mode::Strict`]
//!   holds it to the OASIS standards 3.1.1 and 5.0 (and to the IBM/Eurotech document for 3.1);
//!   [`Mode::Tolerant`] takes what the `mqtt-proxy` plugin of Apache APISIX takes.
//! * [`connack`] and [`disconnect`] are the answers to a client that is refused or sent away.
//! * [`read_connack`] looks at the broker's first answer, for the keep alive it imposes.
//! * [`Framing`] knows where a stream stands between its packets, so that one can be put in.
//!
//! `docs/mqtt-parser.md` lists every clause that is checked, and the parser vulnerabilities of
//! other implementations with the reason why each cannot happen here.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]

mod connack;
mod connect;
mod cursor;
mod error;
mod excerpt;
mod framing;
mod header;
mod packet;
mod properties;
mod rules;
mod strict;
mod tolerant;

#[cfg(test)]
mod proptests;
#[cfg(test)]
mod testing;

pub use connack::{BrokerFirst, MAX_CONNACK_SIZE, connack_code, read_connack};
pub use connect::{Connect, DecodeOptions, Mode, Protocol, UserProperties, decode};
pub use error::DecodeError;
pub use excerpt::{Escaped, Excerpt, escaped};
pub use framing::Framing;
pub use packet::{DisconnectReason, Packet, Refusal, connack, disconnect};
