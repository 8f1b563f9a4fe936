//! Text from an observed process must reach the terminal only as text, and the clipboard must get the right content.

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use imds_observer_lab::client::{Script, Step};
use imds_observer_lab::terminal::{Control, Pty, Tmux};
use imds_observer_lab::topology::LabOptions;

use super::{PROGRAM, watch_lab, watch_trace};
use crate::support::{self, in_netns, lab, lab_binary};

/// Control sequences that a program sends to a terminal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Sequence {
    /// `ESC [ parameters final`
    Control(String, char),
    /// `ESC ] text BEL`
    System(String),
    /// A single byte, or an escape sequence of two bytes.
    Other(String),
}

impl Sequence {
    /// Collects the colors and attributes that the sequence sets.
    pub(crate) fn styles(
        &self,
        foreground: &mut BTreeSet<u16>,
        background: &mut BTreeSet<u16>,
        attributes: &mut BTreeSet<u16>,
    ) {
        let Self::Control(parameters, 'm') = self else { return };
        let mut numbers = parameters.split(';').map(|number| number.parse::<u16>().unwrap_or(0));
        while let Some(number) = numbers.next() {
            match number {
                30..=37 => drop(foreground.insert(number - 30)),
                40..=47 => drop(background.insert(number - 40)),
                38 | 48 => {
                    assert_eq!(numbers.next(), Some(5), "an indexed colour: {parameters}");
                    let set = if number == 38 {
                        &mut *foreground
                    } else {
                        &mut *background
                    };
                    set.insert(numbers.next().unwrap());
                }
                39 | 49 | 59 => {}
                0..=29 => drop(attributes.insert(number)),
                _ => panic!("unknown in {parameters}"),
            }
        }
    }
}

/// Splits the output for a terminal into sequences. Fails if it isn't UTF-8 or ends within a sequence.
pub(crate) fn sequences(bytes: &[u8]) -> Result<Vec<Sequence>, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    let mut found = Vec::new();
    let mut rest = text.chars();
    while let Some(character) = rest.next() {
        match character {
            '\x1b' => match rest.next() {
                Some('[') => {
                    let mut parameters = String::new();
                    let last = loop {
                        match rest.next() {
                            Some(last @ '@'..='~') => break last,
                            Some(other) => parameters.push(other),
                            None => return Err(format!("ends in ESC [ {parameters}")),
                        }
                    };
                    found.push(Sequence::Control(parameters, last));
                }
                Some(']') => {
                    let inside: String = rest.by_ref().take_while(|character| *character != '\x07').collect();
                    found.push(Sequence::System(inside));
                }
                Some(other) => found.push(Sequence::Other(format!("ESC {other}"))),
                None => return Err("ends in ESC".to_owned()),
            },
            '\r' | '\n' => {}
            other if other.is_control() => found.push(Sequence::Other(other.escape_unicode().to_string())),
            _ => {}
        }
    }
    Ok(found)
}

/// Whether it is a sequence that a view needs: moving, erasing, colors, the alternate screen, the cursor.
fn is_ours(sequence: &Sequence) -> bool {
    match sequence {
        Sequence::Control(parameters, last) => match last {
            'h' | 'l' => ["?1049", "?25"].contains(&parameters.as_str()),
            'H' | 'J' | 'K' => parameters.bytes().all(|byte| byte.is_ascii_digit() || byte == b';'),
            'm' => {
                let (mut foreground, mut background, mut attributes) = Default::default();
                sequence.styles(&mut foreground, &mut background, &mut attributes);
                background.is_empty() && foreground.iter().all(|colour| *colour < 16)
            }
            _ => false,
        },
        _ => false,
    }
}

#[test]
fn y_copies_the_remedy_and_nothing_else() {
    let mut pty = Pty::spawn(watch_trace("lost-token-pod.ndjson"), (100, 30), Control::Controlling).unwrap();
    pty.wait_for("token-response-lost").unwrap();
    pty.press("\t\r").unwrap();
    pty.wait_for("EVIDENCE").unwrap();
    pty.press("y").unwrap();
    pty.wait_for("sent the remedy of token-response-lost to the clipboard")
        .unwrap();
    pty.press("q").unwrap();
    assert_eq!(pty.wait().unwrap().code(), Some(0));
    let (ours, others): (Vec<_>, Vec<_>) = sequences(&pty.bytes()).unwrap().into_iter().partition(is_ours);
    assert!(ours.len() > 10);
    let [Sequence::System(copied)] = &others[..] else {
        panic!("{others:?}");
    };
    let copied = copied.strip_prefix("52;c;").unwrap();
    // coreutils' decoder, which is independent of our encoder.
    let decoded = Command::new("sh")
        .args(["-c", "printf %s \"$1\" | base64 --decode", "sh", copied])
        .output()
        .unwrap();
    let decoded = String::from_utf8(decoded.stdout).unwrap();
    assert!(
        decoded.lines().all(|line| line.starts_with("aws ec2 "))
            && decoded.ends_with("--http-put-response-hop-limit 2"),
        "{decoded:?}"
    );
}

