//! The access log: `mqtt_proxy.access_log`, or APISIX's keys under `nginx_config.stream`.

use std::path::PathBuf;

use super::load::{count, find, flag, place, text};
use crate::config::diagnostic::{At, Problems, quote};
use crate::config::document::Node;

/// APISIX's default format.
pub const DEFAULT_FORMAT: &str =
    "$remote_addr [$time_local] $protocol $status $bytes_sent $bytes_received $session_time";
/// APISIX's default file.
const DEFAULT_FILE: &str = "logs/access_stream.log";
/// Lines that wait for the writer unless configured otherwise.
const DEFAULT_QUEUE: usize = 8192;
/// Rotated files that are kept unless configured otherwise.
const DEFAULT_KEEP: usize = 5;

/// Variables of nginx and of this program that have a value here.
const VARIABLES: [&str; 50] = [
    "binary_remote_addr",
    "bytes_received",
    "bytes_sent",
    "connection",
    "end_phase",
    "end_reason",
    "end_side",
    "hostname",
    "mqtt_clean_start",
    "mqtt_client_id",
    "mqtt_connack",
    "mqtt_keep_alive",
    "mqtt_protocol_level",
    "mqtt_session_expiry",
    "mqtt_username",
    "msec",
    "pid",
    "protocol",
    "realip_remote_addr",
    "realip_remote_port",
    "remote_addr",
    "remote_port",
    "route_id",
    "route_name",
    "server_addr",
    "server_name",
    "server_port",
    "service_id",
    "service_name",
    "session_time",
    "ssl_cipher",
    "ssl_client_cn",
    "ssl_client_fingerprint",
    "ssl_client_s_dn",
    "ssl_client_serial",
    "ssl_client_verify",
    "ssl_protocol",
    "ssl_server_name",
    "ssl_session_reused",
    "status",
    "stream_listen_addr",
    "stream_session_reason",
    "time_iso8601",
    "time_local",
    "upstream_addr",
    "upstream_bytes_received",
    "upstream_bytes_sent",
    "upstream_connect_time",
    "upstream_first_byte_time",
    "upstream_session_time",
];

/// Variables of nginx's stream modules that no connection has a value for here: `-` is written.
const WITHOUT_VALUE: [&str; 16] = [
    "nginx_version",
    "proxy_protocol_addr",
    "proxy_protocol_port",
    "proxy_protocol_server_addr",
    "proxy_protocol_server_port",
    "ssl_alpn_protocol",
    "ssl_ciphers",
    "ssl_client_cert",
    "ssl_client_i_dn",
    "ssl_client_raw_cert",
    "ssl_client_v_end",
    "ssl_client_v_remain",
    "ssl_client_v_start",
    "ssl_curve",
    "ssl_curves",
    "ssl_session_id",
];

/// How and where connections are logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLogSettings {
    /// Where the lines go.
    pub target: AccessLogTarget,
    /// What a line looks like.
    pub format: AccessLogFormat,
    /// Bytes at which the file is rotated; 0 = never.
    pub rotate_size: u64,
    /// Rotated files that are kept, 1–1000.
    pub rotate_keep: usize,
    /// What is logged of client ids and user names.
    pub client_id: ClientIdPolicy,
    /// Lines that may wait for the writer, 16–1,048,576; those beyond are dropped and counted.
    pub queue: usize,
}

/// Where the access log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessLogTarget {
    /// Standard error.
    Stderr,
    /// Standard output.
    Stdout,
    /// A file, as written; relative to the folder of `config.yaml`.
    File(PathBuf),
    /// A file, as written; relative to APISIX's prefix: the folder above a folder named `conf`.
    ApisixFile(PathBuf),
}

/// What a line of the access log looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessLogFormat {
    /// One JSON object.
    Json,
    /// `key=value` pairs.
    Logfmt,
    /// nginx's `log_format`: one line a connection, at its end.
    Nginx {
        /// The pieces of the format.
        parts: Vec<Part>,
        /// How values are escaped.
        escape: Escape,
    },
}

/// A piece of nginx's format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Taken as it is.
    Text(String),
    /// The value of a variable, by its name without `$`.
    Variable(String),
}

/// `access_log_format_escape`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Escape {
    /// `"`, `\`, control characters and bytes above 126 as `\xHH`; no value is `-`.
    #[default]
    Default,
    /// As within a JSON string; no value is nothing.
    Json,
    /// Control characters only, as `\xHH`, so that one line stays one line; no value is nothing.
    None,
}

/// What the access log shows of what a client calls itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClientIdPolicy {
    /// Client id and user name as they are, escaped, at most 128 bytes.
    #[default]
    Plain,
    /// The first 16 hexadecimal digits of their SHA-256.
    Hash,
    /// Neither.
    Omit,
}

