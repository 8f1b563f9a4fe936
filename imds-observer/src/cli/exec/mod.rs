//! `exec`: runs a command and reports its metadata story.

mod matrix;

use std::ffi::OsString;
use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use caps::Capability;
use clap::{ArgGroup, Args, ValueEnum};
use imds_observer_standin::world::{UPLINK, World};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::observe::{SelectArgs, Settings, ThisHost};
use super::{Status, help, print, values};
use crate::attribution::worker::{HostLookup, Worker};
use crate::bpf::{INTERACTIVE_POLL, LiveOptions};
use crate::exchange::Scope;
use crate::exec::against::Against;
use crate::exec::capture::Capture;
use crate::exec::cgroup::Cgroup;
use crate::exec::supervisor::{Launch, Report, Supervisor};
use crate::host;
use crate::live::LiveSource;
use crate::pipeline;
use crate::record::{Dialect, Missing, Severity, Time};
use crate::redact;
use crate::report::history::History;
use crate::report::html;
use crate::report::text::Colour;
use crate::sandbox;
use crate::sinks::Sink;
use crate::sinks::collect::Collector;
use crate::source::Source as _;
use crate::source::input::Input;
use crate::source::traces::Traces;
use crate::stop::Stop;
use crate::story::assertion::{Assertion, Assertions, Checked};
use crate::story::{Exit, Recorder, Story};

/// Statuses of `exec` itself, as `env` and `timeout` have them.
const FAILED: u8 = 125;
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;
/// Ctrl-C twice within this time ends a command that ignores it.
const TWICE: Duration = Duration::from_secs(2);
/// Resolution of the charts.
const HISTORY_STEP: Duration = Duration::from_secs(1);

/// Run a command, observe only it and its children, and report its requests to IMDS
///
/// With --against or --matrix the command runs in network namespaces beside a stand-in for IMDS with made-up credentials. No packet
/// leaves them, and no request reaches the real service. This works without root where the kernel allows user namespaces.
#[derive(Debug, Args)]
#[command(after_long_help = help::EXEC, group(ArgGroup::new("stand_in").multiple(true)))]
pub(super) struct ExecArgs {
    /// Run the command beside a stand-in for IMDS with these options
    ///
    /// tokens=optional|required, hop-limit=1..64, hops=0..8 (or host, container, nested), ipv6, role=NAME|none, latency=SPAN,
    /// fail=PUT:STATUS, fail=GET:STATUS, endpoint=disabled, cloud=gcp|azure|ibm|oracle|openstack, pod-identity, ecs. Default: tokens=optional,hop-limit=1,hops=0.
    #[arg(long, value_name = "OPTION,...", group = "stand_in")]
    against: Option<Against>,
    /// Run the command once for each usual setting: tokens optional or required, hop limit 1 or 2, on the host, in a container, nested
    #[arg(long, group = "stand_in")]
    matrix: bool,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: OutputFormat,
    /// Write the report to this file instead of stdout
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Exit with status 3 if a finding has this severity or a higher one
    #[arg(long, value_name = "SEVERITY", value_parser = values::severity())]
    fail_on: Option<Severity>,
    /// Exit with status 3 unless this holds (repeatable)
    ///
    /// Such as `no v1`, `some v2`, `requests <= 3`, `no token-response-lost`, `credentials obtained`, `waited < 1s`, `latency < 50ms`.
    #[arg(long, value_name = "ASSERTION,...")]
    assert: Vec<Assertions>,
    /// Discard what the command writes to stdout and stderr
    #[arg(long)]
    quiet: bool,
    /// Run this container image with podman; CMD, if any, replaces the image's command
    ///
    /// As `podman run --rm --network host IMAGE CMD...`. The image must be there already: nothing is pulled through the stand-in's network.
    #[arg(long, value_name = "IMAGE", requires = "stand_in")]
    image: Option<OsString>,
    /// The command and its arguments
    #[arg(required_unless_present = "image", trailing_var_arg = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Command that starts a container in the network namespace of its caller.
const PODMAN: [&str; 5] = ["podman", "run", "--rm", "--network", "host"];

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OutputFormat {
    /// Report as text
    Text,
    /// One JSON object
    Json,
    /// Self-contained page with charts
    Html,
}

/// How the command's requests are observed.
enum Observation {
    Kernel(Box<LiveSource>),
    /// A capture in the stand-in's world, where no eBPF program can be attached, and the reason.
    Capture(Capture, String),
}

/// Result of an attempt to run the command.
enum Attempt {
    Ran(Box<Observed>),
    /// With its exit status.
    NotStarted(u8, Errno),
}

/// A story, and what else a page shows of it.
struct Observed {
    story: Story,
    page: Option<String>,
}

impl ExecArgs {
    /// Errors have a status of their own.
    pub(super) fn run(&self) -> Status {
        Status::Command(self.try_run().unwrap_or_else(|error| {
            tracing::error!("exec: {error:#}");
            FAILED
        }))
    }

