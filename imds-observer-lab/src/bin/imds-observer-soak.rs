//! Checks that an observer's resource use stays constant however long it runs. Each round has mixed traffic, a fault, a pod and an uplink
//! that are added and removed, a reload and rotations.
//!
//! `cargo xtask soak` runs it. At the end, the observer must hold as many kernel objects and descriptors as after the warm-up, and about as
//! much memory.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use imds_observer_lab::{
    client::{self, Script},
    faults::{Family, registry},
    topology::{Lab, LabOptions, Place, PodOptions},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

#[derive(Parser)]
struct Cli {
    /// The program to look at
    #[arg(long)]
    observer: PathBuf,
    #[arg(long, default_value_t = 2.0)]
    minutes: f64,
}

/// Share of the run before the reference measurement: until then, tables fill and the allocator reaches its size.
const WARM_UP: f64 = 0.4;
/// Permitted growth of memory after the warm-up: this share or this amount, whichever is larger.
const GROWTH: f64 = 0.10;
const GROWTH_KIB: u64 = 2_048;
const UPLINK: &str = "eth0";
/// Faults, one per round.
const FAULTS: &[&str] = &[
    "output-reject",
    "forward-drop",
    "server-down",
    "policy-connect",
    "hop-limit-1",
    "no-route",
];

fn main() -> ExitCode {
    let cli = Cli::parse();
    match soak(&cli.observer, Duration::from_secs_f64(cli.minutes * 60.0)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("imds-observer-soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Resources that a process holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Held {
    resident_kib: u64,
    descriptors: usize,
    threads: usize,
    maps: usize,
    programs: usize,
    links: usize,
}

impl Held {
    fn by(pid: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the observer is gone")?;
        let number = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        let mut held = Self {
            resident_kib: number("VmRSS:").context("no VmRSS")?,
            threads: number("Threads:").context("no Threads")? as usize,
            ..Self::default()
        };
        let (mut maps, mut programs, mut links) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))?.flatten() {
            // The descriptor was closed meanwhile.
            let Ok(info) = fs::read_to_string(entry.path()) else {
                continue;
            };
            held.descriptors += 1;
            let id = |field: &str| {
                info.lines()
                    .find_map(|line| Some(line.strip_prefix(field)?.trim().to_owned()))
            };
            maps.extend(id("map_id:"));
            let link = id("link_id:");
            // The file of a link also contains the ID of its program.
            if link.is_none() {
                programs.extend(id("prog_id:"));
            }
            links.extend(link);
        }
        (held.maps, held.programs, held.links) = (maps.len(), programs.len(), links.len());
        Ok(held)
    }
}

/// The observer's process, which is ended on drop.
struct Observer(Child);

impl Drop for Observer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn soak(program: &Path, span: Duration) -> Result<()> {
    let mut lab = Lab::new(LabOptions::default())?;
    let directory = tempfile::tempdir()?;
    let (config, trace) = (directory.path().join("config.toml"), directory.path().join("trace"));
    fs::write(&config, "")?;
    let mut observer = start(&lab, program, &config, &trace)?;
    let pid = observer.0.id();
    println!(" second  resident  descriptors  threads  maps  programs  links");
    let begin = Instant::now();
    let mut warm: Option<Held> = None;
    let mut last = Held::default();
    let mut rounds = 0;
    while begin.elapsed() < span || rounds < 2 * FAULTS.len() {
        round(&mut lab, FAULTS[rounds % FAULTS.len()], rounds)?;
        rounds += 1;
        let settings = if rounds % 4 == 0 { "[filter\n" } else { "[detectors]\n" };
        fs::write(&config, settings)?;
        kill(Pid::from_raw(pid as i32), Signal::SIGHUP).context("reload")?;
        // Measured only after whole cycles, so that the same faults precede each measurement and the uplinks are the same.
        let whole = rounds % FAULTS.len() == 0;
        if whole {
            last = settled(pid, warm)?;
            println!(
                "{:7.0} {:7} K {:12} {:8} {:5} {:9} {:6}",
                begin.elapsed().as_secs_f64(),
                last.resident_kib,
                last.descriptors,
                last.threads,
                last.maps,
                last.programs,
                last.links
            );
            if warm.is_none() && begin.elapsed() >= span.mul_f64(WARM_UP) {
                warm = Some(last);
            }
        }
    }
    let warm = warm.context("too short to warm up")?;
    kill(Pid::from_raw(pid as i32), Signal::SIGINT).context("end the observer")?;
    let status = observer.0.wait()?;
    ensure!(status.success(), "the observer ended with {status}");
    let flat = Held {
        resident_kib: 0,
        ..warm
    } == Held {
        resident_kib: 0,
        ..last
    };
    ensure!(flat, "after the warm-up it held {warm:?}, at the end {last:?}");
    let most = warm.resident_kib + GROWTH_KIB.max((warm.resident_kib as f64 * GROWTH) as u64);
    ensure!(
        last.resident_kib <= most,
        "memory grew from {} to {} KiB",
        warm.resident_kib,
        last.resident_kib
    );
    let files = look_at(&trace)?;
    println!("flat over {rounds} rounds; {files} files of whole lines, nothing lost");
    Ok(())
}

