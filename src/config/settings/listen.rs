//! Addresses to listen on, in all forms of `apisix.stream_proxy.tcp`.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::Listener;
use crate::config::diagnostic::{At, Origin, Position, Problems, quote};
use crate::config::document::{Node, Value};

/// `apisix.proxy_protocol`: what entries say that say nothing.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ProxyProtocolDefaults {
    pub accept: bool,
    pub send: bool,
}

/// The listeners of the list `tcp`; problems are added to `problems`.
pub(super) fn listeners(
    tcp: &Node,
    defaults: ProxyProtocolDefaults,
    at: &At<'_>,
    problems: &mut Problems,
) -> Vec<Listener> {
    let mut out: Vec<Listener> = Vec::new();
    let mut seen: HashMap<SocketAddr, Position> = HashMap::new();
    for (index, item) in tcp.items().iter().enumerate() {
        let at = at.index(index);
        let flag = |name: &str| item.get(name).and_then(Node::as_bool);
        let address = match &item.value {
            Value::Map(_) => match item.get("addr") {
                Some(address) => address,
                None => continue,
            },
            _ => item,
        };
        let written = match &address.value {
            Value::Int(port) => port.to_string(),
            Value::Float(port) if port.fract() == 0.0 => port.to_string(),
            Value::String(text) => text.clone(),
            // The table has told what is wrong.
            _ => continue,
        };
        let addresses = match parse(&written) {
            Ok(addresses) => addresses,
            Err(message) => {
                problems.error(address.position, &at, message);
                continue;
            }
        };
        for addr in addresses {
            if let Some(first) = seen.insert(addr, address.position) {
                let message = format!("{addr} is listed twice, first at line {}", first.line);
                problems.error(address.position, &at, message);
                break;
            }
            out.push(Listener {
                addr,
                tls: flag("tls").unwrap_or(false),
                tls_passthrough: flag("tls_passthrough").unwrap_or(false),
                proxy_protocol: flag("proxy_protocol").unwrap_or(defaults.accept),
                proxy_protocol_to_upstream: flag("proxy_protocol_to_upstream")
                    .unwrap_or(defaults.send),
                written: written.clone(),
                position: Origin(address.position),
            });
        }
    }
    out
}

/// The addresses that an entry stands for. A bare port listens on every IPv4 address, as in APISIX.
fn parse(entry: &str) -> Result<Vec<SocketAddr>, String> {
    if entry.starts_with("unix:") {
        return Err("unix sockets are not supported".to_string());
    }
    let (host, ports) = if let Some(rest) = entry.strip_prefix('[') {
        let (host, ports) = rest
            .split_once("]:")
            .ok_or_else(|| format!("missing port: {}", quote(entry)))?;
        let host = host
            .parse()
            .map(IpAddr::V6)
            .map_err(|_| format!("{} is no IPv6 address", quote(host)))?;
        (host, ports)
    } else if let Some((host, ports)) = entry.split_once(':') {
        (ipv4(host)?, ports)
    } else {
        (IpAddr::V4(Ipv4Addr::UNSPECIFIED), entry)
    };
    let (first, last) = range(ports, entry)?;
    Ok((first..=last)
        .map(|port| SocketAddr::new(host, port))
        .collect())
}

fn ipv4(host: &str) -> Result<IpAddr, String> {
    match host {
        "*" => Ok(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        "localhost" => Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        _ => host.parse().map(IpAddr::V4).map_err(|_| {
            format!(
                "{} is no IPv4 address (an IPv6 address stands in brackets: [::1]:9100)",
                quote(host)
            )
        }),
    }
}

fn range(ports: &str, entry: &str) -> Result<(u16, u16), String> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if ports.is_empty() {
        return Err(format!("missing port: {}", quote(entry)));
    }
    let (first, last) = match ports.split_once('-') {
        Some((first, last)) if is_number(first) && is_number(last) => (first, last),
        _ if is_number(ports) => (ports, ports),
        _ => return Err(format!("invalid port format: {}", quote(entry))),
    };
    let port = |text: &str| match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("port {text} is out of range (1-65535)")),
    };
    let (first, last) = (port(first)?, port(last)?);
    if first > last {
        return Err(format!(
            "invalid port range (start > end): {}",
            quote(entry)
        ));
    }
    Ok((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(entry: &str) -> String {
        match parse(entry) {
            Ok(addresses) => addresses
                .iter()
                .map(SocketAddr::to_string)
                .collect::<Vec<_>>()
                .join(" "),
            Err(message) => message,
        }
    }

    #[test]
    fn all_forms() {
        assert_eq!(shown("9100"), "0.0.0.0:9100");
        assert_eq!(shown("127.0.0.1:9101"), "127.0.0.1:9101");
        assert_eq!(shown("[::1]:9102"), "[::1]:9102");
        assert_eq!(shown("2000-2002"), "0.0.0.0:2000 0.0.0.0:2001 0.0.0.0:2002");
        assert_eq!(
            shown("127.0.0.1:2000-2001"),
            "127.0.0.1:2000 127.0.0.1:2001"
        );
        assert_eq!(shown("[::]:2000-2001"), "[::]:2000 [::]:2001");
        assert_eq!(shown("*:1"), "0.0.0.0:1");
        assert_eq!(shown("localhost:65535"), "127.0.0.1:65535");
        assert_eq!(parse("1-65535").map(|all| all.len()), Ok(65535));
    }

    #[test]
    fn what_is_wrong_is_told() {
        assert_eq!(shown("0"), "port 0 is out of range (1-65535)");
        assert_eq!(shown("65536"), "port 65536 is out of range (1-65535)");
        assert_eq!(shown("80.5"), "invalid port format: \"80.5\"");
        assert_eq!(shown("-5"), "invalid port format: \"-5\"");
        assert_eq!(shown("1e3"), "invalid port format: \"1e3\"");
        assert_eq!(shown(""), "missing port: \"\"");
        assert_eq!(shown("127.0.0.1:"), "missing port: \"127.0.0.1:\"");
        assert_eq!(shown("[::1]"), "missing port: \"[::1]\"");
        assert_eq!(
            shown("2005-2000"),
            "invalid port range (start > end): \"2005-2000\""
        );
        assert_eq!(shown("2000-70000"), "port 70000 is out of range (1-65535)");
        assert_eq!(shown("unix:/run/x.sock"), "unix sockets are not supported");
        assert_eq!(shown("[::x]:1"), "\"::x\" is no IPv6 address");
        assert!(shown("::1:9100").starts_with("\"\" is no IPv4 address"));
        assert!(shown("broker.test:1").starts_with("\"broker.test\" is no IPv4 address"));
    }
}
