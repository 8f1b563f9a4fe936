//! Does the next hop to each endpoint answer on its link?

use std::net::IpAddr;

use netlink_packet_route::neighbour::NeighbourState;

use super::check::{Check, CheckState};
use super::routes::{dash6, interface};
use crate::host::routes::{Hop, Neighbour, Routed, Routing};
use crate::record::Code;

const NAME: &str = "neighbour";

pub(super) fn checks(endpoints: &[IpAddr]) -> Vec<Check> {
    let mut routing = match Routing::open() {
        Ok(routing) => routing,
        Err(error) => return vec![Check::unread(NAME, error)],
    };
    let neighbours = match routing.neighbours() {
        Ok(neighbours) => neighbours,
        Err(error) => return vec![Check::unread(NAME, error)],
    };
    let mut checks = Vec::new();
    for endpoint in endpoints {
        // Local traffic has no neighbor; `route` reports it.
        let Ok(Routed::Through(hop)) = routing.route_to(*endpoint) else {
            continue;
        };
        let gateway = routing
            .default_route(endpoint.is_ipv6())
            .ok()
            .flatten()
            .filter(|default| default.ifindex == hop.ifindex)
            .and_then(|default| default.gateway);
        let device = interface(hop.ifindex);
        checks.push(check(*endpoint, &hop, &device, &neighbours, gateway).about(endpoint));
    }
    checks
}

/// `gateway`: of the default route through the same interface.
fn check(endpoint: IpAddr, hop: &Hop, device: &str, neighbours: &[Neighbour], gateway: Option<IpAddr>) -> Check {
    let next = hop.gateway.unwrap_or(endpoint);
    let state = neighbours
        .iter()
        .find(|neighbour| neighbour.ifindex == hop.ifindex && neighbour.address == next)
        .map(|neighbour| neighbour.state);
    let on_link = hop.gateway.is_none();
    let who = if on_link {
        format!("{next}, on the link of {device}")
    } else {
        format!("{next} on {device}")
    };
    match state {
        Some(NeighbourState::Failed | NeighbourState::Incomplete) => Check::new(
            NAME,
            CheckState::Fault,
            format!("{who} doesn't answer ARP or neighbor discovery"),
        )
        .meaning("connect() fails with \"no route to host\" after three seconds")
        .remedied(remedy_text(on_link), remedy(endpoint, on_link, device, gateway))
        .reported_as(Code::NeighborUnresolved),
        None if on_link => Check::new(NAME, CheckState::Note, format!("{who}: not resolved yet"))
            .meaning("the first request shows whether it answers; on EC2 the gateway always forwards to IMDS")
            .remedied(remedy_text(on_link), remedy(endpoint, on_link, device, gateway)),
        None => Check::ok(NAME, format!("{who}: not resolved yet")),
        Some(state) => Check::ok(NAME, format!("{who}: {}", format!("{state:?}").to_ascii_lowercase())),
    }
}

fn remedy_text(on_link: bool) -> &'static str {
    if on_link {
        "An on-link route covers the endpoint. Delete that route, or add a more specific host route through the gateway."
    } else {
        "Check that the gateway is up and that its address in the route is correct."
    }
}

fn remedy(endpoint: IpAddr, on_link: bool, device: &str, gateway: Option<IpAddr>) -> Vec<String> {
    let family = dash6(endpoint);
    let look = format!("ip {family}neigh show dev {device}");
    if !on_link {
        return vec![look];
    }
    let gateway = gateway.map_or_else(|| "GATEWAY".to_owned(), |gateway| gateway.to_string());
    let width = if endpoint.is_ipv6() { 128 } else { 32 };
    vec![
        look,
        format!("ip {family}route add {endpoint}/{width} via {gateway} dev {device}"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_was_asked_and_did_not_answer_is_a_fault() {
        let endpoint: IpAddr = "169.254.169.254".parse().unwrap();
        let gateway: IpAddr = "10.0.0.1".parse().unwrap();
        let neighbour = |address, state| Neighbour {
            address,
            ifindex: 7,
            state,
        };
        let on_link = Hop {
            ifindex: 7,
            gateway: None,
            source: None,
        };
        let failed = [neighbour(endpoint, NeighbourState::Failed)];
        let reported = check(endpoint, &on_link, "eth0", &failed, Some(gateway));
        assert_eq!(reported.state, CheckState::Fault);
        let commands = reported.remedy.unwrap().commands;
        assert_eq!(commands[1], "ip route add 169.254.169.254/32 via 10.0.0.1 dev eth0");
        assert_eq!(check(endpoint, &on_link, "eth0", &[], None).state, CheckState::Note);
        let stale = [neighbour(endpoint, NeighbourState::Stale)];
        assert_eq!(check(endpoint, &on_link, "eth0", &stale, None).state, CheckState::Ok);
        let routed = Hop {
            gateway: Some(gateway),
            ..on_link
        };
        assert_eq!(
            check(endpoint, &routed, "eth0", &failed, None).state,
            CheckState::Ok,
            "another one"
        );
        let down = [neighbour(gateway, NeighbourState::Incomplete)];
        assert_eq!(check(endpoint, &routed, "eth0", &down, None).state, CheckState::Fault);
    }
}
