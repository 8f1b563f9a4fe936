//! Runs the live view in a lab, to measure its start-up time and its cost, and to draw pictures of it.
//!
//! `cargo xtask bench watch` and `cargo xtask screenshot` run it. All load is bounded and stays in the lab.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{self, Write as _},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};
use imds_observer_lab::{
    client::{self, Script, Step, TokenUse},
    server::ControlClient,
    terminal::{Control, Pty, Tmux},
    topology::{IMDS_PORT, IMDS_V4, Lab, LabOptions, Place, PodCgroup, PodOptions},
};
use nix::sys::signal::Signal;

#[derive(Parser)]
struct Cli {
    /// The program to look at
    #[arg(long)]
    observer: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Time to the first picture, and share of a core under load, compared with `stream` under the same load
    Measure {
        /// Approximate number of exchanges a second
        #[arg(long, default_value_t = 1000)]
        rate: u32,
        /// Duration of the measurement under load
        #[arg(long, default_value_t = 20)]
        seconds: u64,
    },
    /// Prints the view of an incident as SVG
    Picture,
    /// Prints the report of `exec` on a client behind a hop limit that is too small, as SVG
    Exec {
        /// Python with botocore
        #[arg(long)]
        python: PathBuf,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.verb {
        Verb::Measure { rate, seconds } => measure(&cli.observer, rate, Duration::from_secs(seconds)),
        Verb::Picture => picture(&cli.observer),
        Verb::Exec { python } => exec(&cli.observer, &python),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("imds-observer-screen: {error:#}");
            ExitCode::FAILURE
        }
    }
}

const UPLINK: &str = "eth0";
const TERMINAL: (u16, u16) = (120, 40);
/// Number of starts that are timed up to the first picture.
const STARTS: usize = 9;
/// Requests per second of one client.
const CLIENT_RATE: u32 = 100;
/// Text that the view draws as soon as it observes; unchanged cells are not drawn again.
const LIVE: &str = "requests to IMDS";

/// Returns the observer in the node's network namespace, on the lab's cgroup. It runs outside that cgroup, so that it doesn't observe
/// itself.
fn observer(lab: &Lab, program: &Path, verb: &str) -> Result<Command> {
    let mut command = lab.node().command_beside(program)?;
    command
        .args([verb, "-i", UPLINK, "--host", "node-1", "--cgroup"])
        .arg(lab.cgroup_directory())
        .env("TERM", "xterm-256color")
        .env_remove("NO_COLOR");
    Ok(command)
}

fn measure(program: &Path, rate: u32, span: Duration) -> Result<()> {
    let lab = Lab::new(LabOptions::default())?;
    first_picture(&lab, program)?;

    let (watch, bytes_per_s) = {
        let mut pty = Pty::spawn(observer(&lab, program, "watch")?, TERMINAL, Control::Controlling)?;
        pty.wait_for(LIVE)?;
        let before = pty.bytes().len();
        let cost = under_load(&lab, pty.pid(), rate, span)?;
        let written = pty.bytes().len() - before;
        pty.press("q")?;
        ensure!(pty.wait()?.success(), "watch failed: {}", pty.text());
        let bytes_per_s = written as f64 / cost.seconds;
        (cost, bytes_per_s)
    };
    let stream = {
        let mut command = observer(&lab, program, "stream")?;
        command.args(["-w", "/dev/null"]);
        let mut pty = Pty::spawn(command, TERMINAL, Control::Controlling)?;
        let cost = under_load(&lab, pty.pid(), rate, span)?;
        pty.signal(Signal::SIGINT)?;
        ensure!(pty.wait()?.success(), "stream failed: {}", pty.text());
        cost
    };
    println!(
        "\n| under load | exchanges/s | of a core | us an exchange | its threads, of a core |\n|---|---|---|---|---|"
    );
    for (name, cost) in [("`watch`", &watch), ("`stream -w /dev/null`", &stream)] {
        let threads: Vec<String> = cost
            .threads
            .iter()
            .map(|(thread, ns)| format!("{thread} {:.2} %", *ns as f64 / 1e7 / cost.seconds))
            .collect();
        println!(
            "| {name} | {:.0} | {:.2} % | {:.1} | {} |",
            cost.rate(),
            cost.share() * 100.0,
            cost.per_exchange_us(),
            threads.join(", "),
        );
    }
    println!("\n`watch` wrote {:.1} KB/s to the terminal.", bytes_per_s / 1000.0);
    Ok(())
}

