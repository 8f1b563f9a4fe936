//! Runs the pipeline over what happens on this host.

use std::net::IpAddr;
use std::time::Duration;

use super::Status;
use super::observe::{ObserveArgs, Settings, ThisHost};
use super::service::{self, Service};
use crate::attribution::worker::{HostLookup, Worker};
use crate::bpf::UNHURRIED;
use crate::host;
use crate::pipeline::{self, Pipeline};
use crate::sinks::Sink;
use crate::source::LiveSource;
use crate::stop::Stop;

pub(super) fn observe(
    args: &ObserveArgs,
    endpoints: &[IpAddr],
    settings: &Settings,
    interval: Option<Duration>,
    sinks: impl FnOnce(&Settings) -> anyhow::Result<Vec<Box<dyn Sink>>>,
) -> anyhow::Result<Status> {
    observe_as(None, args, endpoints, settings, interval, sinks)
}

/// Opens the source before the sinks: what can't be observed must not overwrite a file.
/// With a `service`, tells the service manager, and reads the configuration again when asked.
pub(super) fn observe_as(
    service: Option<Service>,
    args: &ObserveArgs,
    endpoints: &[IpAddr],
    settings: &Settings,
    interval: Option<Duration>,
    sinks: impl FnOnce(&Settings) -> anyhow::Result<Vec<Box<dyn Sink>>>,
) -> anyhow::Result<Status> {
    let stop = match &service {
        Some(service) if service.reloads() => Stop::but_on_hangup()?,
        _ => Stop::on_signals()?,
    };
    let mut options = args.live_options(endpoints, &settings.config);
    if service.is_none() {
        options.gather = UNHURRIED;
    }
    let mut source = LiveSource::open(&options)?;
    let name = settings.host(None)?;
    let this_host = ThisHost {
        facts: host::facts(name.clone()),
        worker: Worker::start(HostLookup::new(&args.host_root(&settings.config), options.endpoints)),
    };
    let mut pipeline = settings.pipeline(name, Some(this_host), interval, args.count, sinks(settings)?);
    let duration = args.duration.map(|span| span.0);
    match service {
        Some(mut service) => {
            service::tell_ready(source.interfaces().len());
            let mut tick = |pipeline: &mut Pipeline| service.tick(pipeline);
            pipeline::run_supervised(&mut source, &mut pipeline, duration, &stop, &mut tick)?;
        }
        None => pipeline::run(&mut source, &mut pipeline, duration, &stop)?,
    }
    Ok(Status::Done)
}
