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
    let arguments = kubelet(processes).or_else(|| {
        let mut texts = FILES.iter().filter_map(|file| read(&root.join(file)));
        texts.find_map(|text| labels(&text))
    });
    arguments.and_then(|labels| of_labels(&labels)).or_else(|| ecs(root))
}

/// The labels of the running kubelet.
fn kubelet(processes: &Path) -> Option<Vec<(String, String)>> {
    fs::read_dir(processes).ok()?.flatten().find_map(|entry| {
        let directory = entry.path();
        let is_process = entry.file_name().to_str()?.bytes().all(|byte| byte.is_ascii_digit());
        let is_kubelet = is_process && read(&directory.join("comm"))?.trim_end() == "kubelet";
        is_kubelet
            .then(|| read(&directory.join("cmdline")))?
            .as_deref()
            .and_then(labels)
    })
}

fn read(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// `--node-labels A=B,C=D` or `NODE_LABELS=A=B,C=D`, in a command line, a unit or an environment file.
fn labels(text: &str) -> Option<Vec<(String, String)>> {
    let names = ["--node-labels", "NODE_LABELS"];
    let (_, rest) = names.iter().find_map(|name| text.split_once(name))?;
    let rest = rest.trim_start_matches(['=', ' ', '\0', '"', '\'']);
    let end = rest.find(|character: char| character.is_whitespace() || matches!(character, '\0' | '"' | '\''));
    let list = &rest[..end.unwrap_or(rest.len())];
    let labels = list.split(',').filter_map(|label| label.split_once('='));
    Some(
        labels
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
    )
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
        let found = of(&[("proc/812/comm", "kubelet\n"), ("proc/812/cmdline", cmdline)]);
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
        assert_eq!(
            of(&[("proc/812/comm", "kubelet\n"), ("proc/812/cmdline", "kubelet\0--v=2\0")]),
            None
        );
        assert_eq!(
            of(&[
                ("proc/9/comm", "bash\n"),
                ("proc/9/cmdline", "bash\0--node-labels=eks.amazonaws.com/nodegroup=x\0")
            ]),
            None
        );
    }
}
