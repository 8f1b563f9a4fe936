//! What does each pure stage take for an event, by the clock and in allocations?
//!
//! `cargo xtask bench pipeline` runs it and puts the table into docs/benchmarks.md. The events are those of one exchange on a
//! connection of its own, as the kernel programs send them, over and over with new cookies and ports.

mod allocator;

use std::fmt::Write as _;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use allocator::allocations;
use criterion::{BatchSize, Criterion, Throughput};
use imds_observer::attribution::{self, Attribution};
use imds_observer::bpf::{Decoder, Symbols};
use imds_observer::detectors::{DetectorConfig, Detectors, Observation};
use imds_observer::event::{Event, Packet, Vantage};
use imds_observer::exchange::{Fact, FlowTable, Limits};
use imds_observer::filter::{Filter, Kinds};
use imds_observer::flow::{RequestReader, Seq, StreamLimits};
use imds_observer::host_facts::HostFacts;
use imds_observer::hosts::HostDetectors;
use imds_observer::http;
use imds_observer::imds::{Hasher, read_request};
use imds_observer::pipeline::{Parts, Pipeline};
use imds_observer::record::{Body, Host, Record, Time};
use imds_observer::sinks::Sink;
use imds_observer::summary::{self, Summarizer};
use imds_observer_common::{
    ConnectEvent, Direction, EventHeader, EventKind, ProcessEvent, ProcessKey, STATUS_LINE_BYTES, SegmentEvent,
    SocketEvent, Tuple, WireEvent, mapped_v4,
};
use zerocopy::{FromZeros as _, IntoBytes as _};

const HEAD: &[u8] = b"GET /latest/meta-data/iam/security-credentials/app-role HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: Boto3/1.34.0 md/Botocore#1.34.0\r\nX-aws-ec2-metadata-token: AQAEAMADEUPFORTHEBENCHMADEUPFORTHEBENCHMADEUPFORTHEBENCH==\r\n\r\n";
const STATUS: &[u8; STATUS_LINE_BYTES] = b"HTTP/1.1 200 OK\r";
const ANSWER_BYTES: u32 = 900;
/// Exchanges in one measured batch, one every millisecond.
const EXCHANGES: u64 = 1000;
const GAP_NS: u64 = 1_000_000;
/// Time between the packets of one exchange.
const STEP_NS: u64 = 20_000;
const PROCESSES: u64 = 20;

/// Puts the events of exchanges together, as bytes.
struct Kernel {
    events: Vec<Vec<u8>>,
    time_ns: u64,
}

impl Kernel {
    fn exchanges(count: u64) -> Vec<Vec<u8>> {
        let mut kernel = Self {
            events: Vec::new(),
            time_ns: 0,
        };
        for number in 0..count {
            kernel.exchange(number);
        }
        kernel.events
    }

    fn header(&mut self, kind: EventKind, len: usize) -> EventHeader {
        self.time_ns += STEP_NS;
        EventHeader {
            time_ns: self.time_ns,
            kind: kind as u16,
            len: len as u16,
            reserved: 0,
        }
    }

    fn exchange(&mut self, number: u64) {
        self.time_ns = 1_000_000_000 + number * GAP_NS;
        let (cookie, pid) = (1000 + number, 4000 + (number % PROCESSES) as u32);
        let process = ProcessKey {
            start_time_ns: u64::from(pid) * 1000,
            tgid: pid,
            exec_id: 1,
        };
        let tuple = Tuple {
            local: mapped_v4([10, 0, 1, 5]),
            remote: mapped_v4([169, 254, 169, 254]),
            local_port: 20_000 + (number % 40_000) as u16,
            remote_port: 80,
        };
        let connection = Connection {
            cookie,
            process,
            tuple,
            request: number as u32 * 7919,
            answer: number as u32 * 104_729,
        };
        if number < PROCESSES {
            self.process(process);
        }
        self.connect(connection);
        self.socket(connection, 2);
        self.both(connection, Direction::Request, 2, 0, &[]);
        self.segment(connection, Direction::Response, 18, 0, &[]);
        self.both(connection, Direction::Request, 24, HEAD.len() as u32, HEAD);
        self.both(connection, Direction::Response, 24, ANSWER_BYTES, STATUS);
        self.socket(connection, 7);
    }

