//! Real containers of real runtimes: the observer must identify them from the files that the runtime and kubelet leave on the node.
//!
//! The image is built `FROM scratch` and contains one static program. All files of the runtimes are below a root directory of the test,
//! which is also the observer's `--host-root`. The networks are the lab's.

mod daemonset;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use imds_observer_lab::topology::{Lab, LabOptions, cgroup_mount_point};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Observer, in_netns, lab, output, patience};

const IMAGE: &str = "localhost/imds-client:1";
const ENDPOINT: &str = "169.254.169.254:80";
const UID: &str = "6e1c5a52-3f0b-4a7e-9d0c-2b8f4a1e7c33";
const OWN_ROLE: &str = "5e6f0000000000000000000000000000000000000000000000000000000000ab";
const CREDENTIALS: &str = "/latest/meta-data/iam/security-credentials/lab-role";
const ANNOTATED: &str = "0f8a1c5d9b3e7a2f4c6d8e0b1a3c5e7f9d2b4a6c8e0f1a3b5c7d9e1f3a5b7c9d";
const LOGGED: &str = "7b2d9e4f1a6c3b8d5e0f2a7c9b4d1e6f3a8c5b0d7e2f9a4c1b6d3e8f5a0c7b2d";
/// Annotations that containerd's CRI plugin writes into a container's configuration.
const ANNOTATIONS: &[(&str, &str)] = &[
    ("io.kubernetes.cri.container-type", "container"),
    ("io.kubernetes.cri.container-name", "api"),
    ("io.kubernetes.cri.image-name", "registry.example/api:1.4"),
    ("io.kubernetes.cri.sandbox-name", "api-7c9d8b6f5d-x2x4z"),
    ("io.kubernetes.cri.sandbox-namespace", "payments"),
    ("io.kubernetes.cri.sandbox-uid", UID),
];

/// A host's root directory with the real `/proc` and the runtimes' state.
struct Node {
    root: TempDir,
    containers_conf: PathBuf,
}

impl Node {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("make the node's root");
        symlink("/proc", root.path().join("proc")).unwrap();
        let containers_conf = root.path().join("containers.conf");
        // This configuration works without CAP_SYS_RESOURCE and with v1 controllers. crun refuses hybrid cgroups.
        fs::write(
            &containers_conf,
            "[containers]\npids_limit=0\ndefault_ulimits=[\"nofile=1024:1024\",\"nproc=1024:1024\"]\n\
             [engine]\nruntime=\"runc\"\ncgroup_manager=\"cgroupfs\"\nevents_logger=\"file\"\n",
        )
        .unwrap();
        Self { root, containers_conf }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    /// Makes buildah or podman keep all state below the root.
    fn storage(&self, mut command: Command) -> Command {
        command
            .env("CONTAINERS_CONF", &self.containers_conf)
            .arg("--root")
            .arg(self.path("var/lib/containers/storage"))
            .arg("--runroot")
            .arg(self.path("run/containers/storage"))
            .args(["--storage-driver", "vfs"]);
        command
    }

    /// Builds an image that contains only the statically linked client.
    fn build_image(&self) {
        let client = self.path("client");
        succeed(
            Command::new(std::env::var_os("RUSTC").unwrap_or("rustc".into()))
                .args([
                    "--edition",
                    "2024",
                    "-C",
                    "target-feature=+crt-static",
                    "-C",
                    "strip=symbols",
                ])
                .arg("--target")
                .arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH))
                .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/live/containers/client.rs"))
                .arg("-o")
                .arg(&client),
        );
        self.commit(&client, "/client", IMAGE);
    }

    /// Builds an image `FROM scratch` with a file, or with the content of a directory, and with the program to start.
    fn commit(&self, content: &Path, program: &str, image: &str) {
        let to = if content.is_dir() { "/" } else { program };
        let buildah = || self.storage(Command::new("buildah"));
        let container = succeed(buildah().args(["from", "--isolation", "chroot", "scratch"]));
        let container = container.trim();
        succeed(buildah().args(["copy", container]).arg(content).arg(to));
        let entrypoint = serde_json::json!([program]).to_string();
        succeed(buildah().args(["config", "--entrypoint", &entrypoint, container]));
        succeed(buildah().args(["commit", container, image]));
        succeed(buildah().args(["rm", container]));
    }

    /// Saves an image as an archive that containerd can import.
    fn save(&self, image: &str, archive: &Path) {
        succeed(
            self.storage(Command::new("podman"))
                .args(["save", "--quiet", "--format", "oci-archive", "-o"])
                .arg(archive)
                .arg(image),
        );
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let mut podman = self.storage(Command::new("podman"));
        let _ = podman.args(["rm", "--all", "--force"]).output();
    }
}

fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| {
        panic!("run {command:?}: {error} (needs podman, buildah, runc, containerd and CNI's plugins: `cargo xtask setup --for test`)")
    });
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// containerd without its CRI plugin, which would need a network of its own.
struct Containerd {
    child: Child,
    socket: PathBuf,
}

