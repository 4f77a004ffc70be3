//! `drain` and `rebalance`, as a Pingora background service that follows the table.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pingora_core::server::ShutdownWatch;
use pingora_core::services::background::BackgroundService;
use tokio::sync::watch;

use super::job::Job;
use super::plan::{Cause, Plan, Planned, Wanted};
use crate::session::relay::Relays;
use crate::session::relay::orders::{PairId, Search};
use crate::source::Load;
use crate::table::{CurrentTable, Table};
use crate::telemetry::metrics::Metrics;

/// How soon connections are looked for again when some were found.
const SEARCH_AGAIN: Duration = Duration::from_secs(1);
/// The same when none were found although there may be some.
const SEARCH_SELDOM: Duration = Duration::from_secs(5);
/// So long after its start, and after a node is back, connections may arrive (from the process
/// before this one) that nothing announces.
const SETTLING: Duration = Duration::from_secs(30);
/// How soon the result of a search is looked at.
const SEARCHING: Duration = Duration::from_millis(2);
/// How often health and gauges are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// The shortest pause between two steps.
const SHORTEST: Duration = Duration::from_millis(1);

/// The service.
pub struct Drainer {
    /// What is served.
    pub table: Arc<CurrentTable>,
    /// Where the connections are.
    pub relays: Arc<Relays>,
    /// Where it shows what is left to do.
    pub metrics: Arc<Metrics>,
    /// Told of every load.
    pub loads: watch::Receiver<Option<Load>>,
}

#[async_trait]
impl BackgroundService for Drainer {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut loads = self.loads.clone();
        let mut work = Work::new(Instant::now());
        loop {
            let again = work.step(self, Instant::now());
            let pause = async {
                match again {
                    Some(again) => tokio::time::sleep_until(again.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = pause => {}
                Ok(()) = loads.changed() => {}
                // From here on every connection leaves; see the exodus.
                _ = shutdown.wait_for(|&stop| stop) => return,
            }
        }
    }
}

/// What the service is doing.
struct Work {
    served: Option<Arc<Table>>,
    plan: Arc<Plan>,
    jobs: Vec<Job>,
    search: Option<Search<Wanted>>,
    /// What the search has found so far: nobody leaves before it is complete, so that all relay
    /// threads have their share from the beginning.
    found: Vec<(PairId, Wanted)>,
    search_at: Option<Instant>,
    /// Until then connections are looked for even though none were found.
    settled: Instant,
    /// Nodes of upstreams with `rebalance` that are healthy and in use, by label of the upstream.
    healthy: HashMap<String, BTreeSet<String>>,
    health_at: Instant,
    /// The gauges that show: to drain or to rebalance, upstream, node.
    shown: BTreeSet<(bool, String, String)>,
    show_at: Instant,
}

impl Work {
    fn new(now: Instant) -> Self {
        Work {
            served: None,
            plan: Arc::default(),
            jobs: Vec::new(),
            search: None,
            found: Vec::new(),
            search_at: None,
            settled: now + SETTLING,
            healthy: HashMap::new(),
            health_at: now,
            shown: BTreeSet::new(),
            show_at: now,
        }
    }

    /// Does what is due; says when to call it again, `None` when there is nothing to do before
    /// the next load.
    fn step(&mut self, drainer: &Drainer, now: Instant) -> Option<Instant> {
        let table = drainer.table.load_full();
        if self
            .served
            .as_ref()
            .is_none_or(|served| !Arc::ptr_eq(served, &table))
        {
            self.follow(table, now);
        } else if now >= self.health_at && self.nodes_are_back(now) {
            self.search_from(now);
        }
        self.look_for_connections(drainer, now);
        let mut again = self.jobs.first().map(|_| now + LOOK);
        let mut sooner = |at: Instant| again = Some(again.map_or(at, |again| again.min(at)));
        for job in &mut self.jobs {
            job.note_empty_nodes(&self.plan.upstreams[job.upstream]);
            if let Some(at) = job.step(&self.plan, &drainer.relays, now) {
                sooner(at);
            }
        }
        if self.search.is_some() {
            sooner(now + SEARCHING);
        }
        if let Some(at) = self.search_at {
            sooner(at);
        }
        if now >= self.show_at {
            self.show_at = now + LOOK / 10;
            self.show(&drainer.metrics);
        }
        again.map(|again| again.max(now + SHORTEST))
    }

