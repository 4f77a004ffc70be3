//! What processes use, read from /proc.

use std::fs;
use std::io;
use std::ops::{Add, Sub};
use std::process::Command;
use std::time::Duration;

/// CPU time of a group of processes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpu {
    /// Time on a processor, in user space and in the kernel.
    pub used: Duration,
    /// Time in which a thread could have run, but the processor was taken.
    pub waited: Duration,
}

impl Add for Cpu {
    type Output = Cpu;

    fn add(self, other: Cpu) -> Cpu {
        Cpu {
            used: self.used + other.used,
            waited: self.waited + other.waited,
        }
    }
}

impl Sub for Cpu {
    type Output = Cpu;

    fn sub(self, before: Cpu) -> Cpu {
        Cpu {
            used: self.used.saturating_sub(before.used),
            waited: self.waited.saturating_sub(before.waited),
        }
    }
}

/// Confines this thread, the load, to these processors (as taskset takes them).
pub fn pin(cores: &str) -> io::Result<()> {
    let pid = std::process::id().to_string();
    let taskset = Command::new("taskset")
        .args(["-p", "-c", cores, &pid])
        .output()?;
    match taskset.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!(
            "taskset: {}",
            String::from_utf8_lossy(&taskset.stderr).trim()
        ))),
    }
}

/// The process and all that descend from it.
pub fn family(pid: u32) -> Vec<u32> {
    let mut family = vec![pid];
    let mut next = 0;
    while let Some(pid) = family.get(next).copied() {
        next += 1;
        for thread in threads(pid).unwrap_or_default() {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{thread}/children"));
            let children = children.unwrap_or_default();
            family.extend(
                children
                    .split_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            );
        }
    }
    family
}

/// CPU time of all threads that live now, to the nanosecond (schedstat; the tick of /proc/PID/stat
/// is four to ten milliseconds).
pub fn cpu(family: &[u32]) -> io::Result<Cpu> {
    let mut sum = Cpu::default();
    for &pid in family {
        for thread in threads(pid)? {
            let text = fs::read_to_string(format!("/proc/{pid}/task/{thread}/schedstat"))?;
            let mut fields = text.split_whitespace().map(|field| field.parse::<u64>());
            if let (Some(Ok(used)), Some(Ok(waited))) = (fields.next(), fields.next()) {
                sum.used += Duration::from_nanos(used);
                sum.waited += Duration::from_nanos(waited);
            }
        }
    }
    Ok(sum)
}

/// Proportional set size in bytes: memory of user space, shared pages divided by their users.
pub fn pss(family: &[u32]) -> io::Result<u64> {
    let mut sum = 0;
    for pid in family {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        sum += kilobytes.ok_or_else(|| io::Error::other("smaps_rollup has no Pss"))? * 1024;
    }
    Ok(sum)
}

/// Open descriptors.
pub fn descriptors(family: &[u32]) -> io::Result<usize> {
    let counts = family
        .iter()
        .map(|pid| Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count()));
    counts.sum()
}

/// The kernel thread that takes over packets which a core has too many of: what it does is in
/// nobody's CPU time.
pub fn ksoftirqd(core: usize) -> Option<u32> {
    let name = format!("ksoftirqd/{core}");
    let entries = fs::read_dir("/proc").ok()?;
    let mut pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.find(|pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name)
    })
}

/// Connections in TIME_WAIT on this machine.
pub fn time_wait() -> u64 {
    let text = fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
    let mut words = text.split_whitespace().skip_while(|&word| word != "tw");
    words
        .nth(1)
        .and_then(|count| count.parse().ok())
        .unwrap_or(0)
}

fn threads(pid: u32) -> io::Result<Vec<u32>> {
    let entries = fs::read_dir(format!("/proc/{pid}/task"))?;
    Ok(entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect())
}
