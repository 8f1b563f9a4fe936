//! Events from the running kernel.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use caps::Capability;
use imds_observer_common::{InterfaceCounters, LossCounters};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::utsname::uname;

use crate::bpf::{Decoder, Kernel, Links, LiveOptions, Preempting};
use crate::event::{ClockStep, Event, InterfaceSample};
use crate::host::ethtool::AllowanceMeter;
use crate::host::{UplinkChange, UplinkMonitor};
use crate::imds::beyond_this_host;
use crate::record::{Confinement, LossCounts, Mode, Time, VpcResolver, steady};
use crate::source::{Source, SourceFacts, SourceState};
use crate::wipe;

/// Events that one call hands over, so that timers get their turn in a flood.
const BATCH: usize = 8_192;
/// Number of events in one poll after which the next poll comes at once. The ring holds a few times as many.
const MANY: usize = 1_000;
/// Empty polls before the reader sleeps until a wakeup.
const LOOKS: u32 = 3;
/// Events of a full ring buffer, even one enlarged to 16 MiB.
const LAST_EVENTS: usize = 1 << 17;
/// How long names of places that drop are waited for at the end.
const NAMES: Duration = Duration::from_millis(500);
/// How often counters are read.
const SAMPLE: Duration = Duration::from_secs(1);
/// How often it is checked that programs are still attached.
const LINKS: Duration = Duration::from_secs(10);

/// How often changes of routes and interfaces are looked at: a router's table may change all the time.
const UPLINKS: Duration = Duration::from_millis(200);

/// The kernel programs, their ring buffer and counters.
pub struct LiveSource {
    kernel: Kernel,
    decoder: Decoder,
    /// For being woken by the kernel programs.
    woken: Epoll,
    /// Unless the user has named the interfaces; until the first look at the ring.
    monitor: Option<UplinkMonitor>,
    /// Changes that the thread that follows the uplinks has found.
    changes: Option<Receiver<Vec<UplinkChange>>>,
    allowance: AllowanceMeter,
    endpoints: Vec<IpAddr>,
    resolver: Option<Arc<VpcResolver>>,
    /// Whether only a cgroup is observed, and which.
    cgroup: Option<PathBuf>,
    confinement: Option<Confinement>,
    /// See [`LiveOptions::gather`].
    gather: Duration,
    undecoded: u64,
    links: Links,
    /// Programs that another tool has detached.
    detached: u64,
    preempting: Option<Preempting>,
    /// Programs of other tools that began to run before ours.
    preempted: u64,
    /// From before every hook was attached, for the first batch.
    early: Vec<Event>,
    reported_loss: LossCounts,
    /// The last look into the ring, and what it brought.
    drained: (Instant, usize),
    /// When a look has last brought something.
    came: Instant,
    /// The kernel programs have been asked to wake us, and nothing has come since.
    asleep: bool,
    sampled: Instant,
    linked: Instant,
    /// As last read, and the interface's name then. As many as the kernel's map holds.
    counters: HashMap<u32, (InterfaceCounters, Arc<str>)>,
}

