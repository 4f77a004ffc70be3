//! This proxy beside HAProxy and nginx, in one run, on one core each: see `benches/README.md`.
//!
//! `benches/compare/run.sh` starts it; `cargo bench` without rows leaves it out.

mod contender;
mod floor;
mod meter;
mod mqtt;
mod net;
mod options;
mod peer;
mod random;
mod report;
mod rows;
mod soak;
mod stage;
mod tls;
mod usage;

use std::process::ExitCode;

use options::Options;
use report::Figures;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Why a run is invalid, or nothing can run at all.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Failure(pub String);

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure(error.to_string())
    }
}

impl From<openssl::error::ErrorStack> for Failure {
    fn from(error: openssl::error::ErrorStack) -> Self {
        Failure(error.to_string())
    }
}

/// Descriptors that are no connections.
const OTHER_DESCRIPTORS: usize = 128;

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == "--help") {
        print!("{}", options::HELP);
        return ExitCode::SUCCESS;
    }
    if std::env::args().nth(1).as_deref() == Some(contender::FLOOR) {
        return be_the_floor();
    }
    let mut options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) if options.rows.is_empty() && !options.soaks => {
            println!("compare: benches/compare/run.sh runs this one");
            return ExitCode::SUCCESS;
        }
        Ok(options) => options,
        Err(failure) => {
            eprintln!("compare: {failure}\n\n{}", options::HELP);
            return ExitCode::from(2);
        }
    };
    let possible = raise_open_files().saturating_sub(OTHER_DESCRIPTORS) / 2;
    for wanted in [&mut options.connections, &mut options.storm_size] {
        if *wanted > possible {
            println!(
                "compare: {wanted} connections are cut to {possible}: each takes two descriptors of the limit of open files"
            );
            *wanted = possible;
        }
    }
    let good = match options.soaks {
        true => soak::soak(&options),
        false => compare(&options),
    };
    match good {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn be_the_floor() -> ExitCode {
    raise_open_files();
    let addresses = std::env::args().skip(2).map(|address| address.parse());
    let mut addresses = addresses.collect::<Result<Vec<_>, _>>().unwrap_or_default();
    if addresses.len() < 2 {
        eprintln!("compare: {} LISTEN BROKER…", contender::FLOOR);
        return ExitCode::from(2);
    }
    let listen = addresses.remove(0);
    match floor::serve(listen, addresses) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs everything and prints the table; false when a run was invalid.
fn compare(options: &Options) -> bool {
    let mut table = Vec::new();
    let mut valid = true;
    for row in &options.rows {
        let metrics = row.metrics();
        let mut figures: Vec<Figures> = metrics
            .iter()
            .map(|&metric| Figures {
                metric,
                rounds: vec![Vec::new(); options.contenders.len()],
            })
            .collect();
        for round in 1..=options.rounds {
            for (index, contender) in options.contenders.iter().enumerate() {
                let run = row.run(contender, options);
                let name = &contender.name;
                match &run {
                    Ok(run) if options.verbose => {
                        println!(
                            "{} {round} {name}: {:.2?} ({})",
                            row.name(),
                            run.figures,
                            run.note
                        );
                    }
                    Ok(_) => {}
                    Err(failure) => {
                        valid = false;
                        println!("{} {round} {name}: INVALID: {failure}", row.name());
                    }
                }
                for (place, metric) in figures.iter_mut().enumerate() {
                    let figure = run.as_ref().ok().map(|run| run.figures[place]);
                    metric.rounds[index].push(figure);
                }
            }
        }
        eprintln!("compare: {} done", row.name());
        table.extend(figures);
    }
    println!("\nMedian (least–most) of {} rounds.\n", options.rounds);
    print!("{}", report::table(&options.contenders, &table));
    valid
}

/// Raises the limit of open files as far as it goes and says how far that is.
fn raise_open_files() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let files = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    files.map_or(usize::MAX, |files| {
        usize::try_from(files).unwrap_or(usize::MAX)
    })
}