impl Containerd {
    fn start(lab: &Lab, node: &Node) -> Self {
        let socket = node.path("containerd.sock");
        let config = node.path("containerd.toml");
        fs::write(
            &config,
            format!(
                "version = 2\nroot = '{}'\nstate = '{}'\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = '{}'\n",
                node.path("var/lib/containerd").display(),
                node.path("run/containerd").display(),
                socket.display(),
            ),
        )
        .unwrap();
        let child = lab
            .node()
            .command("containerd")
            .unwrap()
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start containerd");
        let containerd = Self { child, socket };
        let deadline = Instant::now() + patience();
        while !containerd.ctr().arg("version").output().unwrap().status.success() {
            assert!(Instant::now() < deadline, "containerd doesn't answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        containerd
    }

    fn ctr(&self) -> Command {
        let mut command = Command::new("ctr");
        command
            .arg("--address")
            .arg(&self.socket)
            .args(["--namespace", "k8s.io"]);
        command
    }

    /// Imports an image from the builder's storage.
    fn import(&self, node: &Node, image: &str) {
        let archive = node.path("image.tar");
        node.save(image, &archive);
        succeed(
            self.ctr()
                .args(["images", "import", "--snapshotter", "native"])
                .arg(&archive),
        );
        fs::remove_file(&archive).unwrap();
    }

    /// A client in a container of a pod, which requests `path`.
    fn client(
        &self,
        lab: &Lab,
        cni: &CniNetwork,
        id: &str,
        path: &str,
        annotations: &[(&str, &str)],
        token: Option<&Path>,
    ) -> Command {
        let cgroup = format!("/imdslab-{}/kubepods/besteffort/pod{UID}/{id}", lab.id());
        let mut ctr = self.ctr();
        ctr.args(["run", "--rm", "--snapshotter", "native", "--cgroup", &cgroup]);
        ctr.arg("--with-ns").arg(format!("network:{}", cni.path().display()));
        for (key, value) in annotations {
            ctr.arg("--annotation").arg(format!("{key}={value}"));
        }
        if let Some(directory) = token {
            ctr.arg("--mount").arg(format!(
                "type=bind,src={},dst=/var/run/secrets/eks.amazonaws.com/serviceaccount,options=rbind:ro",
                directory.display()
            ));
        }
        ctr.args([IMAGE, id, "/client", ENDPOINT, path]);
        ctr
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Tasks of a failed test would otherwise outlive containerd.
        let tasks = self.ctr().args(["tasks", "list", "--quiet"]).output();
        for task in String::from_utf8_lossy(&tasks.map(|tasks| tasks.stdout).unwrap_or_default()).lines() {
            let _ = self.ctr().args(["tasks", "delete", "--force", task]).output();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A network namespace that the real CNI bridge plugin connects to the node. It is named like the lab's namespaces, so that the lab's
/// clean-up finds it.
struct CniNetwork {
    name: String,
}

impl CniNetwork {
    fn new(lab: &Lab, node: &Node) -> Self {
        let network = Self {
            name: format!("imdslab-{}-cni", lab.id()),
        };
        succeed(Command::new("ip").args(["netns", "add", &network.name]));
        let config = node.path("cni.json");
        fs::write(
            &config,
            serde_json::json!({
                "cniVersion": "0.4.0", "name": "pods", "type": "bridge", "bridge": "cni-pods", "isDefaultGateway": true,
                "ipMasq": true,
                "ipam": {"type": "host-local", "dataDir": node.path("cni"), "ranges": [[{"subnet": "10.89.0.0/24"}]]},
            })
            .to_string(),
        )
        .unwrap();
        succeed(
            in_netns(lab.node(), "/usr/lib/cni/bridge")
                .envs([
                    ("CNI_COMMAND", "ADD"),
                    ("CNI_CONTAINERID", "pod"),
                    ("CNI_IFNAME", "eth0"),
                    ("CNI_PATH", "/usr/lib/cni"),
                ])
                .env("CNI_NETNS", network.path())
                .stdin(fs::File::open(&config).unwrap()),
        );
        network
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }
}

impl Drop for CniNetwork {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// The lab's cgroup in every hierarchy. Runtimes also create cgroups in v1 hierarchies, and don't remove the parents.
struct CgroupRemains(String);

impl Drop for CgroupRemains {
    fn drop(&mut self) {
        fn remove(directory: &Path) {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    remove(&entry.path());
                }
            }
            let _ = fs::remove_dir(directory);
        }
        let unified = cgroup_mount_point().unwrap_or_default();
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            if hierarchy.path() != unified && unified != Path::new("/sys/fs/cgroup") {
                remove(&hierarchy.path().join(&self.0));
            }
        }
    }
}

fn exchange_of<'a>(records: &[&'a Value], path: &str) -> &'a Value {
    let found: Vec<&&Value> = records
        .iter()
        .filter(|record| record["request"]["path"] == path)
        .collect();
    assert_eq!(found.len(), 1, "one exchange asked for {path}: {records:?}");
    found[0]
}