impl LiveSource {
    /// Loads, attaches and starts to listen. From here on nothing is missed.
    pub fn open(options: &LiveOptions) -> anyhow::Result<Self> {
        wipe::begin();
        let (mut kernel, mut decoder) = Kernel::load(options)?;
        for interface in &options.interfaces {
            // Asked for explicitly: an error.
            kernel.attach_uplink(interface)?;
        }
        let mut monitor = None;
        if options.interfaces.is_empty() {
            match UplinkMonitor::open(&beyond_this_host(&options.endpoints)) {
                Ok(opened) => monitor = Some(opened),
                Err(error) => kernel.miss_uplink(format!("find the uplinks: {error} (name one with --interface)")),
            }
        }
        decoder.set_clock(steady::begin());
        let woken = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("create an epoll instance")?;
        woken
            .add(
                kernel.ring_fd(),
                EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0),
            )
            .context("wait for the ring buffer")?;
        let now = Instant::now();
        let mut source = Self {
            kernel,
            decoder,
            woken,
            monitor,
            changes: None,
            allowance: AllowanceMeter::open(),
            endpoints: options.endpoints.clone(),
            resolver: options.resolver.as_ref().map(|(_, resolver)| Arc::clone(resolver)),
            cgroup: options.cgroup.clone(),
            confinement: None,
            gather: options.gather,
            undecoded: 0,
            links: Links::default(),
            detached: 0,
            preempting: None,
            preempted: 0,
            early: Vec::new(),
            reported_loss: LossCounts::default(),
            drained: (now, 0),
            came: now,
            asleep: false,
            sampled: now,
            linked: now,
            counters: HashMap::new(),
        };
        source.follow_uplinks();
        if source.monitor.is_some()
            && let Err(error) = source.kernel.prepare_uplinks()
        {
            tracing::warn!("{error}");
            source.kernel.miss_uplink(error.to_string());
        }
        let left_out = source.monitor.as_ref().map_or(0, UplinkMonitor::left_out);
        if left_out > 0 {
            source.kernel.miss_uplink(format!(
                "too many interfaces with a route to the endpoints: {left_out} are not observed"
            ));
        }
        if source.monitor.is_some()
            && !beyond_this_host(&options.endpoints).is_empty()
            && source.interfaces().is_empty()
            && source
                .kernel
                .missing()
                .iter()
                .all(|missing| missing.capability != "wire")
        {
            source.kernel.miss_uplink(
                "no route to the endpoints (see `imds-observer doctor`); an uplink that appears later is attached"
                    .into(),
            );
        }
        let uplinks: Vec<_> = source.kernel.uplinks().collect();
        for (ifindex, name) in uplinks {
            source.begin_counting(ifindex, &name);
        }
        source.look_at_links();
        source.begin();
        Ok(source)
    }

    /// Observation begins when every hook is attached. Before that, packets show at some of them: a request without its TTL on the wire,
    /// or without its process. What is known of processes and their sockets by then is kept.
    fn begin(&mut self) {
        let mut events = Vec::new();
        self.drain_all(&mut events);
        events.retain(|event| !matches!(event, Event::Packet(_)));
        self.early = events;
    }

    /// All that is there; not what goes on coming in a flood.
    fn drain_all(&mut self, out: &mut Vec<Event>) {
        let most = out.len() + LAST_EVENTS;
        while self.drain(out) == BATCH && out.len() < most {}
    }

    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// Capabilities that it goes on needing on the thread that reads it, and those that threads of its own keep.
    pub fn capabilities(&self) -> (Vec<Capability>, Vec<Capability>) {
        self.kernel
            .capabilities(self.monitor.is_some() || self.changes.is_some())
    }

    /// For the `start` record.
    pub fn confined(&mut self, confinement: Confinement) {
        self.confinement = Some(confinement);
    }

    /// Names of the uplinks that are attached now.
    pub fn interfaces(&self) -> Vec<String> {
        let mut names: Vec<_> = self.kernel.uplinks().map(|(_, name)| name.to_string()).collect();
        names.sort_unstable();
        names
    }

    /// Notes the name, which the interface may take with it, and the base that growth is counted from.
    fn begin_counting(&mut self, ifindex: u32, name: &Arc<str>) {
        let zero = || (InterfaceCounters::default(), Arc::clone(name));
        self.counters.entry(ifindex).or_insert_with(zero).1 = Arc::clone(name);
    }

    /// Attaches to new uplinks, and detaches from removed ones. Failing to do so is not fatal.
    fn follow_uplinks(&mut self) {
        let changes = match (&mut self.monitor, &self.changes) {
            (Some(monitor), _) => monitor.changes().unwrap_or_else(|error| {
                tracing::warn!("failed to update uplinks: {error}");
                Vec::new()
            }),
            (None, Some(changes)) => changes.try_iter().flatten().collect(),
            (None, None) => return,
        };
        for change in changes {
            match change {
                UplinkChange::Renamed(uplink) => {
                    tracing::info!("uplink {} was renamed", uplink.name);
                    self.kernel.rename_uplink(uplink.ifindex, &uplink.name);
                    self.begin_counting(uplink.ifindex, &Arc::from(uplink.name));
                }
                UplinkChange::Appeared(uplink) => match self.kernel.attach_uplink(&uplink.name) {
                    Ok(()) => {
                        tracing::info!("attached to uplink {}", uplink.name);
                        self.begin_counting(uplink.ifindex, &Arc::from(uplink.name));
                    }
                    Err(error) => {
                        tracing::warn!("{error}");
                        self.kernel.miss_uplink(error.to_string());
                    }
                },
                UplinkChange::Gone(uplink) => {
                    tracing::info!("detached from uplink {}: the interface is gone", uplink.name);
                    self.kernel.detach_uplink(uplink.ifindex);
                    self.allowance.forget(uplink.ifindex);
                }
            }
        }
    }

    /// Waits up to `wait` for events and appends what is there. `false`: nothing came.
    fn read(&mut self, wait: Duration, out: &mut Vec<Event>) -> anyhow::Result<bool> {
        let before = out.len();
        out.append(&mut self.early);
        if !self.asleep {
            self.gather()?;
        }
        // After an event others follow: for a while looking by oneself is cheaper than being woken.
        if self.drain(out) == 0 && (self.asleep || self.came.elapsed() >= self.gather * LOOKS && self.sleeps(out)) {
            self.asleep = !self.wait(wait.min(SAMPLE.saturating_sub(self.sampled.elapsed())))?;
            if !self.asleep {
                self.gather()?;
            }
            self.drain(out);
        }
        if let Some(monitor) = self.monitor.take() {
            self.changes = follow(monitor);
        }
        self.follow_uplinks();
        if let Some(watch) = self.kernel.take_preempting() {
            self.preempting = watch
                .start()
                .inspect_err(|error| tracing::warn!("look for programs that rewrite addresses: {error}"))
                .ok();
        }
        if self.linked.elapsed() >= LINKS {
            self.linked = Instant::now();
            self.look_at_links();
        }
        #[cfg(feature = "kernel-log")]
        self.kernel.flush_log();
        if self.sampled.elapsed() >= SAMPLE {
            self.look_at_clock(out);
            self.look_at_preempting();
            self.sample(out);
        }
        Ok(out.len() > before)
    }

    /// Requests a wakeup. `false`: events arrived meanwhile, or no wakeup will come.
    fn sleeps(&mut self, out: &mut Vec<Event>) -> bool {
        if let Err(error) = self.kernel.ask_to_be_woken() {
            // Dearer, and nothing is missed: the next look comes as soon as while there is traffic.
            tracing::debug!("{error}");
            return false;
        }
        self.drain(out) == 0
    }

    /// Waits for more to come along, unless much comes.
    fn gather(&self) -> anyhow::Result<()> {
        let (when, count) = self.drained;
        let left = self.gather.saturating_sub(when.elapsed());
        if count < MANY && !left.is_zero() {
            self.wait(left)?;
        }
        Ok(())
    }

    /// Sleeps until the kernel programs wake us, or no longer than that; whether they did.
    fn wait(&self, longest: Duration) -> anyhow::Result<bool> {
        // An epoll instance counts in milliseconds; waited for itself, it doesn't.
        let mut ready = [PollFd::new(self.woken.0.as_fd(), PollFlags::POLLIN)];
        let woken = match ppoll(&mut ready, Some(TimeSpec::from_duration(longest)), None) {
            Ok(0) | Err(Errno::EINTR) => return Ok(false),
            Ok(_) => self.woken.wait(&mut [EpollEvent::empty()], EpollTimeout::ZERO),
            Err(error) => Err(error),
        };
        woken.map(|_| true).context("wait for the ring buffer")
    }

    fn drain(&mut self, out: &mut Vec<Event>) -> usize {
        let (decoder, undecoded) = (&mut self.decoder, &mut self.undecoded);
        // Older than what is read now.
        decoder.named(Duration::ZERO, out);
        let count = self.kernel.drain(BATCH, |bytes| {
            if let Err(error) = decoder.take(bytes, out) {
                *undecoded += 1;
                tracing::debug!("event from the kernel: {error}");
            }
        });
        self.drained = (Instant::now(), count);
        if count > 0 {
            self.came = self.drained.0;
            self.asleep = false;
        }
        count
    }

    /// The wall clock may be stepped while the observer runs.
    fn look_at_clock(&mut self, out: &mut Vec<Event>) {
        let look = steady::follow();
        self.decoder.set_clock(look.offset_ns);
        if let Some(by_ns) = look.stepped_ns {
            tracing::warn!(
                "the wall clock was stepped by {:.3} s: records have the new time from here on, and no finding or duration counts the step",
                by_ns as f64 / 1e9
            );
            out.push(Event::ClockStep(ClockStep {
                time: Time::now(),
                by_ns,
            }));
        }
    }

    fn look_at_links(&mut self) {
        for link in self.links.look() {
            self.detached += 1;
            tracing::error!(
                "{link} was detached by another tool (or its cgroup was removed): what it would have seen is lost; restart the observer"
            );
        }
    }

    fn look_at_preempting(&mut self) {
        if let Some((count, programs)) = self.preempting.as_ref().and_then(Preempting::take) {
            self.preempted += count;
            tracing::error!(
                "{programs} was attached during the run and may rewrite a connection's address before the observer sees it: \
                 clients that it sends to another address are not visible"
            );
        }
    }

    /// Reads the counters: packets by interface since the last time, and what was lost.
    fn sample(&mut self, out: &mut Vec<Event>) {
        let interval_ns = self.sampled.elapsed().as_nanos() as u64;
        self.sampled = Instant::now();
        let time = Time::now();
        let mut interfaces = self.kernel.interfaces();
        // An uplink that had no link-local packet yet has no counters in the kernel.
        for (ifindex, _) in self.kernel.uplinks() {
            if !interfaces.iter().any(|(counted, _)| *counted == ifindex) {
                interfaces.push((ifindex, InterfaceCounters::default()));
            }
        }
        // Entries evicted from the kernel's table belong to interfaces removed long ago.
        self.counters
            .retain(|ifindex, _| interfaces.iter().any(|(counted, _)| counted == ifindex));
        for (ifindex, now) in interfaces {
            let attached = self.kernel.uplink(ifindex);
            let (before, name) = match (self.counters.remove(&ifindex), &attached) {
                // Packets in the last second of a removed interface are still reported.
                (Some((before, name)), None) if before == now => {
                    self.counters.insert(ifindex, (now, name));
                    continue;
                }
                (Some((before, name)), _) => (before, name),
                (None, Some(name)) => (InterfaceCounters::default(), Arc::clone(name)),
                (None, None) => (InterfaceCounters::default(), Arc::from(format!("if{ifindex}"))),
            };
            self.counters.insert(ifindex, (now, Arc::clone(&name)));
            let egress = std::array::from_fn(|class| now.egress[class].saturating_sub(before.egress[class]));
            let ingress = std::array::from_fn(|class| now.ingress[class].saturating_sub(before.ingress[class]));
            let allowance_exceeded = self.allowance.growth(ifindex);
            out.push(Event::Interface(InterfaceSample {
                time,
                name,
                interval_ns,
                egress,
                ingress,
                allowance_exceeded,
                resolver: self.resolver.clone(),
            }));
        }
        self.allowance.ask(self.kernel.uplinks().collect());
        let LossCounters {
            ring_buffer,
            map_full,
            unparsed,
            truncated,
        } = self.kernel.loss();
        let loss = LossCounts {
            ring_buffer,
            unparsed: unparsed + self.undecoded,
            truncated,
            evicted: map_full,
            detached: self.detached,
            preempted: self.preempted,
            ..LossCounts::default()
        };
        if loss != self.reported_loss {
            self.reported_loss = loss;
            out.push(Event::Loss(loss));
        }
    }
}