fn first_picture(lab: &Lab, program: &Path) -> Result<()> {
    let (mut painted, mut live) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let mut pty = Pty::spawn(observer(lab, program, "watch")?, TERMINAL, Control::Controlling)?;
        // Text on the last line of the first picture.
        painted.push(pty.wait_for("q quit")?);
        live.push(pty.wait_for(LIVE)?);
        pty.press("q")?;
        ensure!(pty.wait()?.success(), "watch failed: {}", pty.text());
    }
    println!("| from exec to, {STARTS} starts | median, ms | longest, ms |\n|---|---|---|");
    for (what, mut times) in [("first picture", painted), ("attached and observing", live)] {
        times.sort_unstable();
        println!(
            "| {what} | {:.0} | {:.0} |",
            times[STARTS / 2].as_secs_f64() * 1e3,
            times[STARTS - 1].as_secs_f64() * 1e3
        );
    }
    Ok(())
}

/// Resources that a process used for a number of exchanges.
struct Cost {
    seconds: f64,
    exchanges: u64,
    /// CPU time in ns, by name of the thread.
    threads: BTreeMap<String, u64>,
}

impl Cost {
    fn share(&self) -> f64 {
        self.threads.values().sum::<u64>() as f64 / 1e9 / self.seconds
    }

    fn rate(&self) -> f64 {
        self.exchanges as f64 / self.seconds
    }

    fn per_exchange_us(&self) -> f64 {
        self.share() * 1e6 / self.rate()
    }
}

fn under_load(lab: &Lab, pid: u32, rate: u32, span: Duration) -> Result<Cost> {
    let mut control = ControlClient::connect(&lab.control_socket())?;
    let begun = control.stats()?.requests;
    let program = lab_program()?;
    let clients: Result<Vec<Ended>> = (0..rate.div_ceil(CLIENT_RATE))
        .map(|number| start_client(lab.node(), &program, &poller(number, span)))
        .collect();
    let _clients = clients?;
    // The measurement begins when all clients run. They run for up to ten seconds longer than the measurement.
    let deadline = Instant::now() + Duration::from_secs(20);
    while control.stats()?.requests < begun + u64::from(rate) {
        ensure!(Instant::now() < deadline, "the clients don't get going");
        thread::sleep(Duration::from_millis(20));
    }
    let (from, before, requests) = (Instant::now(), threads(pid)?, control.stats()?.requests);
    thread::sleep(span);
    let (after, exchanges) = (threads(pid)?, control.stats()?.requests - requests);
    let mut by_name = BTreeMap::new();
    for (thread, (name, ns)) in after {
        let earlier = before.get(&thread).map_or(0, |(_, ns)| *ns);
        *by_name.entry(name).or_default() += ns.saturating_sub(earlier);
    }
    Ok(Cost {
        seconds: from.elapsed().as_secs_f64(),
        exchanges,
        threads: by_name,
    })
}

