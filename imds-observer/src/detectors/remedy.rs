//! What to do: commands with this instance's id, the setting of the client that was seen, and when another way is better.

use super::Context;
use super::connectivity::Failure;
use crate::host_facts::HostFacts;
use crate::imds::Protocol;
use crate::record::{Container, NodeOwnerKind, Remedy};

/// Placeholder in commands where the instance's id isn't known.
const PLACEHOLDER: &str = "INSTANCE_ID";

pub(super) fn instance_id(host: &HostFacts) -> &str {
    host.instance_id.as_deref().unwrap_or(PLACEHOLDER)
}

/// `aws ec2 modify-instance-metadata-options` with these options; none where they can't be changed.
pub(super) fn modify_options(host: &HostFacts, options: &str) -> Vec<String> {
    let is_fixed = options_are_fixed(host);
    (!is_fixed)
        .then(|| modify_instance(host, options))
        .into_iter()
        .collect()
}

fn modify_instance(host: &HostFacts, options: &str) -> String {
    format!(
        "aws ec2 modify-instance-metadata-options --instance-id {} {options}",
        instance_id(host)
    )
}

/// An option of instance metadata, with its new value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MetadataOption {
    HopLimit(u8),
    EndpointEnabled,
}

impl MetadataOption {
    /// For `aws ec2 modify-instance-metadata-options`.
    fn argument(self) -> String {
        match self {
            Self::HopLimit(limit) => format!("--http-put-response-hop-limit {limit}"),
            Self::EndpointEnabled => "--http-endpoint enabled".to_owned(),
        }
    }

