//! An incident in the live view: a loop of curls on the node, and a pod whose token responses are dropped because of the hop limit.

use std::process::{Child, Command};

use imds_observer_lab::client;
use imds_observer_lab::terminal::Tmux;
use imds_observer_lab::topology::{Lab, LabOptions, PodCgroup, PodOptions};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{PROGRAM, watch_lab};
use crate::support::{lab, run_script};

fn pod() -> LabOptions {
    LabOptions {
        pods: vec![PodOptions {
            cgroup: PodCgroup::Kubepods {
                qos: "besteffort".to_owned(),
                uid: "6e1c5a52-3f0b-4a7e-9d0c-2b8f4a1e7c33".to_owned(),
                container_id: "0f8a1c5d9b3e7a2f4c6d8e0b1a3c5e7f9d2b4a6c8e0f1a3b5c7d9e1f3a5b7c9d".to_owned(),
            },
            nested: false,
        }],
        ..LabOptions::default()
    }
}

/// A loop that ends by itself, even if the test is killed. When interrupted, it waits for its last curl, which would otherwise become an
/// orphan.
struct Loop(Child);

impl Loop {
    fn start(lab: &Lab) -> Self {
        let script = "trap 'exit 0' INT; end=$((SECONDS+60)); while [ $SECONDS -lt $end ]; do \
            curl -s -o /dev/null http://169.254.169.254/latest/meta-data/instance-id; done";
        let shell = lab.node().command("bash").unwrap().args(["-c", script]).spawn();
        Self(shell.unwrap())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGINT);
        let _ = self.0.wait();
    }
}

/// The line that contains a text.
fn line<'a>(screen: &'a str, part: &str) -> &'a str {
    screen
        .lines()
        .find(|line| line.contains(part))
        .unwrap_or_else(|| panic!("no {part:?} on\n{screen}"))
}

fn position(screen: &str, part: &str) -> usize {
    screen.find(part).unwrap_or_else(|| panic!("no {part:?} on\n{screen}"))
}

#[test]
#[ignore = "live"]
fn who_how_often_since_when_what_is_wrong_and_what_to_type() {
    let lab = lab(pod());
    let directory = tempfile::tempdir().unwrap();
    let command = format!(
        "cd {}; {}; echo \"status $?\"; cat",
        directory.path().display(),
        watch_lab(&lab)
    );
    let tmux = Tmux::start("incident", (120, 45), &command).unwrap();
    tmux.wait_for("no requests to IMDS yet").unwrap();
    let curls = Loop::start(&lab);
    let output = run_script(lab.pod(0), &client::problem_report());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    // The overview.
    let lost = "token-response-lost";
    tmux.wait_for("tight-polling curl (parent bash").unwrap();
    tmux.wait_for(lost).unwrap();
    // Packets are counted once a second, and reported with the summary.
    let screen = tmux.wait_for("packets ").unwrap();
    for wanted in ["live, ", " req/s ", "% of 1024", "hop limit 1", "v1 "] {
        assert!(screen.contains(wanted), "{wanted:?} is missing:\n{screen}");
    }
    assert!(line(&screen, lost).contains(" since "), "{screen}");
    assert!(screen.contains("do: Set the hop limit to 2"), "{screen}");
    let row = line(&screen, "> curl (parent bash");
    assert!(row.split_whitespace().count() > 6, "{row}");

    // Sorting: the loop sends more requests, the pod has more errors.
    let loser = |screen: &str| position(screen, "pod 6e1c5a52");
    assert!(position(&screen, "curl (parent bash") < loser(&screen), "{screen}");
    tmux.press("s").unwrap();
    tmux.wait_for("by errors").unwrap();
    tmux.press("s").unwrap();
    let screen = tmux.wait_for("by lost").unwrap();
    assert!(loser(&screen) < position(&screen, "curl (parent bash"), "{screen}");

    // Filtering.
    tmux.press("/").unwrap();
    tmux.press("6e1c5a52").unwrap();
    tmux.press("Enter").unwrap();
    let screen = tmux.wait_for("filter /6e1c5a52").unwrap();
    assert!(
        screen.contains("PROCESSES 1") && !screen.contains("curl (parent"),
        "{screen}"
    );

    // The opened pod: its requests, its waiting time and its lost responses.
    tmux.press("Enter").unwrap();
    // The screen may be read while it is being drawn.
    for wanted in [
        "PUT token",
        "lost",
        "200 arrived with TTL 1 after",
        "not delivered",
        "retransmitted",
        "ICMP 11/0 sent",
        "response dropped in ip_forward: IP_INHDR, TTL 1",
        "GET iam/security-credentials/ v1",
        "requests 63, responses 1 to 255",
        "below ",
        "statuses   200:",
    ] {
        tmux.wait_for(wanted).unwrap();
    }
    tmux.press("Escape").unwrap();
    // The program would read a key directly after Escape as that key with Alt.
    tmux.wait_for("PROCESSES 1").unwrap();
    tmux.press("Escape").unwrap();
    tmux.wait_for("PROCESSES 2").unwrap();

    // The remedy is copied to the clipboard, which is tmux's here.
    tmux.press("Tab").unwrap();
    tmux.wait_for("▌ FINDINGS").unwrap();
    for _ in 0..5 {
        tmux.press("k").unwrap();
    }
    // Findings are ordered by severity, then by age, so either finding may come first.
    for _ in 0..5 {
        if tmux.screen().unwrap().contains("> HIGH token-response-lost") {
            break;
        }
        tmux.press("j").unwrap();
        tmux.wait_until("another finding selected", |text| {
            !text.contains("> HIGH tight-polling")
        })
        .unwrap();
    }
    tmux.press("y").unwrap();
    tmux.wait_for(" to the clipboard").unwrap();
    tmux.wait_until("a remedy in the clipboard", |_| {
        tmux.run(&["show-buffer"])
            .is_ok_and(|text| text.contains("--http-put-response-hop-limit 2"))
    })
    .unwrap();

    // Paused: the display is frozen while the loop continues.
    tmux.press("p").unwrap();
    tmux.wait_for("PAUSED").unwrap();
    let picture = tmux.screen().unwrap();
    let served = lab.server().log().requests.len();
    while lab.server().log().requests.len() < served + 20 {
        std::thread::yield_now();
    }
    assert_eq!(tmux.screen().unwrap(), picture);
    tmux.press("p").unwrap();
    tmux.wait_until("a live picture", |text| !text.contains("PAUSED"))
        .unwrap();

    // The trace.
    tmux.press("w").unwrap();
    tmux.wait_for("; press w to stop").unwrap();
    let served = lab.server().log().requests.len();
    while lab.server().log().requests.len() < served + 20 {
        std::thread::yield_now();
    }
    tmux.press("w").unwrap();
    tmux.wait_for("wrote imds-observer-").unwrap();
    drop(curls);

    // The end of the program, and the remaining output.
    tmux.press("q").unwrap();
    let text = tmux.wait_for("status 0").unwrap();
    for wanted in [
        " requests of 2 callers, ",
        "HIGH token-response-lost",
        "$ aws ec2 modify",
    ] {
        assert!(text.contains(wanted), "{wanted:?} is missing:\n{text}");
    }
    let again = line(&text, "analyze: imds-observer analyze ");
    let file = again.split_whitespace().last().unwrap();
    let output = Command::new(PROGRAM)
        .args(["analyze", file])
        .current_dir(directory.path())
        .output()
        .unwrap();
    let reported = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(reported.contains("curl"), "{reported}");
}