    fn try_run(&self) -> anyhow::Result<u8> {
        if self.matrix {
            return self.run_matrix();
        }
        let observed = match self.attempt()? {
            Attempt::Ran(observed) => observed,
            Attempt::NotStarted(status, error) => {
                let program = self.arguments().into_iter().next().unwrap_or_default();
                tracing::error!("run {}: {}", program.display(), error.desc());
                return Ok(status);
            }
        };
        let Observed { story, page } = *observed;
        let verdicts = story.judge(&self.assertions());
        let failed =
            verdicts.iter().any(|verdict| !verdict.holds) || self.fail_on.is_some_and(|least| story.has_finding(least));
        self.report(&story, &verdicts, page, !failed)?;
        Ok(if failed { 3 } else { story.end.code() })
    }

    /// Arguments of the executed command.
    fn arguments(&self) -> Vec<OsString> {
        let container = self.image.iter().flat_map(|image| {
            let podman = PODMAN.iter().map(OsString::from);
            podman.chain([image.clone()])
        });
        container.chain(self.command.iter().cloned()).collect()
    }

    fn assertions(&self) -> Vec<Assertion> {
        let all = self.assert.iter();
        all.flat_map(|Assertions(each)| each.iter().cloned()).collect()
    }

    fn report(&self, story: &Story, verdicts: &[Checked], page: Option<String>, passed: bool) -> anyhow::Result<()> {
        let colour = Colour::on(self.write.is_none() && io::stdout().is_terminal());
        let text = match (self.output, page) {
            (OutputFormat::Json, _) => story.json(verdicts, passed)?,
            (OutputFormat::Html, Some(page)) => page,
            _ => story.text(verdicts, colour),
        };
        self.emit(&text)
    }

    fn emit(&self, text: &str) -> anyhow::Result<()> {
        match &self.write {
            Some(path) => std::fs::write(path, text).with_context(|| format!("write {}", path.display())),
            None => print(text),
        }
    }

    /// Runs the command once.
    fn attempt(&self) -> anyhow::Result<Attempt> {
        let settings = SelectArgs::default().settings()?;
        let privileged = sandbox::holds(Capability::CAP_SYS_ADMIN) && sandbox::holds(Capability::CAP_NET_ADMIN);
        if !privileged && self.against.is_none() {
            bail!(
                "observing a command with this host's own IMDS needs root (run it with sudo, or beside a stand-in with --against, \
                 which needs no privileges)"
            );
        }
        // Until the supervisor is forked, this process has one thread.
        let mut world = match &self.against {
            Some(against) => {
                let world = World::build(against.options.clone(), !privileged);
                Some(world.context("make a network for the stand-in")?)
            }
            None => None,
        };
        let cgroup = match Cgroup::create() {
            Ok(cgroup) if privileged => Some(cgroup),
            // Without programs to attach, it is only one more way to find the command's processes.
            Ok(cgroup) => cgroup.remove().ok().and(None),
            Err(error) if privileged => return Err(error),
            Err(_) => None,
        };
        let mask = block_signals()?;
        let command = self.arguments();
        let environment = world.as_ref().map(World::environment).unwrap_or_default();
        let supervisor = Supervisor::fork(&Launch {
            command: &command,
            environment: &environment,
            netns: world.as_ref().map(World::innermost),
            cgroup: cgroup.as_ref(),
            mask,
            quiet: self.quiet,
        })?;
        let attempt = world
            .as_mut()
            .map_or(Ok(()), World::serve)
            .and_then(|()| self.observe(&settings, &supervisor, privileged, cgroup.as_ref()));
        supervisor.finish();
        if let Some(cgroup) = &cgroup {
            cgroup.remove()?;
        }
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None).context("restore the signal mask")?;
        attempt
    }

