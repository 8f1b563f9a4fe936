//! Who called: joins what the kernel noted of a process with what the flow table found.

pub mod container;

use std::num::NonZeroUsize;
use std::sync::Arc;

use imds_observer_common::ProcessKey;
use lru::LruCache;

use crate::record::{Caller, Process, Time};
use crate::source::{Event, FlowId, Sender};

/// Remembers process images by the identity that the kernel gave them, the least recently used forgotten first.
#[derive(Debug)]
pub struct Attribution {
    processes: LruCache<ProcessKey, Known>,
    evicted: u64,
    unknown_containers: u64,
}

#[derive(Debug)]
struct Known {
    caller: Caller,
    /// The same for the thread that called last, so that a loop in one thread shares one process.
    thread: Option<Arc<Process>>,
}

impl Attribution {
    pub fn new(limit: usize) -> Self {
        Self {
            processes: LruCache::new(NonZeroUsize::new(limit).unwrap_or(NonZeroUsize::MIN)),
            evicted: 0,
            unknown_containers: 0,
        }
    }

    /// Learns from an event; most say nothing about processes.
    pub fn note(&mut self, event: &Event) {
        if let Event::Caller { key, caller } = event {
            self.know(*key, caller.clone());
            return;
        }
        let Event::Process { key, process, .. } = event else {
            return;
        };
        let container = match process.cgroup.as_deref().map(container::from_cgroup) {
            Some(container::Found::Container(container)) => Some(Arc::new(container)),
            Some(container::Found::Unknown) => {
                self.unknown_containers += 1;
                None
            }
            Some(container::Found::None) | None => None,
        };
        let process = Some(process.clone());
        self.know(*key, Caller { process, container });
    }

    fn know(&mut self, key: ProcessKey, caller: Caller) {
        let known = Known { caller, thread: None };
        if let Some((gone, _)) = self.processes.push(key, known) {
            self.evicted += u64::from(gone != key);
        }
    }

    /// Whom a sender belongs to; empty if nobody knows.
    pub fn caller(&mut self, sender: Option<&Sender>, _flow: &FlowId, _now: Time) -> Caller {
        let Some(sender) = sender else {
            return Caller::default();
        };
        let Some(known) = self.processes.get_mut(&sender.key) else {
            return Caller::default();
        };
        let mut caller = known.caller.clone();
        if let Some(process) = &caller.process
            && sender.tid != 0
            && process.tid != Some(sender.tid)
        {
            let thread = match &known.thread {
                Some(thread) if thread.tid == Some(sender.tid) => thread.clone(),
                _ => Arc::new(Process {
                    tid: Some(sender.tid),
                    ..Process::clone(process)
                }),
            };
            known.thread = Some(thread.clone());
            caller.process = Some(thread);
        }
        caller
    }

    /// Process images forgotten because the table was full.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    pub fn unknown_containers(&self) -> u64 {
        self.unknown_containers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(tgid: u32) -> Event {
        let process = Process {
            pid: tgid,
            tid: Some(tgid),
            namespace_pid: None,
            comm: "curl".into(),
            exe: None,
            cmdline: None,
            uid: None,
            start_time: None,
            ancestors: Vec::new(),
            cgroup: Some(format!("/kubepods/besteffort/pod1/{}", "a".repeat(64))),
            netns: None,
        };
        Event::Process {
            key: key(tgid),
            process: Arc::new(process),
            cgroup_id: 1,
        }
    }

    fn key(tgid: u32) -> ProcessKey {
        ProcessKey {
            start_time_ns: 1,
            tgid,
            exec_id: 0,
        }
    }

    fn sender(tgid: u32, tid: u32) -> Sender {
        Sender {
            key: key(tgid),
            tid,
            cgroup_id: 1,
            netns: 1,
        }
    }

    #[test]
    fn a_sender_gets_its_process_thread_and_container_and_a_stranger_nothing() {
        let mut attribution = Attribution::new(2);
        attribution.note(&noted(7));
        let flow = FlowId::Cookie(1);
        let caller = attribution.caller(Some(&sender(7, 9)), &flow, Time(0));
        assert_eq!(
            caller.process.as_ref().map(|process| (process.pid, process.tid)),
            Some((7, Some(9)))
        );
        assert_eq!(caller.container.unwrap().id, "a".repeat(64));
        let again = attribution.caller(Some(&sender(7, 9)), &flow, Time(0));
        assert!(Arc::ptr_eq(&again.process.unwrap(), &caller.process.unwrap()));
        assert_eq!(
            attribution.caller(Some(&sender(8, 8)), &flow, Time(0)),
            Caller::default()
        );
        assert_eq!(attribution.caller(None, &flow, Time(0)), Caller::default());
    }

    #[test]
    fn the_table_is_bounded_and_says_what_it_forgot() {
        let mut attribution = Attribution::new(2);
        for tgid in 1..=5 {
            attribution.note(&noted(tgid));
            attribution.note(&noted(tgid));
        }
        assert_eq!(attribution.evicted(), 3);
    }
}
