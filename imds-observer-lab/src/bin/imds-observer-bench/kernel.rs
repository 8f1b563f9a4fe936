//! What does each kernel program take, beside an empty one on the same hook?
//!
//! The observer stands at one cgroup and one interface of the node, empty programs at another cgroup and another interface, and
//! the same traffic runs now here, now there. Hooks that the whole machine shares have both programs at the same time. Nothing is
//! attached to the root cgroup. The kernel's own count (`bpf_stats`) includes reading the clock twice, in both columns.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use imds_observer_lab::bpf::{self, Empty, EmptyAt, Runs};
use imds_observer_lab::topology::{IMDS_V4, Lab, LabOptions};
use nix::net::if_::if_nametoindex;

use crate::load::{Kind, Load, Made};
use crate::numbers::{Rounds, Table, verdict};
use crate::observer::{Observer, UPLINK};

const ROUNDS: usize = 5;
const CHUNK: Duration = Duration::from_millis(600);
const SINK: u16 = 5001;
const SOURCE: u16 = 5002;
/// Exchanges or processes a second, where nothing says otherwise.
const RATE: u64 = 500;
/// Exchanges under way at once when they follow each other as fast as they can.
const WIDTH: u64 = 16;
const TARGET_RATIO: f64 = 1.15;
const TARGET_EVENT_NS: f64 = 500.0;
const TARGET_CONNECT_NS: f64 = 1500.0;

/// Our programs, and what has an empty program beside each.
const PACKET_HOOKS: [&str; 4] = ["segment_egress", "segment_ingress", "wire_egress", "wire_ingress"];
const OTHER_HOOKS: [&str; 8] = [
    "connect4",
    "connect_tuple",
    "connect_exit",
    "connect_returned",
    "socket_state",
    "socket_state_btf",
    "socket_error",
    "drop_btf",
];

/// One kind of traffic.
struct Traffic {
    name: &'static str,
    kind: Kind,
    /// To IMDS, not to somebody else.
    imds: bool,
    hooks: &'static [&'static str],
}

const TRAFFIC: [Traffic; 8] = [
    Traffic {
        name: "foreign TCP, one stream",
        kind: Kind::Stream,
        imds: false,
        hooks: &PACKET_HOOKS,
    },
    Traffic {
        name: "foreign UDP, 64 bytes",
        kind: Kind::Datagrams,
        imds: false,
        hooks: &PACKET_HOOKS,
    },
    Traffic {
        name: "loopback TCP, 64 bytes",
        kind: Kind::Loopback,
        imds: false,
        hooks: &["segment_egress", "segment_ingress"],
    },
    Traffic {
        name: "foreign connections",
        kind: Kind::Connects,
        imds: false,
        hooks: &OTHER_HOOKS,
    },
    Traffic {
        name: BODY,
        kind: Kind::Download,
        imds: true,
        hooks: &PACKET_HOOKS,
    },
    Traffic {
        name: EXCHANGES,
        kind: Kind::Exchanges,
        imds: true,
        hooks: &[
            "segment_egress",
            "segment_ingress",
            "wire_egress",
            "wire_ingress",
            "connect4",
            "connect_tuple",
            "connect_exit",
            "connect_returned",
            "socket_state",
            "socket_state_btf",
        ],
    },
    Traffic {
        name: "IMDS exchanges, 500/s: caches are cold",
        kind: Kind::Exchanges,
        imds: true,
        hooks: &[
            "connect4",
            "segment_egress",
            "segment_ingress",
            "wire_egress",
            "wire_ingress",
        ],
    },
    Traffic {
        name: "IMDS, a new process each time",
        kind: Kind::Processes,
        imds: true,
        hooks: &["connect4", "segment_egress"],
    },
];
/// Pure acknowledgements out, a body's segments in: read, and nothing told.
const BODY: &str = "IMDS packets without event";
const EXCHANGES: &str = "IMDS exchanges, one upon the other";
/// Events that an exchange on a connection of its own gives: SYN, request, FIN; SYN-ACK, answer, FIN; at the uplink only the first
/// two of each.
const EVENTS: [(&str, u64); 4] = [
    ("segment_egress", 3),
    ("segment_ingress", 3),
    ("wire_egress", 2),
    ("wire_ingress", 2),
];

/// By hook.
type Snapshot = BTreeMap<&'static str, Runs>;

struct Bench {
    lab: Lab,
    observed: PathBuf,
    unobserved: PathBuf,
    second: String,
    ours: BTreeMap<&'static str, OwnedFd>,
    empties: BTreeMap<&'static str, Empty>,
}

