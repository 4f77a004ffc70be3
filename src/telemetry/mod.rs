//! What an operator sees: metrics, and log lines that cannot flood.

pub mod access_log;
pub mod endpoint;
pub mod leaving;
pub mod metrics;
pub mod throttle;
