//! Which callers are observed, and which kinds of record are written.
//!
//! Runs behind attribution and ahead of the detectors: what is filtered out is neither judged nor counted. Interfaces are not filtered,
//! for the packet quota is shared by everyone. Values of one option are alternatives; different options must all hold.

use std::str::FromStr;

use serde::Deserialize;

use crate::record::{Container, Kind, Process};

/// A set of record kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kinds(u8);

impl Kinds {
    pub const ALL: Self = Self(u8::MAX);
    pub const NONE: Self = Self(0);

    #[must_use]
    pub fn with(self, kind: Kind) -> Self {
        Self(self.0 | 1 << kind as u8)
    }

    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub fn has(self, kind: Kind) -> bool {
        self.0 & 1 << kind as u8 != 0
    }
}

impl FromIterator<Kind> for Kinds {
    fn from_iter<I: IntoIterator<Item = Kind>>(kinds: I) -> Self {
        kinds.into_iter().fold(Self::NONE, Self::with)
    }
}

/// `NAMESPACE/NAME` of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct PodName {
    pub namespace: String,
    pub name: String,
}

impl FromStr for PodName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => Ok(Self {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            }),
            _ => Err("not of the form NAMESPACE/NAME".to_owned()),
        }
    }
}

impl TryFrom<String> for PodName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Which callers count.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Filter {
    pub pid: Vec<u32>,
    pub comm: Vec<String>,
    pub uid: Vec<u32>,
    /// Name, or the beginning of the id.
    pub container: Vec<String>,
    pub pod: Vec<PodName>,
}

impl Filter {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Each value as `option=value`.
    pub fn describe(&self) -> Vec<String> {
        let pods = self.pod.iter().map(|pod| format!("pod={}/{}", pod.namespace, pod.name));
        let pids = self.pid.iter().map(|pid| format!("pid={pid}"));
        let comms = self.comm.iter().map(|comm| format!("comm={comm}"));
        let users = self.uid.iter().map(|uid| format!("uid={uid}"));
        let containers = self.container.iter().map(|container| format!("container={container}"));
        pids.chain(comms).chain(users).chain(containers).chain(pods).collect()
    }

    pub fn allows(&self, process: Option<&Process>, container: Option<&Container>) -> bool {
        let pod = container.and_then(|container| container.pod.as_ref());
        any(&self.pid, |pid| process.is_some_and(|process| process.pid == *pid))
            && any(&self.comm, |comm| process.is_some_and(|process| process.comm == *comm))
            && any(&self.uid, |uid| {
                process.is_some_and(|process| process.uid == Some(*uid))
            })
            && any(&self.container, |wanted| {
                container.is_some_and(|container| {
                    container.name.as_ref() == Some(wanted)
                        || !wanted.is_empty() && container.id.starts_with(wanted.as_str())
                })
            })
            && any(&self.pod, |wanted| {
                pod.is_some_and(|pod| {
                    pod.namespace.as_ref() == Some(&wanted.namespace) && pod.name.as_ref() == Some(&wanted.name)
                })
            })
    }
}

fn any<T>(wanted: &[T], matches: impl FnMut(&T) -> bool) -> bool {
    wanted.is_empty() || wanted.iter().any(matches)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Pod;

    fn process(pid: u32, comm: &str) -> Process {
        Process {
            pid,
            tid: None,
            namespace_pid: None,
            comm: comm.to_owned(),
            exe: None,
            cmdline: None,
            uid: Some(1000),
            start_time: None,
            ancestors: Vec::new(),
            cgroup: None,
            netns: None,
        }
    }

    #[test]
    fn values_are_alternatives_and_options_add_up() {
        let filter = Filter {
            comm: vec!["curl".into(), "wget".into()],
            uid: vec![1000],
            ..Filter::default()
        };
        assert!(filter.allows(Some(&process(1, "wget")), None));
        assert!(!filter.allows(Some(&process(1, "python3")), None));
        let root = Process {
            uid: Some(0),
            ..process(1, "curl")
        };
        assert!(!filter.allows(Some(&root), None));
        assert!(!filter.allows(None, None));
        assert!(Filter::default().allows(None, None));
    }

    #[test]
    fn containers_match_by_name_or_id_prefix_and_pods_by_full_name() {
        let container = Container {
            id: "abcdef".into(),
            runtime: None,
            name: Some("api".into()),
            image: None,
            pod: Some(Pod {
                namespace: Some("payments".into()),
                name: Some("api-1".into()),
                uid: None,
                identity: None,
            }),
        };
        let by_container = |name: &str| Filter {
            container: vec![name.into()],
            ..Filter::default()
        };
        assert!(by_container("api").allows(None, Some(&container)));
        assert!(by_container("abc").allows(None, Some(&container)));
        assert!(!by_container("").allows(None, Some(&container)));
        assert!(!by_container("api").allows(None, None));
        let by_pod = |name: &str| Filter {
            pod: vec![name.parse().unwrap()],
            ..Filter::default()
        };
        assert!(by_pod("payments/api-1").allows(None, Some(&container)));
        assert!(!by_pod("default/api-1").allows(None, Some(&container)));
        assert!("payments".parse::<PodName>().is_err());
    }

    #[test]
    fn kinds_are_a_set() {
        let kinds: Kinds = [Kind::Finding, Kind::Loss].into_iter().collect();
        assert!(kinds.has(Kind::Finding) && kinds.has(Kind::Loss) && !kinds.has(Kind::Exchange));
        assert!(Kind::ALL.into_iter().all(|kind| Kinds::ALL.has(kind)));
    }
}
