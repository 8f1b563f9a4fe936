//! From records to the screen.

use std::sync::Arc;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::input::action;
use super::state::{Sort, State};
use super::ui::{Effect, Pane, Screen, Ui};
use super::view::{self, Theme};
use crate::record::{Finding, Missing, Record, SECOND, Time};
use crate::source::ndjson;

const LOST: &str = include_str!("../../tests/traces/lost-token-pod.ndjson");
const LOOP: &str = include_str!("../../tests/traces/tight-loop.ndjson");
const FINDING: &str = r#"{"record":"finding","schema":1,"time":"2026-03-01T12:00:03.000000000Z","host":"node-1","code":"token-response-lost","severity":"high","state":"open","subject":{"key":"pod/payments/api","name":"pod payments/api-7c9d","process":null,"container":null,"workload":"payments/api"},"first_seen":"2026-03-01T12:00:02.000000000Z","last_seen":"2026-03-01T12:00:03.000000000Z","count":3,"summary":"pod payments/api-7c9d lost 3 token responses to the hop limit","evidence":{"hops":1},"remedy":{"text":"A hop limit of 2 suffices.","commands":["aws ec2 modify-instance-metadata-options --http-put-response-hop-limit 2"]}}"#;

fn record(line: &str) -> Arc<Record> {
    Arc::new(ndjson::parse(line.as_bytes()).unwrap())
}

fn state(traces: &[&str]) -> State {
    let mut state = State::default();
    for line in traces.iter().flat_map(|trace| trace.lines()) {
        state.apply(&record(line));
    }
    state
}

fn draw(state: &State, ui: &Ui, colour: bool, (width, height): (u16, u16)) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal
        .draw(|frame| {
            view::draw(frame, state, ui, Theme { colour });
        })
        .unwrap();
    terminal
}

fn press(ui: &mut Ui, state: &State, keys: &[KeyCode]) -> Effect {
    keys.iter().fold(Effect::None, |_, key| {
        let key = KeyEvent::new(*key, KeyModifiers::NONE);
        action(key, ui.typing).map_or(Effect::None, |action| ui.apply(action, state, 100))
    })
}

const SIZES: [(u16, u16); 3] = [(80, 24), (40, 24), (120, 40)];

#[test]
fn screens() {
    let state = state(&[LOST, FINDING]);
    for size in SIZES {
        let mut ui = Ui::default();
        let name = |screen: &str| format!("{screen}-{}x{}", size.0, size.1);
        insta::assert_snapshot!(name("overview"), draw(&state, &ui, true, size).backend());
        press(&mut ui, &state, &[KeyCode::Enter]);
        insta::assert_snapshot!(name("process"), draw(&state, &ui, true, size).backend());
        ui.scroll = 20;
        insta::assert_snapshot!(name("waterfall"), draw(&state, &ui, true, size).backend());
        press(&mut ui, &state, &[KeyCode::Esc, KeyCode::Tab, KeyCode::Enter]);
        insta::assert_snapshot!(name("finding"), draw(&state, &ui, true, size).backend());
    }
}

#[test]
fn no_background_is_set_and_no_colour_without_leave() {
    use ratatui::style::Color;
    let state = state(&[LOST, FINDING]);
    for colour in [false, true] {
        let terminal = draw(&state, &Ui::default(), colour, (80, 24));
        let cells = &terminal.backend().buffer().content;
        assert!(cells.iter().all(|cell| cell.bg == Color::Reset));
        assert_eq!(cells.iter().any(|cell| cell.fg != Color::Reset), colour);
        assert!(
            cells
                .iter()
                .all(|cell| !matches!(cell.fg, Color::Rgb(..) | Color::Indexed(_)))
        );
    }
}

/// Paths, names and arguments are chosen by observed processes.
#[test]
fn nothing_that_a_terminal_obeys_reaches_it() {
    const EVIL: &str = r"\u001b[2J\u001b]52;c;QQ==\u0007\u009b31m\u202e\u200b\r\n";
    let evil = [LOST, FINDING].map(|text| {
        [
            "worker.py",
            "python3",
            "app-role",
            "payments",
            "Boto3/1.34.0",
            "ip_forward",
            "A hop limit",
        ]
        .iter()
        .fold(text.to_owned(), |text, word| {
            text.replace(word, &format!("{word}{EVIL}"))
        })
    });
    let state = state(&[&evil[0], &evil[1]]);
    assert_eq!(state.requests, 9);
    let mut seen = String::new();
    for size in [(200, 60), (80, 24), (40, 24), (12, 5)] {
        for keys in [&[][..], &[KeyCode::Enter], &[KeyCode::Tab, KeyCode::Enter]] {
            let mut ui = Ui::default();
            press(&mut ui, &state, keys);
            let terminal = draw(&state, &ui, true, size);
            for cell in &terminal.backend().buffer().content {
                let bad = |c: char| c.is_control() || matches!(c, '\u{200b}' | '\u{202e}');
                assert!(!cell.symbol().chars().any(bad), "{:?}", cell.symbol());
                seen.push_str(cell.symbol());
            }
        }
    }
    assert!(
        seen.contains("\\u{1b}[2J"),
        "the bytes were there, and are shown as what they are"
    );
}

