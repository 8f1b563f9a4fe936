//! A trace may report that its host's wall clock was stepped. The step is not elapsed time: results must be the same as without the step.

use std::fs;
use std::process::{Command, Stdio};

use imds_observer::record::Time;
use serde_json::{Value, json};

const HOUR_NS: i64 = 3_600_000_000_000;
const STEPS_NS: [i64; 3] = [5 * HOUR_NS, -5 * HOUR_NS, -400_000 * HOUR_NS];

const TIMES: [&str; 7] = [
    "time",
    "start_time",
    "first_seen",
    "last_seen",
    "from",
    "to",
    "boot_time",
];

fn moved(time: &str, by_ns: i64) -> String {
    Time(time.parse::<Time>().unwrap().0.saturating_add_signed(by_ns)).to_string()
}

/// Moves all times of a record by the same amount.
fn step(value: &mut Value, by_ns: i64) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::String(time) if TIMES.contains(&key.as_str()) => *time = moved(time, by_ns),
                    value => step(value, by_ns),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| step(value, by_ns)),
        _ => {}
    }
}

/// Removes the members that a step changes.
fn without_times(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|key, _| !TIMES.contains(&key.as_str()));
            map.values_mut().for_each(without_times);
        }
        Value::Array(values) => values.iter_mut().for_each(without_times),
        _ => {}
    }
}

fn report(host: &Value, time: &str, by_ns: i64) -> Value {
    json!({"record": "loss", "schema": 1, "time": time, "host": host, "ring_buffer": 0, "unparsed": 0, "truncated": 0, "evicted": 0,
        "unattributed": 0, "clock_step_ns": by_ns})
}

/// Returns the trace with a step of the clock in the middle.
fn stepped(trace: &[Value], by_ns: i64) -> Vec<Value> {
    let (before, after) = trace.split_at(trace.len() / 2);
    let mut after = after.to_vec();
    for record in &mut after {
        step(record, by_ns);
    }
    let last = before.last().unwrap();
    let mut all = before.to_vec();
    let mut report = report(&last["host"], &moved(last["time"].as_str().unwrap(), by_ns), by_ns);
    // The `loss` record has counts since the start.
    if let Some(loss) = before.iter().rfind(|record| record["record"] == "loss") {
        let time = report["time"].take();
        report = loss.clone();
        report["time"] = time;
        report["clock_step_ns"] = json!(by_ns);
    }
    all.push(report);
    all.extend(after);
    all
}

fn text(trace: &[Value]) -> String {
    let lines: Vec<String> = trace.iter().map(ToString::to_string).collect();
    lines.join("\n") + "\n"
}

fn run(command: &[&str], traces: &[&[Value]]) -> Value {
    let directory = tempfile::tempdir().unwrap();
    let paths: Vec<_> = (0..traces.len())
        .map(|number| directory.path().join(format!("{number}.ndjson")))
        .collect();
    for (path, trace) in paths.iter().zip(traces) {
        fs::write(path, text(trace)).unwrap();
    }
    let output = Command::new(env!("CARGO_BIN_EXE_imds-observer"))
        .args(command)
        .args(["-o", "json"])
        .args(&paths)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
}

fn scenarios() -> Vec<(String, Vec<Value>)> {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scenarios");
    let mut traces: Vec<(String, Vec<Value>)> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "ndjson"))
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            let records = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            (path.file_stem().unwrap().to_str().unwrap().to_owned(), records)
        })
        .collect();
    traces.sort_by(|(a, _), (b, _)| a.cmp(b));
    traces
}

fn findings(analysis: &Value) -> Value {
    let mut findings = analysis["findings"].clone();
    without_times(&mut findings);
    findings
}

fn interval_ns(analysis: &Value) -> u64 {
    analysis["summary"]["interval_ns"].as_u64().unwrap()
}

/// Tests every third recorded scenario. These include every kind of record and finding several times.
#[test]
fn a_reported_step_changes_no_finding_and_no_duration() {
    let all = scenarios();
    assert!(all.len() > 30, "{}", all.len());
    let mut found = 0;
    for (index, (name, trace)) in all.iter().enumerate().filter(|(_, (_, trace))| trace.len() > 3) {
        let by_ns = STEPS_NS[index % STEPS_NS.len()];
        if index % 3 != 0 && name != "problem-report" {
            continue;
        }
        let whole = run(&["analyze"], &[trace]);
        let analysis = run(&["analyze"], &[&stepped(trace, by_ns)]);
        assert_eq!(findings(&analysis), findings(&whole), "{name}, step of {by_ns} ns");
        assert_eq!(interval_ns(&analysis), interval_ns(&whole), "{name}");
        assert_eq!(analysis["input"]["skipped"], whole["input"]["skipped"], "{name}");
        let loss = |analysis: &Value| {
            let mut loss = analysis["loss"].clone();
            without_times(&mut loss);
            loss
        };
        assert_eq!(loss(&analysis), loss(&whole), "{name}");
        found += whole["findings"].as_array().unwrap().len();
    }
    assert!(found > 10, "{found}");
}

