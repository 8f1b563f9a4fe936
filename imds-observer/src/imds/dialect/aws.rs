//! IMDS of EC2: <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html>. The detectors for AWS know its paths
//! in detail; see [`super::super::path`].

use super::table::{Protocol, TokenProtocol};
use crate::record::Dialect;

pub(super) const TOKEN: TokenProtocol = TokenProtocol {
    paths: &["/latest/api/token"],
    header: "x-aws-ec2-metadata-token",
    lifetime: Some("x-aws-ec2-metadata-token-ttl-seconds"),
    request: "Request a token with PUT /latest/api/token and the header X-aws-ec2-metadata-token-ttl-seconds, and send it as X-aws-ec2-metadata-token.",
    hop_limit: None,
};

pub(super) const PROTOCOL: Protocol = Protocol {
    dialect: Dialect::Aws,
    service: "IMDS",
    credentials: &[
        "/*/meta-data/iam/security-credentials/*",
        "/*/meta-data/identity-credentials/ec2/security-credentials/*",
    ],
    token: Some(&TOKEN),
    documentation: "https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-instance-metadata.html",
    ..Protocol::NONE
};
