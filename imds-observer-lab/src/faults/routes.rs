//! Routes and neighbors that don't lead to the endpoints.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, PoisonError},
};

use anyhow::{Result, bail};
use rtnetlink::{
    Handle,
    packet_route::{
        AddressFamily,
        route::RouteType,
        rule::{RuleAction, RuleAttribute, RuleMessage},
    },
};

use super::{Family, FaultGuard, Victim};
use crate::topology::{
    BRIDGE, Lab, RouteStyle, replace_routes,
    wire::{Hop, Route},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteFault {
    /// No route matches: ENETUNREACH.
    None,
    /// EHOSTUNREACH
    Unreachable,
    /// EACCES
    Prohibit,
    /// EINVAL
    Blackhole,
    /// Link-local is on-link, and ARP for the endpoint is unanswered: EHOSTUNREACH after 3 s.
    OnLinkSilent,
    /// Link-local is on-link, and the endpoint answers: the healthy counterpart of `OnLinkSilent`. IPv4 only.
    OnLink,
}

pub(super) fn inject(lab: &Lab, kind: RouteFault, victim: Victim, family: Family) -> Result<FaultGuard> {
    match victim {
        Victim::Node => on_node(lab, kind, family),
        Victim::Forwarded => for_forwarded(lab, kind, family),
        Victim::Pod(pod) => in_pod(lab, pod, kind, family),
    }
}

fn on_node(lab: &Lab, kind: RouteFault, family: Family) -> Result<FaultGuard> {
    let endpoints = family.endpoints(lab);
    let silent = if kind == RouteFault::OnLinkSilent {
        Some(ignore_arp(lab)?)
    } else {
        None
    };
    let before = lab.routes().lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut wanted = before.clone();
    // A default route can stay beside a more specific route, but host routes must be removed.
    if kind == RouteFault::None || lab.route_style() == RouteStyle::Endpoints {
        wanted.retain(|route| !family.has(route.destination));
    }
    for endpoint in endpoints {
        let interface = "eth0".to_owned();
        wanted.extend(match (kind, endpoint) {
            (RouteFault::None, _) => None,
            (RouteFault::OnLinkSilent | RouteFault::OnLink, IpAddr::V4(_)) => Some(Route::new(
                Ipv4Addr::new(169, 254, 0, 0).into(),
                16,
                Hop::OnLink { interface },
            )),
            (RouteFault::OnLinkSilent, IpAddr::V6(_)) => Some(Route::new(endpoint, 128, Hop::OnLink { interface })),
            (RouteFault::OnLink, IpAddr::V6(_)) => {
                bail!("the lab's IPv6 endpoint is not on the link: there is no healthy on-link route to it")
            }
            (RouteFault::Unreachable | RouteFault::Prohibit | RouteFault::Blackhole, _) => {
                Some(refused(kind, endpoint))
            }
        });
    }
    let (netns, routes) = (lab.node().shared_netns(), Arc::clone(lab.routes()));
    replace_routes(&netns, &routes, wanted)?;
    Ok(FaultGuard::new(move || {
        replace_routes(&netns, &routes, before)?;
        silent.map_or(Ok(()), FaultGuard::undo)
    }))
}

fn refused(kind: RouteFault, endpoint: IpAddr) -> Route {
    let kind = match kind {
        RouteFault::Prohibit => RouteType::Prohibit,
        RouteFault::Blackhole => RouteType::BlackHole,
        _ => RouteType::Unreachable,
    };
    Route::new(endpoint, if endpoint.is_ipv4() { 32 } else { 128 }, Hop::Refused(kind))
}

/// Prevents ARP responses for the endpoint. By default the service's host answers ARP for any of its addresses; this setting restricts it
/// to addresses of the link. IPv6 needs no setting: neighbor discovery never answers for an address of the loopback interface.
fn ignore_arp(lab: &Lab) -> Result<FaultGuard> {
    let netns = lab.imds().shared_netns();
    netns.sysctls(&[("ipv4/conf/all/arp_ignore", "1")])?;
    Ok(FaultGuard::new(move || {
        netns.sysctls(&[("ipv4/conf/all/arp_ignore", "0")])
    }))
}

fn in_pod(lab: &Lab, pod: usize, kind: RouteFault, family: Family) -> Result<FaultGuard> {
    let netns = lab.pod(pod).shared_netns();
    let (missing, added): (Vec<Route>, Vec<Route>) = match kind {
        RouteFault::None => {
            let routes = lab
                .default_routes_of(pod)
                .iter()
                .filter(|route| family.has(route.destination));
            (routes.cloned().collect(), Vec::new())
        }
        RouteFault::Unreachable | RouteFault::Prohibit | RouteFault::Blackhole => (
            Vec::new(),
            family
                .endpoints(lab)
                .into_iter()
                .map(|endpoint| refused(kind, endpoint))
                .collect(),
        ),
        RouteFault::OnLinkSilent | RouteFault::OnLink => bail!("on-link faults are the node's"),
    };
    exchange(&netns, &missing, &added)?;
    Ok(FaultGuard::new(move || exchange(&netns, &added, &missing)))
}

fn exchange(netns: &crate::topology::Netns, delete: &[Route], add: &[Route]) -> Result<()> {
    netns.netlink(async |handle| {
        for route in delete {
            route.delete(&handle).await?;
        }
        for route in add {
            route.add(&handle).await?;
        }
        Ok(())
    })
}

/// Adds a rule for packets that arrive from the bridge. For routing, the rule `unreachable` is the same as a missing route.
fn for_forwarded(lab: &Lab, kind: RouteFault, family: Family) -> Result<FaultGuard> {
    let action = match kind {
        RouteFault::None | RouteFault::Unreachable => RuleAction::Unreachable,
        RouteFault::Prohibit => RuleAction::Prohibit,
        RouteFault::Blackhole => RuleAction::Blackhole,
        RouteFault::OnLinkSilent | RouteFault::OnLink => bail!("on-link faults are the node's"),
    };
    let rules: Vec<RuleMessage> = family
        .endpoints(lab)
        .into_iter()
        .map(|endpoint| rule(action, endpoint))
        .collect();
    let netns = lab.node().shared_netns();
    netns.netlink(async |handle| {
        for rule in &rules {
            add(&handle, rule.clone()).await?;
        }
        Ok(())
    })?;
    Ok(FaultGuard::new(move || {
        netns.netlink(async |handle| {
            for rule in &rules {
                handle.rule().del(rule.clone()).execute().await?;
            }
            Ok(())
        })
    }))
}

fn rule(action: RuleAction, endpoint: IpAddr) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = if endpoint.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    rule.header.dst_len = if endpoint.is_ipv4() { 32 } else { 128 };
    rule.header.action = action;
    rule.attributes = vec![
        RuleAttribute::Destination(endpoint),
        RuleAttribute::Iifname(BRIDGE.to_owned()),
        RuleAttribute::Priority(100),
    ];
    rule
}

async fn add(handle: &Handle, rule: RuleMessage) -> Result<()> {
    let mut request = handle.rule().add();
    *request.message_mut() = rule;
    Ok(request.execute().await?)
}
