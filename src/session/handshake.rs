//! The beginning of a connection of a listener with TLS: the ClientHello, and unless it is passed
//! through, the handshake in the context of its name, all within the handshake timeout.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::listener::TlsMode;
use crate::route::Request;
use crate::table::{CurrentTable, Table};
use crate::tls::accept::{Failed, TlsError, begin, judge};
use crate::tls::client_hello::{self, ClientHello, HelloError, MAX_WIRE, normal};
use crate::tls::identity::TlsVariables;
use crate::tls::session::{Session, Transport};
use crate::tls::staging::with_shelf;

/// What one read of a ClientHello asks for: those of today need one or two.
const READ: usize = 2048;

/// What the beginning needs of the settings.
#[derive(Debug, Clone)]
pub struct TlsPolicy {
    /// `apisix.ssl.fallback_sni`, in lower case without a trailing dot.
    pub fallback_sni: Option<String>,
    /// From accept to the end of the handshake.
    pub handshake_timeout: Duration,
}

impl TlsPolicy {
    /// The policy of these settings.
    pub fn new(fallback_sni: Option<&str>, handshake_timeout: Duration) -> Self {
        TlsPolicy {
            fallback_sni: fallback_sni.map(normal),
            handshake_timeout,
        }
    }

    /// The name, or `fallback_sni` in place of an address for which there is no certificate. An
    /// address is no server name [RFC 6066 §3], but mosquitto's clients send one all the same.
    fn without_addresses(&self, name: Option<String>, table: &Table) -> Option<String> {
        let is_address = name
            .as_deref()
            .is_some_and(|name| name.parse::<IpAddr>().is_ok());
        match (&self.fallback_sni, &name) {
            (Some(fallback), Some(sent))
                if is_address && table.certificates().find(sent).is_none() =>
            {
                Some(fallback.clone())
            }
            _ => name,
        }
    }
}

/// A connection on which the client's own bytes can be read.
#[derive(Debug)]
pub struct Opened {
    /// TLS that ends here.
    pub session: Option<Box<Session>>,
    /// Bytes of the client that were read already: a ClientHello that is passed through, or the
    /// beginning of CONNECT.
    pub received: Vec<u8>,
    /// What TLS says about the client; `None` where it speaks none.
    pub tls: Option<Box<TlsVariables>>,
    /// From when the deadlines of what follows count.
    pub since: Instant,
}

impl Opened {
    /// A connection of a listener without TLS.
    pub fn plain(since: Instant) -> Self {
        Opened {
            session: None,
            received: Vec::new(),
            tls: None,
            since,
        }
    }

    fn passed(received: Vec<u8>, name: Option<String>) -> Self {
        let variables = name.map(|name| TlsVariables {
            server_name: Some(name),
            ..TlsVariables::default()
        });
        Opened {
            received,
            tls: variables.map(Box::new),
            ..Opened::plain(Instant::now())
        }
    }

    /// The server name that the client sent, or that stands for it.
    pub fn server_name(&self) -> Option<&str> {
        self.tls.as_ref()?.server_name.as_deref()
    }

    /// Reads what the client says, without waiting.
    ///
    /// # Errors
    /// `WouldBlock`, or why nothing will come any more.
    pub fn read(&mut self, mut socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.session {
            Some(session) => with_shelf(|shelf| session.read(shelf, &mut socket, buffer)),
            None => socket.receive(buffer),
        }
    }

    /// Sends what is held back for an answer that will not come soon.
    pub fn let_go(&mut self, mut socket: BorrowedFd<'_>) {
        if let Some(session) = &mut self.session {
            session.let_go();
            // A broken connection shows when more is to be read.
            let _ = session.flush(&mut socket);
        }
    }

    /// Whether the client has to take something before it can be expected to say more.
    pub fn owes(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.owes())
    }
}

impl Transport for BorrowedFd<'_> {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match recv(*self, &mut *buffer, RecvFlags::DONTWAIT) {
                Err(Errno::INTR) => {}
                received => return Ok(received?.0),
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        Ok(send(*self, bytes, flags)?)
    }
}

/// What the beginning of a connection goes by.
pub(super) struct Terms<'a> {
    pub policy: &'a TlsPolicy,
    pub table: &'a CurrentTable,
    pub client: SocketAddr,
    /// The address on which the connection arrived, which only a route can ask for.
    pub server: &'a dyn Fn() -> io::Result<SocketAddr>,
}

/// A connection that is shaking hands.
pub(super) struct Handshake {
    mode: TlsMode,
    until: Instant,
    /// Its place among the handshakes in flight.
    _in_flight: Option<OwnedSemaphorePermit>,
    received: Vec<u8>,
    /// From the ClientHello on: the session, and the name that decided.
    session: Option<(Box<Session>, String)>,
}

