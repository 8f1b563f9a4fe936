//! Which way do packets to each endpoint take, and which rules send some of them another way?

use std::net::IpAddr;

use netlink_packet_route::route::RouteType;
use netlink_packet_route::rule::RuleAction;
use nix::errno::Errno;

use super::check::{Check, CheckState};
use crate::host::netlink::NetlinkError;
use crate::host::routes::{Hop, LOCAL_TABLE, Link, MAIN_TABLE, Routed, Routing, Rule};
use crate::host::uplinks::best;
use crate::record::Code;

/// Limit of reported rules.
const MAX_RULES: usize = 64;
/// Rules that every host has: `local`, `main`, `default`.
const USUAL: [(u32, u32); 3] = [(0, LOCAL_TABLE), (32_766, 254), (32_767, 253)];

pub(super) fn checks(endpoints: &[IpAddr]) -> Vec<Check> {
    let mut routing = match Routing::open() {
        Ok(routing) => routing,
        Err(error) => return vec![Check::unread("route", error)],
    };
    let mut checks = Vec::new();
    // An unreadable device is treated as an ordinary one.
    let links = routing.links().unwrap_or_default();
    for endpoint in endpoints {
        let routed = routing.route_to(*endpoint);
        checks.push(match routed {
            Ok(Routed::Through(hop)) if tunnel(&links, &hop).is_some() => {
                let way_out = way_out(&mut routing, *endpoint, &links);
                through_tunnel(*endpoint, &hop, &links, way_out).about(endpoint)
            }
            Ok(routed) => route(*endpoint, &routed).about(endpoint),
            Err(error) => Check::unread("route", error).about(endpoint),
        });
        match rules(&mut routing, *endpoint, &links) {
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

/// The kind of tunnel that a hop leads into.
fn tunnel<'a>(links: &'a [Link], hop: &Hop) -> Option<&'a str> {
    links
        .iter()
        .find(|link| link.ifindex == hop.ifindex)
        .and_then(|link| link.tunnel.as_deref())
}

/// How packets to the endpoint could leave by the interface that IMDS is behind.
struct WayOut {
    /// The main table's default route, unless it leads into a tunnel itself.
    uplink: Option<Hop>,
    /// The main table itself leads the endpoint elsewhere than into a tunnel: a rule before the VPN's suffices.
    by_main: bool,
    /// Priority of the first rule that leads into a tunnel.
    before: Option<u32>,
}

fn way_out(routing: &mut Routing, endpoint: IpAddr, links: &[Link]) -> WayOut {
    let v6 = endpoint.is_ipv6();
    let outside = |hop: &Hop| tunnel(links, hop).is_none();
    let main = routing.table(MAIN_TABLE, v6).unwrap_or_default();
    let by_main = best(&main, endpoint).is_some_and(|route| route.hops.iter().any(&outside));
    let default = main.iter().filter(|route| route.prefix_len == 0);
    let uplink = default.flat_map(|route| &route.hops).find(|hop| outside(hop)).cloned();
    let rules = routing.rules(v6).unwrap_or_default();
    let leads_away = |rule: &&Rule| {
        rule.may_concern(endpoint)
            && rule.action == RuleAction::ToTable
            && ![LOCAL_TABLE, MAIN_TABLE].contains(&rule.table)
    };
    WayOut {
        uplink,
        by_main,
        before: rules.iter().find(leads_away).map(|rule| rule.priority),
    }
}

/// The endpoint is on the instance's own network: a tunnel leads past it.
fn through_tunnel(endpoint: IpAddr, hop: &Hop, links: &[Link], way_out: WayOut) -> Check {
    let family = dash6(endpoint);
    let kind = tunnel(links, hop).unwrap_or("point-to-point");
    let found = format!(
        "through {}, a tunnel or point-to-point device ({kind})",
        interface(hop.ifindex)
    );
    let mut commands = vec![format!("ip {family}route get {endpoint}"), format!("ip {family}rule")];
    if !way_out.by_main {
        let (gateway, device) = way_out.uplink.map_or_else(
            || ("GATEWAY".to_owned(), "UPLINK".to_owned()),
            |hop| {
                let gateway = hop
                    .gateway
                    .map_or_else(|| "GATEWAY".to_owned(), |gateway| gateway.to_string());
                (gateway, interface(hop.ifindex))
            },
        );
        let length = if endpoint.is_ipv6() { 128 } else { 32 };
        commands.push(format!(
            "ip {family}route add {endpoint}/{length} via {gateway} dev {device}"
        ));
    }
    if let Some(before) = way_out.before {
        let priority = before.saturating_sub(1).max(1);
        commands.push(format!(
            "ip {family}rule add to {endpoint} lookup main priority {priority}"
        ));
    }
    Check::new("route", CheckState::Fault, found)
        .meaning("requests leave through the tunnel, which doesn't lead to IMDS: they get no answer, or the answer of another instance")
        .remedied(
            "Exclude the endpoint in the VPN's settings, or route it through the instance's own interface. If the VPN uses its own routing table, add a rule with a lower priority number than the VPN's.",
            commands,
        )
        .reported_as(Code::NoAnswer)
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
        Routed::Local => Check::new("route", CheckState::Fault, "the address is assigned to this host")
            .meaning("a program on this host answers instead of IMDS; without one, connections are refused")
            .remedied(
                "Remove the address, unless a metadata proxy on this host is intended.",
                [format!("ip {family}addr show to {endpoint}")],
            ),
        Routed::Refused(errno) => {
            let found = Errno::from_raw(*errno).desc();
            if endpoint.is_ipv6() && *errno == libc::ENETUNREACH {
                // The IPv6 endpoint is off by default.
                return Check::new("route", CheckState::Note, found)
                    .meaning("clients that try IPv6 fail at once; IPv4 clients are not affected")
                    .reported_as(Code::NoRoute);
            }
            let refused = match *errno {
                libc::EHOSTUNREACH => "an `unreachable` route or rule rejects it",
                libc::EACCES => "a `prohibit` route or rule rejects it",
                libc::EINVAL => "a `blackhole` route or rule rejects it",
                _ => "no route to the endpoint",
            };
            Check::new("route", CheckState::Fault, format!("{found}: {refused}"))
                .meaning("connect() fails at once for every client of this host")
                .remedied(
                    "Add a route through the gateway, or delete the route or rule that blocks it.",
                    look.into_iter().chain([format!(
                        "ip {family}route add {endpoint}/{} via GATEWAY dev INTERFACE",
                        if endpoint.is_ipv6() { 128 } else { 32 }
                    )]),
                )
                .reported_as(Code::NoRoute)
        }
    }
}

