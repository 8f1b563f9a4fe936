//! The observer as a child process, and its records as they arrive.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use imds_observer_lab::privileges::Privileges;
use imds_observer_lab::topology::{Lab, LabOptions, Place};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Environment variable with the factor by which timeouts are extended, for guests with an emulated processor.
const SLOWNESS: &str = "IMDS_OBSERVER_TEST_PATIENCE";
/// Environment variable: `lab` uses the lab's own client, if Python is not available.
const CLIENT: &str = "IMDS_OBSERVER_TEST_CLIENT";

/// Environment variable with the cgroup that observers attach to, instead of the lab's own. In a guest it is the root cgroup, as on a host:
/// only there, ICMP errors from a node to its pods are visible.
const CGROUP: &str = "IMDS_OBSERVER_TEST_CGROUP";

/// Timeout of all waits. A test that reaches it has failed.
pub(crate) fn patience() -> Duration {
    Duration::from_secs(20) * slowness()
}

pub(crate) fn slowness() -> u32 {
    std::env::var(SLOWNESS).map_or(1, |factor| factor.parse().expect("a whole number"))
}

/// Major and minor number of the running kernel.
pub(crate) fn kernel() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map(|number| number.trim().parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// Environment variable with the path of another program to test, for example one from `cargo xtask dist`.
const PROGRAM: &str = "IMDS_OBSERVER_TEST_PROGRAM";

pub(crate) fn program() -> PathBuf {
    std::env::var_os(PROGRAM).map_or_else(|| env!("CARGO_BIN_EXE_imds-observer").into(), PathBuf::from)
}

/// The node's uplink in every lab.
pub(crate) const UPLINK: &str = "eth0";

pub(crate) fn lab(options: LabOptions) -> Lab {
    // On every real host systemd mounts it. Without it, connect()'s error could not be read.
    if !Path::new("/sys/kernel/tracing/events").exists() {
        let source = Some("tracefs");
        nix::mount::mount(
            source,
            "/sys/kernel/tracing",
            source,
            nix::mount::MsFlags::empty(),
            None::<&str>,
        )
        .expect("mount tracefs at /sys/kernel/tracing");
    }
    Lab::new(options).expect("make a lab (needs root)")
}

/// The program, running in the lab's node and observing the lab's cgroup.
pub(crate) struct Observer {
    child: Child,
    lines: Receiver<String>,
    /// Everything on standard output so far.
    pub(crate) output: Vec<String>,
    stderr: Option<thread::JoinHandle<String>>,
}

/// Output of a finished observer.
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) records: Vec<Value>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Observer {
    /// Starts `stream` in the node, and returns when it observes.
    pub(crate) fn stream(lab: &Lab, arguments: &[&str]) -> Self {
        Self::stream_with(lab, &[], arguments)
    }

    /// Starts `stream` on the uplinks that it finds by itself.
    pub(crate) fn follow(lab: &Lab, arguments: &[&str]) -> Self {
        let cgroup = observed_cgroup(lab);
        let mut all = vec!["stream", "--cgroup", &cgroup];
        all.extend(arguments);
        let mut observer = Self::spawn(lab.node(), &[], &all);
        observer.wait_for(|record| record["record"] == "start");
        observer
    }

    /// Starts `stream` with environment variables.
    pub(crate) fn stream_with(lab: &Lab, environment: &[(&str, &str)], arguments: &[&str]) -> Self {
        let cgroup = observed_cgroup(lab);
        let mut all = vec!["stream", "-i", UPLINK, "--cgroup", &cgroup];
        all.extend(arguments);
        let mut observer = Self::spawn(lab.node(), environment, &all);
        observer.wait_for(|record| record["record"] == "start");
        observer
    }

    /// Starts any command line of the program in a place of the lab. It doesn't join the place's cgroup, so that it doesn't observe itself.
    fn spawn(place: &Place, environment: &[(&str, &str)], arguments: &[&str]) -> Self {
        let mut command = in_netns(place, program());
        // Only the observer's privileges are reduced. The tests need theirs to create and enter namespaces.
        Privileges::from_env()
            .expect("read the privileges")
            .reduce(&mut command);
        Self::start(command.args(arguments).envs(environment.iter().copied()))
    }

    /// Starts a command that writes records.
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start the observer");
        let (sender, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            stdout
                .lines()
                .map_while(Result::ok)
                .all(|line| sender.send(line).is_ok())
        });
        let mut stderr = child.stderr.take().unwrap();
        let stderr = thread::spawn(move || {
            let mut text = String::new();
            let _ = stderr.read_to_string(&mut text);
            text
        });
        Self {
            child,
            lines,
            output: Vec::new(),
            stderr: Some(stderr),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Like `wait_for`, but returns `None` if no such record arrives in time.
    pub(crate) fn try_wait_for(&mut self, patience: Duration, wanted: impl Fn(&Value) -> bool) -> Option<Value> {
        let deadline = Instant::now() + patience;
        loop {
            let line = self
                .lines
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
                .ok()?;
            let record = parse(&line);
            self.output.push(line);
            if wanted(&record) {
                return Some(record);
            }
        }
    }

    /// The next record that `wanted` accepts, among the records that arrive from now on.
    pub(crate) fn wait_for(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + patience();
        loop {
            match self
                .lines
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) => {
                    let record = parse(&line);
                    self.output.push(line);
                    if wanted(&record) {
                        return record;
                    }
                }
                Err(error) => {
                    let _ = self.child.kill();
                    let _ = self.child.wait();
                    let stderr = self.stderr.take().map(|text| text.join().unwrap()).unwrap_or_default();
                    let why = if error == RecvTimeoutError::Timeout {
                        "timed out"
                    } else {
                        "the observer ended"
                    };
                    panic!(
                        "{why} waiting for a record; it wrote:\n{}\nand on standard error:\n{stderr}",
                        self.output.join("\n")
                    );
                }
            }
        }
    }

    /// Stops the observer with SIGINT and returns its complete output.
    pub(crate) fn finish(self) -> Finished {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGINT).expect("interrupt the observer");
        self.finished()
    }

    /// Returns the output of an observer that another process has terminated.
    pub(crate) fn finished(mut self) -> Finished {
        let status = self.child.wait().expect("wait for the observer");
        // The reader ends at the end of the pipe.
        self.output.extend(self.lines.iter());
        let output = std::mem::take(&mut self.output);
        let stderr = self.stderr.take().map(|text| text.join().unwrap()).unwrap_or_default();
        let finished = Finished {
            status,
            records: output.iter().map(|line| parse(line)).collect(),
            stdout: output.join("\n"),
            stderr,
        };
        assert_eq!(
            finished.status.code(),
            Some(0),
            "{:?}: {}",
            finished.status.signal(),
            finished.stderr
        );
        finished
    }

    pub(crate) fn kill_9(mut self) {
        self.child.kill().expect("kill the observer");
        self.child.wait().expect("wait for the observer");
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The cgroup that observers of this lab attach to.
pub(crate) fn observed_cgroup(lab: &Lab) -> String {
    std::env::var(CGROUP).unwrap_or_else(|_| lab.cgroup_directory().to_str().unwrap().to_owned())
}

impl Finished {
    pub(crate) fn kind(&self, kind: &str) -> Vec<&Value> {
        self.records.iter().filter(|record| record["record"] == kind).collect()
    }

    /// Findings with this code, as they were opened.
    pub(crate) fn opened(&self, code: &str) -> Vec<&Value> {
        self.kind("finding")
            .into_iter()
            .filter(|record| record["code"] == code && record["state"] == "open")
            .collect()
    }

    /// The last record of an unresolved finding with this code.
    pub(crate) fn last_word(&self, code: &str) -> Option<&Value> {
        self.kind("finding")
            .into_iter()
            .rfind(|record| record["code"] == code && record["state"] != "resolved")
    }
}

fn parse(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("not a record: {error}: {line}"))
}