#[test]
#[ignore = "live"]
fn containers_of_podman_and_containerd_are_named() {
    let lab = lab(LabOptions::default());
    let cgroup = format!("imdslab-{}", lab.id());
    let _remains = CgroupRemains(cgroup.clone());
    let node = Node::new();
    node.build_image();
    let containerd = Containerd::start(&lab, &node);
    containerd.import(&node, IMAGE);
    let cni = CniNetwork::new(&lab, &node);
    // Kubelet's links to logs. The pod's second name appears only there.
    let logs = node.path("var/log/containers");
    fs::create_dir_all(&logs).unwrap();
    fs::write(logs.join(format!("import-28391040-k7v9p_batch_only-{LOGGED}.log")), "").unwrap();

    let mut observer = Observer::stream(&lab, &["--host-root", node.root.path().to_str().unwrap()]);

    let cidfile = node.path("cid");
    succeed(
        node.storage(lab.pod(0).command("podman").unwrap())
            .args([
                "run",
                "--name",
                "imds-web",
                "--cgroup-parent",
                &format!("/{cgroup}/libpod_parent"),
            ])
            .arg("--network")
            .arg(format!("ns:{}", lab.pod(0).netns().path().display()))
            .arg("--cidfile")
            .arg(&cidfile)
            .args([IMAGE, ENDPOINT, "/latest/meta-data/instance-id?podman"]),
    );
    let run = |id: &str, path: &str, annotations: &[(&str, &str)], token: Option<&Path>| {
        succeed(&mut containerd.client(&lab, &cni, id, path, annotations, token));
    };
    run(ANNOTATED, "/latest/meta-data/instance-id?annotated", ANNOTATIONS, None);
    run(LOGGED, &format!("{CREDENTIALS}?logged"), &[], None);
    // A mounted token as for a service account with a role (IRSA); EKS's webhook mounts it.
    let token = node.path("token");
    fs::create_dir_all(&token).unwrap();
    run(OWN_ROLE, &format!("{CREDENTIALS}?own"), ANNOTATIONS, Some(&token));
    observer.wait_for(|record| record["request"]["path"] == format!("{CREDENTIALS}?own"));
    let finished = observer.finish();
    let exchanges = finished.kind("exchange");

    let podman = exchange_of(&exchanges, "/latest/meta-data/instance-id?podman");
    let id = fs::read_to_string(&cidfile).unwrap();
    assert_eq!(podman["container"]["id"], id.trim());
    assert_eq!(podman["container"]["runtime"], "podman");
    assert_eq!(podman["container"]["name"], "imds-web");
    assert_eq!(podman["container"]["image"], IMAGE);
    assert_eq!(podman["container"]["pod"], Value::Null);

    let annotated = exchange_of(&exchanges, "/latest/meta-data/instance-id?annotated");
    assert_eq!(
        annotated["container"],
        serde_json::json!({
            "id": ANNOTATED, "runtime": "containerd", "name": "api", "image": "registry.example/api:1.4",
            "pod": {"namespace": "payments", "name": "api-7c9d8b6f5d-x2x4z", "uid": UID},
        })
    );
    let logged = exchange_of(&exchanges, &format!("{CREDENTIALS}?logged"));
    assert_eq!(
        logged["container"],
        serde_json::json!({
            "id": LOGGED, "runtime": "containerd", "name": "only", "image": null,
            "pod": {"namespace": "batch", "name": "import-28391040-k7v9p", "uid": UID},
        })
    );
    let own = exchange_of(&exchanges, &format!("{CREDENTIALS}?own"));
    assert_eq!(own["container"]["pod"]["identity"], "irsa", "{own}");
    // The pod without a role of its own reads the same credentials.
    let used = finished.opened("node-role-used");
    assert_eq!(used.len(), 1, "{used:?}");
    assert_eq!(used[0]["subject"]["container"]["id"], OWN_ROLE, "{}", used[0]);
    for exchange in [podman, annotated, logged, own] {
        let process = &exchange["process"];
        assert_eq!(process["comm"], "client", "{exchange}");
        assert_eq!(process["namespace_pid"], 1, "the first in its PID namespace: {process}");
        assert_eq!(process["cmdline"][0], "/client");
        assert!(process["exe"].as_str().unwrap().ends_with("/client"), "{process}");
        assert_eq!(exchange["outcome"], "answered");
        assert_eq!(exchange["request"]["ttl"], 63, "behind a bridge");
    }
    let loss = finished.kind("loss").pop().unwrap();
    assert_eq!(
        (&loss["unattributed"], &loss["unknown_containers"]),
        (&0.into(), &0.into()),
        "{loss}"
    );
    assert!(output("ip", &["netns"]).contains(&cni.name), "until here");
}
