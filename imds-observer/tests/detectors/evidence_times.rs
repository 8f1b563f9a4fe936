//! `first_seen`, `last_seen` and `count` of every finding must come from its evidence, not from the moment at which a rule matched.

use std::fs;
use std::path::Path;

use imds_observer::detectors::{DetectorConfig, Detectors};
use imds_observer::record::{Body, Code, Finding, Record, Time};
use imds_observer::source::ndjson;

use crate::fixtures::{findings, fixture};
use crate::scenario::{end, facts, observe};

/// Resolution of the times that some windows keep in milliseconds.
const ROUNDED_NS: u64 = 1_000_000;

/// Checks times and count of a finding against the records that caused it, and returns the first error.
fn fault(finding: &Finding, records: &[Record]) -> Option<String> {
    let Finding {
        first_seen,
        last_seen,
        count,
        ..
    } = *finding;
    let times: Vec<Time> = records
        .iter()
        .filter(|record| matches!(record.body, Body::Exchange(_) | Body::Connect(_) | Body::Drop(_)))
        .map(|record| record.time)
        .collect();
    let of_interfaces = finding.code == Code::PacketQuota;
    let is_evidence = |time: Time| {
        of_interfaces
            || times
                .iter()
                .any(|record| time <= *record && record.since(time) <= ROUNDED_NS)
    };
    let within: Vec<Time> = times
        .iter()
        .copied()
        .filter(|time| time.plus_ns(ROUNDED_NS) >= first_seen && *time <= last_seen)
        .collect();
    let mut distinct = within.clone();
    distinct.sort_unstable();
    distinct.dedup();
    if first_seen > last_seen {
        Some(format!("first {first_seen} is after last {last_seen}"))
    } else if !is_evidence(first_seen) {
        Some(format!("first {first_seen} is no record's time"))
    } else if !is_evidence(last_seen) {
        Some(format!("last {last_seen} is no record's time"))
    } else if !of_interfaces && count > within.len() as u64 {
        Some(format!(
            "counts {count}, but there are {} records from {first_seen} to {last_seen}",
            within.len()
        ))
    } else if count > 1 && first_seen == last_seen && distinct.len() > 1 {
        Some(format!("counts {count} at one time, {first_seen}"))
    } else {
        None
    }
}

#[test]
fn times_and_counts_of_fixtures_are_those_of_the_evidence() {
    let mut wrong = Vec::new();
    for code in Code::ALL {
        let records = fixture(*code, "fires.ndjson");
        for finding in findings(*code, "fires.ndjson") {
            wrong.extend(fault(&finding, &records).map(|fault| format!("{code}: {}: {fault}", finding.code)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn times_and_counts_of_recorded_scenarios_are_those_of_the_evidence() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "ndjson") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let records: Vec<Record> = text
            .lines()
            .map(|line| ndjson::parse(line.as_bytes()).unwrap_or_else(|skip| panic!("{}: {skip}", path.display())))
            .filter(|record| !matches!(record.body, Body::Finding(_)))
            .collect();
        let mut detectors = Detectors::new(&DetectorConfig::default(), facts());
        let mut findings = Vec::new();
        let mut now = records[0].time;
        for record in &records {
            now = now.max(end(record));
            detectors.advance(now, &mut findings);
            observe(&mut detectors, record, &mut findings);
        }
        detectors.finish(now, &mut findings);
        seen += findings.len();
        for finding in findings {
            let name = path.file_stem().unwrap().to_string_lossy();
            wrong.extend(fault(&finding, &records).map(|fault| format!("{name}: {}: {fault}", finding.code)));
        }
    }
    assert!(seen > 50, "{seen} findings");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
