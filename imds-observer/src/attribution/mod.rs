//! Who called: joins what the kernel noted of a process with what the flow table found.
//!
//! Mostly this is one table lookup: the kernel side describes each process image before it mentions it. What only files show (what a
//! container is called, a process whose description was lost, a socket that is older than the observer) a [`Worker`] finds out meanwhile.
//! A fact waits for it a fifth of a second at most, and all facts keep their order. A fact that stays unknown is recorded as unknown.

mod asking;
#[cfg(live)]
pub mod cgroup;
#[cfg(not(live))]
#[path = "no_cgroup.rs"]
pub mod cgroup;
pub mod container;
mod fuzz;
#[cfg(live)]
pub mod host;
#[cfg(not(live))]
#[path = "no_host.rs"]
pub mod host;
pub mod names;
pub mod process;
#[cfg(live)]
pub mod sockets;
pub mod worker;

#[doc(hidden)]
pub use fuzz::fuzz_host_files;

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use imds_observer_common::ProcessKey;
use lru::LruCache;
use serde::{Deserialize, Serialize};

use self::asking::{Asking, still_within};
use self::container::Found;
use self::names::Names;
use self::process::Described;
use self::worker::{Answer, Question, Worker};
use crate::event::{CgroupPath, Event, FlowId, Sender};
use crate::exchange::Fact;
use crate::record::{Caller, Container, Process, Time};

/// Bounds and patience.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Process images that are remembered, about 1 KiB each, and as much again for each cgroup that one was moved out of (at most 4).
    pub processes: usize,
    /// Containers that are remembered, about 0.5 KiB each.
    pub containers: usize,
    /// Facts that may wait for a name, about 1 KiB each: 0.2 s of 5,000 exchanges a second are 1,000. Beyond that the oldest
    /// goes out with what is known.
    pub pending: usize,
    /// Capacity of each lookup cache (cgroups, sockets, interfaces, unknown processes); a miss only costs another lookup.
    pub lookups: usize,
    /// Questions that wait for the thread that answers them, and answers that wait to be taken. A full queue refuses, and the asker comes
    /// back.
    pub questions: usize,
    /// Longest wait of one fact.
    #[serde(skip)]
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            processes: 4_096,
            containers: 2_048,
            pending: 8_192,
            lookups: 4_096,
            questions: 256,
            patience: Duration::from_millis(200),
        }
    }
}

/// Threads that are remembered, about 1 KiB each; of one more a process is copied again.
const THREADS: usize = 256;

/// Earlier cgroups kept per process image: the answer to a lookup from before a move arrives after it.
const EARLIER: usize = 4;

/// An image that was silent for longer isn't missed when the table needs its place: a loop of `curl` fills any table.
const QUIET_NS: u64 = 30_000_000_000;

/// Attribution state of one fact.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Resolved {
    caller: Caller,
    /// Path of the socket's cgroup, if the process is unknown.
    cgroup: Option<Arc<str>>,
    /// Inode of the network namespace, if the process is unknown.
    netns: Option<u32>,
    /// Interface of a flow that belongs to no socket of this host.
    interface: Option<Arc<str>>,
    /// More may be known in a moment.
    pending: bool,
}

/// Remembers who is who, and holds facts back while a name is looked up.
#[derive(Debug)]
pub struct Attribution {
    limits: Limits,
    worker: Option<Worker>,
    now: Time,
    processes: LruCache<ProcessKey, Known>,
    threads: LruCache<(ProcessKey, u32), Thread>,
    /// Keys that came without a description.
    undescribed: LruCache<ProcessKey, Lookup<()>>,
    containers: LruCache<String, Named>,
    /// By cgroup v2 id.
    cgroups: LruCache<u64, Lookup<Option<CgroupName>>>,
    /// Sockets that are older than the observer, by cookie.
    sockets: LruCache<u64, ProcessKey>,
    search: Lookup<()>,
    /// Cookies that no search found, and when they were first asked for.
    unheld: LruCache<u64, Time>,
    interfaces: LruCache<u32, Lookup<Option<Arc<str>>>>,
    pending: VecDeque<(Fact, Time)>,
    evicted: u64,
    unknown_containers: u64,
}