impl Handshake {
    /// A connection of which nothing is known yet.
    pub fn new(mode: TlsMode, until: Instant, in_flight: Option<OwnedSemaphorePermit>) -> Self {
        Handshake {
            mode,
            until,
            _in_flight: in_flight,
            received: Vec::new(),
            session: None,
        }
    }

    /// When it has to be over.
    pub fn until(&self) -> Instant {
        self.until
    }

    /// Whether the client has to take something before it can be expected to say more.
    pub fn owes(&self) -> bool {
        let session = self.session.as_ref();
        session.is_some_and(|(session, _)| session.owes())
    }

    /// Goes on with what the socket has; `None` when more has to come.
    pub fn step(
        &mut self,
        mut socket: BorrowedFd<'_>,
        terms: &Terms<'_>,
    ) -> Option<Result<Opened, Failed>> {
        if self.session.is_none() {
            match self.hello(&mut socket, terms) {
                Ok(None) => {}
                Ok(Some(passed)) => return Some(Ok(passed)),
                Err(Wait::ForMore) => return None,
                Err(Wait::InVain(failed)) => return Some(Err(failed)),
            }
        }
        let (session, _) = self.session.as_mut()?;
        match with_shelf(|shelf| session.handshake(shelf, &mut socket)) {
            Ok(false) => None,
            Ok(true) => {
                let (mut session, name) = self.session.take()?;
                let variables = session.ssl().map(|ssl| TlsVariables::of(ssl, Some(name)));
                session.settle();
                Some(Ok(Opened {
                    session: Some(session),
                    tls: variables.map(Box::new),
                    ..Opened::plain(Instant::now())
                }))
            }
            Err(error) => Some(Err(judge(&error, session.ssl()))),
        }
    }

    /// Reads the ClientHello and begins the session, unless the connection is passed through.
    fn hello(
        &mut self,
        socket: &mut BorrowedFd<'_>,
        terms: &Terms<'_>,
    ) -> Result<Option<Opened>, Wait> {
        let hello = loop {
            match self.read_hello(socket) {
                Ok(Some(hello)) => break Ok(hello),
                Ok(None) => {}
                // Whoever speaks no TLS has no name; nginx's ssl_preread lets him pass as well.
                Err(Wait::InVain(Failed::Refused(TlsError::Hello(HelloError::NotTls(why))))) => {
                    break Err(Failed::Refused(HelloError::NotTls(why).into()));
                }
                Err(wait) => return Err(wait),
            }
        };
        let table = terms.table.load();
        let policy = terms.policy;
        let name = match &hello {
            Ok(ClientHello { server_name }) => {
                server_name.clone().or_else(|| policy.fallback_sni.clone())
            }
            Err(_) => None,
        };
        if self.passes_through(&table, terms, name.as_deref()) {
            return Ok(Some(Opened::passed(
                std::mem::take(&mut self.received),
                name,
            )));
        }
        hello.map_err(Wait::InVain)?;
        let refused = |error| Wait::InVain(Failed::Refused(error));
        let name = policy.without_addresses(name, &table);
        let name = name.ok_or(refused(TlsError::NoName))?;
        let served = table.certificates().find(&name);
        let Some(served) = served else {
            return Err(refused(TlsError::UnknownName(name)));
        };
        let received = std::mem::take(&mut self.received);
        let session = begin(served.context(), received).map_err(refused)?;
        self.session = Some((Box::new(session), name));
        Ok(None)
    }

    /// Reads once; the ClientHello if it is whole then.
    fn read_hello(&mut self, socket: &mut BorrowedFd<'_>) -> Result<Option<ClientHello>, Wait> {
        let filled = self.received.len();
        self.received.resize(filled + READ, 0);
        let read = socket.receive(&mut self.received[filled..]);
        self.received
            .truncate(filled + read.as_ref().map_or(0, |count| *count));
        match read {
            Ok(0) => return Err(Wait::InVain(Failed::ClientLeft)),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(Wait::ForMore),
            Err(_) => return Err(Wait::InVain(Failed::ClientLeft)),
        }
        if let Some(hello) = client_hello::parse(&self.received)? {
            return Ok(Some(hello));
        }
        match self.received.len() > MAX_WIRE {
            true => Err(HelloError::TooLarge.into()),
            false => Ok(None),
        }
    }

    fn passes_through(&self, table: &Table, terms: &Terms<'_>, sni: Option<&str>) -> bool {
        match self.mode {
            TlsMode::End => false,
            TlsMode::Pass => true,
            TlsMode::RouteDecides => {
                let request = (terms.server)().map(|server| Request {
                    client: terms.client.ip(),
                    server,
                    sni,
                });
                let route = request.ok().and_then(|request| table.route(&request));
                route.is_some_and(|route| route.tls_passthrough)
            }
        }
    }
}

/// Why a ClientHello is not there.
enum Wait {
    /// More has to come.
    ForMore,
    /// Nothing that helps will come.
    InVain(Failed),
}

impl From<HelloError> for Wait {
    fn from(error: HelloError) -> Self {
        Wait::InVain(error.into())
    }
}
