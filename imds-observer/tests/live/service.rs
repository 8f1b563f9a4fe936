//! `stream` as a service: metrics, health, readiness, signs of life, and a configuration that is read again.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use imds_observer_lab::topology::{Lab, LabOptions};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{Observer, in_netns, lab, patience, run, tool, tool_directory};

const ADDRESS: &str = "127.0.0.1:9469";

/// What is served, asked for from the node's own namespace.
fn get(lab: &Lab, path: &str, more: &[&str]) -> (String, String) {
    let url = format!("http://{ADDRESS}{path}");
    let mut arguments = vec![
        "--silent",
        "--max-time",
        "5",
        "--write-out",
        "\n%{http_code} %{content_type}",
    ];
    arguments.extend(more);
    arguments.push(&url);
    let output = run(lab.node(), "curl", &arguments);
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, status) = text.rsplit_once('\n').unwrap();
    (status.trim().to_owned(), body.to_owned())
}

fn ask(lab: &Lab, path: &str) {
    let url = format!("http://169.254.169.254/latest/{path}");
    assert!(
        run(lab.node(), "curl", &["--silent", "--output", "/dev/null", &url])
            .status
            .success()
    );
}

/// The value of the series whose name and labels are these.
fn value(metrics: &str, series: &str) -> Option<f64> {
    metrics
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

#[test]
#[ignore = "live"]
fn metrics_tell_what_records_tell() {
    let lab = lab(LabOptions::default());
    let mut observer = Observer::stream(&lab, &["--metrics", ADDRESS, "--interval", "1s"]);
    assert_eq!(get(&lab, "/readyz", &[]).0, "200 text/plain; charset=utf-8");
    assert_eq!(
        get(&lab, "/healthz", &[]),
        ("200 text/plain; charset=utf-8".into(), "ok\n".into())
    );
    for path in [
        "meta-data/instance-id",
        "meta-data/instance-id",
        "meta-data/no-such-thing",
    ] {
        ask(&lab, path);
        observer.wait_for(|record| record["record"] == "exchange");
    }
    observer.wait_for(|record| record["code"] == "imdsv1-request");
    observer.wait_for(|record| record["record"] == "summary");

    let (kind, metrics) = get(&lab, "/metrics", &[]);
    assert_eq!(kind, "200 text/plain; version=0.0.4; charset=utf-8");
    let exchanges = r#"imds_exchanges_total{workload="curl",imds_version="v1",outcome="answered"}"#;
    assert_eq!(value(&metrics, exchanges), Some(3.0), "{metrics}");
    assert_eq!(
        value(&metrics, r#"imds_responses_total{workload="curl",status="404"}"#),
        Some(1.0),
        "{metrics}"
    );
    assert_eq!(
        value(&metrics, r#"imds_response_latency_seconds_count{workload="curl"}"#),
        Some(3.0),
        "{metrics}"
    );
    assert_eq!(
        value(&metrics, r#"imds_observer_lost_total{what="ring_buffer"}"#),
        Some(0.0)
    );
    assert_eq!(
        value(&metrics, r#"imds_observer_records_total{kind="exchange"}"#),
        Some(3.0)
    );
    assert!(
        value(
            &metrics,
            r#"imds_interface_packets_total{interface="eth0",direction="egress"}"#
        ) > Some(0.0)
    );
    assert!(
        value(
            &metrics,
            r#"imds_open_findings{code="imdsv1-request",severity="warning"}"#
        ) > Some(0.0),
        "{metrics}"
    );
    assert!(value(&metrics, "process_resident_memory_bytes") > Some(1e6));
    // Neither a process nor a path is a label: both grow without bound.
    assert!(
        !metrics.contains("instance-id") && !metrics.contains("pid="),
        "{metrics}"
    );

    let (kind, open) = get(
        &lab,
        "/metrics",
        &["--header", "Accept: application/openmetrics-text; version=1.0.0"],
    );
    assert_eq!(kind, "200 application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(
        open.ends_with("# EOF\n") && open.contains("# TYPE imds_exchanges counter"),
        "{open}"
    );
    assert_eq!(get(&lab, "/elsewhere", &[]).0.split(' ').next(), Some("404"));

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("metrics");
    fs::write(&file, &metrics).unwrap();
    let checked = Command::new(tool("promtool"))
        .args(["check", "metrics"])
        .stdin(fs::File::open(&file).unwrap())
        .output()
        .unwrap();
    let found = String::from_utf8_lossy(&checked.stderr);
    assert!(
        checked.status.success() && found.is_empty(),
        "promtool finds fault: {found}"
    );
    observer.finish();
}

/// Rules and dashboards name series; each has to be there when a real Prometheus scrapes.
#[test]
#[ignore = "live"]
fn a_real_prometheus_answers_the_rules_and_the_dashboard() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let rules = deploy.join("prometheus/alerts.yml");
    let checked = Command::new(tool("promtool"))
        .args(["check", "rules"])
        .arg(&rules)
        .output()
        .unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));

    let lab = lab(LabOptions::default());
    let directory = tempfile::tempdir().unwrap();
    // A capability that is missing, for the series that tells it: an uplink that isn't there yet is none.
    let mut observer = Observer::stream(&lab, &["--metrics", ADDRESS, "--interval", "1s"]);
    let config = directory.path().join("prometheus.yml");
    let text = format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{}]\nscrape_configs:\n- job_name: imds-observer\n  static_configs: [{{targets: ['{ADDRESS}']}}]\n",
        rules.canonicalize().unwrap().display()
    );
    fs::write(&config, text).unwrap();
    let mut server = in_netns(lab.node(), tool("prometheus"))
        .arg(format!("--config.file={}", config.display()))
        .arg(format!(
            "--storage.tsdb.path={}",
            directory.path().join("data").display()
        ))
        .args(["--web.listen-address=127.0.0.1:9090", "--log.level=error"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("run prometheus");

    // Everything that has a series: answers, a lost token response with its drop, a failed connect.
    lab.server().update(|behaviour| behaviour.hop_limit = 1);
    let lose = [
        "--silent",
        "--max-time",
        "0.5",
        "--request",
        "PUT",
        "--header",
        "X-aws-ec2-metadata-token-ttl-seconds: 60",
    ];
    let mut wanted: Vec<String> = expressions(&deploy);
    let deadline = Instant::now() + patience() * 3;
    while !wanted.is_empty() && Instant::now() < deadline {
        ask(&lab, "meta-data/instance-id");
        let token = "http://169.254.169.254/latest/api/token";
        run(lab.pod(0), "curl", &[&lose[..], &[token]].concat());
        run(
            lab.node(),
            "curl",
            &["--silent", "--max-time", "0.5", "http://169.254.169.254:81/latest/"],
        );
        wanted.retain(|expression| !has_data(&lab, expression));
    }
    let _ = server.kill();
    let _ = server.wait();
    assert!(wanted.is_empty(), "no data for {wanted:#?}");
    observer.wait_for(|record| record["record"] == "summary");
    observer.finish();
}

/// What the dashboard's panels ask, and each series that an alert looks at.
fn expressions(deploy: &Path) -> Vec<String> {
    let dashboard: Value =
        serde_json::from_slice(&fs::read(deploy.join("grafana/imds-observer.json")).unwrap()).unwrap();
    let mut all: Vec<String> = dashboard["panels"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap())
        .map(|target| {
            let expression = target["expr"].as_str().unwrap();
            expression.replace("$instance", ".*").replace("$__rate_interval", "1m")
        })
        .collect();
    assert!(all.len() >= 12);
    let rules = fs::read_to_string(deploy.join("prometheus/alerts.yml")).unwrap();
    for line in rules.lines().filter_map(|line| line.trim().strip_prefix("expr: ")) {
        // The condition's left side: whether it holds is this host's luck.
        let (left, _) = line.rsplit_once([' ']).unwrap();
        let (left, _) = left.rsplit_once(' ').unwrap();
        all.push(left.to_owned());
    }
    assert!(all.len() >= 20);
    // Here nothing is missing, and it is not to be.
    all.retain(|expression| !expression.contains("imds_observer_missing"));
    all
}

fn has_data(lab: &Lab, expression: &str) -> bool {
    let query = format!("query={expression}");
    let arguments = [
        "--silent",
        "--max-time",
        "5",
        "--data-urlencode",
        &query,
        "http://127.0.0.1:9090/api/v1/query",
    ];
    let output = run(lab.node(), "curl", &arguments);
    let Ok(answer) = serde_json::from_slice::<Value>(&output.stdout) else {
        return false;
    };
    answer["data"]["result"].as_array().is_some_and(|rows| !rows.is_empty())
}

#[test]
#[ignore = "live"]
fn a_service_manager_is_told_and_a_bad_configuration_changes_nothing() {
    let lab = lab(LabOptions::default());
    let directory = tempfile::tempdir().unwrap();
    let (config, socket) = (directory.path().join("config.toml"), directory.path().join("notify"));
    fs::write(&config, "[filter]\ncomm = ['nobody']\n").unwrap();
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(patience())).unwrap();
    let next = |wanted: &str| {
        let mut seen = Vec::new();
        loop {
            let mut bytes = [0; 512];
            let len = manager
                .recv(&mut bytes)
                .unwrap_or_else(|error| panic!("{wanted} after {seen:?}: {error}"));
            let text = String::from_utf8_lossy(&bytes[..len]).into_owned();
            if text.contains(wanted) {
                return text;
            }
            seen.push(text);
        }
    };
    let environment = [("NOTIFY_SOCKET", socket.to_str().unwrap()), ("WATCHDOG_USEC", "200000")];
    let mut observer = Observer::stream_with(&lab, &environment, &["--config", config.to_str().unwrap()]);
    assert!(next("READY=1").contains("STATUS=observing, 1 uplinks"));
    next("WATCHDOG=1");

    let reload = |observer: &Observer, text: &str| {
        fs::write(&config, text).unwrap();
        kill(Pid::from_raw(observer.pid() as i32), Signal::SIGHUP).unwrap();
        assert!(next("RELOADING=1").contains("MONOTONIC_USEC="));
        next("READY=1");
    };
    // It goes on with the filter that it had.
    reload(&observer, "[filter\n");
    ask(&lab, "meta-data/instance-id?filtered");
    // Whoever asks from now on is let through.
    reload(&observer, "[filter]\ncomm = ['curl']\n[limits]\nqueue = 5\n");
    ask(&lab, "meta-data/instance-id?seen");
    observer.wait_for(|record| record["record"] == "exchange");
    let finished = observer.finish();
    next("STOPPING=1");
    let exchanges = finished.kind("exchange");
    assert_eq!(exchanges.len(), 1, "{exchanges:?}");
    assert_eq!(exchanges[0]["request"]["path"], "/latest/meta-data/instance-id?seen");
    assert!(
        finished.stderr.contains("the old configuration stays in force"),
        "{}",
        finished.stderr
    );
    assert!(
        finished.stderr.contains("limits takes effect at the next start"),
        "{}",
        finished.stderr
    );
}

/// rotel's program, which PyPI carries.
fn collector() -> PathBuf {
    let python = tool_directory().join("deploy/bin/python3");
    let output = Command::new(&python)
        .args(["-c", "import os, rotel; print(os.path.dirname(rotel.__file__))"])
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}: run `cargo xtask setup --for test`", python.display()));
    Path::new(String::from_utf8(output.stdout).unwrap().trim()).join("rotel-agent")
}

