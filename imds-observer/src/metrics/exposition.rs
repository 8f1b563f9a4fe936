//! The metrics as text: OpenMetrics, and the older Prometheus format for those who don't ask for it.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::Shared;
use super::series::{Family, Labels, Number, Points, families};

/// Serves what is shared.
#[derive(Debug)]
struct Collected(Arc<Shared>);

impl Collector for Collected {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let state = self.0.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        families(&state, self.0.transfers())
            .iter()
            .try_for_each(|family| encode_family(&mut encoder, family))
    }
}

pub(super) fn registry(shared: &Arc<Shared>) -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Collected(Arc::clone(shared))));
    registry
}

pub(super) fn openmetrics(registry: &Registry) -> Result<String, fmt::Error> {
    let mut out = String::new();
    text::encode(&mut out, registry)?;
    Ok(out)
}

/// Prometheus' text format 0.0.4: a counter is described by the name of its samples, and there are neither units nor an end mark.
pub(super) fn prometheus(openmetrics: &str) -> String {
    let counters: Vec<&str> = openmetrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();
    let mut out = String::with_capacity(openmetrics.len());
    for line in openmetrics.lines() {
        if line.starts_with("# UNIT ") || line == "# EOF" {
            continue;
        }
        let described = ["# HELP ", "# TYPE "].iter().find_map(|prefix| {
            let (name, rest) = line.strip_prefix(prefix)?.split_once(' ')?;
            counters.contains(&name).then(|| format!("{prefix}{name}_total {rest}"))
        });
        out.push_str(described.as_deref().unwrap_or(line));
        out.push('\n');
    }
    out
}

fn encode_family(encoder: &mut DescriptorEncoder<'_>, family: &Family<'_>) -> fmt::Result {
    let kind = match family.points {
        Points::Counters(_) => MetricType::Counter,
        Points::Gauges(_) => MetricType::Gauge,
        Points::Histograms(_) => MetricType::Histogram,
    };
    let mut metric = encoder.encode_descriptor(family.name, family.help, None, kind)?;
    match &family.points {
        Points::Counters(points) => {
            for (labels, number) in points {
                series(&mut metric, labels, |series| match number {
                    Number::Whole(number) => series.encode_counter::<NoLabelSet, _, u64>(number, None),
                    Number::Real(number) => series.encode_counter::<NoLabelSet, _, u64>(number, None),
                })?;
            }
        }
        Points::Gauges(points) => {
            for (labels, value) in points {
                series(&mut metric, labels, |series| series.encode_gauge(value))?;
            }
        }
        Points::Histograms(points) => {
            for (labels, histogram) in points {
                let bounds = histogram.bounds.iter().copied().chain([f64::INFINITY]);
                let buckets: Vec<(f64, u64)> = bounds.zip(histogram.counts.iter().copied()).collect();
                let count = histogram.counts.iter().sum();
                series(&mut metric, labels, |series| {
                    series.encode_histogram::<NoLabelSet>(histogram.sum, count, &buckets, None)
                })?;
            }
        }
    }
    Ok(())
}

/// Without labels there are no braces.
fn series(
    metric: &mut MetricEncoder<'_>,
    labels: &Labels<'_>,
    encode: impl FnOnce(&mut MetricEncoder<'_>) -> fmt::Result,
) -> fmt::Result {
    if labels.is_empty() {
        return encode(metric);
    }
    encode(&mut metric.encode_family(&borrowed(labels))?)
}

fn borrowed<'a>(labels: &'a Labels<'_>) -> Vec<(&'static str, &'a str)> {
    labels.iter().map(|(name, value)| (*name, value.as_ref())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_format_describes_counters_by_their_samples() {
        let text = "# HELP a Things.\n# TYPE a counter\n# UNIT a seconds\na_total{x=\"# TYPE a counter\"} 1\n# HELP b B.\n# TYPE b gauge\nb 2\n# EOF\n";
        let wanted = "# HELP a_total Things.\n# TYPE a_total counter\na_total{x=\"# TYPE a counter\"} 1\n# HELP b B.\n# TYPE b gauge\nb 2\n";
        assert_eq!(prometheus(text), wanted);
    }
}
