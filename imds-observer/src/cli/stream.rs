//! `stream`: writes records as NDJSON until stopped.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::Args;

use super::Status;
use super::help::{self, EXPORT};
use super::live::{self, Opened};
use super::observe::{EndpointArgs, INTERVAL, ObserveArgs, Settings};
use super::service::Service;
use crate::metrics::MetricsSink;
use crate::quantity::Size;
use crate::sandbox;
use crate::sinks::Sink;
use crate::sinks::destination::{DEFAULT_FILES, Destination, Rotation};
use crate::sinks::ndjson::NdjsonOutput;
use crate::sinks::queue::Queue;

/// Write records as NDJSON until stopped
///
/// The long-running mode, for a service or a recording. An exchange is written when it ends, and its `time` is when its request began:
/// lines are not sorted by `time`.
#[derive(Debug, Args)]
#[command(after_long_help = help::STREAM)]
pub(super) struct StreamArgs {
    /// Write to this file instead of stdout; an existing file is replaced, or rotated with -C
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Rotate before the file exceeds SIZE (in 10^6 bytes; suffixes k, m, g mean KiB, MiB, GiB)
    ///
    /// Older files are renamed to FILE.1, FILE.2, and so on.
    #[arg(short = 'C', long = "rotate-size", value_name = "SIZE", requires = "write")]
    size: Option<Size>,
    /// Keep this many files, including the current one [default: 10]
    #[arg(short = 'W', long = "rotate-count", value_name = "COUNT", requires = "size", value_parser = clap::value_parser!(u32).range(1..))]
    files: Option<u32>,
    /// Serve Prometheus metrics at http://ADDR/metrics, and /healthz and /readyz; for example 127.0.0.1:9469
    #[arg(long, help_heading = EXPORT, value_name = "ADDR")]
    metrics: Option<SocketAddr>,
    /// Send findings and metrics to this OpenTelemetry collector (OTLP over HTTP); for example http://127.0.0.1:4318
    #[arg(long, help_heading = EXPORT, value_name = "URL")]
    otlp_endpoint: Option<String>,
    #[command(flatten)]
    observe: ObserveArgs,
    #[command(flatten)]
    endpoints: EndpointArgs,
}

impl StreamArgs {
    pub(super) fn run(&self) -> anyhow::Result<Status> {
        let settings = self.observe.select.settings()?;
        let rotation = self.size.map(|size| Rotation {
            size,
            files: self.files.unwrap_or(DEFAULT_FILES),
        });
        let endpoints = self.endpoints.addresses();
        live::observe_as(
            Some(Service::start(self.observe.select.clone(), &settings)?),
            &self.observe,
            &endpoints,
            &settings,
            Some(settings.interval.unwrap_or(INTERVAL)),
            |settings| {
                let destination = match &self.write {
                    Some(path) => Destination::file(path, rotation)?,
                    None => Destination::stdout(),
                };
                let listener = self.metrics.map(MetricsSink::listen).transpose()?;
                let (kinds, limits) = (settings.kinds, settings.config.limits);
                let metrics = MetricsSink::new(limits.metrics, limits.silence.0);
                let endpoint = self.otlp_endpoint.as_ref().or(settings.config.otlp.endpoint.as_ref());
                let collector = endpoint
                    .map(|endpoint| collector(endpoint, settings, &endpoints, &metrics))
                    .transpose()?;
                let mut opened = Opened::new(move || {
                    let queue = Queue::new(NdjsonOutput::new(destination, limits.held_bytes), kinds, limits.queue)?
                        .with_budget(limits.queue_bytes);
                    let mut sinks: Vec<Box<dyn Sink>> = vec![Box::new(queue)];
                    let wanted = listener.is_some() || collector.is_some();
                    if let Some(listener) = listener {
                        let address = metrics.serve_on(listener)?;
                        tracing::info!("serving metrics at http://{address}/metrics");
                    }
                    if let Some(start) = collector {
                        sinks.push(start()?);
                    }
                    if wanted {
                        sinks.push(Box::new(metrics));
                    }
                    Ok(sinks)
                });
                if rotation.is_some() {
                    opened.writes.extend(self.write.as_deref().map(sandbox::directory_of));
                }
                Ok(opened)
            },
        )
    }
}

/// Starts the sending thread.
type StartSending = Box<dyn FnOnce() -> anyhow::Result<Box<dyn Sink>>>;

/// Sends findings and the series of `metrics` to a collector. An address of IMDS is refused.
#[cfg(feature = "otlp")]
fn collector(
    endpoint: &str,
    settings: &Settings,
    imds: &[IpAddr],
    metrics: &MetricsSink,
) -> anyhow::Result<StartSending> {
    use crate::metrics::otlp::{Collector, Options};
    let options = Options {
        endpoint,
        interval: settings.config.otlp.interval.map(|span| span.0),
        host: settings.host(None)?,
        imds: settings.endpoints(imds),
        limit: settings.config.limits.metrics.collector_findings,
    };
    let collector = Collector::new(&options, metrics)?;
    tracing::info!("sending findings and metrics to {endpoint}");
    let limit = options.limit;
    Ok(Box::new(move || {
        let queue = Queue::new(collector, Collector::KINDS.into_iter().collect(), limit)?;
        Ok(Box::new(queue))
    }))
}

#[cfg(not(feature = "otlp"))]
fn collector(endpoint: &str, _: &Settings, _: &[IpAddr], _: &MetricsSink) -> anyhow::Result<StartSending> {
    anyhow::bail!("send to {endpoint}: this build has no OTLP support (build with `--features otlp`)")
}
