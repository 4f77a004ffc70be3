//! `apisix.enable_control`, `apisix.control` and `apisix.status`.

use std::net::SocketAddr;

use super::load::{address, find, flag, place};
use super::{ControlSettings, Listener, MetricsSettings};
use crate::config::diagnostic::{At, Problems};
use crate::config::document::Node;

/// Where the control API is served. APISIX serves it only beside HTTP; here `proxy_mode` does not
/// matter, as it does not for listeners.
pub(super) fn control(root: &Node, problems: &mut Problems) -> Option<ControlSettings> {
    let default = SocketAddr::from(([127, 0, 0, 1], 9090));
    let addr = address(root, &["apisix", "control"], default, problems);
    let asked_for = flag(root, &["apisix", "enable_control"], false);
    let written = asked_for || find(root, &["apisix", "control"]).is_some();
    flag(root, &["apisix", "enable_control"], true).then_some(ControlSettings { addr, written })
}

/// Where readiness is served besides; as in APISIX nowhere unless the block is there.
pub(super) fn status(root: &Node, problems: &mut Problems) -> Option<SocketAddr> {
    let default = SocketAddr::from(([127, 0, 0, 1], 7085));
    find(root, &["apisix", "status"])?;
    Some(address(root, &["apisix", "status"], default, problems))
}

/// The two without those whose address somebody else in this file has. That is no error: with
/// `proxy_mode: stream`, APISIX does not open these addresses and so finds nothing wrong.
pub(super) fn without_conflicts(
    root: &Node,
    (control, status): (Option<ControlSettings>, Option<SocketAddr>),
    listeners: &[Listener],
    metrics: Option<&MetricsSettings>,
    problems: &mut Problems,
) -> (Option<ControlSettings>, Option<SocketAddr>) {
    let clients = listeners
        .iter()
        .map(|listener| ("a listener", listener.addr));
    let metrics = metrics.map(|metrics| ("the metrics", metrics.addr));
    let mut taken: Vec<_> = clients.chain(metrics).collect();
    let mut is_free = |addr: SocketAddr, key: &str, tell: bool, own: &'static str| {
        let other = taken.iter().find(|(_, other)| collide(*other, addr));
        if let Some((whose, other)) = other.filter(|_| tell) {
            let message = format!("{addr} is not served: {whose} has {other}");
            let apisix = At::Root.key("apisix");
            problems.warn(place(root, &["apisix", key]), &apisix.key(key), message);
        }
        let free = other.is_none();
        taken.extend(free.then_some((own, addr)));
        free
    };
    let control = control.filter(|control| {
        let own = "the control API, which answers /status as well,";
        is_free(control.addr, "control", control.written, own)
    });
    let status = status.filter(|&status| is_free(status, "status", true, "apisix.status"));
    (control, status)
}

/// Whether two sockets cannot listen on these addresses at once.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let any = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port()
        && one.is_ipv4() == other.is_ipv4()
        && (any || one.ip() == other.ip())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::settings::{ControlSettings, Settings, load};

    fn read(apisix: &str) -> (Settings, Vec<String>) {
        let text = format!("apisix:\n  stream_proxy: {{tcp: [9100]}}\n{apisix}");
        let loaded = load(&text, Path::new("config.yaml"), &|_| None);
        let told = loaded.diagnostics.iter().map(ToString::to_string);
        (loaded.value.unwrap(), told.collect())
    }

    fn control(addr: &str, written: bool) -> Option<ControlSettings> {
        let addr = addr.parse().unwrap();
        Some(ControlSettings { addr, written })
    }

    #[test]
    fn the_control_api_is_there_unless_it_is_switched_off() {
        for (text, expected) in [
            ("", control("127.0.0.1:9090", false)),
            ("  enable_control: true\n", control("127.0.0.1:9090", true)),
            ("  enable_control: false\n  control: {port: 1}\n", None),
            ("  control: {port: 9}\n", control("127.0.0.1:9", true)),
            ("  control: {ip: '::1'}\n", control("[::1]:9090", true)),
            ("  control: {ip: '[::1]'}\n", control("[::1]:9090", true)),
        ] {
            let (settings, told) = read(text);
            assert_eq!((settings.control, told), (expected, vec![]), "{text}");
        }
    }

    #[test]
    fn the_status_server_is_there_when_it_is_written() {
        assert_eq!(read("").0.status, None);
        let (settings, _) = read("  status: {ip: 0.0.0.0}\n");
        assert_eq!(settings.status, "0.0.0.0:7085".parse().ok());
    }

    #[test]
    fn what_is_no_address_is_named() {
        let (_, told) = read("  control: {ip: localhost}\n");
        assert_eq!(
            told,
            [
                "config.yaml:3:17: apisix.control.ip: expected an address, found the string \"localhost\""
            ]
        );
    }

    #[test]
    fn an_address_that_the_file_uses_for_something_else_is_left_to_it() {
        let (settings, told) = read("  control: {ip: 127.0.0.1, port: 9100}\n");
        assert_eq!(settings.control, None);
        assert_eq!(
            told,
            [
                "config.yaml:3:3: warning: apisix.control: 127.0.0.1:9100 is not served: a listener has 0.0.0.0:9100"
            ]
        );
        let (settings, told) = read("mqtt_proxy: {metrics: {addr: '127.0.0.1:9090'}}\n");
        assert_eq!(
            (settings.control, told),
            (None, vec![]),
            "nobody asked for it"
        );
        let (settings, told) = read("  status: {port: 9090}\n");
        assert!(settings.control.is_some() && settings.status.is_none());
        assert!(told[0].contains("answers /status as well"), "{told:?}");
    }
}
