//! The interactive view in a real terminal: tmux shows what a person would see, and types what one would type.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Longer than anything here takes; a test that hits it has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// A terminal of its own server, gone with the test.
struct Tmux {
    socket: String,
}

impl Tmux {
    /// Runs a shell command in it.
    fn start(name: &str, (width, height): (u16, u16), command: &str) -> Self {
        let tmux = Self {
            socket: format!("imds-observer-{name}-{}", std::process::id()),
        };
        let (width, height) = (width.to_string(), height.to_string());
        let output = tmux.run(&[
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            &width,
            "-y",
            &height,
            command,
        ]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        tmux
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new("tmux")
            .args(["-L", &self.socket])
            .args(arguments)
            .output()
            .expect("run tmux (cargo xtask setup --for test installs it)")
    }

    fn press(&self, key: &str) {
        assert!(self.run(&["send-keys", key]).status.success());
    }

    /// Waits until this stands on the screen, the scrollback included, and gives all of it.
    fn wait_for(&self, wanted: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.run(&["capture-pane", "-p", "-J", "-S", "-200"]);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            if text.contains(wanted) {
                return text;
            }
            assert!(Instant::now() < deadline, "no {wanted:?} on\n{text}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        self.run(&["kill-server"]);
    }
}

/// `watch` over a trace, then what is left of the terminal's settings.
fn command(directory: &str) -> String {
    let program = env!("CARGO_BIN_EXE_imds-observer");
    let trace = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/traces/lost-token-pod.ndjson");
    format!(
        "cd {directory}; {program} watch --from {trace} --speed max; echo \"status $?\"; stty -a | grep -ow -e '-*icanon' -e '-*echo'; \
         echo end; cat"
    )
}

#[test]
fn a_trace_is_played_opened_written_and_summed_up() {
    let directory = tempfile::tempdir().unwrap();
    let tmux = Tmux::start("keys", (100, 30), &command(directory.path().to_str().unwrap()));
    let overview = tmux.wait_for("HIGH token-response-lost");
    assert!(
        overview.contains("PROCESSES 1") && overview.contains("hop limit 1"),
        "{overview}"
    );
    tmux.press("Enter");
    let detail = tmux.wait_for("LAST EXCHANGES");
    assert!(
        detail.contains("containerd-shim") && detail.contains("PATHS"),
        "{detail}"
    );
    tmux.press("w");
    tmux.wait_for("writing imds-observer-");
    tmux.press("w");
    tmux.wait_for("wrote imds-observer-");
    tmux.press("Escape");
    tmux.wait_for("FINDINGS 2");
    // Narrower than any column set was made for.
    assert!(tmux.run(&["resize-window", "-x", "40", "-y", "20"]).status.success());
    tmux.wait_for("q quit ? help / filter ↵ open Tab pane");
    tmux.press("q");
    let text = tmux.wait_for("\nend");
    for wanted in [
        "status 0",
        "again: imds-observer analyze",
        "nothing was lost",
        "\nicanon",
        "\necho\n",
    ] {
        assert!(text.contains(wanted), "{wanted:?} is missing:\n{text}");
    }
    assert!(!text.contains("-icanon") && !text.contains("LAST EXCHANGES"), "{text}");
    let written: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
    let written = std::fs::read_to_string(written[0].as_ref().unwrap().path()).unwrap();
    assert!(written.starts_with("{\"record\":\"start\""), "{written}");
}

#[test]
fn a_signal_gives_the_terminal_back() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let tmux = Tmux::start(signal.as_str(), (80, 24), &command("/"));
        tmux.wait_for("token-response-lost");
        let shell = tmux.run(&["display-message", "-p", "#{pane_pid}"]);
        let shell = String::from_utf8(shell.stdout).unwrap();
        let children = format!("/proc/{0}/task/{0}/children", shell.trim());
        let children = std::fs::read_to_string(children).unwrap();
        let observer = children.split_whitespace().next().unwrap().parse().unwrap();
        kill(Pid::from_raw(observer), signal).unwrap();
        let text = tmux.wait_for("\nend");
        assert!(text.contains("status 0") && text.contains("\nicanon"), "{text}");
    }
}
