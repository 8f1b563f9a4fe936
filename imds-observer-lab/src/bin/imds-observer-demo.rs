//! Shows the observer's main function in half a minute, on real clients in a lab.
//!
//! Three clients run one after the other: botocore on the node (healthy), botocore in a pod whose token responses are dropped because of
//! hop limit 1, and a shell loop around curl. The demo waits for the observer's records of each. Then `analyze` reads the trace. The demo
//! fails if the observer did not report both faults.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{BufRead as _, BufReader, BufWriter, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use imds_observer_lab::topology::{Lab, LabOptions, Place, PodCgroup, PodOptions};
use nix::{
    sys::signal::{SigSet, Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// Shows the observer at work on real clients, in network namespaces without a route to the outside. Needs root.
#[derive(Parser)]
struct Cli {
    /// The program to show
    #[arg(long)]
    observer: PathBuf,
    /// A Python that has botocore
    #[arg(long)]
    python: PathBuf,
    /// File to write the observer's records to
    #[arg(long)]
    trace: PathBuf,
}

/// Timeout of each act, long enough for a machine that compiles at the same time.
const PATIENCE: Duration = Duration::from_secs(60);
/// Interval at which a wait checks for an interrupt.
const TICK: Duration = Duration::from_millis(200);
/// Number of the curl loop's exchanges that are shown one by one.
const SHOWN: usize = 3;

/// Invented IDs in the format of real ones.
const POD_UID: &str = "6e1c5a52-3f0b-4a7e-9d0c-2b8f4a1e7c33";
const CONTAINER_ID: &str = "0f8a1c5d9b3e7a2f4c6d8e0b1a3c5e7f9d2b4a6c8e0f1a3b5c7d9e1f3a5b7c9d";

const BOTOCORE: &str = "\
import botocore.session
credentials = botocore.session.get_session().get_credentials()
print('    (botocore: ' + ('has credentials' if credentials and credentials.access_key else 'has no credentials') + ')')
";
/// Shell loop that ends by itself, even if the demo is killed. When interrupted, it lets its last curl finish, which would otherwise become
/// an orphan.
const LOOP: &str = "trap 'exit 0' INT; end=$((SECONDS + 60)); while [ $SECONDS -lt $end ]; do \
    curl --silent --output /dev/null http://169.254.169.254/latest/meta-data/instance-id; done";

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("imds-observer-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    note_interrupts()?;
    let begin = Instant::now();
    let lab = Lab::new(LabOptions {
        pods: vec![PodOptions {
            cgroup: PodCgroup::Kubepods {
                qos: "burstable".to_owned(),
                uid: POD_UID.to_owned(),
                container_id: CONTAINER_ID.to_owned(),
            },
            nested: false,
        }],
        ..LabOptions::default()
    })?;
    say("A lab is up: a metadata service with hop limit 1, a node, and a pod behind the node's bridge.");
    let mut observer = Observer::start(cli, &lab)?;

    say("1. botocore on the node, a healthy client: token, role, credentials");
    let mut client = botocore(cli, lab.node())?;
    observer.show_until(is_role_credentials)?;
    finish(&mut client, "botocore on the node")?;

    say("2. botocore in the pod: its token response arrives with TTL 1 and can't be forwarded");
    let mut client = botocore(cli, lab.pod(0))?;
    observer.show_until(is_role_credentials)?;
    finish(&mut client, "botocore in the pod")?;

    say("3. while :; do curl .../instance-id; done");
    let mut shell = with_signals(lab.node().command("bash")?)
        .args(["-c", LOOP])
        .spawn()
        .map(Ended)
        .context("start bash")?;
    observer.show_until(|record| is_finding(record, "tight-polling"))?;
    shell.interrupt()?;
    finish(&mut shell, "the curl loop")?;

    observer.finish()?;
    say(&format!(
        "What it wrote, read back: imds-observer analyze {}",
        cli.trace.display()
    ));
    let status = Command::new(&cli.observer)
        .arg("analyze")
        .arg(&cli.trace)
        .status()
        .context("start `analyze`")?;
    ensure!(status.success(), "`analyze`: {status}");
    for code in ["token-response-lost", "tight-polling"] {
        ensure!(
            observer.findings.iter().any(|found| found == code),
            "the observer did not report {code}"
        );
    }
    drop(lab);
    say(&format!(
        "Done in {:.0} s; the lab is gone.",
        begin.elapsed().as_secs_f64()
    ));
    Ok(())
}

fn say(text: &str) {
    println!("\n== {text}");
}

/// Catches interrupts, so that the lab is removed before the demo ends.
fn note_interrupts() -> Result<()> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    signals.thread_block()?;
    thread::spawn(move || {
        if signals.wait().is_ok() {
            INTERRUPTED.store(true, Ordering::Relaxed);
        }
    });
    Ok(())
}

/// Unblocks signals in the child, which would otherwise inherit the demo's blocked signals.
fn with_signals(mut command: Command) -> Command {
    let enter = || Ok(SigSet::all().thread_unblock()?);
    // SAFETY: between fork and exec it makes one system call, on memory of its own.
    unsafe { command.pre_exec(enter) };
    command
}

/// A child process that is ended on drop.
struct Ended(Child);

impl Ended {
    fn interrupt(&self) -> Result<()> {
        kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGINT)
            .with_context(|| format!("interrupt process {}", self.0.id()))
    }

    fn end(&mut self) {
        // Both fail only if the process has already ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.end();
    }
}

