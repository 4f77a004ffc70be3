//! Short forms for writing a metric family that is read from elsewhere at each scrape.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::histogram::{Counted, Histogram};

/// A label and its value.
pub(super) type Label<'a> = (&'static str, &'a str);

/// A family of counters; `_total` is added to the name.
pub(super) fn counters<'a, const LABELS: usize>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: impl Iterator<Item = ([Label<'a>; LABELS], u64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in series {
        ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// One counter without labels.
pub(super) fn sole_counter(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: u64,
) -> fmt::Result {
    let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    ConstCounter::new(value).encode(metric)
}

/// A family of counters under exactly this name, as APISIX writes them: OpenMetrics has no counter
/// without `_total`, so there they are of no type.
pub(super) fn bare_counters<'a, const LABELS: usize>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: impl Iterator<Item = ([Label<'a>; LABELS], u64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Unknown)?;
    for (labels, value) in series {
        ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// A family of gauges.
pub(super) fn gauges<'a, const LABELS: usize>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: impl Iterator<Item = ([Label<'a>; LABELS], i64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in series {
        ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// A family of histograms of seconds.
pub(super) fn histograms<'a, const LABELS: usize>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: impl Iterator<Item = ([Label<'a>; LABELS], Counted)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for (labels, counted) in series {
        histogram(&mut family.encode_family(&labels)?, &counted)?;
    }
    Ok(())
}

/// One histogram of seconds without labels; it is there before the first observation.
pub(super) fn sole_histogram(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    observed: &Histogram,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    let counted = observed.counted().unwrap_or_else(Histogram::nothing);
    histogram(&mut metric, &counted)
}

/// One number without labels.
pub(super) fn sole_gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: f64,
) -> fmt::Result {
    let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    ConstGauge::new(value).encode(metric)
}

fn histogram(encoder: &mut MetricEncoder<'_>, counted: &Counted) -> fmt::Result {
    let Counted {
        sum,
        count,
        buckets,
    } = counted;
    encoder.encode_histogram::<NoLabelSet>(*sum, *count, buckets, None)
}
