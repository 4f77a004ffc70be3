//! `schema`: what an editor needs to complete and check the two files.

use clap::ValueEnum;

use super::Failure;
use crate::config::schema;

/// A configuration file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum File {
    /// config.yaml
    Config,
    /// apisix.yaml and apisix.json
    Apisix,
}

/// The command.
pub(super) fn print(file: File) -> Result<(), Failure> {
    let schema = match file {
        File::Config => schema::json_schema(&schema::config::CONFIG, true),
        File::Apisix => schema::json_schema(&schema::standalone::STANDALONE, false),
    };
    let text = serde_json::to_string_pretty(&schema);
    println!(
        "{}",
        text.map_err(|error| Failure::Running(error.to_string()))?
    );
    Ok(())
}
