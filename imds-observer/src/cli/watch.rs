//! `watch`: the live view.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;

#[cfg(live)]
use super::live::{self, Opened};
use super::observe::{EndpointArgs, INTERVAL, ObserveArgs, Settings, ThisHost};
use super::{Status, help, offline};
#[cfg(live)]
use crate::bpf::INTERACTIVE_POLL;
#[cfg(live)]
use crate::live::LiveSource;
use crate::pipeline;
use crate::record::{Finding, Host, Kind, Record};
use crate::report::escape::Escaped;
use crate::report::text::{self, Colour};
use crate::sinks::collect::{Collected, Collector};
use crate::sinks::destination::Destination;
#[cfg(live)]
use crate::sinks::queue::Queue;
use crate::sinks::text::TextOutput;
use crate::sinks::{Direct, Sink};
use crate::source::Source;
use crate::source::paced::{Paced, Playback, Speed};
use crate::stop::Stop;
use crate::watch::feed::{Feed, Trace};
use crate::watch::view::Theme;
use crate::watch::{self, log, terminal};

/// The packet quota is per second.
const SECOND: Duration = Duration::from_secs(1);
/// Longest wait for the screen's thread to end.
const LAST_DRAWING: Duration = Duration::from_secs(2);

/// Show callers, request rates and findings as they happen
///
/// On a terminal an interactive view (? lists its keys), on a pipe plain text.
#[derive(Debug, Args)]
#[command(after_long_help = help::WATCH)]
pub(super) struct WatchArgs {
    /// Print plain text instead of the interactive view
    #[arg(long)]
    plain: bool,
    /// Replay this trace or capture instead of observing this host (repeatable; - is stdin)
    #[arg(long, value_name = "FILE")]
    from: Vec<PathBuf>,
    /// Replay at this speed: 1x, 10x, 0.5x or max; gaps are shortened to 5 s
    #[arg(long, value_name = "SPEED", default_value_t = Speed(Some(1.0)), requires = "from")]
    speed: Speed,
    #[command(flatten)]
    observe: ObserveArgs,
    #[command(flatten)]
    endpoints: EndpointArgs,
}

impl WatchArgs {
    pub(super) fn run(&self) -> anyhow::Result<Status> {
        #[cfg(not(live))]
        if self.from.is_empty() {
            return Err(super::not_live::not_live());
        }
        let settings = self.observe.select.settings()?;
        if io::stdout().is_terminal() && !self.plain {
            return self.interactive(&settings);
        }
        let interval = Some(settings.interval.unwrap_or(INTERVAL));
        let limits = settings.config.limits;
        let colour = Colour::on(io::stdout().is_terminal());
        let output = TextOutput::new(Destination::stdout(), colour, false, limits.report.open_findings);
        let shown = [Kind::Start, Kind::Finding, Kind::Summary, Kind::Loss];
        let kinds = settings.kinds.and(shown.into_iter().collect());
        #[cfg(live)]
        if self.from.is_empty() {
            return live::observe(&self.observe, &self.endpoints.addresses(), &settings, interval, |_| {
                Ok(Opened::new(move || {
                    Ok(vec![Box::new(Queue::new(output, kinds, limits.queue)?) as Box<dyn Sink>])
                }))
            });
        }
        let stop = Stop::on_signals()?;
        let mut source = self.traces(&settings, &stop, Arc::default())?;
        let sinks: Vec<Box<dyn Sink>> = vec![Box::new(Direct::new(output, kinds))];
        self.observe_with(&settings, &mut source, None, interval, sinks, &stop)?;
        Ok(Status::Done)
    }

    fn interactive(&self, settings: &Settings) -> anyhow::Result<Status> {
        let stop = Stop::on_signals()?;
        let limits = settings.config.limits;
        let playback = (!self.from.is_empty()).then(Arc::<Playback>::default);
        // Before the terminal is switched, so that a wrong file name is a plain error.
        let traces = match &playback {
            Some(playback) => Some(self.traces(settings, &stop, playback.clone())?),
            None => None,
        };
        let (feed, records) = Feed::new(limits.queue, playback.is_some());
        let trace = Trace::new(settings.kinds, limits.queue, limits.held_bytes);
        let collector = Collector::new(limits.report.findings);
        let sinks: Vec<Box<dyn Sink>> = vec![Box::new(feed), Box::new(trace.clone()), Box::new(collector.clone())];
        let interval = Some(settings.interval.unwrap_or(SECOND));
        let screen = watch::start(watch::Parts {
            records,
            trace: trace.clone(),
            stop: stop.try_clone()?,
            playback: playback.clone(),
            theme: Theme {
                colour: Colour::on(true).0,
            },
            limits: limits.watch,
            directory: PathBuf::from("."),
            confined: self.from.is_empty() && self.observe.confines(&settings.config),
        })?;
        let ran = match traces {
            Some(mut source) => {
                let ran = self.observe_with(settings, &mut source, None, interval, sinks, &stop);
                if let (Ok(()), Some(playback)) = (&ran, &playback) {
                    // The view stays open after the last record.
                    playback.ended.store(true, std::sync::atomic::Ordering::Relaxed);
                } else {
                    stop.request();
                }
                ran
            }
            None => {
                let ran = self.observe_live(settings, interval, sinks, &stop);
                stop.request();
                ran
            }
        };
        let shown = end(screen);
        log::release();
        ran?;
        match shown {
            Some(Ok(shown)) => shown?,
            Some(Err(_)) => anyhow::bail!("the live view panicked (this is a bug; use --plain meanwhile)"),
            // A slow terminal, or an incomplete key sequence: drawing has ended.
            None if terminal::takes_more() => {}
            None => return Ok(Status::Done),
        }
        say(&self.session(&collector.take(), &trace.files()))?;
        Ok(Status::Done)
    }

