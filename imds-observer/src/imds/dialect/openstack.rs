//! OpenStack: nova's metadata service behind neutron's proxy. It serves `/openstack` and EC2's tree, and has no tokens and no roles.
//! <https://docs.openstack.org/nova/latest/user/metadata.html>

use super::table::{Protocol, Refusal};
use crate::record::Dialect;

pub(super) const PROTOCOL: Protocol = Protocol {
    dialect: Dialect::Openstack,
    service: "the OpenStack metadata service",
    ec2_tree: true,
    absent: &[
        "/openstack/*/user_data",
        "/openstack/*/vendor_data.json",
        "/openstack/*/vendor_data2.json",
        "/openstack/*/password",
        "/*/user-data",
        "/*/meta-data/iam/**",
        "/*/meta-data/public-keys/**",
        "/*/meta-data/kernel-id",
        "/*/meta-data/ramdisk-id",
        "/*/meta-data/spot/**",
        "/*/meta-data/tags/**",
    ],
    refusals: &[Refusal {
        statuses: &[400, 403],
        cause: "not-recognized",
        means: "are refused: nova does not recognize the instance, or neutron and nova don't share one secret",
        remedy: "Ask the cloud's operator to compare metadata_proxy_shared_secret of neutron and nova and to look at the log of nova-metadata. In a network without a router, the DHCP agent must serve metadata (enable_isolated_metadata).",
        ..Refusal::NONE
    }],
    overload: "Reduce the request rate of the busiest client, and retry with exponential backoff and jitter. The operator may have set neutron's metadata_rate_limiting, whose defaults are 10 requests per 10 s and IP address.",
    documentation: "https://docs.openstack.org/nova/latest/user/metadata.html",
    ..Protocol::NONE
};
