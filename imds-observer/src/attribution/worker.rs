//! Looks up facts that only files have, on its own thread, so that reading the ring buffer never waits.
//!
//! Both queues are bounded. A full queue of questions refuses, and the asker comes back; a full queue of answers makes the worker wait.

#[cfg(live)]
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

#[cfg(live)]
use caps::Capability;
use imds_observer_common::ProcessKey;
#[cfg(live)]
use nix::time::{ClockId, clock_gettime};
#[cfg(live)]
use nix::unistd::{SysconfVar, sysconf};

#[cfg(live)]
use super::cgroup::Hierarchies;
#[cfg(live)]
use super::host::HostRoot;
#[cfg(live)]
use super::names;
use super::names::Names;
#[cfg(live)]
use super::process::Clock;
use super::process::Described;
#[cfg(live)]
use super::{process, sockets};
use crate::event::CgroupPath;
use crate::record::Container;
#[cfg(live)]
use crate::record::Time;
#[cfg(live)]
use crate::sandbox;

/// A lookup that the worker thread performs.
#[derive(Clone, Debug)]
pub enum Question {
    Process(ProcessKey),
    Container(Arc<Container>),
    /// The path of a cgroup v2 id.
    Cgroup(u64),
    /// The name of an interface.
    Interface(u32),
    /// All sockets towards the endpoints.
    Sockets,
}

/// The result of a lookup.
#[derive(Clone, Debug)]
pub enum Answer {
    Process(ProcessKey, Option<Box<Described>>),
    Container(Arc<Container>, Box<Names>),
    Cgroup(u64, Option<CgroupPath>),
    Interface(u32, Option<String>),
    /// Cookie, and the process that holds the socket, with its start time.
    Sockets(Vec<(u64, ProcessKey, Described)>),
}

/// Something that answers questions and takes its time.
pub trait Lookup: Send + 'static {
    fn answer(&mut self, question: Question) -> Answer;
}

/// The thread, as the asker sees it. It ends when this is dropped, after the question it is at.
#[derive(Debug)]
pub struct Worker {
    questions: SyncSender<Question>,
    answers: Receiver<Answer>,
}

impl Worker {
    /// At most `limit` questions wait, of which one costs 0.1 to 10 ms, and as many answers. `None`: no thread could be had; everything goes
    /// on with what the kernel side reports.
    pub fn start(mut lookup: impl Lookup, limit: usize) -> Option<Self> {
        let (questions, asked) = sync_channel(limit);
        let (given, answers) = sync_channel(limit);
        let spawned = thread::Builder::new().name("attribution".to_owned()).spawn(move || {
            for question in asked {
                if given.send(lookup.answer(question)).is_err() {
                    break;
                }
            }
        });
        if let Err(error) = spawned {
            tracing::warn!("start the attribution thread: {error}; container names are unavailable");
            return None;
        }
        Some(Self { questions, answers })
    }

    /// `false`: the queue is full, ask again.
    pub fn ask(&self, question: Question) -> bool {
        match self.questions.try_send(question) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }

    /// An answer that is there already.
    pub fn answer(&self) -> Option<Answer> {
        self.answers.try_recv().ok()
    }

    /// The next answer, within `patience`. Only for the end of a run, when there is nothing else to do.
    pub fn wait(&self, patience: Duration) -> Option<Answer> {
        self.answers.recv_timeout(patience).ok()
    }
}

/// Looks at the files of a host.
#[cfg(live)]
#[derive(Debug)]
pub struct HostLookup {
    host: HostRoot,
    endpoints: Vec<IpAddr>,
    ticks_per_s: u64,
    cgroups: Hierarchies,
    /// Capabilities dropped after the search for sockets older than the observer.
    reduces: bool,
}

#[cfg(live)]
impl HostLookup {
    pub fn new(host_root: &std::path::Path, endpoints: Vec<IpAddr>) -> Self {
        let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten();
        let host = HostRoot::new(host_root);
        Self {
            cgroups: Hierarchies::of(&host),
            host,
            endpoints,
            reduces: false,
            ticks_per_s: ticks.and_then(|ticks| u64::try_from(ticks).ok()).unwrap_or(100),
        }
    }

    /// Drops capabilities that its thread needs only for the first search for sockets, which enters other network namespaces.
    #[must_use]
    pub fn giving_up_rights(mut self) -> Self {
        self.reduces = true;
        self
    }

    /// Capabilities that the thread keeps: to read other users' processes, and their containers' state if it isn't root.
    pub fn capabilities() -> Vec<Capability> {
        let mut keep = vec![Capability::CAP_SYS_PTRACE];
        if !nix::unistd::geteuid().is_root() {
            keep.push(Capability::CAP_DAC_READ_SEARCH);
        }
        keep
    }

    fn clock(&self) -> Clock {
        let boot = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
        Clock {
            ticks_per_s: self.ticks_per_s,
            boot_to_wall_ns: Time::now().0.saturating_sub(boot.as_nanos() as u64),
        }
    }
}

#[cfg(live)]
impl Lookup for HostLookup {
    fn answer(&mut self, question: Question) -> Answer {
        match question {
            Question::Process(key) => {
                let found = process::read(&self.host, &self.cgroups, key, self.clock());
                Answer::Process(key, found.map(Box::new))
            }
            Question::Container(container) => {
                let names = names::find(&self.host, &container);
                Answer::Container(container, Box::new(names))
            }
            Question::Cgroup(id) => Answer::Cgroup(id, self.cgroups.with_id(id)),
            // The kernel side sees interfaces of the namespace that the observer runs in.
            Question::Interface(index) => Answer::Interface(
                index,
                nix::net::if_::if_indextoname(index)
                    .ok()
                    .map(|name| name.to_string_lossy().into_owned()),
            ),
            Question::Sockets => {
                let clock = self.clock();
                let held = sockets::find(&self.host, &self.endpoints);
                let answer = Answer::Sockets(
                    held.into_iter()
                        .filter_map(|held| {
                            let found = process::read_now(&self.host, &self.cgroups, held.pid, clock)?;
                            let key = ProcessKey {
                                start_time_ns: found.start_time_ns,
                                tgid: held.pid,
                                exec_id: 0,
                            };
                            Some((held.cookie, key, found))
                        })
                        .collect(),
                );
                if std::mem::take(&mut self.reduces) {
                    sandbox::keep_only(&Self::capabilities());
                }
                answer
            }
        }
    }
}
