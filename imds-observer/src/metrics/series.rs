//! The metrics as data: names, help, labels and numbers, for the Prometheus endpoint and for OTLP.

use std::borrow::Cow;

use super::state::{BUCKETS_S, CONNECT_OUTCOMES, Interface, OTHER, OUTCOMES, Totals, VERSIONS};
use crate::record::ImdsVersion;

/// Label values belong to the state as far as they can.
pub(super) type Labels<'a> = Vec<(&'static str, Cow<'a, str>)>;

/// Series of one name.
pub(super) struct Family<'a> {
    /// Without the `_total` of counters' samples.
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) points: Points<'a>,
}

pub(super) enum Points<'a> {
    Counters(Vec<(Labels<'a>, Number)>),
    Gauges(Vec<(Labels<'a>, f64)>),
    Histograms(Vec<(Labels<'a>, Histogram<'a>)>),
}

#[derive(Clone, Copy)]
pub(super) enum Number {
    Whole(u64),
    Real(f64),
}

#[cfg(feature = "otlp")]
impl Number {
    pub(super) fn as_f64(self) -> f64 {
        match self {
            Self::Whole(number) => number as f64,
            Self::Real(number) => number,
        }
    }
}

pub(super) struct Histogram<'a> {
    /// By bucket, one more than there are bounds.
    pub(super) counts: &'a [u64],
    pub(super) bounds: &'static [f64],
    pub(super) sum: f64,
}

/// Transfers to a collector, if there is one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Transfers {
    pub(crate) findings_sent: u64,
    pub(crate) findings_lost: u64,
    pub(crate) failed: u64,
}

/// Everything there is, sorted as it is shown. Families without a series are left out.
pub(super) fn families(state: &Totals, transfers: Option<Transfers>) -> Vec<Family<'_>> {
    let mut families = Vec::with_capacity(24);
    workloads(&mut families, state);
    host(&mut families, state);
    own(&mut families, state);
    if let Some(transfers) = transfers {
        let counter = |name, help, count| counters(name, help, vec![(Vec::new(), count)]);
        families.extend([
            counter(
                "imds_observer_otlp_findings_sent",
                "Findings accepted by the OTLP collector",
                transfers.findings_sent,
            ),
            counter(
                "imds_observer_otlp_findings_lost",
                "Findings dropped because the OTLP collector did not accept them",
                transfers.findings_lost,
            ),
            counter(
                "imds_observer_otlp_failed_transfers",
                "Failed transfers to the OTLP collector",
                transfers.failed,
            ),
        ]);
    }
    families.retain(|family| match &family.points {
        Points::Counters(points) => !points.is_empty(),
        Points::Gauges(points) => !points.is_empty(),
        Points::Histograms(points) => !points.is_empty(),
    });
    families
}

fn counters<'a>(name: &'static str, help: &'static str, points: Vec<(Labels<'a>, u64)>) -> Family<'a> {
    let points = points
        .into_iter()
        .map(|(labels, count)| (labels, Number::Whole(count)))
        .collect();
    Family {
        name,
        help,
        points: Points::Counters(points),
    }
}

fn gauges<'a>(name: &'static str, help: &'static str, points: Vec<(Labels<'a>, f64)>) -> Family<'a> {
    Family {
        name,
        help,
        points: Points::Gauges(points),
    }
}

fn label<'a>(name: &'static str, value: &'a str) -> (&'static str, Cow<'a, str>) {
    (name, Cow::Borrowed(value))
}

fn workloads<'a>(families: &mut Vec<Family<'a>>, state: &'a Totals) {
    let mut sorted: Vec<_> = state.workloads.iter().collect();
    sorted.sort_unstable_by_key(|(name, _)| *name);
    let mut exchanges = Vec::new();
    let mut statuses = Vec::new();
    let mut failed = Vec::new();
    for (name, workload) in &sorted {
        let of = label("workload", name);
        let mut kinds = workload.exchanges.clone();
        kinds.sort_unstable_by_key(|(asked, _)| (asked.version, asked.outcome, asked.dialect as usize));
        for (asked, count) in kinds {
            let version = VERSIONS[asked.version].map_or("unknown", ImdsVersion::as_str);
            let labels = vec![
                of.clone(),
                label("imds_version", version),
                label("outcome", OUTCOMES[asked.outcome].as_str()),
                label("dialect", asked.dialect.as_str()),
            ];
            exchanges.push((labels, count));
        }
        for (status, count) in &workload.statuses {
            let status = status.map_or(Cow::Borrowed(OTHER), |status| Cow::Owned(status.to_string()));
            statuses.push((vec![of.clone(), ("status", status)], *count));
        }
        for (outcome, count) in CONNECT_OUTCOMES
            .iter()
            .zip(workload.failed_connects)
            .filter(|(_, count)| *count > 0)
        {
            failed.push((vec![of.clone(), label("outcome", outcome.as_str())], count));
        }
    }
    families.extend([
        counters("imds_exchanges", "Requests to IMDS, by outcome", exchanges),
        counters(
            "imds_responses",
            "IMDS responses that arrived at this host, by HTTP status",
            statuses,
        ),
        counters("imds_failed_connects", "Failed connection attempts to IMDS", failed),
        Family {
            name: "imds_lost_seconds",
            help: "Seconds that callers spent on IMDS requests that failed",
            points: Points::Counters(
                sorted
                    .iter()
                    .map(|(name, workload)| (vec![label("workload", name)], Number::Real(workload.lost_seconds)))
                    .collect(),
            ),
        },
        Family {
            name: "imds_response_latency_seconds",
            help: "Time from the first byte of an IMDS request to the first byte of its response",
            points: Points::Histograms(
                sorted
                    .iter()
                    .map(|(name, workload)| {
                        let histogram = Histogram {
                            counts: &workload.latency,
                            bounds: &BUCKETS_S,
                            sum: workload.latency_sum_s,
                        };
                        (vec![label("workload", name)], histogram)
                    })
                    .collect(),
            ),
        },
    ]);
}

