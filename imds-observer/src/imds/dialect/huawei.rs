//! Huawei Cloud and Open Telekom Cloud: OpenStack's tree with `securitykey`, and a token protocol of its own.
//! <https://support.huaweicloud.com/intl/en-us/usermanual-ecs/ecs_03_2167.html>

use super::table::{Protocol, Refusal, TokenProtocol};
use crate::record::Dialect;

const TOKEN: TokenProtocol = TokenProtocol {
    paths: &["/meta-data/latest/api/token"],
    header: "x-metadata-token",
    lifetime: Some("x-metadata-token-ttl-seconds"),
    request: "Request a token with PUT /meta-data/latest/api/token and the header X-Metadata-Token-Ttl-Seconds (60 to 21600), and send it as X-Metadata-Token.",
    hop_limit: None,
};

pub(super) const PROTOCOL: Protocol = Protocol {
    dialect: Dialect::Huawei,
    service: "the metadata service of Huawei Cloud",
    ec2_tree: true,
    credentials: &["/openstack/*/securitykey"],
    token: Some(&TOKEN),
    absent: super::openstack::PROTOCOL.absent,
    refusals: &[
        Refusal {
            statuses: &[404],
            paths: &["/openstack/*/securitykey"],
            cause: "no-agency",
            means: "for temporary keys fail with 404: no agency is attached to this server",
            remedy: "Attach an agency to the ECS, or configure the client with other credentials.",
            ..Refusal::NONE
        },
        Refusal {
            statuses: &[400, 401, 403],
            forwarded: true,
            cause: "forwarded",
            means: "are refused: they carry X-Forwarded-For",
            remedy: "Exclude 169.254.169.254 from the proxy.",
            commands: &["export NO_PROXY=\"$NO_PROXY,169.254.169.254\""],
            ..Refusal::NONE
        },
        Refusal {
            statuses: &[403],
            cause: "no-token",
            means: "are refused: the server may require tokens (http_tokens required)",
            remedy: "Request a token with PUT /meta-data/latest/api/token and X-Metadata-Token-Ttl-Seconds, and send it as X-Metadata-Token; or make tokens optional with the API for metadata options.",
            ..Refusal::NONE
        },
    ],
    documentation: "https://support.huaweicloud.com/intl/en-us/usermanual-ecs/ecs_03_2167.html",
    ..Protocol::NONE
};