/// What `config.yaml` says about the access log; `None` when there is none.
pub(super) fn read(root: &Node, problems: &mut Problems) -> Option<AccessLogSettings> {
    const OWN: [&str; 2] = ["mqtt_proxy", "access_log"];
    const STREAM: [&str; 2] = ["nginx_config", "stream"];
    let Some(own) = find(root, &OWN) else {
        if !flag(root, &[STREAM[0], STREAM[1], "enable_access_log"], false) {
            return None;
        }
        let path = text(root, &[STREAM[0], STREAM[1], "access_log"]);
        let path = path.unwrap_or_else(|| DEFAULT_FILE.to_owned());
        return Some(AccessLogSettings {
            target: target(&path, AccessLogTarget::ApisixFile),
            format: nginx(root, problems),
            rotate_size: 0,
            rotate_keep: DEFAULT_KEEP,
            client_id: ClientIdPolicy::Plain,
            queue: DEFAULT_QUEUE,
        });
    };
    let path = text(own, &["path"]).unwrap_or_else(|| "stderr".to_owned());
    Some(AccessLogSettings {
        target: target(&path, AccessLogTarget::File),
        format: match text(own, &["format"]).as_deref() {
            Some("nginx") => nginx(root, problems),
            Some("logfmt") => AccessLogFormat::Logfmt,
            _ => AccessLogFormat::Json,
        },
        rotate_size: count(own, &["rotate_size"], 0) as u64,
        rotate_keep: count(own, &["rotate_keep"], DEFAULT_KEEP),
        client_id: match text(own, &["client_id"]).as_deref() {
            Some("hash") => ClientIdPolicy::Hash,
            Some("omit") => ClientIdPolicy::Omit,
            _ => ClientIdPolicy::Plain,
        },
        queue: count(own, &["queue"], DEFAULT_QUEUE),
    })
}

/// The streams of the process by their usual names, or a file.
fn target(path: &str, file: fn(PathBuf) -> AccessLogTarget) -> AccessLogTarget {
    match path {
        "stderr" | "/dev/stderr" => AccessLogTarget::Stderr,
        "stdout" | "/dev/stdout" => AccessLogTarget::Stdout,
        path => file(path.into()),
    }
}

fn nginx(root: &Node, problems: &mut Problems) -> AccessLogFormat {
    const FORMAT: [&str; 3] = ["nginx_config", "stream", "access_log_format"];
    let escape = text(
        root,
        &["nginx_config", "stream", "access_log_format_escape"],
    );
    let format = text(root, &FORMAT).unwrap_or_else(|| DEFAULT_FORMAT.to_owned());
    let parts = parse(&format);
    let (nginx_config, position) = (At::Root.key(FORMAT[0]), place(root, &FORMAT));
    let stream = nginx_config.key(FORMAT[1]);
    let at = stream.key(FORMAT[2]);
    for part in &parts {
        let Part::Variable(name) = part else { continue };
        if WITHOUT_VALUE.contains(&name.as_str()) || name.starts_with("proxy_protocol_tlv_") {
            let message = format!("${name} has no value here; - is written for it");
            problems.warn(position, &at, message);
        } else if !VARIABLES.contains(&name.as_str()) {
            let message = format!("unknown variable {}", quote(&format!("${name}")));
            problems.error(position, &at, message);
        }
    }
    AccessLogFormat::Nginx {
        parts,
        escape: match escape.as_deref() {
            Some("json") => Escape::Json,
            Some("none") => Escape::None,
            _ => Escape::Default,
        },
    }
}

/// nginx's own rule: a name is the longest run of letters, digits and `_`, with or without braces.
fn parse(format: &str) -> Vec<Part> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('$') {
        literal.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let (name, behind) = match rest.strip_prefix('{').and_then(|in_| in_.split_once('}')) {
            Some((name, behind)) if name.chars().all(is_name) => (name, behind),
            _ => rest.split_at(rest.find(|c| !is_name(c)).unwrap_or(rest.len())),
        };
        if name.is_empty() {
            literal.push('$');
            continue;
        }
        if !literal.is_empty() {
            parts.push(Part::Text(std::mem::take(&mut literal)));
        }
        parts.push(Part::Variable(name.to_owned()));
        rest = behind;
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        parts.push(Part::Text(literal));
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_cut_at_their_variables() {
        let text = |text: &str| Part::Text(text.to_owned());
        let variable = |name: &str| Part::Variable(name.to_owned());
        assert_eq!(
            parse("$remote_addr.x [${time_local}]$pid"),
            [
                variable("remote_addr"),
                text(".x ["),
                variable("time_local"),
                text("]"),
                variable("pid"),
            ]
        );
        assert_eq!(parse("a $ b ${no end"), [text("a $ b ${no end")]);
        assert_eq!(parse(""), []);
    }
}
