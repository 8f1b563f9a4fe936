//! Which container a cgroup path names.
//!
//! Read from the leaf up: the innermost container is the caller's, whatever it makes inside (`init.scope`, `container`), and
//! whatever it is in itself (a node in a container, `docker` in a pod). Names aren't in the path, see [`super::names`].

use crate::event::CgroupPath;
use crate::record::{Container, Pod};

/// Longest id that is taken from a path which isn't one of ours.
const MAX_ID: usize = 128;

/// A container, from its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub container: Container,
    /// Whether the path has a form that is known. If not, the id is a guess and the rest is null.
    pub recognised: bool,
}

/// The container of a process in this cgroup: the innermost one whose directory was made by root.
///
/// Any user can give a directory in a delegated subtree a pod's name (`systemd-run --user`, `Delegate=yes`, a user namespace in a
/// container), so such names identify nothing.
pub fn of(cgroup: &CgroupPath) -> Option<Found> {
    if cgroup.delegated == 0 {
        return from_cgroup(&cgroup.path);
    }
    let mut rest = cgroup.path.as_str();
    for _ in 0..cgroup.delegated {
        rest = rest.trim_end_matches('/').rsplit_once('/')?.0;
    }
    from_cgroup(rest)
}

/// Reads the id, the runtime and the pod's uid from a cgroup path. `None`: no container.
pub fn from_cgroup(path: &str) -> Option<Found> {
    let components: Vec<&str> = path
        .split('/')
        // Relative to the reader's own cgroup namespace, which hides the path above.
        .filter(|component| !component.is_empty() && *component != "..")
        .collect();
    let (at, id, mut runtime) = components
        .iter()
        .enumerate()
        .rev()
        .find_map(|(at, component)| named(component).map(|(id, runtime)| (at, id, runtime)))
        .or_else(|| named_by_position(&components))?;
    let above = &components[..at];
    let pod = components[..=at].iter().rev().find_map(|component| pod_uid(component));
    let manager = above.iter().rev().find_map(|component| manager(component));
    if runtime.is_none() {
        runtime = manager.as_ref().and_then(|manager| manager.runtime);
    }
    // A bare id under a pod or a manager's directory, or one behind a runtime's own prefix.
    let recognised = is_id(&id) && (runtime.is_some() || is_id(components[at]) && (pod.is_some() || manager.is_some()));
    Some(Found {
        container: Container {
            id,
            runtime: runtime.map(str::to_owned),
            name: None,
            image: None,
            pod: pod.map(|uid| Pod {
                namespace: None,
                name: None,
                uid: Some(uid),
                identity: None,
            }),
        },
        recognised,
    })
}

/// The container that a component names by itself.
fn named(component: &str) -> Option<(String, Option<&'static str>)> {
    let stem = component.strip_suffix(".scope").unwrap_or(component);
    // A path for systemd's driver in the hands of the other one: `kubepods-besteffort-podUID.slice:cri-containerd:ID`.
    let mut parts = stem.rsplit(':');
    let last = parts.next()?;
    if is_id(last) {
        return Some((last.to_owned(), parts.next().and_then(runtime)));
    }
    let (prefix, id) = last.rsplit_once('-')?;
    if !is_hex(id, 64) {
        return None;
    }
    // `crio-conmon-ID` and `libpod-conmon-ID` are the monitors outside.
    (!prefix.ends_with("conmon")).then(|| (id.to_owned(), runtime(prefix)))
}

/// A container whose name is no id, known by where it is: `ctr run` takes any name, and whatever a pod holds is one.
fn named_by_position<'a>(components: &[&'a str]) -> Option<(usize, String, Option<&'static str>)> {
    let at = components.iter().rposition(|component| is_pod(component))? + 1;
    let name: &'a str = components.get(at)?;
    // Overhead of a sandbox: the VM monitor's own threads.
    let plain = !name.starts_with("kata_overhead") && !name.contains("conmon");
    let id: String = name.chars().take(MAX_ID).collect();
    plain.then_some((at, id, None))
}

fn runtime(prefix: &str) -> Option<&'static str> {
    Some(match prefix {
        "cri-containerd" | "containerd" | "nerdctl" => "containerd",
        "crio" => "cri-o",
        "docker" => "docker",
        // With `--cgroups=split` (quadlets) the payload has a cgroup below the unit's.
        "libpod" | "libpod-payload" => "podman",
        _ => return None,
    })
}

/// A directory that a container manager makes for its containers.
struct Manager {
    /// Where the manager has one only.
    runtime: Option<&'static str>,
}

fn manager(component: &str) -> Option<Manager> {
    let runtime = match component {
        "docker" => Some("docker"),
        "libpod_parent" => Some("podman"),
        "k8s.io" | "nerdctl" => Some("containerd"),
        // The ECS agent's tasks; its runtime is docker, on Fargate containerd.
        "ecs" | "ecstasks.slice" => None,
        _ if component.starts_with("kubepods") || component.contains("-kubepods") => None,
        _ => return None,
    };
    Some(Manager { runtime })
}

