//! `status`: what the control API of a running proxy says, in a terminal.

mod client;
mod text;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::Value;

use super::explain::parse_listen;
use super::generate::print;
use super::{Failure, Format, check};

/// Where `config.yaml` is looked for unless it is named: here, and where the package has it.
const PLACES: [&str; 2] = ["conf/config.yaml", "/etc/mqtt-proxy/config.yaml"];
/// The address of a control API that no `config.yaml` speaks of.
const DEFAULT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9090);

/// Which proxy is asked, and what.
#[derive(Debug, Args)]
pub(super) struct Question {
    /// The config.yaml of the proxy, which says where its control API is [default:
    /// conf/config.yaml, else /etc/mqtt-proxy/config.yaml]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Its control API instead: a port or an address with port
    #[arg(long, value_name = "ADDR", value_parser = parse_listen)]
    control: Option<SocketAddr>,
    /// Find the connection of this client
    #[arg(long, value_name = "ID")]
    client_id: Option<OsString>,
}

/// The command. Exit code 1 when nothing answers, or no connection of the client is live.
pub(super) fn status(question: &Question, format: Format) -> Result<(), Failure> {
    let (address, config) = place(question)?;
    let overview = || -> Result<Value, Failure> {
        let (code, overview) = get(address, "/v1/status")?;
        if code != 200 {
            return Err(refused(&overview));
        }
        if let Some(config) = &config {
            is_of(&overview, config, address)?;
        }
        Ok(overview)
    };
    let shown = match &question.client_id {
        None => {
            let overview = overview()?;
            match format {
                Format::Text => text::overview(&overview),
                Format::Json => format!("{overview:#}\n"),
            }
        }
        Some(id) => {
            if config.is_some() {
                overview()?;
            }
            let escaped = percent_encoded(id.as_bytes());
            let (code, found) = get(address, &format!("/v1/connections?client_id={escaped}"))?;
            match (code, format) {
                (200, Format::Text) => text::connections(&id.to_string_lossy(), &found),
                (200, Format::Json) => format!("{found:#}\n"),
                _ => return Err(refused(&found)),
            }
        }
    };
    print(shown.as_bytes()).map_err(|error| Failure::Running(error.to_string()))
}

/// The address to ask, and the `config.yaml` that it comes from.
fn place(question: &Question) -> Result<(SocketAddr, Option<PathBuf>), Failure> {
    if let Some(address) = question.control {
        return Ok((address, None));
    }
    // Whoever may not read the file of the package may ask all the same.
    let readable = |path: &PathBuf| std::fs::File::open(path).is_ok();
    let found = || PLACES.iter().map(PathBuf::from).find(readable);
    let Some(config) = question.config.clone().or_else(found) else {
        return Ok((DEFAULT, None));
    };
    let (settings, diagnostics) = check::read_settings(&config);
    let Some(settings) = settings else {
        diagnostics.iter().for_each(|told| eprintln!("{told}"));
        return Err(Failure::Configuration);
    };
    let Some(control) = settings.control else {
        return Err(Failure::Running(format!(
            "{} has no control API (apisix.enable_control, apisix.control)",
            config.display()
        )));
    };
    Ok((reachable(control.addr), Some(config)))
}

/// An address of this machine for a socket that listens on all of them.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

/// Several proxies on one machine may have the same address for their control API: the first has
/// it.
fn is_of(overview: &Value, config: &Path, address: SocketAddr) -> Result<(), Failure> {
    let (Ok(asked), Some(answers)) = (
        std::fs::canonicalize(config),
        overview["config"].as_str().map(Path::new),
    ) else {
        return Ok(());
    };
    match asked == answers {
        true => Ok(()),
        false => Err(Failure::Running(format!(
            "at {address} answers process {} with {}, not one with {}; apisix.control gives each \
             proxy an address of its own",
            overview["pid"],
            answers.display(),
            asked.display()
        ))),
    }
}

/// The status code and the document at `target`.
fn get(address: SocketAddr, target: &str) -> Result<(u16, Value), Failure> {
    let answer =
        client::get(address, target).map_err(|error| Failure::Running(error.to_string()))?;
    let document: Value = serde_json::from_slice(&answer.body)
        .map_err(|error| Failure::Running(format!("the answer of {address}: {error}")))?;
    match answer.code {
        200 | 404 => Ok((answer.code, document)),
        _ => Err(refused(&document)),
    }
}

fn refused(document: &Value) -> Failure {
    let why = document["error_msg"].as_str();
    Failure::Running(why.unwrap_or("the proxy refuses to answer").to_owned())
}

fn percent_encoded(bytes: &[u8]) -> String {
    let mut encoded = String::new();
    for &byte in bytes {
        match byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            true => encoded.push(char::from(byte)),
            false => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}
