//! A separate tmux server: a real terminal whose screen can be read and whose keys can be pressed.

use std::{
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::PATIENCE;

/// A tmux server. It and the programs in it are ended on drop.
pub struct Tmux {
    socket: String,
}

impl Tmux {
    /// Runs a shell command in a new terminal of this size.
    pub fn start(name: &str, (columns, rows): (u16, u16), command: &str) -> Result<Self> {
        let tmux = Self {
            socket: format!("imds-observer-{name}-{}", std::process::id()),
        };
        let (columns, rows) = (columns.to_string(), rows.to_string());
        // Programs may set the clipboard, which tmux stores in a buffer that tests can read.
        tmux.run(&[
            "-f",
            "/dev/null",
            "start-server",
            ";",
            "set-option",
            "-g",
            "set-clipboard",
            "on",
            ";",
            "set-option",
            "-g",
            "default-terminal",
            "tmux-256color",
            ";",
            "new-session",
            "-d",
            "-x",
            &columns,
            "-y",
            &rows,
            command,
        ])?;
        Ok(tmux)
    }

    /// Runs a tmux command and returns its output.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.output(arguments)?;
        ensure!(
            output.status.success(),
            "tmux {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn output(&self, arguments: &[&str]) -> Result<Output> {
        Command::new("tmux")
            .args(["-L", &self.socket])
            .args(arguments)
            .output()
            .context("run tmux (cargo xtask setup --for test installs it)")
    }

    /// A key by tmux's name, or several characters.
    pub fn press(&self, key: &str) -> Result<()> {
        self.run(&["send-keys", key]).map(drop)
    }

    pub fn resize(&self, (columns, rows): (u16, u16)) -> Result<()> {
        self.run(&["resize-window", "-x", &columns.to_string(), "-y", &rows.to_string()])
            .map(drop)
    }

    /// The screen's text.
    pub fn screen(&self) -> Result<String> {
        self.run(&["capture-pane", "-p"])
    }

    /// The screen with colors, as escape sequences.
    pub fn painted_screen(&self) -> Result<String> {
        self.run(&["capture-pane", "-p", "-e"])
    }

    /// The screen and the lines above it, with wrapped lines joined.
    pub fn scrollback(&self) -> Result<String> {
        self.run(&["capture-pane", "-p", "-J", "-S", "-500"])
    }

    /// Waits until this is on the screen or in the scrollback, and returns both.
    pub fn wait_for(&self, wanted: &str) -> Result<String> {
        self.wait_until(wanted, |text| text.contains(wanted))
    }

    /// Waits until `wanted` accepts the screen and the scrollback. `what` describes the condition in errors.
    pub fn wait_until(&self, what: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = self.scrollback()?;
            if wanted(&text) {
                return Ok(text);
            }
            if Instant::now() >= deadline {
                bail!("no {what:?} on\n{text}");
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// PID of the process that runs in the terminal.
    pub fn pid(&self) -> Result<u32> {
        let pid = self.run(&["display-message", "-p", "#{pane_pid}"])?;
        pid.trim()
            .parse()
            .with_context(|| format!("read a process id from {pid:?}"))
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        let _ = self.output(&["kill-server"]);
    }
}
