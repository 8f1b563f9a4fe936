//! Every detector has a trace on which it fires once, and a trace without any finding.

use std::fs;
use std::path::PathBuf;

use imds_observer::detectors::{CATALOGUE, DetectorConfig, Detectors};
use imds_observer::host_facts::HostFacts;
use imds_observer::record::{Code, Finding, FindingState, NodeOwner, NodeOwnerKind, Record};
use imds_observer::source::ndjson;

use crate::scenario::{end, host, observe};

const INSTANCE_ID: &str = "i-0123456789abcdef0";

pub(crate) fn fixture(code: Code, name: &str) -> Vec<Record> {
    let path: PathBuf = [
        env!("CARGO_MANIFEST_DIR"),
        "tests/fixtures/detectors",
        code.as_str(),
        name,
    ]
    .iter()
    .collect();
    let text = fs::read_to_string(&path).unwrap_or_else(|error| {
        panic!(
            "the detector {code} needs {}: {error} (records as `imds-observer stream` writes them)",
            path.display()
        )
    });
    text.lines()
        .map(|line| ndjson::parse(line.as_bytes()).unwrap_or_else(|skip| panic!("{}: {skip}", path.display())))
        .collect()
}

/// Findings for a fixture.
pub(crate) fn findings(code: Code, name: &str) -> Vec<Record<Finding>> {
    let facts = HostFacts {
        name: host(),
        instance_id: Some(INSTANCE_ID.to_owned()),
        ..HostFacts::default()
    };
    findings_on(code, name, facts)
}

fn findings_on(code: Code, name: &str, facts: HostFacts) -> Vec<Record<Finding>> {
    let records = fixture(code, name);
    assert!(!records.is_empty(), "{code}/{name} is empty");
    let mut detectors = Detectors::new(&DetectorConfig::default(), facts);
    let mut findings = Vec::new();
    let mut now = records[0].time;
    for record in &records {
        now = now.max(end(record));
        detectors.advance(now, &mut findings);
        observe(&mut detectors, record, &mut findings);
    }
    detectors.finish(now, &mut findings);
    findings
}

/// What the detectors make of a fixture on a host whose metadata options can't be changed.
#[test]
fn no_remedy_changes_the_options_of_auto_mode() {
    for entry in CATALOGUE {
        let facts = HostFacts {
            node_owner: Some(NodeOwner {
                kind: NodeOwnerKind::EksAutoMode,
                name: None,
                launch_template: None,
            }),
            ..HostFacts::default()
        };
        for finding in findings_on(entry.code, "fires.ndjson", facts) {
            let remedy = &finding.remedy;
            assert!(!remedy.text.is_empty(), "{}", entry.code);
            for words in [
                "et the hop limit",
                "Fix the hop limit",
                "With a hop limit of",
                "Enable the endpoint",
            ] {
                assert!(!remedy.text.contains(words), "{}: {}", entry.code, remedy.text);
            }
            let changes = |command: &String| command.contains("modify-instance-metadata-options");
            assert!(
                !remedy.commands.iter().any(changes),
                "{}: {:?}",
                entry.code,
                remedy.commands
            );
        }
    }
}

#[test]
fn every_code_has_a_detector() {
    let registered: Vec<Code> = CATALOGUE.iter().map(|entry| entry.code).collect();
    for code in Code::ALL {
        assert_eq!(registered.iter().filter(|other| *other == code).count(), 1, "{code}");
    }
}

#[test]
fn every_detector_fires_once_on_its_fires_fixture() {
    for entry in CATALOGUE {
        let opened: Vec<String> = findings(entry.code, "fires.ndjson")
            .iter()
            .filter(|finding| finding.state == FindingState::Open)
            .map(|finding| finding.code.to_string())
            .collect();
        assert_eq!(opened, [entry.code.as_str()], "{}/fires.ndjson", entry.code);
    }
}

#[test]
fn nothing_fires_on_a_quiet_fixture() {
    for entry in CATALOGUE {
        let found: Vec<String> = findings(entry.code, "quiet.ndjson")
            .iter()
            .map(|finding| format!("{} {}", finding.code, finding.summary))
            .collect();
        assert_eq!(found, Vec::<String>::new(), "{}/quiet.ndjson", entry.code);
    }
}

/// A disabled detector reports nothing, and no other detector reports anything on its fixture.
#[test]
fn a_disabled_detector_is_silent() {
    for entry in CATALOGUE {
        let config = DetectorConfig {
            disabled: vec![entry.code],
            ..DetectorConfig::default()
        };
        let mut detectors = Detectors::new(&config, HostFacts::default());
        let mut found = Vec::new();
        for record in &fixture(entry.code, "fires.ndjson") {
            observe(&mut detectors, record, &mut found);
        }
        detectors.finish(crate::scenario::at(1e6), &mut found);
        assert!(found.iter().all(|finding| finding.code != entry.code), "{}", entry.code);
    }
}