    fn traces(&self, settings: &Settings, stop: &Stop, playback: Arc<Playback>) -> anyhow::Result<Paced<impl Source>> {
        let traces = offline::open(&self.from, settings, &self.endpoints.addresses(), stop)?;
        Ok(Paced::new(traces, self.speed, playback))
    }

    #[cfg(not(live))]
    #[expect(clippy::unused_self, reason = "as with `live`")]
    fn observe_live(&self, _: &Settings, _: Option<Duration>, _: Vec<Box<dyn Sink>>, _: &Stop) -> anyhow::Result<()> {
        Err(super::not_live::not_live())
    }

    #[cfg(live)]
    fn observe_live(
        &self,
        settings: &Settings,
        interval: Option<Duration>,
        sinks: Vec<Box<dyn Sink>>,
        stop: &Stop,
    ) -> anyhow::Result<()> {
        let endpoints = &self.endpoints.addresses();
        let mut source = LiveSource::open(&self.observe.live_options(endpoints, &settings.config, INTERACTIVE_POLL))?;
        let name = settings.host(None)?;
        let endpoints = settings.endpoints(endpoints);
        let this_host = live::settle(
            &self.observe,
            settings,
            &mut source,
            &name,
            endpoints,
            Vec::new(),
            Vec::new(),
        );
        self.observe_with(settings, &mut source, Some((name, this_host)), interval, sinks, stop)
    }

    fn observe_with(
        &self,
        settings: &Settings,
        source: &mut dyn Source,
        live: Option<(Host, ThisHost)>,
        interval: Option<Duration>,
        sinks: Vec<Box<dyn Sink>>,
        stop: &Stop,
    ) -> anyhow::Result<()> {
        let (name, this_host) = match live {
            Some((name, this_host)) => (name, Some(this_host)),
            None => (settings.host(source.start().host)?, None),
        };
        let mut pipeline = settings.pipeline(name, this_host, interval, self.observe.count, sinks);
        pipeline::run(source, &mut pipeline, self.observe.duration.map(|span| span.0), stop)
    }

    /// Text that stays in the scrollback: totals, findings, losses, and the command that shows them again.
    fn session(&self, collected: &Collected, files: &[String]) -> String {
        let colour = Colour::on(true);
        let mut out = String::new();
        if let Some((from, to)) = offline::period(collected) {
            let _ = writeln!(out, "{from} to {to} ({})", text::span(to.since(from)));
        }
        if let Some(summary) = &collected.summary {
            let requests: u64 = summary.processes.iter().map(|row| row.requests).sum();
            let _ = writeln!(
                out,
                "{} of {}, {}\n",
                text::counted(requests, "request"),
                text::counted(summary.processes.len() as u64, "caller"),
                text::counted(collected.findings.len() as u64, "finding")
            );
            let unread = collected
                .loss
                .as_ref()
                .map_or(0, |loss| loss.ring_buffer.saturating_add(loss.unparsed));
            out.push_str(&text::summary(summary, unread, colour));
        }
        let mut findings: Vec<&Record<Finding>> = collected.findings.iter().collect();
        findings.sort_by(|a, b| b.severity.cmp(&a.severity).then(a.first_seen.cmp(&b.first_seen)));
        for finding in findings {
            out.push('\n');
            out.push_str(&text::finding(finding, colour));
        }
        let lost = collected
            .loss
            .as_ref()
            .map_or_else(String::new, |loss| text::loss(loss));
        let _ = writeln!(
            out,
            "\n{}",
            if lost.is_empty() {
                "no records lost"
            } else {
                lost.trim_end()
            }
        );
        let names: Vec<String> = if files.is_empty() {
            self.from.iter().map(|path| path.display().to_string()).collect()
        } else {
            files.to_vec()
        };
        if names.is_empty() {
            out.push_str("not recorded (press w in the view, or run: imds-observer stream -w trace.ndjson)\n");
        } else {
            let quoted: Vec<String> = names.iter().map(|name| quote(&Escaped(name).to_string())).collect();
            let _ = writeln!(
                out,
                "analyze: imds-observer analyze {}\n replay: imds-observer watch --from {} --speed 10x",
                quoted.join(" "),
                quoted.join(" --from ")
            );
        }
        out
    }
}

/// Waits for the screen's thread. `None`: it doesn't end, because the terminal is stopped (Ctrl-S) or sent an incomplete key sequence.
fn end<T>(screen: JoinHandle<T>) -> Option<thread::Result<T>> {
    let begin = Instant::now();
    while !screen.is_finished() {
        if begin.elapsed() > LAST_DRAWING {
            terminal::give_back_at_once();
            return None;
        }
        thread::sleep(Duration::from_millis(1));
    }
    Some(screen.join())
}

/// Writes to the terminal; a terminal that was closed isn't an error.
fn say(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if !terminal::is_gone() => Err(error).context("write to the terminal"),
        _ => Ok(()),
    }
}

/// Quotes for a shell where needed.
fn quote(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./+:,=@".contains(&byte);
    if !name.is_empty() && name.bytes().all(plain) {
        name.to_owned()
    } else {
        format!("'{}'", name.replace('\'', "'\\''"))
    }
}
