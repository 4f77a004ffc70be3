//! What upstreams are built with besides their own objects.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::discovery::Services;
use super::names::Names;
use super::source_address::SourceAddresses;
use crate::config::resource::credentials::CertificatePair;
use crate::config::resource::ssl::{Ssl, SslKind};
use crate::config::resource::upstream::{Scheme, Upstream};
use crate::config::settings::{DiscoverySettings, DnsSettings, RingIdentity, Settings};
use crate::tls;
use crate::tls::client::ClientTlsError;

/// What all upstreams of the process share, made once from `config.yaml`.
pub struct Shared {
    /// Where node names are resolved.
    pub names: Arc<Names>,
    /// Where the nodes of services are found.
    pub services: Arc<Services>,
    /// What a node given by name is on a hash ring.
    pub ring_identity: RingIdentity,
    /// Whether `checks` count.
    pub health_checks: bool,
    /// Where connections to nodes come from.
    pub source_addresses: Arc<SourceAddresses>,
}

impl Default for Shared {
    /// The default settings.
    fn default() -> Self {
        Shared {
            names: Names::new(DnsSettings::default(), true),
            services: Services::new(DiscoverySettings::default(), true),
            ring_identity: RingIdentity::default(),
            health_checks: true,
            source_addresses: Arc::default(),
        }
    }
}

impl Shared {
    /// What `settings` ask for; relative paths start at `folder`, that of `config.yaml`. Nothing is
    /// looked up before the services of names and services run.
    pub fn new(settings: &Settings, folder: &Path) -> Self {
        let mut discovery = settings.discovery.clone();
        let resolv_conf = &mut discovery.dns.resolv_conf;
        *resolv_conf = resolv_conf.take().map(|file| folder.join(file));
        Shared {
            names: Names::new(settings.dns.clone(), settings.enable_ipv6),
            services: Services::new(discovery, settings.enable_ipv6),
            ring_identity: settings.ring_identity,
            health_checks: settings.health_checks,
            source_addresses: Arc::new(SourceAddresses::new(&settings.upstream_bind)),
        }
    }

    /// Waits until every name and every service in use has been looked up once, or `limit` has
    /// passed.
    pub async fn settled(&self, limit: Duration) {
        tokio::join!(self.names.settled(limit), self.services.settled(limit));
    }
}

/// What the upstreams of one table are built with.
pub struct Context<'a> {
    /// What they share with those of all tables.
    pub shared: &'a Shared,
    /// What TLS shares over the whole process.
    pub tls: &'a tls::Shared,
    /// Where client certificates are found by id.
    pub ssls: &'a [Arc<Ssl>],
}

impl Context<'_> {
    /// The client certificate that an upstream with TLS shows.
    pub(super) fn client_certificate(
        &self,
        config: &Upstream,
    ) -> Result<Option<Arc<CertificatePair>>, ClientTlsError> {
        let tls = &config.upstream_tls;
        if config.scheme != Scheme::Tls {
            return Ok(None);
        }
        if let Some(pair) = &tls.client_pair {
            return Ok(Some(pair.clone()));
        }
        let Some(id) = &tls.client_cert_id else {
            return Ok(None);
        };
        let found = self
            .ssls
            .iter()
            .find(|ssl| ssl.id == *id && ssl.kind == SslKind::Client && ssl.enabled);
        let pair = found.and_then(|ssl| ssl.certs.first());
        let pair = pair.ok_or_else(|| ClientTlsError::NoCertificate(id.clone()))?;
        Ok(Some(pair.clone()))
    }
}