    fn observe(
        &self,
        settings: &Settings,
        supervisor: &Supervisor,
        privileged: bool,
        cgroup: Option<&Cgroup>,
    ) -> anyhow::Result<Attempt> {
        let mut options = LiveOptions {
            cgroup: cgroup.map(|cgroup| cgroup.directory().to_owned()),
            limits: settings.config.limits.kernel,
            endpoints: settings.endpoints(&[]),
            gather: INTERACTIVE_POLL,
            ..LiveOptions::default()
        };
        if self.against.is_some() {
            options.interfaces = vec![UPLINK.to_owned()];
        }
        let observation = if privileged {
            match LiveSource::open(&options) {
                Ok(source) => Observation::Kernel(Box::new(source)),
                Err(error) if self.against.is_some() => {
                    Observation::Capture(Capture::start(UPLINK)?, format!("{error:#}"))
                }
                Err(error) => return Err(error),
            }
        } else {
            Observation::Capture(Capture::start(UPLINK)?, "not root".to_owned())
        };
        let recorder = Recorder::default();
        let collector = Collector::new(settings.config.limits.report.findings);
        let history = History::new(settings.config.limits.report);
        let mut sinks: Vec<Box<dyn Sink>> = vec![Box::new(recorder.clone()), Box::new(collector.clone())];
        let is_page = self.output == OutputFormat::Html;
        if is_page {
            sinks.push(Box::new(history.clone()));
        }
        let interval = is_page.then_some(HISTORY_STEP);

        let signals = SignalFd::with_flags(&passed_on(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .context("receive signals")?;
        let host = settings.host(None)?;
        let began;
        let end;
        let missing;
        let mut pipeline;
        match observation {
            Observation::Kernel(mut source) => {
                let mut facts = host::facts(host.clone(), std::path::Path::new("/"));
                if let Some(against) = &self.against {
                    // The stand-in's, wherever this machine is.
                    let cloud = Some(against.cloud()).filter(|cloud| *cloud != Dialect::Aws);
                    (facts.cloud, facts.instance_id, facts.nat_rules) = (cloud, None, None);
                }
                let lookup = HostLookup::new(std::path::Path::new("/"), options.endpoints.clone());
                let live = ThisHost {
                    facts,
                    scope: Scope::Cgroup {
                        uplinks: self.against.is_some(),
                    },
                    worker: Worker::start(lookup, settings.config.limits.attribution.questions),
                };
                pipeline = settings.pipeline(host.clone(), Some(live), interval, None, sinks);
                missing = gaps(&source.start().missing);
                began = Time::now();
                if let Some(not_started) = start(supervisor)? {
                    return Ok(not_started);
                }
                let stop = Stop::never();
                end = thread::scope(|scope| {
                    let follower = scope.spawn(|| {
                        let end = follow(supervisor, &signals);
                        stop.request();
                        end
                    });
                    let ran = pipeline::run(&mut *source, &mut pipeline, None, &stop);
                    if ran.is_err() {
                        supervisor.kill();
                    }
                    let end = follower.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                    ran.and(end)
                })?;
            }
            Observation::Capture(capture, why) => {
                began = Time::now();
                if let Some(not_started) = start(supervisor)? {
                    return Ok(not_started);
                }
                end = follow(supervisor, &signals)?;
                let input = Input::new("capture".into(), Box::new(capture.finish()?)).context("read the capture")?;
                let mut source = Traces::with_limits(
                    vec![input],
                    &settings.recorded_endpoints(&[]),
                    &settings.config.limits.traces,
                );
                pipeline = settings.pipeline(host.clone(), None, interval, None, sinks);
                pipeline::run(&mut source, &mut pipeline, None, &Stop::never())?;
                missing = without_kernel(&why);
            }
        }
        let ended = Time::now();
        let (records, omitted) = recorder.take();
        let story = Story {
            command: self.shown_command(),
            end,
            began,
            ended,
            against: self.against.as_ref().map(ToString::to_string),
            records,
            omitted,
            collected: collector.take(),
            missing,
        };
        let page = is_page
            .then(|| {
                html::page(&html::Input {
                    host: &host,
                    files: 0,
                    records: story.records.len() as u64,
                    skipped: story.omitted,
                    period: Some((began, ended)),
                    summary: story.collected.summary.as_ref(),
                    findings: &story.collected.findings,
                    loss: pipeline.loss(),
                    missing: story.missing.clone(),
                    picture: &history.take(),
                })
            })
            .transpose()?;
        Ok(Attempt::Ran(Box::new(Observed { story, page })))
    }

    /// The command line without secrets.
    fn shown_command(&self) -> Vec<String> {
        let arguments: Vec<String> = self
            .arguments()
            .iter()
            .map(|argument| argument.to_string_lossy().into_owned())
            .collect();
        let program = arguments.first().cloned();
        redact::command_line(program.as_deref(), arguments).unwrap_or_else(|| program.into_iter().collect())
    }
}

/// Signals that the observer passes to the command.
fn passed_on() -> SigSet {
    [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
    ]
    .into_iter()
    .collect()
}

/// Blocks them in this thread and in all that it starts; returns the mask before.
fn block_signals() -> anyhow::Result<SigSet> {
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&passed_on()), Some(&mut before)).context("block signals")?;
    Ok(before)
}

