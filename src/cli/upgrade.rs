//! `upgrade`: asks the process that serves to upgrade to the binary on disk, and waits for what
//! comes of it.

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;

use super::Failure;
use crate::upgrade::control::{Event, Running};
use crate::upgrade::socket_path;

/// Which process is meant.
#[derive(Debug, Clone, Args)]
pub(super) struct Options {
    /// The process that runs with this config.yaml [default: the only one that is found]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The process with this id
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// Say nothing unless it fails
    #[arg(short, long)]
    quiet: bool,
}

/// The command. Exit codes: 0 the new process serves; 1 the old one goes on serving, or none is
/// found; 78 the same because the new one refuses the configuration.
pub(super) fn upgrade(options: &Options) -> Result<(), Failure> {
    let running = find(options)?;
    let old = running.pid;
    let failed = |what: String| Failure::Running(format!("process {old}: {what}"));
    let say = |what: String| {
        if !options.quiet {
            println!("{what}");
        }
    };
    let events = running
        .upgrade()
        .map_err(|error| failed(format!("cannot be asked: {error}")))?;
    for event in events {
        match event.map_err(|error| failed(format!("does not say how it goes: {error}")))? {
            Event::Started { pid } => say(format!("process {old} has started process {pid}")),
            Event::Ready { pid, version } => {
                say(format!("process {pid} (version {version}) is ready"));
            }
            Event::Moved {
                pid,
                connections,
                milliseconds,
                left,
                ..
            } => {
                say(format!(
                    "upgraded: process {pid} serves; {connections} connections moved in {milliseconds} ms"
                ));
                if left > 0 {
                    say(format!(
                        "{left} connections are still with process {old}; they follow, or end there"
                    ));
                }
                return Ok(());
            }
            Event::Failed { why, configuration } => {
                let message = format!("upgrade failed, process {old} goes on serving: {why}");
                if !configuration {
                    return Err(Failure::Running(message));
                }
                eprintln!("mqtt-proxy: {message}");
                eprintln!(
                    "mqtt-proxy: the new process refuses the configuration; its log lines say why, and so does `mqtt-proxy check`"
                );
                return Err(Failure::Configuration);
            }
            Event::Unknown => {}
        }
    }
    Err(failed(
        "has ended in the middle of the upgrade, or been upgraded without saying so; see its log"
            .to_owned(),
    ))
}

/// The process that is meant, connected to.
fn find(options: &Options) -> Result<Running, Failure> {
    let paths = socket_path::controls(options.config.as_deref(), options.pid)
        .map_err(|error| named(options.config.as_deref(), &error))?;
    let mut running = Vec::new();
    let mut refused = Vec::new();
    for path in paths {
        match Running::at(&path) {
            Ok(found) => running.push(found),
            // Left by a process that was killed.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => refused.push(format!("; {}: {error}", path.display())),
        }
    }
    if let Some(pid) = options.pid {
        running.retain(|found| found.pid == pid);
    }
    // One process may be found in several folders that are the same.
    running.dedup_by_key(|found| found.pid);
    match (running.pop(), running.is_empty()) {
        (Some(only), true) => Ok(only),
        (Some(last), false) => {
            let all = running.iter().map(|found| found.pid.to_string());
            let all: Vec<String> = all.chain([last.pid.to_string()]).collect();
            Err(Failure::Running(format!(
                "several processes run: {}; say which with --config or --pid",
                all.join(", ")
            )))
        }
        (None, _) => Err(Failure::Running(format!(
            "no process is found that can be asked to upgrade{}{}",
            wanted(options),
            refused.concat()
        ))),
    }
}

fn wanted(options: &Options) -> String {
    let config = options
        .config
        .as_ref()
        .map(|config| format!(" and runs {}", config.display()));
    let pid = options.pid.map(|pid| format!(" and has the id {pid}"));
    [config, pid].into_iter().flatten().collect()
}

fn named(config: Option<&Path>, error: &io::Error) -> Failure {
    let config = config.unwrap_or(Path::new("config.yaml"));
    Failure::Running(format!("{}: {error}", config.display()))
}
