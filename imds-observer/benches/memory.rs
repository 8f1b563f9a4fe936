//! What does each limit of the configuration bound, in bytes?
//!
//! `cargo xtask bench memory` runs it and puts the table into docs/benchmarks.md. Each table is filled to its limit by a client that does
//! its worst, with every name as long as it may be. Where several limits bound one thing, a limit's part is what is held less when it is 1.

mod allocator;
mod hostile;

use std::fmt::Write as _;
use std::io::{self, Cursor};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel, sync_channel};
use std::time::Duration;

use bytes::Bytes;
use imds_observer::attribution::worker::{Answer, Lookup, Question, Worker};
use imds_observer::attribution::{self, Attribution};
use imds_observer::config::Limits;
use imds_observer::detectors::{self, DetectorConfig, Detectors, Observation};
use imds_observer::event::{
    ConnectAttempt, Direction, Event, FlowId, InterfaceSample, Packet, ProcessKey, Sender, Vantage,
};
use imds_observer::exchange::{self, Fact, FlowTable};
use imds_observer::filter::Kinds;
use imds_observer::host_facts::HostFacts;
use imds_observer::hosts::RecordedHosts;
use imds_observer::imds::Hasher;
use imds_observer::metrics::{self, MetricsSink};
use imds_observer::preflight::{Change, Preflight};
use imds_observer::record::{Body, Exchange, Finding, Host, Process, Record, SECOND, Time};
use imds_observer::report;
use imds_observer::report::history::History;
use imds_observer::sinks::collect::Collector;
use imds_observer::sinks::destination::Destination;
use imds_observer::sinks::ndjson::{Line, NdjsonOutput};
use imds_observer::sinks::queue::Queue;
use imds_observer::sinks::{Item as _, Output, Sink};
use imds_observer::source::input::Input;
use imds_observer::source::traces::Traces;
use imds_observer::source::{self, Source, SourceState};
use imds_observer::summary::{self, Summarizer};
use imds_observer::watch::state::{self, State};

use allocator::held;
use hostile::{connect, drop_of, hostile as process};