pub(crate) fn run(program: &Path, short: bool) -> Result<()> {
    let (rounds, chunk) = if short {
        (1, Duration::from_millis(150))
    } else {
        (ROUNDS, CHUNK)
    };
    let mut lab = Lab::new(LabOptions {
        pods: Vec::new(),
        ..LabOptions::default()
    })?;
    let second = lab.add_uplink()?;
    serve(&lab)?;
    let cgroup = |name: &str| -> Result<PathBuf> {
        let path = lab.cgroup_directory().join(name);
        fs::create_dir(&path).with_context(|| format!("make cgroup {}", path.display()))?;
        Ok(path)
    };
    let (observed, unobserved) = (cgroup("observed")?, cgroup("unobserved")?);
    let after = bpf::last_program().context("list the kernel's programs")?;
    let observer = Observer::start(&lab, program, &observed, &[])?;
    let names: Vec<&'static str> = PACKET_HOOKS.into_iter().chain(OTHER_HOOKS).collect();
    let mut found = bpf::programs(&names, after).context("find the observer's programs")?;
    let ours: BTreeMap<_, _> = names
        .iter()
        .filter_map(|name| Some((*name, found.remove(*name)?)))
        .collect();
    for hook in PACKET_HOOKS {
        ensure!(ours.contains_key(hook), "the observer has no program {hook}");
    }
    let empties = empties(&lab, &unobserved, &second)?;
    let bench = Bench {
        lab,
        observed,
        unobserved,
        second,
        ours,
        empties,
    };
    let _counting = bpf::count_runs().context("count runs (BPF_ENABLE_STATS)")?;

    let mut results: BTreeMap<(usize, &str), Pair> = BTreeMap::new();
    let mut per_event: BTreeMap<&str, Rounds> = BTreeMap::new();
    for round in 0..rounds {
        let mut quiet: BTreeMap<&str, f64> = BTreeMap::new();
        for (number, traffic) in TRAFFIC.iter().enumerate() {
            let both = if round % 2 == 0 {
                let empty = bench.chunk(traffic, false, chunk)?;
                (bench.chunk(traffic, true, chunk)?, empty)
            } else {
                let own = bench.chunk(traffic, true, chunk)?;
                (own, bench.chunk(traffic, false, chunk)?)
            };
            let ((made, own), (_, empty)) = both;
            for hook in traffic.hooks {
                let pair = results.entry((number, hook)).or_default();
                let ns = |runs: &Snapshot| runs.get(hook).and_then(|runs| runs.ns_each());
                if let Some(own) = ns(&own) {
                    pair.own.push(own);
                }
                if let Some(empty) = ns(&empty) {
                    pair.empty.push(empty);
                }
            }
            if traffic.name == BODY {
                quiet = own
                    .iter()
                    .filter_map(|(hook, runs)| Some((*hook, runs.ns_each()?)))
                    .collect();
            }
            if traffic.name == EXCHANGES {
                for (hook, each) in EVENTS {
                    let (Some(runs), Some(quiet)) = (own.get(hook), quiet.get(hook)) else {
                        continue;
                    };
                    let events = each * made.done;
                    let rest = runs.count.saturating_sub(events) as f64 * quiet;
                    per_event
                        .entry(hook)
                        .or_default()
                        .push((runs.ns as f64 - rest) / events as f64);
                }
            }
        }
    }
    observer.finish()?;
    print(&results, &per_event, rounds, chunk);
    Ok(())
}

#[derive(Default)]
struct Pair {
    own: Rounds,
    empty: Rounds,
}

fn print(results: &BTreeMap<(usize, &str), Pair>, per_event: &BTreeMap<&str, Rounds>, rounds: usize, chunk: Duration) {
    println!(
        "ns a run, {rounds} rounds of {} ms for each kind of traffic and side, median (least to most); ratio round by round.\n",
        chunk.as_millis()
    );
    let mut table = Table::new(&["traffic", "program", "ns", "empty, ns", "ratio", "target"]);
    for ((number, hook), pair) in results {
        let traffic = &TRAFFIC[*number];
        let ratio = pair.own.over(&pair.empty);
        if pair.own.is_empty() {
            // Another way of the same hook is attached, or nothing of the kind happened.
            continue;
        }
        let target = if ratio.is_empty() {
            "-".to_owned()
        } else if *hook == "connect4" && traffic.imds {
            format!("1500 ns: {}", verdict(pair.own.median() < TARGET_CONNECT_NS))
        } else if traffic.imds {
            "-".to_owned()
        } else {
            format!("1.15: {}", verdict(ratio.median() <= TARGET_RATIO))
        };
        table.row(&[
            traffic.name.to_owned(),
            format!("`{hook}`"),
            pair.own.show(0),
            pair.empty.show(0),
            ratio.show(2),
            target,
        ]);
    }
    for (hook, ns) in per_event {
        table.row(&[
            "IMDS packet with its event".to_owned(),
            format!("`{hook}`"),
            ns.show(0),
            "-".to_owned(),
            "-".to_owned(),
            format!("500 ns: {}", verdict(ns.median() < TARGET_EVENT_NS)),
        ]);
    }
    table.print();
}

