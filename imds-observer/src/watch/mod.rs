//! The interactive live view: records -> [`state`] -> [`view`], and keys -> [`input`] -> [`ui`].
//!
//! It runs on a thread of its own, fed through [`feed`]; the pipeline neither waits for it nor knows it. The state never imports views.

pub mod feed;
pub mod input;
pub mod log;
mod rate;
pub mod state;
pub mod terminal;
#[cfg(test)]
mod tests;
pub mod ui;
pub mod view;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use ratatui::crossterm::event::Event;

use crate::record::{SECOND, Time};
#[cfg(live)]
use crate::sandbox::{self, Needs};
use crate::source::paced::Playback;
use crate::stop::Stop;
use feed::{Records, Trace};
use state::State;
use terminal::{Screen, Waited};
use ui::{Effect, Ui};
use view::Theme;

/// Least time between two drawings for records' sake; keys are answered at once.
const REDRAW: Duration = Duration::from_millis(200);
/// Records that are taken in before keys get their turn.
const BATCH: usize = 20_000;
/// A batch of this size means that the sender is waiting to send more.
const MANY: usize = 1_000;

/// Parts of the view's thread.
pub struct Parts {
    pub records: Records,
    pub trace: Trace,
    pub stop: Stop,
    /// `None`: live.
    pub playback: Option<Arc<Playback>>,
    pub theme: Theme,
    pub limits: state::Limits,
    /// Where `w` writes.
    pub directory: PathBuf,
    /// Drops privileges that its thread doesn't need.
    pub confined: bool,
}

/// Takes the terminal and starts the thread. It ends with `q`, when the stop is asked for, or when the terminal is gone.
pub fn start(parts: Parts) -> anyhow::Result<JoinHandle<anyhow::Result<()>>> {
    let mut screen = Screen::take()?;
    log::hold(parts.limits.log_bytes);
    // Something is to be seen before the kernel programs are loaded.
    let (state, ui) = (State::new(parts.limits), Ui::default());
    screen
        .terminal
        .draw(|frame| {
            view::draw(frame, &state, &ui, parts.theme);
        })
        .context("draw on the terminal")?;
    std::thread::Builder::new()
        .name("screen".to_owned())
        .spawn(move || {
            let stop = parts.stop.try_clone();
            #[cfg(live)]
            if parts.confined {
                sandbox::enter(&Needs {
                    writes: vec![parts.directory.clone()],
                    ..Needs::default()
                });
            }
            let result = View::new(parts, screen).run();
            if let Ok(stop) = stop {
                stop.request();
            }
            result
        })
        .context("start the screen's thread")
}

struct View {
    parts: Parts,
    screen: Screen,
    state: State,
    /// State that is shown while a live view is paused.
    frozen: Option<Box<State>>,
    ui: Ui,
    last_scroll: usize,
}

impl View {
    fn new(parts: Parts, screen: Screen) -> Self {
        Self {
            state: State::new(parts.limits),
            parts,
            screen,
            frozen: None,
            ui: Ui::default(),
            last_scroll: 0,
        }
    }

    fn run(mut self) -> anyhow::Result<()> {
        let result = self.look();
        if terminal::is_gone() { Ok(()) } else { result }
    }

    fn look(&mut self) -> anyhow::Result<()> {
        let mut drawn = Instant::now();
        let mut second = 0;
        let mut changed = true;
        let mut wait = Duration::ZERO;
        while !self.parts.stop.requested() && self.screen.is_ours() {
            let mut now = false;
            match self.screen.wait(&self.parts.stop, wait).context("wait for a key")? {
                Waited::Gone => break,
                Waited::Event(Event::Key(key)) => {
                    if let Some(action) = input::action(key, self.ui.typing) {
                        let shown = self.frozen.as_deref().unwrap_or(&self.state);
                        let effect = self.ui.apply(action, shown, self.last_scroll);
                        if effect == Effect::Quit {
                            break;
                        }
                        self.affect(effect);
                    }
                    now = true;
                }
                Waited::Event(Event::Resize(..)) => now = true,
                Waited::Event(_) | Waited::Nothing => {}
            }
            let came = self.take_in(&mut changed);
            // Rates fall though nothing comes.
            let time = self.time();
            self.state.advance(time);
            changed |= std::mem::replace(&mut second, self.state.now.0 / SECOND) != second;
            if now || changed && drawn.elapsed() >= REDRAW {
                self.draw()?;
                drawn = Instant::now();
                changed = false;
            }
            wait = if came >= MANY {
                Duration::ZERO
            } else {
                // Rounded up: `poll` counts milliseconds.
                REDRAW.saturating_sub(drawn.elapsed()).max(Duration::from_millis(10))
            };
        }
        Ok(())
    }

    fn time(&self) -> Time {
        match &self.parts.playback {
            Some(playback) => playback.now(),
            None => Time::now(),
        }
    }

    /// How many records came.
    fn take_in(&mut self, changed: &mut bool) -> usize {
        let mut came = 0;
        for record in self.parts.records.receiver.try_iter().take(BATCH) {
            self.state.apply(&record);
            came += 1;
        }
        *changed |= came > 0;
        if let Some(playback) = &self.parts.playback {
            let ended = playback.ended.load(Ordering::Relaxed);
            *changed |= ended != self.state.ended;
            self.state.ended = ended;
        }
        came
    }

    fn draw(&mut self) -> anyhow::Result<()> {
        let state = self.frozen.as_deref().unwrap_or(&self.state);
        let (ui, theme, last) = (&self.ui, self.parts.theme, &mut self.last_scroll);
        self.screen
            .terminal
            .draw(|frame| *last = view::draw(frame, state, ui, theme))
            .context("draw on the terminal")?;
        Ok(())
    }

    fn affect(&mut self, effect: Effect) {
        match effect {
            Effect::None | Effect::Quit => {}
            Effect::Pause => match &self.parts.playback {
                Some(playback) => playback.paused.store(self.ui.paused, Ordering::Relaxed),
                // Counters keep updating; only the display is frozen.
                None => self.frozen = self.ui.paused.then(|| Box::new(self.state.clone())),
            },
            Effect::Write => self.write(),
            Effect::Copy(text) => {
                if let Err(error) = self.screen.copy(&text) {
                    self.ui.message = format!("copy failed: {error}");
                }
            }
        }
    }

    fn write(&mut self) {
        if let Some(name) = self.ui.writing.take() {
            self.ui.message = match self.parts.trace.end() {
                Ok(()) => format!("wrote {name}"),
                Err(error) => format!("{error:#}"),
            };
            return;
        }
        let name = trace_name(Time::now());
        match self.parts.trace.begin(&self.parts.directory.join(&name)) {
            Ok(()) => {
                self.ui.message = format!("recording to {name}; press w to stop");
                self.ui.writing = Some(name);
            }
            Err(error) => self.ui.message = format!("{error:#}"),
        }
    }
}

/// `imds-observer-20260301T120002.345Z.ndjson`
fn trace_name(now: Time) -> String {
    let time: String = now
        .to_string()
        .chars()
        .take(23)
        .filter(|character| !matches!(character, '-' | ':'))
        .collect();
    format!("imds-observer-{time}Z.ndjson")
}

impl Drop for View {
    fn drop(&mut self) {
        // A panic has given the terminal back already; what was logged must be seen after it.
        let _ = self.parts.trace.end();
    }
}
