//! Whose metadata protocol a request speaks. A probe for another cloud is not a request without a token.

use super::path::{is_aws_path, normalise};
use crate::http::Header;
use crate::record::Dialect;

/// Dialect according to the headers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hints {
    /// The first header that decides it alone.
    sure: Option<Dialect>,
    azure: bool,
}

impl Hints {
    pub(super) fn note(&mut self, header: &Header<'_>) {
        let is_value = |value: &[u8]| header.value.eq_ignore_ascii_case(value);
        if header.is("metadata-flavor") && is_value(b"google") {
            self.sure.get_or_insert(Dialect::Gcp);
        } else if header.is("x-aliyun-ecs-metadata-token") || header.is("x-aliyun-ecs-metadata-token-ttl-seconds") {
            self.sure.get_or_insert(Dialect::Alibaba);
        } else if header.is("metadata") {
            self.azure |= is_value(b"true");
        }
    }
}

/// Headers win over paths: several clouds share the EC2 tree.
pub(super) fn dialect(path: &str, hints: Hints, token_header: bool) -> Dialect {
    let normal = normalise(path);
    // GCP and Azure have trees of their own: their headers make no difference to how IMDS answers a path of EC2's tree.
    let is_ec2_tree = normal != "/" && is_aws_path(&normal);
    match hints.sure {
        Some(Dialect::Gcp) if is_ec2_tree => return Dialect::Aws,
        Some(dialect) => return dialect,
        None => {}
    }
    if token_header || is_ec2_tree {
        return Dialect::Aws;
    }
    let path = normal;
    let below = |root: &str| {
        path.strip_prefix(root)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    if below("/computeMetadata") {
        Dialect::Gcp
    } else if below("/metadata/v1") || path == "/metadata/v1.json" {
        Dialect::Digitalocean
    } else if below("/metadata") || hints.azure {
        Dialect::Azure
    } else if below("/opc") {
        Dialect::Oracle
    } else if below("/openstack") {
        Dialect::Openstack
    } else if below("/hetzner") {
        Dialect::Hetzner
    } else if is_aws_path(&path) {
        Dialect::Aws
    } else {
        Dialect::Unknown
    }
}
