//! Runs the pipeline over what happens on this host.

use std::net::IpAddr;
use std::time::Duration;

use super::Status;
use super::observe::{ObserveArgs, Settings, ThisHost};
use crate::attribution::worker::{HostLookup, Worker};
use crate::host;
use crate::pipeline;
use crate::sinks::Sink;
use crate::source::LiveSource;
use crate::stop::Stop;

/// Opens the source before the sinks: what can't be observed must not overwrite a file.
pub(super) fn observe(
    args: &ObserveArgs,
    endpoints: &[IpAddr],
    settings: &Settings,
    interval: Option<Duration>,
    sinks: impl FnOnce(&Settings) -> anyhow::Result<Vec<Box<dyn Sink>>>,
) -> anyhow::Result<Status> {
    let stop = Stop::on_signals()?;
    let options = args.live_options(endpoints, &settings.config);
    let mut source = LiveSource::open(&options)?;
    let name = settings.host(None)?;
    let this_host = ThisHost {
        facts: host::facts(name.clone()),
        worker: Worker::start(HostLookup::new(&args.host_root(&settings.config), options.endpoints)),
    };
    let mut pipeline = settings.pipeline(name, Some(this_host), interval, args.count, sinks(settings)?);
    let duration = args.duration.map(|span| span.0);
    pipeline::run(&mut source, &mut pipeline, duration, &stop)?;
    Ok(Status::Done)
}
