//! Which interfaces lead to the metadata service, now and as they come and go.
//!
//! Only the kernel is asked. Every table counts that a rule leads some packet to, whatever the rule looks at (source, incoming interface,
//! mark, user, bound device), and in a table every route that covers an endpoint: a socket that is bound to a device (SO_BINDTODEVICE)
//! takes routes that others pass over.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use netlink_packet_route::route::RouteType;
use netlink_packet_route::rule::RuleAction;
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::time::{ClockId, clock_gettime};

use super::netlink::NetlinkError;
use super::routes::{LOCAL_TABLE, Link, Route, Routed, Routing};

/// Interfaces that are followed at once. An instance has at most 15 network cards' worth of them; trunks have more.
const MAX_UPLINKS: usize = 128;
/// The tables are read again no sooner than after this many times the processor time that reading them took: a router's are long, and change all the time.
const READING_SHARE: u32 = 20;
/// Reading that is over so soon is no load, however often it is done.
const SHORT_READING: Duration = Duration::from_millis(20);
/// A VLAN on a bond on a ...: deeper stacks are no stacks.
const MAX_DEPTH: usize = 8;
/// `RTNLGRP_LINK`, `_IPV4_ROUTE`, `_IPV4_RULE`, `_IPV6_ROUTE`, `_IPV6_RULE`.
const GROUPS: [u32; 5] = [1, 7, 8, 11, 19];

/// An interface through which packets to an endpoint leave.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Uplink {
    pub ifindex: u32,
    pub name: String,
}

/// Finds uplinks.
pub struct Uplinks;

impl Uplinks {
    /// Finds the uplinks of the calling thread's network namespace. The list is empty if no route leads out, which is a finding, not an
    /// error.
    pub fn discover(endpoints: &[IpAddr]) -> Result<Vec<Uplink>, NetlinkError> {
        let mut found = discover(&mut Routing::open()?, endpoints)?;
        found.truncate(MAX_UPLINKS);
        Ok(found)
    }
}

fn discover(routing: &mut Routing, endpoints: &[IpAddr]) -> Result<Vec<Uplink>, NetlinkError> {
    let mut found = BTreeSet::new();
    for endpoint in endpoints {
        if let Routed::Through(hop) = routing.route_to(*endpoint)? {
            found.insert(hop.ifindex);
            // A multipath route may take any of its ways.
            let entry = routing.entry_for(*endpoint)?;
            found.extend(entry.iter().flat_map(|route| &route.hops).map(|hop| hop.ifindex));
        }
    }
    for v6 in [false, true] {
        let wanted: Vec<_> = endpoints.iter().copied().filter(|ip| ip.is_ipv6() == v6).collect();
        if wanted.is_empty() {
            continue;
        }
        let mut tables = BTreeSet::new();
        let mut any_table = false;
        for rule in routing.rules(v6)? {
            if rule.action == RuleAction::ToTable && wanted.iter().any(|endpoint| rule.may_concern(*endpoint)) {
                tables.insert(rule.table);
                // The table of whichever VRF the packet or the socket belongs to.
                any_table |= rule.l3mdev;
            }
        }
        let routes = routing.routes(v6)?;
        found.extend(
            routes
                .iter()
                .filter(|route| route.table != LOCAL_TABLE && (any_table || tables.contains(&route.table)))
                .filter(|route| route.kind == RouteType::Unicast)
                .filter(|route| wanted.iter().any(|endpoint| route.covers(*endpoint)))
                .flat_map(|route| &route.hops)
                .map(|hop| hop.ifindex),
        );
    }
    let links = routing.links()?;
    Ok(uplinks(&found, &links))
}

/// The entry of a table that a packet to `address` takes.
pub fn best(routes: &[Route], address: IpAddr) -> Option<&Route> {
    routes
        .iter()
        .filter(|route| route.covers(address))
        .max_by_key(|route| (route.prefix_len, std::cmp::Reverse(route.metric)))
}

/// Names them, without loopback, and without devices whose packets pass another one of them again.
fn uplinks(found: &BTreeSet<u32>, links: &[Link]) -> Vec<Uplink> {
    let link = |index: u32| links.iter().find(|link| link.ifindex == index);
    let passes_again = |index: u32| {
        let mut at = index;
        for _ in 0..MAX_DEPTH {
            match link(at).and_then(|link| link.lower) {
                // A VLAN device's packets pass its lower device with the tag beside the packet, so they are read there as well.
                Some(lower) if lower != at && found.contains(&lower) => return true,
                Some(lower) if lower != at => at = lower,
                _ => return false,
            }
        }
        false
    };
    found
        .iter()
        .filter_map(|index| link(*index))
        .filter(|link| !link.loopback && !passes_again(link.ifindex))
        .map(|link| Uplink {
            ifindex: link.ifindex,
            name: link.name.clone(),
        })
        .collect()
}

