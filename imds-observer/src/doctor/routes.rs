//! Which way do packets to each endpoint take, and which rules send some of them another way?

use std::net::IpAddr;

use netlink_packet_route::route::RouteType;
use netlink_packet_route::rule::RuleAction;
use nix::errno::Errno;

use super::check::{Check, State};
use crate::host::netlink::NetlinkError;
use crate::host::routes::{LOCAL_TABLE, Routed, Routing, Rule};
use crate::host::uplinks::best;
use crate::record::Code;

/// Rules that are told.
const MAX_RULES: usize = 64;
/// Rules that every host has: `local`, `main`, `default`.
const USUAL: [(u32, u32); 3] = [(0, LOCAL_TABLE), (32_766, 254), (32_767, 253)];

pub(super) fn checks(endpoints: &[IpAddr]) -> Vec<Check> {
    let mut routing = match Routing::open() {
        Ok(routing) => routing,
        Err(error) => return vec![Check::unread("route", error)],
    };
    let mut checks = Vec::new();
    for endpoint in endpoints {
        let routed = routing.route_to(*endpoint);
        checks.push(match routed {
            Ok(routed) => route(*endpoint, &routed).about(endpoint),
            Err(error) => Check::unread("route", error).about(endpoint),
        });
        match rules(&mut routing, *endpoint) {
            Ok(rules) => checks.extend(rules.into_iter().map(|check| check.about(endpoint))),
            Err(error) => checks.push(Check::unread("routing-rule", error).about(endpoint)),
        }
    }
    checks
}

/// An interface's name, or its number.
pub(super) fn interface(ifindex: u32) -> String {
    nix::net::if_::if_indextoname(ifindex)
        .ok()
        .map(|name| name.to_string_lossy().into_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| ifindex.to_string())
}

pub(super) fn dash6(endpoint: IpAddr) -> &'static str {
    if endpoint.is_ipv6() { "-6 " } else { "" }
}

fn route(endpoint: IpAddr, routed: &Routed) -> Check {
    let family = dash6(endpoint);
    let look = [format!("ip {family}route get {endpoint}"), format!("ip {family}rule")];
    match routed {
        Routed::Through(hop) => {
            let way = hop
                .gateway
                .map_or_else(|| "on the link".to_owned(), |gateway| format!("via {gateway}"));
            let source = hop.source.map(|source| format!(" from {source}")).unwrap_or_default();
            Check::ok("route", format!("{way} through {}{source}", interface(hop.ifindex)))
        }
        Routed::Local => Check::new("route", State::Fault, "an address of this host itself")
            .meaning("a program of this host answers in the place of IMDS, or nobody does")
            .remedied(
                "Remove the address unless a metadata proxy is meant to be there.",
                [format!("ip {family}addr show to {endpoint}")],
            ),
        Routed::Refused(errno) => {
            let found = Errno::from_raw(*errno).desc();
            if endpoint.is_ipv6() && *errno == libc::ENETUNREACH {
                // Off unless somebody has switched it on.
                return Check::new("route", State::Note, found)
                    .meaning("clients that try IPv6 fail at once; those that use IPv4 aren't concerned")
                    .told_as(Code::NoRoute);
            }
            let refused = match *errno {
                libc::EHOSTUNREACH => "an `unreachable` route or rule refuses it",
                libc::EACCES => "a `prohibit` route or rule refuses it",
                libc::EINVAL => "a `blackhole` route or rule refuses it",
                _ => "no route leads there",
            };
            Check::new("route", State::Fault, format!("{found}: {refused}"))
                .meaning("connect() fails at once for every client of this host")
                .remedied(
                    "Add a route through the gateway, or delete the one that refuses.",
                    look.into_iter().chain([format!(
                        "ip {family}route add {endpoint}/{} via GATEWAY dev INTERFACE",
                        if endpoint.is_ipv6() { 128 } else { 32 }
                    )]),
                )
                .told_as(Code::NoRoute)
        }
    }
}

