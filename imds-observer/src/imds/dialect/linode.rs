//! Akamai Cloud (Linode). <https://techdocs.akamai.com/cloud-computing/docs/metadata-service-api>

use super::table::{Protocol, TokenProtocol};
use crate::record::Dialect;

const TOKEN: TokenProtocol = TokenProtocol {
    paths: &["/v1/token"],
    header: "metadata-token",
    lifetime: Some("metadata-token-expiry-seconds"),
    request: "Request a token with PUT /v1/token and the header Metadata-Token-Expiry-Seconds, and send it as Metadata-Token.",
    hop_limit: None,
};

pub(super) const PROTOCOL: Protocol = Protocol {
    dialect: Dialect::Linode,
    service: "the Akamai (Linode) metadata service",
    token: Some(&TOKEN),
    absent: &["/v1/user-data"],
    documentation: "https://techdocs.akamai.com/cloud-computing/docs/metadata-service-api",
    ..Protocol::NONE
};