#[derive(Debug)]
struct Known {
    process: Option<Arc<Process>>,
    /// Its container, if it was found for another process.
    reported: Option<Arc<Container>>,
    found: Option<Found>,
    /// The kernel side could not read everything: the worker is asked for the rest, once.
    gaps: Option<Asking>,
    used: Time,
    /// cgroup v2 id in which it was described; 0: not known.
    cgroup_id: u64,
    /// See [`CgroupPath::delegated`].
    delegated: usize,
    /// The same image in the cgroups that it was moved out of, newest last.
    earlier: Vec<Earlier>,
}

#[derive(Debug)]
struct Earlier {
    cgroup_id: u64,
    process: Arc<Process>,
    found: Option<Found>,
}

impl Known {
    fn new(process: Option<Arc<Process>>, now: Time) -> Self {
        Self {
            process,
            reported: None,
            found: None,
            gaps: None,
            used: now,
            cgroup_id: 0,
            delegated: 0,
            earlier: Vec::new(),
        }
    }

    /// Keeps what was known of the image before, in another cgroup.
    fn follows(&mut self, before: Self) {
        self.earlier = before.earlier;
        self.earlier
            .retain(|known| known.cgroup_id != self.cgroup_id && known.cgroup_id != before.cgroup_id);
        if before.cgroup_id != self.cgroup_id
            && before.cgroup_id != 0
            && let Some(process) = before.process
        {
            if self.earlier.len() >= EARLIER {
                self.earlier.remove(0);
            }
            self.earlier.push(Earlier {
                cgroup_id: before.cgroup_id,
                process,
                found: before.found,
            });
        }
    }

    /// The image as it was in this cgroup, else as it is now.
    fn within(&self, cgroup_id: u64) -> (Option<&Arc<Process>>, Option<&Found>) {
        let earlier = self.earlier.iter().find(|known| known.cgroup_id == cgroup_id);
        match earlier.filter(|_| cgroup_id != 0 && cgroup_id != self.cgroup_id) {
            Some(known) => (Some(&known.process), known.found.as_ref()),
            None => (self.process.as_ref(), self.found.as_ref()),
        }
    }
}

/// A process as it was described, and as the one of its threads that calls: what is derived from a caller is remembered by its identity, so
/// one that calls from several threads must not be another one each time.
#[derive(Debug)]
struct Thread {
    of: Arc<Process>,
    process: Arc<Process>,
}

impl Thread {
    fn new(of: &Arc<Process>, tid: u32) -> Self {
        let process = Process {
            tid: Some(tid),
            ..Process::clone(of)
        };
        Self {
            of: of.clone(),
            process: Arc::new(process),
        }
    }
}

#[derive(Debug)]
struct Named {
    container: Arc<Container>,
    /// `None`: nothing is open.
    open: Option<Asking>,
    counted: bool,
    used: Time,
}

/// A cgroup, and the container that its path names.
type CgroupName = (Arc<str>, Option<Found>);

/// A question and, once it is there, the answer.
#[derive(Debug)]
struct Lookup<T> {
    answer: Option<T>,
    asking: Asking,
}

impl<T> Default for Lookup<T> {
    fn default() -> Self {
        Self {
            answer: None,
            asking: Asking::default(),
        }
    }
}

fn at_least_one(limit: usize) -> NonZeroUsize {
    NonZeroUsize::new(limit).unwrap_or(NonZeroUsize::MIN)
}

