//! Live connections that are sent away on purpose, at a pace that brokers and clients survive.
//!
//! * [`service::Drainer`] follows the table: connections leave nodes that take no new ones
//!   (`drain`), and come home to nodes that are back (`rebalance`).
//! * [`exodus::Exodus`] has every connection of the process leave: SIGTERM, and what an upgrade
//!   leaves behind.
//!
//! Who is to leave is decided by what a connection is now, not by what it was when a list was
//! made: a list only says whom to ask next, and the relay thread asks again at the last moment.

pub mod exodus;
mod job;
pub mod pace;
mod plan;
pub mod service;
