//! Keeps the health of all nodes in service: a Pingora background service that follows the table.
//!
//! Each node of an upstream with checks has a task: it probes the node when it is due, or, where
//! there are no active probes, gives an unhealthy node another chance after a while. A reload
//! replaces the tasks of upstreams that changed; the state and the time of the last probe are the
//! node's own and stay, and a probe that is under way is finished.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use pingora_core::connectors::TransportConnector;
use pingora_core::server::ShutdownWatch;
use pingora_core::services::background::BackgroundService;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep_until};

use super::probe::Check;
use crate::upstream::node::Node;
use crate::upstream::{Upstream, random};

/// Probes of the whole process that run at a time.
const MAX_PROBES: usize = 256;
/// The first probes of an upstream are spread over this time, or over the interval if shorter.
const FIRST_PROBES: Duration = Duration::from_secs(1);

/// The upstreams in service, by label, and their tasks.
type Running = HashMap<String, (Arc<Upstream>, Stop)>;
/// Dropping it ends the tasks that listen, each at its next pause.
type Stop = watch::Sender<()>;

/// The service. [`Prober::follow`] tells it what to probe.
pub struct Prober {
    followed: watch::Sender<Vec<Arc<Upstream>>>,
    permits: Arc<Semaphore>,
    /// Made when the first upstream with active probes appears: it loads the system's CAs.
    connector: Mutex<Option<Arc<TransportConnector>>>,
}

impl Default for Prober {
    fn default() -> Self {
        Prober {
            followed: watch::Sender::new(Vec::new()),
            permits: Arc::new(Semaphore::new(MAX_PROBES)),
            connector: Mutex::default(),
        }
    }
}

impl Prober {
    /// Probes the nodes of these upstreams from now on, and no others.
    pub fn follow<'a>(&self, upstreams: impl Iterator<Item = &'a Arc<Upstream>>) {
        let checked = upstreams.filter(|upstream| upstream.checks().is_some());
        self.followed.send_replace(checked.cloned().collect());
    }

    fn reconcile(&self, running: &mut Running, upstreams: &[Arc<Upstream>]) {
        let mut before = std::mem::take(running);
        for upstream in upstreams {
            let label = upstream.label().to_owned();
            let tasks = match before.remove(&label) {
                Some((same, tasks)) if Arc::ptr_eq(&same, upstream) => tasks,
                _ => self.start(upstream),
            };
            running.insert(label, (upstream.clone(), tasks));
        }
    }

    fn start(&self, upstream: &Arc<Upstream>) -> Stop {
        let (stop, stopped) = watch::channel(());
        let active = upstream.checks().and_then(|checks| checks.active.as_ref());
        let check = active.map(|active| Arc::new(Check::new(upstream, active, self.connector())));
        let places = active.map_or(1, |active| active.concurrency);
        let places = Arc::new(Semaphore::new(places));
        for node in upstream.nodes_once() {
            let task = Task {
                upstream: upstream.clone(),
                node: node.clone(),
                stopped: stopped.clone(),
            };
            match &check {
                Some(check) => {
                    let permits = [places.clone(), self.permits.clone()];
                    tokio::spawn(task.keep_probed(check.clone(), permits))
                }
                None => tokio::spawn(task.keep_forgiving()),
            };
        }
        stop
    }

    fn connector(&self) -> Arc<TransportConnector> {
        let mut connector = self
            .connector
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        connector
            .get_or_insert_with(|| Arc::new(TransportConnector::new(None)))
            .clone()
    }
}

#[async_trait]
impl BackgroundService for Prober {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut followed = self.followed.subscribe();
        let mut running = Running::new();
        loop {
            let upstreams = followed.borrow_and_update().clone();
            self.reconcile(&mut running, &upstreams);
            tokio::select! {
                changed = followed.changed() => if changed.is_err() { return },
                _ = shutdown.changed() => return,
            }
        }
    }
}

/// What keeps the health of one node.
struct Task {
    upstream: Arc<Upstream>,
    node: Arc<Node>,
    stopped: watch::Receiver<()>,
}

impl Task {
    async fn keep_probed(mut self, check: Arc<Check>, permits: [Arc<Semaphore>; 2]) {
        let active = check.active();
        let mut transition = self.node.health().transition();
        let first = Instant::now() + random::below(active.healthy_interval.min(FIRST_PROBES));
        loop {
            let interval = match self.node.health().is_healthy() {
                true => active.healthy_interval,
                false => active.unhealthy_interval,
            };
            let due = self.node.health().next_probe(interval);
            let due = due.map_or(first, Instant::from_std);
            tokio::select! {
                biased;
                _ = self.stopped.changed() => return,
                // Another interval may count now.
                _ = transition.changed() => continue,
                () = sleep_until(due) => {}
            }
            let [of_upstream, of_process] = &permits;
            let turn = async { (of_upstream.acquire().await, of_process.acquire().await) };
            let _permits = tokio::select! {
                _ = self.stopped.changed() => return,
                permits = turn => permits,
            };
            self.node.health().probe_begins();
            let verdict = check.run(&self.node).await;
            self.upstream.probed(&self.node, verdict);
        }
    }

    async fn keep_forgiving(mut self) {
        let Some(checks) = self.upstream.checks().cloned() else {
            return;
        };
        let mut transition = self.node.health().transition();
        loop {
            let health = self.node.health();
            let since = (!health.is_healthy())
                .then(|| health.changed_at())
                .flatten();
            let another_chance = async {
                match since {
                    Some(since) => {
                        sleep_until(Instant::from_std(since + checks.passive.recovery)).await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = self.stopped.changed() => return,
                _ = transition.changed() => {}
                () = another_chance => self.upstream.recovered(&self.node),
            }
        }
    }
}