impl Attribution {
    /// `worker`: `None` for traces, where nothing can be looked up and nothing waits.
    pub fn new(limits: Limits, worker: Option<Worker>) -> Self {
        let lookups = at_least_one(limits.lookups);
        let mut attribution = Self {
            limits,
            now: Time::default(),
            processes: LruCache::new(at_least_one(limits.processes)),
            threads: LruCache::new(at_least_one(THREADS)),
            undescribed: LruCache::new(lookups),
            containers: LruCache::new(at_least_one(limits.containers)),
            cgroups: LruCache::new(lookups),
            sockets: LruCache::new(lookups),
            search: Lookup::default(),
            unheld: LruCache::new(lookups),
            interfaces: LruCache::new(lookups),
            pending: VecDeque::new(),
            evicted: 0,
            unknown_containers: 0,
            worker,
        };
        // Before anything else: sockets that are there already, while their owners are.
        ask(attribution.worker.as_ref(), &mut attribution.search.asking, || {
            Question::Sockets
        });
        attribution
    }

    /// Updates the tables from an event; most events have no process facts.
    pub fn note(&mut self, event: &Event) {
        match event {
            Event::Process {
                key,
                process,
                cgroup_id,
                delegated,
                v1,
            } => {
                let (process, delegated) = settled(process, *delegated, v1.as_ref());
                self.learn(*key, process, *cgroup_id, delegated);
            }
            // From a trace, where everything was found out already.
            Event::Caller { key, caller } => self.know(
                *key,
                Known {
                    reported: caller.container.clone(),
                    ..Known::new(caller.process.clone(), self.now)
                },
            ),
            _ => {}
        }
    }

    fn learn(&mut self, key: ProcessKey, process: Arc<Process>, cgroup_id: u64, delegated: usize) {
        let found = container_of(&process, delegated);
        // The question is on its way before the first fact needs the answer.
        if let Some(found) = &found {
            self.named(found);
        }
        let mut gaps = process::is_incomplete(&process).then(Asking::default);
        if let Some(asking) = &mut gaps
            && !ask(self.worker.as_ref(), asking, || Question::Process(key))
        {
            gaps = None;
        }
        let known = Known {
            found,
            gaps,
            cgroup_id,
            delegated,
            ..Known::new(Some(process), self.now)
        };
        self.know(key, known);
    }

    fn know(&mut self, key: ProcessKey, known: Known) {
        match self.processes.push(key, known) {
            Some((gone, last)) if gone != key => {
                self.evicted += u64::from(self.now.since(last.used) < QUIET_NS);
            }
            Some((_, before)) => {
                if let Some(known) = self.processes.peek_mut(&key) {
                    known.follows(before);
                }
            }
            None => {}
        }
    }

    /// Takes a fact; it comes out of [`Self::next_resolved`], now or soon, in order.
    pub fn submit(&mut self, fact: Fact, now: Time) {
        self.now = now;
        if self.worker.is_some() {
            // Asks what has to be asked, so that many wait at once and not one after the other.
            self.take_answers();
            self.resolve(&Whose::of(&fact), now);
        }
        self.pending.push_back((fact, now));
    }

    /// The next fact whose caller is known, or will not be.
    pub fn next_resolved(&mut self, now: Time) -> Option<(Fact, Caller)> {
        self.now = now;
        if self.pending.is_empty() {
            return None;
        }
        self.take_answers();
        self.pop(now, false)
    }

    /// At the end of a run: waits for what is being looked up, no longer than facts wait otherwise.
    pub fn finish(&mut self, now: Time, mut out: impl FnMut(Fact, Caller)) {
        let end = Instant::now() + self.limits.patience;
        loop {
            while let Some((fact, caller)) = self.pop(now, false) {
                out(fact, caller);
            }
            let left = end.saturating_duration_since(Instant::now());
            let answer = match &self.worker {
                Some(worker) if !self.pending.is_empty() && !left.is_zero() => worker.wait(left),
                _ => None,
            };
            match answer {
                Some(answer) => self.take(answer),
                None => break,
            }
        }
        while let Some((fact, caller)) = self.pop(now, true) {
            out(fact, caller);
        }
    }

