//! The terminal must be restored in every case: its settings, its screen, and its cursor.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use imds_observer::filter::Kinds;
use imds_observer::sinks::Sink as _;
use imds_observer::source::ndjson;
use imds_observer::stop::Stop;
use imds_observer::watch::feed::{Feed, Trace};
use imds_observer::watch::state::Limits;
use imds_observer::watch::view::Theme;
use imds_observer::watch::{self, Parts};
use imds_observer_lab::terminal::{Control, Pty};
use nix::sys::signal::Signal;
use nix::sys::termios::LocalFlags;

use super::{trace, watch_trace};

const SIZE: (u16, u16) = (100, 30);
const TAKE: &str = "\x1b[?1049h";
const LEAVE: &str = "\x1b[?1049l";
const SHOW_CURSOR: &str = "\x1b[?25h";

/// `watch` in a terminal, with its findings on the screen.
fn start(command: Command, control: Control) -> Pty {
    let pty = Pty::spawn(command, SIZE, control).unwrap();
    pty.wait_for("token-response-lost").unwrap();
    let raw = pty.settings().unwrap().local_flags;
    assert!(!raw.intersects(LocalFlags::ICANON | LocalFlags::ECHO), "{raw:?}");
    pty
}

/// Output after the alternate screen was left.
fn after_leaving(pty: &Pty) -> String {
    let settings = pty.settings().unwrap();
    let (wanted, flags) = (
        LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG,
        settings.local_flags,
    );
    assert!(flags.contains(wanted), "{flags:?}");
    let text = pty.text();
    assert_eq!((text.matches(TAKE).count(), text.matches(LEAVE).count()), (1, 1));
    let (before, after) = text.split_once(LEAVE).unwrap();
    assert!(before.contains(TAKE) && after.contains(SHOW_CURSOR), "{after:?}");
    after.to_owned()
}

#[test]
fn after_each_way_to_end_it() {
    for end in ["q", "\x03", "\x04", "TERM", "INT", "HUP"] {
        let command = watch_trace("lost-token-pod.ndjson");
        let mut pty = start(command, Control::Controlling);
        let signal = match end {
            "TERM" => Some(Signal::SIGTERM),
            "INT" => Some(Signal::SIGINT),
            "HUP" => Some(Signal::SIGHUP),
            _ => None,
        };
        match signal {
            Some(signal) => pty.signal(signal).unwrap(),
            None => pty.press(end).unwrap(),
        }
        assert_eq!(pty.wait().unwrap().code(), Some(0), "{end:?}");
        let after = after_leaving(&pty);
        assert!(
            after.contains("analyze: imds-observer analyze") && after.contains("no records lost"),
            "{end:?}: {after}"
        );
    }
}

/// The first signal has no effect here: an incomplete key sequence was typed, and crossterm waits for its end.
#[test]
fn a_second_signal_ends_at_once_and_gives_it_back_too() {
    let mut pty = start(watch_trace("lost-token-pod.ndjson"), Control::Controlling);
    // A control sequence without its end.
    pty.press("\x1b[1;").unwrap();
    pty.signal(Signal::SIGTERM).unwrap();
    pty.signal(Signal::SIGTERM).unwrap();
    let status = pty.wait().unwrap();
    assert!(matches!(status.code(), Some(0 | 143)), "{status}");
    after_leaving(&pty);
}

#[test]
fn a_terminal_that_is_gone_is_a_normal_end_and_the_trace_is_whole() {
    for control in [Control::Controlling, Control::Plain] {
        let directory = tempfile::tempdir().unwrap();
        let mut command = watch_trace("lost-token-pod.ndjson");
        command.current_dir(directory.path());
        let mut pty = start(command, control);
        pty.press("w").unwrap();
        pty.wait_for("; press w to stop").unwrap();
        pty.hang_up();
        let status = pty.wait().unwrap();
        assert_eq!(status.code(), Some(0), "{control:?}: {status}");
        let written: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
        let written = std::fs::read_to_string(written[0].as_ref().unwrap().path()).unwrap();
        assert!(
            written.starts_with("{\"record\":\"start\"") && written.ends_with('\n'),
            "{control:?}: {written:?}"
        );
    }
}

/// Environment variable for the program that this test starts, which is itself: a file whose existence makes the program panic.
const PANICS: &str = "IMDS_OBSERVER_TEST_PANICS";
const LAST_WORDS: &str = "made up to see what becomes of the terminal";

#[test]
fn after_a_panic_in_any_thread() {
    if let Some(cue) = std::env::var_os(PANICS) {
        panic_beside_the_view(Path::new(&cue));
    }
    let directory = tempfile::tempdir().unwrap();
    let cue = directory.path().join("cue");
    let name = "terminal::restore::after_a_panic_in_any_thread";
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]).env(PANICS, &cue);
    let mut pty = Pty::spawn(command, SIZE, Control::Controlling).unwrap();
    pty.wait_for("pod payments/api").unwrap();
    std::fs::write(&cue, "").unwrap();
    assert_eq!(pty.wait().unwrap().code(), Some(101));
    let after = after_leaving(&pty);
    assert!(after.contains(LAST_WORDS), "{after}");
}

/// Runs `watch`, and then panics in the thread that feeds it.
fn panic_beside_the_view(cue: &Path) -> ! {
    let (mut feed, records) = Feed::new(1000, true);
    let _screen = watch::start(Parts {
        records,
        trace: Trace::new(Kinds::ALL, 10, 1 << 20),
        stop: Stop::on_signals().unwrap(),
        playback: None,
        theme: Theme { colour: true },
        limits: Limits::default(),
        directory: Path::new(".").to_owned(),
        confined: false,
    })
    .unwrap();
    let text = std::fs::read_to_string(trace("lost-token-pod.ndjson")).unwrap();
    for line in text.lines() {
        feed.write(&Arc::new(ndjson::parse(line.as_bytes()).unwrap()));
    }
    while !cue.exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("{LAST_WORDS}");
}
