//! The server name in a ClientHello, before anything is decided.
//!
//! A listener must know the name first: it decides the certificate, whether a client certificate
//! is asked for, the versions and ciphers, or (with `tls_passthrough`) the route. Reading it here,
//! before OpenSSL sees a byte, lets each connection start in the context of its name, so that no
//! setting is changed in the middle of a handshake, and a session of one name cannot be resumed
//! under another. It also costs nobody an SSL object who never sends a whole ClientHello.
//!
//! No I/O. Every byte is bounds-checked; the size of the message and the number of records are
//! bounded.

/// Bytes of the longest ClientHello message that is read. Post-quantum key shares make about 2 KiB.
pub const MAX_MESSAGE: usize = 16 * 1024;
/// Records over which a ClientHello may be spread.
pub const MAX_RECORDS: usize = 32;
/// Bytes that a ClientHello may take on the wire, headers included.
pub const MAX_WIRE: usize = HANDSHAKE_HEADER + MAX_MESSAGE + MAX_RECORDS * RECORD_HEADER;

const RECORD_HEADER: usize = 5;
const HANDSHAKE_HEADER: usize = 4;
/// `TLSPlaintext.length` of a handshake record [RFC 8446 §5.1].
const MAX_RECORD: usize = 16 * 1024;
const CONTENT_HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const EXTENSION_SERVER_NAME: u16 = 0;
const NAME_TYPE_HOST: u8 = 0;
/// Longest host name, as OpenSSL takes it.
const MAX_NAME: usize = 255;

/// What a ClientHello says about where it wants to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientHello {
    /// The host name of the server_name extension, in lower case without a trailing dot; `None`
    /// when the client sent none.
    pub server_name: Option<String>,
}

/// Why bytes are not the beginning of a TLS connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// Another protocol. Holds the first bytes that tell so.
    #[error("not TLS: the client began with {0:#04x}")]
    NotTls(u8),
    /// TLS by its first bytes, but no ClientHello that can be read.
    #[error("malformed ClientHello: {0}")]
    Malformed(&'static str),
    /// More than [`MAX_MESSAGE`] bytes or [`MAX_RECORDS`] records.
    #[error("ClientHello is larger than 16 KiB")]
    TooLarge,
}

/// Reads the ClientHello at the beginning of `received`; `None` when more bytes are needed.
///
/// # Errors
/// As soon as the bytes cannot become a ClientHello any more.
pub fn parse(received: &[u8]) -> Result<Option<ClientHello>, HelloError> {
    let Some(message) = Message::find(received)? else {
        return Ok(None);
    };
    let server_name = match message {
        Message::OneRecord(body) => server_name(body)?,
        Message::Spread(body) => server_name(&body)?,
    };
    Ok(Some(ClientHello { server_name }))
}

/// The body of the ClientHello message, whole.
enum Message<'a> {
    OneRecord(&'a [u8]),
    Spread(Vec<u8>),
}

impl<'a> Message<'a> {
    /// Looks only at record headers until the message is complete, so that a client which sends
    /// byte by byte costs little.
    fn find(received: &'a [u8]) -> Result<Option<Self>, HelloError> {
        let mut rest = received;
        let mut fragments: [&[u8]; MAX_RECORDS] = [&[]; MAX_RECORDS];
        let mut total = 0;
        for count in 0..MAX_RECORDS {
            let whole = record(rest).map_err(|error| match (error, count) {
                (HelloError::NotTls(_), 1..) => HelloError::Malformed("kind of a record"),
                _ => error,
            });
            let Some((fragment, behind)) = whole? else {
                return Ok(None);
            };
            rest = behind;
            total += fragment.len();
            fragments[count] = fragment;
            let Some(length) = message_length(&fragments[..=count])? else {
                continue;
            };
            if total < HANDSHAKE_HEADER + length {
                continue;
            }
            let end = HANDSHAKE_HEADER + length;
            return Ok(Some(match count {
                0 => Message::OneRecord(&fragment[HANDSHAKE_HEADER..end]),
                _ => {
                    let whole = fragments[..=count].concat();
                    Message::Spread(whole[HANDSHAKE_HEADER..end].to_vec())
                }
            }));
        }
        Err(HelloError::TooLarge)
    }
}