/// Change of an uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UplinkChange {
    Appeared(Uplink),
    /// It has another name than before.
    Renamed(Uplink),
    /// The interface is no more; one with its index and name may be there again.
    Gone(Uplink),
}

/// Follows the uplinks of the network namespace it was opened in.
///
/// An interface that is an uplink once stays one as long as it exists: a route that goes for a moment (a lease renewed, a link
/// flapping) would otherwise cost the packets in between.
pub struct UplinkMonitor {
    events: Socket,
    routing: Routing,
    endpoints: Vec<IpAddr>,
    known: Vec<Uplink>,
    /// Changed while a question failed: ask again.
    stale: bool,
    /// When the tables may be read again.
    rested: Instant,
    /// Interfaces beyond the bound.
    left_out: usize,
    /// Interfaces that were deleted since the last look. A new one may have the index of an old one.
    deleted: BTreeSet<u32>,
}

impl UplinkMonitor {
    /// Listens first, so that nothing is missed between. The uplinks that are there come as changes of the first call.
    pub fn open(endpoints: &[IpAddr]) -> Result<Self, NetlinkError> {
        let mut events = Socket::new(NETLINK_ROUTE)?;
        events.bind_auto()?;
        events.set_non_blocking(true)?;
        for group in GROUPS {
            // A kernel without IPv6 or policy routing may not have the group.
            if let Err(error) = events.add_membership(group)
                && group == GROUPS[0]
            {
                return Err(error.into());
            }
        }
        Ok(Self {
            events,
            routing: Routing::open()?,
            endpoints: endpoints.to_vec(),
            known: Vec::new(),
            stale: true,
            rested: Instant::now(),
            left_out: 0,
            deleted: BTreeSet::new(),
        })
    }

    /// For poll(2): readable when something may have changed.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    pub fn uplinks(&self) -> &[Uplink] {
        &self.known
    }

    /// Interfaces that lead to the endpoints too, and are not followed because there are too many.
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// Changes since the last call. Doesn't block; queries the kernel only after a notification.
    pub fn changes(&mut self) -> Result<Vec<UplinkChange>, NetlinkError> {
        self.stale |= drain(&self.events, &self.known, &mut self.deleted)?;
        if !self.stale || Instant::now() < self.rested {
            return Ok(Vec::new());
        }
        let begin = worked();
        let found = discover(&mut self.routing, &self.endpoints).and_then(|now| Ok((now, self.routing.links()?)));
        let reading = worked().saturating_sub(begin);
        if reading > SHORT_READING {
            self.rested = Instant::now() + reading * READING_SHARE;
        }
        let (now, links) = found?;
        self.stale = false;
        let deleted = std::mem::take(&mut self.deleted);
        let changes = settle(&mut self.known, &now, &links, &deleted);
        self.left_out = now.iter().filter(|uplink| !self.known.contains(uplink)).count();
        Ok(changes)
    }
}

/// Processor time of this thread: on a busy host reading lasts long and costs little, and must not wait for that.
fn worked() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

fn settle(known: &mut Vec<Uplink>, now: &[Uplink], links: &[Link], deleted: &BTreeSet<u32>) -> Vec<UplinkChange> {
    let mut changes = Vec::new();
    known.retain_mut(|uplink| {
        let link = links.iter().find(|link| link.ifindex == uplink.ifindex);
        let Some(link) = link.filter(|link| !deleted.contains(&link.ifindex)) else {
            changes.push(UplinkChange::Gone(uplink.clone()));
            return false;
        };
        if link.name != uplink.name {
            uplink.name.clone_from(&link.name);
            changes.push(UplinkChange::Renamed(uplink.clone()));
        }
        true
    });
    for uplink in now {
        if known.len() < MAX_UPLINKS && !known.iter().any(|known| known.ifindex == uplink.ifindex) {
            known.push(uplink.clone());
            changes.push(UplinkChange::Appeared(uplink.clone()));
        }
    }
    changes
}

/// Whether anything was reported. The state is asked for afresh; only that an interface was deleted can't be seen in it.
fn drain(events: &Socket, known: &[Uplink], deleted: &mut BTreeSet<u32>) -> Result<bool, NetlinkError> {
    // Truncated messages are fine for that.
    let mut buffer = [0_u8; 4096];
    let mut reported = false;
    loop {
        match events.recv(&mut &mut buffer[..], 0) {
            Ok(len) => {
                reported = true;
                deleted.extend(deleted_in(&buffer[..len.min(buffer.len())]));
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => return Ok(reported),
                io::ErrorKind::Interrupted => {}
                // More changes than the socket holds: some notifications were lost, but their existence is known.
                // Any of the interfaces may have been replaced.
                _ if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    reported = true;
                    deleted.extend(known.iter().map(|uplink| uplink.ifindex));
                }
                _ => return Err(error.into()),
            },
        }
    }
}