/// `Some`: the command could not be started.
fn start(supervisor: &Supervisor) -> anyhow::Result<Option<Attempt>> {
    supervisor.start().context("start the command")?;
    match supervisor.report() {
        Report::Started => Ok(None),
        Report::NotStarted(Errno::ENOENT) => Ok(Some(Attempt::NotStarted(NOT_FOUND, Errno::ENOENT))),
        Report::NotStarted(error) => Ok(Some(Attempt::NotStarted(CANNOT_RUN, error))),
        Report::NotPrepared(error) => bail!("prepare the command's process: {}", error.desc()),
        Report::Ended(_) | Report::Gone => bail!("start the command: its supervisor has ended"),
    }
}

/// Passes signals to the command until it ends.
fn follow(supervisor: &Supervisor, signals: &SignalFd) -> anyhow::Result<Exit> {
    let mut last: Option<Instant> = None;
    loop {
        let mut ready = [
            PollFd::new(supervisor.as_fd(), PollFlags::POLLIN),
            PollFd::new(std::os::fd::AsFd::as_fd(signals), PollFlags::POLLIN),
        ];
        match poll(&mut ready, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            other => other.context("wait for the command")?,
        };
        let [reported, signalled] = ready.map(|fd| fd.any().unwrap_or(true));
        if reported {
            match supervisor.report() {
                Report::Ended(end) => return Ok(end),
                Report::Gone => bail!("the command's supervisor was killed: how the command ended is unknown"),
                _ => {}
            }
        }
        while signalled && let Ok(Some(received)) = signals.read_signal() {
            let signal = received.ssi_signo as i32;
            // Ctrl-C reaches the command too, which is in the same foreground process group.
            let from_terminal = received.ssi_code == libc::SI_KERNEL;
            if !from_terminal {
                supervisor.signal(signal);
            }
            if matches!(signal, libc::SIGINT | libc::SIGTERM) {
                let again = last.is_some_and(|last| !from_terminal || last.elapsed() < TWICE);
                if again {
                    supervisor.kill();
                }
                last = Some(Instant::now());
            }
        }
    }
}

fn gaps(missing: &[Missing]) -> Vec<String> {
    missing
        .iter()
        .map(|missing| format!("{}: {} ({})", missing.capability, missing.blinds, missing.why))
        .collect()
}

/// Facts that a capture beside the stand-in doesn't show.
fn without_kernel(why: &str) -> Vec<String> {
    [
        "which process sent a request; its command line, user and container",
        "whether a response reached the process: derived from TTLs and ICMP errors",
        "requests that never left the command's network namespace, and the error that connect() returned",
        "where the kernel dropped a packet",
    ]
    .iter()
    .map(|gap| format!("{gap} (no eBPF programs: {why})"))
    .collect()
}
