//! A collector that is dead, silent or rejects, and one that accepts everything.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsPartialSuccess, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;

use super::*;
use crate::metrics::exposition;
use crate::metrics::state::BUCKETS_S;
use crate::sinks::Sink;

const FINDING: &str = r#"{"record":"finding","schema":1,"time":"2026-03-01T12:00:00.000000000Z","host":"n","code":"tight-polling","severity":"high","state":"open","subject":{"key":"k","name":"curl (parent bash 4100)","process":null,"container":null,"workload":"bash"},"first_seen":"2026-03-01T12:00:00.000000000Z","last_seen":"2026-03-01T12:00:09.000000000Z","count":50,"summary":"curl asks 50 times a second","evidence":{"rate_per_s":50.5,"paths":["/latest/meta-data/instance-id"],"startup":false},"remedy":{"text":"Ask less.","commands":[]}}"#;
const EXCHANGE: &str = r#"{"record":"exchange","schema":1,"time":"2026-03-01T12:00:00.000000000Z","host":"n","process":{"pid":7,"tid":7,"namespace_pid":null,"comm":"app","exe":"/opt/app","cmdline":["app"],"uid":0,"start_time":null,"ancestors":[],"cgroup":null,"netns":null},"container":null,"connection":{"id":"1","local":null,"remote":"169.254.169.254:80","exchange":1},"request":{"method":"GET","path":"/","dialect":"aws","imds_version":"v1","token":null,"token_ttl_s":null,"user_agent":null,"ttl":64,"forwarded":false},"response":{"status":200,"ttl":255,"delivered":true,"server":null},"outcome":"answered","latency_ns":300000}"#;

const WAITING: usize = 1024;

fn sink() -> MetricsSink {
    MetricsSink::new(crate::metrics::Limits::default(), Duration::from_secs(3600))
}

fn record(text: &str) -> Arc<Record> {
    Arc::new(crate::source::ndjson::parse(text.as_bytes()).unwrap())
}

fn collector(address: &str, metrics: &MetricsSink) -> Collector {
    let endpoint = format!("http://{address}");
    let options = Options {
        endpoint: &endpoint,
        interval: None,
        host: Host::from("n"),
        imds: Vec::new(),
        limit: WAITING,
    };
    Collector::new(&options, metrics).unwrap()
}

fn transfers(metrics: &MetricsSink) -> (u64, u64, u64) {
    let Transfers {
        findings_sent,
        findings_lost,
        failed,
    } = metrics.shared.transfers().unwrap();
    (findings_sent, findings_lost, failed)
}

/// Path and body.
type Request = (String, Vec<u8>);

/// Reads one request.
fn request(stream: &mut TcpStream) -> Request {
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    loop {
        let len = stream.read(&mut part).unwrap();
        assert_ne!(len, 0, "the request is cut off");
        bytes.extend_from_slice(&part[..len]);
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .unwrap();
        let wanted = end + 4 + length.parse::<usize>().unwrap();
        if bytes.len() >= wanted {
            assert!(head.contains("content-type: application/x-protobuf"), "{head}");
            return (head.split(' ').nth(1).unwrap().to_owned(), bytes[end + 4..].to_vec());
        }
    }
}

/// Answers so many requests with this status and body, and gives the requests.
fn server(count: usize, status: &str, body: Vec<u8>) -> (String, JoinHandle<Vec<Request>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
    let thread = std::thread::spawn(move || {
        (0..count)
            .map(|_| {
                let (mut stream, _) = listener.accept().unwrap();
                let request = request(&mut stream);
                stream.write_all(head.as_bytes()).unwrap();
                stream.write_all(&body).unwrap();
                request
            })
            .collect()
    });
    (address, thread)
}

