//! Requests and answers.

use std::sync::Arc;

use async_trait::async_trait;
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode, header};
use pingora_core::apps::http_app::ServeHttp;
use pingora_core::protocols::http::ServerSession;
use serde_json::{Value, json};

use super::{Control, objects};
use crate::session::outcome::ClientIdHash;

/// Bytes that path, query and headers of a request may have in all. The longest client id, with
/// every byte escaped, has nearly 200,000; those in use have some dozens.
const MAX_HEAD: usize = 16 * 1024;

/// Who answers, so that a client knows what it talks to.
pub const SERVER: &str = concat!("mqtt-proxy/", env!("CARGO_PKG_VERSION"));

/// What a request is answered with.
#[derive(Debug)]
pub(super) struct Answer {
    status: StatusCode,
    body: Value,
}

impl Answer {
    pub fn ok(body: Value) -> Self {
        Answer {
            status: StatusCode::OK,
            body,
        }
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Answer::error(StatusCode::BAD_REQUEST, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Answer::error(StatusCode::NOT_FOUND, message)
    }

    pub fn unavailable(message: &str) -> Self {
        Answer::error(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    pub fn unavailable_with(body: Value) -> Self {
        Answer {
            status: StatusCode::SERVICE_UNAVAILABLE,
            body,
        }
    }

    fn error(status: StatusCode, message: impl Into<String>) -> Self {
        Answer {
            status,
            body: json!({"error_msg": message.into()}),
        }
    }
}

impl From<Answer> for Response<Vec<u8>> {
    fn from(answer: Answer) -> Self {
        let mut body = answer.body.to_string().into_bytes();
        body.push(b'\n');
        let length = body.len();
        let mut response = Response::new(body);
        *response.status_mut() = answer.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_LENGTH, length.into());
        for (name, value) in [
            (header::CONTENT_TYPE, "application/json"),
            (header::CACHE_CONTROL, "no-store"),
            (header::SERVER, SERVER),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        if answer.status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }
}

/// How much is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Everything: the control API.
    Whole,
    /// `/status` and `/status/ready`: APISIX's status server, which others than the operator may
    /// reach.
    Status,
}

/// Answers requests, one for each connection.
pub struct Api {
    /// Where the answers come from.
    pub control: Arc<Control>,
    /// How much is answered.
    pub scope: Scope,
}

#[async_trait]
impl ServeHttp for Api {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        // A connection that waits for its next request would take the place of another.
        session.set_keepalive(None);
        let head: &Parts = session.req_header();
        let answer = match refusal(head) {
            Some(refusal) => refusal,
            None => {
                let path = head.uri.path().to_owned();
                let query = head.uri.query().unwrap_or_default().to_owned();
                self.answer(&path, &query).await
            }
        };
        answer.into()
    }
}

/// Why a request is not looked at any further.
fn refusal(head: &Parts) -> Option<Answer> {
    let headers = head.headers.iter();
    let headers = headers.map(|(name, value)| name.as_str().len() + value.len());
    let target = head.uri.path().len() + head.uri.query().map_or(0, str::len);
    if headers.sum::<usize>() + target > MAX_HEAD {
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        return Some(Answer::error(status, "the request is too large"));
    }
    if head.method != Method::GET && head.method != Method::HEAD {
        let status = StatusCode::METHOD_NOT_ALLOWED;
        return Some(Answer::error(status, "everything here is read with GET"));
    }
    None
}

impl Api {
    async fn answer(&self, path: &str, query: &str) -> Answer {
        let control = &self.control;
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        match segments[..] {
            ["status", "ready"] => return control.readiness(),
            // A prefix in APISIX's nginx.conf.
            [first, ..] if first.starts_with("status") => {
                return Answer::ok(json!({"status": "ok"}));
            }
            _ if self.scope == Scope::Status => {}
            ["v1", "status"] => return control.overview().await,
            ["v1", "schema"] => return objects::schemas(),
            ["v1", "healthcheck"] => return control.checkers(),
            ["v1", "healthcheck", section] | ["v1", "healthcheck", section, ""] => {
                return Answer::not_found(format!("missing src id for src type {section}"));
            }
            ["v1", "healthcheck", section, id] => return control.checker(section, id),
            ["v1", "upstreams"] => return control.upstreams(),
            ["v1", "upstream", id] => return control.upstream(id),
            ["v1", "stream_routes"] => return control.stream_routes(),
            ["v1", "connections"] => {
                return match wanted(query) {
                    Ok(None) => control.connections().await,
                    Ok(Some(key)) => control.find(key).await,
                    Err(why) => Answer::bad_request(why),
                };
            }
            _ => {}
        }
        Answer::not_found("nothing is served at this path")
    }
}

/// The client that a query asks for.
fn wanted(query: &str) -> Result<Option<ClientIdHash>, &'static str> {
    if query.is_empty() {
        return Ok(None);
    }
    match query.split_once('=') {
        Some(("client_id", id)) => {
            let id = percent_decoded(id).ok_or("client_id is not percent-encoded")?;
            let key = ClientIdHash::of(&id).ok_or("client_id is empty")?;
            Ok(Some(key))
        }
        Some(("client_id_hash", digits)) => {
            let key = ClientIdHash::from_digits(digits);
            key.map(Some)
                .ok_or("client_id_hash is not 16 hexadecimal digits")
        }
        _ => Err("the query may be client_id=… or client_id_hash=…"),
    }
}

/// RFC 3986: a `+` is a `+`. An `&` begins what would be another parameter.
fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'&' => return None,
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            byte => byte,
        });
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_id_is_percent_decoded() {
        let key = |id: &[u8]| Ok(ClientIdHash::of(id));
        for (query, expected) in [
            ("", Ok(None)),
            ("client_id=dev-42", key(b"dev-42")),
            ("client_id=a%2fb%20%C3%a4=+", key("a/b ä=+".as_bytes())),
            ("client_id=%00%ff", key(b"\0\xff")),
            ("client_id=", Err("client_id is empty")),
            ("client_id=%4", Err("client_id is not percent-encoded")),
            ("client_id=%+4", Err("client_id is not percent-encoded")),
            ("client_id=a&x=b", Err("client_id is not percent-encoded")),
        ] {
            assert_eq!(wanted(query), expected, "{query}");
        }
        assert!(wanted("clientid=a").is_err() && wanted("x").is_err());
        assert!(wanted("client_id_hash=12").is_err());
        assert!(wanted("client_id_hash=0123456789abcdef").is_ok());
    }
}
