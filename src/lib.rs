//! MQTT-aware L4 load balancer: a drop-in for the stream side of Apache APISIX in standalone mode.
//!
//! The way of a configuration: [`config`] reads `config.yaml` and `apisix.yaml` into plain checked
//! data; [`table`] builds from it, with [`route`] (which route takes a connection), [`upstream`]
//! (nodes, balancers, names, connecting) and [`plugin`], the immutable table that new connections
//! are served by; [`source`] follows the file and swaps the table.
//!
//! The way of a connection: [`session`] accepts it, ends TLS with [`tls`], reads CONNECT with
//! [`mqtt`], connects to a broker and relays. [`upgrade`] hands live connections over to a new
//! process; [`drain`] sends them away at a pace; [`telemetry`] counts; [`control`] answers questions
//! over HTTP; [`systemd`] tells the service manager; [`cli`] is the command line.
//!
//! Each room knows only those below it: `cli` → `control` → `upgrade`, `drain`, `source`, `session`,
//! `telemetry` → `table` → `route`, `upstream`, `plugin` → `tls` → `mqtt`, `config`. `config` and
//! `mqtt` know neither sockets nor a runtime, so they can be read, tested and fuzzed alone.

#![warn(missing_docs)]
#![deny(unsafe_code)]

pub mod cli;
pub mod config;
pub mod control;
pub mod drain;
mod ffi;
pub mod histogram;
pub mod mqtt;
pub mod plugin;
pub mod route;
pub mod session;
pub mod socket;
pub mod source;
pub mod systemd;
pub mod table;
pub mod telemetry;
pub mod tls;
pub mod upgrade;
pub mod upstream;