    fn process(&mut self, key: ProcessKey) {
        let mut event = ProcessEvent::new_zeroed();
        event.header = self.header(EventKind::Process, size_of::<ProcessEvent>());
        event.key = key;
        event.uid = 1000;
        event.comm[..7].copy_from_slice(b"python3");
        let exe = b"python3\0bin\0usr\0/\0";
        event.exe[..exe.len()].copy_from_slice(exe);
        event.exe_len = exe.len() as u16;
        self.events.push(event.as_bytes().to_vec());
    }

    fn connect(&mut self, of: Connection) {
        let mut event = ConnectEvent::new_zeroed();
        event.header = self.header(EventKind::Connect, size_of::<ConnectEvent>());
        (event.cookie, event.process, event.tid) = (of.cookie, of.process, of.process.tgid);
        (event.remote, event.remote_port) = (of.tuple.remote, of.tuple.remote_port);
        self.events.push(event.as_bytes().to_vec());
    }

    fn socket(&mut self, of: Connection, state: u8) {
        let mut event = SocketEvent::new_zeroed();
        event.header = self.header(EventKind::Socket, size_of::<SocketEvent>());
        (event.cookie, event.tuple, event.new_state) = (of.cookie, of.tuple, state);
        self.events.push(event.as_bytes().to_vec());
    }

    /// At the socket and at the uplink, in the order in which a packet passes them.
    fn both(&mut self, of: Connection, direction: Direction, flags: u8, payload: u32, head: &[u8]) {
        if direction == Direction::Request {
            self.segment(of, direction, flags, payload, head);
        }
        let mut event = WireEvent::new_zeroed();
        event.header = self.header(EventKind::Wire, size_of::<WireEvent>());
        (event.cookie, event.tuple) = (of.cookie, of.tuple);
        (event.seq, event.ack) = of.numbers(direction, flags);
        (event.payload_len, event.tcp_flags, event.ttl) = (payload, flags, 64);
        event.direction = direction as u8;
        if head.len() == STATUS_LINE_BYTES {
            event.status_line.copy_from_slice(head);
            event.status_len = STATUS_LINE_BYTES as u8;
        }
        self.events.push(event.as_bytes().to_vec());
        if direction == Direction::Response {
            self.segment(of, direction, flags, payload, head);
        }
    }

    fn segment(&mut self, of: Connection, direction: Direction, flags: u8, payload: u32, head: &[u8]) {
        let mut event = SegmentEvent::new_zeroed();
        event.header = self.header(EventKind::Segment, size_of::<SegmentEvent>() + head.len());
        (event.cookie, event.process, event.tid, event.tuple) = (of.cookie, of.process, of.process.tgid, of.tuple);
        (event.seq, event.ack) = of.numbers(direction, flags);
        (event.payload_len, event.tcp_flags, event.ttl) = (payload, flags, 64);
        (event.direction, event.head_len) = (direction as u8, head.len() as u16);
        let mut bytes = event.as_bytes().to_vec();
        bytes.extend_from_slice(head);
        self.events.push(bytes);
    }
}

#[derive(Clone, Copy)]
struct Connection {
    cookie: u64,
    process: ProcessKey,
    tuple: Tuple,
    /// First sequence numbers of both sides.
    request: u32,
    answer: u32,
}

impl Connection {
    fn numbers(&self, direction: Direction, flags: u8) -> (u32, u32) {
        let after = |first: u32, bytes: u32| first.wrapping_add(1 + bytes);
        let (request, answer) = match flags {
            2 => return (self.request, 0),
            18 => return (self.answer, after(self.request, 0)),
            24 if direction == Direction::Request => (after(self.request, 0), after(self.answer, 0)),
            24 => (after(self.request, HEAD.len() as u32), after(self.answer, 0)),
            _ => (after(self.request, HEAD.len() as u32), after(self.answer, ANSWER_BYTES)),
        };
        if direction == Direction::Request {
            (request, answer)
        } else {
            (answer, request)
        }
    }
}

