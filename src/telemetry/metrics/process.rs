//! The process itself, read from `/proc` at each scrape, under the names that every client library
//! of Prometheus has for it.

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use super::family::sole_gauge;

/// Reads `/proc/self`; a value that cannot be read is left out.
#[derive(Debug)]
pub(super) struct ProcessMetrics;

impl Collector for ProcessMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        if let Some(count) = open_files() {
            let help = "Open file descriptors";
            sole_gauge(&mut encoder, "process_open_fds", help, count)?;
        }
        if let Some(limit) = open_files_limit() {
            let help = "How many file descriptors may be open";
            sole_gauge(&mut encoder, "process_max_fds", help, limit)?;
        }
        if let Some([virtual_memory, resident]) = memory() {
            let help = "Resident memory";
            sole_gauge(
                &mut encoder,
                "process_resident_memory_bytes",
                help,
                resident,
            )?;
            let help = "Virtual memory";
            let name = "process_virtual_memory_bytes";
            sole_gauge(&mut encoder, name, help, virtual_memory)?;
        }
        let Some(stat) = Stat::read() else {
            return Ok(());
        };
        let help = "Threads";
        sole_gauge(&mut encoder, "process_threads", help, stat.threads)?;
        if let Some(started) = stat.started() {
            let help = "When the process started, in seconds since 1970";
            sole_gauge(&mut encoder, "process_start_time_seconds", help, started)?;
        }
        let help = "CPU time used, user and system";
        let name = "process_cpu_seconds";
        let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(stat.cpu_seconds()).encode(metric)
    }
}

/// Counted by the kernel itself from Linux 6.2 on, as the size of the folder.
fn open_files() -> Option<f64> {
    const FOLDER: &str = "/proc/self/fd";
    match fs::metadata(FOLDER).ok()?.len() {
        // The one that reads the folder is not counted.
        0 => Some(fs::read_dir(FOLDER).ok()?.count().saturating_sub(1) as f64),
        count => Some(count as f64),
    }
}

fn open_files_limit() -> Option<f64> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    Some(limit.current? as f64)
}

/// Virtual and resident memory in bytes.
fn memory() -> Option<[f64; 2]> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = statm.split(' ').map(str::parse::<f64>);
    let page = rustix::param::page_size() as f64;
    Some([pages.next()?.ok()? * page, pages.next()?.ok()? * page])
}

/// `/proc/self/stat`, as proc(5) has it.
struct Stat {
    ticks: f64,
    threads: f64,
    start_ticks: f64,
}

impl Stat {
    fn read() -> Option<Self> {
        let text = fs::read_to_string("/proc/self/stat").ok()?;
        // The name may have blanks in it; behind it, field 3 is the first.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        Some(Stat {
            ticks: field(14)? + field(15)?,
            threads: field(20)?,
            start_ticks: field(22)?,
        })
    }

    fn cpu_seconds(&self) -> f64 {
        self.ticks / rustix::param::clock_ticks_per_second() as f64
    }

    /// Seconds since 1970.
    fn started(&self) -> Option<f64> {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        let booted = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
        let booted: f64 = booted.trim().parse().ok()?;
        Some(booted + self.start_ticks / rustix::param::clock_ticks_per_second() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_proc_says_is_plausible() {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs_f64();
        let stat = Stat::read().unwrap();
        let age = now - stat.started().unwrap();
        assert!((-2.0..86_400.0).contains(&age), "{age}");
        assert!(stat.threads >= 1.0 && stat.cpu_seconds() >= 0.0);
        let [virtual_memory, resident] = memory().unwrap();
        assert!(virtual_memory >= resident && resident > 100_000.0);
        let files = open_files().unwrap();
        let held: Vec<_> = (0..50).map(|_| fs::File::open("/dev/null")).collect();
        // Other tests open and close files of this process meanwhile.
        assert!(open_files().unwrap() > files + 20.0);
        assert!(files < open_files_limit().unwrap());
        drop(held);
    }
}
