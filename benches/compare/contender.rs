//! The proxies that are compared: their configuration, their processes.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::Failure;
use super::tls::{Identity, SERVER_NAME};
use super::usage;

/// How long a proxy may take to listen, and to end.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

/// Has this program be the floor: listen here, brokers there.
pub const FLOOR: &str = "--be-the-floor";

/// A proxy to compare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contender {
    /// Its name in tables.
    pub name: String,
    /// What it is.
    pub kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Debian's HAProxy.
    Haproxy,
    /// Debian's nginx with its stream module.
    Nginx,
    /// A build of this project.
    Ours(PathBuf),
    /// The cheapest relay there can be, which this program is itself.
    Floor,
}

impl Contender {
    /// Whether it balances by client id, so that this is checked. nginx cannot.
    pub fn reads_client_id(&self) -> bool {
        self.kind != Kind::Nginx
    }

    /// Starts it at `place` before `brokers`.
    pub fn start(&self, place: &Place<'_>, brokers: &[SocketAddr]) -> Result<Running, Failure> {
        let folder = tempfile::Builder::new().prefix("compare-").tempdir()?;
        let listen = free_port()?;
        let setup = Setup {
            folder: folder.path(),
            listen,
            brokers,
            place,
        };
        let line = match &self.kind {
            Kind::Haproxy => setup.haproxy()?,
            Kind::Nginx => setup.nginx()?,
            Kind::Ours(binary) => setup.ours(binary)?,
            Kind::Floor => setup.floor()?,
        };
        // A ticket for each handshake, as mqtt-proxy sends it. The others have no setting for it,
        // and OpenSSL would send two.
        let environment = [("OPENSSL_CONF", setup.openssl()?)];
        let taskset = ["taskset", "-c", place.cores].map(String::from);
        let line = [taskset.as_slice(), &line].concat();
        launch(&self.name, folder, &line, listen, &environment)
    }
}

/// Starts the command in `line`, whose files are in `folder`, and waits until it listens.
pub fn launch(
    name: &str,
    folder: tempfile::TempDir,
    line: &[String],
    listen: SocketAddr,
    environment: &[(&str, String)],
) -> Result<Running, Failure> {
    let log = File::create(folder.path().join("log"))?;
    let child = Command::new(&line[0])
        .args(&line[1..])
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    let mut running = Running {
        child,
        folder,
        listen,
        family: Vec::new(),
    };
    running.wait_until_it_listens(name)?;
    Ok(running)
}

/// Where and how a proxy runs.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The processors that it may use, as taskset takes them.
    pub cores: &'a str,
    /// Worker threads or processes.
    pub workers: usize,
    /// Clients speak TLS with it, and this is its certificate.
    pub identity: Option<&'a Identity>,
    /// Client connections that it must be able to hold.
    pub connections: usize,
}

/// What a configuration says.
struct Setup<'a> {
    folder: &'a Path,
    listen: SocketAddr,
    brokers: &'a [SocketAddr],
    place: &'a Place<'a>,
}

