//! Processes in packet comments, as ptcpdump writes them: lines of `Key: value`.
//!
//! One comment has the process, others its thread, user, parent, container and pod; any may be absent.

use std::num::NonZeroUsize;
use std::sync::Arc;

use imds_observer_common::ProcessKey;
use lru::LruCache;
use rustc_hash::FxBuildHasher;

use crate::event::{Event, Sender};
use crate::record::{Ancestor, Caller, Container, Pod, Process, Unredacted};

/// Cache of distinct comments, so that each process is reported once.
/// As live: arguments beyond are cut.
const MAX_ARGUMENT_BYTES: usize = 512;
/// Longest value that is taken over.
const MAX_VALUE_BYTES: usize = 4096;

#[derive(Debug)]
pub(super) struct Processes {
    known: LruCache<Vec<u8>, Option<Sender>, FxBuildHasher>,
    /// Used as the exec count, so that two images of one PID are distinct.
    next: u32,
}

impl Processes {
    /// At most `limit` are remembered.
    pub(super) fn new(limit: usize) -> Self {
        let limit = NonZeroUsize::new(limit).unwrap_or(NonZeroUsize::MIN);
        Self {
            known: LruCache::with_hasher(limit, FxBuildHasher),
            next: 0,
        }
    }

    /// The process in a packet's comments, and the event that introduces a new one.
    pub(super) fn sender(&mut self, comments: &[&[u8]]) -> (Option<Sender>, Option<Event>) {
        let text = comments.join(&b'\n');
        if let Some(sender) = self.known.get(&text) {
            return (*sender, None);
        }
        let Some((tid, caller)) = read(&String::from_utf8_lossy(&text)) else {
            self.known.put(text, None);
            return (None, None);
        };
        self.next = self.next.wrapping_add(1);
        let key = ProcessKey {
            start_time_ns: 0,
            tgid: caller.process.as_ref().map_or(0, |process| process.pid),
            exec_id: self.next,
        };
        let sender = Sender {
            key,
            tid,
            cgroup_id: 0,
            netns: 0,
        };
        self.known.put(text, Some(sender));
        (Some(sender), Some(Event::Caller { key, caller }))
    }
}

/// Thread ID (0: unknown) and caller; `None` if it has no process.
fn read(text: &str) -> Option<(u32, Caller)> {
    let value = |key: &str| {
        text.lines()
            .filter_map(|line| line.split_once(": "))
            .find(|(name, value)| *name == key && value.len() <= MAX_VALUE_BYTES)
            .map(|(_, value)| value.trim())
            .filter(|value| !value.is_empty())
    };
    let number = |key: &str| value(key).and_then(|value| value.parse::<u32>().ok());
    let pid = number("PID").filter(|pid| *pid != 0)?;
    let exe = value("Cmd");
    let comm = |path: &str| {
        path.rsplit('/')
            .next()
            .unwrap_or(path)
            .chars()
            .take(15)
            .collect::<String>()
    };
    let parent = number("ParentPID").filter(|pid| *pid != 0).map(|pid| Ancestor {
        pid,
        comm: value("ParentCmd").map(comm).unwrap_or_default(),
    });
    let arguments = value("Args").map(|line| {
        let mut left = MAX_ARGUMENT_BYTES;
        line.split(' ')
            .take_while(|argument| {
                let fits = argument.len() < left;
                left = left.saturating_sub(argument.len() + 1);
                fits
            })
            .map(str::to_owned)
            .collect()
    });
    let process = Process::new(Unredacted {
        pid,
        tid: number("ThreadId"),
        namespace_pid: None,
        comm: exe.map(comm).unwrap_or_default(),
        exe: exe.map(str::to_owned),
        cmdline: arguments,
        uid: number("UserId"),
        start_time: None,
        ancestors: parent.into_iter().collect(),
        cgroup: None,
        netns: None,
    });
    let owned = |key: &str| value(key).map(str::to_owned);
    let pod = value("PodName").map(|name| Pod {
        namespace: owned("PodNamespace"),
        name: Some(name.to_owned()),
        uid: owned("PodUID"),
        identity: None,
    });
    let container = value("ContainerId").map(|id| {
        Arc::new(Container {
            id: id.to_owned(),
            runtime: None,
            name: owned("ContainerName"),
            image: owned("ContainerImage"),
            pod,
        })
    });
    let caller = Caller {
        process: Some(Arc::new(process)),
        container,
    };
    Some((number("ThreadId").unwrap_or(0), caller))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CURL: &[u8] = b"PID: 4242\nCmd: /usr/bin/curl\nArgs: curl -s http://169.254.169.254/";

    #[test]
    fn process_thread_user_parent_container_and_pod() {
        let comments = [
            CURL,
            b"ThreadId: 4243\nThreadName: curl",
            b"UserId: 1000\nGroupId: 1000",
            b"ParentPID: 4100\nParentCmd: /usr/bin/bash\nParentArgs: bash",
            b"ContainerName: api\nContainerId: abc\nContainerImage: api:1\nContainerLabels: ",
            b"PodName: api-1\nPodNamespace: payments\nPodUID: u\nPodLabels: \nPodAnnotations: ",
        ];
        let mut processes = Processes::new(4);
        let (sender, news) = processes.sender(&comments);
        assert_eq!(sender.map(|sender| (sender.key.tgid, sender.tid)), Some((4242, 4243)));
        let Some(Event::Caller { caller, .. }) = news else {
            panic!("{news:?}")
        };
        let process = caller.process.unwrap();
        assert_eq!((process.comm.as_str(), process.uid), ("curl", Some(1000)));
        assert_eq!(process.ancestors[0].comm, "bash");
        assert_eq!(process.cmdline.as_ref().unwrap()[1], "-s");
        let pod = caller.container.as_ref().unwrap().pod.clone().unwrap();
        assert_eq!(pod.namespace.as_deref(), Some("payments"));
        let (again, news) = processes.sender(&comments);
        assert!(again == sender && news.is_none(), "each process is reported once");
    }

    #[test]
    fn other_comments_report_nobody() {
        for comment in [
            &b"retransmission?"[..],
            b"PID: x",
            b"PID: 0\nCmd: x",
            b"\xff\xfe: \n\n: ",
        ] {
            let (sender, news) = Processes::new(4).sender(&[comment]);
            assert!(sender.is_none() && news.is_none());
        }
    }
}
