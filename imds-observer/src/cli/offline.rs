//! What commands over traces share: opening them, progress, and the parts of their output that are the same.

use std::io::{self, IsTerminal as _, Write as _};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::observe::Settings;
use crate::record::{Record, Time};
use crate::sinks::collect::Collected;
use crate::source::input::Input;
use crate::source::traces::{InputCounts, Traces};
use crate::source::{Event, Handle, Source, SourceFacts, SourceState, Then};
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

/// Opens every input before any is read: a name that is wrong is told at once. `endpoints`: where the flag says that IMDS is in captures.
pub(super) fn open(
    files: &[PathBuf],
    settings: &Settings,
    endpoints: &[IpAddr],
    stop: &Stop,
) -> anyhow::Result<Traces> {
    if files.iter().filter(|file| file.as_os_str() == "-").count() > 1 {
        anyhow::bail!("read -: stdin can be read once only (name it once)");
    }
    let mut inputs = Vec::new();
    let mut unreadable = 0;
    for path in files {
        match Input::open(path, stop) {
            Ok(input) => inputs.push(input),
            // It is there, but its first bytes can't be read: the other files are no worse for it.
            Err(error) if files.len() > 1 && path.is_file() && !is_denied(&error) => {
                tracing::warn!("{error:#}; left out, the other files are used");
                unreadable += 1;
            }
            Err(error) => return Err(error),
        }
    }
    anyhow::ensure!(!inputs.is_empty(), "none of {} files can be read", files.len());
    let endpoints = settings.endpoints(endpoints);
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

/// Says on a terminal how far it has come.
pub(super) struct Progress {
    pub(super) inner: Traces,
    telling: Telling,
}

struct Telling {
    terminal: bool,
    told: Option<Instant>,
    since: Instant,
}

impl Progress {
    pub(super) fn new(inner: Traces) -> Self {
        Self {
            inner,
            telling: Telling {
                terminal: io::stderr().is_terminal(),
                told: None,
                since: Instant::now(),
            },
        }
    }

    pub(super) fn clear(&self) {
        if self.telling.told.is_some() {
            let _ = io::stderr().write_all(b"\r\x1b[K");
        }
    }
}

impl Telling {
    fn perhaps(&mut self, records: impl FnOnce() -> u64) {
        const GAP: Duration = Duration::from_millis(200);
        if self.terminal && self.told.unwrap_or(self.since).elapsed() >= GAP {
            self.told = Some(Instant::now());
            let _ = write!(io::stderr(), "\r{} records read", records());
        }
    }
}

impl Source for Progress {
    fn start(&self) -> SourceFacts {
        self.inner.start()
    }

    fn next_batch(&mut self, wait: Duration, out: &mut Vec<Event>) -> anyhow::Result<SourceState> {
        self.telling.perhaps(|| self.inner.counts().records);
        self.inner.next_batch(wait, out)
    }

    fn take_back(&mut self, events: &mut Vec<Event>) {
        self.inner.take_back(events);
    }

    fn in_turns(&mut self, handle: Handle<'_>, then: Then<'_>) -> bool {
        let Self { inner, telling } = self;
        let mut read = 0;
        let mut handle = |records: &[Arc<Record>]| {
            read += records.len() as u64;
            telling.perhaps(|| read);
            handle(records)
        };
        inner.in_turns(&mut handle, then)
    }
}
