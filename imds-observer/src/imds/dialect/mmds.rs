//! Firecracker's metadata service for microVMs: its contents are the user's, so no path is special.
//! <https://github.com/firecracker-microvm/firecracker/blob/main/docs/mmds/mmds-user-guide.md>

use super::table::{Protocol, TokenProtocol};
use crate::record::Dialect;

const TOKEN: TokenProtocol = TokenProtocol {
    paths: &["/latest/api/token"],
    header: "x-metadata-token",
    lifetime: Some("x-metadata-token-ttl-seconds"),
    request: "Request a token with PUT /latest/api/token and the header X-metadata-token-ttl-seconds, and send it as X-metadata-token.",
    hop_limit: None,
};

pub(super) const PROTOCOL: Protocol = Protocol {
    dialect: Dialect::Mmds,
    service: "Firecracker's metadata service",
    ec2_tree: true,
    token: Some(&TOKEN),
    absent: &["/**"],
    documentation: "https://github.com/firecracker-microvm/firecracker/blob/main/docs/mmds/mmds-user-guide.md",
    ..Protocol::NONE
};
