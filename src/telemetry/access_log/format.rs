//! JSON and logfmt.

use std::fmt::Write;
use std::time::Duration;

use super::Line;

/// One line as a JSON object, line feed included.
pub(super) fn json(line: &Line<'_>) -> Vec<u8> {
    let mut fields = Fields::new(true);
    fields.all(line);
    fields.text.push_str("}\n");
    fields.text.into_bytes()
}

/// One line as `key=value` pairs, line feed included.
pub(super) fn logfmt(line: &Line<'_>) -> Vec<u8> {
    let mut fields = Fields::new(false);
    fields.all(line);
    fields.text.push('\n');
    fields.text.into_bytes()
}

/// Variables of TLS that are fields, under their own names.
const TLS_FIELDS: [&str; 9] = [
    "ssl_server_name",
    "ssl_protocol",
    "ssl_cipher",
    "ssl_session_reused",
    "ssl_client_verify",
    "ssl_client_s_dn",
    "ssl_client_cn",
    "ssl_client_serial",
    "ssl_client_fingerprint",
];

/// A line in the making. Writing to a String cannot fail.
struct Fields {
    text: String,
    json: bool,
}

impl Fields {
    fn new(json: bool) -> Self {
        let mut text = String::with_capacity(512);
        if json {
            text.push('{');
        }
        Fields { text, json }
    }

    /// Every field that has a value. The order is part of the format.
    fn all(&mut self, line: &Line<'_>) {
        let details = line.details;
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ");
        self.put("ts", &now.to_string());
        let event = match line.ending {
            None => "connected",
            Some(_) => "ended",
        };
        self.put("event", event);
        self.put("conn", &format!("{:016x}", details.id));
        self.put("listener", &line.listener.to_string());
        self.put("client", &line.client.to_string());
        if let Some(tls) = details.tls.as_deref() {
            for name in TLS_FIELDS {
                self.put_some(name, tls.get(name));
            }
        }
        self.number("mqtt_version", details.level);
        self.put_some("client_id", details.client_id.as_deref());
        self.put_some("username", details.username.as_deref());
        self.number("keep_alive", details.keep_alive);
        if let Some(clean_start) = details.clean_start {
            self.bare("clean_start", clean_start);
        }
        self.number("session_expiry", details.session_expiry);
        self.put_some("route", line.route);
        self.put_some("upstream", line.upstream);
        self.put_some("node", line.node);
        if let Some(address) = details.node_addr {
            self.put("node_addr", &address.to_string());
        }
        let source = |by_address| if by_address { "address" } else { "configured" };
        self.put_some("hash_key", details.hashed_by_address.map(source));
        self.number("tries", details.tries);
        self.seconds("handshake_seconds", details.handshake_us);
        self.seconds("connect_seconds", details.connect_us);
        self.seconds("dial_seconds", details.dial_us);
        self.seconds("first_byte_seconds", details.first_byte_us);
        self.number("connack", details.connack);
        if let Some(ending) = &line.ending {
            let lived = ending.duration.as_secs_f64();
            self.bare("duration_seconds", format_args!("{lived:.3}"));
            self.bare("to_broker_bytes", ending.to_broker);
            self.bare("to_client_bytes", ending.to_client);
            self.put("end_side", ending.side);
            self.put("end_phase", ending.phase);
            self.put("end_reason", ending.reason);
        }
    }

    fn name(&mut self, name: &str) {
        match self.json {
            true if self.text.len() == 1 => {}
            true => self.text.push(','),
            false if self.text.is_empty() => {}
            false => self.text.push(' '),
        }
        let _ = match self.json {
            true => write!(self.text, "\"{name}\":"),
            false => write!(self.text, "{name}="),
        };
    }

    /// A value that needs no quotes.
    fn bare(&mut self, name: &str, value: impl std::fmt::Display) {
        self.name(name);
        let _ = write!(self.text, "{value}");
    }

    fn number(&mut self, name: &str, value: Option<impl std::fmt::Display>) {
        if let Some(value) = value {
            self.bare(name, value);
        }
    }

    fn seconds(&mut self, name: &str, micros: Option<u64>) {
        let seconds = micros.map(|micros| Duration::from_micros(micros).as_secs_f64());
        if let Some(seconds) = seconds {
            self.bare(name, format_args!("{seconds:.6}"));
        }
    }

    fn put_some(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.put(name, value);
        }
    }

    fn put(&mut self, name: &str, value: &str) {
        self.name(name);
        let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '=' | '\\');
        if !self.json && !value.is_empty() && value.chars().all(plain) {
            self.text.push_str(value);
            return;
        }
        self.text.push('"');
        escape_json(value, &mut self.text);
        self.text.push('"');
    }
}

/// The inside of a JSON string. Every control character is escaped, those that JSON would let
/// through included: nobody's terminal obeys a client.
pub(super) fn escape_json(value: &str, out: &mut String) {
    for c in value.chars() {
        let _ = match c {
            '"' | '\\' => write!(out, "\\{c}"),
            '\n' => write!(out, "\\n"),
            '\r' => write!(out, "\\r"),
            '\t' => write!(out, "\\t"),
            // Beyond C0, DEL and C1: line separators, and marks that turn the direction of text.
            c if c.is_control()
                || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
            {
                write!(out, "\\u{:04x}", u32::from(c))
            }
            c => write!(out, "{c}"),
        };
    }
}
