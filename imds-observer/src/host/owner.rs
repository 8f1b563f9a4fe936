//! What creates instances like this one? Its configuration decides the metadata options of the next one.
//!
//! Read without any API: the labels that kubelet gives its node, and the files of the ECS agent. Labels that are added to the node later,
//! through the API, are not seen.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

use crate::record::{NodeOwner, NodeOwnerKind};

/// Bytes of a file or a command line that are read.
const MAX_BYTES: u64 = 1 << 20;
/// Longest name that is kept: Kubernetes allows 253 characters.
const MAX_NAME: usize = 253;

/// Files with kubelet's arguments: EKS's AL2023 (nodeadm) and AL2 (bootstrap.sh) images, Bottlerocket, and Ubuntu's snap.
const FILES: &[&str] = &[
    "etc/eks/kubelet/environment",
    "etc/systemd/system/kubelet.service.d/30-kubelet-extra-args.conf",
    "etc/kubernetes/kubelet/env",
    "var/snap/kubelet-eks/current/args",
];

/// `processes`: where the host's `/proc` is; `root`: its root directory.
pub(super) fn owner(processes: &Path, root: &Path) -> Option<NodeOwner> {
    let files = || FILES.iter().filter_map(|file| read(&root.join(file)));
    kubelet(processes)
        .and_then(|arguments| of_labels(&labels(&arguments)))
        .or_else(|| files().find_map(|text| of_labels(&labels(&text))))
        .or_else(|| ecs(root))
}

/// The arguments of the running kubelet. Any process can take its name, so one counts only if it is root's, in the host's own PID
/// namespace, and not a pod's.
fn kubelet(processes: &Path) -> Option<String> {
    fs::read_dir(processes).ok()?.flatten().find_map(|entry| {
        let directory = entry.path();
        let is_process = entry.file_name().to_str()?.bytes().all(|byte| byte.is_ascii_digit());
        let is_named = is_process && read(&directory.join("comm"))?.trim_end() == "kubelet";
        let is_kubelet = is_named
            && is_of_the_host(&read(&directory.join("status"))?)
            && !read(&directory.join("cgroup"))?.contains("kubepods");
        is_kubelet.then(|| read(&directory.join("cmdline")))?
    })
}

/// By `/proc/PID/status`: the process runs as root, and has one PID only.
fn is_of_the_host(status: &str) -> bool {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map(|line| line.split_whitespace().collect::<Vec<_>>())
    };
    field("Uid:").is_some_and(|uids| uids.iter().all(|uid| *uid == "0"))
        && field("NSpid:").is_some_and(|pids| pids.len() == 1)
}

fn read(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// All of `--node-labels A=B,C=D` or `NODE_LABELS=A=B,C=D`, in a command line, a unit or an environment file.
fn labels(text: &str) -> Vec<(String, String)> {
    let mut labels = Vec::new();
    for name in ["--node-labels", "NODE_LABELS"] {
        for rest in text.split(name).skip(1) {
            let rest = rest.trim_start_matches(['=', ' ', '\0', '"', '\'']);
            let end = rest.find(|character: char| character.is_whitespace() || matches!(character, '\0' | '"' | '\''));
            let list = rest[..end.unwrap_or(rest.len())].split(',');
            labels.extend(
                list.filter_map(|label| label.split_once('='))
                    .map(|(name, value)| (name.to_owned(), value.to_owned())),
            );
        }
    }
    labels
}

fn of_labels(labels: &[(String, String)]) -> Option<NodeOwner> {
    let value = |name: &str| {
        labels
            .iter()
            .find(|(label, _)| label == name)
            .map(|(_, value)| value.as_str())
    };
    let named = |kind, name: Option<&str>| NodeOwner {
        kind,
        name: name.filter(|name| is_name(name)).map(str::to_owned),
        launch_template: value("eks.amazonaws.com/sourceLaunchTemplateId")
            .filter(|id| id.starts_with("lt-") && is_name(id))
            .map(str::to_owned),
    };
    if value("eks.amazonaws.com/compute-type") == Some("auto") {
        return Some(named(NodeOwnerKind::EksAutoMode, value("eks.amazonaws.com/nodeclass")));
    }
    if let Some(class) = value("karpenter.k8s.aws/ec2nodeclass") {
        return Some(named(NodeOwnerKind::Karpenter, Some(class)));
    }
    if value("karpenter.sh/nodepool").is_some() {
        return Some(named(NodeOwnerKind::Karpenter, None));
    }
    // eksctl's managed groups have both labels: the group counts.
    if let Some(group) = value("eks.amazonaws.com/nodegroup") {
        return Some(named(NodeOwnerKind::EksManagedNodeGroup, Some(group)));
    }
    value("alpha.eksctl.io/nodegroup-name").map(|group| named(NodeOwnerKind::Eksctl, Some(group)))
}

/// It goes into a command that a user copies.
fn is_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
        && !name.starts_with('-')
}

