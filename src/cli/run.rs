//! `run`: everything put together and served.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use pingora_core::server::configuration::ServerConf;
use pingora_core::server::{RunArgs, Server};
use pingora_core::services::background::{GenBackgroundService, background_service};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};

use super::drain::{Drain, Leaving};
use super::notifier::Notifier;
use super::signals::{Signals, Terminate, same_command_to_upgrade};
use super::sockets::{Sockets, activated, max_connections, none_to_spare, raise_open_files};
use super::starting::Starting;
use super::{Failure, Files, check, pingora_conf};
use crate::config::settings::{Settings, Workers};
use crate::control::Control;
use crate::control::api::{Api, Scope};
use crate::control::service::ControlService;
use crate::drain::service::Drainer;
use crate::session::app::{Policy, ProxyApp};
use crate::session::connections::Connections;
use crate::session::handshake::TlsPolicy;
use crate::session::heartbeat::Heartbeat;
use crate::session::outcome::End;
use crate::session::refusal::Refusal;
use crate::session::relay::Relays;
use crate::session::service::{AcceptLoops, Admission, ListenService};
use crate::source::{Source, StandaloneFile};
use crate::systemd;
use crate::table::CurrentTable;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::endpoint::MetricsEndpoint;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::throttle::Throttle;
use crate::tls;
use crate::upgrade::new_side::{self, Arrivals};
use crate::upgrade::old_side::OldSide;
use crate::upgrade::{self, UpgradeError, nodes, socket_path};
use crate::upstream;

/// What is logged unless `RUST_LOG` says otherwise. Pingora narrates its start at INFO, and what is
/// no HTTP on an HTTP port is an ERROR to it.
const LOG_FILTER: &str = "info,pingora_core=warn,pingora_load_balancing=warn,hickory_resolver=error,hickory_net=error,hickory_proto=error,pingora_core::apps::http_app=off";
/// How much longer Pingora would wait than this program does.
const GRACE: Duration = Duration::from_secs(10);
/// Connections to the metrics endpoint that live at a time.
const MAX_SCRAPES: usize = 16;
/// Connections to the control API that live at a time, and as many to the status server.
const MAX_REQUESTS: usize = 16;

