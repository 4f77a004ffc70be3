//! The packaged unit under the real systemd: start, reload, upgrade, watchdog, wrong configuration,
//! stop. It takes root, namespaces and a control group; without them the test says so and passes.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use support::proxy::{BINARY, Ran};
use support::served::routes;
use support::systemd::{FOLDER, Systemd};
use support::{Broker, Client, Connect, Files, SOON, config, free_port, wait_until};

const UNIT: &str = "mqtt-proxy.service";
const PACKAGED: &str = include_str!("../packaging/systemd/mqtt-proxy.service");
/// Long enough for a busy machine, short enough to be waited for.
const WATCHDOG: &str = "WatchdogSec=15";

/// The packaged unit, with another place for its files, another user, and a log to look at.
fn install(files: &Files) {
    let adapted = PACKAGED
        .replace("/usr/bin/mqtt-proxy", &format!("{FOLDER}/mqtt-proxy"))
        .replace("/etc/mqtt-proxy/", &format!("{FOLDER}/"))
        .replace("User=mqtt-proxy", "User=nobody")
        .replace("Group=mqtt-proxy", "Group=nogroup")
        .replace("Wants=network-online.target", "DefaultDependencies=no")
        .replace("After=network-online.target\n", "")
        .replace("WatchdogSec=60", WATCHDOG)
        .replace(
            "[Service]",
            &format!(
                "[Service]\nStandardOutput=append:{FOLDER}/log\nStandardError=append:{FOLDER}/log"
            ),
        );
    for changed in [FOLDER, "User=nobody", WATCHDOG] {
        assert!(adapted.contains(changed), "{changed}");
    }
    fs::create_dir(files.path("units")).expect("a folder");
    fs::write(files.path("units").join(UNIT), adapted).expect("write");
    let target = files.path("units/default.target");
    fs::write(target, "[Unit]\nDescription=Nothing\n").expect("write");
    install_binary(files);
}

/// Puts the binary in place by rename, as a package manager does.
fn install_binary(files: &Files) {
    let fresh = files.path("mqtt-proxy.fresh");
    fs::copy(BINARY, &fresh).expect("copy");
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).expect("chmod");
    fs::rename(fresh, files.path("mqtt-proxy")).expect("rename");
}

/// A unit that runs.
struct Service {
    systemd: Systemd,
    files: Files,
    port: u16,
}

impl Service {
    fn property(&self, name: &str) -> String {
        self.systemd.property(UNIT, name)
    }

    fn main_pid(&self) -> u32 {
        self.property("MainPID").parse().expect("a process id")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.files.path("log")).unwrap_or_default()
    }

    fn expect_active(&self) {
        // For the moments of a reload, which the proxy may do by itself, it is not "running".
        self.wait_for("ActiveState", "active");
        self.wait_for("SubState", "running");
    }

    fn client(&self, id: &str) -> Client {
        Client::mqtt(self.port, &Connect::v311(id))
    }

    fn wait_for(&self, property: &str, value: &str) {
        let within = Duration::from_secs(60);
        wait_until(&format!("{property} {value}"), within, || {
            let is = self.property(property);
            // "inactive" is not "active"; a status has more words.
            (is == value || property == "StatusText" && is.contains(value)).then_some(())
        });
    }

    /// `mqtt-proxy upgrade`, by root and without anything that the unit has in its environment.
    fn upgrade(&self) -> Ran {
        let program = format!("{FOLDER}/mqtt-proxy");
        let mut command = self.systemd.command(&program);
        let output = command.arg("upgrade").output();
        output.expect("the command runs").into()
    }

    fn kill(&self, signal: &str) {
        self.systemd
            .must(&["kill", "--kill-who=main", "-s", signal, UNIT]);
    }
}