    fn pop(&mut self, now: Time, at_once: bool) -> Option<(Fact, Caller)> {
        let (fact, submitted) = self.pending.front()?;
        let in_time = still_within(*submitted, now, self.limits.patience) && self.pending.len() <= self.limits.pending;
        let whose = Whose::of(fact);
        let resolved = self.resolve(&whose, now);
        if resolved.pending && in_time && !at_once {
            return None;
        }
        let (mut fact, _) = self.pending.pop_front()?;
        if let Some(container) = &resolved.caller.container {
            self.count_unknown(&container.id.clone());
        }
        if let Some((.., connection)) = fact.body.traffic_mut() {
            connection.cgroup = resolved.cgroup.as_deref().map(str::to_owned);
            connection.netns = resolved.netns;
            if let Some(interface) = resolved.interface {
                connection.interface = Some(interface.as_ref().to_owned());
            }
        }
        Some((fact, resolved.caller))
    }

    /// Whom a sender belongs to, as far as known by now.
    fn resolve(&mut self, &Whose { sender, flow, ifindex }: &Whose, now: Time) -> Resolved {
        let mut resolved = Resolved::default();
        let cgroup_id = sender.map_or(0, |sender| sender.cgroup_id);
        let (key, tid) = match sender {
            Some(sender) if sender.key.tgid != 0 => (Some(sender.key), sender.tid),
            _ => (self.holder(&flow, now, &mut resolved.pending), 0),
        };
        if let Some(key) = key {
            self.process(key, tid, cgroup_id, now, &mut resolved);
        }
        if resolved.caller.process.is_none() {
            resolved.netns = sender.map(|sender| sender.netns).filter(|netns| *netns != 0);
            if cgroup_id != 0 {
                self.resolve_cgroup(cgroup_id, now, &mut resolved);
            }
            if matches!(flow, FlowId::Addresses { .. }) && ifindex != 0 && self.worker.is_some() {
                resolved.interface = self.interface(ifindex, now, &mut resolved.pending);
            }
        }
        resolved
    }

    fn process(&mut self, key: ProcessKey, tid: u32, cgroup_id: u64, now: Time, resolved: &mut Resolved) {
        let patience = self.limits.patience;
        let Some(known) = self.processes.get_mut(&key) else {
            // Lost on the way here, or forgotten: perhaps it still lives.
            let lookup = self.undescribed.get_or_insert_mut(key, Lookup::default);
            if lookup.answer.is_none() {
                ask_when_due(self.worker.as_ref(), &mut lookup.asking, now, || Question::Process(key));
                resolved.pending |= self.worker.is_some() && lookup.asking.is_worth_waiting(now, patience);
            }
            return;
        };
        known.used = now;
        if let Some(gaps) = &mut known.gaps {
            resolved.pending |= gaps.is_worth_waiting(now, patience);
        }
        let (process, found) = known.within(cgroup_id);
        let found = found.cloned();
        resolved.caller.process = process.map(|process| {
            if tid == 0 || process.tid == Some(tid) {
                return process.clone();
            }
            let thread = self.threads.get_or_insert_mut((key, tid), || Thread::new(process, tid));
            if !Arc::ptr_eq(&thread.of, process) {
                *thread = Thread::new(process, tid);
            }
            thread.process.clone()
        });
        resolved.caller.container.clone_from(&known.reported);
        if let Some(found) = found {
            resolved.caller.container = Some(self.named_for(&found, now, &mut resolved.pending));
        }
    }

    /// The cgroup of a socket whose process is unknown.
    fn resolve_cgroup(&mut self, id: u64, now: Time, resolved: &mut Resolved) {
        let lookup = self.cgroups.get_or_insert_mut(id, Lookup::default);
        let Some(answer) = &lookup.answer else {
            ask_when_due(self.worker.as_ref(), &mut lookup.asking, now, || Question::Cgroup(id));
            resolved.pending |= self.worker.is_some() && lookup.asking.is_worth_waiting(now, self.limits.patience);
            return;
        };
        let Some((path, found)) = answer.clone() else { return };
        resolved.cgroup = Some(path);
        if let Some(found) = found {
            resolved.caller.container = Some(self.named_for(&found, now, &mut resolved.pending));
        }
    }