/// Takes records and keeps the exchanges.
#[derive(Default)]
struct Kept(Arc<std::sync::Mutex<Vec<Arc<Record>>>>);

impl Sink for Kept {
    fn kinds(&self) -> Kinds {
        Kinds::ALL
    }

    fn write(&mut self, record: &Arc<Record>) {
        if matches!(record.body, Body::Exchange(_))
            && let Ok(mut kept) = self.0.lock()
        {
            kept.push(record.clone());
        }
    }
}

/// Writes each record as a line, as `stream` does.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Sink for Lines {
    fn kinds(&self) -> Kinds {
        Kinds::ALL
    }

    fn write(&mut self, record: &Arc<Record>) {
        self.0.clear();
        let _ = serde_json::to_writer(&mut self.0, record.as_ref());
        black_box(&self.0);
    }
}

fn host() -> Host {
    Host::from("node-1")
}

fn flow_table() -> FlowTable {
    FlowTable::new(Limits::default(), Hasher::with_salt(1, 2))
}

fn pipeline(sink: Box<dyn Sink>) -> Pipeline {
    Pipeline::new(Parts {
        host: host(),
        flow: flow_table(),
        attribution: Attribution::new(attribution::Limits::default(), None),
        filter: Filter::default(),
        filters: Vec::new(),
        detectors: HostDetectors::new(DetectorConfig::default(), None),
        summarizer: Some(Summarizer::new(summary::Limits::default())),
        sinks: vec![sink],
        interval: None,
        recorded_hosts: 1,
        count: None,
    })
}

fn decode(bytes: &[Vec<u8>]) -> Vec<Event> {
    let mut decoder = Decoder::new(Vec::new(), Symbols::default());
    bytes
        .iter()
        .map(|bytes| decoder.decode(bytes).expect("an event of ours"))
        .collect()
}

/// All of them, once through.
fn records(events: &[Event]) -> Vec<Arc<Record>> {
    let kept = Kept::default();
    let records = kept.0.clone();
    let mut pipeline = pipeline(Box::new(kept));
    for event in events {
        pipeline.handle(event);
    }
    pipeline.finish(Time(u64::MAX / 2)).expect("finish");
    let records = records.lock().expect("no panic before").clone();
    assert_eq!(records.len() as u64, EXCHANGES, "each exchange gives its record");
    records
}

/// A stage, its unit, and how many of them a batch has.
type Row = (&'static str, &'static str, u64, u64);