/// 64 hexadecimal digits; on Fargate the task's 32 and a number.
fn is_id(text: &str) -> bool {
    is_hex(text, 64)
        || text.split_once('-').is_some_and(|(task, number)| {
            is_hex(task, 32) && (6..=20).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit())
        })
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_pod(component: &str) -> bool {
    pod_uid(component).is_some()
}

/// `pod<uid>`, `kubepods-besteffort-pod<uid>.slice`, also in front of a colon. The uid of a static pod is a hash.
fn pod_uid(component: &str) -> Option<String> {
    let stem = component.split(':').next()?;
    let uid = match stem.strip_suffix(".slice") {
        Some(slice) => slice
            .rsplit_once("-pod")
            .map(|(_, uid)| uid)
            .or_else(|| slice.strip_prefix("pod"))?,
        None => stem.strip_prefix("pod").or_else(|| {
            // The driver's name without its suffix, as some runtimes write it.
            stem.contains("kubepods")
                .then(|| stem.rsplit_once("-pod"))?
                .map(|(_, uid)| uid)
        })?,
    };
    // In a slice's name `-` separates levels, so the UID has `_` instead.
    let uid = uid.replace('_', "-");
    let digits = uid.bytes().filter(u8::is_ascii_hexdigit).count();
    let shaped = digits == 32 && uid.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    shaped.then_some(uid)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_container() {
        for path in [
            "",
            "/",
            "/..",
            "/system.slice/app.service",
            "/user.slice/user-1000.slice/session-4.scope",
            "/kubepods/besteffort",
            "/kubepods/besteffort/pod6e1c5a52-3f0b-4a7e-9d0c-2b8f4a1e7c33",
            "/machine.slice/podman.service",
            "/system.slice/podcast.service",
        ] {
            assert_eq!(from_cgroup(path), None, "{path}");
        }
    }

    #[test]
    fn a_monitor_is_not_its_container() {
        let id = "0a".repeat(32);
        assert_eq!(from_cgroup(&format!("/machine.slice/libpod-conmon-{id}.scope")), None);
        assert_eq!(from_cgroup(&format!("/system.slice/crio-conmon-{id}.scope")), None);
    }

    #[test]
    fn a_strange_form_still_gives_the_id() {
        let id = "0a".repeat(32);
        let found = from_cgroup(&format!("/strange.slice/thing-{id}.scope")).unwrap();
        assert_eq!((found.container.id, found.recognised), (id.clone(), false));
        let found = from_cgroup(&format!("/strange/{id}")).unwrap();
        assert_eq!((found.container.id, found.recognised), (id, false));
        let found = from_cgroup("/kubepods/besteffort/pod6e1c5a52-3f0b-4a7e-9d0c-2b8f4a1e7c33/web/child").unwrap();
        assert_eq!((found.container.id.as_str(), found.recognised), ("web", false));
        assert_eq!(
            found.container.pod.unwrap().uid.as_deref(),
            Some("6e1c5a52-3f0b-4a7e-9d0c-2b8f4a1e7c33")
        );
    }

    #[test]
    fn a_name_that_a_user_chose_is_no_container() {
        let (pod, id, own) = (
            "pod6e1c5a52-3f0b-4a7e-9d0c-2b8f4a1e7c33",
            "0a".repeat(32),
            "1b".repeat(32),
        );
        let of = |path: String, delegated| {
            of(&CgroupPath { path, delegated }).map(|found| (found.container.id, found.container.pod.is_some()))
        };
        let session = "/user.slice/user-1000.slice/user@1000.service";
        let forged = format!("{session}/kubepods/burstable/{pod}/{id}");
        assert_eq!(of(forged.clone(), 4), None, "everything below the user's own directory");
        assert_eq!(of(forged, 0), Some((id.clone(), true)), "of root's making");
        // runc gives a container its own directory, and what is in it, but not the one above.
        let path = format!("/kubepods/burstable/{pod}/{own}");
        assert_eq!(of(format!("{path}/docker/{id}"), 2), Some((own.clone(), true)));
        assert_eq!(of(path.clone(), 0), Some((own, true)));
        // A user's service with a delegated subtree; and one cut at its root's side.
        assert_eq!(
            of(format!("/system.slice/app.service/cri-containerd-{id}.scope"), 1),
            None
        );
        assert_eq!(of(format!(".../app.service/cri-containerd-{id}.scope"), 1), None);
        for delegated in 0..9 {
            let _ = of(path.clone(), delegated);
            let _ = of(String::new(), delegated);
            let _ = of("/".to_owned(), delegated);
        }
    }

    proptest! {
        #[test]
        fn any_path(path in "[a-f0-9/.:_-]{0,200}|\\PC{0,80}|(/(pod|docker|kubepods|libpod-|[a-f0-9]{64}|\\.slice|:)){0,12}") {
            if let Some(found) = from_cgroup(&path) {
                prop_assert!(!found.container.id.is_empty() && found.container.id.len() <= 4 * MAX_ID);
            }
        }
    }
}
