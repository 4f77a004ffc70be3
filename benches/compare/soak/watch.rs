//! What the proxy holds and how busy it is.

use std::time::{Duration, Instant};

use crate::contender::Running;
use crate::usage;

/// How long the proxy may take to let go of what has ended.
pub const QUIET: Duration = Duration::from_secs(60);

/// A proxy to look at.
pub struct Watched {
    pub running: Running,
}

/// What a proxy holds.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    pub memory: u64,
    pub descriptors: usize,
}

impl Watched {
    /// What it holds now.
    pub fn held(&self) -> std::io::Result<Held> {
        Ok(Held {
            memory: usage::pss(&self.running.family)?,
            descriptors: usage::descriptors(&self.running.family)?,
        })
    }

    /// Waits until it holds the same for five seconds, or [`QUIET`] has passed.
    pub async fn at_rest(&self) -> std::io::Result<Held> {
        let begun = Instant::now();
        let mut last = (self.held()?, Instant::now());
        while last.1.elapsed() < Duration::from_secs(5) && begun.elapsed() < QUIET {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let now = self.held()?;
            if (now.memory, now.descriptors) != (last.0.memory, last.0.descriptors) {
                last = (now, Instant::now());
            }
        }
        Ok(last.0)
    }
}

impl std::fmt::Display for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mebibytes = self.memory as f64 / f64::from(1 << 20);
        write!(f, "{mebibytes:.1} MiB, {} descriptors", self.descriptors)
    }
}

/// How busy proxy and load are together, in processors.
pub struct Meter {
    at: Instant,
    cpu: [Duration; 2],
    minute: (Instant, [Duration; 2]),
}

impl Meter {
    pub fn new(watched: &Watched) -> std::io::Result<Self> {
        let (now, cpu) = (Instant::now(), Self::cpu(watched)?);
        Ok(Meter {
            at: now,
            cpu,
            minute: (now, cpu),
        })
    }

    fn cpu(watched: &Watched) -> std::io::Result<[Duration; 2]> {
        Ok([
            usage::cpu(&watched.running.family)?.used,
            usage::cpu(&[std::process::id()])?.used,
        ])
    }

    /// Processors in use since the last turn.
    pub fn turn(&mut self, watched: &Watched) -> std::io::Result<f64> {
        let (now, cpu) = (Instant::now(), Self::cpu(watched)?);
        let used = (cpu[0] + cpu[1]).saturating_sub(self.cpu[0] + self.cpu[1]);
        let busy = used.as_secs_f64() / (now - self.at).as_secs_f64();
        (self.at, self.cpu) = (now, cpu);
        Ok(busy)
    }

    /// Percent since this was asked last: proxy, load.
    pub fn percent(&mut self, watched: &Watched) -> std::io::Result<[f64; 2]> {
        let (now, cpu) = (Instant::now(), Self::cpu(watched)?);
        let (then, before) = std::mem::replace(&mut self.minute, (now, cpu));
        let wall = (now - then).as_secs_f64();
        Ok([0, 1].map(|of| 100.0 * cpu[of].saturating_sub(before[of]).as_secs_f64() / wall))
    }
}