    /// In `MetadataOptions` of a launch template.
    fn of_template(self) -> String {
        match self {
            Self::HopLimit(limit) => format!(r#""HttpPutResponseHopLimit":{limit}"#),
            Self::EndpointEnabled => r#""HttpEndpoint":"enabled""#.to_owned(),
        }
    }

    /// In `metadataOptions` of Karpenter's EC2NodeClass.
    fn of_node_class(self) -> String {
        match self {
            Self::HopLimit(limit) => format!(r#""httpPutResponseHopLimit":{limit}"#),
            Self::EndpointEnabled => r#""httpEndpoint":"enabled""#.to_owned(),
        }
    }
}

/// How to change an option so that it lasts: what creates the next instance decides its options. The text is the end of a remedy's, or
/// empty; the commands are the lasting ones first, then the one for this instance.
pub(super) fn change_option(host: &HostFacts, option: MetadataOption) -> (String, Vec<String>) {
    const UNTIL_NEXT: &str = "  # this instance only, until the next node";
    let quick = modify_instance(host, &option.argument());
    let Some(owner) = &host.node_owner else {
        let text = " If an Auto Scaling group, Karpenter or another tool creates this host's instances (unknown here), change its launch \
                    template too: the next instance has the old value otherwise.";
        return (text.to_owned(), vec![quick]);
    };
    let launch_template = owner.launch_template.as_deref().unwrap_or("LAUNCH_TEMPLATE");
    let template = || {
        format!(
            "aws ec2 create-launch-template-version --launch-template-id {launch_template} --source-version '$Latest' \
             --launch-template-data '{{\"MetadataOptions\":{{{}}}}}'",
            option.of_template()
        )
    };
    let quick_after = |mut lasting: Vec<String>| {
        lasting.push(format!("{quick}{UNTIL_NEXT}"));
        lasting
    };
    let name = |placeholder: &'static str| owner.name.as_deref().unwrap_or(placeholder).to_owned();
    match owner.kind {
        NodeOwnerKind::Karpenter => (
            " Karpenter creates this host's nodes: change its EC2NodeClass, and drift replaces the nodes.".to_owned(),
            quick_after(vec![format!(
                "kubectl patch ec2nodeclass {} --type merge -p '{{\"spec\":{{\"metadataOptions\":{{{}}}}}}}'",
                name("EC2NODECLASS"),
                option.of_node_class()
            )]),
        ),
        NodeOwnerKind::EksManagedNodeGroup => {
            let text = if owner.launch_template.is_some() {
                " A managed node group of EKS creates this host's nodes: change its launch template, and update the group."
            } else {
                " A managed node group of EKS creates this host's nodes. Look up its launch template (the first command). If it has one, \
                 change it, and update the group. If it has none, create another group with one: a group that was created without a \
                 launch template can't be given one."
            };
            let group = name("NODEGROUP");
            let look = format!(
                "aws eks describe-nodegroup --cluster-name CLUSTER --nodegroup-name {group} --query nodegroup.launchTemplate"
            );
            let update = format!(
                "aws eks update-nodegroup-version --cluster-name CLUSTER --nodegroup-name {group} --launch-template \
                 id={launch_template},version=VERSION"
            );
            let look = owner.launch_template.is_none().then_some(look);
            (
                text.to_owned(),
                quick_after(look.into_iter().chain([template(), update]).collect()),
            )
        }
        NodeOwnerKind::EksAutoMode => {
            // On the host's network there is no hop; a disabled endpoint answers there neither.
            let host_network = match option {
                MetadataOption::HopLimit(_) => ", run it with hostNetwork",
                MetadataOption::EndpointEnabled => "",
            };
            (
                format!(
                    " EKS Auto Mode creates this host's nodes, and their metadata options can't be changed. Give the pod a role by EKS \
                     Pod Identity{host_network}, or set AWS_EC2_METADATA_DISABLED=true for it."
                ),
                Vec::new(),
            )
        }
        NodeOwnerKind::Eksctl => (
            " eksctl created this host's node group: give the group a launch template with the option, and replace its nodes.".to_owned(),
            quick_after(vec![template()]),
        ),
        NodeOwnerKind::Ecs => (
            " This host is an instance of an ECS cluster: change the launch template of its capacity provider's Auto Scaling group, let \
             the group use the new version, and start an instance refresh."
                .to_owned(),
            quick_after(vec![
                template(),
                "aws autoscaling start-instance-refresh --auto-scaling-group-name GROUP".to_owned(),
            ]),
        ),
    }
}

/// Whether the options of this host's instance can't be changed at all.
pub(super) fn options_are_fixed(host: &HostFacts) -> bool {
    host.node_owner
        .as_ref()
        .is_some_and(|owner| owner.kind == NodeOwnerKind::EksAutoMode)
}

/// Shows what the instance's metadata options are now.
pub(super) fn describe_options(host: &HostFacts) -> String {
    format!(
        "aws ec2 describe-instances --instance-ids {} --query 'Reservations[].Instances[].MetadataOptions'",
        instance_id(host)
    )
}

pub(super) fn text(text: impl Into<String>) -> Remedy {
    Remedy {
        text: text.into(),
        commands: Vec::new(),
    }
}

/// Where the vendor describes the service, as the end of a text.
pub(super) fn documented(protocol: &Protocol) -> String {
    match protocol.documentation {
        "" => String::new(),
        page => format!(" See {page}."),
    }
}

/// Which client library a user agent belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sdk {
    Botocore,
    GoV1,
    GoV2,
    Java,
    JavaScript,
    Rust,
    Ruby,
    DotNet,
    Crt,
    Curl,
    Other,
}

impl Sdk {
    pub(super) fn of(user_agent: Option<&str>) -> Self {
        let Some(agent) = user_agent else { return Self::Other };
        let agent = agent.to_ascii_lowercase();
        let has = |part: &str| agent.contains(part);
        if has("botocore") || has("boto3") || has("aws-cli") {
            Self::Botocore
        } else if has("ec2imds") || has("aws-sdk-go-v2") {
            Self::GoV2
        } else if has("aws-sdk-go") {
            Self::GoV1
        } else if has("aws-sdk-java") {
            Self::Java
        } else if has("aws-sdk-js") || has("aws-sdk-nodejs") {
            Self::JavaScript
        } else if has("aws-sdk-rust") || has("api/imds") {
            Self::Rust
        } else if has("aws-sdk-ruby") {
            Self::Ruby
        } else if has("aws-sdk-dotnet") {
            Self::DotNet
        } else if has("aws-sdk-crt") {
            Self::Crt
        } else if agent.starts_with("curl/") {
            Self::Curl
        } else {
            Self::Other
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Botocore => "botocore (boto3, AWS CLI)",
            Self::GoV1 => "AWS SDK for Go v1",
            Self::GoV2 => "AWS SDK for Go v2",
            Self::Java => "AWS SDK for Java",
            Self::JavaScript => "AWS SDK for JavaScript",
            Self::Rust => "AWS SDK for Rust",
            Self::Ruby => "AWS SDK for Ruby",
            Self::DotNet => "AWS SDK for .NET",
            Self::Crt => "AWS CRT",
            Self::Curl => "curl",
            Self::Other => "this client",
        }
    }

