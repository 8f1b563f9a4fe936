//! How this host routes: the kernel's answer for one destination, rules, neighbors and interfaces.

use std::net::IpAddr;

use netlink_packet_core::{Emitable, Parseable as _};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteType, RouteVia};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::netlink::{Netlink, NetlinkError};

const RTM_GETLINK: u16 = 18;
const RTM_GETROUTE: u16 = 26;
const RTM_GETNEIGH: u16 = 30;
const RTM_GETRULE: u16 = 34;
pub const MAIN_TABLE: u32 = 254;
/// This host's own addresses.
pub const LOCAL_TABLE: u32 = 255;

/// The kernel's routing decision for a packet to a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Routed {
    Through(Hop),
    /// The destination is an address of this host.
    Local,
    /// No packet would leave: the errno that `connect()` returns, positive.
    Refused(i32),
}

/// The interface and, unless the destination is on the link itself, the router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    pub ifindex: u32,
    pub gateway: Option<IpAddr>,
    /// The address that a socket without one gets.
    pub source: Option<IpAddr>,
}

/// An entry of a routing table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub table: u32,
    pub prefix: IpAddr,
    pub prefix_len: u8,
    pub kind: RouteType,
    /// Lower wins between equal prefixes.
    pub metric: u32,
    /// More than one: multipath.
    pub hops: Vec<Hop>,
}

impl Route {
    pub fn covers(&self, address: IpAddr) -> bool {
        covers(self.prefix, self.prefix_len, address)
    }
}

/// An entry of `ip rule`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub v6: bool,
    pub priority: u32,
    pub action: RuleAction,
    pub table: u32,
    pub from: Option<(IpAddr, u8)>,
    pub to: Option<(IpAddr, u8)>,
    pub iif: Option<String>,
    pub oif: Option<String>,
    pub mark: Option<(u32, u32)>,
    pub uids: Option<(u32, u32)>,
    /// Protocol or port ranges or others that are not read here.
    pub narrowed: bool,
    /// To the table of the VRF that the packet or its socket belongs to.
    pub l3mdev: bool,
    pub inverted: bool,
}

impl Rule {
    /// Whether it applies to every packet to this address.
    pub fn unconditional_for(&self, address: IpAddr) -> bool {
        self.v6 == address.is_ipv6()
            && !self.inverted
            && !self.narrowed
            && self.from.is_none()
            && self.iif.is_none()
            && self.oif.is_none()
            && self.mark.is_none()
            && self.uids.is_none()
            && self.may_concern(address)
    }

    /// Whether it may apply to some packet to this address.
    pub fn may_concern(&self, address: IpAddr) -> bool {
        let to = self.to.is_none_or(|(prefix, len)| covers(prefix, len, address));
        self.v6 == address.is_ipv6() && (to || self.inverted)
    }
}

/// State of a neighbor's link-layer address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    pub address: IpAddr,
    pub ifindex: u32,
    pub state: NeighbourState,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub ifindex: u32,
    pub name: String,
    pub loopback: bool,
    pub up: bool,
    /// It has no link layer on which the provider could answer: `tun`, `wireguard`, `ppp`, a tunnel. The kind as the kernel names it.
    pub tunnel: Option<String>,
    /// The device below that passes this one's packets on as they are (VLAN, macvlan, ipvlan), in the same namespace. Not that of a tunnel,
    /// where they are inside others, nor a veth's peer.
    pub lower: Option<u32>,
    /// The bond, bridge or VRF that this one is a port of.
    pub controller: Option<u32>,
}

/// A connection to the kernel's routing.
pub struct Routing {
    netlink: Netlink,
}

impl Routing {
    /// Opens the tables of the calling thread's network namespace.
    pub fn open() -> Result<Self, NetlinkError> {
        let netlink = Netlink::open(NETLINK_ROUTE)?;
        netlink.strict();
        Ok(Self { netlink })
    }