/// A command in a place's network namespace, but not in its cgroup.
pub(crate) fn in_netns(place: &Place, program: impl AsRef<OsStr>) -> Command {
    place
        .command_beside(program)
        .expect("prepare a command in the lab's namespace")
}

/// Reads the first line of a child's output, which shows the progress of its script.
pub(crate) fn first_line(child: &mut Child) -> String {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    line
}

/// Runs a client in a place. It must start, but may fail.
pub(crate) fn run(place: &Place, program: &str, arguments: &[&str]) -> std::process::Output {
    place
        .command(program)
        .expect("prepare a command in the lab")
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("run {program}: {error}"))
}

/// Directory in which `cargo xtask setup` installs tools.
pub(crate) fn tool_directory() -> PathBuf {
    std::env::var_os("IMDS_OBSERVER_TOOLS").map_or_else(
        || Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".local/share/imds-observer-tools"),
        PathBuf::from,
    )
}

/// Path of one of these tools.
pub(crate) fn tool(name: &str) -> PathBuf {
    let path = tool_directory().join("bin").join(name);
    assert!(
        path.exists(),
        "{} is missing: run `cargo xtask setup --for test`",
        path.display()
    );
    path
}

/// Python with botocore, made by `cargo xtask setup --for test`.
pub(crate) fn python() -> PathBuf {
    std::env::var_os("IMDS_OBSERVER_PYTHON").map_or_else(
        || {
            let home = std::env::var_os("HOME").unwrap_or_default();
            Path::new(&home).join(".local/share/imds-observer-tools/venv/bin/python3")
        },
        PathBuf::from,
    )
}