#[test]
fn start_reload_upgrade_watchdog_wrong_configuration_and_stop() {
    let (broker, port) = (Broker::mqtt(), free_port());
    let good = config(&[port]);
    let files = Files::new(&good, &routes(&broker));
    install(&files);
    let Some(systemd) = Systemd::start(&files) else {
        return;
    };
    let service = Service {
        systemd,
        files,
        port,
    };
    let files = &service.files;

    // Started means that it accepts.
    service.systemd.must(&["start", UNIT]);
    service.expect_active();
    let mut live: Vec<Client> = (0..20).map(|n| service.client(&format!("c{n}"))).collect();
    service.wait_for("StatusText", "20 connections, 1 routes; loaded 20");
    let first = service.main_pid();
    let runtime = "/run/mqtt-proxy";
    let mode = service
        .systemd
        .command("stat")
        .args(["-c", "%a %U", runtime])
        .output();
    assert_eq!(mode.expect("stat").stdout, b"700 nobody\n");

    // A reload, and one that is refused before the process hears of it.
    files.replace_routes(routes(&broker).replace("id: 1", "id: renamed"));
    service.systemd.must(&["reload", UNIT]);
    wait_until("the new routes", SOON, || {
        service.log().contains("SIGHUP: reading").then_some(())
    });
    service.expect_active();
    let well = files.routes_text();
    files.replace_routes("stream_routes: [\n#END\n");
    let refused = service.systemd.systemctl(&["reload", UNIT]);
    assert!(!refused.status.success(), "{refused:?}");
    service.expect_active();
    files.replace_routes(&well);
    live.iter_mut().for_each(Client::expect_alive);

    // Upgrades: systemd follows to the new process, and knows of no restart.
    for by_command in [true, false, true] {
        install_binary(files);
        let before = service.main_pid();
        if by_command {
            let ran = service.upgrade();
            assert_eq!(ran.code, 0, "{}\n{}", ran.all(), service.log());
            assert!(ran.stdout.contains("20 connections moved"), "{}", ran.all());
        } else {
            service.kill("USR2");
        }
        wait_until("another main process", SOON, || {
            (service.main_pid() != before).then_some(())
        });
        service.wait_for("StatusText", "20 connections");
        service.expect_active();
        live.iter_mut().for_each(Client::expect_alive);
        service.client("new").expect_alive();
        wait_until("the old process to be gone", SOON, || {
            let tasks = service
                .systemd
                .command("kill")
                .args(["-0", &before.to_string()])
                .output();
            (!tasks.expect("kill").status.success()).then_some(())
        });
    }
    let now = service.main_pid();
    assert_ne!(now, first);
    assert_eq!(service.property("NRestarts"), "0");

    // One that is refused: everything is as before.
    files.replace("config.yaml", "apisix: [\n");
    let ran = service.upgrade();
    assert_eq!(ran.code, 78, "{}", ran.all());
    service.expect_active();
    assert_eq!(service.main_pid(), now);
    live.iter_mut().for_each(Client::expect_alive);

    // A wrong configuration stops the unit for good.
    drop(live);
    let refused = service.systemd.systemctl(&["restart", UNIT]);
    assert!(!refused.status.success(), "{refused:?}");
    assert_eq!(service.property("ActiveState"), "failed");
    assert_eq!(service.property("ExecMainStatus"), "78");
    assert_eq!(service.property("NRestarts"), "0");
    files.replace("config.yaml", &good);
    service.systemd.must(&["start", UNIT]);
    service.client("again").expect_alive();

    // A process that makes no progress is replaced; nothing but the watchdog looks at it.
    let before = service.main_pid();
    service.kill("STOP");
    service.wait_for("NRestarts", "1");
    service.wait_for("ActiveState", "active");
    assert_ne!(service.main_pid(), before);
    service.client("after").expect_alive();

    // The end waits for the last connection, and is no failure.
    let mut last = service.client("last");
    service.systemd.must(&["stop", "--no-block", UNIT]);
    service.wait_for("StatusText", "waiting for 1 connections to end");
    last.expect_alive();
    drop(last);
    service.wait_for("ActiveState", "inactive");
    assert_eq!(service.property("Result"), "success");
    let left = service.systemd.command("ls").arg(runtime).output();
    assert!(!left.expect("ls").status.success(), "{runtime} is gone");
}
