//! The only code that the whole-proxy tests share: the proxy as a child process, scripted and real
//! brokers, raw clients, a DNS server, and an independent model of APISIX's hash ring.
//!
//! Every wait has a deadline and waits for a condition. Every port is taken below the range from
//! which the kernel serves outgoing connections, so that tests may run beside each other.
#![allow(dead_code, unreachable_pub, unused_imports)]

pub mod broker;
pub mod client;
pub mod control;
pub mod crowd;
pub mod dns;
pub mod door;
pub mod explain;
pub mod files;
pub mod generations;
pub mod handover;
pub mod metrics;
pub mod mosquitto;
pub mod mqtt;
pub mod newcomers;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod random;
pub mod ring;
pub mod s_client;
pub mod served;
pub mod setup;
pub mod systemd;
pub mod tls;
pub mod tls_broker;
pub mod traffic;
pub mod vectors;
pub mod versions;
pub mod wait;

pub use broker::{Broker, Brokers};
pub use client::{Client, End};
pub use crowd::{Crowd, expect_pace};
pub use door::{Door, door, door_to, send};
pub use explain::{explain, explained_nodes};
pub use files::{Files, config, config_with};
pub use mqtt::Connect;
pub use ports::{DeadPort, free_port, free_ports, local, on};
pub use proxy::{Proxy, cli};
pub use ring::Ring;
pub use wait::{SOON, wait_until};
