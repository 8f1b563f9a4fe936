//! Whose metadata protocol a request speaks. A probe for another cloud is not a request without a token.

use super::path::{is_aws_path, normalise};
use crate::http::Headers;
use crate::record::Dialect;

/// Headers win over paths: several clouds share the EC2 tree.
pub(super) fn dialect(path: &str, headers: Headers<'_>, token_header: bool) -> Dialect {
    let path = normalise(path);
    let below = |root: &str| {
        path.strip_prefix(root)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let mut azure_header = false;
    for header in headers {
        if header.is("metadata-flavor") && header.value.eq_ignore_ascii_case(b"google") {
            return Dialect::Gcp;
        }
        if header.is("x-aliyun-ecs-metadata-token") || header.is("x-aliyun-ecs-metadata-token-ttl-seconds") {
            return Dialect::Alibaba;
        }
        azure_header |= header.is("metadata") && header.value.eq_ignore_ascii_case(b"true");
    }
    if token_header {
        return Dialect::Aws;
    }
    if below("/computeMetadata") {
        Dialect::Gcp
    } else if below("/metadata/v1") || path == "/metadata/v1.json" {
        Dialect::Digitalocean
    } else if below("/metadata") || azure_header {
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