/// The ECS agent's configuration; the cluster `default` need not be named.
fn ecs(root: &Path) -> Option<NodeOwner> {
    let agent = root.join("var/lib/ecs/data").is_dir() || root.join("etc/ecs/ecs.config").is_file();
    let cluster = || {
        let text = read(&root.join("etc/ecs/ecs.config"))?;
        let mut lines = text.lines().filter_map(|line| line.trim().strip_prefix("ECS_CLUSTER="));
        lines.next_back().map(|name| name.trim_matches(['"', '\'']).to_owned())
    };
    agent.then(|| NodeOwner {
        kind: NodeOwnerKind::Ecs,
        name: cluster().filter(|name| is_name(name)),
        launch_template: None,
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn of(files: &[(&str, &str)]) -> Option<(NodeOwnerKind, Option<String>)> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        owner(&root.path().join("proc"), root.path()).map(|owner| (owner.kind, owner.name))
    }

    const STATUS: &str = "Name:\tkubelet\nNSpid:\t812\nUid:\t0\t0\t0\t0\n";
    const CGROUP: &str = "0::/runtime.slice/kubelet.service\n";

    fn process<'a>(comm: &'a str, cmdline: &'a str, status: &'a str, cgroup: &'a str) -> [(&'static str, &'a str); 4] {
        [
            ("proc/812/comm", comm),
            ("proc/812/cmdline", cmdline),
            ("proc/812/status", status),
            ("proc/812/cgroup", cgroup),
        ]
    }

    /// Labels as Karpenter's, EKS's and eksctl's sources and documentation have them; names are made up.
    #[rstest]
    #[case::karpenter(
        "kubelet\0--node-labels=karpenter.sh/nodepool=default,karpenter.k8s.aws/ec2nodeclass=general\0--v=2\0",
        NodeOwnerKind::Karpenter,
        Some("general")
    )]
    #[case::apart(
        "kubelet\0--node-labels\0eks.amazonaws.com/nodegroup=web,eks.amazonaws.com/sourceLaunchTemplateId=lt-0a\0",
        NodeOwnerKind::EksManagedNodeGroup,
        Some("web")
    )]
    #[case::auto_mode(
        "kubelet\0--node-labels=eks.amazonaws.com/compute-type=auto,karpenter.sh/nodepool=system\0",
        NodeOwnerKind::EksAutoMode,
        None
    )]
    #[case::eksctl(
        "kubelet\0--node-labels=alpha.eksctl.io/cluster-name=c,alpha.eksctl.io/nodegroup-name=ng-1\0",
        NodeOwnerKind::Eksctl,
        Some("ng-1")
    )]
    #[case::hostile(
        "kubelet\0--node-labels=karpenter.k8s.aws/ec2nodeclass=$(reboot)\0",
        NodeOwnerKind::Karpenter,
        None
    )]
    fn kubelet_names_the_owner(#[case] cmdline: &str, #[case] kind: NodeOwnerKind, #[case] name: Option<&str>) {
        let found = of(&process("kubelet", cmdline, STATUS, CGROUP));
        assert_eq!(found, Some((kind, name.map(str::to_owned))));
    }

    #[test]
    fn files_name_the_owner_where_kubelet_is_not_visible() {
        let group = Some((NodeOwnerKind::EksManagedNodeGroup, Some("web".to_owned())));
        let nodeadm = r#"NODEADM_KUBELET_ARGS="--cloud-provider=external --node-labels=eks.amazonaws.com/nodegroup=web,a=b --v=2""#;
        assert_eq!(of(&[("etc/eks/kubelet/environment", nodeadm)]), group);
        let unit = "[Service]\nEnvironment='KUBELET_EXTRA_ARGS=--node-labels=eks.amazonaws.com/nodegroup=web'\n";
        assert_eq!(
            of(&[("etc/systemd/system/kubelet.service.d/30-kubelet-extra-args.conf", unit)]),
            group
        );
        let bottlerocket = "NODE_IP=10.0.0.1\nNODE_LABELS=eks.amazonaws.com/nodegroup=web\nNODE_TAINTS=\n";
        assert_eq!(of(&[("etc/kubernetes/kubelet/env", bottlerocket)]), group);
    }

    #[test]
    fn the_ecs_agent_names_its_cluster() {
        let ecs = |name: Option<&str>| Some((NodeOwnerKind::Ecs, name.map(str::to_owned)));
        assert_eq!(of(&[("etc/ecs/ecs.config", "ECS_CLUSTER=web\n")]), ecs(Some("web")));
        assert_eq!(of(&[("var/lib/ecs/data/agent.db", "")]), ecs(None));
    }

    #[test]
    fn without_a_sign_nothing_is_known() {
        assert_eq!(of(&[]), None);
        assert_eq!(of(&process("kubelet", "kubelet\0--v=2\0", STATUS, CGROUP)), None);
        let labels = "--node-labels=eks.amazonaws.com/nodegroup=x\0";
        assert_eq!(of(&process("bash", labels, STATUS, CGROUP)), None);
    }

    #[test]
    fn a_process_that_only_calls_itself_kubelet_does_not_count() {
        let labels = "kubelet\0--node-labels=eks.amazonaws.com/compute-type=auto\0";
        for (status, cgroup) in [
            (
                STATUS,
                "0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-2.scope\n",
            ),
            ("NSpid:\t812\t7\nUid:\t0\t0\t0\t0\n", CGROUP),
            ("NSpid:\t812\nUid:\t1000\t1000\t1000\t1000\n", CGROUP),
            ("", CGROUP),
        ] {
            assert_eq!(
                of(&process("kubelet", labels, status, cgroup)),
                None,
                "{status} {cgroup}"
            );
        }
    }

    #[test]
    fn every_list_of_labels_and_every_file_counts() {
        let group = Some((NodeOwnerKind::EksManagedNodeGroup, Some("web".to_owned())));
        let twice = "kubelet\0--node-labels=a=b\0--node-labels=eks.amazonaws.com/nodegroup=web\0";
        assert_eq!(of(&process("kubelet", twice, STATUS, CGROUP)), group);
        let mut files = process("kubelet", "kubelet\0--node-labels=a=b\0", STATUS, CGROUP).to_vec();
        files.push((
            "etc/kubernetes/kubelet/env",
            "NODE_LABELS=eks.amazonaws.com/nodegroup=web\n",
        ));
        assert_eq!(of(&files), group);
    }

    #[test]
    fn a_node_group_names_its_launch_template() {
        let template = |id: &str| {
            of_labels(&labels(&format!(
                "--node-labels=eks.amazonaws.com/nodegroup=web,eks.amazonaws.com/sourceLaunchTemplateId={id}"
            )))
        };
        assert_eq!(template("lt-0a1b").unwrap().launch_template.as_deref(), Some("lt-0a1b"));
        assert_eq!(template("$(reboot)").unwrap().launch_template, None);
    }
}
