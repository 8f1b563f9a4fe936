//! Oracle Cloud Infrastructure. <https://docs.oracle.com/en-us/iaas/Content/Compute/Tasks/gettingmetadata.htm>

use super::table::{Protocol, Refusal};
use crate::record::Dialect;

pub(super) const PROTOCOL: Protocol = Protocol {
    dialect: Dialect::Oracle,
    service: "the OCI instance metadata service",
    credentials: &["/opc/*/identity/**"],
    absent: &["/opc/*/instance/metadata/**"],
    refusals: &[
        Refusal {
            statuses: &[404],
            paths: &["/opc/v1/**", "/openstack/**"],
            cause: "v1-disabled",
            means: "of version 1 fail with 404: the legacy endpoints are disabled for this instance",
            remedy: "Request the same path under /opc/v2/ with the header Authorization: Bearer Oracle. Update cloud-init to 20.3 or later and SDKs and agents to current versions.",
            commands: &["curl -sS -H 'Authorization: Bearer Oracle' http://169.254.169.254/opc/v2/instance/"],
            ..Refusal::NONE
        },
        Refusal {
            statuses: &[400, 401, 403],
            forwarded: true,
            cause: "forwarded",
            means: "are refused: they carry Forwarded, X-Forwarded-For or X-Forwarded-Host",
            remedy: "Exclude 169.254.169.254 from the proxy.",
            commands: &["export NO_PROXY=\"$NO_PROXY,169.254.169.254\""],
            ..Refusal::NONE
        },
        Refusal {
            statuses: &[400, 401, 403],
            paths: &["/opc/v2/**"],
            cause: "header",
            means: "of version 2 are refused: the header Authorization: Bearer Oracle is missing, or a proxy adds a forwarding header",
            remedy: "Send Authorization: Bearer Oracle with each request under /opc/v2/.",
            commands: &["curl -sS -H 'Authorization: Bearer Oracle' http://169.254.169.254/opc/v2/instance/"],
            ..Refusal::NONE
        },
    ],
    documentation: "https://docs.oracle.com/en-us/iaas/Content/Compute/Tasks/gettingmetadata.htm",
    ..Protocol::NONE
};
