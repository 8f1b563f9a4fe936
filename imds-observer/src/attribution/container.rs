//! Which container a cgroup path names.

use crate::record::{Container, Pod};

/// What a cgroup path tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// No container.
    None,
    Container(Container),
    /// Below a directory of a container manager, but of no form that is known.
    Unknown,
}

/// Reads the id, the runtime and the pod's uid from a cgroup path; names are not in it.
pub fn from_cgroup(path: &str) -> Found {
    let mut components = path.split('/').filter(|component| !component.is_empty()).rev();
    let mut managed = false;
    let mut container = None;
    for component in components.by_ref() {
        managed |= component.starts_with("kubepods") || component == "docker" || component.starts_with("libpod");
        if let Some(found) = container_component(component) {
            container = Some(found);
            break;
        }
    }
    let Some((id, mut runtime)) = container else {
        return if managed && !path.trim_end_matches('/').ends_with("kubepods") && path.contains("/pod") {
            Found::Unknown
        } else {
            Found::None
        };
    };
    let mut pod = None;
    for component in components {
        pod = pod.or_else(|| pod_uid(component));
        if component == "docker" {
            runtime = runtime.or(Some("docker"));
        }
    }
    Found::Container(Container {
        id,
        runtime: runtime.map(str::to_owned),
        name: None,
        image: None,
        pod: pod.map(|uid| Pod {
            namespace: None,
            name: None,
            uid: Some(uid),
        }),
    })
}

fn container_component(component: &str) -> Option<(String, Option<&'static str>)> {
    let stem = component.strip_suffix(".scope").unwrap_or(component);
    // systemd's driver under containerd's CRI without a slice of its own: `kubepods-...-podUID.slice:cri-containerd:ID`.
    let stem = stem.rsplit(':').next().unwrap_or(stem);
    let runtime = |text: &str| {
        Some(match text {
            "cri-containerd" | "containerd" => "containerd",
            "crio" => "cri-o",
            "docker" => "docker",
            "libpod" => "podman",
            _ => return None,
        })
    };
    if is_id(stem) {
        let named = component.split(':').rev().nth(1).and_then(runtime);
        return Some((stem.to_owned(), named));
    }
    let (prefix, id) = stem.rsplit_once('-')?;
    (is_id(id) && runtime(prefix).is_some()).then(|| (id.to_owned(), runtime(prefix)))
}

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn pod_uid(component: &str) -> Option<String> {
    let stem = component.split(':').next()?;
    let stem = stem.strip_suffix(".slice").unwrap_or(stem);
    let uid = stem
        .strip_prefix("pod")
        .or_else(|| stem.rsplit_once("-pod").map(|(_, uid)| uid))?;
    // systemd has no `-` to spare in a slice's name.
    (!uid.is_empty()).then(|| uid.replace('_', "-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str) -> Option<(Option<String>, Option<String>)> {
        match from_cgroup(&path.replace("ID", &"0a".repeat(32))) {
            Found::Container(container) => {
                assert_eq!(container.id, "0a".repeat(32));
                Some((container.runtime, container.pod.and_then(|pod| pod.uid)))
            }
            _ => None,
        }
    }

    #[test]
    fn layouts_seen_on_nodes() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(found("/kubepods/besteffort/pod12-34/ID"), Some((None, some("12-34"))));
        assert_eq!(
            found("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod12_34.slice/cri-containerd-ID.scope"),
            Some((some("containerd"), some("12-34")))
        );
        assert_eq!(
            found("/kubepods.slice/kubepods-pod12_34.slice/crio-ID.scope"),
            Some((some("cri-o"), some("12-34")))
        );
        assert_eq!(
            found("/system.slice/containerd.service/kubepods-besteffort-pod12_34.slice:cri-containerd:ID"),
            Some((some("containerd"), None))
        );
        assert_eq!(found("/system.slice/docker-ID.scope"), Some((some("docker"), None)));
        assert_eq!(found("/docker/ID"), Some((some("docker"), None)));
        assert_eq!(found("/libpod_parent/libpod-ID"), Some((some("podman"), None)));
        assert_eq!(found("/kubepods/pod12/ID/nested/child"), Some((None, some("12"))));
    }

    #[test]
    fn what_is_no_container() {
        for path in [
            "",
            "/",
            "/system.slice/app.service",
            "/user.slice/user-1000.slice",
            "/kubepods/besteffort",
        ] {
            assert_eq!(from_cgroup(path), Found::None, "{path}");
        }
        assert_eq!(from_cgroup("/kubepods/besteffort/pod12/strange"), Found::Unknown);
    }
}