/// Fetches credentials once with the real SDK, as an application does when it starts.
const BOTOCORE: &str = "
import botocore.session
credentials = botocore.session.get_session().get_credentials()
print('have credentials' if credentials and credentials.access_key else 'no credentials')
";

fn botocore(place: &Place) -> std::process::Output {
    let python = python();
    assert!(
        python.exists(),
        "{} is missing: run `cargo xtask setup --for test`",
        python.display()
    );
    place
        .command(python)
        .expect("prepare a command in the lab")
        .args(["-c", BOTOCORE])
        .env_remove("AWS_CA_BUNDLE")
        .env_remove("AWS_REGION")
        .env_remove("AWS_DEFAULT_REGION")
        .env("AWS_CONFIG_FILE", "/nonexistent")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        .output()
        .expect("run botocore")
}

/// Fetches credentials as botocore does, and returns whether it succeeded.
pub(crate) fn fetch_credentials(place: &Place) -> bool {
    if std::env::var(CLIENT).is_ok_and(|client| client == "lab") {
        let output = run_script(place, &imds_observer_lab::client::botocore());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let outcomes = String::from_utf8(output.stdout).unwrap();
        let last: Value = serde_json::from_str(outcomes.lines().last().unwrap()).unwrap();
        return last["status"] == 200;
    }
    let output = botocore(place);
    String::from_utf8_lossy(&output.stdout).trim() == "have credentials"
}

/// Path of a place's cgroup as in records.
pub(crate) fn cgroup_of(place: &Place) -> String {
    format!("/{}", place.cgroup().path().trim_start_matches('/'))
}

/// Output of a program that only reads.
pub(crate) fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("run {program}: {error}"));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether a process exists.
pub(crate) fn lives(pid: u32) -> bool {
    fs::metadata(format!("/proc/{pid}")).is_ok()
}

/// Runs the lab's own client in a place, as a separate process.
pub(crate) fn run_script(place: &Place, script: &imds_observer_lab::client::Script) -> std::process::Output {
    let file = tempfile::NamedTempFile::new().expect("make a temporary file");
    serde_json::to_writer(&file, script).expect("write a script");
    run(
        place,
        lab_binary().to_str().unwrap(),
        &["client", file.path().to_str().unwrap()],
    )
}

pub(crate) fn lab_binary() -> PathBuf {
    // In the parent of the test's own directory: target/debug/deps/live-... -> target/debug/imds-observer-lab.
    let own = std::env::current_exe().unwrap();
    let binary = own.ancestors().nth(2).unwrap().join("imds-observer-lab");
    assert!(
        binary.exists(),
        "{} is missing: run `cargo build -p imds-observer-lab`",
        binary.display()
    );
    binary
}
