//! The stage as a whole, over frozen nodes and with a worker that is slow, stuck, or missing.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender as Channel, channel};

use super::cgroup::Hierarchies;
use super::host::HostRoot;
use super::process::Clock;
use super::worker::{HostLookup, Lookup as Answers};
use super::*;
use crate::record::{Body, Connection, Dialect, Exchange, ExchangeOutcome, Pod, Request, SECOND};

const ID: &str = "0f8a1c5d9b3e7a2f4c6d8e0b1a3c5e7f9d2b4a6c8e0f1a3b5c7d9e1f3a5b7c9d";
const UID: &str = "6e1c5a52-3f0b-4a7e-9d0c-2b8f4a1e7c33";
const START: Time = Time(1_700_000_000 * SECOND);
const MS: u64 = 1_000_000;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/attribution")
}

/// Rows of a table: fields between semicolons, empty for null.
fn rows(name: &str) -> Vec<Vec<Option<String>>> {
    let text = std::fs::read_to_string(fixtures().join(name)).unwrap();
    let rows: Vec<_> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            line.split(';')
                .map(|field| Some(field.trim().to_owned()).filter(|field| !field.is_empty()))
                .collect()
        })
        .collect();
    assert!(rows.len() >= 10, "{name} has its rows");
    rows
}

#[test]
fn every_layout_of_a_cgroup_path() {
    for row in rows("cgroup-paths.csv") {
        let [layout, path, id, runtime, pod, known] = <[_; 6]>::try_from(row).unwrap();
        let layout = layout.unwrap();
        let found = container::from_cgroup(&path.unwrap()).unwrap_or_else(|| panic!("{layout}: no container"));
        assert_eq!(Some(found.container.id), id, "{layout}");
        assert_eq!(found.container.runtime, runtime, "{layout}");
        assert_eq!(found.container.pod.and_then(|pod| pod.uid), pod, "{layout}");
        assert_eq!(found.recognised, known.as_deref() == Some("yes"), "{layout}");
    }
}

#[test]
fn every_runtimes_state() {
    for row in rows("roots.csv") {
        let [
            root,
            id,
            hint,
            hinted_uid,
            runtime,
            name,
            image,
            namespace,
            pod_name,
            uid,
            complete,
        ] = <[_; 11]>::try_from(row).unwrap();
        let root = root.unwrap();
        let container = Container {
            id: id.unwrap(),
            runtime: hint,
            name: None,
            image: None,
            pod: hinted_uid.map(|uid| Pod {
                namespace: None,
                name: None,
                uid: Some(uid),
                identity: None,
            }),
        };
        let names = names::find(&HostRoot::new(&fixtures().join("roots").join(&root)), &container);
        let at = format!("{root} {container:?}");
        assert_eq!(names.complete(), complete.as_deref() == Some("yes"), "{at}");
        let named = names.apply(&container);
        assert_eq!(named.runtime, runtime, "{at}");
        assert_eq!(named.name, name, "{at}");
        assert_eq!(named.image, image, "{at}");
        let pod = named.pod.unwrap_or(Pod {
            namespace: None,
            name: None,
            uid: None,
            identity: None,
        });
        assert_eq!((pod.namespace, pod.name, pod.uid), (namespace, pod_name, uid), "{at}");
    }
}

