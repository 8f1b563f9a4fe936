//! Alibaba Cloud: EC2's tree at an address of its own, with tokens in security hardening mode.
//! <https://www.alibabacloud.com/help/en/ecs/user-guide/view-instance-metadata>

use super::table::{Protocol, Refusal, TokenProtocol};
use crate::record::Dialect;

const TOKEN: TokenProtocol = TokenProtocol {
    paths: &["/latest/api/token"],
    header: "x-aliyun-ecs-metadata-token",
    lifetime: Some("x-aliyun-ecs-metadata-token-ttl-seconds"),
    request: "Request a token with PUT /latest/api/token and the header X-aliyun-ecs-metadata-token-ttl-seconds (1 to 21600), and send it as X-aliyun-ecs-metadata-token.",
    hop_limit: None,
};

pub(super) const PROTOCOL: Protocol = Protocol {
    dialect: Dialect::Alibaba,
    service: "the metadata service of Alibaba Cloud",
    ec2_tree: true,
    credentials: &["/*/meta-data/ram/security-credentials/*"],
    token: Some(&TOKEN),
    absent: &[
        "/*/user-data",
        "/*/meta-data/eipv4",
        "/*/meta-data/public-keys/**",
        "/*/meta-data/instance/spot/**",
    ],
    refusals: &[
        Refusal {
            statuses: &[404],
            paths: &["/*/meta-data/ram/**"],
            cause: "no-role",
            means: "for a RAM role fail with 404: no such role is attached to the instance",
            remedy: "Attach a RAM role to the instance, or configure the client with other credentials.",
            ..Refusal::NONE
        },
        Refusal {
            statuses: &[403],
            cause: "no-token",
            means: "are refused with 403: the instance may require tokens (security hardening mode)",
            remedy: "Request a token with PUT /latest/api/token and X-aliyun-ecs-metadata-token-ttl-seconds, and send it as X-aliyun-ecs-metadata-token: current SDKs do. Or allow requests without a token (HttpTokens optional, ModifyInstanceMetadataOptions).",
            ..Refusal::NONE
        },
    ],
    documentation: "https://www.alibabacloud.com/help/en/ecs/user-guide/view-instance-metadata",
    ..Protocol::NONE
};