/// Rules that may concern the endpoint, besides the usual ones.
fn rules(routing: &mut Routing, endpoint: IpAddr, links: &[Link]) -> Result<Vec<Check>, NetlinkError> {
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
                Check::new("routing-rule", CheckState::Fault, format!("{found}: {refused}"))
                    .meaning(format!("requests of {whom} are not sent"))
                    .remedied(
                        "Delete the rule. No action is needed if it blocks IMDS on purpose.",
                        [format!("ip {}rule show priority {}", dash6(endpoint), rule.priority)],
                    )
                    .reported_as(Code::NoRoute),
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
        checks.push(match tunnel(links, hop) {
            // For this host's own processes, the check `route` above reports it.
            Some(kind) => Check::new("routing-rule", CheckState::Note, format!("{found}, a tunnel ({kind})"))
                .meaning(format!(
                    "requests of {whom} leave through the tunnel, which doesn't lead to IMDS"
                ))
                .remedied(
                    "Add a rule for the endpoint before this one.",
                    [format!(
                        "ip {}rule add to {endpoint} lookup main priority {}",
                        dash6(endpoint),
                        rule.priority.saturating_sub(1).max(1)
                    )],
                )
                .reported_as(Code::NoAnswer),
            None => Check::ok("routing-rule", found),
        });
        if rule.unconditional_for(endpoint) {
            // No rule behind it is asked.
            break;
        }
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
            format!("packets received on {iif}")
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

    fn link(ifindex: u32, tunnel: Option<&str>) -> Link {
        Link {
            ifindex,
            name: format!("if{ifindex}"),
            loopback: false,
            up: true,
            tunnel: tunnel.map(str::to_owned),
            lower: None,
            controller: None,
        }
    }

    #[test]
    fn a_way_into_a_tunnel_is_a_fault_and_its_remedy_leads_out_of_it() {
        let v4: IpAddr = "169.254.169.254".parse().unwrap();
        let hop = |ifindex, gateway: Option<&str>| Hop {
            ifindex,
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
            source: None,
        };
        let links = [link(u32::MAX - 1, Some("wireguard")), link(u32::MAX, None)];
        let into = hop(u32::MAX - 1, None);
        // A VPN with a table of its own; then one that has taken over the main table.
        for (by_main, before, wanted) in [
            (
                true,
                Some(5270),
                vec!["rule add to 169.254.169.254 lookup main priority 5269"],
            ),
            (false, None, vec!["route add 169.254.169.254/32 via 10.0.0.1 dev"]),
        ] {
            let way_out = WayOut {
                uplink: Some(hop(u32::MAX, Some("10.0.0.1"))),
                by_main,
                before,
            };
            let check = through_tunnel(v4, &into, &links, way_out);
            assert_eq!((check.state, check.code), (CheckState::Fault, Some(Code::NoAnswer)));
            assert!(check.found.contains("wireguard"), "{}", check.found);
            let commands = check.remedy.unwrap().commands.join("\n");
            assert!(wanted.iter().all(|wanted| commands.contains(wanted)), "{commands}");
            assert!(!commands.contains(&format!("dev {}", u32::MAX - 1)), "{commands}");
        }
    }

    #[test]
    fn refusals_are_faults_and_a_missing_ipv6_route_is_not() {
        let v4: IpAddr = "169.254.169.254".parse().unwrap();
        let v6: IpAddr = "fd00:ec2::254".parse().unwrap();
        for errno in [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EINVAL] {
            let check = route(v4, &Routed::Refused(errno));
            assert_eq!((check.state, check.code), (CheckState::Fault, Some(Code::NoRoute)));
        }
        assert_eq!(route(v6, &Routed::Refused(libc::ENETUNREACH)).state, CheckState::Note);
        assert_eq!(route(v6, &Routed::Refused(libc::EACCES)).state, CheckState::Fault);
        assert_eq!(route(v4, &Routed::Local).state, CheckState::Fault);
        let hop = Hop {
            ifindex: u32::MAX,
            gateway: Some("10.0.0.1".parse().unwrap()),
            source: None,
        };
        let check = route(v4, &Routed::Through(hop));
        assert_eq!(
            (check.state, check.found.contains("via 10.0.0.1")),
            (CheckState::Ok, true)
        );
    }
}
