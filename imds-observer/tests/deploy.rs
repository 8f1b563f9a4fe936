//! Checks the systemd unit, the Kubernetes manifests and the Helm chart without a service manager or a cluster.
//!
//! `deploy/check.py` lints, renders and validates manifests and chart with independent tools, and `systemd-analyze` checks the unit. The
//! tests then compare the results with this program. Without these tools, a test fails if `CI=true` (as in `cargo xtask test`), and is
//! skipped otherwise. `cargo xtask setup --for test` installs them.

#![cfg(live)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use imds_observer::config::Config;
use imds_observer::record::{Code, Kind};
use imds_observer_lab::scenarios::Suite;
use serde_json::Value;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// Skips a test, unless all tests must run.
fn skip(missing: &str) {
    let missing = format!("no {missing} (cargo xtask setup --for test)");
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{missing}");
    eprintln!("skipped: {missing}");
}

/// Output of the check, or `None` if it can't run here.
fn checked() -> Option<Value> {
    let tools = std::env::var_os("IMDS_OBSERVER_TOOLS").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".local/share/imds-observer-tools"),
        PathBuf::from,
    );
    let python = tools.join("deploy/bin/python3");
    if !python.exists() {
        skip(&python.display().to_string());
        return None;
    }
    let output = Command::new(python).arg(deploy().join("check.py")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

fn texts(value: &Value) -> Vec<String> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|text| text.as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn manifests_and_chart_are_valid_and_agree_and_the_program_takes_what_they_say() {
    let Some(pods) = checked() else { return };
    let config: Config = pods["config"].as_str().unwrap().parse().unwrap();
    assert_eq!(
        config.records.unwrap(),
        [Kind::Start, Kind::Finding, Kind::Summary, Kind::Loss]
    );
    let arguments: Vec<String> = texts(&pods["args"])
        .iter()
        .map(|argument| {
            argument
                .replace("$(HOST_IP)", "10.0.0.1")
                .replace("$(NODE_NAME)", "node-1")
        })
        .collect();
    assert!(arguments.contains(&"--host-root=/host".to_owned()), "{arguments:?}");
    // clap rejects unknown options and values of the wrong type before it prints help.
    let run = |arguments: &[String]| {
        Command::new(env!("CARGO_BIN_EXE_imds-observer"))
            .args(arguments)
            .arg("--help")
            .output()
            .unwrap()
    };
    let output = run(&arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let wrong = [arguments, vec!["--metrics=$(HOST_IP):9469".to_owned()]].concat();
    assert_eq!(run(&wrong).status.code(), Some(2), "this would find nothing");
    // The image has this version, and each directory of the host is mounted where the program looks for it.
    assert_eq!(
        pods["image"],
        format!("ghcr.io/imds-observer/imds-observer:{}", env!("CARGO_PKG_VERSION")).as_str()
    );
    for (name, path) in pods["paths"].as_object().unwrap() {
        assert_eq!(
            pods["mounts"][name],
            format!("/host{}", path.as_str().unwrap()).as_str(),
            "{name}"
        );
    }
}

/// If the service and the pods have different capabilities, one of them is wrong.
#[test]
fn the_service_and_the_pods_have_the_same_capabilities() {
    let unit = fs::read_to_string(deploy().join("systemd/imds-observer.service")).unwrap();
    let bounding = unit
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="))
        .unwrap();
    let mut service: Vec<&str> = bounding
        .split(' ')
        .map(|name| name.trim_start_matches("CAP_"))
        .collect();
    // Pods need it only if the runtime's own limit on locked memory is low: docs/daemonset.md.
    service.retain(|name| *name != "SYS_RESOURCE");
    service.sort_unstable();
    let manifest = fs::read_to_string(deploy().join("kubernetes/daemonset.yaml")).unwrap();
    let mut pods: Vec<&str> = manifest
        .lines()
        .skip_while(|line| line.trim() != "add:")
        .skip(1)
        .map_while(|line| line.trim().strip_prefix("- "))
        .collect();
    pods.sort_unstable();
    assert_eq!(service, pods);
}

/// Codes in the alert rules, exactly as each rule contains them.
fn codes_in_rules() -> Vec<String> {
    let rules = fs::read_to_string(deploy().join("prometheus/alerts.yml")).unwrap();
    let selectors = rules.lines().filter(|line| line.trim().starts_with("expr:"));
    selectors
        .filter_map(|line| {
            let (_, selector) = line.split_once("{code=")?;
            selector.trim_start_matches('~').split('"').nth(1)
        })
        .flat_map(|codes| codes.split('|').map(str::to_owned))
        .collect()
}

/// Whether the detector's fixture or a scenario of the lab shows a severity of at least high.
fn is_severe(code: Code, suite: &Suite) -> bool {
    let severe = |severity: &str| ["high", "critical"].contains(&severity);
    let in_scenario = suite
        .scenarios
        .iter()
        .flat_map(|scenario| &scenario.expect)
        .any(|expected| {
            let (expected, severity) = expected.split_once(' ').unwrap();
            expected == code.as_str() && severe(severity)
        });
    in_scenario || {
        let fixture = format!("tests/fixtures/detectors/{code}/fires.ndjson");
        let output = Command::new(env!("CARGO_BIN_EXE_imds-observer"))
            .args(["analyze", "-o", "json"])
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join(fixture))
            .output()
            .unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let findings = report["findings"].as_array().unwrap();
        findings
            .iter()
            .any(|finding| finding["code"] == code.as_str() && severe(finding["severity"].as_str().unwrap()))
    }
}

/// `ImdsSevereFinding` covers all findings of severity high and critical. `ImdsV1InUse` is about requests, not about the finding.
#[test]
fn every_code_raises_an_alert_that_explains_it() {
    let named = codes_in_rules();
    for code in &named {
        assert!(
            Code::ALL.iter().any(|known| known.as_str() == code),
            "no such code: {code}"
        );
    }
    let suite = Suite::load().unwrap();
    let without: Vec<&str> = Code::ALL
        .iter()
        .filter(|code| **code != Code::Imdsv1Request && !named.iter().any(|named| named == code.as_str()))
        .filter(|code| !is_severe(**code, &suite))
        .map(|code| code.as_str())
        .collect();
    assert!(
        without.is_empty(),
        "deploy/prometheus/alerts.yml: no rule for {without:?}"
    );
}

/// Each alert links to a page of the documentation. If the link depends on the code, the page must exist for every code.
#[test]
fn every_alert_has_a_runbook_that_exists() {
    const BASE: &str = "https://github.com/imds-observer/imds-observer/blob/main/";
    let rules = fs::read_to_string(deploy().join("prometheus/alerts.yml")).unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let alerts = rules.matches("- alert:").count();
    let pages: Vec<&str> = rules
        .lines()
        .filter_map(|line| {
            line.trim()
                .strip_prefix("runbook_url: ")?
                .trim_matches('"')
                .strip_prefix(BASE)
        })
        .collect();
    assert_eq!(pages.len(), alerts);
    for page in pages {
        let page = page.split('#').next().unwrap();
        for code in Code::ALL {
            let page = page.replace("{{ $labels.code }}", code.as_str());
            assert!(root.join(&page).is_file(), "{page}");
        }
    }
}

/// Whether the command succeeded, and its output without colors and links; `None` if systemd-analyze is not installed.
fn systemd_analyze(arguments: &[&str], unit: &Path) -> Option<(bool, String)> {
    let output = Command::new("systemd-analyze")
        .args(arguments)
        .arg(unit)
        .env("SYSTEMD_COLORS", "0")
        .env("SYSTEMD_URLIFY", "0")
        .output();
    let Ok(output) = output else {
        skip("systemd-analyze");
        return None;
    };
    let said = [output.stdout, output.stderr].concat();
    Some((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

/// Limit on systemd's exposure score: 0 is a service without any privileges, 10 a service without any confinement. This is a network
/// service that runs as root, reads all processes and loads eBPF programs, so it can't reach 0.
const MAX_EXPOSURE: f64 = 4.0;

#[test]
fn systemd_finds_no_fault_with_the_unit() {
    let directory = tempfile::tempdir().unwrap();
    let unit = directory.path().join("imds-observer.service");
    let text = fs::read_to_string(deploy().join("systemd/imds-observer.service")).unwrap();
    // systemd-analyze checks whether the program exists.
    let text = text.replace("/usr/local/bin/imds-observer", env!("CARGO_BIN_EXE_imds-observer"));
    let verify = ["verify", "--man=no", "--recursive-errors=no"];
    let faults = |said: &str| -> Vec<String> {
        // systemd-analyze also reads the units that this unit needs, and reports about them.
        let own = said.lines().filter(|line| line.contains("imds-observer.service"));
        own.map(str::to_owned).collect()
    };
    fs::write(&unit, &text).unwrap();
    let Some((content, said)) = systemd_analyze(&verify, &unit) else {
        return;
    };
    assert_eq!((content, faults(&said)), (true, Vec::new()), "{said}");
    // systemd-analyze only warns about an unknown key.
    fs::write(&unit, text.replace("ProtectSystem=", "ProtectSytem=")).unwrap();
    let (_, said) = systemd_analyze(&verify, &unit).unwrap();
    assert_eq!(faults(&said).len(), 1, "this would find nothing: {said}");

    let exposure = |text: &str| -> f64 {
        fs::write(&unit, text).unwrap();
        let (_, said) = systemd_analyze(&["security", "--offline=true", "--no-pager"], &unit).unwrap();
        let words = said
            .lines()
            .last()
            .and_then(|line| line.split_once("imds-observer.service: "));
        let words = words.unwrap_or_else(|| panic!("no exposure is reported: {said}")).1;
        words.split(' ').next().unwrap().parse().unwrap()
    };
    let shipped = exposure(&text);
    println!("exposure: {shipped}");
    assert!(shipped <= MAX_EXPOSURE, "exposure {shipped}");
    let bare = exposure("[Service]\nExecStart=/bin/true\n");
    assert!(bare > 2.0 * MAX_EXPOSURE, "this would find nothing: {bare}");
}

/// `systemctl reload` must work on a minimal system.
#[test]
fn the_unit_calls_no_program_but_the_observer_and_the_shell() {
    let unit = fs::read_to_string(deploy().join("systemd/imds-observer.service")).unwrap();
    for line in unit.lines().filter(|line| line.starts_with("Exec")) {
        let (_, command) = line.split_once('=').unwrap();
        let program = command.split(' ').next().unwrap();
        assert!(["/usr/local/bin/imds-observer", "/bin/sh"].contains(&program), "{line}");
    }
}
