//! Whose metadata protocol a request speaks, and one table for each protocol. A probe for another cloud is not a request without a token.

mod alibaba;
mod aws;
mod azure;
mod ecs;
mod eks_pod_identity;
mod gcp;
mod huawei;
mod ibm;
mod linode;
mod mmds;
mod openstack;
mod oracle;
mod others;
mod table;

use std::net::IpAddr;

pub use table::{Protocol, Refusal, TokenProtocol};

use super::endpoint::service_at;
use super::path::{is_aws_path, normalise};
use crate::http::Header;
use crate::record::Dialect;

impl Dialect {
    /// Description of the protocol.
    pub fn protocol(self) -> &'static Protocol {
        match self {
            Self::Aws => &aws::PROTOCOL,
            Self::EksPodIdentity => &eks_pod_identity::PROTOCOL,
            Self::Ecs => &ecs::PROTOCOL,
            Self::Gcp => &gcp::PROTOCOL,
            Self::Azure => &azure::PROTOCOL,
            Self::Oracle => &oracle::PROTOCOL,
            Self::Openstack => &openstack::PROTOCOL,
            Self::Huawei => &huawei::PROTOCOL,
            Self::Alibaba => &alibaba::PROTOCOL,
            Self::Ibm => &ibm::PROTOCOL,
            Self::Linode => &linode::PROTOCOL,
            Self::Digitalocean => &others::DIGITALOCEAN,
            Self::Hetzner => &others::HETZNER,
            Self::Scaleway => &others::SCALEWAY,
            Self::Mmds => &mmds::PROTOCOL,
            Self::Unknown => &others::UNKNOWN,
        }
    }
}

/// Which headers the request has.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hints {
    /// The first header that decides the dialect alone.
    sure: Option<Dialect>,
    azure: bool,
    /// `X-Metadata-Token` or `X-Metadata-Token-Ttl-Seconds`: Huawei or Firecracker.
    metadata_token: bool,
    authorization: bool,
}

impl Hints {
    pub(super) fn note(&mut self, header: &Header<'_>) {
        let is_value = |value: &[u8]| header.value.eq_ignore_ascii_case(value);
        if header.is("metadata-flavor") && is_value(b"google") {
            self.sure.get_or_insert(Dialect::Gcp);
        } else if header.is("metadata-flavor") && is_value(b"ibm") {
            self.sure.get_or_insert(Dialect::Ibm);
        } else if header.is("x-aliyun-ecs-metadata-token") || header.is("x-aliyun-ecs-metadata-token-ttl-seconds") {
            self.sure.get_or_insert(Dialect::Alibaba);
        } else if header.is("metadata-token") || header.is("metadata-token-expiry-seconds") {
            self.sure.get_or_insert(Dialect::Linode);
        } else if header.is("x-metadata-token") || header.is("x-metadata-token-ttl-seconds") {
            self.metadata_token = true;
        } else if header.is("authorization") {
            self.authorization = true;
        } else if header.is("metadata") {
            self.azure |= is_value(b"true");
        }
    }
}