    /// How the kernel would route a packet of this host to `destination`.
    pub fn route_to(&mut self, destination: IpAddr) -> Result<Routed, NetlinkError> {
        match self.ask(destination, RouteFlags::empty())? {
            Err(errno) => Ok(Routed::Refused(errno)),
            Ok(routes) => Ok(routes.into_iter().next().map_or(
                // No message and no error: not seen on any kernel.
                Routed::Refused(libc::ENETUNREACH),
                |route| match route.kind {
                    RouteType::Local => Routed::Local,
                    RouteType::Unreachable => Routed::Refused(libc::EHOSTUNREACH),
                    RouteType::Prohibit => Routed::Refused(libc::EACCES),
                    RouteType::BlackHole => Routed::Refused(libc::EINVAL),
                    _ => route
                        .hops
                        .into_iter()
                        .next()
                        .map_or(Routed::Refused(libc::ENETUNREACH), Routed::Through),
                },
            )),
        }
    }

    /// The table entry that decides about `destination`, with all hops of a multipath route. `None`: there is none.
    pub fn entry_for(&mut self, destination: IpAddr) -> Result<Option<Route>, NetlinkError> {
        Ok(self
            .ask(destination, RouteFlags::FibMatch)?
            .ok()
            .and_then(|routes| routes.into_iter().next()))
    }

    fn ask(&mut self, destination: IpAddr, flags: RouteFlags) -> Result<Result<Vec<Route>, i32>, NetlinkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(destination.is_ipv6());
        message.header.destination_prefix_length = if destination.is_ipv6() { 128 } else { 32 };
        message.header.flags = flags;
        message
            .attributes
            .push(RouteAttribute::Destination(RouteAddress::from(destination)));
        match self.netlink.get(RTM_GETROUTE, &bytes(&message)) {
            Ok(replies) => Ok(Ok(replies
                .iter()
                .filter_map(|reply| RouteMessage::parse(reply.payload.as_slice()).ok())
                .filter_map(|message| route(&message))
                .collect())),
            Err(NetlinkError::Refused(errno)) => Ok(Err(errno)),
            Err(error) => Err(error),
        }
    }

    /// The entries of one table. A table that doesn't exist is empty.
    pub fn table(&mut self, table: u32, v6: bool) -> Result<Vec<Route>, NetlinkError> {
        let mut routes = self.dump_routes(Some(table), v6)?;
        routes.retain(|route| route.table == table);
        Ok(routes)
    }

    /// The entries of all tables.
    pub fn routes(&mut self, v6: bool) -> Result<Vec<Route>, NetlinkError> {
        self.dump_routes(None, v6)
    }

    fn dump_routes(&mut self, table: Option<u32>, v6: bool) -> Result<Vec<Route>, NetlinkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(v6);
        message.attributes.extend(table.map(RouteAttribute::Table));
        let replies = match self.netlink.dump(RTM_GETROUTE, &bytes(&message)) {
            Ok(replies) => replies,
            // No such table, or a kernel without this family.
            Err(NetlinkError::Refused(libc::ENOENT | libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        Ok(replies
            .iter()
            .filter_map(|reply| RouteMessage::parse(reply.payload.as_slice()).ok())
            .filter(|message| !message.header.flags.contains(RouteFlags::Cloned))
            .filter_map(|message| route(&message))
            .collect())
    }

    /// The main table's default route.
    pub fn default_route(&mut self, v6: bool) -> Result<Option<Hop>, NetlinkError> {
        Ok(self
            .table(MAIN_TABLE, v6)?
            .into_iter()
            .filter(|route| route.prefix_len == 0 && route.kind == RouteType::Unicast)
            .min_by_key(|route| route.metric)
            .and_then(|route| route.hops.into_iter().next()))
    }

    /// In the order of their priority.
    pub fn rules(&mut self, v6: bool) -> Result<Vec<Rule>, NetlinkError> {
        let mut message = RuleMessage::default();
        message.header.family = family(v6);
        let replies = match self.netlink.dump(RTM_GETRULE, &bytes(&message)) {
            Ok(replies) => replies,
            // A kernel without policy routing, or without this family.
            Err(NetlinkError::Refused(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut rules: Vec<_> = replies
            .iter()
            .filter_map(|reply| RuleMessage::parse(reply.payload.as_slice()).ok())
            .map(|message| rule(&message))
            .collect();
        rules.sort_by_key(|rule| rule.priority);
        Ok(rules)
    }

    pub fn neighbours(&mut self) -> Result<Vec<Neighbour>, NetlinkError> {
        let message = NeighbourMessage::default();
        Ok(self
            .netlink
            .dump(RTM_GETNEIGH, &bytes(&message))?
            .iter()
            .filter_map(|reply| NeighbourMessage::parse(reply.payload.as_slice()).ok())
            .filter_map(|message| neighbour(&message))
            .collect())
    }

    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let message = LinkMessage::default();
        Ok(self
            .netlink
            .dump(RTM_GETLINK, &bytes(&message))?
            .iter()
            .filter_map(|reply| LinkMessage::parse(reply.payload.as_slice()).ok())
            .filter_map(|message| link(&message))
            .collect())
    }
}

fn family(v6: bool) -> AddressFamily {
    if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet }
}

fn bytes(message: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
}

/// Whether `address` is within the prefix; never across families.
pub fn covers(prefix: IpAddr, len: u8, address: IpAddr) -> bool {
    let equal = |a: u128, b: u128, width: u8| {
        let shift = u32::from(width.saturating_sub(len));
        (a ^ b).checked_shr(shift).unwrap_or(0) == 0
    };
    match (prefix, address) {
        (IpAddr::V4(a), IpAddr::V4(b)) => equal(u32::from(a).into(), u32::from(b).into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => equal(a.into(), b.into(), 128),
        _ => false,
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        // An IPv4 route through an IPv6 router.
        RouteAttribute::Via(RouteVia::Inet(v4)) => Some((*v4).into()),
        RouteAttribute::Via(RouteVia::Inet6(v6)) => Some((*v6).into()),
        _ => None,
    })
}

/// `None`: of another family.
fn route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let v6 = match header.address_family {
        AddressFamily::Inet => false,
        AddressFamily::Inet6 => true,
        _ => return None,
    };
    let any: IpAddr = if v6 { [0_u16; 8].into() } else { [0_u8; 4].into() };
    let (mut table, mut metric, mut prefix) = (u32::from(header.table), 0, any);
    let (mut oif, mut source, mut hops) = (None, None, Vec::new());
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(number) => metric = *number,
            RouteAttribute::Destination(address) => prefix = ip(address).unwrap_or(any),
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Oif(index) => oif = Some(*index),
            RouteAttribute::MultiPath(next) => hops.extend(next.iter().map(|hop| Hop {
                ifindex: hop.interface_index,
                gateway: gateway(&hop.attributes),
                source: None,
            })),
            _ => {}
        }
    }
    if let Some(ifindex) = oif {
        hops.push(Hop {
            ifindex,
            gateway: gateway(&message.attributes),
            source,
        });
    }
    Some(Route {
        table,
        prefix,
        prefix_len: header.destination_prefix_length,
        kind: header.kind,
        metric,
        hops,
    })
}

