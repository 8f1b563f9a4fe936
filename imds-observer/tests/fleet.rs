//! The queries of `deploy/sql` must return the same results on real engines as `analyze` and `preflight`.
//!
//! Without the engine in Python, a test fails if `CI=true` (as in `cargo xtask test`), and is skipped otherwise. `cargo xtask setup --for
//! test` installs both engines.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .unwrap()
}

fn traces() -> Vec<String> {
    ["healthy-botocore", "lost-token-pod", "tight-loop", "quota"]
        .map(|name| {
            let path = root().join(format!("imds-observer/tests/traces/{name}.ndjson"));
            path.to_str().unwrap().to_owned()
        })
        .into()
}

/// Python with the engine: from `IMDS_OBSERVER_PYTHON`, from our tools directory, or the system's.
fn python(module: &str) -> Option<PathBuf> {
    let tools = std::env::var_os("IMDS_OBSERVER_TOOLS").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".local/share/imds-observer-tools"),
        PathBuf::from,
    );
    let candidates = [
        std::env::var_os("IMDS_OBSERVER_PYTHON").map(PathBuf::from),
        Some(tools.join("venv/bin/python")),
        Some("python3".into()),
    ];
    let found = candidates.into_iter().flatten().find(|python| {
        Command::new(python)
            .args(["-c", &format!("import {module}")])
            .output()
            .is_ok_and(|output| output.status.success())
    });
    if found.is_none() {
        let missing = format!("no Python with {module} (cargo xtask setup --for test)");
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{missing}");
        eprintln!("skipped: {missing}");
    }
    found
}

fn program(arguments: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_imds-observer"))
        .args(arguments)
        .args(traces())
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

fn counts(rows: &Value, name: &str, count: &str) -> BTreeMap<String, u64> {
    rows.as_array()
        .unwrap()
        .iter()
        .map(|row| (row[name].as_str().unwrap().to_owned(), row[count].as_u64().unwrap()))
        .collect()
}

fn says_the_same(engine: &str, module: &str) {
    let Some(python) = python(module) else { return };
    let output = Command::new(python)
        .arg(root().join("deploy/sql/query.py"))
        .arg(engine)
        .args(traces())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answers: Value = serde_json::from_slice(&output.stdout).unwrap();

    let analysis = program(&["analyze", "-o", "json"]);
    let rows = analysis["summary"]["processes"].as_array().unwrap();
    let mut v1 = BTreeMap::new();
    let mut lost = 0;
    for row in rows {
        let workload = row["workload"].as_str().unwrap_or("unknown").to_owned();
        if let Some(requests) = row["by_version"]["v1"].as_u64() {
            *v1.entry(workload).or_default() += requests;
        }
        lost += row["lost"].as_u64().unwrap();
    }
    assert_eq!(counts(&answers["v1_callers"], "workload", "requests"), v1);
    assert_eq!(answers["lost_tokens"][0]["lost"].as_u64().unwrap(), lost);
    assert_eq!(answers["lost_tokens"].as_array().unwrap().len(), 1);

    let verdict = program(&["preflight", "--http-tokens", "required", "-o", "json"]);
    assert_eq!(
        counts(&answers["preflight"], "workload", "requests"),
        counts(&verdict["breaks"], "workload", "count")
    );

    let peaks = counts(&answers["quota_peaks"], "interface", "peak_packets_per_s");
    let wanted = counts(&analysis["summary"]["interfaces"], "name", "peak_packets_per_s");
    assert_eq!(peaks, wanted);
    assert!(!peaks.is_empty());
}

#[test]
fn duckdb_says_what_analyze_says() {
    says_the_same("duckdb", "duckdb");
}

#[test]
fn clickhouse_says_what_analyze_says() {
    says_the_same("clickhouse", "chdb");
}