/// Measures a stage and counts what it allocates in one batch.
fn stage<S>(
    criterion: &mut Criterion,
    rows: &mut Vec<Row>,
    (name, unit, count): (&'static str, &'static str, u64),
    mut fresh: impl FnMut() -> S,
    mut work: impl FnMut(&mut S),
) {
    let mut state = fresh();
    let before = allocations();
    work(&mut state);
    rows.push((name, unit, count, allocations() - before));
    let mut group = criterion.benchmark_group("pipeline");
    group.throughput(Throughput::Elements(count));
    group.bench_function(name, |bencher| {
        bencher.iter_batched_ref(&mut fresh, |state| work(state), BatchSize::LargeInput);
    });
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(30)
        .without_plots()
        .measurement_time(std::time::Duration::from_secs(3))
        .warm_up_time(std::time::Duration::from_millis(500))
        .configure_from_args();
    let bytes = Kernel::exchanges(EXCHANGES);
    let events = decode(&bytes);
    let records = records(&events);
    let count = bytes.len() as u64;
    let mut rows = Vec::new();

    stage(
        &mut criterion,
        &mut rows,
        ("decode", "event", count),
        || Decoder::new(Vec::new(), Symbols::default()),
        |decoder| {
            for bytes in &bytes {
                let _ = black_box(decoder.decode(black_box(bytes)));
            }
        },
    );
    let requests: Vec<&Packet> = events
        .iter()
        .filter_map(|event| match event {
            Event::Packet(packet) if packet.vantage == Vantage::Socket && packet.direction == Direction::Request => {
                Some(packet)
            }
            _ => None,
        })
        .collect();
    // SYN, request, FIN of one connection.
    let readers: Vec<&[&Packet]> = requests.chunks(3).collect();
    stage(
        &mut criterion,
        &mut rows,
        ("reassembly", "segment", requests.len() as u64),
        || (),
        |()| {
            for connection in &readers {
                let mut reader = RequestReader::new(StreamLimits::default());
                for packet in *connection {
                    if packet.tcp_flags & Packet::SYN != 0 {
                        reader.start(Seq(packet.seq).plus(1));
                    }
                    let _ = black_box(reader.push(packet, |found| {
                        black_box(&found);
                    }));
                }
            }
        },
    );
    let hasher = Hasher::with_salt(1, 2);
    stage(
        &mut criterion,
        &mut rows,
        ("head", "request", EXCHANGES),
        || (),
        |()| {
            for _ in 0..EXCHANGES {
                black_box(read_request(&http::Request::parse(black_box(HEAD), false), &hasher));
            }
        },
    );
    stage(
        &mut criterion,
        &mut rows,
        ("pairing", "event", count),
        || (flow_table(), Vec::<Fact>::new()),
        |(table, facts)| {
            for event in &events {
                table.handle(event, facts);
                facts.clear();
            }
        },
    );
    stage(
        &mut criterion,
        &mut rows,
        ("detectors", "exchange", EXCHANGES),
        || {
            (
                Detectors::new(&DetectorConfig::default(), HostFacts::default()),
                Vec::new(),
            )
        },
        |(detectors, findings)| {
            for record in &records {
                if let Body::Exchange(exchange) = &record.body {
                    detectors.observe(&Observation::Exchange(record.with(exchange)), findings);
                    findings.clear();
                }
            }
        },
    );
    stage(
        &mut criterion,
        &mut rows,
        ("summary", "exchange", EXCHANGES),
        || Summarizer::new(summary::Limits::default()),
        |summarizer| {
            for record in &records {
                if let Body::Exchange(exchange) = &record.body {
                    summarizer.exchange(record.with(exchange));
                }
            }
        },
    );
    stage(
        &mut criterion,
        &mut rows,
        ("json", "record", EXCHANGES),
        || Vec::with_capacity(4096),
        |line| {
            for record in &records {
                line.clear();
                serde_json::to_writer(&mut *line, record.as_ref()).expect("write to memory");
                black_box(&line);
            }
        },
    );
    stage(
        &mut criterion,
        &mut rows,
        ("all", "event", count),
        || {
            (
                Decoder::new(Vec::new(), Symbols::default()),
                pipeline(Box::new(Lines::default())),
            )
        },
        |(decoder, pipeline)| {
            for bytes in &bytes {
                if let Ok(event) = decoder.decode(bytes) {
                    pipeline.handle(&event);
                }
            }
        },
    );
    criterion.final_summary();
    if let Some(path) = std::env::var_os("IMDS_OBSERVER_BENCH_TABLE") {
        std::fs::write(path, table(&rows)).expect("write the table");
    }
}

/// Medians as criterion has written them.
fn table(rows: &[Row]) -> String {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
        PathBuf::from,
    );
    let mut text = String::from("| stage | for each | ns (95 % of the medians) | allocations |\n|---|---|---|---|\n");
    for (name, unit, count, allocations) in rows {
        let path = target.join(format!("criterion/pipeline/{name}/new/estimates.json"));
        let reported = std::fs::read_to_string(&path)
            .ok()
            .and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok())
            .unwrap_or_default();
        let median = &reported["median"];
        let each = |value: &serde_json::Value| value.as_f64().unwrap_or(f64::NAN) / *count as f64;
        let _ = writeln!(
            text,
            "| {name} | {unit} | {:.0} ({:.0} to {:.0}) | {:.2} |",
            each(&median["point_estimate"]),
            each(&median["confidence_interval"]["lower_bound"]),
            each(&median["confidence_interval"]["upper_bound"]),
            *allocations as f64 / *count as f64
        );
    }
    let events = rows.iter().find(|row| row.0 == "all").map_or(0, |row| row.2);
    let _ = writeln!(
        text,
        "\n{} events an exchange, on a connection of its own; `all` is decode to JSON, by one thread.",
        events / EXCHANGES
    );
    text
}
