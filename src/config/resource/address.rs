//! Addresses of nodes, as APISIX's `parse_addr` reads them.

use std::net::{IpAddr, Ipv6Addr};

use super::upstream::Host;

/// Splits `text` into host and port.
///
/// A text that begins with `[` is IPv6 with an optional port behind `]:`; a text with a dot or at
/// most one colon is a name or IPv4 address with an optional port; anything else with two or more
/// colons is an IPv6 address without a port.
///
/// # Errors
/// What is wrong with the address or the port.
pub(crate) fn split(text: &str) -> Result<(Host, Option<u16>), String> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, behind) = rest.split_once(']').ok_or("missing ']'".to_string())?;
        let address = ipv6(host)?;
        let port = match behind.strip_prefix(':') {
            Some(port) => Some(self::port(port)?),
            None if behind.is_empty() => None,
            None => return Err(format!("expected a port behind ']', found {behind:?}")),
        };
        return Ok((address, port));
    }
    // APISIX looks for a dot before the second colon.
    let before_second_colon = match text.match_indices(':').nth(1) {
        Some((second, _)) if !text[..second].contains('.') => return Ok((ipv6(text)?, None)),
        Some(_) => return Err("too many colons".to_string()),
        None => text,
    };
    match before_second_colon.split_once(':') {
        Some((host, port)) => Ok((name_or_ipv4(host)?, Some(self::port(port)?))),
        None => Ok((name_or_ipv4(text)?, None)),
    }
}

/// A host alone: what `host` of a list node may be. Brackets around IPv6 are optional.
///
/// # Errors
/// What is wrong with the host.
pub(crate) fn host(text: &str) -> Result<(Host, Option<u16>), String> {
    match text.parse::<IpAddr>() {
        Ok(address) => Ok((Host::Ip(address), None)),
        Err(_) => split(text),
    }
}

fn ipv6(text: &str) -> Result<Host, String> {
    text.parse::<Ipv6Addr>()
        .map(|address| Host::Ip(IpAddr::V6(address)))
        .map_err(|_| "not an IPv6 address".to_string())
}

fn name_or_ipv4(text: &str) -> Result<Host, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(Host::Ip(address));
    }
    if text.is_empty() {
        return Err("the host is empty".to_string());
    }
    if text.contains('*') {
        return Err("a node cannot be a wildcard".to_string());
    }
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if text.len() > 253 || !text.bytes().all(fits) {
        return Err("not a host name".to_string());
    }
    // All digits and dots is a mistyped address, which no resolver knows.
    if text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return Err("not an IPv4 address".to_string());
    }
    Ok(Host::Name(text.to_string()))
}

fn port(text: &str) -> Result<u16, String> {
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse::<u16>() {
        Ok(port) if port > 0 && is_number => Ok(port),
        _ if is_number => Err(format!("port {text} is out of range (1-65535)")),
        _ => Err(format!("invalid port {text:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        match split(text) {
            Ok((host, Some(port))) => format!("{host} {port}"),
            Ok((host, None)) => host.to_string(),
            Err(message) => format!("! {message}"),
        }
    }

    #[test]
    fn forms() {
        assert_eq!(shown("127.0.0.1:1883"), "127.0.0.1 1883");
        assert_eq!(shown("127.0.0.1"), "127.0.0.1");
        assert_eq!(shown("broker.test:1883"), "broker.test 1883");
        assert_eq!(shown("localhost"), "localhost");
        assert_eq!(shown("my_host-1:1"), "my_host-1 1");
        assert_eq!(shown("[::1]:1883"), "::1 1883");
        assert_eq!(shown("[::1]"), "::1");
        assert_eq!(shown("::1"), "::1");
        // Two or more colons: an address without port.
        assert_eq!(shown("::1:1883"), "::1:1883");
        assert_eq!(shown("2001:db8::68"), "2001:db8::68");
        assert_eq!(shown("::ffff:192.0.2.1"), "::ffff:192.0.2.1");
    }

    #[test]
    fn wrong_forms() {
        assert_eq!(shown("127.0.0.1:0"), "! port 0 is out of range (1-65535)");
        assert_eq!(shown("a:70000"), "! port 70000 is out of range (1-65535)");
        assert_eq!(shown("a:x"), "! invalid port \"x\"");
        assert_eq!(shown("a:"), "! invalid port \"\"");
        assert_eq!(shown("a:+1"), "! invalid port \"+1\"");
        assert_eq!(shown(":1883"), "! the host is empty");
        assert_eq!(shown(""), "! the host is empty");
        assert_eq!(shown("[::1"), "! missing ']'");
        assert_eq!(
            shown("[::1]1883"),
            "! expected a port behind ']', found \"1883\""
        );
        assert_eq!(shown("[x]:1"), "! not an IPv6 address");
        assert_eq!(shown("a:b:c"), "! not an IPv6 address");
        assert_eq!(shown("1.2.3.4:5:6"), "! too many colons");
        assert_eq!(shown("*.test:1"), "! a node cannot be a wildcard");
        assert_eq!(shown("127.0.0.256:1"), "! not an IPv4 address");
        assert_eq!(shown("a b:1"), "! not a host name");
    }

    #[test]
    fn bare_ipv6_as_a_host() {
        assert_eq!(host("::1"), split("[::1]"));
        assert_eq!(host("127.0.0.1"), split("127.0.0.1"));
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "[\\[\\]:.a-f0-9*é-]{0,30}") {
            let _ = split(&text);
        }
    }
}
