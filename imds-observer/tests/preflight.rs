//! `safe` is derived from a list of conditions. If any single condition is not proven, the result must be `cannot-say`.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

const CHANGES: &[&str] = &["--http-tokens", "required", "--hop-limit", "1"];

fn start(host: &str, at: &str) -> Value {
    json!({"record": "start", "schema": 1, "time": at, "host": host, "version": "0.1.0", "kernel": "6.18.0", "mode": "live",
        "endpoints": ["169.254.169.254"], "interfaces": ["eth0"], "attached": [], "missing": [], "filters": []})
}

fn loss(host: &str, at: &str) -> Value {
    json!({"record": "loss", "schema": 1, "time": at, "host": host, "ring_buffer": 0, "unparsed": 0, "truncated": 0, "evicted": 0,
        "unattributed": 0})
}

fn exchange(at: &str, method: &str, path: &str, version: &str) -> Value {
    json!({"record": "exchange", "schema": 1, "time": at, "host": "node-1",
        "process": {"pid": 42, "tid": 42, "namespace_pid": null, "comm": "app", "exe": "/opt/app", "cmdline": ["app"], "uid": 0,
            "start_time": null, "ancestors": [], "cgroup": "/system.slice/app.service", "netns": 4_026_531_840_u32},
        "container": null,
        "connection": {"id": at, "local": "10.0.1.5:40001", "remote": "169.254.169.254:80", "exchange": 1, "interface": null,
            "cgroup": null, "netns": null},
        "request": {"method": method, "path": path, "dialect": "aws", "imds_version": version, "token": null, "token_ttl_s": null,
            "user_agent": null, "ttl": 64, "forwarded": false, "retransmits": 0, "hops": 0},
        "response": {"status": 200, "ttl": 2, "delivered": true, "server": null, "retransmits": 0, "icmp": null, "via_proxy": null},
        "outcome": "answered", "latency_ns": 240_000, "waited_ns": 240_000, "connect_ns": 80_000})
}

/// A trace of a host for which the change is safe.
fn healthy() -> Vec<Value> {
    vec![
        start("node-1", "2026-03-01T12:00:00.000000000Z"),
        exchange("2026-03-01T12:00:01.000000000Z", "PUT", "/latest/api/token", "token"),
        exchange("2026-03-01T12:01:01.000000000Z", "GET", "/latest/meta-data/", "v2"),
        exchange("2026-03-01T12:03:01.000000000Z", "GET", "/latest/meta-data/", "v2"),
        loss("node-1", "2026-03-01T12:03:20.000000000Z"),
    ]
}

struct Answer {
    status: Option<i32>,
    unproven: Vec<String>,
    whole: Value,
}

fn text(trace: &[Value]) -> String {
    let lines: Vec<String> = trace.iter().map(ToString::to_string).collect();
    lines.join("\n") + "\n"
}

fn judge(trace: &[Value], arguments: &[&str]) -> Answer {
    judge_text(&text(trace), arguments)
}

fn judge_text(text: &str, arguments: &[&str]) -> Answer {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("trace.ndjson");
    fs::write(&path, text).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_imds-observer"))
        .args(["preflight", "-o", "json", "--min-duration", "1m"])
        .args(arguments)
        .arg(&path)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let whole: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let unproven = whole["unproven"].as_array().unwrap();
    Answer {
        status: output.status.code(),
        unproven: unproven.iter().map(|name| name.as_str().unwrap().to_owned()).collect(),
        whole,
    }
}

#[test]
fn a_healthy_trace_is_safe() {
    let answer = judge(&healthy(), CHANGES);
    assert_eq!(
        (answer.status, &answer.whole["verdict"]),
        (Some(0), &json!("safe")),
        "{}",
        answer.whole
    );
    assert!(answer.unproven.is_empty());
}

/// A change to a healthy trace, and the only condition that is then unproven.
type Attack = (&'static str, &'static str, fn(&mut Vec<Value>));

