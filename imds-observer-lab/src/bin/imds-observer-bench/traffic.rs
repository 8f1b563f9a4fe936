//! Measures whether the observer slows down other traffic, compared with no tool and with the tools that people would use instead.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use imds_observer_lab::bpf::{self, Measured, Runs};
use imds_observer_lab::topology::{Lab, LabOptions};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::Value;

use crate::beside::{Programs, Types, as_observer};
use crate::kernel::{OTHER_HOOKS, PACKET_HOOKS};
use crate::numbers::{Rounds, Table, verdict};
use crate::observer::{Observer, UPLINK, until};

/// Many short rounds, because the machine's other load changes within seconds.
const ROUNDS: usize = 11;
const SECONDS: u64 = 1;
/// Number of rounds that measure the programs' run time.
const SHARE_ROUNDS: usize = 3;
/// Processors for clients and servers. If they weren't pinned, the scheduler would place them on the same core or on two, and throughput
/// would differ by a factor of two.
const CLIENT_CPU: usize = 0;
const SERVER_CPU: usize = 1;
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const IPERF_PORT: &str = "5201";
const WEB_PORT: u16 = 8000;
/// Filter expression for tcpdump.
const FILTER: &str = "host 169.254.169.254 or host fd00:ec2::254";
/// Fields that common troubleshooting guides print with tshark.
const FIELDS: [&str; 6] = [
    "frame.time_epoch",
    "ip.src",
    "ip.ttl",
    "http.request.method",
    "http.request.uri",
    "http.response.code",
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Watcher {
    Nothing,
    /// Programs on the observer's hooks that do nothing. They show the cost of being attached.
    Empties,
    Observer,
    Tcpdump,
    Tshark,
}

const WATCHERS: [(Watcher, &str); 5] = [
    (Watcher::Nothing, "nothing"),
    (Watcher::Empties, "empty programs"),
    (Watcher::Observer, "imds-observer"),
    (Watcher::Tcpdump, "tcpdump -w"),
    (Watcher::Tshark, "tshark -T fields"),
];

const MEASURES: [(&str, f64); 3] = [
    ("TCP, Gbit/s", 0.99),
    ("UDP, 64 bytes, 1000 packets/s", 0.95),
    ("connections/s", 0.98),
];

pub(crate) fn run(program: &Path, short: bool) -> Result<()> {
    let rounds = if short { 1 } else { ROUNDS };
    let lab = Lab::new(LabOptions {
        pods: Vec::new(),
        ..LabOptions::default()
    })?;
    serve(&lab)?;
    let types = Types::of_kernel()?;
    // Outside the lab's cgroup, because one host has only one end of a connection.
    let server = lab
        .imds()
        .command_beside("iperf3")?
        .args(["-s", "-p", IPERF_PORT])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("start iperf3 (is it installed?)")?;
    let _server = Ended(server);
    until("iperf3 to listen", || Ok(iperf(&lab, &["-n", "1K"]).is_ok()))?;

    let mut results: Vec<[Rounds; 3]> = WATCHERS.iter().map(|_| Default::default()).collect();
    for round in 0..rounds {
        for turn in 0..WATCHERS.len() {
            let number = (turn + round) % WATCHERS.len();
            let _watching = Watching::start(WATCHERS[number].0, &lab, &types, program)?;
            let values = [tcp(&lab)?, udp(&lab)?, connections(&lab)?];
            for (rounds, value) in results[number].iter_mut().zip(values) {
                rounds.push(value);
            }
        }
    }

    println!(
        "{rounds} rounds of {SECONDS} s each, taking turns, clients on one processor and servers on the other; median (least to most), \
         ratio to nothing round by round.\n"
    );
    let mut table = Table::new(&["traffic", "with", "measured", "of nothing", "target"]);
    for (measure, (name, target)) in MEASURES.iter().enumerate() {
        let nothing = &results[0][measure];
        let tcpdump = results[3][measure].over(nothing).median();
        for ((watcher, with), rounds) in WATCHERS.iter().zip(&results) {
            let ratio = rounds[measure].over(nothing);
            let reported = if *watcher == Watcher::Observer {
                format!(
                    "{target}: {}; ahead of tcpdump: {}",
                    verdict(ratio.median() >= *target),
                    verdict(ratio.median() >= tcpdump)
                )
            } else {
                "-".to_owned()
            };
            table.row(&[
                (*name).to_owned(),
                (*with).to_owned(),
                rounds[measure].show(2),
                ratio.show(3),
                reported,
            ]);
        }
    }
    table.print();
    print_shares(&lab, &types, program, if short { 1 } else { SHARE_ROUNDS })
}

/// Prints the share of all processors' time that the programs use. Throughput doesn't show this share when other tenants of the machine
/// change it by a factor of two.
fn print_shares(lab: &Lab, types: &Types, program: &Path, rounds: usize) -> Result<()> {
    let processors = thread::available_parallelism().context("count the processors")?.get();
    let _counting = bpf::count_runs().context("count runs (BPF_ENABLE_STATS)")?;
    println!(
        "\nThe programs' own run time (`bpf_stats`, which reads the clock twice a run) under the same traffic, {rounds} rounds of {SECONDS} s.\n"
    );
    let mut table = Table::new(&[
        "traffic",
        "with",
        "of all processors' time, %",
        "runs/s, 1000",
        "ns a run",
    ]);
    let mut results: Vec<[[Rounds; 3]; 2]> = MEASURES.iter().map(|_| Default::default()).collect();
    for _ in 0..rounds {
        for (side, (watcher, _)) in WATCHERS[1..3].iter().enumerate() {
            let after = bpf::last_program().context("list the kernel's programs")?;
            let watching = Watching::start(*watcher, lab, types, program)?;
            let names: Vec<&str> = PACKET_HOOKS.into_iter().chain(OTHER_HOOKS).collect();
            let programs = bpf::programs(&names, after).context("find the observer's programs")?;
            let runs = || -> Result<Runs> {
                let all: std::io::Result<Vec<Runs>> = match &watching.by {
                    Some(By::Empties { there }) => there.values().map(Measured::runs).collect(),
                    _ => programs.values().map(bpf::runs_of).collect(),
                };
                let all = all.context("ask a program for its run time")?;
                Ok(all.into_iter().fold(Runs::default(), Runs::plus))
            };
            for (measure, results) in [tcp, udp, connections].into_iter().zip(&mut results) {
                let (before, begin) = (runs()?, Instant::now());
                measure(lab)?;
                let (grown, span) = (runs()?.since(before), begin.elapsed().as_secs_f64());
                let [share, rate, each] = &mut results[side];
                share.push(grown.ns as f64 / 1e7 / span / processors as f64);
                rate.push(grown.count as f64 / 1e3 / span);
                each.push(grown.ns_each().unwrap_or_default());
            }
        }
    }
    for ((traffic, _), results) in MEASURES.iter().zip(&results) {
        for ((_, with), [share, rate, each]) in WATCHERS[1..3].iter().zip(results) {
            let name = traffic.rsplit_once(", ").map_or(*traffic, |(name, _)| name);
            table.row(&[
                name.to_owned(),
                (*with).to_owned(),
                share.show(2),
                rate.show(0),
                each.show(0),
            ]);
        }
    }
    table.print();
    Ok(())
}

/// A child process that is ended on drop.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Both fail only if the process has already ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An observer or a tool that runs while traffic is measured. It is ended on drop.
struct Watching {
    by: Option<By>,
    file: PathBuf,
}

/// Kind of the running observer or tool.
enum By {
    Empties { there: Programs },
    Observer { _running: Box<Observer> },
    Tool { _running: Ended },
}

impl Watching {
    fn start(watcher: Watcher, lab: &Lab, types: &Types, program: &Path) -> Result<Self> {
        let file = Path::new("/dev/shm").join(format!("imdslab-{}-bench.pcap", lab.id()));
        let by = match watcher {
            Watcher::Nothing => None,
            Watcher::Empties => Some(By::Empties {
                there: as_observer(lab, types, lab.cgroup_directory(), UPLINK)?,
            }),
            Watcher::Observer => Some(By::Observer {
                _running: Box::new(Observer::start(lab, program, lab.cgroup_directory(), &[])?),
            }),
            Watcher::Tcpdump => {
                let mut command = lab.node().command_beside("tcpdump")?;
                // Keep root: by default, tcpdump switches to another user before it creates the file, but the reader of the pcap needs
                // access.
                command.args(["-i", UPLINK, "-Z", "root", "-w"]).arg(&file).arg(FILTER);
                Some(By::Tool {
                    _running: tool(command, "listening on")?,
                })
            }
            Watcher::Tshark => {
                let mut command = lab.node().command_beside("tshark")?;
                command.args(["-i", UPLINK, "-l", "-f", FILTER, "-Y", "http", "-T", "fields"]);
                command.args(FIELDS.iter().flat_map(|field| ["-e", field]));
                Some(By::Tool {
                    _running: tool(command, "Capturing on")?,
                })
            }
        };
        Ok(Self { by, file })
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.file);
    }
}

