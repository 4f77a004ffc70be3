//! nginx's `log_format`, with its variables as far as they mean something here.

use std::fmt::Write;
use std::net::IpAddr;

use super::format::escape_json;
use super::{Ending, Line};
use crate::config::settings::{Escape, Part};

/// The line of a connection that has ended, line feed included.
pub(super) fn line(line: &Line<'_>, parts: &[Part], escape: Escape) -> Vec<u8> {
    let Some(ending) = &line.ending else {
        return Vec::new();
    };
    let mut out = Vec::with_capacity(256);
    for part in parts {
        match part {
            Part::Text(text) => out.extend_from_slice(text.as_bytes()),
            Part::Variable(name) => match value(name, line, ending) {
                Some(value) => append(&value, escape, &mut out),
                None if escape == Escape::Default => out.push(b'-'),
                None => {}
            },
        }
    }
    out.push(b'\n');
    out
}

fn append(value: &[u8], escape: Escape, out: &mut Vec<u8>) {
    if escape == Escape::Json {
        let mut text = String::new();
        escape_json(&String::from_utf8_lossy(value), &mut text);
        out.extend_from_slice(text.as_bytes());
        return;
    }
    for &byte in value {
        let escaped = match escape {
            Escape::Default => matches!(byte, b'"' | b'\\' | ..0x20 | 0x7f..),
            Escape::Json | Escape::None => matches!(byte, ..0x20 | 0x7f),
        };
        match escaped {
            true => out.extend_from_slice(format!("\\x{byte:02X}").as_bytes()),
            false => out.push(byte),
        }
    }
}

/// The value of a variable; `None` where it has none for this connection.
fn value(name: &str, line: &Line<'_>, ending: &Ending) -> Option<Vec<u8>> {
    let details = line.details;
    let seconds = |micros: u64| format!("{:.3}", micros as f64 / 1e6);
    // Those of nginx count from the upstream's answer on.
    let related = line.node.is_some();
    let text = match name {
        "remote_addr" | "realip_remote_addr" => line.client.ip().to_string(),
        "remote_port" | "realip_remote_port" => line.client.port().to_string(),
        "binary_remote_addr" => {
            return Some(match line.client.ip() {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            });
        }
        "server_addr" => details.server.unwrap_or(line.listener).ip().to_string(),
        "server_port" => details.server.unwrap_or(line.listener).port().to_string(),
        "server_name" => String::new(),
        "stream_listen_addr" => line.listener.to_string(),
        "protocol" => "TCP".to_owned(),
        "status" => ending.status.to_owned(),
        "bytes_sent" => ending.to_client.to_string(),
        "bytes_received" => ending.to_broker.to_string(),
        "session_time" => format!("{:.3}", ending.duration.as_secs_f64()),
        "connection" => details.id.to_string(),
        "pid" => std::process::id().to_string(),
        "hostname" => {
            return Some(rustix::system::uname().nodename().to_bytes().to_vec());
        }
        "msec" => {
            let now = jiff::Timestamp::now();
            let milliseconds = now.as_millisecond();
            format!("{}.{:03}", milliseconds / 1000, milliseconds % 1000)
        }
        "time_local" => local("%d/%b/%Y:%H:%M:%S %z"),
        "time_iso8601" => local("%Y-%m-%dT%H:%M:%S%:z"),
        "upstream_addr" => match details.node_addr {
            Some(address) => address.to_string(),
            None => line.node?.to_owned(),
        },
        "upstream_bytes_sent" if related => ending.to_broker.to_string(),
        "upstream_bytes_received" if related => ending.to_client.to_string(),
        "upstream_connect_time" => seconds(details.dial_us?),
        "upstream_first_byte_time" => seconds(details.dial_us? + details.first_byte_us?),
        "upstream_session_time" if related => {
            format!("{:.3}", ending.duration.as_secs_f64())
        }
        "route_id" => line.route?.to_owned(),
        "route_name" => line.route_name?.to_owned(),
        "service_id" => line.service?.to_owned(),
        "service_name" => line.service_name?.to_owned(),
        "mqtt_client_id" => details.client_id.as_deref()?.to_owned(),
        "mqtt_username" => details.username.as_deref()?.to_owned(),
        "mqtt_protocol_level" => details.level?.to_string(),
        "mqtt_keep_alive" => details.keep_alive?.to_string(),
        "mqtt_clean_start" => u8::from(details.clean_start?).to_string(),
        "mqtt_session_expiry" => details.session_expiry?.to_string(),
        "mqtt_connack" => details.connack?.to_string(),
        "stream_session_reason" => session_reason(ending.reason)?.to_owned(),
        "end_side" => ending.side.to_owned(),
        "end_phase" => ending.phase.to_owned(),
        "end_reason" => ending.reason.to_owned(),
        _ if name.starts_with("ssl_") => details.tls.as_ref()?.get(name)?.to_owned(),
        _ => return None,
    };
    Some(text.into_bytes())
}

/// What APISIX's nginx calls the end of a session; it has no word for most refusals.
fn session_reason(reason: &str) -> Option<&'static str> {
    Some(match reason {
        "client_closed" | "broker_closed" | "client_left_early" => "closed",
        "client_error" => "client_error",
        "broker_error" => "upstream_error",
        "idle_timeout" => "upstream_timeout",
        "shutdown" => "shutdown",
        "connect_failed" | "retry_timeout" => "connect_failed",
        "first_byte_timeout" | "connect_timeout" => "recv_timeout",
        _ => return None,
    })
}

fn local(format: &str) -> String {
    let mut text = String::new();
    // Only an unknown directive could fail.
    let _ = write!(text, "{}", jiff::Zoned::now().strftime(format));
    text
}
