//! Do the Kubernetes manifests and the Helm chart hold, without a cluster?
//!
//! `deploy/check.py` lints, renders and validates them with what nobody here wrote. What the pods will run is then held against this
//! program. Without Helm's bindings in Python that fails where `CI=true`, as `cargo xtask test` has it, and is left out elsewhere:
//! `cargo xtask setup --for test` installs them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use imds_observer::config::Config;
use imds_observer::record::Kind;
use serde_json::Value;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// What the check prints; `None`: it can't run here.
fn checked() -> Option<Value> {
    let tools = std::env::var_os("IMDS_OBSERVER_TOOLS").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".local/share/imds-observer-tools"),
        PathBuf::from,
    );
    let python = tools.join("deploy/bin/python3");
    if !python.exists() {
        let missing = format!("no {} (cargo xtask setup --for test)", python.display());
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{missing}");
        eprintln!("skipped: {missing}");
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
    // Unknown options and values of the wrong kind are refused before help is given.
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
    // The image is of this version, and every directory of the host is where the program looks for it.
    assert_eq!(
        pods["image"],
        format!("imds-observer:{}", env!("CARGO_PKG_VERSION")).as_str()
    );
    for (name, path) in pods["paths"].as_object().unwrap() {
        assert_eq!(
            pods["mounts"][name],
            format!("/host{}", path.as_str().unwrap()).as_str(),
            "{name}"
        );
    }
}

/// A right that one way of running it has and another lacks is a mistake in one of them.
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
    // Pods get it only where the runtime's own limit on locked memory is low: docs/deploy.md.
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
