//! What proxy and load use while something is measured.

use std::fmt;
use std::io;
use std::iter::Sum;
use std::time::{Duration, Instant};

use super::stage::Stage;
use super::usage::Cpu;

/// A measurement that has begun.
pub struct Meter {
    begun: Instant,
    before: [Cpu; 3],
}

/// What was used while something was measured.
#[derive(Debug, Clone, Copy, Default)]
pub struct Used {
    /// How long it took.
    pub wall: Duration,
    /// By the proxy.
    pub proxy: Cpu,
    load: Cpu,
    ksoftirqd: Cpu,
}

impl Meter {
    /// Begins to measure.
    pub fn start(stage: &Stage) -> io::Result<Self> {
        Ok(Meter {
            begun: Instant::now(),
            before: stage.usage()?,
        })
    }

    /// Ends the measurement.
    pub fn stop(self, stage: &Stage) -> io::Result<Used> {
        let wall = self.begun.elapsed();
        let now = stage.usage()?;
        let [proxy, load, ksoftirqd] = [0, 1, 2].map(|of| now[of] - self.before[of]);
        Ok(Used {
            wall,
            proxy,
            load,
            ksoftirqd,
        })
    }
}

impl Sum for Used {
    fn sum<I: Iterator<Item = Used>>(all: I) -> Used {
        all.fold(Used::default(), |sum, one| Used {
            wall: sum.wall + one.wall,
            proxy: sum.proxy + one.proxy,
            load: sum.load + one.load,
            ksoftirqd: sum.ksoftirqd + one.ksoftirqd,
        })
    }
}

impl Used {
    /// CPU of the proxy per unit, in microseconds.
    pub fn micros_per(&self, units: u64) -> f64 {
        self.proxy.used.as_secs_f64() * 1e6 / units as f64
    }
}

impl fmt::Display for Used {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |part: Duration| 100.0 * part.as_secs_f64() / self.wall.as_secs_f64();
        write!(
            f,
            "proxy on its core {:.0} %, waiting for it {:.0} %, load {:.0} %, ksoftirqd {:.1} %",
            percent(self.proxy.used),
            percent(self.proxy.waited),
            percent(self.load.used),
            percent(self.ksoftirqd.used)
        )
    }
}