/// The command. Returns when the process is to end.
pub(super) fn run(files: &Files, upgrade: bool) -> Result<(), Failure> {
    let began = Instant::now();
    crate::ffi::memory::set_up();
    let filter = env_logger::Env::default().default_filter_or(LOG_FILTER);
    env_logger::Builder::from_env(filter).init();
    let running = |error: std::io::Error| Failure::Running(error.to_string());
    let mut sockets = activated()?;
    let signals = Signals::take_over().map_err(running)?;

    let settings = settings(files)?;
    none_to_spare(&sockets, &settings)?;
    let table = Arc::new(CurrentTable::default());
    let metrics = Arc::new(Metrics::of(table.clone()));
    metrics.expect(&Refusal::REASONS, &End::REASONS, &UpgradeError::RESULTS);
    let folder = files.config.parent().unwrap_or(Path::new("."));
    let upstreams = Arc::new(upstream::Shared::new(&settings, folder));
    let tls = tls::Shared::new(&settings, folder).map_err(|error| {
        log::error!("{error}");
        Failure::Configuration
    })?;
    let source = Arc::new(Source::new(
        StandaloneFile::of(&settings, &files.config, files.routes.clone()),
        table.clone(),
        upstreams.clone(),
        metrics.clone(),
        signals.reload.clone(),
        Arc::new(tls),
    ));
    first_load(&source, files.strict, upgrade)?;
    let access_log = access_log(&settings, files, &metrics)?;
    let meeting = socket_path::of(&files.config);
    let open_files = raise_open_files();
    let mut inherited = None;
    if upgrade {
        // Everything that can be wrong here has been found by now; the old process has lost nothing.
        let meeting = meeting.as_ref().map_err(|error| upgrading(error))?;
        let place = meeting.clone();
        let received = signals.unless_ended(move || new_side::receive(&place));
        let Some(received) = received.map_err(running)? else {
            log::info!("asked to end; not waiting for the process to take over from any more");
            // Nobody is to come to it.
            let _ = std::fs::remove_file(meeting);
            return Ok(());
        };
        inherited = Some(received.map_err(|error| upgrading(&error))?);
    }
    if let Some(inherited) = &mut inherited {
        sockets.extend(std::mem::take(&mut inherited.listeners));
        metrics.carry_on(&inherited.state.metrics, "");
        if let Some(keys) = inherited.state.tickets.take()
            && let Err(error) = source.tls.tickets.import(&keys)
        {
            log::warn!(
                "upgrade: sessions of the old process are not resumed: its keys are {error}"
            );
        }
        nodes::restore(&table.load(), &inherited.state.nodes);
    }
    let mut sockets = Sockets::open(&settings, &metrics, sockets).inspect_err(|failure| {
        if let (Some(inherited), Failure::Running(why)) = (&inherited, failure) {
            inherited.refuse(why);
        }
    })?;
    let limit = max_connections(&settings, sockets.clients.len(), open_files);
    metrics.connections_limit(limit);
    let conf = server_conf(&settings)?;
    let threads = conf.threads;
    log::info!("{threads} worker threads, at most {limit} connections at a time");
    let connections = Arc::new(Connections::default());
    let relays = Arc::new(Relays::new(threads));
    let places = Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS)));
    let (accepting, accepts) = watch::channel(true);
    let (given_up, is_given_up) = watch::channel(Vec::new());
    let (started, has_started) = mpsc::channel();
    let loops: Arc<AcceptLoops> = Arc::default();
    let taking_over = Arc::new(AtomicBool::new(inherited.is_some()));
    let runtime: Arc<OnceLock<Handle>> = Arc::default();
    let admission = Admission {
        places: places.clone(),
        connections: connections.clone(),
        accepting: accepts.clone(),
        loops: loops.clone(),
        given_up: is_given_up,
        started,
        runtime: runtime.clone(),
    };
    let upgrade_control = meeting.as_ref().ok().map(|meeting| {
        let path = socket_path::control_beside(meeting);
        Arc::new(upgrade::control::Control::at(path))
    });
    let leaving = Leaving {
        relays: relays.clone(),
        access_log: access_log.clone(),
        control: upgrade_control.clone(),
    };
    signals.set_leaving(leaving.clone());
    let hurry = signals.hurry.clone();
    let mut old_side = None;
    match (meeting, &upgrade_control) {
        (Ok(socket), Some(control)) => {
            let listeners = sockets.clones().map_err(running)?;
            let upgrade = Arc::new(OldSide {
                relays: relays.clone(),
                connections: connections.clone(),
                table: table.clone(),
                accepting,
                loops,
                given_up,
                metrics: metrics.clone(),
                tickets: source.tls.tickets.clone(),
                access_log: access_log.clone(),
                lingering: settings.upgrade,
                socket,
                control: control.clone(),
                taking_over: Arc::clone(&taking_over),
                listeners: Mutex::new(listeners),
                busy: AtomicBool::new(false),
                leaving: AtomicBool::new(false),
            });
            signals.set_upgrade(upgrade.clone());
            let begun = upgrade.clone();
            control.on_upgrade(move |report| {
                begun.begin(Some(same_command_to_upgrade()), report);
            });
            old_side = Some(upgrade);
        }
        (Err(error), _) => log::warn!("this process cannot be upgraded: {error}"),
        (Ok(_), None) => {}
    }
    let starting = match (inherited, upgrade_control) {
        (Some(inherited), Some(control)) => {
            let arrivals = Arrivals {
                relays: relays.clone(),
                connections: connections.clone(),
                places,
                table: table.clone(),
                listeners: sockets.listeners(),
                metrics: metrics.clone(),
                taking_over,
                succeeded: AtomicBool::new(false),
                access_log: access_log.clone(),
                control,
                without: std::mem::take(&mut sockets.without),
            };
            Starting::with(move || arrivals.take(&inherited, &has_started))
        }
        (_, control) => Starting::with(move || {
            if has_started.recv().is_ok() {
                if let Some(control) = control {
                    // Whoever hears that this process is ready may ask it for an upgrade.
                    control.publish();
                    control.sweep();
                }
                systemd::ready();
            }
        }),
    };
    let control = Arc::new(Control {
        table: table.clone(),
        source: source.clone(),
        relays: relays.clone(),
        connections: connections.clone(),
        limit,
        listeners: sockets.in_order(),
        accepting: accepts.clone(),
        accepts: runtime.clone(),
        config: std::fs::canonicalize(&files.config).unwrap_or_else(|_| files.config.clone()),
        started: began,
        leaving: OnceLock::new(),
    });
    let drainer = Drainer {
        table: table.clone(),
        relays: relays.clone(),
        metrics: metrics.clone(),
        loads: source.loads(),
    };
    let notifier = Notifier {
        heartbeat: Heartbeat {
            relays: relays.clone(),
            runtime,
        },
        connections: connections.clone(),
        table: table.clone(),
        loads: source.loads(),
        accepting: accepts,
    };
    let app = Arc::new(ProxyApp {
        table,
        policy: Policy {
            connect: settings.connect,
            refusal: settings.refusal,
            limits: settings.limits,
            idle: settings.idle,
            tls: TlsPolicy::new(
                settings.fallback_sni.as_deref(),
                settings.tls.handshake_timeout,
            ),
        },
        metrics: metrics.clone(),
        relays: relays.clone(),
        access_log,
        throttle: Throttle::default(),
    });
    let terminate = signals.terminate.clone();
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    server.add_service(background_service("signals", signals));
    server.add_service(background_service("starting", starting));
    server.add_service(background_service(
        "drain",
        Drain {
            connections: connections.clone(),
            leaving: leaving.clone(),
            settings: settings.shutdown,
            hurry,
        },
    ));
    if systemd::is_listening() {
        server.add_service(background_service("notifier", notifier));
    }
    server.add_service(background_service("drainer", drainer));
    let names = upstreams.names.clone();
    server.add_service(GenBackgroundService::new("names".to_owned(), names));
    let services = upstreams.services.clone();
    server.add_service(GenBackgroundService::new("services".to_owned(), services));
    let prober = source.prober.clone();
    server.add_service(GenBackgroundService::new("prober".to_owned(), prober));
    let source = server.add_service(GenBackgroundService::new("source".to_owned(), source));
    let doors = [
        (Scope::Whole, sockets.control),
        (Scope::Status, sockets.status),
    ];
    for (scope, door) in doors {
        let Some(door) = door else { continue };
        let (control, old_side) = (control.clone(), old_side.clone());
        let announce = move |address, socket| {
            if let Some(upgrade) = &old_side {
                upgrade.add_listener(address, socket);
            }
        };
        server.add_service(ControlService::new(
            Api { control, scope },
            door,
            apart(&admission, MAX_REQUESTS),
            Box::new(announce),
        ));
    }
    if let (Some(configured), Some(socket)) = (&settings.metrics, sockets.metrics) {
        let endpoint = Arc::new(MetricsEndpoint {
            metrics: metrics.clone(),
            path: configured.path.clone(),
        });
        let admission = apart(&admission, MAX_SCRAPES);
        let sockets = vec![socket];
        server.add_service(ListenService::new(
            "metrics",
            endpoint,
            sockets,
            Some(1),
            admission,
            None,
        ));
    }
    let clients = ListenService::new(
        "clients",
        app,
        sockets.clients,
        Some(threads),
        admission,
        Some(relays),
    );
    server.add_service(clients).add_dependency(&source);
    server.run(RunArgs {
        shutdown_signal: Box::new(Terminate(terminate)),
    });
    leaving.last_words();
    Ok(())
}