/// Waits for two equal measurements, because the observer detaches from a removed uplink with a short delay.
fn settled(pid: u32, wanted: Option<Held>) -> Result<Held> {
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut before = Held::by(pid)?;
    loop {
        std::thread::sleep(Duration::from_millis(500));
        let now = Held::by(pid)?;
        let same = |other: Held| {
            Held { resident_kib: 0, ..now }
                == Held {
                    resident_kib: 0,
                    ..other
                }
        };
        if same(wanted.unwrap_or(before)) || Instant::now() > deadline {
            return Ok(now);
        }
        before = now;
    }
}

fn start(lab: &Lab, program: &Path, config: &Path, trace: &Path) -> Result<Observer> {
    let mut command: Command = lab.node().command_beside(program)?;
    command.args([
        "stream",
        "--metrics",
        "127.0.0.1:9469",
        "--interval",
        "1s",
        "-C",
        "64k",
        "-W",
        "4",
        "--config",
    ]);
    command
        .arg(config)
        .arg("-w")
        .arg(trace)
        .arg("--cgroup")
        .arg(lab.cgroup_directory());
    let observer = Observer(command.stderr(Stdio::null()).spawn().context("start the observer")?);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !fs::read_to_string(trace).is_ok_and(|text| text.contains("\"start\"")) {
        ensure!(Instant::now() < deadline, "the observer doesn't start");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(observer)
}

/// Runs clients of all kinds, first healthy and then during one fault, and adds and removes a pod and an uplink.
fn round(lab: &mut Lab, fault: &str, number: usize) -> Result<()> {
    let Some(entry) = registry(Family::V4).into_iter().find(|entry| entry.name == fault) else {
        bail!("no fault is called {fault}");
    };
    let pod = lab.add_pod(&PodOptions::default())?;
    for script in [client::botocore(), client::v1(3, 5), client::token_per_request(3, 5)] {
        ask(lab.node(), &script)?;
        ask(lab.pod(pod), &script)?;
    }
    let url = format!("http://169.254.169.254/latest/meta-data/instance-id?round{number}");
    curl(lab.pod(pod), &url)?;
    {
        let _guard = lab.inject(&entry.fault)?;
        curl(lab.node(), &url)?;
        curl(lab.pod(0), &url)?;
    }
    curl(lab.node(), "http://127.0.0.1:9469/metrics")?;
    lab.remove_pod(pod)?;
    if number.is_multiple_of(3) {
        let second = lab.add_uplink()?;
        lab.route_through(&second)?;
        curl(lab.node(), &url)?;
        lab.route_through(UPLINK)?;
        lab.remove_uplink(&second)?;
    }
    Ok(())
}

fn ask(place: &Place, script: &Script) -> Result<()> {
    let own = std::env::current_exe().context("find this program")?;
    let mut child = place
        .command(own.with_file_name("imds-observer-lab"))?
        .args(["client", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context("start a client")?;
    let script = serde_json::to_vec(script)?;
    child
        .stdin
        .take()
        .context("take a client's input")?
        .write_all(&script)?;
    child.wait()?;
    Ok(())
}

/// Sends a request, which may fail because of a fault.
fn curl(place: &Place, url: &str) -> Result<()> {
    place
        .command("curl")?
        .args(["--silent", "--max-time", "0.7", "--output", "/dev/null", url])
        .status()
        .context("run curl")?;
    Ok(())
}

/// Checks that every line parses, and that the last `loss` record counts no losses.
fn look_at(trace: &Path) -> Result<usize> {
    let mut files = 0;
    let mut loss = None;
    for number in (0..4).rev() {
        let path = if number == 0 {
            trace.to_owned()
        } else {
            PathBuf::from(format!("{}.{number}", trace.display()))
        };
        let Ok(text) = fs::read_to_string(&path) else { continue };
        files += 1;
        for line in text.lines() {
            let record: serde_json::Value =
                serde_json::from_str(line).with_context(|| format!("{}: {line}", path.display()))?;
            if record["record"] == "loss" {
                loss = Some(record);
            }
        }
    }
    let loss = loss.context("no loss record")?;
    for what in ["ring_buffer", "unparsed", "shed"] {
        ensure!(loss[what] == 0, "{what}: {loss}");
    }
    ensure!(files > 1, "it was not rotated");
    Ok(files)
}
