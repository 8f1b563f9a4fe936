//! The options that several commands share, and the pipeline that they put together.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use super::values;
use crate::attribution::Attribution;
use crate::attribution::worker::Worker;
use crate::bpf::DEFAULT_ENDPOINTS;
#[cfg(live)]
use crate::bpf::{LiveOptions, cgroup2_mount};
use crate::config::{Config, Span};
use crate::detectors::HostFacts;
use crate::exchange::{FlowTable, Scope};
use crate::filter::{Filter, Kinds, PodName};
use crate::hosts::HostDetectors;
use crate::imds::Hasher;
use crate::pipeline::{Parts, Pipeline};
use crate::record::{Host, Kind};
use crate::redact::{self, Cmdline};
use crate::sinks::Sink;
use crate::summary::Summarizer;

/// Time between summaries where nothing else is said.
pub(super) const INTERVAL: Duration = Duration::from_secs(10);

/// What to look at, live or in a trace.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Selection")]
pub(super) struct SelectArgs {
    /// Only processes with this PID (repeatable; the values of one option are alternatives, different options must all hold)
    #[arg(long, value_name = "PID")]
    pid: Vec<u32>,
    /// Only processes of this name
    #[arg(long, value_name = "NAME")]
    comm: Vec<String>,
    /// Only processes of this user
    #[arg(long, value_name = "UID")]
    uid: Vec<u32>,
    /// Only this container: its name, or the beginning of its id
    #[arg(long, value_name = "NAME|ID")]
    container: Vec<String>,
    /// Only this pod
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pod: Vec<PodName>,
    /// Write only these kinds of record, also not `start` and `loss` unless named; everything is judged all the same
    #[arg(long, value_name = "KIND,...", value_delimiter = ',', value_parser = values::kind())]
    records: Option<Vec<Kind>>,
    /// How much of command lines records hold: all arguments, those without secrets, or none [default: redacted]
    #[arg(long, value_name = "full|redacted|none", value_parser = values::cmdline(), hide_possible_values = true)]
    cmdline: Option<Cmdline>,
    /// Settings in TOML; flags win over the file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Time between summaries
    #[arg(long, value_name = "SPAN")]
    interval: Option<Span>,
    /// Name of this host in the records
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
}

/// Where IMDS is.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct EndpointArgs {
    /// Address of IMDS (repeatable) [default: 169.254.169.254 and fd00:ec2::254]
    #[arg(long, value_name = "ADDR")]
    pub(super) endpoint: Vec<IpAddr>,
}

/// What to observe, live; without the endpoint, which is another option in `preflight`.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct ObserveArgs {
    /// Interface towards IMDS (repeatable); default: the uplinks that route to the endpoints, followed as they come and go
    #[arg(short, long, value_name = "IF")]
    interface: Vec<String>,
    /// Only processes below this cgroup v2 directory; drops and failed connects of others are left out
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
    /// Where the host's root directory is mounted, to name containers and pods from inside one [default: /]
    #[arg(long, value_name = "DIR")]
    host_root: Option<PathBuf>,
    /// Keep all rights after start: capabilities, system calls, files (to look for faults)
    #[arg(long)]
    unconfined: bool,
    /// Stop after this time, such as 30s or 5m
    #[arg(long, value_name = "SPAN")]
    pub(super) duration: Option<Span>,
    /// Stop after this many exchanges
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) count: Option<u64>,
    #[command(flatten)]
    pub(super) select: SelectArgs,
}

/// Flags and file together.
pub(super) struct Settings {
    pub(super) config: Config,
    pub(super) filter: Filter,
    /// Kinds that are to be written.
    pub(super) kinds: Kinds,
    /// As asked for.
    pub(super) interval: Option<Duration>,
    host: Option<Host>,
}

impl SelectArgs {
    #[cfg(live)]
    pub(super) fn has_config(&self) -> bool {
        self.config.is_some()
    }

    /// Files that are read again while it runs.
    #[cfg(live)]
    pub(super) fn read_again(&self) -> Vec<PathBuf> {
        self.config.iter().cloned().collect()
    }

    pub(super) fn settings(&self) -> anyhow::Result<Settings> {
        let config = match &self.config {
            Some(path) => Config::read(path)?,
            None => Config::default(),
        };
        let filter = Filter {
            pid: or(&self.pid, &config.filter.pid),
            comm: or(&self.comm, &config.filter.comm),
            uid: or(&self.uid, &config.filter.uid),
            container: or(&self.container, &config.filter.container),
            pod: or(&self.pod, &config.filter.pod),
        };
        redact::configure(self.cmdline.or(config.cmdline).unwrap_or_default());
        let records = self.records.as_ref().or(config.records.as_ref());
        Ok(Settings {
            filter,
            kinds: records.map_or(Kinds::ALL, |kinds| kinds.iter().copied().collect()),
            interval: self.interval.or(config.interval).map(|span| span.0),
            host: self
                .host
                .as_ref()
                .or(config.host.as_ref())
                .map(|host| Host::from(host.as_str())),
            config,
        })
    }
}