    /// Who holds a socket that the kernel side has no sender for.
    fn holder(&mut self, flow: &FlowId, now: Time, pending: &mut bool) -> Option<ProcessKey> {
        let FlowId::Cookie(cookie) = flow else { return None };
        if let Some(key) = self.sockets.get(cookie) {
            return Some(*key);
        }
        let worker = self.worker.as_ref()?;
        let first = self.unheld.get_or_insert(*cookie, || now);
        // A search looks at every descriptor of the host: the same question to all who wait, and rarely.
        if still_within(*first, now, self.limits.patience) {
            ask_when_due(Some(worker), &mut self.search.asking, now, || Question::Sockets);
            *pending = true;
        }
        None
    }

    fn interface(&mut self, index: u32, now: Time, pending: &mut bool) -> Option<Arc<str>> {
        let lookup = self.interfaces.get_or_insert_mut(index, Lookup::default);
        // Again and again, though rarely: an interface may be renamed.
        ask_when_due(self.worker.as_ref(), &mut lookup.asking, now, || {
            Question::Interface(index)
        });
        if lookup.answer.is_none() {
            *pending |= self.worker.is_some() && lookup.asking.is_worth_waiting(now, self.limits.patience);
        }
        lookup.answer.clone().flatten()
    }

    fn named_for(&mut self, found: &Found, now: Time, pending: &mut bool) -> Arc<Container> {
        let patience = self.limits.patience;
        let named = self.named(found);
        named.used = now;
        if let Some(asking) = &mut named.open {
            *pending |= asking.is_worth_waiting(now, patience);
        }
        named.container.clone()
    }

    /// The container with what is known of it; asks for the rest when it is time.
    fn named(&mut self, found: &Found) -> &mut Named {
        let (worker, now) = (self.worker.as_ref(), self.now);
        let id = &found.container.id;
        // A path that names a pod is more specific than one of the same container that names none.
        let pod = |container: &Container| container.pod.as_ref().and_then(|pod| pod.uid.clone());
        let uid = found.container.pod.as_ref().and_then(|pod| pod.uid.as_ref());
        if uid.is_some()
            && self
                .containers
                .peek(id)
                .is_some_and(|known| pod(&known.container).as_ref() != uid)
        {
            self.containers.pop(id);
        }
        if self.containers.peek(id).is_none()
            && self.containers.len() == self.containers.cap().get()
            && let Some((_, last)) = self.containers.pop_lru()
        {
            self.evicted += u64::from(now.since(last.used) < QUIET_NS);
        }
        let named = self.containers.get_or_insert_mut(id.clone(), || Named {
            container: Arc::new(found.container.clone()),
            open: worker.map(|_| Asking::default()),
            // Without a worker, names are never looked for and not missed; the layout is.
            counted: worker.is_none() && found.recognised,
            used: now,
        });
        if let Some(asking) = &mut named.open {
            let container = &named.container;
            ask_when_due(worker, asking, now, || Question::Container(container.clone()));
        }
        named
    }

    /// A record goes out with a container whose names are still open.
    fn count_unknown(&mut self, id: &str) {
        if let Some(named) = self.containers.peek_mut(id)
            && !named.counted
            && (named.open.is_some() || self.worker.is_none())
        {
            named.counted = true;
            self.unknown_containers += 1;
        }
    }

    fn take_answers(&mut self) {
        while let Some(answer) = self.worker.as_ref().and_then(Worker::answer) {
            self.take(answer);
        }
    }

    fn take(&mut self, answer: Answer) {
        match answer {
            Answer::Process(key, process) => self.take_process(key, process),
            Answer::Container(container, names) => self.take_names(&container, *names),
            Answer::Cgroup(id, cgroup) => {
                let lookup = self.cgroups.get_or_insert_mut(id, Lookup::default);
                lookup.answer = Some(cgroup.map(|cgroup| {
                    let found = container::of(&cgroup);
                    (Arc::from(cgroup.path), found)
                }));
            }
            Answer::Interface(index, name) => {
                let now = self.now;
                let lookup = self.interfaces.get_or_insert_mut(index, Lookup::default);
                lookup.asking.found_nothing(now);
                // The last name of an interface that is gone is kept for late events.
                if name.is_some() || lookup.answer.is_none() {
                    lookup.answer = Some(name.map(Arc::from));
                }
            }
            Answer::Sockets(held) => {
                for (cookie, key, found) in held {
                    self.unheld.pop(&cookie);
                    self.sockets.put(cookie, key);
                    if self.processes.peek(&key).is_none() {
                        self.learn(key, Arc::new(found.process), 0, found.delegated);
                    }
                }
                let now = self.now;
                self.search.asking.found_nothing(now);
            }
        }
    }