#[test]
fn a_process_of_a_frozen_node() {
    let host = HostRoot::new(&fixtures().join("roots/node"));
    let clock = Clock {
        ticks_per_s: 100,
        boot_to_wall_ns: START.0,
    };
    // 123456 ticks of 10 ms; the kernel knows the nanoseconds.
    let key = ProcessKey {
        start_time_ns: 1_234_567_654_321,
        tgid: 4242,
        exec_id: 3,
    };
    let cgroups = root_made(&[&format!("kubepods/besteffort/pod{UID}/{ID}")]);
    let read = |key| process::read(&host, &cgroups.1, key, clock).map(|found| found.process);
    let process = read(key).unwrap();
    assert_eq!(
        (process.pid, process.namespace_pid, process.uid),
        (4242, Some(17), Some(0))
    );
    assert_eq!(process.comm, "python3");
    assert_eq!(process.exe.as_deref(), Some("/usr/bin/python3.11"));
    assert_eq!(process.cmdline.unwrap(), ["python3", "-u", "app.py", ""]);
    assert_eq!(process.start_time, Some(START.plus_ns(1_234_560_000_000)));
    let ancestors: Vec<_> = process.ancestors.iter().map(|a| (a.pid, a.comm.as_str())).collect();
    assert_eq!(ancestors, [(4100, "bash (login) x"), (1, "systemd")]);
    // The v1 hierarchies name the container, v2 only the runtime's service.
    if nix::unistd::geteuid().is_root() {
        assert_eq!(process.cgroup, Some(format!("/kubepods/besteffort/pod{UID}/{ID}")));
    }
    assert_eq!(process.netns, Some(4_026_532_001));
    let reused = ProcessKey {
        start_time_ns: key.start_time_ns + 20 * MS,
        ..key
    };
    assert_eq!(read(reused), None);
    // Where the directories can't be looked at, their names identify nothing.
    let process = process::read(&host, &Hierarchies::default(), key, clock).unwrap();
    let cgroup = CgroupPath {
        path: process.process.cgroup.unwrap(),
        delegated: process.delegated,
    };
    assert_eq!(container::of(&cgroup), None);
}

/// A host whose v1 hierarchies have these directories, made by this test's user: root in CI.
fn root_made(paths: &[&str]) -> (tempfile::TempDir, Hierarchies) {
    let host = tempfile::tempdir().unwrap();
    let mut mounts = String::new();
    for (index, controller) in ["cpu", "memory", "pids", "name=systemd"].into_iter().enumerate() {
        for path in paths {
            let directory = host.path().join("cg").join(index.to_string()).join(path);
            std::fs::create_dir_all(directory).unwrap();
        }
        mounts.push_str(&format!(
            "3{index} 1 0:3{index} / /cg/{index} rw - cgroup cgroup rw,{controller}\n"
        ));
    }
    std::fs::create_dir_all(host.path().join("proc/1")).unwrap();
    std::fs::write(host.path().join("proc/1/mountinfo"), mounts).unwrap();
    let hierarchies = Hierarchies::of(&HostRoot::new(host.path()));
    (host, hierarchies)
}

fn key(tgid: u32) -> ProcessKey {
    ProcessKey {
        start_time_ns: 1,
        tgid,
        exec_id: 0,
    }
}

fn a_process(tgid: u32, cgroup: &str) -> Process {
    Process {
        pid: tgid,
        tid: Some(tgid),
        namespace_pid: None,
        comm: "curl".into(),
        exe: Some("/usr/bin/curl".into()),
        cmdline: Some(vec!["curl".into()]),
        uid: None,
        start_time: None,
        ancestors: Vec::new(),
        cgroup: Some(cgroup.to_owned()),
        netns: None,
    }
}

fn noted(tgid: u32, cgroup: &str) -> Event {
    Event::Process {
        key: key(tgid),
        process: Arc::new(a_process(tgid, cgroup)),
        cgroup_id: 1,
        delegated: 0,
        v1: None,
    }
}

fn described(pid: u32, cgroup: &str) -> Described {
    Described {
        process: a_process(pid, cgroup),
        delegated: 0,
        start_time_ns: 1,
    }
}

fn root_cgroup(path: &str) -> CgroupPath {
    CgroupPath {
        path: path.to_owned(),
        delegated: 0,
    }
}

fn pod_cgroup() -> String {
    format!("/kubepods/besteffort/pod{UID}/{ID}")
}

fn sender(tgid: u32, tid: u32) -> Sender {
    Sender {
        key: key(tgid),
        tid,
        cgroup_id: 77,
        netns: 5,
    }
}