/// Starts a tool that reports on standard error when it is ready.
fn tool(mut command: Command, ready: &str) -> Result<Ended> {
    let name = command.get_program().display().to_string();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map(Ended)
        .with_context(|| format!("start {name} (is it installed?)"))?;
    let mut printed = BufReader::new(child.0.stderr.take().context("take a tool's output")?);
    let mut line = String::new();
    while !line.contains(ready) {
        line.clear();
        ensure!(printed.read_line(&mut line)? > 0, "{name} ended before it was ready");
    }
    // Further output must not fill the pipe.
    thread::spawn(move || {
        let mut rest = Vec::new();
        let _ = printed.read_to_end(&mut rest);
    });
    Ok(child)
}

fn iperf(lab: &Lab, more: &[&str]) -> Result<Value> {
    let mut command = lab.node().command("iperf3")?;
    command.args(["-c", &SERVER.to_string(), "-p", IPERF_PORT, "-J", "-A"]);
    command.arg(format!("{CLIENT_CPU},{SERVER_CPU}"));
    if !more.contains(&"-n") {
        command.args(["-t", &SECONDS.to_string()]);
    }
    let output = command.args(more).output().context("run iperf3 (is it installed?)")?;
    ensure!(
        output.status.success(),
        "iperf3: {}",
        String::from_utf8_lossy(&output.stdout).trim()
    );
    serde_json::from_slice(&output.stdout).context("parse iperf3's output")
}

