//! Probes: what an upstream's `checks.active` says, made into one of Pingora's health checks and
//! run against the addresses of a node.

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora_core::connectors::TransportConnector;
use pingora_core::connectors::l4::BindTo;
use pingora_core::protocols::ALPN;
use pingora_core::protocols::Stream;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorType};
use pingora_load_balancing::Backend;
use pingora_load_balancing::health_check::HealthCheck;
use tokio::net::TcpStream;

use super::Failure;
use super::http::HttpCheck;
use super::mqtt::MqttCheck;
use crate::config::resource::checks::{Active, Probe, Verify};
use crate::tls::link::Link;
use crate::upstream::connect::connect_to;
use crate::upstream::node::Node;
use crate::upstream::source_address::SourceAddresses;
use crate::upstream::{Upstream, is_shortage};

/// The error type of a status that counts neither as success nor as failure.
pub(super) const NEITHER: &str = "neither healthy nor unhealthy";
/// The error type of an HTTP status that counts as failure.
pub(super) const STATUS: &str = "HTTP status";
/// The error type of an answer that is no CONNACK 0.
pub(super) const REFUSED: &str = "no CONNACK 0";

/// What a probe showed.
#[derive(Debug)]
pub enum Verdict {
    /// The node is fine.
    Success,
    /// Neither one nor the other.
    Neither,
    /// It is not, and why.
    Failed(Failure, String),
}

/// The name of the node that a [`Backend`] stands for, among its extensions.
#[derive(Debug, Clone)]
pub(super) struct NodeName(pub Arc<str>);

/// Opens the connections of HTTP probes, with TLS where the probe has it.
#[derive(Clone)]
pub(super) struct Dialler {
    pub connector: Arc<TransportConnector>,
    pub tls: Option<Verify>,
    /// TLS server name, instead of the node's host.
    pub host: Option<String>,
    /// Where they come from.
    pub upstream: Option<Arc<Upstream>>,
}

impl Dialler {
    /// What HTTP calls the host: the configured one, else the node's.
    pub fn host_of(&self, target: &Backend) -> String {
        self.host.clone().unwrap_or_else(|| name_of(target))
    }

    pub async fn dial(&self, target: &Backend) -> pingora_core::Result<Stream> {
        let address = address_of(target)?;
        let mut peer = HttpPeer::new(address, self.tls.is_some(), self.host_of(target));
        if let Some(Verify(verify)) = self.tls {
            peer.options.verify_cert = verify;
            peer.options.verify_hostname = verify;
        }
        peer.options.alpn = ALPN::H1;
        let sources = self.upstream.as_ref().map(|own| own.source_addresses());
        peer.options.bind_to = sources.and_then(|sources| bind_to(sources, address));
        self.connector.new_stream(&peer).await
    }
}

fn bind_to(sources: &SourceAddresses, target: SocketAddr) -> Option<BindTo> {
    let source = sources.next(target.ip())?;
    let mut bind = BindTo::default();
    bind.addr = Some(SocketAddr::new(source, 0));
    Some(bind)
}

/// The node's host, without port.
fn name_of(target: &Backend) -> String {
    let named = target.ext.get::<NodeName>();
    named.map_or_else(
        || target.addr.to_string(),
        |NodeName(name)| name.to_string(),
    )
}

fn address_of(target: &Backend) -> pingora_core::Result<SocketAddr> {
    let address = target.addr.as_inet().copied();
    address.ok_or_else(|| Error::explain(ErrorType::InternalError, "not an IP address"))
}

/// Opens connections as those of clients are opened: from the same addresses, and with the TLS of
/// the upstream.
pub(super) struct AsClient {
    upstream: Arc<Upstream>,
    /// TLS server name, unless the upstream fixes one.
    host: Option<String>,
    timeout: Duration,
}

impl AsClient {
    async fn connect(&self, target: &Backend) -> pingora_core::Result<TcpStream> {
        let sources = self.upstream.source_addresses();
        let socket = connect_to(address_of(target)?, self.timeout, sources).await;
        socket.map_err(failed)
    }

    pub async fn dial(&self, target: &Backend) -> pingora_core::Result<Link> {
        let socket = self.connect(target).await?;
        let tls = match self.upstream.tls() {
            None => return Ok(Link::Plain(socket)),
            Some(Err(error)) => return Err(failed(io::Error::other(error.clone()))),
            Some(Ok(tls)) => tls,
        };
        let name = self.host.clone().unwrap_or_else(|| name_of(target));
        let address = address_of(target)?;
        let shaken = tls.handshake(socket, address, &name, self.host.as_deref());
        shaken.await.map(Link::Tls).map_err(failed)
    }
}

/// An error of opening a connection.
fn failed(error: io::Error) -> Box<Error> {
    let kind = match error.kind() {
        _ if is_shortage(&error) => ErrorType::Custom(NEITHER),
        io::ErrorKind::TimedOut => ErrorType::ConnectTimedout,
        _ => ErrorType::ConnectError,
    };
    Error::explain(kind, error.to_string())
}

/// A connection that is closed at once.
struct TcpCheck(AsClient);

#[async_trait]
impl HealthCheck for TcpCheck {
    async fn check(&self, target: &Backend) -> pingora_core::Result<()> {
        self.0.connect(target).await.map(drop)
    }

    fn health_threshold(&self, _success: bool) -> usize {
        1
    }
}

/// The probe of one upstream.
pub struct Check {
    active: Active,
    check: Box<dyn HealthCheck + Send + Sync>,
}