fn fact(sender: Option<Sender>, flow: FlowId, time: Time) -> Fact {
    let exchange = Exchange {
        process: None,
        container: None,
        connection: Connection {
            id: String::new(),
            local: None,
            remote: String::new(),
            exchange: 1,
            interface: None,
            cgroup: None,
            netns: None,
            redirected_to: None,
        },
        request: Request {
            method: None,
            path: None,
            dialect: Dialect::Aws,
            imds_version: None,
            token: None,
            token_ttl_s: None,
            user_agent: None,
            ttl: None,
            forwarded: false,
            retransmits: 0,
            ttl_on_wire: Some(true),
            hops: None,
            endpoint: None,
            trace_id: None,
        },
        response: None,
        outcome: ExchangeOutcome::Answered,
        latency_ns: None,
        waited_ns: None,
        connect_ns: None,
        closed_by: None,
    };
    Fact {
        flow,
        sender,
        ifindex: 0,
        time,
        body: Body::Exchange(exchange),
    }
}

fn exchange(fact: Fact) -> Exchange {
    match fact.body {
        Body::Exchange(exchange) => exchange,
        other => panic!("{other:?}"),
    }
}

/// Answers only when released, and records its questions.
struct Gated {
    gate: Receiver<()>,
    asked: Channel<Question>,
    answer: fn(&Question) -> Answer,
}

impl Answers for Gated {
    fn answer(&mut self, question: Question) -> Answer {
        let _ = self.asked.send(question.clone());
        // A closed gate stays open.
        let _ = self.gate.recv();
        (self.answer)(&question)
    }
}

fn gated(answer: fn(&Question) -> Answer) -> (Option<Worker>, Channel<()>, Receiver<Question>) {
    let (open, gate) = channel();
    let (asked, questions) = channel();
    (
        Worker::start(Gated { gate, asked, answer }, Limits::default().questions),
        open,
        questions,
    )
}

fn knows_nothing(question: &Question) -> Answer {
    match question {
        Question::Process(key) => Answer::Process(*key, None),
        Question::Container(container) => Answer::Container(container.clone(), Box::default()),
        Question::Cgroup(id) => Answer::Cgroup(*id, None),
        Question::Interface(index) => Answer::Interface(*index, None),
        Question::Sockets => Answer::Sockets(Vec::new()),
    }
}

fn knows_all(question: &Question) -> Answer {
    match question {
        Question::Process(key) => Answer::Process(*key, Some(Box::new(described(key.tgid, "/found.service")))),
        Question::Container(container) => Answer::Container(
            container.clone(),
            Box::new(Names {
                name: Some("api".into()),
                pod_namespace: Some("payments".into()),
                pod_name: Some("api-7c9d".into()),
                pod_uid: Some(UID.into()),
                ..Names::default()
            }),
        ),
        Question::Cgroup(id) => Answer::Cgroup(*id, Some(root_cgroup(&format!("/machine.slice/libpod-{ID}.scope")))),
        Question::Interface(index) => Answer::Interface(*index, Some("tap0".into())),
        Question::Sockets => Answer::Sockets(vec![(99, key(50), described(50, "/old.service"))]),
    }
}

/// The next fact, once the worker has answered; the answers come when they come.
fn soon(attribution: &mut Attribution, now: Time) -> (Fact, Caller) {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(resolved) = attribution.next_resolved(now) {
            return resolved;
        }
        assert!(Instant::now() < end, "the worker never answered");
        std::thread::yield_now();
    }
}

