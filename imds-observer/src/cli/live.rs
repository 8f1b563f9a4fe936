//! Runs the pipeline over what happens on this host.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::Status;
use super::observe::{ObserveArgs, Settings, ThisHost};
use super::service::{self, Service};
use crate::attribution::worker::{HostLookup, Worker};
use crate::bpf::{INTERACTIVE_POLL, STREAM_POLL};
use crate::doctor;
use crate::host;
use crate::imds::beyond_this_host;
use crate::live::LiveSource;
use crate::pipeline::{self, Pipeline};
use crate::record::Host;
use crate::sandbox::{self, Needs};
use crate::sinks::Sink;
use crate::stop::Stop;

type Start = Box<dyn FnOnce() -> anyhow::Result<Vec<Box<dyn Sink>>>>;

/// Sinks whose files and sockets are open. Their threads start after privileges are dropped.
pub(super) struct Opened {
    pub(super) start: Start,
    /// Directories where they go on making files.
    pub(super) writes: Vec<PathBuf>,
}

impl Opened {
    pub(super) fn new(start: impl FnOnce() -> anyhow::Result<Vec<Box<dyn Sink>>> + 'static) -> Self {
        Self {
            start: Box::new(start),
            writes: Vec::new(),
        }
    }
}

pub(super) fn observe(
    args: &ObserveArgs,
    endpoints: &[IpAddr],
    settings: &Settings,
    interval: Option<Duration>,
    sinks: impl FnOnce(&Settings) -> anyhow::Result<Opened>,
) -> anyhow::Result<Status> {
    observe_as(None, args, endpoints, settings, interval, sinks)
}

/// Opens the source before the sinks: what can't be observed must not overwrite a file.
/// With a `service`, notifies the service manager, and reloads the configuration on request.
pub(super) fn observe_as(
    service: Option<Service>,
    args: &ObserveArgs,
    endpoints: &[IpAddr],
    settings: &Settings,
    interval: Option<Duration>,
    sinks: impl FnOnce(&Settings) -> anyhow::Result<Opened>,
) -> anyhow::Result<Status> {
    let stop = match &service {
        Some(service) if service.reloads() => Stop::but_on_hangup()?,
        _ => Stop::on_signals()?,
    };
    let gather = if service.is_some() {
        STREAM_POLL
    } else {
        INTERACTIVE_POLL
    };
    let options = args.live_options(endpoints, &settings.config, gather);
    let mut source = LiveSource::open(&options)?;
    let name = settings.host(None)?;
    let opened = sinks(settings)?;
    let reads = if service.is_some() {
        args.select.read_again()
    } else {
        Vec::new()
    };
    let this_host = settle(
        args,
        settings,
        &mut source,
        &name,
        options.endpoints,
        opened.writes,
        reads,
    );
    let sinks = (opened.start)()?;
    let mut pipeline = settings.pipeline(name, Some(this_host), interval, args.count, sinks);
    let duration = args.duration.map(|span| span.0);
    match service {
        Some(mut service) => {
            service::notify_ready(source.interfaces().len());
            let mut tick = |pipeline: &mut Pipeline| service.tick(pipeline);
            pipeline::run_supervised(&mut source, &mut pipeline, duration, &stop, &mut tick)?;
        }
        None => pipeline::run(&mut source, &mut pipeline, duration, &stop)?,
    }
    Ok(Status::Done)
}

/// Starts the attribution thread, reads the facts of this host that need privileges, and drops privileges that are no longer needed.
pub(super) fn settle(
    args: &ObserveArgs,
    settings: &Settings,
    source: &mut LiveSource,
    name: &Host,
    endpoints: Vec<IpAddr>,
    writes: Vec<PathBuf>,
    reads: Vec<PathBuf>,
) -> ThisHost {
    let mut facts = host::facts(name.clone(), &args.host_root(&settings.config));
    facts.nat_rules = doctor::redirections(&beyond_this_host(&endpoints));
    let scope = args.scope(&settings.config);
    let confines = args.confines(&settings.config);
    let mut lookup = HostLookup::new(&args.host_root(&settings.config), endpoints);
    if confines {
        lookup = lookup.giving_up_rights();
    }
    // Before this thread drops capabilities that the worker needs.
    let worker = Worker::start(lookup, settings.config.limits.attribution.questions);
    if confines {
        let (capabilities, mut elsewhere) = source.capabilities();
        elsewhere.extend(
            HostLookup::capabilities()
                .into_iter()
                .filter(|capability| sandbox::holds(*capability)),
        );
        let needs = Needs {
            capabilities,
            writes,
            reads,
        };
        source.confined(sandbox::confine(&needs, &elsewhere));
    }
    ThisHost { facts, scope, worker }
}