/// The interface that a notification reports as deleted: `struct nlmsghdr` and `struct ifinfomsg` in `linux/netlink.h` and
/// `linux/rtnetlink.h`. The kernel sends one a datagram.
fn deleted_in(message: &[u8]) -> Option<u32> {
    const HEADER: usize = 16;
    let field = |at: usize| message.get(at..)?.first_chunk().copied();
    let kind = u16::from_ne_bytes(message.get(4..)?.first_chunk().copied()?);
    // A bridge reports in its own family that an interface has left it.
    let family = *message.get(HEADER)?;
    (kind == libc::RTM_DELLINK && i32::from(family) == libc::AF_UNSPEC).then_some(())?;
    field(HEADER + 4).map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(ifindex: u32, name: &str, lower: Option<u32>) -> Link {
        Link {
            ifindex,
            name: name.to_owned(),
            loopback: name == "lo",
            up: true,
            tunnel: None,
            lower,
            controller: None,
        }
    }

    fn names(found: &[u32], links: &[Link]) -> Vec<String> {
        let found = found.iter().copied().collect();
        uplinks(&found, links).into_iter().map(|uplink| uplink.name).collect()
    }

    #[test]
    fn a_vlan_device_and_its_parent_are_counted_once() {
        let links = [
            link(1, "lo", None),
            link(2, "eth0", None),
            link(3, "eth1", None),
            link(4, "vlan.eth.1", Some(3)),
            link(5, "macvlan0", Some(4)),
            link(6, "loop", Some(6)),
        ];
        assert_eq!(names(&[1, 2], &links), ["eth0"]);
        assert_eq!(
            names(&[2, 4], &links),
            ["eth0", "vlan.eth.1"],
            "the parent is no uplink itself"
        );
        assert_eq!(names(&[2, 3, 4, 5], &links), ["eth0", "eth1"]);
        assert_eq!(names(&[6, 99], &links), ["loop"]);
    }

    #[test]
    fn an_uplink_stays_one_while_it_exists() {
        let (eth0, eth1) = (
            Uplink {
                ifindex: 2,
                name: "eth0".into(),
            },
            Uplink {
                ifindex: 3,
                name: "eth1".into(),
            },
        );
        let links = [link(2, "eth0", None), link(3, "eth1", None)];
        let (mut known, none) = (Vec::new(), BTreeSet::new());
        assert_eq!(
            settle(&mut known, std::slice::from_ref(&eth0), &links, &none),
            [UplinkChange::Appeared(eth0.clone())]
        );
        assert_eq!(
            settle(&mut known, std::slice::from_ref(&eth1), &links, &none),
            [UplinkChange::Appeared(eth1)]
        );
        assert_eq!(settle(&mut known, &[], &links, &none), []);
        assert_eq!(settle(&mut known, &[], &links[1..], &none), [UplinkChange::Gone(eth0)]);
    }

    #[test]
    fn a_name_moves_and_an_index_returns() {
        let uplink = |name: &str| Uplink {
            ifindex: 2,
            name: name.into(),
        };
        let (eth0, ens5) = (uplink("eth0"), uplink("ens5"));
        let mut known = vec![eth0.clone()];
        let renamed = [link(2, "ens5", None)];
        assert_eq!(
            settle(&mut known, std::slice::from_ref(&ens5), &renamed, &BTreeSet::new()),
            [UplinkChange::Renamed(ens5.clone())]
        );
        assert_eq!(known, std::slice::from_ref(&ens5));
        // Deleted and made again between two looks, with the same index and name.
        assert_eq!(
            settle(&mut known, std::slice::from_ref(&ens5), &renamed, &BTreeSet::from([2])),
            [UplinkChange::Gone(ens5.clone()), UplinkChange::Appeared(ens5)]
        );
        let message = |kind: u16, family: u8| {
            let mut bytes = vec![0; 64];
            bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
            bytes[16] = family;
            bytes[20..24].copy_from_slice(&7_u32.to_ne_bytes());
            bytes
        };
        assert_eq!(deleted_in(&message(libc::RTM_DELLINK, 0)), Some(7));
        assert_eq!(deleted_in(&message(libc::RTM_NEWLINK, 0)), None);
        assert_eq!(
            deleted_in(&message(libc::RTM_DELLINK, libc::AF_BRIDGE as u8)),
            None,
            "it left a bridge"
        );
        for len in 0..24 {
            assert_eq!(deleted_in(&message(libc::RTM_DELLINK, 0)[..len]), None);
        }
    }
}