#[test]
fn a_collector_gets_what_prometheus_is_shown() {
    let mut metrics = sink();
    for text in [EXCHANGE, EXCHANGE, FINDING] {
        metrics.write(&record(text));
    }
    let (address, requests) = server(2, "200 OK", Vec::new());
    let mut collector = collector(&address, &metrics);
    assert_eq!(collector.write(&[record(FINDING)]).unwrap(), 0);
    let shown = exposition::openmetrics(&exposition::registry(&metrics.shared)).unwrap();
    collector.close().unwrap();
    assert_eq!(transfers(&metrics), (1, 0, 0));

    let requests = requests.join().unwrap();
    let (path, body) = &requests[0];
    assert_eq!(path, "/v1/logs");
    let logs = ExportLogsServiceRequest::decode(&body[..]).unwrap();
    let log = &logs.resource_logs[0].scope_logs[0].log_records[0];
    assert_eq!((log.severity_number, log.severity_text.as_str()), (17, "high"));
    assert_eq!(log.time_unix_nano, 1_772_366_400_000_000_000);
    let text = format!("{log:?}");
    for wanted in [
        "imds.code",
        "tight-polling",
        "imds.evidence",
        "50.5",
        "curl asks 50 times a second",
        "Ask less.",
    ] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }

    let (path, body) = &requests[1];
    assert_eq!(path, "/v1/metrics");
    let sent = ExportMetricsServiceRequest::decode(&body[..]).unwrap();
    let resource = format!("{:?}", sent.resource_metrics[0].resource);
    assert!(
        resource.contains("imds-observer") && resource.contains("host.name"),
        "{resource}"
    );
    let mut series = 0;
    for metric in &sent.resource_metrics[0].scope_metrics[0].metrics {
        if metric.name.starts_with("process_") {
            // They go on changing.
            continue;
        }
        let points = match metric.data.as_ref().unwrap() {
            Data::Sum(sum) => sum
                .data_points
                .iter()
                .map(|point| ("_total", point))
                .collect::<Vec<_>>(),
            Data::Gauge(gauge) => gauge.data_points.iter().map(|point| ("", point)).collect(),
            Data::Histogram(histogram) => {
                let point = &histogram.data_points[0];
                assert_eq!((point.count, point.explicit_bounds.as_slice()), (2, &BUCKETS_S[..]));
                assert_eq!(point.bucket_counts.len(), BUCKETS_S.len() + 1);
                assert_eq!(point.bucket_counts.iter().sum::<u64>(), 2);
                series += 1;
                continue;
            }
            other => panic!("{other:?}"),
        };
        for (suffix, point) in points {
            let labels: Vec<String> = point.attributes.iter().map(shown_label).collect();
            let labels = if labels.is_empty() {
                String::new()
            } else {
                format!("{{{}}}", labels.join(","))
            };
            let name = format!("{}{suffix}{labels} ", metric.name);
            let line = shown.lines().find_map(|line| line.strip_prefix(&name));
            let line = line.unwrap_or_else(|| panic!("{name}is not in\n{shown}"));
            let value: f64 = line.parse().unwrap();
            assert!((number(point) - value).abs() < 1e-9, "{name}{value}");
            series += 1;
        }
    }
    let samples = shown
        .lines()
        .filter(|line| !line.starts_with('#') && !line.starts_with("process_"));
    let others = samples.filter(|line| !line.contains("_bucket{") && !line.contains("_seconds_sum"));
    assert_eq!(series, others.count(), "{shown}");
}

fn number(point: &opentelemetry_proto::tonic::metrics::v1::NumberDataPoint) -> f64 {
    use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
    match point.value.unwrap() {
        Value::AsInt(number) => number as f64,
        Value::AsDouble(number) => number,
    }
}

fn shown_label(attribute: &opentelemetry_proto::tonic::common::v1::KeyValue) -> String {
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    match attribute.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => format!("{}=\"{text}\"", attribute.key),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_dead_collector_costs_bounded_memory_and_is_counted() {
    // Bound, and closed: no server is there.
    let address = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let metrics = sink();
    let mut collector = collector(&address, &metrics);
    let batch = vec![record(FINDING); 100];
    let begin = Instant::now();
    let shed: u64 = (0..20).map(|_| collector.write(&batch).unwrap()).sum();
    assert!(begin.elapsed() < PATIENCE, "a pause follows a failure");
    assert_eq!(shed, 2000 - WAITING as u64);
    assert_eq!(collector.waiting.len(), WAITING);
    assert_eq!(transfers(&metrics), (0, shed, 1), "one transfer was tried");
    collector.close().unwrap();
    assert_eq!(transfers(&metrics).1, 2000);
}

#[test]
fn findings_wait_for_a_collector_that_comes_back() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let metrics = sink();
    let mut collector = collector(&address, &metrics);
    let busy = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        request(&mut stream);
        stream
            .write_all(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")
            .unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let (_, body) = request(&mut stream);
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            .unwrap();
        ExportLogsServiceRequest::decode(&body[..]).unwrap().resource_logs[0].scope_logs[0]
            .log_records
            .len()
    });
    collector.write(&[record(FINDING)]).unwrap();
    assert_eq!(transfers(&metrics), (0, 0, 1));
    // Before its time nothing is tried.
    collector.write(&[record(FINDING)]).unwrap();
    assert_eq!(transfers(&metrics), (0, 0, 1));
    let trouble = &mut collector.findings_trouble;
    trouble.retry = trouble.retry.map(|(_, pause)| (Instant::now(), pause));
    collector.idle().unwrap();
    assert_eq!(busy.join().unwrap(), 2);
    assert_eq!(transfers(&metrics), (2, 0, 1));
    assert!(collector.findings_trouble.retry.is_none());
}

#[test]
fn what_a_collector_refuses_for_good_is_given_up() {
    let metrics = sink();
    let (address, requests) = server(1, "400 Bad Request", Vec::new());
    assert_eq!(collector(&address, &metrics).write(&[record(FINDING)]).unwrap(), 1);
    assert_eq!(transfers(&metrics), (0, 1, 1));
    requests.join().unwrap();

    let partial = ExportLogsServiceResponse {
        partial_success: Some(ExportLogsPartialSuccess {
            rejected_log_records: 1,
            error_message: "too much".to_owned(),
        }),
    };
    let (address, requests) = server(1, "200 OK", partial.encode_to_vec());
    let metrics = sink();
    let two = [record(FINDING), record(FINDING)];
    assert_eq!(collector(&address, &metrics).write(&two).unwrap(), 1);
    assert_eq!(transfers(&metrics), (1, 1, 0));
    requests.join().unwrap();
}

#[test]
fn a_silent_collector_holds_up_its_own_thread_only_and_not_for_long() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let metrics = sink();
    let mut collector = collector(&address, &metrics);
    collector.waiting.push_back(record(FINDING));
    let begin = Instant::now();
    collector.close().unwrap();
    assert!(begin.elapsed() < LAST_PATIENCE * 3);
    assert_eq!(transfers(&metrics), (0, 1, 2), "findings, and the metrics");
}