impl Bench {
    fn chunk(&self, traffic: &Traffic, own: bool, length: Duration) -> Result<(Made, Snapshot)> {
        let detour = traffic.imds && !own;
        if detour {
            self.lab.route_through(&self.second)?;
        }
        let gateway = Ipv4Addr::new(10, 77, u8::from(!own), 1);
        let to: SocketAddr = match (traffic.kind, traffic.imds) {
            (Kind::Download, _) => (IMDS_V4, SOURCE).into(),
            _ => (gateway, SINK).into(),
        };
        let mut load = Load::new(traffic.kind, length)
            .rate(if traffic.name == EXCHANGES { 0 } else { RATE })
            .width(WIDTH)
            .cgroup(if own { &self.observed } else { &self.unobserved });
        if !matches!(traffic.kind, Kind::Exchanges | Kind::Processes) {
            load = load.to(to);
        }
        let before = self.snapshot(own)?;
        let made = load.run(self.lab.node())?;
        let after = self.snapshot(own)?;
        if detour {
            self.lab.route_through(UPLINK)?;
        }
        ensure!(made.failed == 0, "{}: {} failed", traffic.name, made.failed);
        let grown = after
            .iter()
            .map(|(hook, runs)| (*hook, runs.since(before.get(hook).copied().unwrap_or_default())))
            .collect();
        Ok((made, grown))
    }

    fn snapshot(&self, own: bool) -> Result<Snapshot> {
        let runs = if own {
            self.ours
                .iter()
                .map(|(hook, program)| Ok((*hook, bpf::runs_of(program)?)))
                .collect::<std::io::Result<_>>()
        } else {
            self.empties
                .iter()
                .map(|(hook, empty)| Ok((*hook, empty.runs()?)))
                .collect()
        };
        runs.context("read how often programs ran")
    }
}

fn empties(lab: &Lab, cgroup: &Path, interface: &str) -> Result<BTreeMap<&'static str, Empty>> {
    let cgroup = File::open(cgroup).context("open a cgroup")?;
    let mut wanted = vec![
        ("segment_egress", EmptyAt::CgroupEgress),
        ("segment_ingress", EmptyAt::CgroupIngress),
        ("wire_egress", EmptyAt::TcxEgress),
        ("wire_ingress", EmptyAt::TcxIngress),
        ("connect4", EmptyAt::Connect4),
        ("connect_tuple", EmptyAt::SockOps),
        ("socket_state", EmptyAt::RawTracepoint("inet_sock_set_state")),
        ("socket_error", EmptyAt::RawTracepoint("inet_sk_error_report")),
    ];
    let types = kernel_types()?;
    let id = |kind: &str, name: &str| {
        types.lines().find_map(|line| {
            let (id, rest) = line.strip_prefix('[')?.split_once("] ")?;
            let rest = rest.strip_prefix(kind)?.strip_prefix(" '")?;
            (rest.split('\'').next()? == name).then(|| id.parse().ok())?
        })
    };
    if let Some(id) = id("TYPEDEF", "btf_trace_kfree_skb") {
        wanted.push(("drop_btf", EmptyAt::BtfTracepoint(id)));
    }
    if let Some(id) = id("TYPEDEF", "btf_trace_inet_sock_set_state") {
        wanted.push(("socket_state_btf", EmptyAt::BtfTracepoint(id)));
    }
    if let Some(id) = id("FUNC", "inet_stream_connect") {
        wanted.push(("connect_exit", EmptyAt::FunctionExit(id)));
    }
    lab.node().netns().run(|| {
        let index = if_nametoindex(interface).with_context(|| format!("find {interface}"))?;
        wanted
            .into_iter()
            .filter_map(|(hook, at)| {
                let empty = Empty::attach(at, cgroup.as_fd(), index);
                // Some kernels let nobody trace functions.
                if hook == "connect_exit" && empty.is_err() {
                    return None;
                }
                let empty = empty.with_context(|| format!("attach an empty program beside {hook}"));
                Some(empty.map(|empty| (hook, empty)))
            })
            .collect()
    })?
}

/// `[NUMBER] KIND 'NAME' ...`
fn kernel_types() -> Result<String> {
    let output = Command::new("bpftool")
        .args(["btf", "dump", "file", "/sys/kernel/btf/vmlinux", "format", "raw"])
        .output()
        .context("run bpftool (is it installed?)")?;
    ensure!(output.status.success(), "bpftool could not list this kernel's types");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Other people's servers, beside the metadata service. They end with this process.
fn serve(lab: &Lab) -> Result<()> {
    let (sink, source, echo) = lab.imds().netns().run(|| -> std::io::Result<_> {
        Ok((
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, SINK))?,
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, SOURCE))?,
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, SINK))?,
        ))
    })??;
    thread::spawn(move || {
        for mut stream in sink.incoming().flatten() {
            thread::spawn(move || {
                let mut bytes = vec![0; 1 << 16];
                while stream.read(&mut bytes).is_ok_and(|length| length > 0) {}
            });
        }
    });
    thread::spawn(move || {
        for mut stream in source.incoming().flatten() {
            let bytes = vec![0; 1 << 14];
            thread::spawn(move || while stream.write_all(&bytes).is_ok() {});
        }
    });
    thread::spawn(move || {
        let mut bytes = [0; 2048];
        while let Ok((length, from)) = echo.recv_from(&mut bytes) {
            let _ = echo.send_to(&bytes[..length], from);
        }
    });
    Ok(())
}