    fn take_process(&mut self, key: ProcessKey, described: Option<Box<Described>>) {
        if let Some(known) = self.processes.peek_mut(&key) {
            known.gaps = None;
            let completed = described.and_then(|found| {
                let completed = process::complete(known.process.as_deref()?, &found.process)?;
                Some((completed, found))
            });
            if let Some((completed, found)) = completed {
                if known
                    .process
                    .as_ref()
                    .is_none_or(|known| known.cgroup != completed.cgroup)
                {
                    known.delegated = found.delegated;
                }
                known.found = container_of(&completed, known.delegated);
                known.process = Some(Arc::new(completed));
            }
            return;
        }
        // Negative result; do not retry.
        self.undescribed.get_or_insert_mut(key, Lookup::default).answer = Some(());
        if let Some(found) = described {
            self.learn(key, Arc::new(found.process), 0, found.delegated);
        }
    }

    fn take_names(&mut self, container: &Arc<Container>, names: Names) {
        let now = self.now;
        let Some(named) = self.containers.peek_mut(&container.id) else {
            return;
        };
        if names.complete() {
            named.open = None;
        } else if let Some(asking) = &mut named.open {
            asking.found_nothing(now);
        }
        let better = names.apply(&named.container);
        if better != *named.container {
            named.container = Arc::new(better);
        }
    }

    /// Process images and containers forgotten while they were in use, because a table was full.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Containers whose names were not there when their first record went out, or whose cgroup path has an unknown form.
    pub fn unknown_containers(&self) -> u64 {
        self.unknown_containers
    }
}

/// The container that a process's cgroup names.
fn container_of(process: &Process, delegated: usize) -> Option<Found> {
    container::of(&CgroupPath {
        path: process.cgroup.clone()?,
        delegated,
    })
}

/// The process with the more specific path of v2 and v1: on hybrid hosts v2 may show the runtime's own service, or its root.
fn settled(process: &Arc<Process>, delegated: usize, v1: Option<&CgroupPath>) -> (Arc<Process>, usize) {
    let Some(v1) = v1.filter(|_| container_of(process, delegated).is_none()) else {
        return (process.clone(), delegated);
    };
    let unknown = process.cgroup.as_deref().is_none_or(|path| path == "/");
    if !unknown && container::of(v1).is_none() {
        return (process.clone(), delegated);
    }
    let mut process = Process::clone(process);
    process.cgroup = Some(v1.path.clone());
    (Arc::new(process), v1.delegated)
}

/// The fields of a fact that identify its caller.
#[derive(Clone, Copy, Debug)]
struct Whose {
    sender: Option<Sender>,
    flow: FlowId,
    ifindex: u32,
}

impl Whose {
    fn of(fact: &Fact) -> Self {
        Self {
            sender: fact.sender,
            flow: fact.flow,
            ifindex: fact.ifindex,
        }
    }
}

/// `false`: there is no worker, or its queue is full.
fn ask(worker: Option<&Worker>, asking: &mut Asking, question: impl FnOnce() -> Question) -> bool {
    let accepted = worker.is_some_and(|worker| worker.ask(question()));
    asking.asked(accepted);
    accepted
}

fn ask_when_due(worker: Option<&Worker>, asking: &mut Asking, now: Time, question: impl FnOnce() -> Question) {
    if worker.is_some() && asking.is_due(now) {
        ask(worker, asking, question);
    }
}

#[cfg(all(test, live))]
mod tests;
