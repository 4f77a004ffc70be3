//! Plugins of stream routes, one file each.

pub mod mqtt_proxy;
