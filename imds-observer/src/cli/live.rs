//! Runs the pipeline over what happens on this host.

use std::time::Duration;

use super::Status;
use super::observe::{ObserveArgs, Settings};
use crate::detectors::HostFacts;
use crate::pipeline;
use crate::sinks::Sink;
use crate::source::LiveSource;
use crate::stop::Stop;

/// Opens the source before the sinks: what can't be observed must not overwrite a file.
pub(super) fn observe(
    args: &ObserveArgs,
    settings: &Settings,
    interval: Duration,
    sinks: impl FnOnce(&Settings) -> anyhow::Result<Vec<Box<dyn Sink>>>,
) -> anyhow::Result<Status> {
    let stop = Stop::on_signals()?;
    let mut source = LiveSource::open(&args.live_options(&settings.config))?;
    let host = settings.host(None)?;
    let facts = HostFacts {
        name: host.clone(),
        ..HostFacts::default()
    };
    let mut pipeline = settings.pipeline(host, Some(facts), Some(interval), args.count, sinks(settings)?);
    let duration = args.duration.map(|span| span.0);
    pipeline::run(&mut source, &mut pipeline, duration, &stop)?;
    Ok(Status::Done)
}