    /// How this client is configured never to ask without a token, or how it is made to ask with one.
    pub(super) fn without_v1(self) -> &'static str {
        match self {
            Self::Botocore | Self::Java | Self::JavaScript | Self::GoV2 | Self::Ruby | Self::DotNet => {
                "Set AWS_EC2_METADATA_V1_DISABLED=true (or ec2_metadata_v1_disabled = true in the profile) in a current version of the SDK, so that it fails instead of sending requests without a token."
            }
            Self::GoV1 => {
                "Update to aws-sdk-go 1.49 or later and set AWS_EC2_METADATA_V1_DISABLED=true, or migrate to v2."
            }
            Self::Rust => "The Rust SDK never sends requests without a token; find the other code that does.",
            Self::Crt => {
                "Update the AWS CRT and the software that includes it: current versions request a token first."
            }
            Self::Curl => {
                "Get a token first: TOKEN=$(curl -sX PUT http://169.254.169.254/latest/api/token -H \
                 'X-aws-ec2-metadata-token-ttl-seconds: 21600'), then send it as X-aws-ec2-metadata-token."
            }
            Self::Other => {
                "Update the client or its SDK to a version that uses IMDSv2 (a token from PUT /latest/api/token)."
            }
        }
    }

    /// Effect of a lost token response on this client, and a setting of the client that helps until the hop limit is right.
    pub(super) fn without_token(self) -> &'static str {
        match self {
            Self::Botocore => {
                " botocore waits 1 s (AWS_METADATA_SERVICE_TIMEOUT) each time credentials are loaded, and again in every process; a longer timeout only lengthens the wait. If it has other credentials, set AWS_EC2_METADATA_DISABLED=true."
            }
            Self::DotNet => {
                " The SDK for .NET retries for about 16 s before it continues. If it has other credentials, set AWS_EC2_METADATA_DISABLED=true."
            }
            Self::Rust => {
                " The SDK for Rust doesn't fall back to IMDSv1: it fails after its retries. If it has other credentials, set AWS_EC2_METADATA_DISABLED=true."
            }
            Self::GoV1 | Self::GoV2 | Self::Java | Self::JavaScript | Self::Ruby | Self::Crt => {
                " If this SDK has other credentials, set AWS_EC2_METADATA_DISABLED=true so that it doesn't wait for IMDS."
            }
            Self::Curl | Self::Other => "",
        }
    }

    /// How this client keeps its token and credentials from one request to the next.
    pub(super) fn reuse(self) -> &'static str {
        match self {
            Self::Botocore => {
                "Create one boto3/botocore Session and reuse it: each new Session loads credentials with a new token. The AWS CLI does so at each start: run it less often, or provide credentials through credential_process."
            }
            Self::JavaScript => {
                "Create one credential provider (and one client) and reuse it for the life of the process: each provider call requests a new token."
            }
            Self::GoV1 | Self::GoV2 => {
                "Create one config and one IMDS client at start-up and share them: a client created per call starts without a token."
            }
            Self::Java | Self::Ruby | Self::DotNet | Self::Rust | Self::Crt => {
                "Create one credentials provider and share it between clients: it caches token and credentials."
            }
            Self::Curl => "Keep the token in a variable for its lifetime, and request a new one only after a 401.",
            Self::Other => "Cache the token for its lifetime (up to 21600 s), and request a new one only after a 401.",
        }
    }
}