/// The admission of connections that are not those of clients: counted and limited apart, and
/// nothing waits for them.
fn apart(clients: &Admission, places: usize) -> Admission {
    Admission {
        places: Arc::new(Semaphore::new(places)),
        connections: Arc::default(),
        accepting: clients.accepting.clone(),
        // Nobody waits for it to pause: a scrape more is no client.
        loops: Arc::default(),
        given_up: clients.given_up.clone(),
        started: mpsc::channel().0,
        runtime: Arc::default(),
    }
}

/// Opens the access log, if there is to be one.
fn access_log(
    settings: &Settings,
    files: &Files,
    metrics: &Metrics,
) -> Result<Option<Arc<AccessLog>>, Failure> {
    let Some(configured) = &settings.access_log else {
        return Ok(None);
    };
    AccessLog::open(configured, &files.config, metrics.access_log_dropped())
        .map(Some)
        .map_err(|error| Failure::Running(format!("access log: {error}")))
}

/// Loads the standalone file before anything is bound. One that is not there yet, or not finished,
/// is waited for while the process runs; any other that cannot be taken ends it here, and so does
/// every one in an upgrade, where the process before this one serves something better than nothing.
fn first_load(source: &Source, strict: bool, upgrade: bool) -> Result<(), Failure> {
    let loaded = match source.load() {
        Ok(loaded) => loaded,
        Err(error) => {
            source.not_applied(&error);
            return match error.may_pass() && !upgrade {
                true => Ok(()),
                false => Err(Failure::Configuration),
            };
        }
    };
    if strict && !loaded.diagnostics.is_empty() {
        for diagnostic in &loaded.diagnostics {
            log::error!("{diagnostic}");
        }
        return Err(Failure::Configuration);
    }
    source.apply(loaded, "loaded");
    Ok(())
}

