//! `completions` and `man`: what a package installs beside the binary, from the same definition
//! of the command line that is parsed.

use std::io::{self, ErrorKind, Write};

use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::{CommandLine, Failure};

/// Behind the options of mqtt-proxy(1): a section, and its terms with their meanings.
const SECTIONS: [(&str, &[(&str, &str)]); 4] = [
    (
        "SIGNALS",
        &[
            ("SIGHUP", "Rereads the standalone file now."),
            (
                "SIGTERM",
                "Stops accepting and sends live connections away within \
                 mqtt_proxy.shutdown.timeout. A second one sends all of them away now; a third \
                 one exits at once.",
            ),
            ("SIGINT", "Exits at once."),
            (
                "SIGUSR2",
                "Starts the binary that is on disk now and hands it the listeners and the live \
                 connections. If that fails, this process goes on serving.",
            ),
            (
                "SIGQUIT",
                "Hands over in the same way to a process that was started with --upgrade.",
            ),
        ],
    ),
    (
        "EXIT STATUS",
        &[
            ("0", "Ended as asked."),
            ("1", "Failed while running."),
            ("2", "Wrong command line."),
            ("78", "Wrong configuration."),
        ],
    ),
    (
        "ENVIRONMENT",
        &[
            (
                "RUST_LOG",
                "What is logged to standard error: error, warn, info, debug; replaces the default.",
            ),
            (
                "RUNTIME_DIRECTORY",
                "Where the old and the new process meet in an upgrade.",
            ),
            (
                "NOTIFY_SOCKET, WATCHDOG_USEC, LISTEN_FDS",
                "As in sd_notify(3), sd_watchdog_enabled(3) and sd_listen_fds(3).",
            ),
            (
                "Any other",
                "May be used in both configuration files as ${{NAME}} or ${{NAME:=default}}.",
            ),
        ],
    ),
    (
        "FILES",
        &[
            (
                "/etc/mqtt-proxy/config.yaml",
                "With the systemd unit: listeners and settings, read once, at start.",
            ),
            (
                "/etc/mqtt-proxy/apisix.yaml",
                "Routes and brokers, followed while the proxy runs.",
            ),
        ],
    ),
];

/// The command `completions`.
pub(super) fn completions(shell: Shell) -> Result<(), Failure> {
    let mut command = CommandLine::command();
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command, "mqtt-proxy", &mut text);
    print(&text).map_err(|error| Failure::Running(error.to_string()))
}

/// The command `man`: the page of mqtt-proxy, or of one of its commands. Ends the process with exit
/// code 2 if there is no such command.
pub(super) fn man(of: Option<&str>) -> Result<(), Failure> {
    page(of)
        .and_then(|text| print(&text))
        .map_err(|error| Failure::Running(error.to_string()))
}

fn page(of: Option<&str>) -> io::Result<Vec<u8>> {
    let mut whole = CommandLine::command().disable_help_subcommand(true);
    // Names the commands after their parent, and adds --help to each.
    whole.build();
    let mut text = Vec::new();
    let Some(of) = of else {
        let man = Man::new(whole).manual("mqtt-proxy manual");
        man.render_title(&mut text)?;
        man.render_name_section(&mut text)?;
        man.render_synopsis_section(&mut text)?;
        man.render_description_section(&mut text)?;
        man.render_options_section(&mut text)?;
        man.render_subcommands_section(&mut text)?;
        more_sections().to_writer(&mut text)?;
        man.render_version_section(&mut text)?;
        return Ok(text);
    };
    let Some(command) = whole.find_subcommand(of).cloned() else {
        let known: Vec<&str> = whole
            .get_subcommands()
            .map(clap::Command::get_name)
            .collect();
        let what = format!("no command '{of}' (known: {})", known.join(", "));
        whole
            .error(clap::error::ErrorKind::InvalidValue, what)
            .exit();
    };
    Man::new(command)
        .source(concat!("mqtt-proxy ", env!("CARGO_PKG_VERSION")))
        .manual("mqtt-proxy manual")
        .render(&mut text)?;
    Ok(text)
}

fn more_sections() -> Roff {
    let mut roff = Roff::new();
    for (title, terms) in SECTIONS {
        roff.control("SH", [title]);
        for (term, meaning) in terms {
            roff.control("TP", []);
            roff.text([bold(*term)]);
            roff.text([roman(*meaning)]);
        }
    }
    roff
}

/// A reader that has seen enough (`| head`) is no failure.
pub(super) fn print(text: &[u8]) -> io::Result<()> {
    match io::stdout().write_all(text) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}