#[test]
fn a_sender_gets_its_process_thread_and_container_and_an_unknown_sender_nothing() {
    let mut attribution = Attribution::new(Limits::default(), None);
    attribution.note(&noted(7, &pod_cgroup()));
    let whose = |sender| Whose {
        sender,
        flow: FlowId::Cookie(1),
        ifindex: 0,
    };
    let resolved = attribution.resolve(&whose(Some(sender(7, 9))), START);
    let process = resolved.caller.process.unwrap();
    assert_eq!((process.pid, process.tid), (7, Some(9)));
    assert_eq!(resolved.caller.container.unwrap().id, ID);
    assert!(!resolved.pending && resolved.netns.is_none(), "the process reports it");
    // A process that calls from several threads is one caller.
    let other = attribution.resolve(&whose(Some(sender(7, 10))), START);
    assert_eq!(other.caller.process.unwrap().tid, Some(10));
    let again = attribution.resolve(&whose(Some(sender(7, 9))), START);
    assert!(Arc::ptr_eq(&again.caller.process.unwrap(), &process));
    let unknown = attribution.resolve(&whose(Some(sender(8, 8))), START);
    assert_eq!(
        unknown,
        Resolved {
            netns: Some(5),
            ..Resolved::default()
        }
    );
    assert_eq!(attribution.resolve(&whose(None), START), Resolved::default());
    // The same PID after execve, or after reuse, is another caller.
    let other = Sender {
        key: ProcessKey { exec_id: 1, ..key(7) },
        ..sender(7, 7)
    };
    assert_eq!(
        attribution.resolve(&whose(Some(other)), START).caller,
        Caller::default()
    );
}

#[test]
fn forgetting_counts_only_those_that_were_in_use() {
    let limits = Limits {
        processes: 2,
        ..Limits::default()
    };
    let mut attribution = Attribution::new(limits, None);
    for tgid in 1..=5 {
        attribution.note(&noted(tgid, "/"));
        attribution.note(&noted(tgid, "/"));
    }
    assert_eq!(attribution.evicted(), 3);
    attribution.submit(fact(None, FlowId::Cookie(1), START), START.plus_ns(60 * SECOND));
    attribution.note(&noted(6, "/"));
    assert_eq!(attribution.evicted(), 3, "4 had been silent for long");
}

#[test]
fn a_fact_waits_for_its_names_and_those_behind_it_keep_their_place() {
    let (worker, open, _asked) = gated(knows_all);
    let mut attribution = Attribution::new(Limits::default(), worker);
    attribution.note(&noted(7, &pod_cgroup()));
    attribution.note(&noted(8, "/app.service"));
    attribution.submit(fact(Some(sender(7, 7)), FlowId::Cookie(1), START), START);
    attribution.submit(fact(Some(sender(8, 8)), FlowId::Cookie(2), START.plus_ns(1)), START);
    assert_eq!(attribution.next_resolved(START.plus_ns(150 * MS)), None);
    drop(open);
    let (first, caller) = soon(&mut attribution, START.plus_ns(150 * MS));
    assert_eq!(first.time, START);
    let container = caller.container.unwrap();
    assert_eq!(container.name.as_deref(), Some("api"));
    assert_eq!(container.pod.as_ref().unwrap().name.as_deref(), Some("api-7c9d"));
    let (second, caller) = attribution.next_resolved(START.plus_ns(150 * MS)).unwrap();
    assert_eq!(second.time, START.plus_ns(1));
    assert_eq!(caller.process.unwrap().pid, 8);
    assert_eq!(attribution.unknown_containers(), 0);
}

#[test]
fn nobody_waits_longer_than_the_patience_and_only_once_a_container() {
    let (worker, open, _asked) = gated(knows_nothing);
    let mut attribution = Attribution::new(Limits::default(), worker);
    attribution.note(&noted(7, &pod_cgroup()));
    let end = START.plus_ns(200 * MS);
    attribution.submit(fact(Some(sender(7, 7)), FlowId::Cookie(1), START), START);
    assert_eq!(attribution.next_resolved(end.minus_ns(1)), None);
    let (_, caller) = attribution.next_resolved(end).unwrap();
    let container = caller.container.unwrap();
    assert_eq!((container.id.as_str(), &container.name), (ID, &None), "what is known");
    assert_eq!(attribution.unknown_containers(), 1);
    attribution.submit(fact(Some(sender(7, 7)), FlowId::Cookie(1), end), end);
    assert!(attribution.next_resolved(end).is_some(), "it had its chance");
    assert_eq!(attribution.unknown_containers(), 1, "counted once");
    drop(open);
    // A clock that is set back lets everything go.
    attribution.note(&noted(
        9,
        "/kubepods/besteffort/pod6e1c5a52-3f0b-4a7e-9d0c-2b8f4a1e7c34/web",
    ));
    attribution.submit(fact(Some(sender(9, 9)), FlowId::Cookie(1), end), end);
    assert!(attribution.next_resolved(START.minus_ns(3_600 * SECOND)).is_some());
}

