//! Where resources come from: the standalone file, read at start and followed afterwards.

mod discovered;
mod watch;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use tokio::sync::{Notify, watch as channel};
use watch::Identity;

use crate::config::diagnostic::{Diagnostic, Position, Severity};
use crate::config::resource::weights::gcd_change_warnings;
use crate::config::settings::{Provider, Settings};
use crate::config::standalone::{self, Resources};
use crate::systemd;
use crate::table::{CurrentTable, Table};
use crate::telemetry::metrics::Metrics;
use crate::tls::{self, expiry};
use crate::upstream::health::prober::Prober;
use crate::upstream::{self, Context};

/// A larger file is not read; 10,000 routes are about 2 MB.
const MAX_FILE_SIZE: u64 = 256 * 1024 * 1024;
/// A larger certificate, key or revocation list is not read.
const MAX_REFERENCED_SIZE: u64 = 16 * 1024 * 1024;
/// How long a reload waits for the addresses of names and the nodes of services that it has not seen
/// before.
const NEW_NAMES: Duration = Duration::from_millis(300);
/// So many problems of one load are logged one by one; `check` prints all.
const MAX_PROBLEMS_LOGGED: usize = 50;

/// Files that a standalone file refers to.
type References = BTreeMap<PathBuf, Identity>;

/// Where the standalone file is and how it is to be read.
#[derive(Debug, Clone)]
pub struct StandaloneFile {
    /// Its path.
    pub path: PathBuf,
    /// YAML with an end mark, or JSON.
    pub provider: Provider,
    /// The plugins that may be used, unless the file has its own list.
    pub stream_plugins: Vec<String>,
}

/// Why a file cannot be taken at all.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It cannot be read.
    #[error("{}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system answers.
        error: std::io::Error,
    },
    /// Its end mark is missing: it is still being written, perhaps.
    #[error("{}", one_line(.0))]
    Unfinished(Vec<Diagnostic>),
    /// It cannot be read whole: size, encoding, syntax, a missing variable.
    #[error("{}", one_line(.0))]
    Rejected(Vec<Diagnostic>),
}

impl LoadError {
    /// Whether the file may come right by itself: it is not there yet, or not finished. APISIX
    /// starts without it then and waits for it.
    pub fn may_pass(&self) -> bool {
        match self {
            LoadError::Read { error, .. } => error.kind() == std::io::ErrorKind::NotFound,
            LoadError::Unfinished(_) => true,
            LoadError::Rejected(_) => false,
        }
    }
}

fn one_line(diagnostics: &[Diagnostic]) -> String {
    let lines = diagnostics.iter().map(ToString::to_string);
    lines.collect::<Vec<_>>().join("; ")
}

impl StandaloneFile {
    /// Finds the standalone file of `settings`, which were read from `config_file`: `routes` if
    /// given, else `mqtt_proxy.standalone_file`, else `apisix.yaml` or `apisix.json` beside it.
    pub fn of(settings: &Settings, config_file: &Path, routes: Option<PathBuf>) -> Self {
        let name = match settings.provider {
            Provider::Yaml => "apisix.yaml",
            Provider::Json => "apisix.json",
        };
        let configured = settings.standalone_file.clone();
        let beside = config_file.parent().unwrap_or(Path::new("."));
        let path = routes.unwrap_or_else(|| {
            let name = configured.unwrap_or_else(|| PathBuf::from(name));
            beside.join(name)
        });
        // A file that says what it is needs no provider to say it.
        let provider = match path.extension() {
            Some(extension) if extension == "json" => Provider::Json,
            Some(extension) if extension == "yaml" || extension == "yml" => Provider::Yaml,
            _ => settings.provider,
        };
        StandaloneFile {
            path,
            provider,
            stream_plugins: settings.stream_plugins.clone(),
        }
    }

    /// Reads and checks the file. Bad objects are left out, or keep the version that `previous`
    /// has of them, and are among the diagnostics.
    ///
    /// # Errors
    /// When the file cannot be taken as a whole; then nothing of it may be used.
    pub fn load(
        &self,
        previous: Option<&Resources>,
    ) -> Result<(Resources, Vec<Diagnostic>), LoadError> {
        self.load_with_references(previous).0
    }

    /// The same, with every file that it refers to (`file:///path`), readable or not, as it was
    /// before it was read.
    fn load_with_references(
        &self,
        previous: Option<&Resources>,
    ) -> (Result<(Resources, Vec<Diagnostic>), LoadError>, References) {
        let references = RefCell::new(References::new());
        let outside = |name: &str| match name.strip_prefix("file://") {
            Some(path) => {
                let identity = Identity::of(Path::new(path));
                references
                    .borrow_mut()
                    .entry(PathBuf::from(path))
                    .or_insert(identity);
                read_referenced(Path::new(path))
            }
            None => environment(name),
        };
        let loaded = self.load_from(previous, &outside);
        (loaded, references.into_inner())
    }