impl Source for LiveSource {
    fn start(&self) -> SourceFacts {
        let release = uname().ok().map(|name| name.release().to_string_lossy().into_owned());
        SourceFacts {
            mode: Mode::Live,
            host: None,
            time: None,
            kernel: release,
            endpoints: self.endpoints.iter().map(ToString::to_string).collect(),
            interfaces: self.interfaces(),
            attached: self.kernel.attached().to_vec(),
            missing: self.kernel.missing().to_vec(),
            filters: self
                .cgroup
                .iter()
                .map(|cgroup| format!("cgroup={}", cgroup.display()))
                .collect(),
            confinement: self.confinement.clone(),
        }
    }

    fn next_batch(&mut self, wait: Duration, out: &mut Vec<Event>) -> anyhow::Result<SourceState> {
        let came = self.read(wait, out)?;
        Ok(if came { SourceState::More } else { SourceState::Idle })
    }

    fn held_since(&self) -> Option<Time> {
        self.decoder.held_since()
    }

    fn last_batch(&mut self, out: &mut Vec<Event>) {
        out.append(&mut self.early);
        self.drain_all(out);
        self.decoder.named(NAMES, out);
        self.follow_uplinks();
        self.look_at_links();
        self.look_at_clock(out);
        self.sample(out);
    }
}

/// Follows the uplinks on a thread of its own: the kernel answers under its RTNL lock, which is held for long where pods come and go by
/// the dozen. It ends once its receiver is dropped.
fn follow(mut monitor: UplinkMonitor) -> Option<Receiver<Vec<UplinkChange>>> {
    let (found, changes) = channel();
    let spawned = thread::Builder::new().name("uplinks".to_owned()).spawn(move || {
        loop {
            let mut ready = [PollFd::new(monitor.fd(), PollFlags::POLLIN)];
            // A question that failed is asked again.
            let _ = ppoll(&mut ready, Some(TimeSpec::from_duration(SAMPLE)), None);
            thread::sleep(UPLINKS);
            let changes = monitor.changes().unwrap_or_else(|error| {
                tracing::warn!("failed to update uplinks: {error}");
                Vec::new()
            });
            if found.send(changes).is_err() {
                break;
            }
        }
    });
    if let Err(error) = spawned {
        tracing::warn!("start the uplink thread: {error}; uplinks that appear later are not observed");
        return None;
    }
    Some(changes)
}