#[test]
fn a_log_tree_that_appears_later_is_found() {
    let root = tempfile::tempdir().unwrap();
    let mut attribution = Attribution::new(
        Limits::default(),
        Worker::start(HostLookup::new(root.path(), Vec::new()), Limits::default().questions),
    );
    attribution.note(&noted(7, &pod_cgroup()));
    attribution.submit(fact(Some(sender(7, 7)), FlowId::Cookie(1), START), START);
    let (_, caller) = attribution.next_resolved(START.plus_ns(SECOND)).unwrap();
    assert_eq!(caller.container.unwrap().name, None);
    let logs = root.path().join("var/log/containers");
    std::fs::create_dir_all(&logs).unwrap();
    std::fs::write(logs.join(format!("api-7c9d_payments_api-{ID}.log")), "").unwrap();
    let mut now = START.plus_ns(SECOND);
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        now = now.plus_ns(10 * MS);
        attribution.submit(fact(Some(sender(7, 7)), FlowId::Cookie(1), now), now);
        let (_, caller) = attribution.next_resolved(now).unwrap();
        let container = caller.container.unwrap();
        if container.name.is_some() {
            let pod = container.pod.as_ref().unwrap();
            assert_eq!(pod.namespace.as_deref(), Some("payments"));
            assert_eq!(pod.uid.as_deref(), Some(UID));
            break;
        }
        assert!(Instant::now() < end, "asked again, and found");
        std::thread::yield_now();
    }
}

#[test]
fn what_the_kernel_side_lost_is_asked_for() {
    let (worker, open, _asked) = gated(knows_all);
    drop(open);
    let mut attribution = Attribution::new(Limits::default(), worker);
    // A key without description.
    attribution.submit(fact(Some(sender(30, 31)), FlowId::Cookie(1), START), START);
    let (_, caller) = soon(&mut attribution, START);
    let process = caller.process.unwrap();
    assert_eq!((process.pid, process.tid), (30, Some(31)));
    assert_eq!(process.cgroup.as_deref(), Some("/found.service"));
    // A socket that was there before.
    attribution.submit(fact(None, FlowId::Cookie(99), START), START);
    let (_, caller) = soon(&mut attribution, START);
    assert_eq!(caller.process.unwrap().pid, 50);
    // A socket without process: its cgroup and namespace are recorded, and the container that the cgroup names.
    let nobody = Sender {
        key: ProcessKey::default(),
        ..sender(0, 0)
    };
    attribution.submit(fact(Some(nobody), FlowId::Cookie(5), START), START);
    // No process has that cookie, which only time shows.
    assert_eq!(attribution.next_resolved(START.plus_ns(100 * MS)), None);
    let (fact_, caller) = attribution.next_resolved(START.plus_ns(200 * MS)).unwrap();
    assert_eq!(caller.process, None);
    let connection = exchange(fact_).connection;
    assert_eq!(connection.netns, Some(5));
    let _ = connection.cgroup;
    attribution.submit(fact(Some(nobody), FlowId::Cookie(5), START), START.plus_ns(201 * MS));
    let (fact_, caller) = soon(&mut attribution, START.plus_ns(201 * MS));
    assert_eq!(
        exchange(fact_).connection.cgroup,
        Some(format!("/machine.slice/libpod-{ID}.scope"))
    );
    assert_eq!(caller.container.unwrap().runtime.as_deref(), Some("podman"));
}

