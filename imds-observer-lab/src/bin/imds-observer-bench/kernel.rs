//! Measures the run time of each kernel program, next to an empty program on the same hook.
//!
//! The node has four pairs of a cgroup and an interface: one for the observer, one for empty programs, and two for programs that do only
//! the minimum. The same traffic runs over one pair after the other. On hooks of the whole machine, all programs are attached at the same
//! time. Nothing is attached to the root cgroup. The kernel's measurement (`bpf_stats`) includes reading the clock twice, in all columns.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use imds_observer_lab::bpf::least::Tables;
use imds_observer_lab::bpf::{self, Runs};
use imds_observer_lab::topology::{IMDS_V4, Lab, LabOptions};

use crate::beside::{Programs, Types, empties, lookers, tellers};
use crate::load::{Kind, Load, Made};
use crate::numbers::{Rounds, Table, verdict};
use crate::observer::{Observer, UPLINK};

const ROUNDS: usize = 5;
const CHUNK: Duration = Duration::from_millis(600);
const SINK: u16 = 5001;
const SOURCE: u16 = 5002;
/// Default exchanges or processes per second.
const RATE: u64 = 500;
/// Number of concurrent exchanges when the load runs at full speed.
const WIDTH: u64 = 16;
const TARGET_RATIO: f64 = 1.15;
const TARGET_EVENT_NS: f64 = 500.0;
const TARGET_CONNECT_NS: f64 = 1500.0;

