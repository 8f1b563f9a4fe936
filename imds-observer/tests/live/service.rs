//! `stream` as a service: metrics, health, readiness, watchdog messages, and reloading the configuration.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use imds_observer_lab::topology::{Lab, LabOptions, Place};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{Observer, in_netns, lab, patience, run, tool, tool_directory};

const ADDRESS: &str = "127.0.0.1:9469";

/// Sends a request to the metrics server from the node's own namespace.
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

/// The value of the series with this name and these labels.
fn value(metrics: &str, series: &str) -> Option<f64> {
    metrics
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

#[test]
#[ignore = "live"]
fn metrics_report_what_records_report() {
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
    let exchanges = r#"imds_exchanges_total{workload="curl",imds_version="v1",outcome="answered",dialect="aws"}"#;
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
    // Neither a process nor a path may be a label, because the number of both is unlimited.
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

/// Every series in the rules and dashboards must exist when a real Prometheus scrapes.
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
    // One missing feature is needed for its series. An uplink that doesn't exist yet doesn't count as missing.
    let mut observer = Observer::stream(&lab, &["--metrics", ADDRESS, "--interval", "1s"]);
    let rules = rules.canonicalize().unwrap();
    let server = Prometheus::start(&lab, &[&rules.to_string_lossy()]);

    // Cause every event that has a series: responses, a lost token response with its drop, a failed connect.
    lab.server().update(|behaviour| behaviour.hop_limit = 1);
    let mut wanted: Vec<String> = expressions(&deploy);
    let deadline = Instant::now() + patience() * 3;
    while !wanted.is_empty() && Instant::now() < deadline {
        ask(&lab, "meta-data/instance-id");
        ask_for_a_token(lab.pod(0), "0.5");
        // And a token request that is refused.
        lab.server().update(|behaviour| behaviour.put_status = Some(405));
        ask_for_a_token(lab.node(), "0.5");
        lab.server().update(|behaviour| behaviour.put_status = None);
        run(
            lab.node(),
            "curl",
            &["--silent", "--max-time", "0.5", "http://169.254.169.254:81/latest/"],
        );
        wanted.retain(|expression| server.ask(expression).is_empty());
    }
    server.stop();
    assert!(wanted.is_empty(), "no data for {wanted:#?}");
    observer.wait_for(|record| record["record"] == "summary");
    observer.finish();
}

/// Queries of the dashboard's panels, and each series in an alert.
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
        // Only the left side of the condition: the result of the comparison depends on this host.
        let (left, _) = line.rsplit_once([' ']).unwrap();
        let (left, _) = left.rsplit_once(' ').unwrap();
        all.push(left.to_owned());
    }
    assert!(all.len() >= 20);
    // In this lab no feature is missing, so this series has no value.
    all.retain(|expression| !expression.contains("imds_observer_missing"));
    // Of the rules for findings by code, only one remains: the one for the finding of the refused token request. tests/deploy.rs checks all
    // codes.
    let other = |expression: &str| expression.contains("{code=") && !expression.contains("token-request-refused");
    all.retain(|expression| !other(expression));
    all
}

/// Sends a token request from a pod. The response can't reach the pod if its TTL is used up at the node.
fn ask_for_a_token(place: &Place, patience_s: &str) {
    let arguments = [
        "--silent",
        "--max-time",
        patience_s,
        "--request",
        "PUT",
        "--header",
        "X-aws-ec2-metadata-token-ttl-seconds: 60",
        "http://169.254.169.254/latest/api/token",
    ];
    run(place, "curl", &arguments);
}

/// A real Prometheus, which scrapes once a second.
struct Prometheus<'a> {
    lab: &'a Lab,
    process: Child,
    _directory: tempfile::TempDir,
}

