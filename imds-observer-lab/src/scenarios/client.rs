//! A client of a scenario as a process: started, given input, ended.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::unistd::Pid;

use super::{Client, Tools};
use crate::client::{self, Script};
use crate::topology::Place;

/// Timeout of a client without `cut_s`. A client that runs longer hangs.
const PATIENCE: Duration = Duration::from_secs(180);
const TICK: Duration = Duration::from_millis(20);
/// `PATH` of clients. They find the machine's programs, but none of its settings such as proxies, profiles and keys.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A running client in its own process group. The group is ended on drop.
pub(super) struct Player {
    name: String,
    child: Child,
    cut: Option<Duration>,
    begin: Instant,
    log: std::path::PathBuf,
}

impl Player {
    pub(super) fn start(name: &str, client: &Client, place: &Place, tools: &Tools, scratch: &Path) -> Result<Self> {
        let words = words(name, client, tools, scratch)?;
        let (program, arguments) = words.split_first().with_context(|| format!("{name} has no command"))?;
        let mut command = with_signals(place.command(program)?);
        // Log of the last start, for the error message of a failure.
        let log = scratch.join(format!("{name}.log"));
        let output = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        command
            .args(arguments)
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", scratch)
            .env("LANG", "C.UTF-8")
            .envs(client.env.iter().map(|(key, value)| (key, tools.fill(value, scratch))))
            .current_dir(scratch)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(output.try_clone()?)
            .stderr(output);
        let mut child = command.spawn().with_context(|| {
            format!("start {name} ({program}; `cargo xtask setup --for scenarios` installs the clients)")
        })?;
        if let Some(input) = &client.input {
            use std::io::Write as _;
            let mut stdin = child.stdin.take().context("take a client's input")?;
            // Writing fails if the client has already ended; its exit status shows that.
            let _ = stdin.write_all(input.as_bytes());
        }
        Ok(Self {
            name: name.to_owned(),
            child,
            cut: client.cut_s.map(Duration::from_secs),
            begin: Instant::now(),
            log,
        })
    }

    pub(super) fn nudge(&mut self) -> Result<()> {
        use std::io::Write as _;
        let stdin = self
            .child
            .stdin
            .as_mut()
            .with_context(|| format!("{} takes no input", self.name))?;
        stdin
            .write_all(b"\n")
            .with_context(|| format!("give {} a line of input: {}", self.name, self.last_words()))
    }

    pub(super) fn age(&self) -> Duration {
        self.begin.elapsed()
    }

    /// Waits until the client has ended by itself, or ends it after `cut_s`. Its exit status is ignored: most clients fail as soon as they
    /// continue from IMDS to services that don't exist in the lab.
    pub(super) fn finish(&mut self) -> Result<()> {
        // A client that reads lines ends at the end of its input.
        drop(self.child.stdin.take());
        let limit = self.cut.unwrap_or(PATIENCE);
        let begin = Instant::now();
        loop {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            if begin.elapsed() >= limit {
                self.end();
                if self.cut.is_some() {
                    return Ok(());
                }
                bail!("{} does not end; its output: {}", self.name, self.last_words());
            }
            thread::sleep(TICK);
        }
    }

    /// The last lines of its output.
    pub(super) fn last_words(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    fn end(&mut self) {
        // Fails only if the group has already ended, which is the aim.
        let _ = killpg(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        self.end();
    }
}

fn words(name: &str, client: &Client, tools: &Tools, scratch: &Path) -> Result<Vec<String>> {
    if !client.is_scripted() {
        return Ok(client.command.iter().map(|word| tools.fill(word, scratch)).collect());
    }
    let script = script(client)?;
    let path = scratch.join(format!("{name}.json"));
    fs::write(&path, serde_json::to_vec(&script)?).with_context(|| format!("write {}", path.display()))?;
    let words = [tools.lab.as_path(), Path::new("client"), &path];
    Ok(words.iter().map(|word| word.to_string_lossy().into_owned()).collect())
}

/// The script of a scripted client.
fn script(client: &Client) -> Result<Script> {
    if let Some(script) = &client.script {
        return Ok(script.clone());
    }
    let name = client.preset.as_deref().unwrap_or_default();
    let mut script = client::presets()
        .into_iter()
        .find_map(|(known, script)| (known == name).then_some(script))
        .ok_or_else(|| anyhow!("there is no preset {name}"))?;
    script.rounds = client.rounds.unwrap_or(script.rounds);
    if let (Some(pause_ms), Some(first)) = (
        client.pause_ms,
        script.steps.iter_mut().find(|step| step.sleep_before_ms > 0),
    ) {
        first.sleep_before_ms = pause_ms;
    }
    Ok(script)
}

/// Unblocks signals in the child, which would otherwise inherit the blocked signals of this process.
pub(super) fn with_signals(mut command: Command) -> Command {
    let enter = || Ok(SigSet::all().thread_unblock()?);
    // SAFETY: between fork and exec it makes one system call, on memory of its own.
    unsafe { command.pre_exec(enter) };
    command
}