fn botocore(cli: &Cli, place: &Place) -> Result<Ended> {
    let mut command = with_signals(place.command(&cli.python)?);
    for variable in [
        "AWS_CA_BUNDLE",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_PROFILE",
        "AWS_ACCESS_KEY_ID",
    ] {
        command.env_remove(variable);
    }
    command
        .args(["-c", BOTOCORE])
        .env("AWS_CONFIG_FILE", "/nonexistent")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        .spawn()
        .map(Ended)
        .with_context(|| {
            format!(
                "start {} (`cargo xtask setup --for demo` makes it)",
                cli.python.display()
            )
        })
}

fn finish(client: &mut Ended, name: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let status: ExitStatus = loop {
        if let Some(status) = client.0.try_wait()? {
            break status;
        }
        ensure!(Instant::now() < deadline, "{name} does not end");
        ensure!(!INTERRUPTED.load(Ordering::Relaxed), "interrupted");
        thread::sleep(TICK / 10);
    };
    ensure!(status.success(), "{name}: {status}");
    Ok(())
}

fn is_role_credentials(record: &Value) -> bool {
    record["record"] == "exchange"
        && record["request"]["path"]
            .as_str()
            .and_then(|path| path.split_once("security-credentials/"))
            .is_some_and(|(_, role)| !role.is_empty())
}

fn is_finding(record: &Value, code: &str) -> bool {
    record["record"] == "finding" && record["code"] == code
}

/// The running observer, and its records so far.
struct Observer {
    child: Ended,
    lines: Receiver<String>,
    trace: BufWriter<File>,
    /// Codes of the findings so far.
    findings: Vec<String>,
    /// Exchanges since the act began.
    exchanges: usize,
    /// Connections for which a drop was shown.
    dropped: BTreeSet<String>,
}

impl Observer {
    /// Starts the observer in the node's network namespace, on the lab's cgroup. It touches nothing outside the lab.
    fn start(cli: &Cli, lab: &Lab) -> Result<Self> {
        let cgroup = lab.cgroup_directory();
        say(&format!(
            "The observer: imds-observer stream -i eth0 --cgroup {}",
            cgroup.display()
        ));
        let mut command = in_netns(lab.node(), &cli.observer)?;
        command
            .args(["stream", "-i", "eth0", "--host", "demo-node", "--cgroup"])
            .arg(cgroup);
        let mut child = command
            // Ctrl-C in the terminal must interrupt only the demo, which then interrupts the observer.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map(Ended)
            .with_context(|| format!("start {}", cli.observer.display()))?;
        let stdout = child.0.stdout.take().context("take the observer's output")?;
        let (sender, lines) = channel();
        thread::spawn(move || {
            BufReader::new(stdout)
                .lines()
                .map_while(Result::ok)
                .all(|line| sender.send(line).is_ok())
        });
        let trace = File::create(&cli.trace).with_context(|| format!("create {}", cli.trace.display()))?;
        let mut observer = Self {
            child,
            lines,
            trace: BufWriter::new(trace),
            findings: Vec::new(),
            exchanges: 0,
            dropped: BTreeSet::new(),
        };
        observer.show_until(|record| record["record"] == "start")?;
        Ok(observer)
    }