/// Rules that may concern the endpoint, besides the usual ones.
fn rules(routing: &mut Routing, endpoint: IpAddr) -> Result<Vec<Check>, NetlinkError> {
    let mut checks = Vec::new();
    let all = routing.rules(endpoint.is_ipv6())?;
    let concerned = all
        .iter()
        .filter(|rule| rule.may_concern(endpoint) && !USUAL.contains(&(rule.priority, rule.table)));
    for rule in concerned.take(MAX_RULES) {
        let whom = whom(rule);
        let refused = match rule.action {
            RuleAction::Unreachable => Some("unreachable".to_owned()),
            RuleAction::Prohibit => Some("prohibit".to_owned()),
            RuleAction::Blackhole => Some("blackhole".to_owned()),
            _ => None,
        };
        let decided = if refused.is_none() && rule.action == RuleAction::ToTable {
            let table = routing.table(rule.table, endpoint.is_ipv6())?;
            best(&table, endpoint).cloned()
        } else {
            None
        };
        let refused = refused.or_else(|| match decided.as_ref()?.kind {
            RouteType::Unreachable => Some(format!("unreachable in table {}", rule.table)),
            RouteType::Prohibit => Some(format!("prohibit in table {}", rule.table)),
            RouteType::BlackHole => Some(format!("blackhole in table {}", rule.table)),
            _ => None,
        });
        let found = format!("rule {} for {whom}", rule.priority);
        if let Some(refused) = refused {
            checks.push(
                Check::new("routing-rule", State::Fault, format!("{found}: {refused}"))
                    .meaning(format!("requests of {whom} don't leave this host"))
                    .remedied(
                        "Delete the rule, unless they are kept from IMDS on purpose.",
                        [format!("ip {}rule show priority {}", dash6(endpoint), rule.priority)],
                    )
                    .told_as(Code::NoRoute),
            );
            continue;
        }
        let Some(hop) = decided.as_ref().and_then(|route| route.hops.first()) else {
            continue;
        };
        let way = hop
            .gateway
            .map_or_else(|| "on the link".to_owned(), |gateway| format!("via {gateway}"));
        let found = format!(
            "{found}: {way} through {} (table {})",
            interface(hop.ifindex),
            rule.table
        );
        checks.push(Check::ok("routing-rule", found));
    }
    Ok(checks)
}

/// To which packets a rule applies.
fn whom(rule: &Rule) -> String {
    let mut parts = Vec::new();
    if let Some((from, len)) = rule.from {
        parts.push(format!("source {from}/{len}"));
    }
    if let Some(iif) = &rule.iif {
        parts.push(if iif == "lo" {
            "this host's own packets".to_owned()
        } else {
            format!("what comes in from {iif}")
        });
    }
    if let Some(oif) = &rule.oif {
        parts.push(format!("sockets bound to {oif}"));
    }
    if let Some((mark, mask)) = rule.mark {
        parts.push(format!("mark {mark:#x}/{mask:#x}"));
    }
    if let Some((from, to)) = rule.uids {
        parts.push(format!("uids {from} to {to}"));
    }
    if rule.narrowed {
        parts.push("some ports or protocols".to_owned());
    }
    let not = if rule.inverted { "all but " } else { "" };
    if parts.is_empty() {
        "everybody".to_owned()
    } else {
        format!("{not}{}", parts.join(" and "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::routes::Hop;

    #[test]
    fn refusals_are_faults_and_a_missing_ipv6_route_is_not() {
        let v4: IpAddr = "169.254.169.254".parse().unwrap();
        let v6: IpAddr = "fd00:ec2::254".parse().unwrap();
        for errno in [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EINVAL] {
            let check = route(v4, &Routed::Refused(errno));
            assert_eq!((check.state, check.code), (State::Fault, Some(Code::NoRoute)));
        }
        assert_eq!(route(v6, &Routed::Refused(libc::ENETUNREACH)).state, State::Note);
        assert_eq!(route(v6, &Routed::Refused(libc::EACCES)).state, State::Fault);
        assert_eq!(route(v4, &Routed::Local).state, State::Fault);
        let hop = Hop {
            ifindex: u32::MAX,
            gateway: Some("10.0.0.1".parse().unwrap()),
            source: None,
        };
        let check = route(v4, &Routed::Through(hop));
        assert_eq!((check.state, check.found.contains("via 10.0.0.1")), (State::Ok, true));
    }
}
