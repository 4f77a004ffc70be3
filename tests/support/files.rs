//! config.yaml and apisix.yaml in a temporary folder, and the ways in which people rewrite them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;

/// A folder with configuration files; it goes away with the last clone of this value.
#[derive(Clone)]
pub struct Files {
    dir: Arc<TempDir>,
    routes: &'static str,
}

impl Files {
    /// A folder with this `config.yaml` and `apisix.yaml`.
    pub fn new(config: &str, apisix: &str) -> Self {
        let files = Self::empty("apisix.yaml");
        files.replace("config.yaml", config);
        files.replace("apisix.yaml", apisix);
        files
    }

    /// A folder with this `config.yaml` and `apisix.json`.
    pub fn json(config: &str, apisix: &str) -> Self {
        let files = Self::empty("apisix.json");
        files.replace("config.yaml", config);
        files.replace("apisix.json", apisix);
        files
    }

    /// An empty folder; `routes` is the name of the resource file.
    pub fn empty(routes: &'static str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("mqtt-proxy-test-")
            .tempdir()
            .expect("temp dir");
        Self {
            dir: Arc::new(dir),
            routes,
        }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The path of a file in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The path of `config.yaml`.
    pub fn config_path(&self) -> PathBuf {
        self.path("config.yaml")
    }

    /// The path of `apisix.yaml` (or `.json`).
    pub fn routes_path(&self) -> PathBuf {
        self.path(self.routes)
    }

    /// Replaces a file as editors and deployment tools do: a new file, renamed over the old one.
    pub fn replace(&self, name: &str, content: impl AsRef<[u8]>) {
        let fresh = self.path(&format!(".{name}.new"));
        fs::write(&fresh, content).expect("write");
        fs::rename(&fresh, self.path(name)).expect("rename");
    }

    /// Replaces the resource file by rename.
    pub fn replace_routes(&self, content: impl AsRef<[u8]>) {
        self.replace(self.routes, content);
    }

    /// Truncates the resource file and writes it in place, as a shell redirection does.
    pub fn overwrite_routes(&self, content: impl AsRef<[u8]>) {
        fs::write(self.routes_path(), content).expect("write");
    }

    /// The resource file as it is now.
    pub fn routes_text(&self) -> String {
        fs::read_to_string(self.routes_path()).expect("read")
    }
}

/// A `config.yaml` for a data plane in standalone mode that listens on these ports of 127.0.0.1.
pub fn config(ports: &[u16]) -> String {
    config_with(ports, "")
}

/// The same with more top-level text behind it (`mqtt_proxy:` and so on).
pub fn config_with(ports: &[u16], more: &str) -> String {
    let listens: Vec<String> = ports.iter().map(|p| format!("127.0.0.1:{p}")).collect();
    config_listening(&listens, more)
}

/// The same with listen addresses written out. There is no control API, and there are no metrics
/// unless `more` asks for them: their default addresses are one for the whole machine, on which
/// tests run beside each other, and whoever came first would have one listener more.
pub fn config_listening(listens: &[String], more: &str) -> String {
    let apisix = "  enable_control: false\n";
    config_of(apisix, listens, more)
}

/// A `config.yaml` that listens on these ports of 127.0.0.1 and has its control API on another one.
pub fn config_controlled(ports: &[u16], control: u16, more: &str) -> String {
    let listens: Vec<String> = ports.iter().map(|p| format!("127.0.0.1:{p}")).collect();
    let apisix = format!("  control: {{port: {control}}}\n");
    config_of(&apisix, &listens, more)
}

/// The same with these lines of `apisix` behind the listeners.
pub fn config_of(apisix: &str, listens: &[String], more: &str) -> String {
    let mut text = String::from("apisix:\n  proxy_mode: stream\n  stream_proxy:\n    tcp:\n");
    for listen in listens {
        text.push_str(&format!("      - \"{listen}\"\n"));
    }
    text.push_str(apisix);
    text.push_str("deployment:\n  role: data_plane\n  role_data_plane: {config_provider: yaml}\n");
    text.push_str(more);
    if !more.contains("plugin_attr") {
        // Behind what a test may name the line of.
        let end = if more.is_empty() || more.ends_with('\n') {
            ""
        } else {
            "\n"
        };
        text.push_str(end);
        text.push_str("plugin_attr: {prometheus: {enable_export_server: false}}\n");
    }
    text
}
