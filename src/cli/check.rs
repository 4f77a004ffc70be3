//! `check`: every problem of both files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Failure, Files, Format, pingora_conf};
use crate::config::diagnostic::{Diagnostic, Severity};
use crate::config::resource::weights::gcd_change_warnings;
use crate::config::settings::{self, Settings};
use crate::config::standalone::Resources;
use crate::source::{LoadError, StandaloneFile, environment, read_text};

/// Both files as far as they could be read, and what is wrong with them.
pub(super) struct Checked {
    /// `config.yaml`, as far as it can be read.
    pub settings: Option<Settings>,
    /// The standalone file, if it can be used, bad objects left out.
    pub resources: Option<Resources>,
    /// Everything that is wrong, in the order of the files.
    pub diagnostics: Vec<Diagnostic>,
}

/// Whether anything is wrong that stops the configuration from being used as written.
pub(super) fn failed(diagnostics: &[Diagnostic], strict: bool) -> bool {
    diagnostics
        .iter()
        .any(|diagnostic| strict || diagnostic.is_error())
}

/// Reads and judges both files.
pub(super) fn read(files: &Files) -> Checked {
    let (settings, mut diagnostics) = read_settings(&files.config);
    let mut resources = None;
    if let Some(settings) = &settings {
        let file = StandaloneFile::of(settings, &files.config, files.routes.clone());
        match file.load(None) {
            Ok((loaded, problems)) => {
                resources = Some(loaded);
                diagnostics.extend(problems);
            }
            Err(error) => diagnostics.extend(into_diagnostics(error)),
        }
    }
    Checked {
        settings,
        resources,
        diagnostics,
    }
}

/// Reads and judges `config.yaml`, this version's own limits included. The settings are to be used
/// only where [`failed`] does not hold.
pub(super) fn read_settings(path: &Path) -> (Option<Settings>, Vec<Diagnostic>) {
    let text = match read_text(path) {
        Ok(text) => text,
        Err(error) => return (None, into_diagnostics(error)),
    };
    let loaded = settings::load(&text, path, &environment);
    let mut diagnostics = loaded.diagnostics;
    let Some(settings) = loaded.value else {
        return (None, diagnostics);
    };
    let file: Arc<Path> = path.into();
    if let Some(pingora) = &settings.pingora {
        diagnostics.extend(pingora_conf::judge(pingora, path));
    }
    diagnostics.extend(unreadable_resolv_conf(&settings, path));
    for listener in &settings.listeners {
        if !listener.proxy_protocol && !listener.proxy_protocol_to_upstream {
            continue;
        }
        let written = &listener.written;
        diagnostics.push(Diagnostic {
            file: file.clone(),
            position: Some(*listener.position),
            path: "apisix.stream_proxy.tcp".to_owned(),
            message: format!(
                "listener {written}: the PROXY protocol is not served by this version"
            ),
            severity: Severity::Error,
        });
    }
    (Some(settings), diagnostics)
}

/// `discovery.dns.resolv_conf` that is not there would only show when a service is looked up.
fn unreadable_resolv_conf(settings: &Settings, path: &Path) -> Option<Diagnostic> {
    let written = settings.discovery.dns.resolv_conf.as_ref()?;
    let file = path.parent().unwrap_or(Path::new(".")).join(written);
    let error = std::fs::metadata(&file).err()?;
    Some(Diagnostic {
        file: path.into(),
        position: None,
        path: "discovery.dns.resolv_conf".to_owned(),
        message: format!("{} cannot be read: {error}", file.display()),
        severity: Severity::Error,
    })
}

fn into_diagnostics(error: LoadError) -> Vec<Diagnostic> {
    let (path, message) = match error {
        LoadError::Rejected(diagnostics) | LoadError::Unfinished(diagnostics) => {
            return diagnostics;
        }
        LoadError::Read { path, error } => (path, format!("cannot be read: {error}")),
    };
    vec![Diagnostic {
        file: path.into(),
        position: None,
        path: String::new(),
        message,
        severity: Severity::Error,
    }]
}

/// Warnings about upstreams most of whose clients an edit since `earlier` would move.
fn moved_since(earlier: PathBuf, files: &Files, checked: &Checked) -> Vec<Diagnostic> {
    let (Some(settings), Some(resources)) = (&checked.settings, &checked.resources) else {
        return Vec::new();
    };
    let now = StandaloneFile::of(settings, &files.config, files.routes.clone());
    let before = StandaloneFile::of(settings, &files.config, Some(earlier));
    match before.load(None) {
        Ok((before, _)) => gcd_change_warnings(&before, resources)
            .into_iter()
            .map(|message| Diagnostic {
                file: now.path.as_path().into(),
                position: None,
                path: String::new(),
                message,
                severity: Severity::Warning,
            })
            .collect(),
        Err(error) => into_diagnostics(error),
    }
}

/// The command.
pub(super) fn check(
    files: &Files,
    against: Option<PathBuf>,
    format: Format,
) -> Result<(), Failure> {
    let mut checked = read(files);
    if let Some(earlier) = against {
        let moved = moved_since(earlier, files, &checked);
        checked.diagnostics.extend(moved);
    }
    match format {
        Format::Text => {
            for diagnostic in &checked.diagnostics {
                println!("{diagnostic}");
            }
        }
        Format::Json => {
            let json = serde_json::to_string_pretty(&checked.diagnostics);
            println!(
                "{}",
                json.map_err(|error| Failure::Running(error.to_string()))?
            );
        }
    }
    let errors = checked.diagnostics.iter().filter(|d| d.is_error()).count();
    let warnings = checked.diagnostics.len() - errors;
    if failed(&checked.diagnostics, files.strict) {
        eprintln!("configuration test failed: {errors} error(s), {warnings} warning(s)");
        return Err(Failure::Configuration);
    }
    match &checked.resources {
        Some(resources) => eprintln!(
            "configuration test is successful: {} stream route(s), {} upstream(s), {} service(s), {} ssl(s), {warnings} warning(s)",
            resources.stream_routes.len(),
            resources.upstreams.len(),
            resources.services.len(),
            resources.ssls.len(),
        ),
        None => eprintln!("configuration test is successful, {warnings} warning(s)"),
    }
    Ok(())
}