/// When pods should get credentials some other way than through the host's role.
pub(super) fn pods_better_way(container: Option<&Container>) -> &'static str {
    match container {
        Some(container) if container.pod.is_some() => {
            " For pods that need AWS credentials, prefer IRSA or EKS Pod Identity, which give the pod its own role. hostNetwork: true avoids the hop, but exposes the host's whole network to the pod."
        }
        Some(_) => {
            " A container can also share the host's network (no hop), or get credentials from a task or pod role."
        }
        None => "",
    }
}

/// A host route to the endpoint of this failure, through the gateway where that is known.
pub(super) fn route_add(failure: &Failure, context: &Context<'_>) -> String {
    let host = context.host;
    let interface = host.uplink.as_deref().unwrap_or("INTERFACE");
    if failure.v6 {
        return format!("ip -6 route add {}/128 dev {interface}", failure.endpoint());
    }
    let gateway = host.gateway.as_deref().unwrap_or("GATEWAY");
    format!("ip route add {}/32 via {gateway} dev {interface}", failure.endpoint())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::record::NodeOwner;

    fn of(owner: Option<(NodeOwnerKind, &str)>) -> (String, Vec<String>) {
        let host = HostFacts {
            instance_id: Some("i-0123456789abcdef0".to_owned()),
            node_owner: owner.map(|(kind, name)| NodeOwner {
                kind,
                name: Some(name.to_owned()),
                launch_template: None,
            }),
            ..HostFacts::default()
        };
        change_option(&host, MetadataOption::HopLimit(2))
    }

    const QUICK: &str =
        "aws ec2 modify-instance-metadata-options --instance-id i-0123456789abcdef0 --http-put-response-hop-limit 2";

    #[rstest]
    #[case(
        NodeOwnerKind::Karpenter,
        "kubectl patch ec2nodeclass web --type merge -p '{\"spec\":{\"metadataOptions\":{\"httpPutResponseHopLimit\":2}}}'"
    )]
    #[case(
        NodeOwnerKind::EksManagedNodeGroup,
        "--nodegroup-name web --launch-template id=LAUNCH_TEMPLATE,version=VERSION"
    )]
    #[case(NodeOwnerKind::Eksctl, "'{\"MetadataOptions\":{\"HttpPutResponseHopLimit\":2}}'")]
    #[case(NodeOwnerKind::Ecs, "aws autoscaling start-instance-refresh")]
    fn the_owner_of_a_node_has_the_lasting_command(#[case] kind: NodeOwnerKind, #[case] lasting: &str) {
        let (text, commands) = of(Some((kind, "web")));
        assert!(!text.is_empty());
        let (quick, before) = commands.split_last().unwrap();
        assert!(before.iter().any(|command| command.contains(lasting)), "{before:?}");
        assert_eq!(quick, &format!("{QUICK}  # this instance only, until the next node"));
    }

    #[test]
    fn an_unknown_owner_has_the_plain_command_and_the_text_says_so() {
        let (text, commands) = of(None);
        assert!(text.contains("unknown here"), "{text}");
        assert_eq!(commands, [QUICK]);
    }

    #[test]
    fn auto_mode_has_no_command() {
        let (text, commands) = of(Some((NodeOwnerKind::EksAutoMode, "default")));
        assert!(text.contains("can't be changed"), "{text}");
        assert_eq!(commands, [""; 0]);
    }

    #[test]
    fn a_node_group_without_a_known_launch_template_is_looked_up_first() {
        let (text, commands) = of(Some((NodeOwnerKind::EksManagedNodeGroup, "web")));
        assert!(text.contains("create another group"), "{text}");
        assert!(commands[0].starts_with("aws eks describe-nodegroup"), "{commands:?}");
        let host = HostFacts {
            node_owner: Some(NodeOwner {
                kind: NodeOwnerKind::EksManagedNodeGroup,
                name: Some("web".to_owned()),
                launch_template: Some("lt-0a1b".to_owned()),
            }),
            ..HostFacts::default()
        };
        let (_, commands) = change_option(&host, MetadataOption::HopLimit(2));
        assert!(commands[0].contains("--launch-template-id lt-0a1b "), "{commands:?}");
        assert!(commands[1].contains("id=lt-0a1b,"), "{commands:?}");
    }
}