#[test]
#[ignore = "live"]
fn ctrl_c_ends_it_with_a_summary() {
    let lab = lab(pod());
    let command = format!("{}; echo \"status $?\"; cat", watch_lab(&lab));
    let tmux = Tmux::start("interrupt", (100, 30), &command).unwrap();
    tmux.wait_for("no requests to IMDS yet").unwrap();
    let output = run_script(lab.node(), &client::botocore());
    assert!(output.status.success());
    tmux.wait_for("3 requests").unwrap();
    tmux.press("C-c").unwrap();
    let text = tmux.wait_for("status 0").unwrap();
    for wanted in [
        "3 requests of 1 caller, 0 findings",
        "no records lost",
        "not recorded (press w in the view, or run: imds-observer stream -w",
    ] {
        assert!(text.contains(wanted), "{wanted:?} is missing:\n{text}");
    }
}

/// Plain text for pipes and screen readers: no escape sequences, and each finding with its remedy.
#[test]
#[ignore = "live"]
fn plain_text_reports_the_same() {
    let lab = lab(pod());
    let cgroup = lab.cgroup_directory();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("plain");
    let mut observer = crate::support::in_netns(lab.node(), PROGRAM)
        .args(["watch", "--plain", "--interval", "1s", "-i", crate::support::UPLINK])
        .arg("--cgroup")
        .arg(cgroup)
        .stdout(std::fs::File::create(&path).unwrap())
        .spawn()
        .unwrap();
    let wait_for = |wanted: &str| {
        let deadline = std::time::Instant::now() + crate::support::patience();
        loop {
            let text = std::fs::read_to_string(&path).unwrap();
            if text.contains(wanted) {
                return text;
            }
            assert!(std::time::Instant::now() < deadline, "no {wanted:?} in {text}");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    };
    wait_for("imds-observer ");
    let _curls = Loop::start(&lab);
    run_script(lab.pod(0), &client::problem_report());
    wait_for("tight-polling curl (parent bash");
    let text = wait_for("token-response-lost");
    assert!(text.contains("$ aws ec2 modify-instance-metadata-options"), "{text}");
    kill(Pid::from_raw(observer.id().cast_signed()), Signal::SIGINT).unwrap();
    assert_eq!(observer.wait().unwrap().code(), Some(0));
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(!text.contains('\x1b'), "{text}");
}
