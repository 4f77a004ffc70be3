//! TLS: certificates by server name and mutual TLS for clients, TLS to brokers.
//!
//! [`client_hello`] reads the name that decides everything; [`names`] and [`server`] find the
//! context that serves it; [`accept`] begins the connection in that context; [`tickets`] are the
//! keys of resumption; [`identity`] is what a handshake established. [`client`] is the side toward
//! brokers. [`session`] is a session of either side without a socket, [`staging`] the memory that
//! it borrows, and [`wire`] what OpenSSL has in place of a socket; [`records`] are those of an
//! established session, which need no OpenSSL session; [`link`] is a connection in its beginning.

pub mod accept;
pub mod client;
pub mod client_hello;
pub mod expiry;
pub mod identity;
pub mod link;
pub mod names;
mod openssl_session;
pub mod records;
pub mod server;
pub mod session;
pub mod staging;
#[cfg(test)]
pub mod testing;
pub mod tickets;
pub mod wire;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::settings::{Settings, TlsSettings};
use tickets::{KeyFileError, TicketKeys};

/// What all contexts of the process share.
#[derive(Debug)]
pub struct Shared {
    /// `mqtt_proxy.tls`.
    pub settings: TlsSettings,
    /// Keys of session tickets.
    pub tickets: Arc<TicketKeys>,
    /// Where the keys come from, when it is a file.
    pub ticket_file: Option<PathBuf>,
    /// `apisix.ssl.ssl_trusted_certificate`, unless it is the system's.
    pub trusted: Option<PathBuf>,
}

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The file of ticket keys is no good.
    #[error("mqtt_proxy.tls.ticket_key_file {}: {error}", path.display())]
    TicketFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: KeyFileError,
    },
    /// OpenSSL failed.
    #[error("OpenSSL: {0}")]
    OpenSsl(#[from] openssl::error::ErrorStack),
}

impl Shared {
    /// Sets up what `settings` ask for; relative paths start at `folder`, that of `config.yaml`.
    ///
    /// # Errors
    /// See [`SetupError`].
    pub fn new(settings: &Settings, folder: &Path) -> Result<Self, SetupError> {
        let tls = settings.tls.clone();
        let ticket_file = tls.ticket_key_file.as_ref().map(|file| folder.join(file));
        let tickets = match &ticket_file {
            Some(path) => TicketKeys::from_file(path).map_err(|error| SetupError::TicketFile {
                path: path.clone(),
                error,
            })?,
            None => TicketKeys::random()?,
        };
        Ok(Shared {
            settings: tls,
            tickets: Arc::new(tickets),
            ticket_file,
            trusted: settings
                .trusted_certificate
                .as_ref()
                .map(|file| folder.join(file)),
        })
    }

    /// Default settings and random ticket keys: what is needed to build a table that serves
    /// nobody.
    ///
    /// # Errors
    /// When OpenSSL has no randomness.
    pub fn offline() -> Result<Self, openssl::error::ErrorStack> {
        Ok(Shared {
            settings: TlsSettings::default(),
            tickets: Arc::new(TicketKeys::random()?),
            ticket_file: None,
            trusted: None,
        })
    }
}
