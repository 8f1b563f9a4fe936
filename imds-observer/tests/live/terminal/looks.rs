//! Terminals of all kinds: small, resized, with sixteen colors or none, dark or light.

use std::collections::BTreeSet;

use imds_observer_lab::terminal::{Control, Pty, Tmux};

use super::escapes::{Sequence, sequences};
use super::{ENTER, PROGRAM, trace, watch_trace};

/// Sequences that `watch` writes during a session: overview, process, finding, help, end.
fn visit(no_color: bool) -> Vec<Sequence> {
    let mut command = watch_trace("lost-token-pod.ndjson");
    if no_color {
        command.env("NO_COLOR", "1");
    }
    let mut pty = Pty::spawn(command, (100, 40), Control::Controlling).unwrap();
    pty.wait_for("token-response-lost").unwrap();
    for (key, wanted) in [
        (ENTER, "LAST EXCHANGES"),
        ("\x7f", "by rate"),
        ("\t\r", "EVIDENCE"),
        ("?", "COLUMNS"),
    ] {
        pty.press(key).unwrap();
        pty.wait_for(wanted).unwrap();
    }
    pty.press("q").unwrap();
    assert_eq!(pty.wait().unwrap().code(), Some(0));
    sequences(&pty.bytes()).unwrap()
}

/// Foreground, background and attributes of all SGR sequences.
fn styles(sequences: &[Sequence]) -> (BTreeSet<u16>, BTreeSet<u16>, BTreeSet<u16>) {
    let (mut foreground, mut background, mut attributes) = Default::default();
    for sequence in sequences {
        sequence.styles(&mut foreground, &mut background, &mut attributes);
    }
    (foreground, background, attributes)
}

#[test]
fn colours_are_few_and_can_be_read_on_dark_and_light() {
    let (foreground, background, attributes) = styles(&visit(false));
    // Only red and magenta of the terminal's first eight colors are used. White, black, yellow, blue and cyan are hard to read on a light
    // or a dark background.
    assert!(
        foreground.contains(&1) && foreground.is_subset(&BTreeSet::from([1, 5])),
        "{foreground:?}"
    );
    assert_eq!(background, BTreeSet::new());
    assert!(attributes.is_superset(&BTreeSet::from([1, 2, 7])), "{attributes:?}");
}

#[test]
fn no_color_leaves_bold_dim_and_reverse() {
    let (foreground, background, attributes) = styles(&visit(true));
    assert_eq!((foreground, background), (BTreeSet::new(), BTreeSet::new()));
    assert!(attributes.is_superset(&BTreeSet::from([1, 2, 7])), "{attributes:?}");
}

#[test]
fn each_size_shows_what_matters_and_a_resize_draws_anew() {
    let command = format!(
        "TERM=screen {PROGRAM} watch --from {} --speed max",
        trace("lost-token-pod.ndjson").display()
    );
    let tmux = Tmux::start("sizes", (120, 40), &command).unwrap();
    for size in [(120, 40), (40, 24), (80, 10), (20, 6), (5, 2), (200, 50), (80, 24)] {
        tmux.resize(size).unwrap();
        if size.0 < 40 {
            // Too small to be readable, but the view must recover afterwards.
            continue;
        }
        tmux.wait_until(&format!("a picture of {size:?}"), |_| {
            let screen = tmux.screen().unwrap();
            let lines: Vec<&str> = screen.lines().collect();
            lines.len() == usize::from(size.1)
                && lines[0].starts_with("imds-observer")
                && lines[lines.len() - 1].starts_with("q quit")
                && ["PROCESSES 1", "pod payments/", "FINDINGS", "token-response-lo"]
                    .iter()
                    .all(|text| screen.contains(text))
        })
        .unwrap();
    }
    tmux.press("q").unwrap();
}
