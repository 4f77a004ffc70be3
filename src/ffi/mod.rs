//! Calls into C libraries that have no safe form elsewhere: the only module of this program with
//! unsafe code.
#![allow(unsafe_code)]

pub(crate) mod kdf;
pub(crate) mod memory;
pub(crate) mod openssl;