/// Key, entries, bytes.
type Row = (&'static str, usize, usize);

/// Bytes that `make`'s result holds. What it makes on the way is gone by then.
fn of<T>(make: impl FnOnce() -> T) -> usize {
    let before = held();
    let made = make();
    let after = held();
    drop(made);
    after.saturating_sub(before)
}

/// Bytes that are held less with a limit at its least.
fn part<L: Copy, T>(limits: L, least: impl FnOnce(&mut L), make: impl Fn(L) -> T) -> usize {
    let mut smaller = limits;
    least(&mut smaller);
    of(|| make(limits)).saturating_sub(of(|| make(smaller)))
}

fn host() -> Host {
    Host::from("node-1")
}

fn exchange(n: u64) -> Record<Exchange> {
    hostile::exchange(n, &process(n), &host())
}

fn record(n: u64) -> Arc<Record> {
    Arc::new(exchange(n).into())
}

fn main() {
    // As cargo and criterion have it: whether it works.
    let short = std::env::args().any(|argument| argument == "--test");
    let limits = if short { small() } else { Limits::default() };
    let mut rows = Vec::new();
    outputs(&limits, &mut rows);
    flow(limits.flow, &mut rows);
    attribution(limits.attribution, &mut rows);
    detectors(limits.detectors, if short { 5_000 } else { 50_000 }, &mut rows);
    summary(limits.summary, &mut rows);
    metrics(&limits, &mut rows);
    traces(limits.traces, &mut rows);
    report(limits.report, &mut rows);
    watch(limits.watch, &mut rows);

    let mut text = String::from("| limit | entries | MiB | bytes each |\n|---|---|---|---|\n");
    for (key, entries, bytes) in rows {
        assert!(bytes > 0, "{key}: nothing was held");
        let mib = bytes as f64 / f64::from(1 << 20);
        let _ = writeln!(
            text,
            "| `{key}` | {entries} | {mib:.2} | {:.0} |",
            bytes as f64 / entries as f64
        );
    }
    println!("{text}");
    if let Some(path) = std::env::var_os("IMDS_OBSERVER_BENCH_TABLE") {
        std::fs::write(path, text).expect("write the table");
    }
}

/// Smaller limits for tables that take long to fill.
fn small() -> Limits {
    let mut limits = Limits {
        queue: 512,
        held_bytes: 64 << 10,
        ..Limits::default()
    };
    limits.flow.flows = 1_024;
    limits.attribution.processes = 1_024;
    limits.attribution.containers = 1_024;
    limits.attribution.pending = 1_024;
    limits.attribution.lookups = 1_024;
    limits.summary.distinct = 256;
    limits.traces.callers = 512;
    limits.report.findings = 500;
    limits.report.judged_workloads = 500;
    limits.report.hosts = 1_000;
    limits.watch.distinct = 256;
    limits
}

/// Takes nothing until the test lets it go.
struct Stuck(Receiver<()>);

impl Output for Stuck {
    type Item = Line;

    fn write(&mut self, _: &[Line]) -> io::Result<u64> {
        let _ = self.0.recv();
        Ok(0)
    }
}

fn outputs(limits: &Limits, rows: &mut Vec<Row>) {
    let waiting = |budget: usize| {
        let (go, stuck) = channel();
        let before = held();
        let mut queue = Queue::new(Stuck(stuck), Kinds::ALL, limits.queue)
            .expect("start the writer")
            .with_budget(budget);
        for n in 0..2 * limits.queue as u64 {
            queue.write(&record(n));
        }
        let bytes = held() - before;
        // Its thread must be gone before the next is measured.
        drop(go);
        queue.finish().expect("end the writer");
        bytes
    };
    rows.push(("queue", limits.queue, waiting(usize::MAX)));
    rows.push(("queue_bytes", limits.queue_bytes, waiting(limits.queue_bytes)));

    let findings: Vec<Line> = findings().iter().map(Line::of).collect();
    let bytes = of(|| {
        let full = Destination::file(Path::new("/dev/full"), None).expect("open /dev/full");
        let mut output = NdjsonOutput::new(full, limits.held_bytes);
        for finding in findings.iter().cycle().take(4 * findings.len()) {
            output
                .write(std::slice::from_ref(finding))
                .expect("a full disk is no error");
        }
        output
    });
    rows.push(("held_bytes", limits.held_bytes, bytes));
}

/// One for each of many subjects.
fn findings() -> Vec<Arc<Record>> {
    let mut detectors = Detectors::new(&DetectorConfig::default(), HostFacts::default());
    let mut found: Vec<Record<Finding>> = Vec::new();
    for n in 0..20_000 {
        detectors.observe(&Observation::Exchange(exchange(n).by_ref()), &mut found);
    }
    found.into_iter().map(|finding| Arc::new(finding.into())).collect()
}

/// Tokens, and processes, that a row distinguishes whatever other rows do.
const OWN_DISTINCT: usize = 128;
/// Shared limit of distinct values for all rows, as a multiple of one row's limit.
const SHARED_DISTINCT: usize = 32;

const BEGIN: Time = Time(1_700_000_000 * SECOND);

fn local(n: u64) -> SocketAddr {
    SocketAddr::from(([10, (n >> 16) as u8, (n >> 8) as u8, n as u8], 40_000))
}

fn remote() -> SocketAddr {
    SocketAddr::from(([169, 254, 169, 254], 80))
}

fn sender(n: u64) -> Sender {
    Sender {
        key: key(n),
        tid: 1,
        cgroup_id: 0,
        netns: 0,
    }
}

fn key(n: u64) -> ProcessKey {
    ProcessKey {
        start_time_ns: n,
        tgid: n as u32 + 2,
        exec_id: 1,
    }
}

/// A packet of connection `n`, from byte `seq` of its request on.
fn packet(n: u64, seq: u32, data: Bytes) -> Event {
    Event::Packet(Packet {
        time: BEGIN,
        vantage: Vantage::Socket,
        flow: FlowId::Cookie(n),
        direction: Direction::Request,
        local: local(n),
        remote: remote(),
        sender: Some(sender(n)),
        seq,
        ack: 1,
        tcp_flags: Packet::ACK,
        ttl: 64,
        payload_len: data.len() as u32,
        data,
        cut: false,
        retransmit: false,
        icmp: None,
        ifindex: 0,
    })
}

fn head(n: u64) -> Bytes {
    let long = "x".repeat(500);
    format!(
        "GET /latest/{long}{n} HTTP/1.1\r\nUser-Agent: {}{n}\r\nX-aws-ec2-metadata-token: MADEUP{n:060}\r\n\r\n",
        &long[..250]
    )
    .into()
}

fn flow(limits: exchange::Limits, rows: &mut Vec<Row>) {
    let without_budget = exchange::Limits {
        budget_bytes: usize::MAX,
        ..limits
    };
    let table = || FlowTable::new(without_budget, Hasher::with_salt(1, 2));
    let connection = |table: &mut FlowTable, n: u64, requests: usize| {
        let mut facts: Vec<Fact> = Vec::new();
        table.handle(
            &Event::Connect(ConnectAttempt {
                time: BEGIN,
                flow: FlowId::Cookie(n),
                remote: remote(),
                sender: sender(n),
            }),
            &mut facts,
        );
        let mut seq = 1;
        for number in 0..requests {
            let head = head(number as u64);
            let len = head.len() as u32;
            table.handle(&packet(n, seq, head), &mut facts);
            seq += len;
        }
    };
    let flows = of(|| {
        let mut table = table();
        for n in 0..limits.flows as u64 {
            connection(&mut table, n, 1);
        }
        assert_eq!(table.len(), limits.flows);
        table
    });
    rows.push(("flow.flows", limits.flows, flows));
    let budget = of(|| {
        let mut table = FlowTable::new(limits, Hasher::with_salt(1, 2));
        // Twice what it can hold.
        for n in 0..(2 * limits.budget_bytes / (limits.pending << 10)) as u64 {
            connection(&mut table, n, limits.pending);
        }
        table
    });
    rows.push(("flow.budget_bytes", limits.budget_bytes, budget));
    let with = |requests| {
        of(|| {
            let mut table = table();
            connection(&mut table, 1, requests);
            table
        })
    };
    rows.push(("flow.pending", limits.pending, with(limits.pending) - with(0)));

    let gap = |pieces: usize| {
        of(|| {
            let mut table = table();
            connection(&mut table, 1, 1);
            for piece in 1..=pieces as u32 {
                // Each behind a gap.
                table.handle(
                    &packet(1, 10_000 + piece * 2_000, Bytes::from(vec![b'x'; 512])),
                    &mut Vec::new(),
                );
            }
            table
        })
    };
    let pieces = limits.stream.pieces;
    rows.push(("flow.stream.pieces", pieces, gap(pieces) - gap(0)));
}

/// Emits nothing while it is held.
struct Silent(
    Receiver<()>,
    #[expect(dead_code, reason = "reports how long it lives")] Arc<()>,
);

impl Lookup for Silent {
    fn answer(&mut self, question: Question) -> Answer {
        let _ = self.0.recv();
        match question {
            Question::Process(key) => Answer::Process(key, None),
            Question::Container(container) => Answer::Container(container, Box::default()),
            Question::Cgroup(id) => Answer::Cgroup(id, None),
            Question::Interface(index) => Answer::Interface(index, None),
            Question::Sockets => Answer::Sockets(Vec::new()),
        }
    }
}

fn attribution(limits: attribution::Limits, rows: &mut Vec<Row>) {
    let known = |attribution: &mut Attribution, n: u64, process: Process| {
        attribution.note(&Event::Process {
            key: key(n),
            process: Arc::new(process),
            cgroup_id: n,
            delegated: 0,
            v1: None,
        });
    };
    let bytes = of(|| {
        let mut attribution = Attribution::new(limits, None);
        for n in 0..2 * limits.processes as u64 {
            known(&mut attribution, n, Process::clone(&process(n)));
        }
        attribution
    });
    rows.push(("attribution.processes", limits.processes, bytes));
    let bytes = part(
        limits,
        |limits| limits.containers = 1,
        |limits| {
            let mut attribution = Attribution::new(limits, None);
            for n in 0..2 * limits.containers.max(1000) as u64 {
                let of_container = Process {
                    cgroup: Some(format!(
                        "/kubepods.slice/kubepods-pod0a1b2c3d_0000_4000_8000_{n:012x}.slice/cri-containerd-{n:064x}.scope"
                    )),
                    ..Process::clone(&process(n))
                };
                known(&mut attribution, n, of_container);
            }
            attribution
        },
    );
    rows.push(("attribution.containers", limits.containers, bytes));

    // A question that is never answered, so that everything waits.
    let waiting = |limits: attribution::Limits, facts: u64| {
        let (go, silent) = channel();
        let alive = Arc::new(());
        let bytes = of(|| {
            let worker = Worker::start(Silent(silent, alive.clone()), limits.questions);
            let mut attribution = Attribution::new(limits, worker);
            for n in 0..facts {
                attribution.submit(fact(n), BEGIN);
                while attribution.next_resolved(BEGIN).is_some() {}
            }
            attribution
        });
        drop(go);
        while Arc::strong_count(&alive) > 1 {
            std::thread::yield_now();
        }
        bytes
    };
    let (pending, lookups) = (limits.pending as u64, limits.lookups as u64);
    let few = attribution::Limits { lookups: 1, ..limits };
    rows.push((
        "attribution.pending",
        limits.pending,
        waiting(few, 2 * pending).saturating_sub(waiting(few, 1)),
    ));
    rows.push((
        "attribution.lookups",
        limits.lookups,
        waiting(limits, lookups).saturating_sub(waiting(few, lookups)),
    ));
    rows.push((
        "attribution.questions",
        limits.questions,
        // Both queues take their room at once.
        of(|| {
            (
                sync_channel::<Question>(limits.questions),
                sync_channel::<Answer>(limits.questions),
            )
        }),
    ));
}

/// As the flow table emits it, for a client without a description.
fn fact(n: u64) -> Fact {
    Fact {
        flow: FlowId::Cookie(n),
        sender: Some(sender(n)),
        ifindex: 0,
        time: BEGIN,
        body: Record::from(exchange(n)).body,
    }
}

fn detectors(limits: detectors::Limits, exchanges: u64, rows: &mut Vec<Row>) {
    let fill = |limits| {
        let mut detectors = Detectors::with_limits(&DetectorConfig::default(), limits, facts());
        let mut findings = Vec::new();
        for n in 0..exchanges {
            // Ten requests of each process, all at different times.
            let exchange = hostile::exchange(n, &process(n % 10_000), &host());
            detectors.observe(&Observation::Exchange(exchange.by_ref()), &mut findings);
            if n.is_multiple_of(10) {
                detectors.observe(&Observation::Connect(connect(n, &exchange).by_ref()), &mut findings);
                detectors.observe(&Observation::Drop(drop_of(n, &exchange).by_ref()), &mut findings);
            }
            findings.clear();
        }
        detectors
    };
    let all = of(|| fill(limits));
    let mut row = |key, entries, least: fn(&mut detectors::Limits)| {
        let mut smaller = limits;
        least(&mut smaller);
        rows.push((key, entries, all.saturating_sub(of(|| fill(smaller)))));
    };
    row("detectors.clients", limits.clients, |limits| limits.clients = 1);
    row("detectors.paths", limits.paths, |limits| limits.paths = 1);
    row("detectors.places", limits.places, |limits| limits.places = 1);
    row("detectors.connections", limits.connections, |limits| {
        limits.connections = 1;
    });
    row("detectors.callers", limits.callers, |limits| limits.callers = 1);
    row("detectors.findings", limits.findings, |limits| limits.findings = 1);
    let counted = |limits| {
        let mut detectors = Detectors::with_limits(&DetectorConfig::default(), limits, facts());
        for n in 0..256 {
            detectors.observe(&Observation::Interface(&sample(n, BEGIN)), &mut Vec::new());
        }
        detectors
    };
    let bytes = part(limits, |limits| limits.interfaces = 1, counted);
    rows.push(("detectors.interfaces", limits.interfaces, bytes));
    rows.push(("detectors (all of one host)", 1, all));
}

fn facts() -> HostFacts {
    HostFacts {
        name: host(),
        netns: Some(1),
        ..HostFacts::default()
    }
}

fn sample(n: u64, time: Time) -> InterfaceSample {
    InterfaceSample {
        time,
        name: format!("interface-{n}").into(),
        interval_ns: SECOND,
        egress: [2_000, 10, 1, 0],
        ingress: [2_000, 10, 1, 0],
        allowance_exceeded: Some(1),
        resolver: None,
    }
}

/// A group of its own for each number; `turn` changes the values distinguished in it.
fn of_group(group: u64, turn: u64) -> Record<Exchange> {
    let mut member = Process::clone(&process(group));
    member.start_time = Some(Time(turn));
    // Groups and workloads are named by the beginning of a name that is too long.
    member.exe = Some(format!("/opt/{group:06}{}", "x".repeat(480)));
    let mut exchange = hostile::exchange(group * 10_000 + turn, &Arc::new(member), &host());
    exchange.time = BEGIN;
    exchange
}

/// Enough for every bound: `groups` of them, each with so many tokens and processes, and paths.
fn groups(groups: usize, turns: usize) -> impl Iterator<Item = Record<Exchange>> {
    (0..groups as u64).flat_map(move |group| (0..turns as u64).map(move |turn| of_group(group, turn)))
}

fn summary(limits: summary::Limits, rows: &mut Vec<Row>) {
    let fill = |limits: summary::Limits| {
        let mut summarizer = Summarizer::new(limits);
        for exchange in groups(limits.groups, limits.distinct) {
            summarizer.exchange(exchange.by_ref());
        }
        assert_eq!(summarizer.total(BEGIN).processes.len(), limits.groups);
        summarizer
    };
    // Fewer rows, as full as all: filling takes time.
    let few = summary::Limits {
        groups: 4,
        callers: 1,
        ..limits
    };
    // A row with the values that it distinguishes whatever others do. What all rows share is the limit's below.
    let own = summary::Limits {
        distinct: OWN_DISTINCT,
        ..few
    };
    let row = of(|| fill(own)) / few.groups;
    rows.push(("summary.groups", limits.groups, row * limits.groups));
    let paths = part(few, |limits| limits.paths = 1, fill) / few.groups;
    rows.push(("summary.paths", limits.paths, paths));
    let full = |distinct| {
        let few = summary::Limits { distinct, ..few };
        of(|| {
            let mut summarizer = Summarizer::new(few);
            for exchange in groups(few.groups, limits.distinct) {
                summarizer.exchange(exchange.by_ref());
            }
            summarizer
        })
    };
    // Tokens and processes, for the interval and in total.
    let more = (limits.distinct - OWN_DISTINCT) * few.groups;
    let shared = SHARED_DISTINCT * limits.distinct;
    rows.push((
        "summary.distinct",
        shared,
        (full(limits.distinct) - full(OWN_DISTINCT)) / more * shared / 4,
    ));
    let interfaces = |limits: summary::Limits| {
        let mut summarizer = Summarizer::new(limits);
        for n in 0..limits.interfaces.max(256) as u64 {
            summarizer.interface(&sample(n, BEGIN));
        }
        summarizer
    };
    rows.push((
        "summary.interfaces",
        limits.interfaces,
        part(limits, |limits| limits.interfaces = 1, interfaces),
    ));
    let callers = |limits: summary::Limits| {
        let mut summarizer = Summarizer::new(summary::Limits { groups: 1, ..limits });
        for n in 0..2_048 {
            summarizer.exchange(exchange(n).by_ref());
        }
        summarizer
    };
    rows.push((
        "summary.callers",
        limits.callers,
        part(limits, |limits| limits.callers = 1, callers),
    ));
}

fn metrics(limits: &Limits, rows: &mut Vec<Row>) {
    let all = limits.metrics;
    let hour = limits.silence.0;
    let fill = |limits: metrics::Limits, statuses: u64| {
        let mut metrics = MetricsSink::new(limits, hour);
        for group in 0..256 {
            for status in 0..statuses {
                let mut exchange = of_group(group, 1);
                if let Some(response) = &mut exchange.response {
                    response.status = Some(100 + status as u16);
                }
                metrics.write(&Arc::new(exchange.into()));
            }
        }
        metrics
    };
    rows.push((
        "metrics.workloads",
        all.workloads,
        part(all, |limits| limits.workloads = 1, |limits| fill(limits, 17)),
    ));
    let statuses = part(all, |limits| limits.statuses = 1, |limits| fill(limits, 17)) / 256;
    rows.push(("metrics.statuses", all.statuses, statuses));
    let names = |limits: metrics::Limits| {
        let mut metrics = MetricsSink::new(limits, hour);
        let exchange = exchange(1);
        for n in 0..64 {
            let mut drop = drop_of(n, &exchange);
            drop.reason = Some(format!("REASON_{n}_{}", "X".repeat(40)));
            metrics.write(&Arc::new(drop.into()));
        }
        metrics
    };
    rows.push(("metrics.names", all.names, part(all, |limits| limits.names = 1, names)));
    let found = findings();
    let open = |limits: metrics::Limits| {
        let mut metrics = MetricsSink::new(limits, hour);
        for (n, finding) in found.iter().cycle().take(4_096).enumerate() {
            metrics.write(&renamed(finding, n));
        }
        metrics
    };
    let bytes = part(all, |limits| limits.open_findings = 1, open);
    rows.push(("metrics.open_findings", all.open_findings, bytes));
    let waiting = of(|| {
        let all: Vec<_> = (0..all.collector_findings)
            .map(|n| renamed(&found[n % found.len()], n))
            .collect();
        all
    });
    rows.push(("metrics.collector_findings", all.collector_findings, 2 * waiting));
}

/// A copy about another subject.
fn renamed(finding: &Arc<Record>, n: usize) -> Arc<Record> {
    let mut record = Record::clone(finding);
    let Body::Finding(finding) = &mut record.body else {
        unreachable!("they are findings");
    };
    let _ = write!(finding.subject.key, "-{n}");
    Arc::new(record)
}

fn traces(limits: source::Limits, rows: &mut Vec<Row>) {
    let text: Vec<u8> = (0..2 * limits.callers as u64)
        .flat_map(|n| {
            let mut line = serde_json::to_vec(&record(n)).expect("write to memory");
            line.push(b'\n');
            line
        })
        .collect();
    let read = |limits: source::Limits, records: usize| {
        let input = Input::new("trace".into(), Box::new(Cursor::new(text.clone()))).expect("read from memory");
        let mut traces = Traces::with_limits(vec![input], &[], &limits);
        let mut batch = Vec::new();
        let mut count = 0;
        while count < records && traces.next_batch(Duration::ZERO, &mut batch).expect("read") != SourceState::End {
            count += batch.len();
            batch.clear();
        }
        traces
    };
    let all = usize::MAX;
    rows.push((
        "traces.callers",
        limits.callers,
        part(limits, |limits| limits.callers = 1, |limits| read(limits, all)),
    ));
}

fn report(limits: report::Limits, rows: &mut Vec<Row>) {
    let found = findings();
    let collected = of(|| {
        let mut collector = Collector::new(limits.findings);
        for n in 0..limits.findings {
            collector.write(&renamed(&found[n % found.len()], n));
        }
        collector
    });
    rows.push(("report.findings", limits.findings, collected));
    let pictures = |limits: report::Limits| {
        let mut history = History::new(limits);
        for group in 0..200 {
            for turn in 0..120 {
                let mut exchange = of_group(group, turn);
                exchange.time = BEGIN.plus_ns(turn * SECOND);
                history.write(&Arc::new(exchange.into()));
            }
        }
        history
    };
    rows.push((
        "report.workloads",
        limits.workloads,
        part(limits, |limits| limits.workloads = 1, pictures),
    ));
    let judged = of(|| {
        let mut preflight = Preflight::new(
            vec![Change::TokensRequired, Change::EndpointDisabled],
            limits.judged_workloads,
        );
        for group in 0..limits.judged_workloads as u64 {
            for turn in [1, 2] {
                preflight.write(&Arc::new(of_group(group, turn).into()));
            }
        }
        preflight
    });
    rows.push(("report.judged_workloads", limits.judged_workloads, judged));
    let hosts = of(|| {
        let mut hosts = RecordedHosts::new(limits.hosts);
        for n in 0..limits.hosts {
            hosts.sees(
                &Host::from(format!("ip-10-0-{n}.eu-central-1.compute.internal").as_str()),
                BEGIN,
                true,
            );
        }
        hosts
    });
    rows.push(("report.hosts", limits.hosts, hosts));
}

fn watch(limits: state::Limits, rows: &mut Vec<Row>) {
    let few = 4;
    let fill = |limits: state::Limits| {
        let mut state = State::new(limits);
        for exchange in groups(few, limits.distinct.max(64)) {
            state.apply(&Arc::new(exchange.into()));
        }
        assert_eq!(state.rows.len(), few);
        state
    };
    let own = state::Limits {
        distinct: OWN_DISTINCT,
        ..limits
    };
    let row = of(|| fill(own)) / few;
    rows.push(("watch.rows", limits.rows, row * limits.rows));
    rows.push((
        "watch.last",
        limits.last,
        part(own, |limits| limits.last = 1, fill) / few,
    ));
    rows.push((
        "watch.paths",
        limits.paths,
        part(own, |limits| limits.paths = 1, fill) / few,
    ));
    let more = (limits.distinct - OWN_DISTINCT) * few;
    let shared = SHARED_DISTINCT * limits.distinct;
    rows.push((
        "watch.distinct",
        shared,
        part(limits, |limits| limits.distinct = OWN_DISTINCT, fill) / more * shared / 2,
    ));
    let found = findings();
    let bytes = of(|| {
        let mut state = State::new(limits);
        for n in 0..limits.findings {
            state.apply(&renamed(&found[n % found.len()], n));
        }
        state
    });
    rows.push(("watch.findings", limits.findings, bytes));
}
