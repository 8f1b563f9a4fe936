//! What a container and its pod are called, from what the node itself keeps: the runtimes' state and kubelet's log tree.
//!
//! No API is asked. Each source is tried for what the ones before it left open; all are files that may be missing, large or broken.
//!
//! Where runtimes keep their state: containerd's shims have the OCI `config.json` with CRI's annotations; cri-o and podman have
//! theirs in containers/storage; docker has `config.v2.json`. kubelet links `/var/log/containers/<pod>_<namespace>_<container>-<id>.log`
//! and makes `/var/log/pods/<namespace>_<name>_<uid>/<container>/`, whatever the runtime.

use std::collections::HashMap;

use serde::Deserialize;

use super::host::HostRoot;
use crate::record::{Container, Pod, PodIdentity};

/// Directories that hold containerd's `io.containerd.runtime.*`.
const CONTAINERD: &[&str] = &[
    "run/containerd",
    "run/k3s/containerd",
    "run/k0s/containerd",
    "run/docker/containerd/daemon",
    "var/snap/microk8s/common/run/containerd",
];
const CONTAINERD_SHIMS: &[&str] = &["io.containerd.runtime.v2.task", "io.containerd.runtime.v1.linux"];
/// containerd's namespaces that are looked into: `k8s.io`, `moby`, `default`, and whatever people make.
const MAX_NAMESPACES: usize = 16;
/// Roots of containers/storage, lasting and of the running boot.
const STORAGE: &[&str] = &["var/lib/containers/storage", "run/containers/storage"];
const STORAGE_DRIVERS: &[&str] = &["overlay", "vfs", "btrfs"];
const DOCKER: &[&str] = &[
    "var/lib/docker/containers",
    "var/snap/docker/common/var-lib-docker/containers",
];

/// An OCI configuration has some 20 KiB, much of it mounts and seccomp.
const MAX_CONFIG: u64 = 1 << 20;
/// One list of all containers.
const MAX_LIST: u64 = 8 << 20;
/// Where a container finds the token for a role of its pod's own, as EKS's admission webhook mounts it.
const IDENTITIES: &[(&str, PodIdentity)] = &[
    (
        "/var/run/secrets/pods.eks.amazonaws.com/serviceaccount",
        PodIdentity::EksPodIdentity,
    ),
    ("/var/run/secrets/eks.amazonaws.com/serviceaccount", PodIdentity::Irsa),
];
/// Bytes of a name: Kubernetes allows 253.
const MAX_NAME: usize = 256;
const MAX_IMAGE: usize = 512;

/// Looks for a container by its id in one runtime's state.
type Source = fn(&HostRoot, &str) -> Option<Names>;

/// Names that were found for one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    pub runtime: Option<&'static str>,
    pub name: Option<String>,
    pub image: Option<String>,
    pub pod_namespace: Option<String>,
    pub pod_name: Option<String>,
    pub pod_uid: Option<String>,
    pub identity: Option<PodIdentity>,
    /// A pod's own sandbox: it has no container name.
    pub sandbox: bool,
}

/// Looks everywhere until nothing is open any more.
pub fn find(host: &HostRoot, container: &Container) -> Names {
    let id = container.id.as_str();
    let mut names = Names {
        pod_uid: container.pod.as_ref().and_then(|pod| pod.uid.clone()),
        ..Names::default()
    };
    // The one that the path names comes first, if it names one.
    let sources: [(&str, Source); 3] = [
        ("containerd", containerd),
        ("cri-o podman", storage),
        ("docker", docker),
    ];
    let hinted = |runtimes: &str| container.runtime.as_deref().is_some_and(|hint| runtimes.contains(hint));
    let (first, rest): (Vec<_>, Vec<_>) = sources.iter().partition(|(runtimes, _)| hinted(runtimes));
    for (_, source) in first.into_iter().chain(rest) {
        if let Some(found) = source(host, id) {
            names.fill(found);
            if names.complete() {
                break;
            }
        }
    }
    if !names.complete() && !names.sandbox {
        logs_by_id(host, id, &mut names);
    }
    if names.pod_name.is_none()
        && let Some(uid) = names.pod_uid.clone()
    {
        logs_by_uid(host, &uid, &mut names);
    }
    names.clip();
    names
}

