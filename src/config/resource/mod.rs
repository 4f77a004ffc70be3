//! The objects of a standalone file as typed, checked, plain data.
//!
//! Everything compares by value, positions excepted, so that a reload can tell what changed.

pub(crate) mod address;
pub mod checks;
pub mod credentials;
pub mod discovery;
pub(crate) mod hash_key;
pub mod leaving;
pub(crate) mod nodes;
pub(crate) mod pem;
pub mod plugin;
pub(crate) mod read;
pub mod service;
pub mod ssl;
pub mod stream_route;
pub mod upstream;
pub mod weights;

#[cfg(test)]
mod testing;