    fn load_from(
        &self,
        previous: Option<&Resources>,
        outside: &dyn Fn(&str) -> Option<String>,
    ) -> Result<(Resources, Vec<Diagnostic>), LoadError> {
        let text = read_text(&self.path)?;
        standalone::load(
            &text,
            &self.path,
            self.provider,
            outside,
            &self.stream_plugins,
            previous,
        )
        .map(|(resources, mut diagnostics)| {
            diagnostics.extend(expiry::warnings(&resources, &self.path));
            (resources, diagnostics)
        })
        .map_err(|diagnostics| {
            match self.provider == Provider::Yaml && !standalone::has_end_mark(&text) {
                true => LoadError::Unfinished(diagnostics),
                false => LoadError::Rejected(diagnostics),
            }
        })
    }
}

/// Reads a configuration file, bounded in size.
///
/// # Errors
/// When it cannot be read, is larger than 256 MiB, or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, LoadError> {
    let read = || {
        let size = std::fs::metadata(path)?.len();
        match size > MAX_FILE_SIZE {
            true => Ok(None),
            false => std::fs::read(path).map(Some),
        }
    };
    let bytes = read().map_err(|error| LoadError::Read {
        path: path.to_owned(),
        error,
    })?;
    let rejected = |position, message: &str| {
        LoadError::Rejected(vec![Diagnostic {
            file: path.into(),
            position,
            path: String::new(),
            message: message.to_owned(),
            severity: Severity::Error,
        }])
    };
    let bytes = bytes.ok_or_else(|| rejected(None, "is larger than 256 MiB"))?;
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let good = String::from_utf8_lossy(good);
        let last_line = good.rsplit('\n').next().unwrap_or_default();
        let position = Position {
            line: 1 + good.matches('\n').count() as u32,
            column: 1 + last_line.chars().count() as u32,
        };
        rejected(Some(position), "is not UTF-8 text")
    })
}

/// The text of a certificate, key or list that the standalone file refers to.
fn read_referenced(path: &Path) -> Option<String> {
    let size = std::fs::metadata(path).ok()?.len();
    match size > MAX_REFERENCED_SIZE {
        true => None,
        false => std::fs::read_to_string(path).ok(),
    }
}

/// The environment of the process, for `${{VAR}}`.
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Follows the standalone file: a Pingora background service (see [`watch`]).
pub struct Source {
    /// The file.
    pub file: StandaloneFile,
    /// The table to swap.
    pub table: Arc<CurrentTable>,
    /// What upstreams share over the whole process.
    pub upstreams: Arc<upstream::Shared>,
    /// Where loads are counted.
    pub metrics: Arc<Metrics>,
    /// Keeps the health of the nodes in service.
    pub prober: Arc<Prober>,
    /// Asks for a load now, changed or not (SIGHUP).
    pub reload: Arc<Notify>,
    /// What TLS shares over the whole process.
    pub tls: Arc<tls::Shared>,
    serving: ArcSwapOption<Resources>,
    identity: Mutex<Identity>,
    references: Mutex<References>,
    last: channel::Sender<Option<Load>>,
}

/// When the file was loaded, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Load {
    /// When, to the second.
    pub at: jiff::Timestamp,
    /// Whether it is served.
    pub applied: bool,
}

impl Source {
    /// A source that has loaded nothing yet.
    pub fn new(
        file: StandaloneFile,
        table: Arc<CurrentTable>,
        upstreams: Arc<upstream::Shared>,
        metrics: Arc<Metrics>,
        reload: Arc<Notify>,
        tls: Arc<tls::Shared>,
    ) -> Self {
        Source {
            file,
            table,
            upstreams,
            metrics,
            prober: Arc::default(),
            reload,
            tls,
            serving: ArcSwapOption::empty(),
            identity: Mutex::default(),
            references: Mutex::default(),
            last: channel::Sender::new(None),
        }
    }

    /// What is served, as the file says it; `None` until something could be loaded.
    pub fn resources(&self) -> Option<Arc<Resources>> {
        self.serving.load_full()
    }

    /// The last load and what came of it.
    pub fn last_load(&self) -> Option<Load> {
        self.last.borrow().clone()
    }

    /// Follows the last load.
    pub fn loads(&self) -> channel::Receiver<Option<Load>> {
        self.last.subscribe()
    }