/// An endpoint of one service speaks its protocol alone. Else headers win over paths: several clouds share the EC2 tree.
pub(super) fn dialect(path: &str, hints: Hints, token_header: bool, address: Option<IpAddr>) -> Dialect {
    if let Some(dialect) = address.and_then(service_at).and_then(|service| service.dialect) {
        return dialect;
    }
    let normal = normalise(path);
    // GCP and Azure have trees of their own: their headers make no difference to how IMDS answers a path of EC2's tree.
    let is_ec2_tree = normal != "/" && is_aws_path(&normal);
    match hints.sure {
        Some(Dialect::Gcp | Dialect::Ibm | Dialect::Linode) if is_ec2_tree => return Dialect::Aws,
        Some(dialect) => return dialect,
        None => {}
    }
    let below = |root: &str| {
        normal
            .strip_prefix(root)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    if below("/meta-data/latest/api") {
        return Dialect::Huawei;
    }
    if token_header {
        return Dialect::Aws;
    }
    if hints.metadata_token {
        // Both also serve EC2's tree with this header: Firecracker's token path is in it, Huawei's isn't.
        return if below("/openstack") {
            Dialect::Huawei
        } else {
            Dialect::Mmds
        };
    }
    if is_ec2_tree {
        return Dialect::Aws;
    }
    let versioned = || path.contains("version=") && !path.contains("api-version=");
    if below("/computeMetadata") {
        Dialect::Gcp
    } else if below("/instance_identity")
        || below("/identity/v1")
        || below("/metadata/v1") && (hints.authorization || versioned())
    {
        Dialect::Ibm
    } else if below("/metadata/v1") || normal == "/metadata/v1.json" {
        Dialect::Digitalocean
    } else if below("/metadata") || hints.azure {
        Dialect::Azure
    } else if below("/opc") {
        Dialect::Oracle
    } else if below("/openstack") && normal.ends_with("/securitykey") {
        Dialect::Huawei
    } else if below("/openstack") {
        Dialect::Openstack
    } else if below("/hetzner") {
        Dialect::Hetzner
    } else if is_aws_path(&normal) {
        Dialect::Aws
    } else {
        Dialect::Unknown
    }
}

/// The cloud whose metadata service names itself so.
pub fn cloud_of_server(server: &str) -> Option<Dialect> {
    let names = |dialect: &Dialect| dialect.protocol().servers.iter().any(|name| server.starts_with(name));
    Dialect::ALL.into_iter().find(names)
}

impl Protocol {
    /// Whether tokens are requested at a normalized path.
    pub fn is_token_path(&self, normal: &str) -> bool {
        self.token.is_some_and(|token| token.paths.contains(&normal))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The outputs are grepped for such commands.
    const AWS: &str = "aws ";

    #[test]
    fn each_dialect_has_the_table_of_its_name() {
        for dialect in Dialect::ALL {
            let protocol = dialect.protocol();
            assert_eq!(protocol.dialect, dialect);
            assert_eq!(Dialect::of_name(dialect.as_str()), Some(dialect));
            assert_eq!(
                serde_json::to_string(&dialect).unwrap(),
                format!("\"{}\"", dialect.as_str())
            );
            assert_eq!(
                protocol.documentation.is_empty(),
                dialect == Dialect::Unknown,
                "{dialect:?}"
            );
            for refusal in protocol.refusals {
                assert!(
                    !refusal.cause.is_empty() && refusal.remedy.ends_with('.'),
                    "{refusal:?}"
                );
            }
        }
    }

    #[test]
    fn only_services_of_aws_have_its_commands() {
        let of_aws = [Dialect::Aws, Dialect::EksPodIdentity, Dialect::Ecs];
        for protocol in Dialect::ALL.map(Dialect::protocol) {
            let shown = format!("{protocol:?}");
            assert!(of_aws.contains(&protocol.dialect) || !shown.contains(AWS), "{shown}");
        }
    }

    #[test]
    fn what_waits_for_a_change_hangs() {
        let gcp = Dialect::Gcp.protocol();
        assert!(gcp.hangs("/computeMetadata/v1/?recursive=true&wait_for_change=true&timeout_sec=60"));
        assert!(!gcp.hangs("/computeMetadata/v1/?recursive=true&wait_for_change=false"));
        assert!(!gcp.hangs("/computeMetadata/v1/wait_for_change=true"));
        assert!(!Dialect::Aws.protocol().hangs("/latest/?wait_for_change=true"));
    }

    #[test]
    fn the_most_specific_refusal_counts() {
        let cause = |dialect: Dialect, status, path, forwarded| {
            dialect
                .protocol()
                .refusal(status, path, forwarded)
                .map(|refusal| refusal.cause)
        };
        assert_eq!(
            cause(Dialect::EksPodIdentity, 404, "/v1/credentials", false),
            Some("no-association")
        );
        assert_eq!(cause(Dialect::EksPodIdentity, 404, "/", false), None);
        assert_eq!(
            cause(Dialect::Ecs, 503, "/v2/credentials/[redacted]", false),
            Some("not-ready")
        );
        assert_eq!(cause(Dialect::Ecs, 503, "/v4/[redacted]/stats", false), Some("agent"));
        let token = "/computeMetadata/v1/instance/service-accounts/default/token";
        assert_eq!(cause(Dialect::Gcp, 403, token, false), Some("permission"));
        assert_eq!(cause(Dialect::Gcp, 403, token, true), Some("forwarded"));
        assert_eq!(
            cause(Dialect::Gcp, 403, "/computeMetadata/v1/instance/id", false),
            Some("header")
        );
        assert_eq!(
            cause(Dialect::Oracle, 404, "/opc/v1/instance", false),
            Some("v1-disabled")
        );
        assert_eq!(cause(Dialect::Oracle, 404, "/opc/v2/nothing", false), None);
        assert_eq!(
            cause(Dialect::Azure, 410, "/metadata/instance", false),
            Some("updating")
        );
    }
}