fn tcp(lab: &Lab) -> Result<f64> {
    let reported = iperf(lab, &[])?;
    let bits = reported["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(bits.context("iperf3 reports no throughput")? / 1e9)
}

/// Packets received per second, in thousands.
fn udp(lab: &Lab) -> Result<f64> {
    let reported = iperf(lab, &["-u", "-b", "0", "-l", "64"])?;
    let sum = &reported["end"]["sum"];
    let number = |name: &str| sum[name].as_f64().with_context(|| format!("iperf3 reports no {name}"));
    Ok((number("packets")? - number("lost_packets")?) / number("seconds")? / 1e3)
}

fn connections(lab: &Lab) -> Result<f64> {
    let output = lab
        .node()
        .command("taskset")?
        .args(["-c", &CLIENT_CPU.to_string(), "wrk"])
        .args(["-t1", "-c16", &format!("-d{SECONDS}s"), "-H", "Connection: close"])
        .arg(format!("http://{SERVER}:{WEB_PORT}/"))
        .output()
        .context("run taskset")?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "wrk (is it installed?): {printed}{complained}");
    let rate = printed
        .lines()
        .find_map(|line| line.trim().strip_prefix("Requests/sec:"));
    rate.and_then(|rate| rate.trim().parse().ok())
        .context("wrk reports no rate")
}

/// Starts a small web server in the service's namespace, which closes the connection after each response.
fn serve(lab: &Lab) -> Result<()> {
    let listener = lab
        .imds()
        .netns()
        .run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, WEB_PORT)))?
        .context("listen for wrk")?;
    let mut processor = CpuSet::new();
    processor.set(SERVER_CPU).context("choose a processor")?;
    thread::spawn(move || {
        // Pinning fails on a machine with a single processor, where it isn't needed.
        let _ = sched_setaffinity(Pid::from_raw(0), &processor);
        let mut bytes = [0; 4096];
        for mut stream in listener.incoming().flatten() {
            if stream.read(&mut bytes).is_ok() {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
            }
        }
    });
    Ok(())
}