    fn loaded(&self, applied: bool) {
        self.metrics.reloaded(applied);
        // Whole seconds; the smallest unit that can be rounded to is always possible.
        let now = jiff::Timestamp::now();
        let at = now.round(jiff::Unit::Second).unwrap_or(now);
        self.last.send_replace(Some(Load { at, applied }));
    }

    /// Which version of the file was loaded last, successfully or not.
    fn identity_loaded(&self) -> Identity {
        lock(&self.identity).clone()
    }

    /// The files that the last load referred to, as they were then.
    fn references_loaded(&self) -> References {
        lock(&self.references).clone()
    }

    /// Loads the file and builds its table without swapping it in.
    ///
    /// # Errors
    /// As [`StandaloneFile::load`].
    pub fn load(&self) -> Result<Loaded, LoadError> {
        // Taken before the file is read: a change while it is being read is seen afterwards.
        *lock(&self.identity) = Identity::of(&self.file.path);
        let serving = self.serving.load_full();
        let started = Instant::now();
        let (loaded, references) = self.file.load_with_references(serving.as_deref());
        *lock(&self.references) = references;
        let (resources, diagnostics) = loaded?;
        let moved = serving
            .as_deref()
            .map(|before| gcd_change_warnings(before, &resources))
            .unwrap_or_default();
        drop(serving);
        let table = self.table_of(&resources);
        Ok(Loaded {
            resources,
            diagnostics,
            moved,
            table,
            took: started.elapsed(),
        })
    }

    /// The table of `resources`, with what stays the same taken over from the one that serves.
    fn table_of(&self, resources: &Resources) -> Table {
        let context = Context {
            shared: &self.upstreams,
            tls: &self.tls,
            ssls: &resources.ssls,
        };
        Table::build(resources, &context, &self.table.load())
    }

    /// Has new connections served by a table.
    fn serve(&self, table: Table) {
        table.enter_service();
        self.prober.follow(table.upstreams());
        self.table.store(Arc::new(table));
    }

    /// Has new connections served by what was loaded, and says so in the log.
    pub fn apply(&self, loaded: Loaded, verb: &str) {
        let (routes, upstreams) = (
            loaded.table.routes().len(),
            loaded.table.upstreams().count(),
        );
        self.serve(loaded.table);
        self.metrics.certificates_end(
            loaded
                .resources
                .ssls
                .iter()
                .filter(|ssl| ssl.enabled)
                .filter_map(|ssl| Some((ssl.id.as_str(), expiry::ends(ssl)?))),
        );
        self.serving.store(Some(Arc::new(loaded.resources)));
        let errors = loaded.diagnostics.iter().filter(|found| found.is_error());
        self.metrics.serving(errors.count());
        self.loaded(true);
        log_problems(&loaded.diagnostics);
        for warning in &loaded.moved {
            log::warn!("{warning}");
        }
        // Whoever waits for this line finds it served.
        log::info!(
            "config file {} {verb}. ({routes} stream routes, {upstreams} upstreams, {} ms)",
            self.file.path.display(),
            loaded.took.as_millis(),
        );
    }

    /// One reload: load, wait a moment for new names and services, swap; or keep what is being
    /// served and say why.
    async fn reload_now(&self) {
        systemd::reloading();
        match self.load() {
            Ok(mut loaded) => {
                self.upstreams.settled(NEW_NAMES).await;
                if discovered::is_outdated(&loaded.table) {
                    loaded.table = self.table_of(&loaded.resources);
                }
                self.apply(loaded, "reloaded");
            }
            Err(error) => self.not_applied(&error),
        }
        systemd::reloaded();
    }

    /// Says that the file was not taken and that nothing has changed.
    pub fn not_applied(&self, error: &LoadError) {
        self.loaded(false);
        let serving = match self.resources() {
            Some(_) => "what was loaded before stays in service",
            None => "nothing is served until it can be",
        };
        let path = self.file.path.display();
        log::error!("config file {path} not applied: {error}; {serving}");
    }
}

/// A file that was loaded and is not served yet.
pub struct Loaded {
    /// What it says.
    pub resources: Resources,
    /// What is wrong with parts of it.
    pub diagnostics: Vec<Diagnostic>,
    /// Upstreams most of whose clients move, because the common divisor of the weights changed.
    moved: Vec<String>,
    /// The table built from it.
    table: Table,
    took: Duration,
}

/// A poisoned lock only means that a load panicked; what is behind it is replaced as a whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn log_problems(diagnostics: &[Diagnostic]) {
    for diagnostic in diagnostics.iter().take(MAX_PROBLEMS_LOGGED) {
        log::warn!("{diagnostic}");
    }
    let more = diagnostics.len().saturating_sub(MAX_PROBLEMS_LOGGED);
    if more > 0 {
        log::warn!("{more} more problems; `mqtt-proxy check` prints them all");
    }
}
