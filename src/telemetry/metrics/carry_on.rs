//! Counters that carry on in the next process (an upgrade).

use std::borrow::Cow;
use std::collections::HashMap;

use super::samples::samples;
use super::tables::Counting;
use super::{ByReason, ByResult, Metrics};
use crate::histogram::Histogram;

impl Metrics {
    /// Adds the counters of another process, as [`encode`](Self::encode) wrote them there, less
    /// what it had written `before` (empty at first). Gauges count what this process holds itself;
    /// a counter that it does not have is left out.
    pub fn carry_on(&self, text: &str, before: &str) {
        let before: HashMap<&str, &str> = samples(before)
            .map(|sample| (sample.series, sample.value))
            .collect();
        let table = self.table.load();
        let counting = Counting::of(&table);
        // The count of the bucket below, which is part of the next one.
        let mut below = 0;
        for sample in samples(text) {
            let earlier = before.get(sample.series).copied();
            let upstream = sample.labels.get("upstream").map(String::as_str);
            if let Some(base) = sample.name.strip_suffix("_seconds_sum") {
                if let Some(histogram) = self.histogram(base, upstream, &counting) {
                    let value = |text: &str| text.parse().unwrap_or(0.0);
                    histogram.add_to_sum(value(sample.value) - earlier.map_or(0.0, value));
                }
                below = 0;
                continue;
            }
            let (Ok(value), earlier) = (sample.value.parse::<u64>(), earlier.unwrap_or("0")) else {
                continue;
            };
            let more = value.saturating_sub(earlier.parse().unwrap_or(0));
            match sample.name.strip_suffix("_seconds_bucket") {
                None => self.add(sample.name, &sample.labels, more, &counting),
                Some(base) => {
                    let own = more.saturating_sub(std::mem::replace(&mut below, more));
                    let bound = sample.labels.get("le").and_then(|le| le.parse().ok());
                    let histogram = self.histogram(base, upstream, &counting);
                    if let (Some(histogram), Some(bound), 1..) = (histogram, bound, own) {
                        histogram.add_to_bucket(bound, own);
                    }
                }
            }
        }
    }

    fn histogram<'a>(
        &'a self,
        name: &str,
        upstream: Option<&str>,
        counting: &'a Counting<'_>,
    ) -> Option<&'a Histogram> {
        match name {
            "mqtt_proxy_connect_parse" => Some(&self.observed.connect_read),
            "mqtt_proxy_connack" => Some(&self.observed.connack),
            "mqtt_proxy_tls_handshake" => Some(&self.observed.handshake),
            "mqtt_proxy_upstream_connect" => counting.connect_times(upstream?),
            _ => None,
        }
    }

    fn add(&self, name: &str, labels: &HashMap<&str, String>, more: u64, counting: &Counting<'_>) {
        let label = |name| labels.get(name).map(String::as_str).unwrap_or_default();
        let reason = || ByReason {
            reason: Cow::Owned(label("reason").to_owned()),
        };
        let result = || ByResult {
            result: Cow::Owned(label("result").to_owned()),
        };
        let counter = match name {
            "mqtt_proxy_refused_total" => self.refused.get_or_create_owned(&reason()),
            "mqtt_proxy_connections_ended_total" => self.ended.get_or_create_owned(&reason()),
            "mqtt_proxy_tls_handshakes_total" => self.handshakes.get_or_create_owned(&result()),
            "mqtt_proxy_config_reload_total" => self.reloads.get_or_create_owned(&result()),
            "mqtt_proxy_upgrades_total" => self.upgrades.get_or_create_owned(&result()),
            "mqtt_proxy_upgrade_connections_total" => self.taken_over.clone(),
            "mqtt_proxy_access_log_dropped_total" => self.access_log_dropped.clone(),
            "mqtt_proxy_connack_total" => {
                let connacks = &self.observed.connacks;
                return connacks.carry_on(label("origin"), label("code"), more);
            }
            _ => {
                self.listeners.carry_on(name, labels, more);
                return counting.carry_on(name, labels, more);
            }
        };
        counter.inc_by(more);
    }
}
