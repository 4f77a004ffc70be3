//! The command line: one file a command.

mod check;
mod drain;
mod explain;
mod generate;
mod notifier;
mod pingora_conf;
mod run;
mod schema;
mod signals;
mod sockets;
mod starting;
mod status;
mod upgrade;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// What a command ends with.
#[derive(Debug)]
enum Failure {
    /// Failed while running; says how.
    Running(String),
    /// The configuration is wrong; everything has been said already. EX_CONFIG, so that systemd's
    /// `RestartPreventExitStatus=78` stops a restart loop.
    Configuration,
}

impl Failure {
    fn exit_code(&self) -> ExitCode {
        match self {
            Failure::Running(_) => ExitCode::from(1),
            Failure::Configuration => ExitCode::from(78),
        }
    }
}

/// MQTT-aware L4 load balancer: a drop-in for the stream side of Apache APISIX in standalone mode
#[derive(Debug, Parser)]
#[command(name = "mqtt-proxy", version, args_conflicts_with_subcommands = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    files: Files,
    /// Check the configuration and exit, as `check` does
    #[arg(short = 't')]
    test: bool,
    /// Take over from a running process, as `run --upgrade` does
    #[arg(short, long)]
    upgrade: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve (the default command)
    Run {
        #[command(flatten)]
        files: Files,
        /// Take over from the process that runs with the same configuration (send it SIGQUIT), or
        /// from the one that starts this one (SIGUSR2)
        #[arg(short, long)]
        upgrade: bool,
    },
    /// Print every problem of both files and exit
    Check {
        #[command(flatten)]
        files: Files,
        /// An earlier standalone file: warn of edits that would move most clients to other nodes
        #[arg(long, value_name = "FILE")]
        against: Option<PathBuf>,
        /// How problems are printed
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Say which route, plugins, hash key and nodes a connection would get, without serving
    Explain {
        #[command(flatten)]
        files: Files,
        #[command(flatten)]
        connection: explain::Connection,
        /// How the answer is printed
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Show how a running proxy is: listeners, routes, brokers, one connection by client id
    Status {
        #[command(flatten)]
        question: status::Question,
        /// How the answer is printed
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Have the running proxy upgrade to the binary on disk, and say what came of it
    Upgrade(upgrade::Options),
    /// Print the JSON Schema of a configuration file, for editors
    Schema {
        /// The file that the schema is for
        #[arg(value_enum)]
        file: schema::File,
    },
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print a manual page, as roff
    Man {
        /// The command that the page is for [default: mqtt-proxy itself]
        command: Option<String>,
    },
}

/// Which files are read, and how strictly.
#[derive(Debug, Clone, Args)]
struct Files {
    /// config.yaml
    #[arg(short, long, value_name = "FILE", default_value = "conf/config.yaml")]
    config: PathBuf,
    /// The standalone file [default: apisix.yaml beside config.yaml]
    #[arg(long, value_name = "FILE")]
    routes: Option<PathBuf>,
    /// Treat warnings as errors
    #[arg(long)]
    strict: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    #[default]
    Text,
    /// JSON
    Json,
}

/// Runs the command line of this process. Exit codes: 0 fine, 1 failed while running, 2 wrong
/// usage, 78 wrong configuration.
pub fn main() -> ExitCode {
    let line = CommandLine::parse();
    let command = match (line.command, line.test) {
        (Some(command), _) => command,
        (None, false) => Command::Run {
            files: line.files,
            upgrade: line.upgrade,
        },
        (None, true) => Command::Check {
            files: line.files,
            against: None,
            format: Format::Text,
        },
    };
    let result = match command {
        Command::Run { files, upgrade } => run::run(&files, upgrade),
        Command::Check {
            files,
            against,
            format,
        } => check::check(&files, against, format),
        Command::Explain {
            files,
            connection,
            format,
        } => explain::explain(&files, &connection, format),
        Command::Status { question, format } => status::status(&question, format),
        Command::Upgrade(options) => upgrade::upgrade(&options),
        Command::Schema { file } => schema::print(file),
        Command::Completions { shell } => generate::completions(shell),
        Command::Man { command } => generate::man(command.as_deref()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Failure::Running(what) = &failure {
                // Where standard error cannot be written to, the exit code still says something.
                let _ = writeln!(std::io::stderr(), "mqtt-proxy: {what}");
            }
            failure.exit_code()
        }
    }
}