fn exchange(time: &str, path: &str) -> Value {
    json!({"record": "exchange", "schema": 1, "time": time, "host": "node-1",
        "process": {"pid": 42, "tid": 42, "namespace_pid": null, "comm": "app", "exe": "/opt/app", "cmdline": ["app"], "uid": 0,
            "start_time": null, "ancestors": [], "cgroup": "/system.slice/app.service", "netns": 4_026_531_840_u32},
        "container": null,
        "connection": {"id": time, "local": "10.0.1.5:40001", "remote": "169.254.169.254:80", "exchange": 1, "interface": null,
            "cgroup": null, "netns": null},
        "request": {"method": "GET", "path": path, "dialect": "aws", "imds_version": "v2", "token": null, "token_ttl_s": null,
            "user_agent": null, "ttl": 64, "forwarded": false, "retransmits": 0, "hops": 0},
        "response": {"status": 200, "ttl": 2, "delivered": true, "server": null, "retransmits": 0, "icmp": null, "via_proxy": null},
        "outcome": "answered", "latency_ns": 240_000, "waited_ns": 240_000, "connect_ns": 80_000})
}

/// A run with an exchange every half hour.
fn hours(count: u64) -> Vec<Value> {
    let begin = Time(1_772_366_400_000_000_000);
    let at = |half_hours: u64| begin.plus_ns(half_hours * 1_800_000_000_000).to_string();
    let mut trace = vec![
        json!({"record": "start", "schema": 1, "time": at(0), "host": "node-1", "version": "0.1.0", "kernel": "6.18.0", "mode": "live",
        "endpoints": ["169.254.169.254"], "interfaces": ["eth0"], "attached": [], "missing": [], "filters": []}),
    ];
    trace.extend((0..=count * 2).map(|half_hours| exchange(&at(half_hours), "/latest/meta-data/instance-id")));
    trace.push(report(&json!("node-1"), &at(count * 2), 0));
    trace
}

const PREFLIGHT: [&str; 3] = ["preflight", "--http-tokens", "required"];

#[test]
fn a_step_is_no_proof_and_no_gap_to_preflight() {
    for by_ns in [23 * HOUR_NS, -23 * HOUR_NS, HOUR_NS / 2] {
        let short = run(&PREFLIGHT, &[&stepped(&hours(20), by_ns)]);
        assert_eq!(short["verdict"], "cannot-say", "{short}");
        assert_eq!(short["unproven"], json!(["observed-long-enough"]), "{short}");
        let long = run(&PREFLIGHT, &[&stepped(&hours(25), by_ns)]);
        assert_eq!(long["verdict"], "safe", "{long}");
    }
}

/// `analyze` prints times as the clock shows them after the step.
#[test]
fn results_have_the_new_time() {
    let trace = hours(25);
    let whole = run(&["analyze"], &[&trace]);
    let analysis = run(&["analyze"], &[&stepped(&trace, 5 * HOUR_NS)]);
    for end in ["from", "to"] {
        let without = whole["summary"][end].as_str().unwrap();
        assert_eq!(analysis["summary"][end], moved(without, 5 * HOUR_NS));
    }
}

/// Two files of one fleet: a host whose clock was always right, and one whose clock was stepped.
#[test]
fn a_step_moves_no_record_of_another_file() {
    let mut other = hours(25);
    for record in &mut other {
        record["host"] = json!("node-2");
    }
    let separate = run(&PREFLIGHT, &[&hours(25), &other]);
    assert_eq!(separate["verdict"], "safe", "{separate}");
    for by_ns in STEPS_NS {
        let merged = run(&PREFLIGHT, &[&stepped(&hours(25), by_ns), &other]);
        assert_eq!(merged["verdict"], "safe", "{by_ns}: {merged}");
        assert_eq!(
            merged["input"],
            separate["input"]
                .as_object()
                .map(|input| {
                    let mut input = input.clone();
                    input["records"] = json!(input["records"].as_u64().unwrap() + 1);
                    Value::Object(input)
                })
                .unwrap()
        );
    }
}
