//! The metrics as text: OpenMetrics, and the older Prometheus format for those who don't ask for it.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::Shared;
use super::state::{BUCKETS_S, CONNECT_OUTCOMES, OTHER, OUTCOMES, State, VERSIONS};

/// Serves what is shared.
#[derive(Debug)]
struct Collected(Arc<Shared>);

impl Collector for Collected {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let state = self.0.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        workloads(&mut encoder, &state)?;
        host(&mut encoder, &state)?;
        own(&mut encoder, &state)
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

type Label<'a> = (&'static str, &'a str);

fn counters<S: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: impl IntoIterator<Item = (S, u64)>,
) -> fmt::Result {
    let mut rows = rows.into_iter().peekable();
    if rows.peek().is_none() {
        return Ok(());
    }
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in rows {
        metric
            .encode_family(&labels)?
            .encode_counter::<NoLabelSet, _, u64>(&value, None)?;
    }
    Ok(())
}

fn gauges<S: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: impl IntoIterator<Item = (S, f64)>,
) -> fmt::Result {
    let mut rows = rows.into_iter().peekable();
    if rows.peek().is_none() {
        return Ok(());
    }
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in rows {
        metric.encode_family(&labels)?.encode_gauge(&value)?;
    }
    Ok(())
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: f64) -> fmt::Result {
    encoder
        .encode_descriptor(name, help, None, MetricType::Gauge)?
        .encode_gauge(&value)
}