impl<'a> Prometheus<'a> {
    fn start(lab: &'a Lab, rules: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{}]\nscrape_configs:\n- job_name: imds-observer\n  static_configs: [{{targets: ['{ADDRESS}']}}]\n",
            rules.join(", ")
        );
        fs::write(&config, text).unwrap();
        let process = in_netns(lab.node(), tool("prometheus"))
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
        Self {
            lab,
            process,
            _directory: directory,
        }
    }

    /// Current values of an expression. Empty while Prometheus doesn't listen yet.
    fn ask(&self, expression: &str) -> Vec<f64> {
        let query = format!("query={expression}");
        let arguments = [
            "--silent",
            "--max-time",
            "5",
            "--data-urlencode",
            &query,
            "http://127.0.0.1:9090/api/v1/query",
        ];
        let output = run(self.lab.node(), "curl", &arguments);
        let Ok(answer) = serde_json::from_slice::<Value>(&output.stdout) else {
            return Vec::new();
        };
        let Some(rows) = answer["data"]["result"].as_array() else {
            return Vec::new();
        };
        rows.iter()
            .map(|row| row["value"][1].as_str().unwrap().parse().unwrap())
            .collect()
    }

    fn stop(mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Number of packets that the node's firewall, which is independent of this project, has counted.
fn counted_by_nft(lab: &Lab) -> u64 {
    let output = run(lab.node(), "nft", &["--json", "list", "table", "ip", "known_loss"]);
    let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rules = listed["nftables"].as_array().unwrap().iter();
    let counters = rules.filter_map(|object| object["rule"]["expr"].as_array());
    let packets = counters
        .flatten()
        .filter_map(|part| part["counter"]["packets"].as_u64());
    packets.sum()
}

/// The losses are known from an independent source: a known number of responses never reached the pod, and the firewall counted each of
/// their packets that arrived with a TTL that is used up at the node. It counts packets that are longer than the longest headers, which
/// means that they have a payload.
#[test]
#[ignore = "live"]
fn a_real_prometheus_has_the_exact_counts_of_a_known_loss() {
    const LOST: usize = 7;
    let lab = lab(LabOptions::default());
    let table = "table ip known_loss { chain before { type filter hook prerouting priority -500; \
        ip ttl 1 ip saddr 169.254.169.254 tcp sport 80 ip length > 80 counter; }; }";
    assert!(run(lab.node(), "nft", &[table]).status.success());
    lab.server().update(|behaviour| behaviour.hop_limit = 1);
    let mut observer = Observer::stream(&lab, &["--metrics", ADDRESS, "--interval", "1s"]);
    let prometheus = Prometheus::start(&lab, &[]);

    let mut waited_ns = 0;
    for _ in 0..LOST {
        ask_for_a_token(lab.pod(0), "0.5");
        let exchange = observer.wait_for(|record| record["record"] == "exchange");
        assert_eq!(exchange["outcome"], "lost", "{exchange}");
        waited_ns += exchange["waited_ns"].as_u64().unwrap();
    }
    // An answered request without a loss.
    lab.server().update(|behaviour| behaviour.hop_limit = 2);
    ask_for_a_token(lab.pod(0), "5");
    let exchange = observer.wait_for(|record| record["record"] == "exchange");
    assert_eq!(exchange["outcome"], "answered", "{exchange}");

    let exact = |expression: &str, wanted: f64| (expression.to_owned(), wanted);
    let of = |outcome: &str| format!(r#"imds_exchanges_total{{imds_version="token",outcome="{outcome}"}}"#);
    let code = r#"code="token-response-lost""#;
    let deadline = Instant::now() + patience() * 3;
    loop {
        // The server retransmits with increasing intervals until its limit.
        observer.try_wait_for(Duration::from_millis(100), |record| record["record"] == "none");
        let is_drop = |line: &&String| line.starts_with(r#"{"record":"drop""#);
        let drops = observer.output.iter().filter(is_drop).count() as u64;
        let counted = counted_by_nft(&lab);
        assert!(counted >= LOST as u64);
        // The kernel doesn't trace a drop that interrupts the tracing of another drop, but counts it.
        let unreported = recursion_misses(&observer);
        let wanted = [
            exact(&of("lost"), LOST as f64),
            exact(&of("answered"), 1.0),
            exact("sum(imds_exchanges_total)", LOST as f64 + 1.0),
            exact(r#"imds_observer_records_total{kind="exchange"}"#, LOST as f64 + 1.0),
            exact(r#"sum(imds_dropped_packets_total{direction="response"})"#, drops as f64),
            exact("sum(imds_dropped_packets_total)", drops as f64),
            exact(r#"imds_observer_records_total{kind="drop"}"#, drops as f64),
            exact("sum(imds_lost_seconds_total)", waited_ns as f64 / 1e9),
            exact(&format!("sum(imds_findings_total{{{code}}})"), 1.0),
            exact("sum(imds_observer_lost_total)", 0.0),
        ];
        let wrong: Vec<_> = wanted
            .into_iter()
            .map(|(expression, wanted)| (prometheus.ask(&expression), expression, wanted))
            .filter(|(shown, _, wanted)| shown.len() != 1 || (shown[0] - wanted).abs() > 1e-6)
            .collect();
        if wrong.is_empty() && drops <= counted && counted <= drops + unreported {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "{counted} packets counted by nft, {drops} drop records, {unreported} unreported; shown, asked for, wanted: {wrong:#?}"
        );
    }
    prometheus.stop();
    observer.finish();
}

/// Number of runs of the observer's programs that the kernel skipped, because they would have interrupted themselves.
fn recursion_misses(observer: &Observer) -> u64 {
    let misses = described(observer, "prog_id:", "recursion_misses:");
    assert!(!misses.is_empty(), "the kernel counts none");
    misses.iter().sum()
}

/// Values of a field of all the observer's descriptors of one kind, from the kernel.
fn described(observer: &Observer, kind: &str, field: &str) -> Vec<u64> {
    fs::read_dir(format!("/proc/{}/fdinfo", observer.pid()))
        .unwrap()
        .filter_map(|entry| fs::read_to_string(entry.unwrap().path()).ok())
        .filter(|text| text.contains(kind))
        .filter_map(|text| {
            text.lines()
                .find_map(|line| line.strip_prefix(field))?
                .trim()
                .parse()
                .ok()
        })
        .collect()
}

#[test]
#[ignore = "live"]
fn a_service_manager_is_reported_and_a_bad_configuration_changes_nothing() {
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
    // The observer continues with its previous filter.
    reload(&observer, "[filter\n");
    ask(&lab, "meta-data/instance-id?filtered");
    // Later requests are recorded.
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

#[test]
#[ignore = "live"]
fn the_kernels_tables_are_as_large_as_the_configuration_says() {
    let lab = lab(LabOptions::default());
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.toml");
    let limits = "[limits.kernel]\nring_bytes = 65536\nflows = 1111\ntuples = 2222\nsequences = 3333\nconnecting = 4444\nprocesses = 5555\ninterfaces = 64\n";
    fs::write(&config, limits).unwrap();
    let mut observer = Observer::stream(&lab, &["--config", config.to_str().unwrap()]);
    let mut sizes = described(&observer, "map_id:", "max_entries:");
    // The remaining maps have one entry, or four if a program may interrupt itself; and 1,024 entries for connections that another tool
    // redirects.
    assert!(sizes.contains(&1024), "{sizes:?}");
    sizes.retain(|entries| *entries > 4 && *entries != 1024);
    sizes.sort_unstable();
    sizes.dedup();
    assert_eq!(sizes, [64, 1111, 2222, 3333, 4444, 5555, 65_536]);
    ask(&lab, "meta-data/instance-id");
    observer.wait_for(|record| record["record"] == "exchange");
    observer.finish();
}

/// Path of rotel's program, which is installed from PyPI.
fn collector() -> PathBuf {
    let python = tool_directory().join("deploy/bin/python3");
    let output = Command::new(&python)
        .args(["-c", "import os, rotel; print(os.path.dirname(rotel.__file__))"])
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}: run `cargo xtask setup --for test`", python.display()));
    Path::new(String::from_utf8(output.stdout).unwrap().trim()).join("rotel-agent")
}

/// The output of an independent collector: rotel logs the data that it received.
#[test]
#[ignore = "live"]
fn a_real_collector_gets_what_prometheus_is_shown() {
    let lab = lab(LabOptions::default());
    let directory = tempfile::tempdir().unwrap();
    let reported = directory.path().join("rotel.log");
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
        .stdout(fs::File::create(&reported).unwrap())
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
            // A host name, which a static program must be able to resolve too.
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
        let text = fs::read_to_string(&reported).unwrap();
        let metrics = text
            .rfind("imds_exchanges")
            .is_some_and(|at| text[at..].contains("Value: 3"));
        if metrics && text.contains(finding["summary"].as_str().unwrap()) {
            break text;
        }
        assert!(Instant::now() < deadline, "rotel did not report of it:\n{text}");
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
