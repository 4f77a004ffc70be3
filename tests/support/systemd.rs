//! The real systemd, as process 1 of namespaces of its own: it sees the machine's files read-only
//! (but for its own copies of what it writes to) and the machine's network. It and all that it
//! started end with this value.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use super::files::Files;
use super::wait::{SOON, wait_until};

/// Where the folder of the test is seen inside.
pub const FOLDER: &str = "/run/under-test";

/// What happens in the new namespaces before systemd takes over as process 1.
const SET_UP: &str = r#"
set -e
folder=$1
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir -p /run/lock /run/under-test
mount --bind "$folder" /run/under-test
for writable in /tmp /var/tmp /var/log /var/lib/systemd; do
    [ ! -d $writable ] || mount -t tmpfs tmpfs $writable
done
umount -R /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount --bind /proc/sys /proc/sys
mount -o remount,ro,bind /proc/sys
mount -o remount,ro,bind /
export container=test SYSTEMD_UNIT_PATH=/run/under-test/units
exec /usr/lib/systemd/systemd --system --log-level=info --log-target=console --show-status=no
"#;

/// A running system manager.
pub struct Systemd {
    unshare: Child,
    cgroup: PathBuf,
    log: PathBuf,
    init: u32,
}

impl Systemd {
    /// Starts it with the units in the folder `units` of these files; `None`, with the reason
    /// printed, where that is not possible.
    pub fn start(files: &Files) -> Option<Self> {
        let cgroup = match Self::cgroup() {
            Ok(cgroup) => cgroup,
            Err(why) => {
                eprintln!("skipped: systemd cannot be run here: {why}");
                return None;
            }
        };
        // Other users than root must see into the folder.
        fs::set_permissions(files.dir(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let log = files.path("systemd.log");
        let output = fs::File::create(&log).expect("a file");
        let procs = cgroup.join("cgroup.procs");
        let unshare = Command::new("sh")
            .args(["-c", r#"echo $$ >"$1"; shift; exec "$@""#, "sh"])
            .arg(&procs)
            .args([
                "unshare",
                "--mount",
                "--pid",
                "--fork",
                "--mount-proc",
                "--cgroup",
            ])
            .args(["--uts", "--ipc", "--kill-child", "sh", "-c", SET_UP, "sh"])
            .arg(files.dir())
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a descriptor"))
            .stderr(output)
            .spawn()
            .expect("unshare");
        let mut systemd = Self {
            unshare,
            cgroup,
            log,
            init: 0,
        };
        systemd.init = wait_until("process 1", SOON, || child_of(systemd.unshare.id()));
        wait_until("systemd to answer", Duration::from_secs(60), || {
            if let Some(status) = systemd.unshare.try_wait().expect("wait") {
                panic!("systemd ended: {status}:\n{}", systemd.said());
            }
            let state = systemd.systemctl(&["is-system-running"]);
            let state = String::from_utf8_lossy(&state.stdout).into_owned();
            ["running", "degraded"]
                .contains(&state.trim())
                .then_some(())
        });
        Some(systemd)
    }

    /// A control group for it; the reason where there can be none.
    fn cgroup() -> Result<PathBuf, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("it takes root".to_owned());
        }
        for needed in [
            "/usr/lib/systemd/systemd",
            "/usr/bin/unshare",
            "/usr/bin/nsenter",
        ] {
            if !Path::new(needed).exists() {
                return Err(format!("there is no {needed}"));
            }
        }
        let mounts = fs::read_to_string("/proc/self/mounts").map_err(|error| error.to_string())?;
        let mount = mounts.lines().find_map(|line| {
            let mut fields = line.split(' ');
            let (_, path, kind) = (fields.next()?, fields.next()?, fields.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(path))
        });
        let mount = mount.ok_or("no cgroup2 is mounted")?;
        let probe = Command::new("unshare")
            .args([
                "--mount",
                "--pid",
                "--fork",
                "--mount-proc",
                "--cgroup",
                "--uts",
                "--ipc",
            ])
            .args(["mount", "-t", "cgroup2", "cgroup2", "/mnt"])
            .output()
            .map_err(|error| error.to_string())?;
        if !probe.status.success() {
            return Err(String::from_utf8_lossy(&probe.stderr).into_owned());
        }
        let own = mount.join(format!("mqtt-proxy-test-{}", std::process::id()));
        fs::create_dir(&own).map_err(|error| format!("{}: {error}", own.display()))?;
        Ok(own)
    }

    /// A command inside.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args([
                "-t",
                &self.init.to_string(),
                "-m",
                "-p",
                "-C",
                "--",
                program,
            ])
            .env_remove("RUNTIME_DIRECTORY")
            .stdin(Stdio::null());
        command
    }

    /// Runs `systemctl` inside.
    pub fn systemctl(&self, arguments: &[&str]) -> Output {
        let output = self.command("systemctl").args(arguments).output();
        output.expect("systemctl")
    }

    /// Runs `systemctl`, which must succeed.
    pub fn must(&self, arguments: &[&str]) {
        let output = self.systemctl(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {output:?}\n{}",
            self.said()
        );
    }

    /// A property of a unit.
    pub fn property(&self, unit: &str, name: &str) -> String {
        let output = self.systemctl(&["show", "--value", "-p", name, unit]);
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// What systemd has said.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// The only child of a process, once it has one.
fn child_of(pid: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

impl Drop for Systemd {
    fn drop(&mut self) {
        // Its child, process 1, dies with it, and with that everything inside.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        if std::thread::panicking() {
            eprintln!("--- systemd said:\n{}\n---", self.said());
        }
        for _ in 0..500 {
            remove_groups(&self.cgroup);
            if !self.cgroup.exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Removes empty control groups, the innermost first.
fn remove_groups(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}