/// A fragment and what is behind it.
type Cut<'a> = (&'a [u8], &'a [u8]);

/// The fragment of the first record and what is behind it; `None` when the record is not whole.
/// Wrong first bytes are told before the header is whole.
fn record(bytes: &[u8]) -> Result<Option<Cut<'_>>, HelloError> {
    match bytes {
        [] => return Ok(None),
        [CONTENT_HANDSHAKE] | [CONTENT_HANDSHAKE, 3, ..] => {}
        [first, ..] => return Err(HelloError::NotTls(*first)),
    }
    let Some((header, rest)) = bytes.split_at_checked(RECORD_HEADER) else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
    if length == 0 || length > MAX_RECORD {
        return Err(HelloError::Malformed("length of a record"));
    }
    Ok(rest.split_at_checked(length))
}

/// The length in the handshake header, once its four bytes are there.
fn message_length(fragments: &[&[u8]]) -> Result<Option<usize>, HelloError> {
    let mut bytes = fragments.iter().flat_map(|fragment| fragment.iter());
    if bytes.next().is_some_and(|kind| *kind != CLIENT_HELLO) {
        return Err(HelloError::Malformed("another handshake message"));
    }
    let mut length = 0;
    for _ in 0..3 {
        let Some(byte) = bytes.next() else {
            return Ok(None);
        };
        length = length << 8 | usize::from(*byte);
    }
    match length > MAX_MESSAGE {
        true => Err(HelloError::TooLarge),
        false => Ok(Some(length)),
    }
}

/// Walks through a ClientHello [RFC 8446 §4.1.2] to the host name [RFC 6066 §3].
fn server_name(body: &[u8]) -> Result<Option<String>, HelloError> {
    let mut hello = Reader(body);
    hello.take(2 + 32)?;
    if hello.vector_u8()?.0.len() > 32 {
        return Err(HelloError::Malformed("length of the session id"));
    }
    hello.vector_u16()?;
    hello.vector_u8()?;
    // Clients before TLS 1.2 may send no extensions at all.
    if hello.0.is_empty() {
        return Ok(None);
    }
    let mut extensions = hello.vector_u16()?;
    if !hello.0.is_empty() {
        return Err(HelloError::Malformed("bytes behind the extensions"));
    }
    let mut found = None;
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let data = extensions.vector_u16()?;
        if kind == EXTENSION_SERVER_NAME {
            if found.is_some() {
                return Err(HelloError::Malformed("two server_name extensions"));
            }
            found = Some(host_name(data)?);
        }
    }
    Ok(found)
}

fn host_name(mut extension: Reader<'_>) -> Result<String, HelloError> {
    let mut list = extension.vector_u16()?;
    let kind = list.take(1)?;
    let name = list.vector_u16()?.0;
    // One name of the one type that there is; OpenSSL takes no more either.
    if kind != [NAME_TYPE_HOST] || !list.0.is_empty() || !extension.0.is_empty() {
        return Err(HelloError::Malformed("server_name list"));
    }
    let text = std::str::from_utf8(name).unwrap_or_default();
    let fits = (1..=MAX_NAME).contains(&text.len());
    if !fits || !text.bytes().all(|byte| byte.is_ascii_graphic()) || text == "." {
        return Err(HelloError::Malformed("server name"));
    }
    Ok(normal(text))
}

/// A server name as names are compared: in lower case, without a trailing dot.
pub fn normal(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// Bytes that are left to be read.
#[derive(Clone, Copy)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], HelloError> {
        let cut = self.0.split_at_checked(count);
        let (taken, rest) = cut.ok_or(HelloError::Malformed("a length that leads outside"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16, HelloError> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn vector_u8(&mut self) -> Result<Reader<'a>, HelloError> {
        let length = self.take(1)?[0];
        self.take(length.into()).map(Reader)
    }

    fn vector_u16(&mut self) -> Result<Reader<'a>, HelloError> {
        let length = self.u16()?;
        self.take(length.into()).map(Reader)
    }
}

#[cfg(test)]
#[path = "client_hello_tests.rs"]
mod tests;
