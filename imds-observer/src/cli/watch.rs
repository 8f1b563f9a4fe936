//! `watch`: what happens now, for people.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use clap::Args;

use super::observe::{EndpointArgs, INTERVAL, ObserveArgs};
use super::{Status, live};
use crate::record::Kind;
use crate::report::text::Colour;
use crate::sinks::Sink;
use crate::sinks::destination::Destination;
use crate::sinks::queue::Queue;
use crate::sinks::text::TextOutput;

/// Time between two drawings on a terminal.
const REDRAW: Duration = Duration::from_secs(2);

/// Show processes, rates and findings as they come
#[derive(Debug, Args)]
pub(super) struct WatchArgs {
    #[command(flatten)]
    observe: ObserveArgs,
    #[command(flatten)]
    endpoints: EndpointArgs,
    /// Plain text without cursor keys, as on a pipe
    #[arg(long)]
    plain: bool,
}

impl WatchArgs {
    pub(super) fn run(&self) -> anyhow::Result<Status> {
        let settings = self.observe.select.settings()?;
        let terminal = io::stdout().is_terminal();
        let redraw = terminal && !self.plain;
        let interval = settings.interval.unwrap_or(if terminal { REDRAW } else { INTERVAL });
        live::observe(
            &self.observe,
            &self.endpoints.endpoint,
            &settings,
            Some(interval),
            |settings| {
                let output = TextOutput::new(Destination::stdout(), Colour::on(terminal), redraw);
                let shown = [Kind::Start, Kind::Finding, Kind::Summary, Kind::Loss]
                    .into_iter()
                    .collect();
                let queue = Queue::new(output, settings.kinds.and(shown), settings.config.limits.queue)?;
                Ok(vec![Box::new(queue) as Box<dyn Sink>])
            },
        )
    }
}
