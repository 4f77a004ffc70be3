//! Parses the command line, runs one command, maps its error to an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    mqtt_proxy::cli::main()
}
