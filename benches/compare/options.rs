//! The command line of the comparison.

use std::path::PathBuf;
use std::time::Duration;

use super::Failure;
use super::contender::{Contender, Kind};
use super::rows::Row;

/// What `--help` prints.
pub const HELP: &str = "\
usage: benches/compare/run.sh [OPTION…] [ROW…]
       benches/compare/run.sh soak [--minutes N] [--budget PERCENT]

rows (all of them without a name):
  memory       user-space memory of an idle connection
  storm        CPU per connection: connect, CONNECT, CONNACK, close
  small        CPU per small message there and back, as fast as it goes
  paced        the same at a fixed rate, and the latency that the proxy adds
  bulk         CPU per gigabyte of large PUBLISH packets, each direction
  storms       memory after a storm has gone, and over many storms
  late         storm, with each CONNECT some time after its connection
  threads      storm and small with two workers, against one
  tls-memory   memory with TLS clients
  tls-storm    storm with TLS clients: full and resumed handshakes, ECDSA and RSA
  tls-small    small with TLS clients
  tls-bulk     bulk with TLS clients

options:
  --rounds N          rounds of every row, each proxy once a round       [5]
  --quick             one third of the work and two rounds: a first look
  --only NAME,…       proxies: haproxy, nginx, mqtt-proxy                [all]
                      and floor, the cheapest relay there can be (no TLS)
  --binary NAME=PATH  another build of mqtt-proxy beside this one; may be repeated
  --proxy-core N      the processor of the proxies                       [1]
  --load-core N       the processor of clients and brokers               [0]
  --connections N     idle connections of `memory`                       [9000]
  --storm N           connections of one `storm`                         [10000]
  --concurrency N     connections of a storm that are open at a time     [128]
  --tls-storm N       connections of each storm of `tls-storm`           [3000]
  --late-ms N         how late CONNECT comes in `late`                   [20]
  --reset             clients end with RST, not FIN
  --clients N         connections that send messages                     [100]
  --seconds S         duration of `small` and `paced`                    [2]
  --rate N            messages a second of `paced`                       [5000]
  --spin              the load never sleeps, so that no proxy pays for waking it
  --payload BYTES     payload of small messages                          [64]
  --megabytes N       size of one `bulk` run                             [2000]
  --bulk-payload B    payload of one PUBLISH in `bulk`                   [262144]
  --bulk-clients N    connections of `bulk`                              [4]
  --reads BYTES       how much clients and brokers read at a time        [65536]
  --skip              brokers drop payloads in the kernel, unread
  --window N          PUBLISH packets in flight per connection in `bulk` [8]
  --storm-count N     storms of `storms`                                 [20]
  --storm-size N      connections of each, all open at once              [4000]
  --verbose           every single run

soak: mqtt-proxy alone, under storms, reloads, slow readers, resets and half-closed connections,
plain and TLS, every byte checked; fails when its memory and descriptors do not come back
  --minutes N         how long, after a warm-up                          [30]
  --budget PERCENT    of one processor, for proxy and load together      [50]
";

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    pub rows: Vec<Row>,
    pub rounds: usize,
    pub contenders: Vec<Contender>,
    pub proxy_core: usize,
    pub load_core: usize,
    pub connections: usize,
    pub storm: usize,
    pub tls_storm: usize,
    pub concurrency: usize,
    pub late: Duration,
    pub reset: bool,
    pub clients: usize,
    pub duration: Duration,
    pub rate: usize,
    pub spin: bool,
    pub payload: usize,
    pub megabytes: usize,
    pub bulk_payload: usize,
    pub bulk_clients: usize,
    pub reads: usize,
    pub skip: bool,
    pub window: usize,
    pub storm_count: usize,
    pub storm_size: usize,
    pub verbose: bool,
    pub soaks: bool,
    pub soak: Duration,
    pub budget: usize,
}

impl Default for Options {
    fn default() -> Self {
        let contender = |name: &str, kind| Contender {
            name: name.to_owned(),
            kind,
        };
        let ours = Kind::Ours(env!("CARGO_BIN_EXE_mqtt-proxy").into());
        Options {
            rows: Vec::new(),
            rounds: 5,
            contenders: vec![
                contender("haproxy", Kind::Haproxy),
                contender("nginx", Kind::Nginx),
                contender("mqtt-proxy", ours),
                contender("floor", Kind::Floor),
            ],
            proxy_core: 1,
            load_core: 0,
            connections: 9000,
            storm: 10_000,
            tls_storm: 3000,
            concurrency: 128,
            late: Duration::from_millis(20),
            reset: false,
            clients: 100,
            duration: Duration::from_secs(2),
            rate: 5000,
            spin: false,
            payload: 64,
            megabytes: 2000,
            bulk_payload: 256 * 1024,
            bulk_clients: 4,
            reads: 64 * 1024,
            skip: false,
            window: 8,
            storm_count: 20,
            storm_size: 4000,
            verbose: false,
            soaks: false,
            soak: Duration::from_secs(30 * 60),
            budget: 50,
        }
    }
}