impl Check {
    /// The probe that `active` describes for an upstream. `connector` is shared by all.
    pub fn new(
        upstream: &Arc<Upstream>,
        active: &Active,
        connector: Arc<TransportConnector>,
    ) -> Self {
        let as_client = || AsClient {
            upstream: upstream.clone(),
            host: active.host.clone(),
            timeout: active.timeout,
        };
        let check: Box<dyn HealthCheck + Send + Sync> = match &active.probe {
            Probe::Tcp => Box::new(TcpCheck(as_client())),
            Probe::Http(http) => Box::new(HttpCheck {
                dialler: Dialler {
                    connector,
                    tls: http.tls,
                    host: active.host.clone(),
                    upstream: Some(upstream.clone()),
                },
                probe: http.clone(),
            }),
            Probe::Mqtt(mqtt) => Box::new(MqttCheck {
                dialler: as_client(),
                probe: mqtt.clone(),
            }),
        };
        Check {
            active: active.clone(),
            check,
        }
    }

    /// What `checks.active` says.
    pub fn active(&self) -> &Active {
        &self.active
    }

    /// Probes a node: it is fine when one of its addresses is, because connections try all.
    pub async fn run(&self, node: &Node) -> Verdict {
        let name: Arc<str> = node.host().into();
        let mut verdict = Verdict::Failed(Failure::Tcp, "the name has no address".to_owned());
        for address in node.addresses_in_turn() {
            verdict = self.probe(address, name.clone()).await;
            if matches!(verdict, Verdict::Success) {
                break;
            }
        }
        verdict
    }

    async fn probe(&self, address: SocketAddr, name: Arc<str>) -> Verdict {
        let port = self.active.port.unwrap_or(address.port());
        let address = SocketAddr::new(address.ip(), port);
        let mut target = match Backend::new(&address.to_string()) {
            Ok(target) => target,
            Err(error) => return Verdict::Failed(Failure::Tcp, error.to_string()),
        };
        target.ext.insert(NodeName(name));
        match tokio::time::timeout(self.active.timeout, self.check.check(&target)).await {
            Ok(Ok(())) => Verdict::Success,
            Ok(Err(error)) => verdict_of(&error),
            Err(_) => {
                let what = format!("{address}: no answer within {:?}", self.active.timeout);
                Verdict::Failed(Failure::Timeout, what)
            }
        }
    }
}

fn verdict_of(error: &Error) -> Verdict {
    let failure = match error.etype() {
        ErrorType::CustomCode(NEITHER, _) | ErrorType::Custom(NEITHER) => return Verdict::Neither,
        // What the proxy itself is short of says nothing about the node.
        ErrorType::BindError | ErrorType::SocketError => return Verdict::Neither,
        _ if error
            .root_cause()
            .downcast_ref::<io::Error>()
            .is_some_and(is_shortage) =>
        {
            return Verdict::Neither;
        }
        ErrorType::CustomCode(STATUS, _) => Failure::Http,
        ErrorType::Custom(REFUSED) => Failure::Mqtt,
        ErrorType::ConnectTimedout
        | ErrorType::TLSHandshakeTimedout
        | ErrorType::ReadTimedout
        | ErrorType::WriteTimedout => Failure::Timeout,
        _ => Failure::Tcp,
    };
    Verdict::Failed(failure, error.to_string().trim().to_owned())
}

/// An error of a connection that was open already.
pub(super) fn broken(error: impl Display) -> Box<Error> {
    Error::explain(ErrorType::ReadError, error.to_string())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A dialler for tests that dial nobody.
    pub fn dialler() -> Dialler {
        Dialler {
            connector: Arc::new(TransportConnector::new(None)),
            tls: None,
            host: None,
            upstream: None,
        }
    }

    #[test]
    fn the_host_is_the_configured_one_or_the_node() {
        let mut target = Backend::new("127.0.0.1:8080").unwrap();
        let own = Dialler {
            host: Some("own.test".to_owned()),
            ..dialler()
        };
        target.ext.insert(NodeName("broker.test".into()));
        assert_eq!(dialler().host_of(&target), "broker.test");
        assert_eq!(own.host_of(&target), "own.test");
    }

    #[test]
    fn what_the_proxy_is_short_of_is_no_failure() {
        let short = rustix::io::Errno::MFILE.raw_os_error();
        let cause = || io::Error::from_raw_os_error(short);
        let of_pingora = Error::because(ErrorType::ConnectError, "connect", cause());
        assert!(matches!(verdict_of(&of_pingora), Verdict::Neither));
        assert!(matches!(verdict_of(&failed(cause())), Verdict::Neither));
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        assert!(matches!(
            verdict_of(&failed(refused)),
            Verdict::Failed(Failure::Tcp, _)
        ));
    }

    #[test]
    fn errors_are_failures_of_their_kind() {
        let kind = |etype| match verdict_of(&Error::new(etype)) {
            Verdict::Failed(failure, _) => Some(failure),
            _ => None,
        };
        assert_eq!(kind(ErrorType::ConnectRefused), Some(Failure::Tcp));
        assert_eq!(kind(ErrorType::ConnectTimedout), Some(Failure::Timeout));
        assert_eq!(kind(ErrorType::TLSHandshakeFailure), Some(Failure::Tcp));
        assert_eq!(
            kind(ErrorType::CustomCode(STATUS, 503)),
            Some(Failure::Http)
        );
        assert_eq!(kind(ErrorType::Custom(REFUSED)), Some(Failure::Mqtt));
        assert_eq!(kind(ErrorType::CustomCode(NEITHER, 418)), None);
        assert_eq!(kind(ErrorType::BindError), None);
    }
}
