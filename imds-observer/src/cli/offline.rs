//! Shared by the commands that read traces: opening inputs, progress, and common output.

use std::io::{self, IsTerminal as _, Write as _};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::observe::Settings;
use crate::event::Event;
use crate::record::{Record, Time};
use crate::sinks::collect::Collected;
use crate::source::input::Input;
use crate::source::traces::{InputCounts, Traces};
use crate::source::{Handle, Source, SourceFacts, SourceState, Then};
use crate::stop::Stop;

#[derive(Debug, Serialize)]
pub(super) struct InputSummary {
    pub(super) files: u64,
    pub(super) records: u64,
    pub(super) skipped: u64,
}

impl From<InputCounts> for InputSummary {
    fn from(counts: InputCounts) -> Self {
        Self {
            files: counts.files,
            records: counts.records,
            skipped: counts.skipped,
        }
    }
}

/// Opens every input before any is read, so that a wrong name is an error at once. `endpoints`: addresses of IMDS in captures, from the option.
pub(super) fn open(
    files: &[PathBuf],
    settings: &Settings,
    endpoints: &[IpAddr],
    stop: &Stop,
) -> anyhow::Result<Traces> {
    if files.iter().filter(|file| file.as_os_str() == "-").count() > 1 {
        anyhow::bail!("read -: stdin can be read only once (name it once)");
    }
    let mut inputs = Vec::new();
    let mut unreadable = 0;
    for path in files {
        match Input::open(path, stop) {
            Ok(input) => inputs.push(input),
            // The file exists but its first bytes can't be read: the other files are still used.
            Err(error) if files.len() > 1 && path.is_file() && !is_denied(&error) => {
                tracing::warn!("{error:#}; skipping this file");
                unreadable += 1;
            }
            Err(error) => return Err(error),
        }
    }
    anyhow::ensure!(!inputs.is_empty(), "none of {} files can be read", files.len());
    let endpoints = settings.recorded_endpoints(endpoints);
    Ok(Traces::with_limits(inputs, &endpoints, &settings.config.limits.traces).beside_unreadable(unreadable))
}

/// Whether the system refused to open the file at all.
fn is_denied(error: &anyhow::Error) -> bool {
    let system = error.downcast_ref::<io::Error>();
    system.is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// From the first to the last observation; nothing if nothing was observed.
pub(super) fn period(collected: &Collected) -> Option<(Time, Time)> {
    let summary = collected.summary.as_ref()?;
    (summary.to > Time::default()).then_some((summary.from, summary.to))
}

/// Progress on a terminal.
pub(super) struct Progress {
    pub(super) inner: Traces,
    display: Display,
}

struct Display {
    terminal: bool,
    last: Option<Instant>,
    since: Instant,
}

impl Progress {
    pub(super) fn new(inner: Traces) -> Self {
        Self {
            inner,
            display: Display {
                terminal: io::stderr().is_terminal(),
                last: None,
                since: Instant::now(),
            },
        }
    }

    pub(super) fn clear(&self) {
        if self.display.last.is_some() {
            let _ = io::stderr().write_all(b"\r\x1b[K");
        }
    }
}

impl Display {
    fn update(&mut self, records: impl FnOnce() -> u64) {
        const GAP: Duration = Duration::from_millis(200);
        if self.terminal && self.last.unwrap_or(self.since).elapsed() >= GAP {
            self.last = Some(Instant::now());
            let _ = write!(io::stderr(), "\r{} records read", records());
        }
    }
}

impl Source for Progress {
    fn start(&self) -> SourceFacts {
        self.inner.start()
    }

    fn next_batch(&mut self, wait: Duration, out: &mut Vec<Event>) -> anyhow::Result<SourceState> {
        self.display.update(|| self.inner.counts().records);
        self.inner.next_batch(wait, out)
    }

    fn take_back(&mut self, events: &mut Vec<Event>) {
        self.inner.take_back(events);
    }

    fn in_turns(&mut self, handle: Handle<'_>, then: Then<'_>) -> bool {
        let Self { inner, display } = self;
        let mut read = 0;
        let mut handle = |records: &[Arc<Record>]| {
            read += records.len() as u64;
            display.update(|| read);
            handle(records)
        };
        inner.in_turns(&mut handle, then)
    }
}