    /// Shows records as they arrive, up to the first record that `last` accepts.
    fn show_until(&mut self, last: impl Fn(&Value) -> bool) -> Result<()> {
        self.exchanges = 0;
        let deadline = Instant::now() + PATIENCE;
        loop {
            ensure!(!INTERRUPTED.load(Ordering::Relaxed), "interrupted");
            ensure!(
                Instant::now() < deadline,
                "the observer did not see what was waited for"
            );
            match self.lines.recv_timeout(TICK) {
                Ok(line) => {
                    if last(&self.take(&line)?) {
                        return Ok(());
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("the observer ended"),
            }
        }
    }

    fn take(&mut self, line: &str) -> Result<Value> {
        writeln!(self.trace, "{line}").context("write the trace")?;
        let record: Value = serde_json::from_str(line).context("read a record of the observer")?;
        match record["record"].as_str() {
            Some("start") => show_start(&record),
            Some("exchange") => {
                self.exchanges += 1;
                // A client with botocore makes at most 5 exchanges. All of them are shown.
                let of_loop = record["process"]["comm"] == "curl";
                if !of_loop || self.exchanges <= SHOWN {
                    show_exchange(&record);
                } else if self.exchanges == SHOWN + 1 {
                    println!("    ...");
                }
            }
            // The server retransmits the dropped response for some seconds; one line suffices.
            Some("drop") if self.dropped.insert(record["connection"]["id"].to_string()) => show_drop(&record),
            Some("finding") => {
                if record["state"] == "open" {
                    show_finding(&record);
                }
                self.findings.extend(record["code"].as_str().map(str::to_owned));
            }
            _ => {}
        }
        Ok(record)
    }

    fn finish(&mut self) -> Result<()> {
        self.child.interrupt()?;
        let deadline = Instant::now() + PATIENCE;
        // The observer writes its last records before it closes its output.
        loop {
            match self.lines.recv_timeout(TICK) {
                Ok(line) => drop(self.take(&line)?),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => ensure!(Instant::now() < deadline, "the observer does not end"),
            }
        }
        let status = self.child.0.wait().context("wait for the observer")?;
        ensure!(status.success(), "the observer: {status}");
        self.trace.flush().context("write the trace")
    }
}

/// Returns a command in a place's network namespace, but not in its cgroup: the observer must not observe itself.
fn in_netns(place: &Place, program: &Path) -> Result<Command> {
    let netns = File::open(place.netns().path()).context("open the node's network namespace")?;
    let mut command = Command::new(program);
    let enter = move || Ok(nix::sched::setns(&netns, nix::sched::CloneFlags::CLONE_NEWNET)?);
    // SAFETY: between fork and exec it only makes one system call on a descriptor that was opened before.
    unsafe { command.pre_exec(enter) };
    Ok(with_signals(command))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

fn show_start(record: &Value) {
    let hooks: Vec<&str> = record["attached"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|hook| text(&hook["hook"]))
        .collect();
    println!("    kernel {}, attached: {}", text(&record["kernel"]), hooks.join(", "));
    for missing in record["missing"].as_array().into_iter().flatten() {
        println!(
            "    missing: {} ({}); not visible: {}",
            text(&missing["capability"]),
            text(&missing["why"]),
            text(&missing["blinds"])
        );
    }
}

fn who(record: &Value) -> String {
    format!("{}[{}]", text(&record["process"]["comm"]), record["process"]["pid"])
}

fn show_exchange(record: &Value) {
    let (request, response) = (&record["request"], &record["response"]);
    let answer = if response.is_null() {
        "no response".to_owned()
    } else {
        format!("{} with TTL {}", response["status"], response["ttl"])
    };
    let cost = record["waited_ns"]
        .as_u64()
        .or(record["latency_ns"].as_u64())
        .map_or_else(String::new, |ns| format!("{:9.2} ms", ns as f64 / 1e6));
    println!(
        "    {:<16} {:<4} {:<52} {:<5} {:<16} {:<10} {cost}",
        who(record),
        text(&request["method"]),
        text(&request["path"]),
        text(&request["imds_version"]),
        answer,
        text(&record["outcome"]),
    );
}

fn show_drop(record: &Value) {
    println!(
        "    {:<16} {} dropped by this kernel: {} at {}, TTL {}",
        who(record),
        text(&record["direction"]),
        text(&record["reason"]),
        text(&record["location"]),
        record["ttl"]
    );
}

fn show_finding(record: &Value) {
    let subject = &record["subject"];
    println!(
        "    >> {} {}: {}",
        text(&record["severity"]).to_uppercase(),
        text(&record["code"]),
        text(&record["summary"])
    );
    println!(
        "       {} (pid {}, cgroup {})",
        text(&subject["name"]),
        subject["process"]["pid"],
        text(&subject["process"]["cgroup"])
    );
    for command in record["remedy"]["commands"].as_array().into_iter().flatten() {
        println!("       $ {}", text(command));
    }
}