impl Names {
    /// Whether nothing that matters is open.
    pub fn complete(&self) -> bool {
        let pod = self.pod_name.is_some() && self.pod_namespace.is_some();
        if self.pod_uid.is_some() || pod {
            pod && (self.name.is_some() || self.sandbox)
        } else {
            self.name.is_some()
        }
    }

    /// The container with what was found.
    pub fn apply(self, container: &Container) -> Container {
        let pod = (self.pod_uid.is_some() || self.pod_name.is_some()).then_some(Pod {
            namespace: self.pod_namespace,
            name: self.pod_name,
            uid: self.pod_uid,
            identity: self.identity,
        });
        Container {
            id: container.id.clone(),
            runtime: container.runtime.clone().or(self.runtime.map(str::to_owned)),
            name: self.name,
            image: self.image,
            pod: pod.or_else(|| container.pod.clone()),
        }
    }

    /// Takes what is open here. A pod is taken whole or not at all.
    fn fill(&mut self, found: Self) {
        if found.pod_uid.is_some() && self.pod_uid.is_some() && found.pod_uid != self.pod_uid {
            // The id is another container's: an id that isn't unique, or a state that is stale.
            return;
        }
        self.runtime = self.runtime.or(found.runtime);
        self.name = self.name.take().or(found.name);
        self.image = self.image.take().or(found.image);
        self.pod_uid = self.pod_uid.take().or(found.pod_uid);
        if self.pod_name.is_none() {
            self.pod_namespace = found.pod_namespace;
            self.pod_name = found.pod_name;
        }
        self.identity = self.identity.or(found.identity);
        self.sandbox |= found.sandbox;
    }

    fn clip(&mut self) {
        for name in [
            &mut self.name,
            &mut self.pod_namespace,
            &mut self.pod_name,
            &mut self.pod_uid,
        ] {
            clip(name, MAX_NAME);
        }
        clip(&mut self.image, MAX_IMAGE);
    }
}