impl ObserveArgs {
    /// `gather`: see [`LiveOptions::gather`].
    #[cfg(live)]
    pub(super) fn live_options(&self, endpoints: &[IpAddr], config: &Config, gather: Duration) -> LiveOptions {
        LiveOptions {
            interfaces: or(&self.interface, &config.interfaces),
            cgroup: self.cgroup.clone().or_else(|| config.cgroup.clone()),
            limits: config.limits.kernel,
            endpoints: endpoints_of(endpoints, config),
            gather,
        }
    }

    pub(super) fn confines(&self, config: &Config) -> bool {
        !(self.unconfined || config.unconfined)
    }

    /// Whose connections count. The root of the hierarchy is the whole host.
    #[cfg(live)]
    pub(super) fn scope(&self, config: &Config) -> Scope {
        let cgroup = self.cgroup.as_ref().or(config.cgroup.as_ref());
        let is_root = |path: &PathBuf| {
            let path = path.canonicalize().ok();
            path.is_some() && path == cgroup2_mount().and_then(|root| root.canonicalize().ok())
        };
        match cgroup {
            Some(path) if !is_root(path) => Scope::Cgroup {
                uplinks: !or(&self.interface, &config.interfaces).is_empty(),
            },
            _ => Scope::Host,
        }
    }

    #[cfg(live)]
    pub(super) fn host_root(&self, config: &Config) -> PathBuf {
        let root = self.host_root.as_ref().or(config.host_root.as_ref());
        root.cloned().unwrap_or_else(|| PathBuf::from("/"))
    }
}

/// What a pipeline that observes this host knows of it and asks it.
pub(super) struct ThisHost {
    pub(super) facts: HostFacts,
    pub(super) scope: Scope,
    pub(super) worker: Option<Worker>,
}

fn endpoints_of(flag: &[IpAddr], config: &Config) -> Vec<IpAddr> {
    let endpoints = or(flag, &config.endpoints);
    if endpoints.is_empty() {
        return DEFAULT_ENDPOINTS.to_vec();
    }
    endpoints
}

impl Settings {
    /// Where IMDS is, by flag, file or default.
    pub(super) fn endpoints(&self, flag: &[IpAddr]) -> Vec<IpAddr> {
        endpoints_of(flag, &self.config)
    }

    /// The name that was asked for, else that of the trace, else this host's.
    pub(super) fn host(&self, trace: Option<Host>) -> anyhow::Result<Host> {
        if let Some(host) = self.host.clone().or(trace) {
            return Ok(host);
        }
        this_host().context("ask for this host's name (give one with --host)")
    }

    /// What is left out of the records, for the `start` record.
    fn filters(&self, count: Option<u64>) -> Vec<String> {
        let mut filters = self.filter.describe();
        if self.kinds != Kinds::ALL {
            let kinds: Vec<&str> = Kind::ALL
                .iter()
                .filter(|kind| self.kinds.has(**kind))
                .map(|kind| kind.as_str())
                .collect();
            filters.push(format!("records={}", kinds.join(",")));
        }
        filters.extend(count.map(|count| format!("count={count}")));
        filters
    }

    /// `live`: for a pipeline that observes this host.
    pub(super) fn pipeline(
        &self,
        host: Host,
        live: Option<ThisHost>,
        interval: Option<Duration>,
        count: Option<u64>,
        sinks: Vec<Box<dyn Sink>>,
    ) -> Pipeline {
        let limits = &self.config.limits;
        let mut summarizer = Summarizer::new(host.clone(), limits.summary);
        if live.is_some() {
            summarizer = summarizer.forgetting_after(limits.silence.0);
        }
        if interval.is_none() {
            summarizer = summarizer.without_intervals();
        }
        let (facts, scope, worker) = match live {
            Some(host) => (Some(host.facts), host.scope, host.worker),
            None => (None, Scope::Host, None),
        };
        Pipeline::new(Parts {
            flow: FlowTable::new(limits.flow, Hasher::random()).within(scope),
            attribution: Attribution::new(limits.attribution, worker),
            filter: self.filter.clone(),
            filters: self.filters(count),
            detectors: HostDetectors::with_limits(self.config.detectors.clone(), limits.detectors, facts),
            summarizer: Some(summarizer),
            host,
            sinks,
            interval,
            recorded_hosts: limits.report.hosts,
            count,
        })
    }
}

#[cfg(unix)]
fn this_host() -> anyhow::Result<Host> {
    let name = nix::sys::utsname::uname()?;
    Ok(Host::from(&*name.nodename().to_string_lossy()))
}

#[cfg(not(unix))]
fn this_host() -> anyhow::Result<Host> {
    Ok(Host::from(std::env::var("COMPUTERNAME")?.as_str()))
}

fn or<T: Clone>(flag: &[T], file: &[T]) -> Vec<T> {
    if flag.is_empty() { file.to_vec() } else { flag.to_vec() }
}
