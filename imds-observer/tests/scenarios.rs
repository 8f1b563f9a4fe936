//! The scenarios offline: the recordings of `cargo xtask scenarios --record` must lead to the findings that were expected live.
//!
//! Each scenario has two recordings: the observer's trace, and a tcpdump capture at the node's uplink, which has no information about
//! processes.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use imds_observer::record::Code;
use imds_observer_lab::scenarios::{Scenario, Suite, findings_of};
use serde_json::Value;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios")
}

fn suite() -> Suite {
    Suite::load().unwrap()
}

/// Path of a recording, which may be compressed.
fn recording(scenario: &Scenario, kind: &str) -> PathBuf {
    let plain = directory().join(format!("{}.{kind}", scenario.name));
    let packed = directory().join(format!("{}.{kind}.gz", scenario.name));
    match (plain.exists(), packed.exists()) {
        (true, false) => plain,
        (false, true) => packed,
        (true, true) => panic!("{} is there twice", plain.display()),
        (false, false) => panic!(
            "{} is missing: run `cargo xtask scenarios --filter {} --record`",
            plain.display(),
            scenario.name
        ),
    }
}

fn bytes(path: &Path) -> Vec<u8> {
    let raw = fs::read(path).unwrap();
    if path.extension().is_some_and(|extension| extension == "gz") {
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&raw[..]).read_to_end(&mut plain).unwrap();
        return plain;
    }
    raw
}

fn found(path: &Path) -> Vec<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_imds-observer"))
        .args(["analyze", "-o", "ndjson", "--records", "finding"])
        .arg(path)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}: {}",
        path.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    let records: Vec<Value> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    findings_of(&records)
}

fn sorted(findings: &[String]) -> Vec<String> {
    let mut findings = findings.to_vec();
    findings.sort();
    findings
}

/// Reports all differences at once, so that one run shows everything.
fn compare(kind: &str, owed: impl Fn(&Scenario) -> Vec<String>) {
    let mut wrong = Vec::new();
    for scenario in &suite().scenarios {
        let (owed, found) = (sorted(&owed(scenario)), found(&recording(scenario, kind)));
        if owed != found {
            wrong.push(format!("{}: owed {owed:?}, found {found:?}", scenario.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_trace_gives_what_is_owed() {
    compare("ndjson", |scenario| scenario.expect.clone());
}

#[test]
fn every_capture_gives_what_it_can_show() {
    compare("pcap", |scenario| scenario.in_capture().to_vec());
}

/// tests/detectors checks the manual page and the fixtures of each code, and tests/deploy.rs its alert.
#[test]
fn every_code_is_expected_by_a_scenario() {
    let suite = suite();
    let expected: Vec<&str> = suite
        .scenarios
        .iter()
        .flat_map(|scenario| &scenario.expect)
        .map(|finding| finding.split(' ').next().unwrap())
        .collect();
    // This code requires a pod that a container runtime has configured: tests/live/containers.rs has one.
    let elsewhere = [Code::NodeRoleUsed];
    let without: Vec<&str> = Code::ALL
        .iter()
        .filter(|code| !elsewhere.contains(code))
        .map(|code| code.as_str())
        .filter(|code| !expected.contains(code))
        .collect();
    assert!(
        without.is_empty(),
        "no scenario of imds-observer-lab/scenarios.toml expects {without:?}"
    );
}

#[test]
fn nothing_is_kept_that_no_scenario_plays() {
    let suite = suite();
    let mut total = 0;
    for entry in fs::read_dir(directory()).unwrap() {
        let entry = entry.unwrap();
        total += entry.metadata().unwrap().len();
        let file = entry.file_name().into_string().unwrap();
        let name = file.trim_end_matches(".gz");
        let name = name.strip_suffix(".ndjson").or_else(|| name.strip_suffix(".pcap"));
        assert!(
            suite
                .scenarios
                .iter()
                .any(|scenario| Some(scenario.name.as_str()) == name),
            "{file} belongs to no scenario"
        );
    }
    assert!(total < 4 << 20, "the recordings have grown to {total} bytes");
}

/// Secrets of the lab's server, moto and the clients: the server's documents and the beginning of its tokens.
const SECRETS: &[&str] = &[
    "AQAE",
    "SecretAccessKey",
    "AccessKeyId",
    "ASIA",
    "made/up/secret",
    "made-up-session-token",
    "made-up-pkcs7",
    "AAAAmadeup",
    "MADE-UP-TOKEN",
    "fake-imdsv2",
    "test-secret",
    "test-session",
    "ssh-ed25519",
    "instanceId",
    "cloud-config",
];

#[test]
fn no_recording_holds_a_token_a_credential_or_a_body() {
    for scenario in &suite().scenarios {
        for kind in ["ndjson", "pcap"] {
            let path = recording(scenario, kind);
            let kept = bytes(&path);
            let text = String::from_utf8_lossy(&kept).into_owned();
            for secret in SECRETS {
                assert!(!text.contains(secret), "{} holds {secret}", path.display());
            }
            if kind == "pcap" {
                blank_bodies(&path, &kept, &text);
            }
        }
    }
}

/// Checks that packets from IMDS's port contain only a head and blanks, and that every token is replaced by a number.
fn blank_bodies(path: &Path, capture: &[u8], text: &str) {
    let mut at = 24;
    while let Some(header) = capture.get(at..at + 16) {
        let length = u32::from_le_bytes(header[8..12].try_into().unwrap()) as usize;
        let packet = &capture[at + 16..at + 16 + length];
        at += 16 + length;
        let ip = match packet[12..14] {
            [8, 0] if packet[23] == 6 => usize::from(packet[14] & 15) * 4,
            [0x86, 0xdd] if packet[20] == 6 => 40,
            _ => continue,
        };
        let tcp = &packet[14 + ip..];
        if tcp[..2] != [0, 80] {
            continue;
        }
        let payload = &tcp[usize::from(tcp[12] >> 4) * 4..];
        let head = payload
            .windows(4)
            .position(|end| end == b"\r\n\r\n")
            .map_or(0, |end| end + 4);
        assert!(
            payload[head..].iter().all(|byte| *byte == b'x'),
            "{}: a body that is not blank: {:?}",
            path.display(),
            String::from_utf8_lossy(payload)
        );
        assert!(
            head == 0 || payload.starts_with(b"HTTP/1."),
            "{}: no head",
            path.display()
        );
    }
    let lower = text.to_ascii_lowercase();
    for (at, name) in lower.match_indices("x-aws-ec2-metadata-token:") {
        let value = lower[at + name.len()..].lines().next().unwrap_or_default().trim_start();
        let rest = value.strip_prefix("token").unwrap_or("?");
        let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        let rest = rest.strip_prefix('-').unwrap_or(rest);
        assert!(
            rest.bytes().all(|byte| byte == b'x'),
            "{}: a token: {value}",
            path.display()
        );
    }
}

#[test]
fn no_trace_reports_of_the_machine_that_it_was_made_on() {
    for scenario in &suite().scenarios {
        let path = recording(scenario, "ndjson");
        let text = String::from_utf8(bytes(&path)).unwrap();
        for place in [
            "/root/",
            "/home/",
            "/work/",
            "/tmp/",
            "cargo",
            "xtask",
            "imds-observer-s",
        ] {
            assert!(!text.contains(place), "{} holds {place}", path.display());
        }
    }
}