const ATTACKS: &[Attack] = &[
    ("no request to IMDS", "requests-seen", |trace| {
        for record in trace.iter_mut().filter(|record| record["record"] == "exchange") {
            record["request"]["dialect"] = json!("gcp");
            record["request"]["imds_version"] = json!("other");
            record["request"]["path"] = json!("/computeMetadata/v1/");
        }
    }),
    ("too short", "observed-long-enough", |trace| {
        trace[2]["time"] = json!("2026-03-01T12:00:02.000000000Z");
        trace[3]["time"] = json!("2026-03-01T12:00:03.000000000Z");
        trace[4]["time"] = json!("2026-03-01T12:00:04.000000000Z");
    }),
    ("a gap of 30 days", "no-gap", |trace| {
        trace[3]["time"] = json!("2026-03-31T12:03:01.000000000Z");
        trace[4]["time"] = json!("2026-03-31T12:03:20.000000000Z");
    }),
    (
        "the wanted time comes from one record in the future",
        "observed-long-enough no-gap",
        |trace| {
            trace[2]["time"] = json!("2026-03-01T12:00:02.000000000Z");
            trace[3]["time"] = json!("2026-03-02T12:00:03.000000000Z");
            trace[4]["time"] = json!("2026-03-02T12:00:04.000000000Z");
        },
    ),
    ("a restart", "not-restarted", |trace| {
        trace.insert(2, loss("node-1", "2026-03-01T12:00:30.000000000Z"));
        trace.insert(3, start("node-1", "2026-03-01T12:00:31.000000000Z"));
    }),
    (
        "a restart in the middle of a run",
        "not-restarted loss-recorded",
        |trace| {
            trace.insert(2, start("node-1", "2026-03-01T12:00:31.000000000Z"));
        },
    ),
    ("no start record", "start-recorded", |trace| {
        trace.remove(0);
    }),
    ("no loss record", "loss-recorded", |trace| {
        trace.pop();
    }),
    ("the end is missing", "loss-recorded", |trace| trace.swap(3, 4)),
    ("events lost", "nothing-lost", |trace| {
        trace[4]["ring_buffer"] = json!(7);
    }),
    ("loss that a restart resets", "not-restarted nothing-lost", |trace| {
        let mut first = loss("node-1", "2026-03-01T12:00:30.000000000Z");
        first["ring_buffer"] = json!(7);
        trace.insert(2, first);
    }),
    ("a filter by name", "nothing-filtered", |trace| {
        trace[0]["filters"] = json!(["comm=curl"]);
    }),
    ("a filter by cgroup", "nothing-filtered", |trace| {
        trace[0]["filters"] = json!(["cgroup=/kubepods"]);
    }),
    ("exchanges left out", "nothing-filtered", |trace| {
        trace[0]["filters"] = json!(["records=start,loss"]);
    }),
    ("a blind spot", "no-blind-spot", |trace| {
        trace[0]["missing"] = json!([{"capability": "wire", "why": "no", "blinds": "TTLs at the uplink"}]);
    }),
    ("an unknown process", "callers-known", |trace| {
        trace[2]["process"] = Value::Null;
    }),
    ("a head that was cut", "requests-read", |trace| {
        trace[2]["request"]["imds_version"] = Value::Null;
    }),
    ("headers of Google on a path of EC2", "requests-read", |trace| {
        trace[2]["request"]["dialect"] = json!("gcp");
        trace[2]["request"]["imds_version"] = json!("other");
    }),
    ("headers of Azure on a path of EC2", "requests-read", |trace| {
        trace[2]["request"]["dialect"] = json!("azure");
        trace[2]["request"]["imds_version"] = json!("other");
    }),
    ("a path that IMDS understands and we don't", "requests-read", |trace| {
        trace[2]["request"]["dialect"] = json!("unknown");
        trace[2]["request"]["imds_version"] = json!("other");
        trace[2]["request"]["path"] = json!("/x/../latest/meta-data/");
    }),
    (
        "an encoded path of an older version's trace",
        "requests-read",
        |trace| {
            trace[2]["request"]["dialect"] = json!("unknown");
            trace[2]["request"]["imds_version"] = json!("other");
            trace[2]["request"]["path"] = json!("/%6catest/meta-data/");
        },
    ),
    ("answered, but with which status", "answers-read", |trace| {
        trace[2]["request"]["imds_version"] = json!("v1");
        trace[2]["response"]["status"] = Value::Null;
    }),
    ("answered in HTTP/0.9 and closed", "answers-read", |trace| {
        trace[2]["request"]["imds_version"] = json!("v1");
        trace[2]["response"]["status"] = Value::Null;
        trace[2]["outcome"] = json!("closed");
    }),
    ("the uplink is not observed", "distances-known", |trace| {
        trace[1]["request"]["hops"] = Value::Null;
        trace[1]["response"]["ttl"] = Value::Null;
    }),
    ("no TTL", "distances-known", |trace| {
        trace[1]["request"]["hops"] = Value::Null;
        trace[1]["request"]["ttl"] = Value::Null;
    }),
    ("a pod that sets its initial TTL to 65", "distances-known", |trace| {
        trace[1]["request"]["hops"] = Value::Null;
        trace[1]["container"] = json!({"id": "0".repeat(64), "runtime": "containerd", "name": "api", "image": null,
            "pod": {"namespace": "payments", "name": "api-1", "uid": null}});
    }),
];