fn clip(text: &mut Option<String>, max: usize) {
    if text.as_ref().is_some_and(String::is_empty) {
        *text = None;
    }
    if let Some(text) = text
        && text.len() > max
    {
        let mut end = max;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
}

/// The part of an OCI configuration that names.
#[derive(Deserialize)]
struct OciConfig {
    #[serde(default)]
    annotations: Option<HashMap<String, serde_json::Value>>,
    #[serde(default)]
    mounts: Option<Vec<Mount>>,
}

#[derive(Deserialize)]
struct Mount {
    #[serde(default, alias = "Destination")]
    destination: Option<String>,
}

/// The identity that the destinations of mounts show.
fn identity(destinations: &[&str]) -> Option<PodIdentity> {
    IDENTITIES
        .iter()
        .find(|(path, _)| {
            destinations
                .iter()
                .any(|destination| destination.trim_end_matches('/') == *path)
        })
        .map(|(_, identity)| *identity)
}

fn containerd(host: &HostRoot, id: &str) -> Option<Names> {
    CONTAINERD
        .iter()
        .flat_map(|root| CONTAINERD_SHIMS.iter().map(move |shims| format!("{root}/{shims}")))
        .find_map(|shims| {
            host.names(&shims, MAX_NAMESPACES)
                .iter()
                .find_map(|namespace| host.read(&format!("{shims}/{namespace}/{id}/config.json"), MAX_CONFIG))
        })
        .map(|config| {
            let mut names = oci(&config);
            names.runtime = names.runtime.or(Some("containerd"));
            names
        })
}

/// Names in the annotations of an OCI configuration: CRI's by containerd and cri-o, and nerdctl's.
fn oci(config: &[u8]) -> Names {
    let (annotations, mounts) = serde_json::from_slice::<OciConfig>(config)
        .map(|config| (config.annotations, config.mounts))
        .unwrap_or_default();
    let (annotations, mounts) = (annotations.unwrap_or_default(), mounts.unwrap_or_default());
    let get = |keys: &[&str]| {
        keys.iter()
            .find_map(|key| annotations.get(*key)?.as_str())
            .map(str::to_owned)
    };
    let kind = get(&["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"]);
    let sandbox = kind.as_deref() == Some("sandbox");
    let crio = annotations.keys().any(|key| key.starts_with("io.kubernetes.cri-o."));
    let podman = get(&["io.container.manager"]).as_deref() == Some("libpod");
    let name = get(&[
        "io.kubernetes.cri.container-name",
        "io.kubernetes.container.name",
        "nerdctl/name",
    ]);
    Names {
        runtime: crio.then_some("cri-o").or(podman.then_some("podman")),
        name: name.filter(|_| !sandbox),
        image: get(&["io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName"]),
        pod_namespace: get(&["io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace"]),
        pod_name: get(&["io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name"]),
        pod_uid: get(&["io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid"]),
        identity: identity(
            &mounts
                .iter()
                .filter_map(|mount| mount.destination.as_deref())
                .collect::<Vec<_>>(),
        ),
        sandbox,
    }
}

/// An entry of containers/storage's list.
#[derive(Deserialize)]
struct Stored {
    id: String,
    #[serde(default)]
    names: Option<Vec<String>>,
    /// JSON in a string, written by podman and cri-o.
    #[serde(default)]
    metadata: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct StoredMetadata {
    #[serde(rename = "image-name")]
    image_name: Option<String>,
    name: Option<String>,
}

fn storage(host: &HostRoot, id: &str) -> Option<Names> {
    let mut names = None;
    for directory in STORAGE.iter().flat_map(|root| {
        STORAGE_DRIVERS
            .iter()
            .map(move |driver| format!("{root}/{driver}-containers"))
    }) {
        if let Some(config) = host.read(&format!("{directory}/{id}/userdata/config.json"), MAX_CONFIG) {
            names.get_or_insert_with(Names::default).fill(oci(&config));
        }
        if names.as_ref().is_some_and(Names::complete) {
            return names;
        }
        for list in ["containers.json", "volatile-containers.json"] {
            let stored = host
                .read(&format!("{directory}/{list}"), MAX_LIST)
                .and_then(|list| serde_json::from_slice::<Vec<Stored>>(&list).ok());
            if let Some(stored) = stored.and_then(|list| list.into_iter().find(|stored| stored.id == id)) {
                names.get_or_insert_with(Names::default).fill(from_storage(stored));
            }
        }
    }
    names
}

fn from_storage(stored: Stored) -> Names {
    let metadata = stored
        .metadata
        .and_then(|metadata| serde_json::from_str::<StoredMetadata>(&metadata).ok())
        .unwrap_or_default();
    let name = metadata.name.or_else(|| stored.names?.into_iter().next());
    // cri-o's names are made of the pod's: `k8s_api_api-7c9d_payments_<uid>_0`. Its configuration distinguishes them.
    Names {
        name: name.filter(|name| !name.starts_with("k8s_")),
        image: metadata.image_name,
        ..Names::default()
    }
}

/// The part of docker's `config.v2.json` that names.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerContainer {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    config: Option<DockerConfig>,
    /// By destination.
    #[serde(default)]
    mount_points: Option<HashMap<String, serde_json::Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerConfig {
    #[serde(default)]
    image: Option<String>,
    #[serde(default)]
    labels: Option<HashMap<String, String>>,
}

/// Any bytes as each runtime's state: for the fuzz targets.
pub(super) fn read_any(bytes: &[u8]) {
    let _ = oci(bytes);
    let _ = serde_json::from_slice::<DockerContainer>(bytes);
}

fn docker(host: &HostRoot, id: &str) -> Option<Names> {
    let config = DOCKER
        .iter()
        .find_map(|root| host.read(&format!("{root}/{id}/config.v2.json"), MAX_CONFIG))?;
    let DockerContainer {
        name,
        config,
        mount_points,
    } = serde_json::from_slice(&config).ok()?;
    let (image, labels) = config.map_or((None, None), |config| (config.image, config.labels));
    let labels = labels.unwrap_or_default();
    let label = |key: &str| labels.get(key).cloned();
    let sandbox = label("io.kubernetes.docker.type").as_deref() == Some("podsandbox");
    let name = label("io.kubernetes.container.name")
        .or_else(|| label("com.amazonaws.ecs.container-name"))
        .or_else(|| name.map(|name| name.trim_start_matches('/').to_owned()));
    Some(Names {
        runtime: Some("docker"),
        name: name.filter(|_| !sandbox),
        image,
        pod_namespace: label("io.kubernetes.pod.namespace"),
        pod_name: label("io.kubernetes.pod.name"),
        pod_uid: label("io.kubernetes.pod.uid"),
        identity: mount_points.and_then(|mounts| identity(&mounts.keys().map(String::as_str).collect::<Vec<_>>())),
        sandbox,
    })
}

/// kubelet's link for each container.
fn logs_by_id(host: &HostRoot, id: &str, names: &mut Names) {
    let end = format!("-{id}.log");
    let found = host.find("var/log/containers", |entry| {
        // Neither of the three may have `_` in it.
        let mut parts = entry.strip_suffix(&end)?.splitn(3, '_');
        let (pod, namespace, container) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Names {
            name: Some(container.to_owned()),
            pod_namespace: Some(namespace.to_owned()),
            pod_name: Some(pod.to_owned()),
            ..Names::default()
        })
    });
    if let Some(found) = found {
        names.fill(found);
    }
}

/// kubelet's directory for each pod. It names the container only where the pod has no other.
fn logs_by_uid(host: &HostRoot, uid: &str, names: &mut Names) {
    let end = format!("_{uid}");
    let found = host.find("var/log/pods", |entry| {
        let (namespace, pod) = entry.strip_suffix(&end)?.split_once('_')?;
        Some((entry.to_owned(), namespace.to_owned(), pod.to_owned()))
    });
    let Some((directory, namespace, pod)) = found else {
        return;
    };
    let mut containers = host.names(&format!("var/log/pods/{directory}"), 2);
    let only = (containers.len() == 1 && !names.sandbox)
        .then(|| containers.pop())
        .flatten();
    names.fill(Names {
        name: only,
        pod_namespace: Some(namespace),
        pod_name: Some(pod),
        ..Names::default()
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mounted_token_shows_that_a_pod_has_a_role_of_its_own() {
        let identity = |config: &str| oci(config.as_bytes()).identity;
        let mounted = |destination: &str| {
            format!(r#"{{"mounts":[{{"destination":"/proc","type":"proc"}},{{"destination":"{destination}"}}]}}"#)
        };
        for (destination, expected) in [
            (
                "/var/run/secrets/eks.amazonaws.com/serviceaccount",
                Some(PodIdentity::Irsa),
            ),
            (
                "/var/run/secrets/eks.amazonaws.com/serviceaccount/",
                Some(PodIdentity::Irsa),
            ),
            (
                "/var/run/secrets/pods.eks.amazonaws.com/serviceaccount",
                Some(PodIdentity::EksPodIdentity),
            ),
            ("/var/run/secrets/kubernetes.io/serviceaccount", None),
            ("/srv/var/run/secrets/eks.amazonaws.com/serviceaccount", None),
        ] {
            assert_eq!(identity(&mounted(destination)), expected, "{destination}");
        }
        assert_eq!(identity(r#"{"mounts":null}"#), None);
        assert_eq!(identity(r#"{"mounts":[{}]}"#), None);
    }
}