/// Clears the screen, sets the title and the clipboard, requests a reply, and changes colors, with 7-bit and 8-bit control sequences.
const HOSTILE: &str = "\x1b[2J\x1b]0;pwned\x07\x1b]52;c;cHduZWQ=\x07\x1b[6n\x1b[31337mx\u{9b}31337my\u{202e}z\x08\x7f";

#[test]
#[ignore = "live"]
fn hostile_paths_names_arguments_and_user_agents_are_only_text() {
    let lab = lab(LabOptions::default());
    let scratch = tempfile::tempdir().unwrap();
    let script = Script {
        target: "169.254.169.254:80".parse().unwrap(),
        // The kernel keeps 15 bytes.
        comm: Some("\x1b[2Jc\x1b]0;p\x07\u{9b}1m".to_owned()),
        user_agent: Some(HOSTILE.to_owned()),
        rounds: 60,
        steps: vec![Step {
            path: format!("/latest/meta-data/{HOSTILE}"),
            ..Step::default()
        }],
    };
    // The script's name is an argument of the client.
    let file = scratch.path().join(HOSTILE.replace('/', ""));
    std::fs::write(&file, serde_json::to_vec(&script).unwrap()).unwrap();
    let client = || {
        let output = lab
            .node()
            .command(lab_binary())
            .unwrap()
            .arg0(HOSTILE)
            .arg("client")
            .arg(&file)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let cgroup = lab.cgroup_directory();
    let arguments = ["watch", "-i", support::UPLINK, "--cgroup", cgroup.to_str().unwrap()];

    // With the default redaction, none of it would be shown.
    let command = format!("read go; {} --cmdline full; echo \"status $?\"; cat", watch_lab(&lab));
    let tmux = Tmux::start("hostile", (160, 50), &command).unwrap();
    // Records every byte that the program writes, while the screen shows its state.
    let raw = scratch.path().join("raw");
    tmux.run(&["pipe-pane", &format!("cat > '{}'", raw.display())]).unwrap();
    tmux.press("Enter").unwrap();
    tmux.wait_for("no requests to IMDS yet").unwrap();
    client();
    // It appears as text, so the observer lost nothing.
    tmux.wait_for(r"requests /latest/meta-data/\u{1b}[2J").unwrap();
    tmux.press("Enter").unwrap();
    let detail = tmux.wait_for("LAST EXCHANGES").unwrap();
    for part in [
        r"process    \u{1b}[2Jc",
        r"command    \u{1b}[2J\u{1b}]0;pwned\u{7}",
        r"/latest/meta-data/\u{1b}[2J\u{1b}]0;pwned\u{7}\u{1b}]52;c;cHduZWQ=\u{7}",
    ] {
        assert!(detail.contains(part), "{part:?} is missing:\n{detail}");
    }
    // Open a finding about it. The program would read a key directly after Escape as that key with Alt.
    tmux.press("Escape").unwrap();
    tmux.wait_for("▌ PROCESSES").unwrap();
    tmux.press("Tab").unwrap();
    tmux.wait_for("▌ FINDINGS").unwrap();
    tmux.press("Enter").unwrap();
    tmux.wait_for("EVIDENCE").unwrap();
    tmux.press("q").unwrap();
    tmux.wait_for("status 0").unwrap();
    let mut bytes = Vec::new();
    tmux_wrote(&raw, "status 0", &mut bytes);
    let foreign: Vec<_> = sequences(&bytes)
        .unwrap()
        .into_iter()
        .filter(|sequence| !is_ours(sequence))
        .collect();
    let text = String::from_utf8(bytes).unwrap();
    // The output includes the summary in the scrollback.
    assert!(text.contains("not recorded (press w in the view"));
    assert_eq!(foreign, []);
    assert!(!text.contains('\u{202e}'));

    let mut plain = in_netns(lab.node(), PROGRAM);
    plain.args(arguments).args(["--plain", "-c", "60"]);
    let mut pty = Pty::spawn(plain, (160, 50), Control::Controlling).unwrap();
    pty.wait_for("imds-observer ").unwrap();
    client();
    assert_eq!(pty.wait().unwrap().code(), Some(0));
    let text = pty.text();
    assert!(text.contains(r"\u{1b}[2J\u{1b}]0;pwned\u{7}"), "{text}");
    let foreign: Vec<_> = sequences(text.as_bytes())
        .unwrap()
        .into_iter()
        .filter(|sequence| !matches!(sequence, Sequence::Control(_, 'm')))
        .collect();
    assert_eq!(foreign, []);
}

/// Reads bytes from tmux's pipe, up to a text that was certainly written.
fn tmux_wrote(path: &Path, last: &str, bytes: &mut Vec<u8>) {
    let deadline = Instant::now() + support::patience();
    while !String::from_utf8_lossy(bytes).contains(last) {
        assert!(Instant::now() < deadline, "no {last:?} in the pipe");
        std::thread::sleep(Duration::from_millis(10));
        *bytes = std::fs::read(path).unwrap();
    }
}
