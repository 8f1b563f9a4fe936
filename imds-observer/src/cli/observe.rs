//! Options that several commands share, and the pipeline built from them.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use super::help::{CONFIGURATION, FILTERS, RECORDS, SCOPE};
use super::values;
use crate::attribution::Attribution;
use crate::attribution::worker::Worker;
#[cfg(live)]
use crate::bpf::{LiveOptions, cgroup2_mount};
use crate::config::Config;
use crate::exchange::{FlowTable, Scope};
use crate::filter::{Filter, Kinds, PodName};
use crate::host_facts::HostFacts;
use crate::hosts::HostDetectors;
use crate::imds::{DEFAULT_ENDPOINTS, Hasher, SERVICES, Selection};
use crate::pipeline::{Parts, Pipeline};
use crate::quantity::Span;
use crate::record::{Host, Kind};
use crate::redact::{self, Cmdline};
use crate::sinks::Sink;
#[cfg(live)]
use crate::source::configured_resolver;
use crate::summary::Summarizer;

/// Default time between summaries.
pub(super) const INTERVAL: Duration = Duration::from_secs(10);

/// Filters, record selection and configuration, for live and recorded traffic.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = FILTERS)]
pub(super) struct SelectArgs {
    /// Include only the process with this PID
    ///
    /// All filters are repeatable. A request must match one value of each filter that is given.
    #[arg(long, value_name = "PID")]
    pid: Vec<u32>,
    /// Include only processes with this name (comm)
    #[arg(long, value_name = "NAME")]
    comm: Vec<String>,
    /// Include only processes of this user
    #[arg(long, value_name = "UID")]
    uid: Vec<u32>,
    /// Include only this container (name, or a prefix of the ID)
    #[arg(long, value_name = "NAME|ID")]
    container: Vec<String>,
    /// Include only this pod
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pod: Vec<PodName>,
    /// Write only these record kinds
    ///
    /// `start` and `loss` are written only if listed. Detection is unaffected.
    #[arg(long, help_heading = RECORDS, value_name = "KIND,...", value_delimiter = ',', value_parser = values::kind())]
    records: Option<Vec<Kind>>,
    /// Command line arguments in records: all, secrets redacted, or none [default: redacted]
    #[arg(long, help_heading = RECORDS, value_name = "full|redacted|none", value_parser = values::cmdline(), hide_possible_values = true)]
    cmdline: Option<Cmdline>,
    /// Read settings from this TOML file; options override it
    #[arg(long, help_heading = CONFIGURATION, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Write a summary at this interval, such as 10s or 1m
    #[arg(long, help_heading = RECORDS, value_name = "SPAN")]
    interval: Option<Span>,
    /// Set the host name in records
    #[arg(long, help_heading = RECORDS, value_name = "NAME")]
    host: Option<String>,
}

/// Endpoints to observe.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct EndpointArgs {
    /// Observe these endpoints: imds, eks-pod-identity, ecs, or addresses (repeatable) [default: all three]
    #[arg(long, help_heading = SCOPE, value_name = "NAME|ADDR,...", value_delimiter = ',')]
    endpoint: Vec<Selection>,
}

impl EndpointArgs {
    /// Empty: none is given.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        Selection::addresses(&self.endpoint)
    }
}

/// Options of live observation. `--endpoint` isn't among them: `preflight` gives it a second meaning.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct ObserveArgs {
    /// Observe this uplink (repeatable) [default: all uplinks with a route to IMDS, updated when they change]
    #[arg(short, long, help_heading = SCOPE, value_name = "IF")]
    interface: Vec<String>,
    /// Observe only processes in this cgroup v2 directory and below
    ///
    /// Drops and failed connects of other processes are not recorded.
    #[arg(long, help_heading = SCOPE, value_name = "PATH")]
    cgroup: Option<PathBuf>,
    /// Find the host's files below this directory, when run in a container [default: /]
    #[arg(long, help_heading = CONFIGURATION, value_name = "DIR")]
    host_root: Option<PathBuf>,
    /// Do not drop privileges after start-up (for debugging)
    #[arg(long, help_heading = CONFIGURATION)]
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

/// Options merged with the configuration file.
pub(super) struct Settings {
    pub(super) config: Config,
    pub(super) filter: Filter,
    /// Record kinds to write.
    pub(super) kinds: Kinds,
    /// From `--interval` or the file; `None` if neither sets it.
    pub(super) interval: Option<Duration>,
    host: Option<Host>,
}

impl SelectArgs {
    #[cfg(live)]
    pub(super) fn has_config(&self) -> bool {
        self.config.is_some()
    }

    /// Files that a reload reads again.
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
            resolver: configured_resolver(&self.host_root(config)),
            gather,
        }
    }

    pub(super) fn confines(&self, config: &Config) -> bool {
        !(self.unconfined || config.unconfined)
    }

    /// Connections to observe. The root of the cgroup hierarchy means the whole host.
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

/// Facts of this host, for a live pipeline.
pub(super) struct ThisHost {
    pub(super) facts: HostFacts,
    pub(super) scope: Scope,
    pub(super) worker: Option<Worker>,
}

fn endpoints_of(flag: &[IpAddr], config: &Config) -> Vec<IpAddr> {
    let endpoints = or(flag, &Selection::addresses(&config.endpoints));
    if endpoints.is_empty() {
        return DEFAULT_ENDPOINTS.to_vec();
    }
    endpoints
}

impl Settings {
    /// Endpoints' addresses, from the options, the file or the defaults.
    pub(super) fn endpoints(&self, flag: &[IpAddr]) -> Vec<IpAddr> {
        endpoints_of(flag, &self.config)
    }

    /// The same for captures, where addresses of other clouds cost nothing.
    pub(super) fn recorded_endpoints(&self, flag: &[IpAddr]) -> Vec<IpAddr> {
        if flag.is_empty() && self.config.endpoints.is_empty() {
            return SERVICES.iter().flat_map(|service| service.addresses).copied().collect();
        }
        endpoints_of(flag, &self.config)
    }

    /// `--host`, or else the trace's host, or else the name of this host.
    pub(super) fn host(&self, trace: Option<Host>) -> anyhow::Result<Host> {
        if let Some(host) = self.host.clone().or(trace) {
            return Ok(host);
        }
        this_host().context("read the host name (set one with --host)")
    }

    /// Active filters, for the `start` record.
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

    /// `live`: `Some` for live observation, `None` for recorded traffic.
    pub(super) fn pipeline(
        &self,
        host: Host,
        live: Option<ThisHost>,
        interval: Option<Duration>,
        count: Option<u64>,
        sinks: Vec<Box<dyn Sink>>,
    ) -> Pipeline {
        let limits = &self.config.limits;
        let mut summarizer = Summarizer::new(limits.summary);
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