#[test]
fn traffic_without_a_socket_is_the_interfaces() {
    let (worker, open, _asked) = gated(knows_all);
    drop(open);
    let mut attribution = Attribution::new(Limits::default(), worker);
    let flow = FlowId::Addresses {
        local: "10.0.0.9:4000".parse().unwrap(),
        remote: "169.254.169.254:80".parse().unwrap(),
    };
    let mut fact = fact(None, flow, START);
    fact.ifindex = 12;
    attribution.submit(fact, START);
    let (fact, caller) = soon(&mut attribution, START);
    assert_eq!(caller, Caller::default());
    assert_eq!(exchange(fact).connection.interface.as_deref(), Some("tap0"));
}

#[test]
fn gaps_in_a_description_are_filled() {
    fn the_rest(question: &Question) -> Answer {
        match question {
            Question::Process(key) => Answer::Process(*key, Some(Box::new(described(key.tgid, "/app.service")))),
            other => knows_nothing(other),
        }
    }
    let (worker, open, _asked) = gated(the_rest);
    drop(open);
    let mut attribution = Attribution::new(Limits::default(), worker);
    let process = Process {
        cmdline: None,
        ..a_process(7, "/app.service")
    };
    attribution.note(&Event::Process {
        key: key(7),
        process: Arc::new(process),
        cgroup_id: 1,
        delegated: 0,
        v1: None,
    });
    attribution.submit(fact(Some(sender(7, 7)), FlowId::Cookie(1), START), START);
    let (_, caller) = soon(&mut attribution, START);
    assert_eq!(
        caller.process.unwrap().cmdline.as_deref(),
        Some(&["curl".to_owned()][..])
    );
}

/// 5,000 exchanges a second for 5 s, from 250 processes in 50 containers, while the worker is stuck in its first look at `/proc`.
/// That a call would wait for it shows as a test that never ends.
#[test]
fn at_5000_a_second_with_a_stuck_proc_nothing_is_lost_or_late() {
    let (worker, open, asked) = gated(knows_all);
    let mut attribution = Attribution::new(Limits::default(), worker);
    // It is in there now.
    asked.recv().unwrap();
    let containers: Vec<_> = (0..50)
        .map(|number| format!("/kubepods/besteffort/pod{UID}/{number:064x}"))
        .collect();
    for tgid in 1..=250 {
        attribution.note(&noted(tgid, &containers[tgid as usize % 50]));
    }
    let (mut out, mut longest) = (0_u64, 0);
    let step = SECOND / 5_000;
    for number in 0..25_000_u64 {
        let now = START.plus_ns(number * step);
        // One in a hundred has no description at all.
        let tgid = if number % 100 == 0 {
            10_000 + number as u32
        } else {
            1 + (number % 250) as u32
        };
        attribution.submit(fact(Some(sender(tgid, tgid)), FlowId::Cookie(number), now), now);
        longest = longest.max(attribution.pending.len());
        while let Some((fact, caller)) = attribution.next_resolved(now) {
            assert_eq!(fact.time, START.plus_ns(out * step), "in order");
            assert_eq!(
                caller.process.is_none(),
                out % 100 == 0,
                "known is known, unknown nobody's"
            );
            out += 1;
        }
    }
    let last = START.plus_ns(25_000 * step);
    // A fifth of a second's worth at most.
    assert!(longest <= 1_001, "{longest}");
    drop(open);
    attribution.finish(last, |fact, _| {
        assert_eq!(fact.time, START.plus_ns(out * step));
        out += 1;
    });
    assert_eq!(out, 25_000);
    assert_eq!(attribution.evicted(), 0);
}

#[test]
fn a_full_queue_lets_the_oldest_go_and_not_get_lost() {
    let (worker, _open, _asked) = gated(knows_all);
    let limits = Limits {
        pending: 10,
        ..Limits::default()
    };
    let mut attribution = Attribution::new(limits, worker);
    attribution.note(&noted(7, &pod_cgroup()));
    let mut out = 0;
    for number in 0..100 {
        attribution.submit(fact(Some(sender(7, 7)), FlowId::Cookie(number), START), START);
        while attribution.next_resolved(START).is_some() {
            out += 1;
        }
        assert!(attribution.pending.len() <= 10);
    }
    assert_eq!(out, 90);
}

