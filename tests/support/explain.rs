//! `mqtt-proxy explain --format json` on a folder of files.

use std::ffi::OsString;

use serde_json::Value;

use super::files::Files;
use super::proxy::{Ran, cli};

/// Runs `explain` for a connection to `listen` (a port or address), with more arguments.
pub fn run(files: &Files, listen: &str, more: &[&str]) -> Ran {
    let mut args: Vec<OsString> = vec!["explain".into(), "-c".into(), files.config_path().into()];
    args.extend(["--listen".into(), listen.into()]);
    args.extend(more.iter().map(OsString::from));
    cli(&args)
}

/// What `explain` says in JSON.
///
/// # Panics
/// When it does not exit with 0.
pub fn explain(files: &Files, listen: &str, more: &[&str]) -> Value {
    let mut args = vec!["--format", "json"];
    args.extend(more);
    let ran = run(files, listen, &args);
    assert_eq!(ran.code, 0, "explain {more:?}: {}", ran.all());
    serde_json::from_str(&ran.stdout)
        .unwrap_or_else(|e| panic!("explain prints JSON: {e}\n{}", ran.all()))
}

/// The nodes in the order in which `explain` says that they are tried.
pub fn explained_nodes(files: &Files, listen: &str, more: &[&str]) -> Vec<String> {
    let said = explain(files, listen, more);
    said["nodes"]
        .as_array()
        .unwrap_or_else(|| panic!("a list of nodes in {said}"))
        .iter()
        .map(|node| node.as_str().expect("a node is text").to_owned())
        .collect()
}