impl Setup<'_> {
    fn openssl(&self) -> io::Result<String> {
        self.write(
            "openssl.cnf",
            "openssl_conf = all\n[all]\nssl_conf = contexts\n[contexts]\nsystem_default = context\n\
             [context]\nNumTickets = 1\n",
        )
    }

    /// The condition makes it wait for the whole CONNECT. Without it a CONNECT that comes after the
    /// connection was accepted, or in two pieces, finds the variable empty, and HAProxy silently
    /// falls back to round robin.
    fn haproxy(&self) -> io::Result<Vec<String>> {
        let tls = match self.place.identity {
            Some(Identity { cert, key }) => {
                let file = self.write("server.pem", &format!("{cert}{key}"))?;
                format!(" ssl crt {file}")
            }
            None => String::new(),
        };
        let mut text = format!(
            "global\n    nbthread {}\n    maxconn {}\n\
             defaults\n    mode tcp\n    timeout connect 10s\n    timeout client 1h\n    timeout server 1h\n\
             frontend mqtt\n    bind {}{tls}\n    \
                 tcp-request inspect-delay 10s\n    \
                 tcp-request content set-var(sess.cid) req.payload(0,0),mqtt_field_value(connect,client_identifier) \
                     if {{ req.payload(0,0),mqtt_is_valid }}\n    \
                 default_backend brokers\n\
             backend brokers\n    balance hash var(sess.cid)\n    hash-type consistent\n",
            self.place.workers,
            self.place.connections + 64,
            self.listen
        );
        for (number, broker) in self.brokers.iter().enumerate() {
            text += &format!("    server b{number} {broker}\n");
        }
        let file = self.write("haproxy.cfg", &text)?;
        Ok(["haproxy", "-db", "-f", &file].map(String::from).into())
    }

    fn nginx(&self) -> io::Result<Vec<String>> {
        let brokers = self
            .brokers
            .iter()
            .map(|broker| format!("        server {broker};\n"));
        let tls = match self.place.identity {
            Some(Identity { cert, key }) => {
                let cert = self.write("server.crt", cert)?;
                let key = self.write("server.key", key)?;
                // Its default is 1.2 and below.
                let protocols = "TLSv1.2 TLSv1.3";
                format!(
                    "ssl_certificate {cert}; ssl_certificate_key {key}; ssl_protocols {protocols}; "
                )
            }
            None => String::new(),
        };
        let text = format!(
            "load_module modules/ngx_stream_module.so;\n\
             worker_processes {workers};\ndaemon off;\npid {folder}/nginx.pid;\nerror_log {folder}/error.log crit;\n\
             worker_rlimit_nofile {files};\n\
             events {{ worker_connections {connections}; }}\n\
             stream {{\n    access_log off;\n    proxy_timeout 1h;\n\
             \x20   upstream brokers {{\n        hash $remote_addr consistent;\n{brokers}    }}\n\
             \x20   server {{ listen {listen}{ssl}; {tls}proxy_pass brokers; }}\n}}\n",
            folder = self.folder.display(),
            workers = self.place.workers,
            files = 2 * self.place.connections + 128,
            connections = 2 * self.place.connections + 64,
            ssl = if tls.is_empty() { "" } else { " ssl" },
            brokers = brokers.collect::<String>(),
            listen = self.listen,
        );
        let file = self.write("nginx.conf", &text)?;
        // -e: or it complains about the log of the system's nginx.
        let log = self.folder.join("error.log").display().to_string();
        Ok(["nginx", "-e", &log, "-c", &file].map(String::from).into())
    }

    fn ours(&self, binary: &Path) -> io::Result<Vec<String>> {
        let config = format!(
            "apisix:\n  proxy_mode: stream\n  enable_admin: false\n  stream_proxy:\n    tcp:\n      - addr: \"{}\"\n        tls: {}\n\
             deployment:\n  role: data_plane\n  role_data_plane:\n    config_provider: yaml\n\
             nginx_config:\n  worker_processes: {}\n\
             stream_plugins:\n  - mqtt-proxy\n",
            self.listen,
            self.place.identity.is_some(),
            self.place.workers,
        );
        let tls = match self.place.identity {
            // Texts of Rust's notation are texts of YAML's.
            Some(Identity { cert, key }) => format!(
                "ssls:\n  - id: bench\n    sni: {SERVER_NAME}\n    cert: {cert:?}\n    key: {key:?}\n"
            ),
            None => String::new(),
        };
        let nodes = self
            .brokers
            .iter()
            .map(|broker| format!("      \"{broker}\": 1\n"));
        let routes = format!(
            "stream_routes:\n  - id: mqtt\n    plugins:\n      mqtt-proxy:\n        protocol_level: 4\n    upstream_id: brokers\n\
             upstreams:\n  - id: brokers\n    type: chash\n    key: mqtt_client_id\n    nodes:\n{}{tls}#END\n",
            nodes.collect::<String>()
        );
        self.write("apisix.yaml", &routes)?;
        let config = self.write("config.yaml", &config)?;
        let binary = binary.display().to_string();
        Ok(vec![binary, "run".into(), "-c".into(), config])
    }

    fn floor(&self) -> io::Result<Vec<String>> {
        let program = std::env::current_exe()?.display().to_string();
        let addresses = [self.listen]
            .into_iter()
            .chain(self.brokers.iter().copied());
        let addresses = addresses.map(|address| address.to_string());
        Ok([program, FLOOR.to_owned()]
            .into_iter()
            .chain(addresses)
            .collect())
    }

    fn write(&self, name: &str, text: &str) -> io::Result<String> {
        let path = self.folder.join(name);
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    }
}

/// A proxy that runs; ended when dropped.
pub struct Running {
    child: Child,
    folder: tempfile::TempDir,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Its processes.
    pub family: Vec<u32>,
}

impl Running {
    /// Finds its processes again.
    pub fn look_for_family(&mut self) {
        self.family = usage::family(self.child.id());
    }

    /// What it has printed.
    pub fn log(&self) -> String {
        let log = fs::read(self.folder.path().join("log"));
        String::from_utf8_lossy(&log.unwrap_or_default()).into_owned()
    }

    fn wait_until_it_listens(&mut self, name: &str) -> Result<(), Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let exited = self.child.try_wait()?;
            if exited.is_none() && TcpStream::connect(self.listen).is_ok() {
                self.look_for_family();
                return Ok(());
            }
            if exited.is_some() || Instant::now() > deadline {
                let log = self.log();
                return Err(Failure(format!("{name} does not start:\n{log}")));
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Its children, which a killed nginx would leave behind.
        let family = usage::family(self.child.id());
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // INT ends all three at once, whatever is connected.
            let _ = kill_process(pid, Signal::INT);
        }
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(POLL),
                _ => return,
            }
        }
        for pid in family.into_iter().skip(1) {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            if let Some(pid) = pid {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port of 127.0.0.1 that nobody listens on now.
pub fn free_port() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}