/// The collector's own words: rotel, which is no part of this project, tells on its log what it received.
#[test]
#[ignore = "live"]
fn a_real_collector_gets_what_prometheus_is_shown() {
    let lab = lab(LabOptions::default());
    let directory = tempfile::tempdir().unwrap();
    let told = directory.path().join("rotel.log");
    let mut rotel = in_netns(lab.node(), collector())
        .args([
            "start",
            "--exporter",
            "blackhole",
            "--debug-log",
            "metrics",
            "--debug-log",
            "logs",
        ])
        .args(["--debug-log-verbosity", "detailed", "--pid-file"])
        .arg(directory.path().join("pid"))
        .args([
            "--otlp-http-endpoint",
            "127.0.0.1:4318",
            "--otlp-grpc-endpoint",
            "127.0.0.1:4317",
        ])
        .stdout(fs::File::create(&told).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .expect("run rotel");
    let config = directory.path().join("config.toml");
    fs::write(&config, "[otlp]\ninterval = '1s'\n").unwrap();
    let mut observer = Observer::stream(
        &lab,
        &[
            "--metrics",
            ADDRESS,
            "--interval",
            "1s",
            "--config",
            config.to_str().unwrap(),
            "--otlp-endpoint",
            // A name: a static program resolves it too.
            "http://localhost:4318",
        ],
    );
    for _ in 0..3 {
        ask(&lab, "meta-data/instance-id");
        observer.wait_for(|record| record["record"] == "exchange");
    }
    let finding = observer.wait_for(|record| record["code"] == "imdsv1-request");
    let deadline = Instant::now() + patience();
    let received = loop {
        let text = fs::read_to_string(&told).unwrap();
        let metrics = text
            .rfind("imds_exchanges")
            .is_some_and(|at| text[at..].contains("Value: 3"));
        if metrics && text.contains(finding["summary"].as_str().unwrap()) {
            break text;
        }
        assert!(Instant::now() < deadline, "rotel did not tell of it:\n{text}");
        ask(&lab, "meta-data/instance-id?filler");
    };
    for wanted in [
        "imds_response_latency_seconds",
        "imds_interface_packets",
        "imds_observer_build_info",
        "process_resident_memory_bytes",
        "service.name",
        "imds.remedy",
        "imdsv1-request",
    ] {
        assert!(received.contains(wanted), "{wanted}:\n{received}");
    }
    let _ = rotel.kill();
    let _ = rotel.wait();
    observer.finish();
}