impl Options {
    /// Reads the command line without the name of the program.
    pub fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, Failure> {
        let mut options = Options::default();
        let mut only: Option<Vec<String>> = None;
        let mut run = false;
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            let value = &mut || {
                let value = arguments.next();
                value.ok_or_else(|| Failure(format!("{argument} needs a value")))
            };
            match argument.as_str() {
                "--quick" => {
                    options.rounds = 2;
                    options.storm /= 3;
                    options.tls_storm /= 3;
                    options.duration /= 3;
                    options.megabytes /= 3;
                    options.storm_count /= 3;
                }
                "--only" => only = Some(value()?.split(',').map(str::to_owned).collect()),
                "--binary" => {
                    let value = value()?;
                    let (name, path) = value
                        .split_once('=')
                        .ok_or_else(|| Failure(format!("--binary {value}: no NAME=PATH")))?;
                    options.contenders.push(Contender {
                        name: name.to_owned(),
                        kind: Kind::Ours(PathBuf::from(path)),
                    });
                }
                "--rounds" => options.rounds = number(&argument, value)?,
                "--proxy-core" => options.proxy_core = number_or_zero(&argument, value)?,
                "--load-core" => options.load_core = number_or_zero(&argument, value)?,
                "--connections" => options.connections = number(&argument, value)?,
                "--storm" => options.storm = number(&argument, value)?,
                "--tls-storm" => options.tls_storm = number(&argument, value)?,
                "--late-ms" => {
                    let milliseconds = number_or_zero(&argument, value)?;
                    options.late = Duration::from_millis(milliseconds.min(1000) as u64);
                }
                "--concurrency" => options.concurrency = number(&argument, value)?,
                "--clients" => options.clients = number(&argument, value)?,
                "--seconds" => {
                    let value = value()?;
                    let seconds = value.parse().ok();
                    options.duration = seconds
                        .filter(|seconds| (0.1..=600.0).contains(seconds))
                        .map(Duration::from_secs_f64)
                        .ok_or_else(|| Failure(format!("--seconds {value}: not 0.1 to 600")))?;
                }
                "--rate" => options.rate = number(&argument, value)?,
                "--payload" => options.payload = number(&argument, value)?,
                "--megabytes" => options.megabytes = number(&argument, value)?,
                "--bulk-payload" => options.bulk_payload = number(&argument, value)?,
                "--bulk-clients" => options.bulk_clients = number(&argument, value)?,
                "--reads" => options.reads = number(&argument, value)?,
                "--skip" => options.skip = true,
                "--window" => options.window = number(&argument, value)?,
                "--storm-count" => options.storm_count = number(&argument, value)?,
                "--storm-size" => options.storm_size = number(&argument, value)?,
                "--reset" => options.reset = true,
                "--spin" => options.spin = true,
                "--verbose" => options.verbose = true,
                "soak" => options.soaks = true,
                "--minutes" => {
                    let minutes = number(&argument, value)?.min(100_000);
                    options.soak = Duration::from_secs(60 * minutes as u64);
                }
                "--budget" => options.budget = number(&argument, value)?,
                // From run.sh: not one of the benches that `cargo bench` runs unasked.
                "--run" => run = true,
                // cargo bench adds it.
                "--bench" => {}
                name => match Row::ALL.into_iter().find(|row| row.name() == name) {
                    Some(row) => options.rows.push(row),
                    None => return Err(Failure(format!("unknown row or option: {name}"))),
                },
            }
        }
        if run && options.rows.is_empty() && !options.soaks {
            options.rows.extend(Row::ALL);
        }
        if only.is_none() {
            options.contenders.retain(|known| known.kind != Kind::Floor);
        }
        if let Some(only) = only {
            for name in &only {
                if !options.contenders.iter().any(|known| known.name == *name) {
                    return Err(Failure(format!("--only {name}: no such proxy")));
                }
            }
            options
                .contenders
                .retain(|known| only.contains(&known.name));
        }
        Ok(options)
    }
}

/// A number above zero, bounded so that a slip of the finger does not fill the machine.
fn number(
    name: &str,
    value: &mut dyn FnMut() -> Result<String, Failure>,
) -> Result<usize, Failure> {
    match number_or_zero(name, value)? {
        0 => Err(Failure(format!("{name} 0: too small"))),
        number => Ok(number),
    }
}

fn number_or_zero(
    name: &str,
    value: &mut dyn FnMut() -> Result<String, Failure>,
) -> Result<usize, Failure> {
    let value = value()?;
    let number = value.parse().ok().filter(|number| *number <= 10_000_000);
    number.ok_or_else(|| Failure(format!("{name} {value}: not a number up to 10,000,000")))
}