    /// Goes on with a new table: what its edits stop does not go on.
    fn follow(&mut self, table: Arc<Table>, now: Instant) {
        let before = self.served.replace(table.clone());
        let moving = table.upstreams().filter(|upstream| {
            let config = upstream.config();
            config.drain.is_some() || config.rebalance.is_some()
        });
        let old_plan = std::mem::take(&mut self.plan);
        let planned: Vec<Planned> = moving
            .map(|upstream| Planned {
                // What was looked at for rebalancing before still is.
                rebalance_before: old_plan
                    .of(upstream.label())
                    .and_then(|old| old.rebalance_before),
                ..Planned::new(upstream.clone())
            })
            .collect();
        let mut old: HashMap<(Cause, &str), Job> = HashMap::new();
        for job in self.jobs.drain(..) {
            let label = old_plan.upstreams[job.upstream].upstream.label();
            old.insert((job.cause, label), job);
        }
        for (index, planned) in planned.iter().enumerate() {
            let label = planned.upstream.label();
            let mut job = |cause| match old.remove(&(cause, label)) {
                Some(job) => job.renewed(index, planned),
                None => Job::new(cause, index, now),
            };
            if planned.drain().is_some() {
                let mut drain = job(Cause::Drain);
                let earlier = before.as_ref().and_then(|table| table.upstream(label));
                let removed = earlier.into_iter().flat_map(|upstream| upstream.nodes());
                for node in planned.upstream.nodes().chain(removed) {
                    let known = planned.has(node.label());
                    if !planned.in_use.contains(node.label()) && (known || node.live() > 0) {
                        drain.departs(node);
                    }
                }
                self.jobs.push(drain);
            }
            if planned.rebalance().is_some() {
                self.jobs.push(job(Cause::Rebalance));
            }
        }
        // In an upstream that changed, places may have changed as well: all nodes count as new.
        let same = |planned: &&Planned| {
            let old = old_plan.of(planned.upstream.label());
            old.is_some_and(|old| Arc::ptr_eq(&old.upstream, &planned.upstream))
        };
        let unchanged: BTreeSet<&str> = planned
            .iter()
            .filter(same)
            .map(|planned| planned.upstream.label())
            .collect();
        self.healthy
            .retain(|label, _| unchanged.contains(label.as_str()));
        self.plan = Arc::new(Plan::new(planned));
        self.nodes_are_back(now);
        self.search_from(now);
        self.show_at = now;
    }

    /// Whether nodes of upstreams with `rebalance` have come back, or were added, since the last
    /// look: from now on connections are looked at for it.
    fn nodes_are_back(&mut self, now: Instant) -> bool {
        self.health_at = now + LOOK;
        let mut cutoffs = Vec::new();
        for (index, planned) in self.plan.upstreams.iter().enumerate() {
            if planned.rebalance().is_none() {
                continue;
            }
            let label = planned.upstream.label();
            let healthy = planned.upstream.nodes_in_use();
            let healthy = healthy.filter(|node| node.health().is_healthy());
            let healthy: BTreeSet<String> = healthy.map(|node| node.label().to_owned()).collect();
            let before = self.healthy.insert(label.to_owned(), healthy);
            let healthy = &self.healthy[label];
            if before.is_none_or(|before| healthy.iter().any(|node| !before.contains(node))) {
                let slow_start = planned.upstream.config().slow_start.unwrap_or_default();
                cutoffs.push((index, now + slow_start));
            }
        }
        let Some(last) = cutoffs.iter().map(|(_, cutoff)| *cutoff).max() else {
            return false;
        };
        self.settled = self.settled.max(last + SETTLING);
        let upstreams = self.plan.upstreams.iter().enumerate();
        let renewed = upstreams.map(|(index, planned)| {
            let cutoff = cutoffs.iter().find(|(place, _)| *place == index);
            Planned {
                rebalance_before: cutoff
                    .map(|(_, cutoff)| *cutoff)
                    .or(planned.rebalance_before),
                ..Planned::new(planned.upstream.clone())
            }
        });
        self.plan = Arc::new(Plan::new(renewed.collect()));
        true
    }

    /// Makes every list again.
    fn search_from(&mut self, now: Instant) {
        (self.search, self.found) = (None, Vec::new());
        self.search_at = (!self.jobs.is_empty()).then_some(now);
        for job in &mut self.jobs {
            job.forget();
        }
    }

    fn look_for_connections(&mut self, drainer: &Drainer, now: Instant) {
        if let Some(search) = &self.search {
            if search.take(&mut self.found) {
                self.search = None;
                let jobs = self.jobs.iter_mut();
                let mut jobs: HashMap<(usize, Cause), &mut Job> =
                    jobs.map(|job| ((job.upstream, job.cause), job)).collect();
                for (id, wanted) in std::mem::take(&mut self.found) {
                    if let Some(job) = jobs.get_mut(&(wanted.upstream, wanted.cause)) {
                        job.found(id, wanted);
                    }
                }
                for job in &mut self.jobs {
                    job.begin(&self.plan.upstreams[job.upstream], now);
                }
                let nobody = self.jobs.iter().all(Job::is_idle);
                let maybe = now < self.settled || self.jobs.iter().any(Job::is_left_to_do);
                self.search_at = (nobody && maybe).then_some(now + SEARCH_SELDOM);
            }
            return;
        }
        let idle = self.jobs.iter().all(Job::is_idle);
        match self.search_at {
            Some(at) if now >= at => {
                self.search_at = None;
                let plan = self.plan.clone();
                self.search = Some(drainer.relays.search(move |pair| plan.wanted(pair)));
            }
            // The last of the lists may have been worked off.
            None if idle => self.search_at = self.worked().then(|| now + SEARCH_AGAIN),
            _ => {}
        }
    }

    /// Whether anything was on the lists since they were made.
    fn worked(&mut self) -> bool {
        let worked = self
            .jobs
            .iter_mut()
            .filter_map(|job| job.worked().then_some(()));
        // All of them are asked: asking clears it.
        worked.count() > 0
    }

    fn show(&mut self, metrics: &Metrics) {
        let mut shown = BTreeSet::new();
        for job in &self.jobs {
            let upstream = self.plan.upstreams[job.upstream].upstream.label();
            let drains = job.cause == Cause::Drain;
            for (node, left) in job.left() {
                metrics.leaving.set(drains, upstream, node, left);
                shown.insert((drains, upstream.to_owned(), node.to_owned()));
            }
        }
        for (drains, upstream, node) in self.shown.difference(&shown) {
            metrics.leaving.remove(*drains, upstream, node);
        }
        self.shown = shown;
    }
}