fn upgrading(error: &dyn std::fmt::Display) -> Failure {
    Failure::Running(format!("upgrade: {error}"))
}

/// Reads `config.yaml` and says what is wrong with it and what has no effect.
fn settings(files: &Files) -> Result<Settings, Failure> {
    let (settings, diagnostics) = check::read_settings(&files.config);
    for diagnostic in &diagnostics {
        match diagnostic.is_error() {
            true => log::error!("{diagnostic}"),
            false => log::warn!("{diagnostic}"),
        }
    }
    let settings = settings
        .filter(|_| !check::failed(&diagnostics, files.strict))
        .ok_or(Failure::Configuration)?;
    if !settings.without_effect.is_empty() {
        log::info!(
            "{}: keys of APISIX without effect here: {}",
            files.config.display(),
            settings.without_effect.join(", ")
        );
    }
    Ok(settings)
}

/// Pingora's own settings: those under `pingora:`, with the threads and the drain time of ours.
fn server_conf(settings: &Settings) -> Result<ServerConf, Failure> {
    let mut conf = pingora_conf::parse(settings.pingora.as_ref()).map_err(|error| {
        log::error!("pingora: {error}");
        Failure::Configuration
    })?;
    let says = |key| {
        let own = settings.pingora.as_ref();
        own.is_some_and(|own| own.value.get(key).is_some())
    };
    if !says("threads") {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        conf.threads = match settings.workers {
            Workers::Auto => cores,
            Workers::Count(count) => count.get(),
        };
    }
    // The process exits by itself before that.
    let grace = settings.shutdown.timeout + GRACE;
    conf.grace_period_seconds = Some(grace.as_secs());
    // Every session that is left then is cut by it; waiting longer changes nothing.
    conf.graceful_shutdown_timeout_seconds.get_or_insert(1);
    Ok(conf)
}