#[test]
fn rows_findings_and_last_exchanges_are_bounded() {
    let mut state = state(&[LOST]);
    let exchange = LOST.lines().map(|line| record(line).as_ref().clone()).nth(2);
    let exchange = exchange.expect("an exchange");
    let finding: Record<Finding> = serde_json::from_str(FINDING).unwrap();
    for number in 0..2000_u64 {
        let mut exchange = exchange.clone();
        exchange.time = Time(exchange.time.0 + number * SECOND);
        let many = exchange.clone();
        exchange.host = format!("host-{number}").into();
        let mut finding = finding.clone();
        finding.subject.key = number.to_string();
        for record in [many, exchange, finding.into()] {
            state.apply(&Arc::new(record));
        }
    }
    assert_eq!((state.rows.len(), state.findings.len()), (512, 500));
    assert!(state.evicted >= 2000 + 2000 - 512 - 500);
    assert!(state.rows.values().all(|row| row.last.len() <= 24));
    assert_eq!(state.requests, 9 + 4000);
    assert_eq!(state.hop_limit, Some((1, 1)));
}

#[test]
fn rows_are_sorted_and_filtered() {
    let state = state(&[LOST, LOOP]);
    let first = |sort| state.workloads(sort, "")[0].name.to_owned();
    assert_eq!(first(Sort::Lost), "payments/api");
    assert_ne!(first(Sort::Rate), "payments/api");
    let filtered = state.workloads(Sort::Rate, "PAYMENTS");
    assert_eq!((filtered.len(), filtered[0].numbers.lost), (1, 3));
    assert!(state.workloads(Sort::Rate, "no such").is_empty());
}

#[test]
fn keys_lead_where_help_says() {
    let state = state(&[LOST, LOOP, FINDING]);
    let mut ui = Ui::default();
    assert_eq!(
        press(&mut ui, &state, &[KeyCode::Char('/'), KeyCode::Char('q')]),
        Effect::None
    );
    assert_eq!(ui.filter, "q");
    press(&mut ui, &state, &[KeyCode::Esc]);
    assert!(ui.filter.is_empty() && !ui.typing);
    let first = ui.selected_process(&state);
    press(&mut ui, &state, &[KeyCode::Down]);
    assert_ne!(ui.selected_process(&state), first);
    press(&mut ui, &state, &[KeyCode::Enter]);
    assert!(matches!(ui.screen, Screen::Process(_)));
    press(&mut ui, &state, &[KeyCode::Esc, KeyCode::Tab]);
    assert_eq!((&ui.screen, ui.pane), (&Screen::Overview, Pane::Findings));
    let copied = press(&mut ui, &state, &[KeyCode::Char('y')]);
    assert!(matches!(copied, Effect::Copy(text) if text.contains("hop-limit 2")));
    assert_eq!(
        press(&mut ui, &state, &[KeyCode::Char('?'), KeyCode::Char('q')]),
        Effect::Quit
    );
}

#[test]
fn help_lists_what_is_missing_and_scrolls() {
    let mut state = state(&[LOST]);
    let mut ui = Ui::default();
    press(&mut ui, &state, &[KeyCode::Char('?')]);
    let text = |state: &State, ui: &Ui| draw(state, ui, true, (80, 24)).backend().to_string();
    assert!(!text(&state, &ui).contains("MISSING"));
    let missing = |capability: &str| Missing {
        capability: capability.to_owned(),
        why: "no CAP_\u{1b}[2JBPF".to_owned(),
        blinds: "TTLs and what arrived and was not delivered ".repeat(3),
    };
    state.start.as_mut().unwrap().missing = vec![missing("wire"), missing("drop"), missing("connect")];
    insta::assert_snapshot!("help-80x24", draw(&state, &ui, true, (80, 24)).backend());
    assert!(text(&state, &Ui::default()).contains("3 capabilities missing (see ?)"));
    press(&mut ui, &state, &[KeyCode::Char('G')]);
    assert!(ui.help && text(&state, &ui).contains("total requests"));
    press(&mut ui, &state, &[KeyCode::Char('x'), KeyCode::Enter]);
    assert!(!ui.help);
    assert_eq!(
        ui.screen,
        Screen::Overview,
        "the key that closes help does nothing else"
    );
}

#[test]
fn findings_with_one_cause_are_one_line() {
    let mut state = state(&[LOST]);
    for pod in 0..40 {
        let name = format!("pod payments/api-{pod:02}");
        let line = FINDING
            .replace("pod/payments/api", &name)
            .replace("pod payments/api-7c9d", &name);
        state.apply(&record(&line));
    }
    let mut ui = Ui::default();
    let overview = draw(&state, &ui, true, (80, 24)).backend().to_string();
    assert!(
        overview.contains("FINDINGS 40 with one cause, worst first"),
        "{overview}"
    );
    assert!(overview.contains("40 subjects ×120"), "{overview}");
    assert_eq!(overview.matches("do: A hop limit of 2").count(), 1, "{overview}");
    press(&mut ui, &state, &[KeyCode::Tab, KeyCode::Down, KeyCode::Enter]);
    let detail = draw(&state, &ui, true, (100, 60)).backend().to_string();
    assert_eq!(detail.matches("lost 3 token responses").count(), 40, "{detail}");
    let copied = press(&mut ui, &state, &[KeyCode::Char('y')]);
    assert!(matches!(copied, Effect::Copy(text) if text.contains("hop-limit 2")));
}

#[test]
fn any_size_is_survived() {
    let state = state(&[LOST, LOOP, FINDING]);
    for width in 1..50 {
        for height in 1..12 {
            for keys in [&[][..], &[KeyCode::Enter], &[KeyCode::Char('?')]] {
                let mut ui = Ui::default();
                press(&mut ui, &state, keys);
                draw(&state, &ui, true, (width, height));
            }
        }
    }
}