/// Hooks of the observer's programs. An empty program is attached to each of them as well.
pub(crate) const PACKET_HOOKS: [&str; 4] = ["segment_egress", "segment_ingress", "wire_egress", "wire_ingress"];
pub(crate) const OTHER_HOOKS: [&str; 8] = [
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
    /// Whether the traffic goes to IMDS.
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
/// Name of the traffic whose packets are read without an event: outgoing pure acknowledgments and incoming body segments.
const BODY: &str = "IMDS packets without event";
const EXCHANGES: &str = "IMDS exchanges, one upon the other";
/// Number of events of an exchange on its own connection: SYN and request, SYN-ACK and response. For incoming packets, the uplink hook
/// reports only the response.
const EVENTS: [(&str, u64); 4] = [
    ("segment_egress", 2),
    ("segment_ingress", 2),
    ("wire_egress", 2),
    ("wire_ingress", 1),
];

/// Run counts by hook.
type Snapshot = BTreeMap<&'static str, Runs>;

/// Programs on the traffic's path, which are the observer's or the lab's.
enum Whose {
    Ours(BTreeMap<&'static str, OwnedFd>),
    Beside(Programs),
}

/// A cgroup, an interface, and the programs that are attached to them.
struct Side {
    cgroup: PathBuf,
    interface: String,
    /// Number of the interface, which is also part of its gateway's address.
    number: u8,
    whose: Whose,
}

struct Bench {
    lab: Lab,
    ours: Side,
    empty: Side,
    looks: Side,
    reports: Side,
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
    let others: [String; 3] = [lab.add_uplink()?, lab.add_uplink()?, lab.add_uplink()?];
    serve(&lab)?;
    let cgroup = |name: &str| -> Result<PathBuf> {
        let path = lab.cgroup_directory().join(name);
        fs::create_dir(&path).with_context(|| format!("make cgroup {}", path.display()))?;
        Ok(path)
    };
    let observed = cgroup("observed")?;
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
    let ours = Side {
        cgroup: observed,
        interface: UPLINK.to_owned(),
        number: 0,
        whose: Whose::Ours(ours),
    };
    let types = Types::of_kernel()?;
    let tables = Tables::new().context("make maps")?;
    let side = |name: &str, number: u8, attach: &dyn Fn(&Path, &str) -> Result<Programs>| -> Result<Side> {
        let (cgroup, interface) = (cgroup(name)?, others[usize::from(number) - 1].clone());
        Ok(Side {
            whose: Whose::Beside(attach(&cgroup, &interface)?),
            cgroup,
            interface,
            number,
        })
    };
    let empty = side("empty", 1, &|cgroup, interface| {
        empties(&lab, &types, cgroup, interface)
    })?;
    let looks = side("looks", 2, &|cgroup, interface| {
        lookers(&lab, &types, cgroup, interface)
    })?;
    let reports = side("reports", 3, &|cgroup, interface| {
        tellers(&lab, &tables, cgroup, interface)
    })?;
    let bench = Bench {
        lab,
        ours,
        empty,
        looks,
        reports,
    };
    let _counting = bpf::count_runs().context("count runs (BPF_ENABLE_STATS)")?;

    let mut results: BTreeMap<(usize, &str), Pair> = BTreeMap::new();
    let mut per_event: BTreeMap<&str, Rounds> = BTreeMap::new();
    for round in 0..rounds {
        let mut quiet: BTreeMap<&str, f64> = BTreeMap::new();
        for (number, traffic) in TRAFFIC.iter().enumerate() {
            // The order changes with each round, because the first side finds other cache contents than the last.
            let mut sides = bench.sides(traffic);
            sides.rotate_left(round % 3);
            let mut seen = [const { None }; 3];
            for (place, side) in sides {
                seen[place] = Some(bench.chunk(traffic, side, chunk)?);
            }
            let [Some((made, own)), Some((_, empty)), Some((_, least))] = seen else {
                bail!("three sides take turns");
            };
            for hook in traffic.hooks {
                let pair = results.entry((number, hook)).or_default();
                let ns = |runs: &Snapshot| runs.get(hook).and_then(|runs| runs.ns_each());
                if let Some(own) = ns(&own) {
                    pair.own.push(own);
                }
                if let Some(empty) = ns(&empty) {
                    pair.empty.push(empty);
                }
                if let Some(least) = ns(&least) {
                    pair.least.push(least);
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
    least: Rounds,
}

fn print(results: &BTreeMap<(usize, &str), Pair>, per_event: &BTreeMap<&str, Rounds>, rounds: usize, chunk: Duration) {
    println!(
        "ns a run, {rounds} rounds of {} ms for each kind of traffic and side, median (least to most); ratio round by round. Least: a program \
         that looks at the packet's address and no more; with exchanges one that sends an event for each packet, of a connect() also notes \
         the socket in a table.\n",
        chunk.as_millis()
    );
    let mut table = Table::new(&["traffic", "program", "ns", "empty, ns", "ratio", "least, ns", "target"]);
    for ((number, hook), pair) in results {
        let traffic = &TRAFFIC[*number];
        let ratio = pair.own.over(&pair.empty);
        if pair.own.is_empty() {
            // The observer uses another program for this hook, or no such event occurred.
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
            pair.least.show(0),
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
            results
                .iter()
                .find(|((number, of), _)| TRAFFIC[*number].name == EXCHANGES && of == hook)
                .map_or_else(|| "-".to_owned(), |(_, pair)| pair.least.show(0)),
            format!("500 ns: {}", verdict(ns.median() < TARGET_EVENT_NS)),
        ]);
    }
    table.print();
}

impl Bench {
    /// The observer's side, the empty side, and the side with the minimum for this traffic, each with its column.
    fn sides(&self, traffic: &Traffic) -> [(usize, &Side); 3] {
        let least = if traffic.imds && traffic.name != BODY {
            &self.reports
        } else {
            &self.looks
        };
        [(0, &self.ours), (1, &self.empty), (2, least)]
    }

    fn chunk(&self, traffic: &Traffic, side: &Side, length: Duration) -> Result<(Made, Snapshot)> {
        let detour = traffic.imds && side.interface != UPLINK;
        if detour {
            self.lab.route_through(&side.interface)?;
        }
        let gateway = Ipv4Addr::new(10, 77, side.number, 1);
        let to: SocketAddr = match (traffic.kind, traffic.imds) {
            (Kind::Download, _) => (IMDS_V4, SOURCE).into(),
            _ => (gateway, SINK).into(),
        };
        let mut load = Load::new(traffic.kind, length)
            .rate(if traffic.name == EXCHANGES { 0 } else { RATE })
            .width(WIDTH)
            .cgroup(&side.cgroup);
        if !matches!(traffic.kind, Kind::Exchanges | Kind::Processes) {
            load = load.to(to);
        }
        let before = side.whose.snapshot()?;
        let made = load.run(self.lab.node())?;
        let after = side.whose.snapshot()?;
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
}

impl Whose {
    fn snapshot(&self) -> Result<Snapshot> {
        let runs = match self {
            Self::Ours(programs) => programs
                .iter()
                .map(|(hook, program)| Ok((*hook, bpf::runs_of(program)?)))
                .collect::<std::io::Result<_>>(),
            Self::Beside(programs) => programs
                .iter()
                .map(|(hook, program)| Ok((*hook, program.runs()?)))
                .collect(),
        };
        runs.context("read how often programs ran")
    }
}

/// Servers for other traffic than IMDS. They end with this process.
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