fn rule(message: &RuleMessage) -> Rule {
    let header = &message.header;
    let mut rule = Rule {
        v6: header.family == AddressFamily::Inet6,
        priority: 0,
        action: header.action,
        table: header.table.into(),
        from: None,
        to: None,
        iif: None,
        oif: None,
        mark: None,
        uids: None,
        narrowed: header.tos != 0,
        l3mdev: false,
        inverted: header.flags.contains(RuleFlags::Invert),
    };
    let (mut mark, mut mask) = (None, u32::MAX);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(number) => rule.priority = *number,
            RuleAttribute::Table(number) => rule.table = *number,
            RuleAttribute::Source(address) => rule.from = Some((*address, header.src_len)),
            RuleAttribute::Destination(address) => rule.to = Some((*address, header.dst_len)),
            RuleAttribute::Iifname(name) => rule.iif = Some(name.clone()),
            RuleAttribute::Oifname(name) => rule.oif = Some(name.clone()),
            RuleAttribute::FwMark(number) => mark = Some(*number),
            RuleAttribute::FwMask(number) => mask = *number,
            RuleAttribute::UidRange(range) => rule.uids = Some((range.start, range.end)),
            RuleAttribute::TunId(_)
            | RuleAttribute::IpProtocol(_)
            | RuleAttribute::SourcePortRange(_)
            | RuleAttribute::DestinationPortRange(_) => rule.narrowed = true,
            RuleAttribute::L3MDev(on) => {
                rule.narrowed |= *on;
                rule.l3mdev = *on;
            }
            _ => {}
        }
    }
    // The kernel reports mark 0 with mask 0 if the rule has none.
    rule.mark = mark.map(|mark| (mark, mask)).filter(|(_, mask)| *mask != 0);
    rule
}

fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    })?;
    Some(Neighbour {
        address,
        ifindex: message.header.ifindex,
        state: message.header.state,
    })
}

/// A device that leads into a tunnel or to a single peer.
fn tunnel(flags: LinkFlags, kind: Option<&InfoKind>) -> Option<String> {
    let carries_frames = matches!(
        kind,
        Some(
            InfoKind::Veth
                | InfoKind::Vlan
                | InfoKind::Bridge
                | InfoKind::Bond
                | InfoKind::MacVlan
                | InfoKind::IpVlan
                | InfoKind::Netkit
                | InfoKind::Dummy
                | InfoKind::Vrf
        )
    );
    let named = kind.map(ToString::to_string);
    let is_tunnel = matches!(
        kind,
        Some(
            InfoKind::Wireguard
                | InfoKind::IpIp
                | InfoKind::Ip6Tnl
                | InfoKind::SitTun
                | InfoKind::GreTun
                | InfoKind::GreTun6
                | InfoKind::Vti
                | InfoKind::Vti6
                | InfoKind::Xfrm
        )
    );
    let to_one_peer = flags.contains(LinkFlags::Pointopoint) && !flags.contains(LinkFlags::Loopback) && !carries_frames;
    (is_tunnel || to_one_peer).then(|| named.unwrap_or_else(|| "point-to-point".to_owned()))
}

fn passes_on(kind: Option<&InfoKind>) -> bool {
    matches!(
        kind,
        Some(InfoKind::Vlan | InfoKind::MacVlan | InfoKind::MacVtap | InfoKind::IpVlan | InfoKind::IpVtap)
    )
}

fn link(message: &LinkMessage) -> Option<Link> {
    let (mut name, mut lower, mut controller, mut foreign) = (None, None, None, false);
    let mut kind = None;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::Link(index) if *index != 0 => lower = Some(*index),
            LinkAttribute::Controller(index) => controller = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind),
                    _ => None,
                });
            }
            // The lower device is in another namespace, where its index means something else.
            LinkAttribute::LinkNetNsId(_) => foreign = true,
            _ => {}
        }
    }
    Some(Link {
        ifindex: message.header.index,
        name: name?,
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        up: message.header.flags.contains(LinkFlags::Up),
        tunnel: tunnel(message.header.flags, kind),
        lower: lower.filter(|_| !foreign && passes_on(kind)),
        controller,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_some_kinds_show_their_packets_below() {
        let lower = |kind: InfoKind| {
            let mut message = LinkMessage::default();
            message.attributes = vec![
                LinkAttribute::IfName("x".to_owned()),
                LinkAttribute::Link(7),
                LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]),
            ];
            link(&message).unwrap().lower
        };
        for kind in [InfoKind::Vlan, InfoKind::MacVlan, InfoKind::IpVlan] {
            assert_eq!(lower(kind), Some(7));
        }
        for kind in [
            InfoKind::GreTun,
            InfoKind::IpIp,
            InfoKind::Xfrm,
            InfoKind::MacSec,
            InfoKind::Veth,
        ] {
            assert_eq!(lower(kind), None, "its packets are inside others, or leave elsewhere");
        }
    }

    #[test]
    fn prefixes_cover_what_is_in_them() {
        let address = |text: &str| -> IpAddr { text.parse().unwrap() };
        for (prefix, len, inside, outside) in [
            ("169.254.0.0", 16, "169.254.169.254", "169.255.0.1"),
            ("0.0.0.0", 0, "169.254.169.254", "fd00:ec2::254"),
            ("fd00:ec2::", 32, "fd00:ec2::254", "fd00:ec3::254"),
            ("169.254.169.254", 32, "169.254.169.254", "169.254.169.253"),
            ("::", 0, "fd00:ec2::254", "169.254.169.254"),
        ] {
            assert!(covers(address(prefix), len, address(inside)), "{prefix}/{len}");
            assert!(!covers(address(prefix), len, address(outside)), "{prefix}/{len}");
        }
        assert!(
            covers(address("1.2.3.4"), 200, address("1.2.3.4")),
            "no shift out of range"
        );
    }
}
