//! Runs the observer and tcpdump on the node of a lab, and collects their output.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::client::with_signals;
use crate::topology::Lab;

/// Timeout of starting and ending a program.
const PATIENCE: Duration = Duration::from_secs(30);
/// The node's uplink.
const UPLINK: &str = "eth0";
/// Name of the node in records.
pub(super) const HOST: &str = "lab-node";

struct Ended(Child);

impl Ended {
    fn interrupt(&self) -> Result<()> {
        kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGINT)
            .with_context(|| format!("interrupt process {}", self.0.id()))
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        // Both fail only if the process has already ended, which is the aim.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(super) struct Observer {
    child: Ended,
    incoming: Receiver<String>,
    stderr: PathBuf,
    lines: Vec<String>,
}

impl Observer {
    /// Starts the observer in the node's network namespace, on the lab's cgroup. It touches nothing outside the lab, and observes when this
    /// returns.
    pub(super) fn start(lab: &Lab, program: &Path, scratch: &Path) -> Result<Self> {
        let stderr = scratch.join("observer.log");
        let mut command = with_signals(lab.node().command_beside(program)?);
        let mut child = command
            .args(["stream", "-i", UPLINK, "--host", HOST, "--cgroup"])
            .arg(lab.cgroup_directory())
            // Ctrl-C in the terminal must interrupt only this program, which then interrupts the observer.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&stderr)?)
            .spawn()
            .map(Ended)
            .with_context(|| format!("start the observer {}", program.display()))?;
        let stdout = child.0.stdout.take().context("take the observer's output")?;
        let (sender, incoming) = channel();
        thread::spawn(move || {
            BufReader::new(stdout)
                .lines()
                .map_while(Result::ok)
                .all(|line| sender.send(line).is_ok())
        });
        let mut observer = Self {
            child,
            incoming,
            stderr,
            lines: Vec::new(),
        };
        ensure!(
            observer.wait(PATIENCE, |record| record["record"] == "start")?,
            "the observer does not start: {}",
            observer.last_words()
        );
        Ok(observer)
    }

    /// Reads until a record that `wanted` accepts. Returns false if none arrived in time.
    pub(super) fn wait(&mut self, patience: Duration, mut wanted: impl FnMut(&Value) -> bool) -> Result<bool> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.incoming.recv_timeout(left) {
                Ok(line) => {
                    let record = serde_json::from_str(&line).context("read a record of the observer")?;
                    self.lines.push(line);
                    if wanted(&record) {
                        return Ok(true);
                    }
                }
                Err(RecvTimeoutError::Timeout) => return Ok(false),
                Err(RecvTimeoutError::Disconnected) => bail!("the observer ended: {}", self.last_words()),
            }
        }
    }

    /// Stops the observer with SIGINT and returns all its records.
    pub(super) fn finish(mut self) -> Result<Vec<String>> {
        self.child.interrupt()?;
        let deadline = Instant::now() + PATIENCE;
        // The observer writes its last records before it closes its output.
        loop {
            match self
                .incoming
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) => self.lines.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => bail!("the observer does not end: {}", self.last_words()),
            }
        }
        let status = self.child.0.wait().context("wait for the observer")?;
        ensure!(status.success(), "the observer: {status}: {}", self.last_words());
        Ok(std::mem::take(&mut self.lines))
    }

    pub(super) fn lines(&self) -> &[String] {
        &self.lines
    }

    fn last_words(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }
}

/// tcpdump at the node's uplink.
pub(super) struct Capture {
    child: Ended,
    file: PathBuf,
    stderr: JoinHandle<String>,
}

impl Capture {
    /// Starts the capture, which is running when this returns.
    pub(super) fn start(lab: &Lab, scratch: &Path) -> Result<Self> {
        let file = scratch.join("uplink.pcap");
        let mut command = with_signals(lab.node().command_beside("tcpdump")?);
        let mut child = command
            // `-Z root`: by default, tcpdump switches to another user, which may not write to our directory.
            .args([
                "-i",
                UPLINK,
                "-n",
                "-U",
                "--immediate-mode",
                // The kernel's ring has one slot of the snapshot length per packet. With a snapshot length of 256 KiB (`-s 0`), it would
                // hold only 64 packets.
                "-B",
                "65536",
                "-s",
                "16384",
                "-Z",
                "root",
                "-w",
            ])
            .arg(&file)
            .env("LC_ALL", "C")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map(Ended)
            .context("start tcpdump (is it installed?)")?;
        let stderr = child.0.stderr.take().context("take tcpdump's messages")?;
        let (sender, ready) = channel();
        let stderr = thread::spawn(move || {
            let mut printed = String::new();
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if line.contains("listening on") {
                    let _ = sender.send(());
                }
                printed.push_str(&line);
                printed.push('\n');
            }
            printed
        });
        let capture = Self { child, file, stderr };
        if ready.recv_timeout(PATIENCE).is_err() {
            drop(capture.child);
            let printed = capture.stderr.join().unwrap_or_default();
            bail!("tcpdump does not start: {printed}");
        }
        Ok(capture)
    }

    /// The file's bytes.
    pub(super) fn finish(mut self) -> Result<Vec<u8>> {
        self.child.interrupt()?;
        self.child.0.wait().context("wait for tcpdump")?;
        let printed = self.stderr.join().unwrap_or_default();
        ensure!(
            printed
                .lines()
                .any(|line| line.starts_with("0 packets dropped by kernel")),
            "tcpdump missed packets: {printed}"
        );
        fs::read(&self.file).with_context(|| format!("read {}", self.file.display()))
    }
}
