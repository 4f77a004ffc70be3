//! Upgrades between versions under traffic, while brokers and routes change.

mod support;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use support::generations::Generations;
use support::handover::{Waiting, carry_all, connect, socket_in};
use support::newcomers::Newcomers;
use support::process::more_open_files;
use support::proxy::BINARY;
use support::traffic::{Device, under_traffic};
use support::versions::Version;
use support::{Files, SOON, config, free_port, free_ports, local, wait_until};

const DEVICES: usize = 2_000;

/// One MQTT route over some of the brokers; its name, its balancer and its upstream change with `n`.
fn routes(n: usize, brokers: &[SocketAddr]) -> String {
    let nodes: Vec<String> = brokers
        .iter()
        .enumerate()
        .filter(|(index, _)| !(n + index).is_multiple_of(brokers.len()))
        .map(|(_, addr)| format!("\"{addr}\": {}", 1 + n % 3))
        .collect();
    let kind = [
        "type: chash, key: mqtt_client_id",
        "type: least_conn",
        "type: roundrobin",
    ][n % 3];
    format!(
        "stream_routes:\n  - id: fleet-{n}\n    plugins: {{mqtt-proxy: {{protocol_level: 4}}}}\n    \
         upstream_id: u{n}\nupstreams:\n  - {{id: u{n}, {kind}, nodes: {{{}}}}}\n#END\n",
        nodes.join(", ")
    )
}

/// Which binary the next upgrade starts, and what stands between the two processes.
enum Step {
    /// Messages are translated on their way, as if one side had another version.
    Translated(Version),
    /// A real binary of another version, or back to the one under test.
    Real(PathBuf),
}

/// `MQTT_PROXY_OTHER_BINARY` names a binary of another version: upgrades go there and back.
fn steps() -> Vec<Step> {
    let other = std::env::var_os("MQTT_PROXY_OTHER_BINARY").map(PathBuf::from);
    (0..20)
        .map(|n| match (&other, n % 2) {
            (Some(other), 0) => Step::Real(other.clone()),
            (Some(_), _) => Step::Real(BINARY.into()),
            (None, 0) => Step::Translated(Version::First),
            (None, _) => Step::Translated(Version::Later),
        })
        .collect()
}

#[test]
fn two_thousand_connections_live_through_twenty_upgrades_while_versions_brokers_and_routes_change()
{
    more_open_files();
    let port = free_port();
    let brokers: Vec<SocketAddr> = free_ports::<4>().into_iter().map(local).collect();
    let files = Files::new(&config(&[port]), &routes(0, &brokers));
    let mut proxy = Generations::start_copy(&files, &[port]);
    let device = |n| Device {
        id: format!("device-{n}"),
        port,
        pause: Duration::from_millis(400),
        ahead: 1,
        payload: 120,
    };
    let all: Vec<Device> = (0..DEVICES).map(device).collect();
    let outcome = under_traffic(&brokers.clone(), all, move |view| {
        view.take_slowest();
        let newcomers = Newcomers::to(port);
        let mut before = view.take_own_delay();
        for (n, step) in steps().into_iter().enumerate() {
            let (answers, served) = (view.answers(), newcomers.served());
            files.replace_routes(routes(n + 1, &brokers));
            let old = proxy.current();
            let mark = proxy.mark();
            match step {
                Step::Real(binary) => {
                    proxy.install(&binary);
                    proxy.signal_current(rustix::process::Signal::USR2);
                    proxy.handed_over(mark);
                    proxy.wait_until_gone(old);
                }
                Step::Translated(version) => {
                    let apart = proxy.other_runtime();
                    proxy.install_real_in(&apart);
                    let waiting = Waiting::at(socket_in(&proxy.runtime(), &files));
                    proxy.signal_current(rustix::process::Signal::USR2);
                    let from = waiting.accept();
                    let to = connect(&socket_in(&apart, &files));
                    let carrying = std::thread::spawn(move || {
                        carry_all(from, to, move |frame| version.translate(frame));
                    });
                    proxy.handed_over(mark);
                    proxy.wait_until_gone(old);
                    carrying.join().expect("the middle");
                }
            }
            view.wait_for_answers(answers, DEVICES as u64);
            wait_until("newcomers after the upgrade", SOON, || {
                (newcomers.served() > served || newcomers.have_ended()).then_some(())
            });
            let (slowest, own) = (view.take_slowest(), view.take_own_delay());
            eprintln!("upgrade {n}: slowest round trip {slowest:?}, own delay {own:?}");
            // As in the test without a middle, whose thread adds its own delay here.
            let limit = Duration::from_secs(5) + 16 * own.max(before);
            before = own;
            assert!(slowest < limit, "a round trip of {slowest:?}");
        }
        let served = newcomers.finish();
        eprintln!("{served} newcomers");
        assert_eq!(proxy.processes(), [proxy.current()]);
        proxy
    });
    outcome.expect_flawless(DEVICES);
}
