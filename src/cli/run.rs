//! `run`: everything put together and served.

use std::net::TcpListener;
use std::num::NonZeroUsize;
use std::sync::Arc;

use pingora_core::server::configuration::ServerConf;
use pingora_core::server::{RunArgs, Server};
use pingora_core::services::background::background_service;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::drain::Drain;
use super::signals::{Signals, Terminate};
use super::{Failure, Files, check, pingora_conf};
use crate::config::settings::{Settings, Workers};
use crate::session::app::{Policy, ProxyApp};
use crate::session::connections::Connections;
use crate::session::listener::{Listener, bind};
use crate::session::relay::Relays;
use crate::session::service::ListenService;
use crate::source::{Source, StandaloneFile};
use crate::table::CurrentTable;
use crate::telemetry::endpoint::MetricsEndpoint;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::throttle::Throttle;
use crate::upstream::names::Names;

/// What is logged unless `RUST_LOG` says otherwise. Pingora narrates its start at INFO.
const LOG_FILTER: &str = "info,pingora_core=warn,pingora_load_balancing=warn,hickory_resolver=error,hickory_net=error,hickory_proto=error";
/// Descriptors that are not connections: files, epoll, resolver sockets, the log.
const OTHER_DESCRIPTORS: u64 = 64;
/// Connections to the metrics endpoint that live at a time.
const MAX_SCRAPES: usize = 16;

/// The command. Returns when the process is to end.
pub(super) fn run(files: &Files) -> Result<(), Failure> {
    let filter = env_logger::Env::default().default_filter_or(LOG_FILTER);
    env_logger::Builder::from_env(filter).init();
    let running = |error: std::io::Error| Failure::Running(error.to_string());
    let signals = Signals::take_over().map_err(running)?;

    let settings = settings(files)?;
    let metrics = Arc::new(Metrics::default());
    let names = Names::new(settings.dns.clone(), settings.enable_ipv6);
    let table = Arc::new(CurrentTable::default());
    let source = Source::new(
        StandaloneFile::of(&settings, &files.config, files.routes.clone()),
        table.clone(),
        names.clone(),
        settings.ring_identity,
        metrics.clone(),
        signals.reload.clone(),
    );
    first_load(&source, files.strict)?;
    let sockets = listen(&settings, &metrics)?;
    let places = max_connections(&settings, sockets.len());
    let conf = server_conf(&settings)?;
    let threads = conf.threads;
    log::info!("{threads} worker threads, at most {places} connections at a time");
    let connections = Arc::new(Connections::default());
    let app = Arc::new(ProxyApp {
        table,
        policy: Policy {
            connect: settings.connect,
            refusal: settings.refusal,
            limits: settings.limits,
            idle: settings.idle,
        },
        metrics: metrics.clone(),
        connections: connections.clone(),
        relays: Relays::new(threads),
        throttle: Throttle::default(),
    });
    let terminate = signals.terminate.clone();
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    server.add_service(background_service("signals", signals));
    server.add_service(background_service(
        "drain",
        Drain {
            connections: connections.clone(),
        },
    ));
    let resolved = server.add_service(NamesService::new("names".to_owned(), names));
    server.add_service(background_service("source", source));
    if let Some(endpoint) = metrics_endpoint(&settings, &metrics)? {
        server.add_service(endpoint);
    }
    let clients = ListenService::new("clients", app, sockets, places, Some(threads));
    server.add_service(clients).add_dependency(&resolved);
    server.run(RunArgs {
        shutdown_signal: Box::new(Terminate(terminate)),
    });
    let cut = connections.live();
    if cut > 0 {
        log::warn!("mqtt_proxy.shutdown.timeout passed: {cut} connections are cut");
    }
    Ok(())
}

/// Loads the standalone file before anything is bound. One that is not there yet, or not finished,
/// is waited for while the process runs; any other that cannot be taken ends it here.
fn first_load(source: &Source, strict: bool) -> Result<(), Failure> {
    let loaded = match source.load() {
        Ok(loaded) => loaded,
        Err(error) => {
            source.not_applied(&error);
            return match error.may_pass() {
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

type NamesService = pingora_core::services::background::GenBackgroundService<Names>;

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

/// Binds every listener, or says at once which one cannot be bound.
fn listen(
    settings: &Settings,
    metrics: &Metrics,
) -> Result<Vec<(Arc<Listener>, TcpListener)>, Failure> {
    let bound = settings.listeners.iter().map(|configured| {
        let socket =
            bind(configured.addr).map_err(|error| cannot_listen(&configured.written, &error))?;
        let listener = Listener {
            address: configured.addr,
            active: metrics.active_connections(configured.addr.to_string()),
        };
        Ok((Arc::new(listener), socket))
    });
    bound.collect()
}

fn cannot_listen(written: &str, error: &std::io::Error) -> Failure {
    Failure::Running(format!("cannot listen on {written}: {error}"))
}

fn metrics_endpoint(
    settings: &Settings,
    metrics: &Arc<Metrics>,
) -> Result<Option<ListenService<MetricsEndpoint>>, Failure> {
    let Some(configured) = &settings.metrics else {
        return Ok(None);
    };
    let address = configured.addr;
    let socket = bind(address).map_err(|error| cannot_listen(&address.to_string(), &error))?;
    let listener = Arc::new(Listener {
        address,
        // Scrapes are no client connections: a gauge that nobody reads.
        active: Default::default(),
    });
    let endpoint = Arc::new(MetricsEndpoint {
        metrics: metrics.clone(),
        path: configured.path.clone(),
    });
    let sockets = vec![(listener, socket)];
    let service = ListenService::new("metrics", endpoint, sockets, MAX_SCRAPES, Some(1));
    Ok(Some(service))
}

/// How many client connections may live at a time: each takes two descriptors. The soft limit of
/// open files is raised to the hard one first.
fn max_connections(settings: &Settings, listeners: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let open_files = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let reserved = OTHER_DESCRIPTORS + listeners as u64;
    let possible = open_files.map_or(u64::MAX, |files| files.saturating_sub(reserved) / 2);
    let possible = usize::try_from(possible).unwrap_or(usize::MAX).max(1);
    match settings.limits.max_connections {
        0 => possible,
        wanted if wanted > possible => {
            log::warn!(
                "max_connections is {wanted}, but the limit of open files allows {possible}; raise LimitNOFILE"
            );
            possible
        }
        wanted => wanted,
    }
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
    conf.grace_period_seconds = Some(settings.shutdown_timeout.as_secs());
    // Every session that is left then is cut by it; waiting longer changes nothing.
    conf.graceful_shutdown_timeout_seconds.get_or_insert(1);
    Ok(conf)
}
