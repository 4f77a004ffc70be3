//! The proxy's two files, and their changes while it serves.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::shared::Soak;
use crate::random::Random;
use crate::tls::{Identity, SERVER_NAME};

/// From one change to the next.
const PAUSE: Duration = Duration::from_secs(10);

/// Seconds that a client may be held up.
const HELD_UP: u64 = 60;

/// What the files say.
pub struct Files {
    pub folder: PathBuf,
    pub plain: SocketAddr,
    pub tls: SocketAddr,
    pub brokers: Vec<SocketAddr>,
    pub identities: Vec<Identity>,
}

/// What of it changes.
#[derive(Debug, Clone, Copy)]
pub struct Version {
    /// Bit by bit: the brokers that are in use.
    pub brokers: u8,
    weight: u64,
    identity: usize,
    other_routes: u64,
}

impl Version {
    /// What the proxy starts with.
    pub const FIRST: Version = Version {
        brokers: 0b11,
        weight: 1,
        identity: 0,
        other_routes: 0,
    };
}

impl Files {
    /// Writes `config.yaml` and says where it is. Clients that other work on the machine holds up
    /// are not refused for it.
    pub fn config(&self, workers: usize) -> io::Result<PathBuf> {
        let text = format!(
            "apisix:\n  proxy_mode: stream\n  enable_admin: false\n  stream_proxy:\n    tcp:\n      \
                 - \"{}\"\n      - addr: \"{}\"\n        tls: true\n\
             deployment:\n  role: data_plane\n  role_data_plane:\n    config_provider: yaml\n\
             nginx_config:\n  worker_processes: {workers}\n\
             stream_plugins:\n  - mqtt-proxy\n\
             mqtt_proxy:\n  limits:\n    first_byte_timeout: {HELD_UP}\n    connect_timeout: {HELD_UP}\n  \
                 tls:\n    handshake_timeout: {HELD_UP}\n",
            self.plain, self.tls
        );
        let path = self.folder.join("config.yaml");
        fs::write(&path, text)?;
        Ok(path)
    }

    /// Writes `apisix.yaml`, in one step or in place.
    pub fn routes(&self, version: Version, renamed: bool) -> io::Result<()> {
        let path = self.folder.join("apisix.yaml");
        let text = self.text(version);
        match renamed {
            true => {
                let new = self.folder.join("apisix.yaml.new");
                fs::write(&new, text)?;
                fs::rename(new, path)
            }
            false => fs::write(path, text),
        }
    }

    /// Writes it without its end, as somebody does who is interrupted.
    fn broken(&self, version: Version) -> io::Result<()> {
        let text = self.text(version);
        fs::write(self.folder.join("apisix.yaml"), &text[..text.len() / 2])
    }

    fn text(&self, version: Version) -> String {
        let nodes = self.brokers.iter().enumerate();
        let nodes = nodes.filter(|(index, _)| version.brokers & (1 << index) != 0);
        let nodes: String = nodes
            .map(|(index, broker)| match index {
                0 => format!("      \"{broker}\": {}\n", version.weight),
                _ => format!("      \"{broker}\": 1\n"),
            })
            .collect();
        let others: String = (0..version.other_routes)
            .map(|number| {
                format!(
                    "  - id: other{number}\n    server_port: {}\n    upstream_id: brokers\n",
                    1 + number
                )
            })
            .collect();
        let Identity { cert, key } = &self.identities[version.identity];
        format!(
            "stream_routes:\n{others}  - id: mqtt\n    plugins:\n      mqtt-proxy:\n        protocol_level: 4\n    upstream_id: brokers\n\
             upstreams:\n  - id: brokers\n    type: chash\n    key: mqtt_client_id\n    nodes:\n{nodes}\
             ssls:\n  - id: soak\n    sni: {SERVER_NAME}\n    cert: {cert:?}\n    key: {key:?}\n#END\n"
        )
    }
}

/// Changes the file again and again until it is stopped, and leaves it as it was at first.
pub async fn reload(soak: Arc<Soak>, files: Arc<Files>, mut random: Random) {
    let mut stopped = soak.stopped();
    let mut version = Version::FIRST;
    loop {
        let pause = tokio::time::timeout(PAUSE, stopped.wait_for(|stop| *stop));
        let last = pause.await.is_ok();
        let written = match random.below(6) {
            _ if last => {
                version = Version::FIRST;
                files.routes(version, true)
            }
            0 => files.broken(version),
            change => {
                match change {
                    1 => version.brokers = 1 + random.below(3) as u8,
                    2 => version.weight = 1 + random.below(4),
                    3 => version.identity = random.below(files.identities.len() as u64) as usize,
                    4 => version.other_routes = random.below(200),
                    // Nothing but the time of the file.
                    _ => {}
                }
                files.routes(version, random.percent(50))
            }
        };
        if let Err(error) = written {
            soak.fault(format!("apisix.yaml: {error}"));
        }
        soak.reloaded(version.brokers);
        if last {
            return;
        }
    }
}