fn workloads(encoder: &mut DescriptorEncoder<'_>, state: &State) -> fmt::Result {
    let mut sorted: Vec<_> = state.workloads.iter().collect();
    sorted.sort_unstable_by_key(|(name, _)| *name);
    let mut exchanges = Vec::new();
    let mut statuses = Vec::new();
    let mut failed = Vec::new();
    for (name, workload) in &sorted {
        for (version, row) in VERSIONS.iter().zip(&workload.exchanges) {
            for (outcome, count) in OUTCOMES.iter().zip(row).filter(|(_, count)| **count > 0) {
                let labels: [Label<'_>; 3] = [
                    ("workload", name),
                    ("imds_version", version.map_or("unknown", |version| version.as_str())),
                    ("outcome", outcome.as_str()),
                ];
                exchanges.push((labels, *count));
            }
        }
        for (status, count) in &workload.statuses {
            let status = status.map_or_else(|| OTHER.to_owned(), |status| status.to_string());
            statuses.push((name.as_str(), status, *count));
        }
        for (outcome, count) in CONNECT_OUTCOMES
            .iter()
            .zip(workload.failed_connects)
            .filter(|(_, count)| *count > 0)
        {
            let labels: [Label<'_>; 2] = [("workload", name), ("outcome", outcome.as_str())];
            failed.push((labels, count));
        }
    }
    counters(
        encoder,
        "imds_exchanges",
        "Requests to IMDS, by what became of them",
        exchanges,
    )?;
    counters(
        encoder,
        "imds_responses",
        "Responses that arrived at this host, by status",
        statuses.iter().map(|(name, status, count)| {
            let labels: [Label<'_>; 2] = [("workload", name), ("status", status)];
            (labels, *count)
        }),
    )?;
    counters(
        encoder,
        "imds_failed_connects",
        "Connections to IMDS that never came to be",
        failed,
    )?;
    if !sorted.is_empty() {
        let mut metric = encoder.encode_descriptor(
            "imds_lost_seconds",
            "Time that callers waited for what never came",
            None,
            MetricType::Counter,
        )?;
        for (name, workload) in &sorted {
            let labels: [Label<'_>; 1] = [("workload", name)];
            metric
                .encode_family(&labels)?
                .encode_counter::<NoLabelSet, _, u64>(&workload.lost_seconds, None)?;
        }
        let mut metric = encoder.encode_descriptor(
            "imds_response_latency_seconds",
            "From a request's first byte to its answer's",
            None,
            MetricType::Histogram,
        )?;
        for (name, workload) in &sorted {
            let bounds = BUCKETS_S.into_iter().chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(workload.latency).collect();
            let labels: [Label<'_>; 1] = [("workload", name)];
            metric.encode_family(&labels)?.encode_histogram::<NoLabelSet>(
                workload.latency_sum_s,
                workload.latency.iter().sum(),
                &buckets,
                None,
            )?;
        }
    }
    Ok(())
}

fn host(encoder: &mut DescriptorEncoder<'_>, state: &State) -> fmt::Result {
    counters(
        encoder,
        "imds_dropped_packets",
        "Packets of IMDS flows that this kernel dropped, by its reason",
        state.dropped.iter().map(|((reason, direction), count)| {
            let labels: [Label<'_>; 2] = [("reason", reason), ("direction", direction)];
            (labels, *count)
        }),
    )?;
    let by_code = |((code, severity), count): (&(&'static str, &'static str), &u64)| {
        let labels: [Label<'_>; 2] = [("code", code), ("severity", severity)];
        (labels, *count)
    };
    counters(
        encoder,
        "imds_findings",
        "Findings that were opened",
        state.findings.iter().map(by_code),
    )?;
    gauges(
        encoder,
        "imds_open_findings",
        "Findings that are open",
        state
            .open_findings()
            .iter()
            .map(by_code)
            .map(|(labels, count)| (labels, count as f64)),
    )?;
    let packets = state.interfaces.iter().flat_map(|(name, interface)| {
        [("egress", interface.egress), ("ingress", interface.ingress)].map(|(direction, count)| {
            let labels: [Label<'_>; 2] = [("interface", name), ("direction", direction)];
            (labels, count)
        })
    });
    counters(
        encoder,
        "imds_interface_packets",
        "Packets to and from link-local services (IMDS, DNS, NTP)",
        packets,
    )?;
    let of = |value: fn(&super::state::Interface) -> f64| {
        state.interfaces.iter().map(move |(name, interface)| {
            let labels: [Label<'_>; 1] = [("interface", name)];
            (labels, value(interface))
        })
    };
    gauges(
        encoder,
        "imds_interface_peak_packets_per_second",
        "Most packets of one second in the last interval",
        of(|interface| interface.peak_per_s as f64),
    )?;
    gauges(
        encoder,
        "imds_interface_quota_ratio",
        "That peak over the quota of 1024 packets per second",
        of(|interface| interface.quota_share),
    )?;
    let exceeded = state.interfaces.iter().filter_map(|(name, interface)| {
        let labels: [Label<'_>; 1] = [("interface", name)];
        Some((labels, interface.allowance_exceeded?))
    });
    counters(
        encoder,
        "imds_interface_allowance_exceeded",
        "Packets beyond the quota, as the driver counts them",
        exceeded,
    )
}

/// The observer itself.
fn own(encoder: &mut DescriptorEncoder<'_>, state: &State) -> fmt::Result {
    let loss = state.loss;
    let lost = [
        ("ring_buffer", loss.ring_buffer),
        ("unparsed", loss.unparsed),
        ("truncated", loss.truncated),
        ("evicted", loss.evicted),
        ("unattributed", loss.unattributed),
        ("shed", loss.shed),
        ("unknown_containers", loss.unknown_containers),
    ];
    counters(
        encoder,
        "imds_observer_lost",
        "What could not be seen or kept, by where; see the `loss` record",
        lost.map(|(name, count)| ([("what", name)], count)),
    )?;
    counters(
        encoder,
        "imds_observer_records",
        "Records that were made",
        state.records.iter().map(|(kind, count)| ([("kind", *kind)], *count)),
    )?;
    if let Some(start) = &state.start {
        let labels: [Label<'_>; 2] = [("version", &start.version), ("kernel", &start.kernel)];
        gauges(encoder, "imds_observer_build_info", "Always 1", [(labels, 1.0)])?;
        gauges(
            encoder,
            "imds_observer_missing",
            "Capabilities that this host does not give, always 1; see the `start` record",
            start.missing.iter().map(|name| ([("capability", name.as_str())], 1.0)),
        )?;
        gauge(
            encoder,
            "process_start_time_seconds",
            "Start of observation, Unix time",
            start.time.0 as f64 / 1e9,
        )?;
    }
    let Some(process) = own_process() else { return Ok(()) };
    let mut cpu = encoder.encode_descriptor(
        "process_cpu_seconds",
        "User and system time of the observer",
        None,
        MetricType::Counter,
    )?;
    cpu.encode_counter::<NoLabelSet, _, u64>(&process.cpu_s, None)?;
    gauge(
        encoder,
        "process_resident_memory_bytes",
        "Resident memory of the observer",
        process.resident_bytes,
    )?;
    gauge(
        encoder,
        "process_open_fds",
        "Open file descriptors of the observer",
        process.open_fds,
    )
}

struct OwnProcess {
    cpu_s: f64,
    resident_bytes: f64,
    open_fds: f64,
}

fn own_process() -> Option<OwnProcess> {
    let process = procfs::process::Process::myself().ok()?;
    let stat = process.stat().ok()?;
    Some(OwnProcess {
        cpu_s: (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64,
        resident_bytes: stat.rss as f64 * procfs::page_size() as f64,
        open_fds: process.fd_count().ok()? as f64,
    })
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
