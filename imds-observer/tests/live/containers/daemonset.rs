//! The observer must work as Kubernetes runs it: in a container, with only the privileges and mounts of `deploy/kubernetes`.
//!
//! The container is run by containerd and runc, with containerd's default seccomp profile. Capabilities, arguments, environment, mounts,
//! limits and probes are read from the manifests. Two parts of a real node are replaced: the network namespace is that of the lab's node,
//! and mounts of the host come from a root directory of the test, except the cgroups.

use serde_json::json;

use super::*;
use crate::support::{UPLINK, run};

const OBSERVER: &str = "localhost/imds-observer:1";
const ID: &str = "5d41402abc4b2a76b9719d911017c592ae1f0c3e9b7d64f28a05e6b3c1f7d892";
const POD_UID: &str = "c81e728d-9d4c-4f63-8f06-7f89cc14862c";
const NODE_NAME: &str = "ip-10-77-0-5.ec2.internal";

/// Settings from the manifests.
struct Manifests {
    pod: Value,
    container: Value,
    config: String,
}

impl Manifests {
    fn read() -> Self {
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes");
        let code = "import json, sys, yaml\nprint(json.dumps([yaml.safe_load(open(path)) for path in sys.argv[1:]]))";
        let text = succeed(
            Command::new(crate::support::tool_directory().join("deploy/bin/python3"))
                .args(["-c", code])
                .arg(deploy.join("daemonset.yaml"))
                .arg(deploy.join("configmap.yaml")),
        );
        let mut all: Vec<Value> = serde_json::from_str(&text).unwrap();
        let (config, mut daemonset) = (all.pop().unwrap(), all.pop().unwrap());
        let pod = daemonset["spec"]["template"]["spec"].take();
        let containers = pod["containers"].as_array().unwrap();
        assert_eq!((containers.len(), &pod["initContainers"]), (1, &Value::Null));
        Self {
            container: containers[0].clone(),
            config: config["data"]["config.toml"].as_str().unwrap().to_owned(),
            pod,
        }
    }

    /// Capabilities with the kernel's prefix `CAP_`, sorted.
    fn capabilities(&self) -> Vec<String> {
        let capabilities = &self.container["securityContext"]["capabilities"];
        assert_eq!(capabilities["drop"], json!(["ALL"]));
        let mut names: Vec<String> = list(&capabilities["add"])
            .iter()
            .map(|name| format!("CAP_{}", name.as_str().unwrap()))
            .collect();
        names.sort_unstable();
        names
    }

