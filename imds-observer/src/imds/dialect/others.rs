//! Services without tokens and without refusals of their own: DigitalOcean (UpCloud speaks the same), Hetzner, Scaleway.

use super::table::{Protocol, Refusal};
use crate::record::Dialect;

pub(super) const DIGITALOCEAN: Protocol = Protocol {
    dialect: Dialect::Digitalocean,
    service: "the DigitalOcean metadata service",
    absent: &[
        "/metadata/v1/user-data",
        "/metadata/v1/vendor-data",
        "/metadata/v1/tags/**",
        "/metadata/v1/floating_ip/**",
        "/metadata/v1/reserved_ip/**",
    ],
    documentation: "https://docs.digitalocean.com/reference/api/metadata/",
    ..Protocol::NONE
};

pub(super) const HETZNER: Protocol = Protocol {
    dialect: Dialect::Hetzner,
    service: "the Hetzner Cloud metadata service",
    absent: &["/hetzner/v1/userdata", "/hetzner/v1/metadata/private-networks"],
    documentation: "https://docs.hetzner.cloud/reference/cloud#server-metadata",
    ..Protocol::NONE
};

/// User data is given only to source ports below 1024, and 404 means that there is none [cloud-init, DataSourceScaleway.py].
pub(super) const SCALEWAY: Protocol = Protocol {
    dialect: Dialect::Scaleway,
    service: "the Scaleway metadata service",
    absent: &["/user_data/**", "/vendor_data/**"],
    refusals: &[Refusal {
        statuses: &[403],
        paths: &["/user_data/**"],
        cause: "source-port",
        means: "for user data are refused with 403: they come from a source port above 1023",
        remedy: "Bind the socket to a port below 1024 (needs root or CAP_NET_BIND_SERVICE).",
        commands: &["curl -sS --local-port 1-1023 http://169.254.42.42/user_data"],
        ..Refusal::NONE
    }],
    documentation: "https://www.scaleway.com/en/docs/instances/how-to/use-cloud-init/",
    ..Protocol::NONE
};

/// Requests of which no cloud is known.
pub(super) const UNKNOWN: Protocol = Protocol::NONE;
