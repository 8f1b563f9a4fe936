//! A recorded trace in the view, with every key.

use imds_observer_lab::terminal::Tmux;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{PROGRAM, trace};

/// Runs `watch` on a trace, and then prints the remaining terminal settings.
fn command(directory: &str) -> String {
    let trace = trace("lost-token-pod.ndjson");
    format!(
        "cd {directory}; {PROGRAM} watch --from {} --speed max; echo \"status $?\"; stty -a | grep -ow -e '-*icanon' -e '-*echo'; \
         echo end; cat",
        trace.display()
    )
}

#[test]
fn a_trace_is_played_opened_written_and_summed_up() {
    let directory = tempfile::tempdir().unwrap();
    let tmux = Tmux::start("keys", (100, 30), &command(directory.path().to_str().unwrap())).unwrap();
    let overview = tmux.wait_for("HIGH token-response-lost").unwrap();
    assert!(
        overview.contains("PROCESSES 1") && overview.contains("hop limit 1"),
        "{overview}"
    );
    tmux.press("Enter").unwrap();
    let detail = tmux.wait_for("LAST EXCHANGES").unwrap();
    assert!(
        detail.contains("containerd-shim") && detail.contains("PATHS"),
        "{detail}"
    );
    tmux.press("w").unwrap();
    tmux.wait_for("writing imds-observer-").unwrap();
    tmux.press("w").unwrap();
    tmux.wait_for("wrote imds-observer-").unwrap();
    tmux.press("Escape").unwrap();
    tmux.wait_for("FINDINGS 2").unwrap();
    // Narrower than the narrowest set of columns.
    tmux.resize((40, 20)).unwrap();
    tmux.wait_for("q quit ? help / filter ↵ open Tab pane").unwrap();
    tmux.press("q").unwrap();
    let text = tmux.wait_for("\nend").unwrap();
    for wanted in [
        "status 0",
        "analyze: imds-observer analyze",
        "no records lost",
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
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let tmux = Tmux::start(signal.as_str(), (80, 24), &command("/")).unwrap();
        tmux.wait_for("token-response-lost").unwrap();
        let shell = tmux.pid().unwrap();
        let children = std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children")).unwrap();
        let observer = children.split_whitespace().next().unwrap().parse().unwrap();
        kill(Pid::from_raw(observer), signal).unwrap();
        let text = tmux.wait_for("\nend").unwrap();
        assert!(text.contains("status 0") && text.contains("\nicanon"), "{text}");
    }
}
