//! Names of the variables that hash keys and the like may use.

use super::names::nearest;

/// What a variable name means for a stream connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// It can have a value here.
    Resolvable,
    /// It has the same value for every connection.
    Constant,
    /// APISIX accepts it, but a stream connection never has it.
    Never,
    /// APISIX's stream side has it, this program does not.
    NotHere,
    /// Nobody knows it.
    Unknown,
}

/// Variables of a connection that have values before its node is picked.
pub const RESOLVABLE: [&str; 24] = [
    "mqtt_client_id",
    "mqtt_username",
    "mqtt_protocol_level",
    "mqtt_clean_start",
    "mqtt_keep_alive",
    "remote_addr",
    "remote_port",
    "binary_remote_addr",
    "realip_remote_addr",
    "realip_remote_port",
    "server_addr",
    "server_port",
    "protocol",
    "route_id",
    "route_name",
    "service_id",
    "service_name",
    "ssl_server_name",
    "ssl_protocol",
    "ssl_cipher",
    "ssl_client_s_dn",
    "ssl_client_cn",
    "ssl_client_serial",
    "ssl_client_fingerprint",
];

/// The same for every connection, as in APISIX; `server_name` is empty in nginx's stream.
const CONSTANT: [&str; 2] = ["server_name", "hostname"];

/// Names of HTTP that APISIX's key pattern admits and that no stream connection has.
const NEVER: [&str; 4] = ["uri", "host", "query_string", "request_uri"];

/// Further variables of APISIX's stream side.
const NOT_HERE: [&str; 40] = [
    "balancer_ip",
    "balancer_port",
    "upstream_unresolved_host",
    "redis_cmd_line",
    "rpc_time",
    "bytes_received",
    "bytes_sent",
    "msec",
    "nginx_version",
    "session_time",
    "pid",
    "connection",
    "stream_listen_addr",
    "status",
    "time_iso8601",
    "time_local",
    "proxy_protocol_addr",
    "proxy_protocol_port",
    "proxy_protocol_server_addr",
    "proxy_protocol_server_port",
    "ssl_ciphers",
    "ssl_curves",
    "ssl_session_id",
    "ssl_session_reused",
    "ssl_client_verify",
    "ssl_client_i_dn",
    "ssl_client_cert",
    "ssl_client_raw_cert",
    "ssl_client_v_start",
    "ssl_client_v_end",
    "ssl_client_v_remain",
    "ssl_alpn_protocol",
    "upstream_addr",
    "upstream_bytes_sent",
    "upstream_bytes_received",
    "upstream_connect_time",
    "upstream_first_byte_time",
    "upstream_session_time",
    "upstream_sni",
    "stream_session_reason",
];

/// What `name` (without `$`) means.
pub fn known(name: &str) -> Known {
    if RESOLVABLE.contains(&name) {
        Known::Resolvable
    } else if CONSTANT.contains(&name) {
        Known::Constant
    } else if NEVER.contains(&name) || is_arg(name) {
        Known::Never
    } else if NOT_HERE.contains(&name) || name.starts_with("proxy_protocol_tlv_") {
        Known::NotHere
    } else {
        Known::Unknown
    }
}

/// The resolvable name nearest to a misspelt one.
pub fn suggestion(name: &str) -> Option<&'static str> {
    nearest(name, RESOLVABLE.iter().copied())
}

/// `arg_…`, a query argument in HTTP.
fn is_arg(name: &str) -> bool {
    name.strip_prefix("arg_").is_some_and(|rest| {
        !rest.is_empty()
            && rest
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_by_meaning() {
        assert_eq!(known("mqtt_client_id"), Known::Resolvable);
        assert_eq!(known("remote_addr"), Known::Resolvable);
        assert_eq!(known("server_name"), Known::Constant);
        assert_eq!(known("uri"), Known::Never);
        assert_eq!(known("arg_id"), Known::Never);
        assert_eq!(known("arg_"), Known::Unknown);
        assert_eq!(known("upstream_addr"), Known::NotHere);
        assert_eq!(known("proxy_protocol_tlv_alpn"), Known::NotHere);
        assert_eq!(known("clientid"), Known::Unknown);
    }

    #[test]
    fn misspelt_names_get_a_suggestion() {
        assert_eq!(suggestion("mqtt_clientid"), Some("mqtt_client_id"));
        assert_eq!(suggestion("zzz"), None);
    }
}
