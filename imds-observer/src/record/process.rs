//! Who: process, container, pod.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Time;
use crate::memo::Memo;
use crate::redact;

/// A process, as it was when it talked to IMDS. It may be gone by now.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, from = "Unredacted")]
#[schemars(!from)]
pub struct Process {
    /// In the host's initial PID namespace.
    pub pid: u32,
    /// The thread that sent the request.
    pub tid: Option<u32>,
    /// PID inside the innermost PID namespace, where it differs from `pid`.
    #[serde(default)]
    pub namespace_pid: Option<u32>,
    pub comm: String,
    pub exe: Option<String>,
    /// Arguments, cut after 512 bytes in all, subject to `--cmdline`: `[redacted]` and `[redacted #fingerprint]` replace what is not shown.
    pub cmdline: Option<Vec<String>>,
    pub uid: Option<u32>,
    pub start_time: Option<Time>,
    /// Nearest first.
    pub ancestors: Vec<Ancestor>,
    /// cgroup v2 path (or that of a v1 controller where v2 has none).
    pub cgroup: Option<String>,
    /// Inode of the network namespace.
    pub netns: Option<u32>,
}

/// A process as a source gives it: [`Process::new`] is the only way from here to a record.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unredacted {
    pub pid: u32,
    pub tid: Option<u32>,
    #[serde(default)]
    pub namespace_pid: Option<u32>,
    pub comm: String,
    pub exe: Option<String>,
    pub cmdline: Option<Vec<String>>,
    pub uid: Option<u32>,
    pub start_time: Option<Time>,
    pub ancestors: Vec<Ancestor>,
    pub cgroup: Option<String>,
    pub netns: Option<u32>,
}

impl Process {
    /// With its secrets replaced: in names, paths and arguments.
    pub fn new(found: Unredacted) -> Self {
        let Unredacted {
            pid,
            tid,
            namespace_pid,
            comm,
            exe,
            cmdline,
            uid,
            start_time,
            mut ancestors,
            cgroup,
            netns,
        } = found;
        for ancestor in &mut ancestors {
            ancestor.comm = text(&ancestor.comm);
        }
        Self {
            pid,
            tid,
            namespace_pid,
            comm: text(&comm),
            cmdline: cmdline.and_then(|arguments| redact::command_line(exe.as_deref(), arguments)),
            exe: exe.as_deref().map(text),
            uid,
            start_time,
            ancestors,
            cgroup: cgroup.as_deref().map(text),
            netns,
        }
    }
}

impl From<Unredacted> for Process {
    fn from(found: Unredacted) -> Self {
        Self::new(found)
    }
}

fn text(text: &str) -> String {
    redact::printable(text.as_bytes(), usize::MAX)
}

/// Parts of processes that one thread has read already. Many processes of a trace differ in their PIDs only, and redaction takes longer than
/// parsing.
pub(crate) struct ProcessMemo {
    texts: Memo<String>,
    /// By executable and arguments.
    command_lines: Memo<Option<Vec<String>>>,
    ancestors: Memo<Vec<Ancestor>>,
    key: Vec<u8>,
}

/// Entries of each table of a [`ProcessMemo`].
const MEMO_ENTRIES: usize = 1024;
/// Longest key that is kept.
const MEMO_KEY_BYTES: usize = 1024;

impl Default for ProcessMemo {
    fn default() -> Self {
        Self {
            texts: Memo::new(MEMO_ENTRIES),
            command_lines: Memo::new(MEMO_ENTRIES),
            ancestors: Memo::new(MEMO_ENTRIES),
            key: Vec::new(),
        }
    }
}

impl ProcessMemo {
    /// A name or a path, without its secrets.
    pub(crate) fn text(&mut self, found: &str) -> String {
        remembered(&mut self.texts, found.as_bytes(), || Some(text(found))).unwrap_or_default()
    }

    /// Arguments as they may be shown, from a JSON array of texts. `None`: it is no such array.
    #[expect(clippy::option_option, reason = "no array, hidden, and shown are three things")]
    pub(crate) fn command_line(&mut self, exe: Option<&str>, arguments: &[u8]) -> Option<Option<Vec<String>>> {
        self.key.clear();
        if let Some(exe) = exe {
            self.key.extend_from_slice(exe.as_bytes());
            self.key.push(b'"');
        }
        self.key.extend_from_slice(arguments);
        remembered(&mut self.command_lines, &self.key, || {
            let arguments = serde_json::from_slice(arguments).ok()?;
            Some(redact::command_line(exe, arguments))
        })
    }

    /// From a JSON array. `None`: it is no array of ancestors.
    pub(crate) fn ancestors(&mut self, found: &[u8]) -> Option<Vec<Ancestor>> {
        remembered(&mut self.ancestors, found, || {
            let mut ancestors: Vec<Ancestor> = serde_json::from_slice(found).ok()?;
            for ancestor in &mut ancestors {
                ancestor.comm = text(&ancestor.comm);
            }
            Some(ancestors)
        })
    }
}

fn remembered<V: Clone>(known: &mut Memo<V>, key: &[u8], read: impl FnOnce() -> Option<V>) -> Option<V> {
    if let Some((_, value)) = known.get(key) {
        return Some(value.clone());
    }
    let value = read()?;
    if key.len() <= MEMO_KEY_BYTES {
        known.insert(key, value.clone());
    }
    Some(value)
}

/// The arguments of a command line, each ended by a zero byte.
pub fn arguments(bytes: &[u8]) -> Vec<String> {
    bytes
        .strip_suffix(b"\0")
        .unwrap_or(bytes)
        .split(|byte| *byte == 0)
        .map(|argument| String::from_utf8_lossy(argument).into_owned())
        .collect()
}

/// A parent, grandparent and so on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ancestor {
    pub pid: u32,
    pub comm: String,
}

/// The container that a process is in.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Container {
    /// 64 hexadecimal digits (ECS: the runtime's id).
    pub id: String,
    /// `containerd`, `cri-o`, `docker`, `podman`; null if the path doesn't show it.
    pub runtime: Option<String>,
    pub name: Option<String>,
    #[serde(default)]
    pub image: Option<String>,
    pub pod: Option<Pod>,
}

/// A Kubernetes pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pod {
    pub namespace: Option<String>,
    pub name: Option<String>,
    pub uid: Option<String>,
    /// How the pod gets credentials of a role of its own; null if it has none, or if the runtime's configuration can't be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<PodIdentity>,
}

/// A role of a pod's own, as the mounts of its containers show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PodIdentity {
    /// IAM roles for service accounts.
    Irsa,
    EksPodIdentity,
}

/// Identity of the caller. Shared by all records of one process image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Caller {
    pub process: Option<Arc<Process>>,
    pub container: Option<Arc<Container>>,
}