/// A record names the cgroup in which the process was at that time.
#[test]
fn a_process_that_is_moved_calls_from_where_it_is() {
    let mut attribution = Attribution::new(Limits::default(), None);
    let cgroup = |number: u64| format!("/docker/{number:064x}");
    let announced = |number: u64| Event::Process {
        key: key(7),
        process: Arc::new(a_process(7, &cgroup(number))),
        cgroup_id: number,
        delegated: 0,
        v1: None,
    };
    let from = |number: u64| {
        let at = Sender {
            cgroup_id: number,
            ..sender(7, 7)
        };
        fact(Some(at), FlowId::Cookie(number), START)
    };
    let container = |attribution: &mut Attribution, number: u64| {
        attribution.submit(from(number), START);
        let (_, caller) = attribution.next_resolved(START).unwrap();
        assert_eq!(caller.process.unwrap().pid, 7);
        caller.container.unwrap().id.clone()
    };
    attribution.note(&announced(1));
    assert_eq!(container(&mut attribution, 1), format!("{:064x}", 1));
    attribution.note(&announced(2));
    assert_eq!(container(&mut attribution, 2), format!("{:064x}", 2));
    assert_eq!(
        container(&mut attribution, 1),
        format!("{:064x}", 1),
        "asked before the move"
    );
    assert_eq!(
        container(&mut attribution, 99),
        format!("{:064x}", 2),
        "never described: the newest"
    );
    // And back, and on: a bounded number is remembered.
    for number in [1, 2, 1, 3, 4, 5, 6, 7, 8] {
        attribution.note(&announced(number));
        assert_eq!(container(&mut attribution, number), format!("{number:064x}"));
    }
    assert_eq!(container(&mut attribution, 4), format!("{:064x}", 4));
    assert_eq!(container(&mut attribution, 3), format!("{:064x}", 8), "forgotten");
}

#[test]
fn on_hybrid_hosts_the_container_may_be_in_v1_alone() {
    let caller = |cgroup: &str, delegated: usize, v1: Option<(&str, usize)>| {
        let mut attribution = Attribution::new(Limits::default(), None);
        attribution.note(&Event::Process {
            key: key(7),
            process: Arc::new(a_process(7, cgroup)),
            cgroup_id: 1,
            delegated,
            v1: v1.map(|(path, delegated)| CgroupPath {
                path: path.to_owned(),
                delegated,
            }),
        });
        attribution.submit(fact(Some(sender(7, 7)), FlowId::Cookie(1), START), START);
        let (_, caller) = attribution.next_resolved(START).unwrap();
        let id = caller.container.map(|container| container.id.clone());
        (caller.process.unwrap().cgroup.clone().unwrap(), id)
    };
    let (docker, pod) = (format!("/docker/{ID}"), pod_cgroup());
    let named = |path: &str| (path.to_owned(), Some(ID.to_owned()));
    let service = "/system.slice/containerd.service";
    assert_eq!(caller(service, 0, Some((&docker, 0))), named(&docker));
    assert_eq!(caller(service, 0, Some((&pod, 0))), named(&pod));
    assert_eq!(caller("/", 0, Some((&docker, 0))), named(&docker));
    assert_eq!(
        caller(&pod, 0, Some(("/docker/x", 0))),
        named(&pod),
        "v2 says it itself"
    );
    assert_eq!(
        caller(service, 0, Some(("/other.slice", 0))),
        (service.to_owned(), None)
    );
    assert_eq!(
        caller("/", 0, Some(("/other.slice", 0))),
        ("/other.slice".to_owned(), None)
    );
    assert_eq!(caller(service, 0, None), (service.to_owned(), None));
    // Names that a user chose, in either hierarchy.
    assert_eq!(caller(&pod, 3, None), (pod.clone(), None));
    assert_eq!(caller(service, 0, Some((&docker, 1))), (service.to_owned(), None));
    assert_eq!(caller(&pod, 3, Some((&docker, 0))), named(&docker));
}
