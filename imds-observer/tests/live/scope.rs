//! With `--cgroup`, traffic of another lab on the same machine causes no record and no finding.

use imds_observer_lab::faults::{Family, Victim, registry};
use imds_observer_lab::topology::LabOptions;

use crate::support::{Observer, lab, run};

/// Codes of faults whose drops and failed connects are visible to host-wide hooks. The test injects one fault per code.
const CODES: [&str; 4] = [
    "blocked-by-firewall",
    "connection-refused",
    "no-route",
    "denied-by-policy",
];

const TOKEN: [&str; 9] = [
    "-s",
    "-o",
    "/dev/null",
    "-m",
    "1",
    "-X",
    "PUT",
    "-HX-aws-ec2-metadata-token-ttl-seconds: 60",
    "http://169.254.169.254/latest/api/token",
];

#[test]
#[ignore = "live"]
fn another_lab_on_the_machine_leaves_no_record() {
    let own = lab(LabOptions::default());
    let other = lab(LabOptions {
        exclusive: false,
        ..LabOptions::default()
    });
    let mut observer = Observer::stream(&own, &[]);
    let entries = registry(Family::V4);
    for code in CODES {
        let entry = entries
            .iter()
            .find(|entry| entry.code == Some(code) && entry.victim == Victim::Node)
            .unwrap_or_else(|| panic!("no fault for {code}"));
        let guard = other.inject(&entry.fault).unwrap();
        let failed = run(other.node(), "curl", &TOKEN);
        assert!(!failed.status.success(), "{}: the fault has no effect", entry.name);
        run(other.pod(0), "curl", &TOKEN);
        guard.undo().unwrap();
    }
    // The observer records its own client. This exchange is written after all records that the other lab could cause.
    let answered = run(own.node(), "curl", &TOKEN);
    assert!(answered.status.success());
    observer.wait_for(|record| record["record"] == "exchange");
    let finished = observer.finish();

    assert_eq!(finished.kind("exchange").len(), 1, "{:#?}", finished.kind("exchange"));
    for kind in ["connect", "drop", "finding"] {
        assert!(finished.kind(kind).is_empty(), "{kind}: {:#?}", finished.kind(kind));
    }
}