    /// Environment variables that kubelet sets in the container.
    fn environment(&self, lab: &Lab) -> Vec<(String, String)> {
        list(&self.container["env"])
            .iter()
            .map(|variable| {
                let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                    Some("spec.nodeName") => NODE_NAME.to_owned(),
                    Some("status.hostIP") => lab.node().ipv4().to_string(),
                    other => panic!("{other:?}: this test doesn't know what kubelet makes of it"),
                };
                (variable["name"].as_str().unwrap().to_owned(), value)
            })
            .collect()
    }

    fn arguments(&self, environment: &[(String, String)]) -> Vec<String> {
        list(&self.container["args"])
            .iter()
            .map(|argument| {
                environment
                    .iter()
                    .fold(argument.as_str().unwrap().to_owned(), |argument, (name, value)| {
                        argument.replace(&format!("$({name})"), value)
                    })
            })
            .collect()
    }

    /// Mounts of an OCI configuration, as kubelet and containerd create them from volumes.
    fn mounts(&self, node: &Node) -> Vec<Value> {
        let volumes = list(&self.pod["volumes"]);
        list(&self.container["volumeMounts"])
            .iter()
            .map(|mount| {
                let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]);
                let volume = volume.expect("each mount has its volume");
                let source = match volume["hostPath"]["path"].as_str() {
                    // This tree exists only once per host.
                    Some("/sys/fs/cgroup") => PathBuf::from("/sys/fs/cgroup"),
                    Some(path) => node.path(path.trim_start_matches('/')),
                    None => self.config_volume(node),
                };
                assert!(source.is_dir(), "{}: kubelet would refuse it", source.display());
                let propagation = match mount["mountPropagation"].as_str() {
                    None => "rprivate",
                    Some("HostToContainer") => "rslave",
                    other => panic!("{other:?}: this test doesn't know it"),
                };
                let access = if mount["readOnly"] == true { "ro" } else { "rw" };
                json!({
                    "destination": mount["mountPath"], "type": "bind", "source": source,
                    "options": ["rbind", propagation, access],
                })
            })
            .collect()
    }

    /// A ConfigMap's volume, with symbolic links as kubelet creates them.
    fn config_volume(&self, node: &Node) -> PathBuf {
        let volume = node.path("config");
        fs::create_dir_all(volume.join("..2026_11_28")).unwrap();
        fs::write(volume.join("..2026_11_28/config.toml"), &self.config).unwrap();
        symlink("..2026_11_28", volume.join("..data")).unwrap();
        symlink("..data/config.toml", volume.join("config.toml")).unwrap();
        volume
    }

    /// URLs of the container's probes, which kubelet requests.
    fn probes(&self, address: &str) -> Vec<String> {
        ["startupProbe", "livenessProbe", "readinessProbe"]
            .iter()
            .map(|probe| {
                let get = &self.container[*probe]["httpGet"];
                let port = list(&self.container["ports"])
                    .iter()
                    .find(|port| port["name"] == get["port"])
                    .expect("probes name a port")["containerPort"]
                    .as_u64()
                    .unwrap();
                format!("http://{address}:{port}{}", get["path"].as_str().unwrap())
            })
            .collect()
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Bytes of a quantity such as `256Mi`.
fn bytes(quantity: &Value) -> u64 {
    let number = quantity.as_str().unwrap().strip_suffix("Mi").expect("in Mi");
    number.parse::<u64>().unwrap() << 20
}

/// The program's path in the image, and the libraries that it needs. There are none if it is linked statically, as in the released image
/// (`IMDS_OBSERVER_TEST_PROGRAM`).
fn image_content(node: &Node) -> PathBuf {
    let content = node.path("image");
    fs::create_dir_all(&content).unwrap();
    let program = crate::support::program();
    succeed(
        Command::new("strip")
            .args(["--strip-debug", "-o"])
            .arg(content.join("imds-observer"))
            .arg(&program),
    );
    // A static program needs no libraries, for which `ldd` returns an error.
    let listed = Command::new("ldd").arg(&program).output().expect("run ldd");
    for word in String::from_utf8_lossy(&listed.stdout).split_whitespace() {
        if word.starts_with('/') && !word.ends_with(':') {
            let to = content.join(word.trim_start_matches('/'));
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(word, to).unwrap();
        }
    }
    content
}

impl Containerd {
    /// The OCI specification that containerd creates from the pod's security context, and the image's root directory.
    fn specification(&self, flags: &[String]) -> (Value, PathBuf) {
        succeed(
            self.ctr()
                .args([
                    "containers",
                    "create",
                    "--snapshotter",
                    "native",
                    "--seccomp",
                    "--read-only",
                ])
                .args(flags)
                .args([OBSERVER, "made", "/imds-observer"]),
        );
        let information: Value =
            serde_json::from_str(&succeed(self.ctr().args(["containers", "info", "made"]))).unwrap();
        // `mount -t bind SOURCE TARGET -o ...`
        let mounts = succeed(
            self.ctr()
                .args(["snapshots", "--snapshotter", "native", "mounts", "/", "made"]),
        );
        let source = mounts.split_whitespace().nth(3).expect("the snapshot's directory");
        (information["Spec"].clone(), PathBuf::from(source))
    }
}

/// The OCI configuration of the pod in the manifests. containerd generates most of it. This function makes the changes of the CRI plugin
/// for such a pod, because `ctr` has no flags for them.
fn specification(lab: &Lab, node: &Node, containerd: &Containerd, manifests: &Manifests) -> Value {
    let security = &manifests.container["securityContext"];
    assert_eq!(
        (&security["privileged"], &security["allowPrivilegeEscalation"]),
        (&false.into(), &false.into())
    );
    assert_eq!(
        (
            &security["runAsUser"],
            &security["runAsGroup"],
            &security["readOnlyRootFilesystem"]
        ),
        (&0.into(), &0.into(), &true.into())
    );
    assert_eq!(
        manifests.pod["securityContext"]["seccompProfile"]["type"],
        "RuntimeDefault"
    );
    assert_eq!(
        (
            &manifests.pod["hostNetwork"],
            &manifests.pod["hostPID"],
            &manifests.pod["hostIPC"]
        ),
        (&true.into(), &true.into(), &Value::Null)
    );
    let limits = &manifests.container["resources"]["limits"];
    assert_eq!(limits["cpu"], "1");

    let environment = manifests.environment(lab);
    let mut flags = vec![
        format!("--memory-limit={}", bytes(&limits["memory"])),
        "--cpu-period=100000".to_owned(),
        "--cpu-quota=100000".to_owned(),
        format!("--with-ns=network:{}", lab.node().netns().path().display()),
    ];
    flags.extend(environment.iter().map(|(name, value)| format!("--env={name}={value}")));
    // The seccomp profile depends on the capabilities, so containerd must know them.
    flags.extend(manifests.capabilities().iter().map(|name| format!("--cap-add={name}")));
    flags.extend(
        [
            ("io.kubernetes.cri.container-type", "container"),
            ("io.kubernetes.cri.container-name", "imds-observer"),
            ("io.kubernetes.cri.sandbox-name", "imds-observer-x7k2p"),
            ("io.kubernetes.cri.sandbox-namespace", "imds-observer"),
            ("io.kubernetes.cri.sandbox-uid", POD_UID),
        ]
        .iter()
        .map(|(key, value)| format!("--annotation={key}={value}")),
    );
    let (mut made, root) = containerd.specification(&flags);

    made["root"]["path"] = json!(root);
    assert_eq!(made["root"]["readonly"], true);
    assert_eq!(made["process"]["noNewPrivileges"], true);
    // ctr would otherwise parse the program's options.
    let mut command = vec!["/imds-observer".to_owned()];
    command.extend(manifests.arguments(&environment));
    made["process"]["args"] = json!(command);
    let capabilities = json!(manifests.capabilities());
    made["process"]["capabilities"] =
        json!({"bounding": capabilities, "effective": capabilities, "permitted": capabilities});
    made["linux"]["cgroupsPath"] = json!(format!("/imdslab-{}/kubepods/burstable/pod{POD_UID}/{ID}", lab.id()));
    // hostPID; and hostNetwork also implies the host's UTS namespace.
    let namespaces = made["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "pid" && namespace["type"] != "uts");
    // As on nodes with cgroup v2.
    namespaces.push(json!({"type": "cgroup"}));
    let mounts = made["mounts"].as_array_mut().unwrap();
    // Pods have no mount at /run.
    mounts.retain(|mount| mount["destination"] != "/run");
    mounts.push(json!({
        "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
        "options": ["nosuid", "noexec", "nodev", "relatime", "ro"],
    }));
    mounts.extend(manifests.mounts(node));
    made
}

/// PID of the container's task, as listed by containerd.
fn pid_of(containerd: &Containerd) -> u32 {
    let tasks = succeed(containerd.ctr().args(["tasks", "list"]));
    let line = tasks.lines().find(|line| line.starts_with(ID));
    let line = line.unwrap_or_else(|| panic!("no task {ID}: {tasks}"));
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
#[ignore = "live"]
fn the_daemonset_names_a_pod_that_loses_its_token() {
    let manifests = Manifests::read();
    // The default hop limit of 1 is the fault.
    let lab = lab(LabOptions::default());
    let _remains = CgroupRemains(format!("imdslab-{}", lab.id()));
    let node = Node::new();
    node.build_image();
    node.commit(&image_content(&node), "/imds-observer", OBSERVER);
    for directory in ["var/log/pods", "var/log/containers"] {
        fs::create_dir_all(node.path(directory)).unwrap();
    }
    let containerd = Containerd::start(&lab, &node);
    containerd.import(&node, IMAGE);
    containerd.import(&node, OBSERVER);
    let cni = CniNetwork::new(&lab, &node);
    fs::create_dir_all(node.path("run/containerd/io.containerd.runtime.v2.task")).unwrap();

    let configuration = node.path("config.json");
    let made = specification(&lab, &node, &containerd, &manifests);
    fs::write(&configuration, made.to_string()).unwrap();
    let mut ctr = containerd.ctr();
    ctr.args(["run", "--rm", "--runc-root"]).arg(node.path("run/runc"));
    ctr.arg("--config").arg(&configuration).arg(ID);
    let mut observer = Observer::start(&mut ctr);
    let start = observer.wait_for(|record| record["record"] == "start");
    assert_eq!(start["host"], NODE_NAME);
    assert_eq!(start["interfaces"], json!([UPLINK]));
    assert_eq!(start["missing"], json!([]), "{start}");
    println!("attached: {}", start["attached"]);

    // Confined by the observer itself, within the privileges from the runtime.
    let confinement = &start["confinement"];
    println!("confinement: {confinement}");
    assert_eq!(
        (&confinement["no_new_privs"], &confinement["seccomp"]),
        (&true.into(), &true.into())
    );
    let pid = pid_of(&containerd);
    let threads = crate::confined::threads(pid);
    let main = threads
        .iter()
        .find(|thread| thread.name.starts_with("imds-observer"))
        .unwrap();
    assert_eq!(
        main.permitted,
        crate::confined::for_maps(vec!["CAP_NET_ADMIN"]),
        "{threads:#?}"
    );
    assert_eq!(
        crate::confined::names(main.bounding),
        manifests.capabilities(),
        "what the container may ever have"
    );
    let own = |namespace: &str| fs::read_link(format!("/proc/self/ns/{namespace}")).unwrap();
    let its = |namespace: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
    assert_eq!(own("pid"), its("pid"));
    assert_ne!(own("mnt"), its("mnt"));
    assert_ne!(own("cgroup"), its("cgroup"));
    assert_eq!(
        its("net").to_str().unwrap(),
        format!("net:[{}]", lab.node().netns().inode())
    );
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let mut writable: Vec<&str> = mounts
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            fields[5].split(',').all(|option| option != "ro").then_some(fields[4])
        })
        .collect();
    // Excluded are the runtime's own mounts and, on hybrid hosts, the trees of the controllers, which are mounts below the read-only one.
    let besides = ["/proc", "/dev", "/sys/fs/cgroup", "/host/sys/fs/cgroup/"];
    writable.retain(|point| !besides.iter().any(|below| point.starts_with(below)));
    assert_eq!(writable, [""; 0], "{mounts}");

    let address = lab.node().ipv4().to_string();
    let get = |url: &str| {
        let output = run(lab.node(), "curl", &["--silent", "--fail", "--max-time", "5", url]);
        assert!(output.status.success(), "{url}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let probes = manifests.probes(&address);
    for url in &probes {
        get(url);
    }

    // The client must fail, because the response never arrives.
    let lost = containerd
        .client(&lab, &cni, ANNOTATED, "/latest/api/token", ANNOTATIONS, None)
        .output()
        .unwrap();
    assert!(!lost.status.success(), "the token came: {lost:?}");
    let finding = observer.wait_for(|record| {
        record["code"] == "token-response-lost" && record["subject"]["container"]["id"] == ANNOTATED
    });
    let subject = &finding["subject"];
    assert_eq!(
        subject["container"],
        json!({
            "id": ANNOTATED, "runtime": "containerd", "name": "api", "image": "registry.example/api:1.4",
            "pod": {"namespace": "payments", "name": "api-7c9d8b6f5d-x2x4z", "uid": UID},
        })
    );
    let process = &subject["process"];
    assert_eq!(
        (&process["comm"], &process["namespace_pid"], &process["cmdline"][0]),
        (&"client".into(), &1.into(), &"/client".into()),
        "{process}"
    );
    assert!(process["exe"].as_str().unwrap().ends_with("/client"), "{process}");
    assert!(process["pid"].as_u64().unwrap() > 1, "the host's number: {process}");
    assert_eq!(
        process["cgroup"],
        format!("/imdslab-{}/kubepods/besteffort/pod{UID}/{ANNOTATED}", lab.id())
    );
    // The function's name comes from the kernel's symbols.
    assert_eq!(finding["evidence"]["drop"], "IP_INHDR@ip_forward", "{finding}");
    assert_eq!(finding["evidence"]["response_ttl"], 1);

    let metrics = get(&format!("{}/metrics", probes[0].rsplit_once('/').unwrap().0));
    for series in [
        "imds_findings_total{code=\"token-response-lost\"",
        "imds_exchanges_total{",
        "process_resident_memory_bytes",
    ] {
        assert!(metrics.contains(series), "{series}: {metrics}");
    }
    // kubelet ends a container with this signal.
    succeed(containerd.ctr().args(["tasks", "kill", "--signal", "SIGTERM", ID]));
    let finished = observer.finished();
    let total = finished.kind("summary").pop().expect("a last summary");
    assert_eq!(total["total"], true);
    let loss = finished.kind("loss").pop().expect("a last loss record");
    assert_eq!(loss["ring_buffer"], 0, "{loss}");
}