#[test]
fn each_condition_taken_away_alone_is_named_and_not_safe() {
    for (name, unproven, attack) in ATTACKS {
        let mut trace = healthy();
        attack(&mut trace);
        let answer = judge(&trace, CHANGES);
        assert_eq!(
            answer.unproven.join(" "),
            *unproven,
            "{name}: {}",
            answer.whole["reasons"]
        );
        assert_eq!(
            (answer.status, &answer.whole["verdict"]),
            (Some(4), &json!("cannot-say")),
            "{name}"
        );
    }
}

#[test]
fn what_is_no_record_is_not_safe() {
    let answer = judge_text(&(text(&healthy()) + "nonsense\n"), CHANGES);
    assert_eq!(
        (answer.status, answer.unproven.join(" ").as_str()),
        (Some(4), "input-read")
    );
}

#[test]
fn workloads_beyond_the_bound_are_not_safe() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.toml");
    fs::write(&config, "[limits.report]\njudged_workloads = 1\n").unwrap();
    let mut trace = healthy();
    for (at, unit) in [(1, "a"), (2, "b")] {
        trace[at]["request"]["imds_version"] = json!("v1");
        trace[at]["process"]["cgroup"] = json!(format!("/system.slice/{unit}.service"));
    }
    let answer = judge(
        &trace,
        &["--http-tokens", "required", "--config", config.to_str().unwrap()],
    );
    assert_eq!(answer.unproven, ["workloads-bounded"], "{}", answer.whole["reasons"]);
}

#[test]
fn a_filter_of_this_run_is_not_safe() {
    let answer = judge(&healthy(), &[CHANGES, &["--comm", "app"]].concat());
    assert_eq!(
        (answer.status, answer.unproven.join(" ").as_str()),
        (Some(4), "nothing-filtered")
    );
}

#[test]
fn every_condition_has_an_attack() {
    let elsewhere = ["input-read", "workloads-bounded"];
    for condition in imds_observer::preflight::Condition::ALL {
        let name = serde_json::to_value(condition).unwrap();
        let name = name.as_str().unwrap();
        let alone = ATTACKS.iter().any(|(_, unproven, _)| *unproven == name);
        assert!(alone || elsewhere.contains(&name), "no attack takes {name} away alone");
    }
}

#[test]
fn what_other_clouds_have_is_no_doubt() {
    let mut trace = healthy();
    for (dialect, path) in [
        ("gcp", "/computeMetadata/v1/"),
        ("azure", "/metadata/instance"),
        ("gcp", "/"),
    ] {
        let mut probe = exchange("2026-03-01T12:02:01.000000000Z", "GET", path, "other");
        probe["request"]["dialect"] = json!(dialect);
        probe["response"]["status"] = json!(404);
        trace.insert(3, probe);
    }
    assert_eq!(judge(&trace, CHANGES).status, Some(0));
}

#[test]
fn distances_that_were_measured_decide() {
    let mut trace = healthy();
    trace[1]["request"]["hops"] = json!(1);
    let answer = judge(&trace, &["--hop-limit", "1"]);
    assert_eq!((answer.status, &answer.whole["verdict"]), (Some(3), &json!("not-safe")));
    assert_eq!(judge(&trace, &["--hop-limit", "2"]).status, Some(0));
}
