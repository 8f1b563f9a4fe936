//! IBM Cloud VPC. <https://cloud.ibm.com/docs/vpc?topic=vpc-imd-about>

use super::table::{Protocol, Refusal, TokenProtocol};
use crate::record::Dialect;

const TOKEN: TokenProtocol = TokenProtocol {
    paths: &["/instance_identity/v1/token", "/identity/v1/token"],
    header: "authorization",
    lifetime: None,
    request: "Request a token with PUT /instance_identity/v1/token?version=DATE and the header Metadata-Flavor: ibm, and send it as Authorization: Bearer TOKEN.",
    hop_limit: None,
};

pub(super) const PROTOCOL: Protocol = Protocol {
    dialect: Dialect::Ibm,
    service: "the IBM Cloud VPC metadata service",
    credentials: &["/instance_identity/v1/*", "/identity/v1/*"],
    token: Some(&TOKEN),
    refusals: &[Refusal {
        statuses: &[403],
        cause: "token",
        means: "are refused with 403",
        remedy: "Request a token with PUT /instance_identity/v1/token and the header Metadata-Flavor: ibm, and send it as Authorization: Bearer. For IAM tokens, the instance needs a trusted profile.",
        ..Refusal::NONE
    }],
    documentation: "https://cloud.ibm.com/docs/vpc?topic=vpc-imd-about",
    ..Protocol::NONE
};