/// Returns a script that gets one token and then sends a request every 10 ms, each on its own connection. It runs for at most ten seconds
/// longer than the measurement.
fn poller(number: u32, span: Duration) -> Script {
    let steps = vec![
        Step {
            method: "PUT".to_owned(),
            path: client::TOKEN_PATH.to_owned(),
            token_ttl_s: Some(21_600),
            only_in_round: Some(0),
            ..Step::default()
        },
        Step {
            path: "/latest/meta-data/instance-id".to_owned(),
            token: TokenUse::IfHeld,
            sleep_before_ms: u64::from(1000 / CLIENT_RATE),
            ..Step::default()
        },
    ];
    Script {
        target: (IMDS_V4, IMDS_PORT).into(),
        comm: Some(format!("poller-{number}")),
        user_agent: None,
        rounds: (span.as_secs() as u32 + 10) * CLIENT_RATE,
        steps,
    }
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

/// Path of the lab's program, which is in the directory of this program.
fn lab_program() -> Result<PathBuf> {
    let own = std::env::current_exe().context("find this program")?;
    Ok(own.with_file_name("imds-observer-lab"))
}

fn start_client(place: &Place, program: &Path, script: &Script) -> Result<Ended> {
    let mut child = place
        .command(program)?
        .args(["client", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .map(Ended)
        .with_context(|| format!("start {}", program.display()))?;
    let mut stdin = child.0.stdin.take().context("take a client's input")?;
    serde_json::to_writer(&mut stdin, script).context("write a script")?;
    Ok(child)
}

/// Name and CPU time in ns of each thread.
fn threads(pid: u32) -> Result<BTreeMap<u32, (String, u64)>> {
    let mut all = BTreeMap::new();
    let tasks = format!("/proc/{pid}/task");
    for task in fs::read_dir(&tasks).with_context(|| format!("read {tasks}"))? {
        let task = task?.path();
        let Some(tid) = task.file_name().and_then(|name| name.to_str()?.parse().ok()) else {
            continue;
        };
        // Reading fails if the thread has ended.
        let (Ok(name), Ok(times)) = (
            fs::read_to_string(task.join("comm")),
            fs::read_to_string(task.join("schedstat")),
        ) else {
            continue;
        };
        let ns = times.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0);
        all.insert(tid, (name.trim().to_owned(), ns));
    }
    Ok(all)
}

/// Invented IDs in the format of real ones.
const POD_UID: &str = "6e1c5a52-3f0b-4a7e-9d0c-2b8f4a1e7c33";
const CONTAINER_ID: &str = "0f8a1c5d9b3e7a2f4c6d8e0b1a3c5e7f9d2b4a6c8e0f1a3b5c7d9e1f3a5b7c9d";
const POD: &str = "payments_api-7c9d8b6f5d-x2x4z";
/// Shell loop around curl, which ends by itself after 60 s.
const LOOP: &str = "end=$((SECONDS + 60)); while [ $SECONDS -lt $end ]; do \
    curl -s -o /dev/null http://169.254.169.254/latest/meta-data/instance-id; done";
const PICTURE: (u16, u16) = (110, 30);

fn picture(program: &Path) -> Result<()> {
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
    let host = HostRoot::make(&std::env::temp_dir().join(format!("imds-observer-screen-{}", std::process::id())))?;
    let command = format!(
        "nsenter --net={} {} watch -i {UPLINK} --host ip-10-0-1-5 --cgroup {} --host-root {}",
        lab.node().netns().path().display(),
        program.display(),
        lab.cgroup_directory().display(),
        host.0.display()
    );
    let tmux = Tmux::start("picture", PICTURE, &command)?;
    tmux.wait_for(LIVE)?;
    let _loop = lab.node().command("bash")?.args(["-c", LOOP]).spawn().map(Ended)?;
    // A copy with its own name, because the view distinguishes processes by their program.
    let healthy = host.0.join("healthy-poller");
    fs::copy(lab_program()?, &healthy).context("copy the lab's client")?;
    let script = client::node_termination_handler(30, 2000);
    let _healthy = start_client(lab.node(), &healthy, &script)?;
    for _ in 0..3 {
        start_client(lab.pod(0), &lab_program()?, &client::problem_report())?
            .0
            .wait()?;
    }
    tmux.wait_for("token-response-lost")?;
    tmux.wait_for("tight-polling")?;
    // Both sparklines need some history.
    tmux.wait_until("20 seconds of it", |text| text.contains("live, 2"))?;
    let svg = svg("imds-observer watch: an incident", &tmux.painted_screen()?, PICTURE)?;
    tmux.press("q")?;
    io::stdout().write_all(svg.as_bytes()).context("print the picture")
}

/// The size of a terminal in which no line of the report is cut.
const EXEC: (u16, u16) = (144, 30);
/// The command that the picture shows, and that is executed.
const TYPED: &str = "imds-observer exec --against hop-limit=1,hops=1 --assert 'no v1, waited < 1s' -- python3 app.py";
const APP: &str = "\
import sys
import botocore.session
credentials = botocore.session.get_session().get_credentials()
sys.exit(0 if credentials and credentials.access_key else 1)
";

fn exec(program: &Path, python: &Path) -> Result<()> {
    // The lab is used only for its node's network namespace, which has no route to the outside either.
    let lab = Lab::new(LabOptions::default())?;
    let directory = tempfile::tempdir()?;
    fs::write(directory.path().join("app.py"), APP)?;
    symlink(program, directory.path().join("imds-observer"))?;
    let binaries = python.parent().context("--python is a path")?;
    let script = format!(
        "#!/bin/sh\ncd {directory}\nexport PATH={directory}:{}:$PATH AWS_CONFIG_FILE=/nonexistent \
         AWS_SHARED_CREDENTIALS_FILE=/nonexistent\ncat <<'END'\n$ sudo {TYPED}\nEND\n{TYPED}\nread line\n",
        binaries.display(),
        directory = directory.path().display(),
    );
    let file = directory.path().join("session");
    fs::write(&file, script)?;
    let netns = lab.node().netns().path().display();
    let command = format!("nsenter --net={netns} sh {}", file.display());
    let tmux = Tmux::start("exec", EXEC, &command)?;
    tmux.wait_for("FAILED waited")?;
    let svg = svg(
        "imds-observer exec: a lost token response",
        &tmux.painted_screen()?,
        EXEC,
    )?;
    io::stdout().write_all(svg.as_bytes()).context("print the picture")
}

/// Directory in which the observer looks up the pod's name: a kubelet's log tree. It is deleted on drop.
struct HostRoot(PathBuf);

impl HostRoot {
    fn make(path: &Path) -> Result<Self> {
        let root = Self(path.to_owned());
        let logs = path.join(format!("var/log/pods/{POD}_{POD_UID}/api"));
        fs::create_dir_all(&logs).with_context(|| format!("make {}", logs.display()))?;
        fs::write(logs.join("0.log"), "")?;
        symlink("/proc", path.join("proc"))?;
        Ok(root)
    }
}

impl Drop for HostRoot {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Size of a character cell in pixels.
const CELL: (u16, u16) = (9, 19);
const MARGIN: u16 = 8;
const BACKGROUND: &str = "#1c1f26";
const FOREGROUND: &str = "#d8dbe2";

#[derive(Clone, Copy, Default, PartialEq)]
struct Style {
    colour: Option<u8>,
    bold: bool,
    dim: bool,
    reversed: bool,
}

impl Style {
    /// Applies the parameters of one SGR sequence.
    fn change(&mut self, parameters: &str) {
        let mut numbers = parameters.split(';').map(|number| number.parse().unwrap_or(0_u8));
        while let Some(number) = numbers.next() {
            match number {
                0 => *self = Self::default(),
                1 => self.bold = true,
                2 => self.dim = true,
                7 => self.reversed = true,
                22 => (self.bold, self.dim) = (false, false),
                27 => self.reversed = false,
                30..=37 => self.colour = Some(number - 30),
                39 => self.colour = None,
                38 => self.colour = numbers.nth(1),
                _ => {}
            }
        }
    }

    fn fill(self) -> &'static str {
        match self.colour {
            Some(1) => "#ff6b68",
            Some(5) => "#d18bf0",
            _ => FOREGROUND,
        }
    }
}

/// Draws a screen with its escape sequences as SVG, with one `text` element per run of one style.
fn svg(title: &str, screen: &str, (columns, rows): (u16, u16)) -> Result<String> {
    let (width, height) = (columns * CELL.0 + 2 * MARGIN, rows * CELL.1 + 2 * MARGIN);
    let mut out = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" font-family="ui-monospace, 'DejaVu Sans Mono', monospace" font-size="15"><title>{title}</title><rect width="100%" height="100%" rx="8" fill="{BACKGROUND}"/>
"#
    );
    let mut style = Style::default();
    for (y, line) in (0..rows).zip(screen.lines()) {
        let (mut x, mut text) = (0, String::new());
        let mut rest = line.chars();
        while let Some(character) = rest.next() {
            if character != '\x1b' {
                text.push(character);
                continue;
            }
            ensure!(
                rest.next() == Some('['),
                "only styles are to be in a captured line: {line:?}"
            );
            let parameters: String = rest.by_ref().take_while(|last| *last != 'm').collect();
            let before = style;
            style.change(&parameters);
            if style != before {
                run(&mut out, (x, y), &text, before);
                x += text.chars().count() as u16;
                text.clear();
            }
        }
        run(&mut out, (x, y), &text, style);
    }
    out.push_str("</svg>\n");
    Ok(out)
}

fn run(out: &mut String, (x, y): (u16, u16), text: &str, style: Style) {
    let (top, cells) = (MARGIN + y * CELL.1, text.chars().count() as u16);
    let mut fill = style.fill();
    if style.reversed && cells > 0 {
        let (left, width) = (MARGIN + x * CELL.0, cells * CELL.0);
        let _ = writeln!(
            out,
            r#"<rect x="{left}" y="{top}" width="{width}" height="{}" fill="{fill}"/>"#,
            CELL.1
        );
        fill = BACKGROUND;
    }
    let weight = if style.bold { r#" font-weight="bold""# } else { "" };
    let dim = if style.dim { r#" opacity="0.6""# } else { "" };
    // Viewers collapse consecutive spaces, so each word gets its own position.
    let mut rest = text;
    let mut at = x;
    while let Some(begin) = rest.find(|character| character != ' ') {
        at += begin as u16;
        rest = &rest[begin..];
        let (piece, after) = rest.split_at(rest.find("  ").unwrap_or(rest.trim_end().len()));
        let cells = piece.chars().count() as u16;
        let _ = writeln!(
            out,
            r#"<text x="{}" y="{}" textLength="{}" fill="{fill}"{weight}{dim}>{}</text>"#,
            MARGIN + at * CELL.0,
            top + 14,
            cells * CELL.0,
            piece.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
        );
        at += cells;
        rest = after;
    }
}
