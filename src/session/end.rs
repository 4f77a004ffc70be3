//! How a connection ends, and the words that others have for it.

use serde::{Deserialize, Serialize};

/// Who or what ended a connection, and in which phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The client went away before it could be let through.
    ClientLeftEarly,
    /// It was refused; the reason is counted apart.
    Refused,
    /// The client ended the relayed connection first.
    ClientClosed,
    /// The broker ended it first.
    BrokerClosed,
    /// The client's side broke: reset, or no answer to keepalive probes.
    ClientError,
    /// The broker's side broke.
    BrokerError,
    /// Nothing was sent either way for the idle timeout.
    IdleTimeout,
    /// This process leaves, or left.
    Shutdown,
    /// Its broker leaves its upstream (`drain`).
    Drained,
    /// Its place is with another broker that is back (`rebalance`).
    Rebalanced,
    /// Another process relays it now (an upgrade).
    HandedOver,
    /// The process ended, or a task died: nobody said why.
    #[serde(other)]
    Aborted,
}

impl End {
    /// Every way in which a connection can end.
    pub const REASONS: [&str; 11] = [
        "client_left_early",
        "refused",
        "client_closed",
        "broker_closed",
        "client_error",
        "broker_error",
        "idle_timeout",
        "shutdown",
        "drained",
        "rebalanced",
        "aborted",
    ];

    /// The label in logs and metrics.
    pub fn reason(self) -> &'static str {
        match self {
            End::ClientLeftEarly => "client_left_early",
            End::Refused => "refused",
            End::ClientClosed => "client_closed",
            End::BrokerClosed => "broker_closed",
            End::ClientError => "client_error",
            End::BrokerError => "broker_error",
            End::IdleTimeout => "idle_timeout",
            End::Shutdown => "shutdown",
            End::Drained => "drained",
            End::Rebalanced => "rebalanced",
            End::HandedOver => "handed_over",
            End::Aborted => "aborted",
        }
    }

    /// Who ended it, in the access log's words. `refusal` is the reason of a refused connection.
    pub fn side(self, refusal: Option<&str>) -> &'static str {
        // A broker that does not answer is what refuses; all else is this program's decision.
        let unreachable = matches!(refusal, Some("connect_failed" | "retry_timeout"));
        match self {
            End::ClientLeftEarly | End::ClientClosed | End::ClientError => "client",
            End::BrokerClosed | End::BrokerError => "broker",
            End::Refused if unreachable => "broker",
            End::Refused
            | End::IdleTimeout
            | End::Shutdown
            | End::Drained
            | End::Rebalanced
            | End::HandedOver
            | End::Aborted => "proxy",
        }
    }

    /// nginx's `$status`, as APISIX sets it: 001 is its universal refusal, a preread timeout ends
    /// as well as it began.
    pub fn status(self, refusal: Option<&str>) -> &'static str {
        match (self, refusal) {
            (End::Refused, Some("first_byte_timeout" | "connect_timeout")) => "200",
            (End::Refused, Some("connect_failed" | "retry_timeout" | "no_node")) => "502",
            (End::Refused, Some("too_large")) => "400",
            (End::Refused, _) => "001",
            (End::Aborted, _) => "500",
            _ => "200",
        }
    }

    /// The label `code` of APISIX's `apisix_stream_status`: its `$status`, refined by what ended
    /// the session, and for one that a plugin refused the code of the plugin.
    pub fn apisix_code(self, refusal: Option<&str>) -> &'static str {
        match (self, refusal) {
            (End::ClientError, _) => "400",
            (End::BrokerError | End::IdleTimeout, _) => "502",
            // Refused before or behind the plugins.
            (End::Refused, Some("no_route" | "no_upstream")) => "001",
            (End::Refused, refusal) => match self.status(refusal) {
                "001" => "503",
                status => status,
            },
            _ => self.status(refusal),
        }
    }
}

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nothing but accepted.
    Accept,
    /// TLS is beginning.
    Handshake,
    /// CONNECT is being read.
    Connect,
    /// A broker is being dialled.
    Dial,
    /// Relayed.
    Relay,
}

impl Phase {
    /// The label in the access log.
    pub fn label(self) -> &'static str {
        match self {
            Phase::Accept => "accept",
            Phase::Handshake => "handshake",
            Phase::Connect => "connect",
            Phase::Dial => "dial",
            Phase::Relay => "relay",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apisix_codes() {
        let refused = |reason| End::Refused.apisix_code(Some(reason));
        assert_eq!(refused("not_mqtt"), "503", "what the plugin returns");
        assert_eq!(refused("connect_failed"), "502");
        assert_eq!(refused("connect_timeout"), "200");
        assert_eq!(refused("too_large"), "400");
        assert_eq!(refused("no_upstream"), "001");
        assert_eq!(End::IdleTimeout.apisix_code(None), "502");
        assert_eq!(End::ClientError.apisix_code(None), "400");
        assert_eq!(End::BrokerClosed.apisix_code(None), "200");
        assert_eq!(End::Aborted.apisix_code(None), "500");
    }
}
