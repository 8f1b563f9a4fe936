//! Events from the running kernel.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use imds_observer_common::{InterfaceCounters, LossCounters};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::utsname::uname;
use nix::time::{ClockId, clock_gettime};

use crate::bpf::{Decoder, Kernel, LiveOptions};
use crate::record::{LossCounts, Mode, Time};
use crate::source::{Event, InterfaceSample, Source, SourceFacts, SourceState};

/// Events that one call hands over, so that timers get their turn in a flood.
const BATCH: usize = 8_192;
/// How often counters are read.
const SAMPLE: Duration = Duration::from_secs(1);
/// How often the wall clock is looked at again: it may be stepped under us.
const CLOCK: Duration = Duration::from_secs(10);

/// The kernel programs, their ring buffer and counters.
pub struct LiveSource {
    kernel: Kernel,
    decoder: Decoder,
    interfaces: Vec<String>,
    endpoints: Vec<IpAddr>,
    undecoded: u64,
    told_loss: LossCounts,
    sampled: Instant,
    clocked: Instant,
    counters: HashMap<u32, InterfaceCounters>,
}

impl LiveSource {
    /// Loads, attaches and starts to listen. From here on nothing is missed.
    pub fn open(options: &LiveOptions) -> anyhow::Result<Self> {
        let (mut kernel, mut decoder) = Kernel::load(options)?;
        let mut interfaces = Vec::new();
        for interface in &options.interfaces {
            // Asked for explicitly: an error.
            kernel.attach_uplink(interface)?;
            interfaces.push(interface.clone());
        }
        decoder.set_clock(boot_to_wall_ns()?);
        let now = Instant::now();
        Ok(Self {
            kernel,
            decoder,
            interfaces,
            endpoints: options.endpoints.clone(),
            undecoded: 0,
            told_loss: LossCounts::default(),
            sampled: now,
            clocked: now,
            counters: HashMap::new(),
        })
    }

    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    pub fn interfaces(&self) -> &[String] {
        &self.interfaces
    }

    /// Waits up to `wait` for events and appends what is there. `false`: nothing came.
    fn read(&mut self, wait: Duration, out: &mut Vec<Event>) -> anyhow::Result<bool> {
        let before = out.len();
        if self.drain(out) == 0 {
            let wait = wait.min(SAMPLE.saturating_sub(self.sampled.elapsed()));
            let timeout = PollTimeout::try_from(wait.as_millis().max(1)).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(self.kernel.ring_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error).context("wait for the ring buffer"),
            }
            self.drain(out);
        }
        if self.clocked.elapsed() >= CLOCK {
            self.clocked = Instant::now();
            self.decoder.set_clock(boot_to_wall_ns()?);
        }
        if self.sampled.elapsed() >= SAMPLE {
            self.sample(out);
        }
        Ok(out.len() > before)
    }

    fn drain(&mut self, out: &mut Vec<Event>) -> usize {
        let (decoder, undecoded) = (&mut self.decoder, &mut self.undecoded);
        self.kernel.drain(BATCH, |bytes| match decoder.decode(bytes) {
            Ok(event) => out.push(event),
            Err(error) => {
                *undecoded += 1;
                tracing::debug!("event from the kernel: {error}");
            }
        })
    }

    /// Reads the counters: packets by interface since the last time, and what was lost.
    fn sample(&mut self, out: &mut Vec<Event>) {
        let interval_ns = self.sampled.elapsed().as_nanos() as u64;
        self.sampled = Instant::now();
        let time = Time::now();
        for (ifindex, now) in self.kernel.interfaces() {
            let before = self.counters.insert(ifindex, now).unwrap_or_default();
            let egress = std::array::from_fn(|class| now.egress[class].saturating_sub(before.egress[class]));
            let ingress = std::array::from_fn(|class| now.ingress[class].saturating_sub(before.ingress[class]));
            let name = self
                .kernel
                .uplink(ifindex)
                .unwrap_or_else(|| Arc::from(format!("if{ifindex}")));
            out.push(Event::Interface(InterfaceSample {
                time,
                name,
                interval_ns,
                egress,
                ingress,
                allowance_exceeded: None,
            }));
        }
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
            ..LossCounts::default()
        };
        if loss != self.told_loss {
            self.told_loss = loss;
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
            interfaces: self.interfaces.clone(),
            attached: self.kernel.attached().to_vec(),
            missing: self.kernel.missing().to_vec(),
        }
    }

    fn next_batch(&mut self, wait: Duration, out: &mut Vec<Event>) -> anyhow::Result<SourceState> {
        let came = self.read(wait, out)?;
        Ok(if came { SourceState::More } else { SourceState::Idle })
    }

    fn last_batch(&mut self, out: &mut Vec<Event>) {
        self.drain(out);
        self.sample(out);
    }
}

/// Nanoseconds to add to a boot-time clock reading for the wall clock.
fn boot_to_wall_ns() -> anyhow::Result<u64> {
    let boot = clock_gettime(ClockId::CLOCK_BOOTTIME).context("read the boot-time clock")?;
    let boot = Duration::from(boot).as_nanos() as u64;
    Ok(Time::now().0.saturating_sub(boot))
}