fn host<'a>(families: &mut Vec<Family<'a>>, state: &'a Totals) {
    let dropped = state
        .dropped
        .iter()
        .map(|((reason, direction), count)| (vec![label("reason", reason), label("direction", direction)], *count));
    let by_code = |((code, severity), count): (&(&'static str, &'static str), &u64)| -> (Labels<'static>, u64) {
        (vec![label("code", code), label("severity", severity)], *count)
    };
    let open = state.open_findings();
    let packets = state.interfaces.iter().flat_map(|(name, interface)| {
        [("egress", interface.egress), ("ingress", interface.ingress)]
            .map(|(direction, count)| (vec![label("interface", name), label("direction", direction)], count))
    });
    let of = |value: fn(&Interface) -> f64| {
        state
            .interfaces
            .iter()
            .map(|(name, interface)| (vec![label("interface", name)], value(interface)))
            .collect()
    };
    let exceeded = state
        .interfaces
        .iter()
        .filter_map(|(name, interface)| Some((vec![label("interface", name)], interface.allowance_exceeded?)));
    families.extend([
        counters(
            "imds_dropped_packets",
            "Packets of IMDS flows dropped by this kernel, by drop reason",
            dropped.collect(),
        ),
        counters(
            "imds_findings",
            "Findings opened",
            state.findings.iter().map(by_code).collect(),
        ),
        gauges(
            "imds_open_findings",
            "Findings currently open",
            open.iter()
                .map(by_code)
                .map(|(labels, count)| (labels, count as f64))
                .collect(),
        ),
        counters(
            "imds_interface_packets",
            "Packets to and from link-local services (IMDS, DNS, NTP), by interface",
            packets.collect(),
        ),
        gauges(
            "imds_interface_peak_packets_per_second",
            "Highest packet rate, in packets per second, in the last interval",
            of(|interface| interface.peak_per_s as f64),
        ),
        gauges(
            "imds_interface_quota_ratio",
            "Highest packet rate in the last interval, divided by the quota of 1024 packets per second",
            of(|interface| interface.quota_share),
        ),
        counters(
            "imds_interface_allowance_exceeded",
            "Packets dropped over the quota, from the network driver's counter",
            exceeded.collect(),
        ),
    ]);
}

/// The observer itself.
fn own<'a>(families: &mut Vec<Family<'a>>, state: &'a Totals) {
    let loss = state.loss;
    let lost = [
        ("ring_buffer", loss.ring_buffer),
        ("unparsed", loss.unparsed),
        ("truncated", loss.truncated),
        ("evicted", loss.evicted),
        ("unattributed", loss.unattributed),
        ("shed", loss.shed),
        ("unknown_containers", loss.unknown_containers),
        ("detached", loss.detached),
        ("preempted", loss.preempted),
    ];
    let records = state.records.iter();
    families.extend([
        counters(
            "imds_observer_lost",
            "Events and records lost, by stage; see the `loss` record",
            lost.map(|(name, count)| (vec![label("what", name)], count)).into(),
        ),
        counters(
            "imds_observer_records",
            "Records produced",
            records
                .map(|(kind, count)| (vec![label("kind", kind)], *count))
                .collect(),
        ),
    ]);
    let alone = |name, help, value| gauges(name, help, vec![(Vec::new(), value)]);
    if let Some(start) = &state.start {
        let build = vec![label("version", &start.version), label("kernel", &start.kernel)];
        let missing = start.missing.iter().map(|name| (vec![label("capability", name)], 1.0));
        families.extend([
            gauges(
                "imds_observer_build_info",
                "Always 1; the labels hold the version of the observer and the kernel",
                vec![(build, 1.0)],
            ),
            gauges(
                "imds_observer_missing",
                "Capabilities unavailable on this host; always 1; see the `start` record",
                missing.collect(),
            ),
            alone(
                "process_start_time_seconds",
                "Start of observation, in Unix time",
                start.time.unix_ns() as f64 / 1e9,
            ),
        ]);
    }
    let Some(process) = own_process() else { return };
    families.extend([
        Family {
            name: "process_cpu_seconds",
            help: "User and system CPU time of the observer",
            points: Points::Counters(vec![(Vec::new(), Number::Real(process.cpu_s))]),
        },
        alone(
            "process_resident_memory_bytes",
            "Resident memory of the observer",
            process.resident_bytes,
        ),
        alone(
            "process_open_fds",
            "Open file descriptors of the observer",
            process.open_fds,
        ),
    ]);
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
