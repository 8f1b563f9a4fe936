//! Interfaces, addresses and routes, over netlink. Every function works in the namespace of its handle, whose thread
//! it has to run on.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, OwnedFd},
};

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use nix::net::if_::if_nametoindex;
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        address::AddressHeaderFlags,
        link::{InfoData, InfoVeth, LinkAttribute, LinkFlags},
        route::{RouteMessage, RouteScope, RouteType},
    },
};

/// A route, and all that is needed to take it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub destination: IpAddr,
    pub prefix: u8,
    pub hop: Hop,
    /// Routing table; `MAIN` unless a rule leads elsewhere.
    pub table: u32,
}

pub const MAIN: u32 = 254;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hop {
    Via {
        gateway: IpAddr,
        interface: String,
    },
    OnLink {
        interface: String,
    },
    /// `unreachable`, `prohibit`, `blackhole`: the kernel answers itself.
    Refused(RouteType),
}

impl Route {
    pub fn new(destination: IpAddr, prefix: u8, hop: Hop) -> Self {
        Self {
            destination,
            prefix,
            hop,
            table: MAIN,
        }
    }

    pub fn via(destination: IpAddr, prefix: u8, gateway: IpAddr, interface: &str) -> Self {
        Self::new(
            destination,
            prefix,
            Hop::Via {
                gateway,
                interface: interface.to_owned(),
            },
        )
    }

    /// The default route of the gateway's family.
    pub fn default_via(gateway: IpAddr, interface: &str) -> Self {
        Self::via(unspecified(gateway), 0, gateway, interface)
    }

    fn message(&self) -> Result<RouteMessage> {
        let mut message = match self.destination {
            IpAddr::V4(destination) => {
                let mut route = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(destination, self.prefix);
                if let Hop::Via {
                    gateway: IpAddr::V4(gateway),
                    ..
                } = self.hop
                {
                    route = route.gateway(gateway);
                }
                route.table_id(self.table).build()
            }
            IpAddr::V6(destination) => {
                let mut route = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(destination, self.prefix);
                if let Hop::Via {
                    gateway: IpAddr::V6(gateway),
                    ..
                } = self.hop
                {
                    route = route.gateway(gateway);
                }
                route.table_id(self.table).build()
            }
        };
        match &self.hop {
            Hop::Via { interface, .. } => message.attributes.push(output(interface)?),
            Hop::OnLink { interface } => {
                message.header.scope = RouteScope::Link;
                message.attributes.push(output(interface)?);
            }
            Hop::Refused(kind) => message.header.kind = *kind,
        }
        Ok(message)
    }

    pub async fn add(&self, handle: &Handle) -> Result<()> {
        handle
            .route()
            .add(self.message()?)
            .execute()
            .await
            .with_context(|| format!("add {self:?}"))
    }

    pub async fn delete(&self, handle: &Handle) -> Result<()> {
        handle
            .route()
            .del(self.message()?)
            .execute()
            .await
            .with_context(|| format!("delete {self:?}"))
    }
}

fn output(interface: &str) -> Result<rtnetlink::packet_route::route::RouteAttribute> {
    Ok(rtnetlink::packet_route::route::RouteAttribute::Oif(index(interface)?))
}

fn unspecified(like: IpAddr) -> IpAddr {
    if like.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    }
}

/// The index of an interface in the calling thread's namespace.
pub fn index(interface: &str) -> Result<u32> {
    if_nametoindex(interface).with_context(|| format!("find interface {interface}"))
}

/// Makes a veth pair, one end here, the other at once in `netns`: none of them is ever anywhere else.
pub async fn veth(handle: &Handle, name: &str, peer: &str, netns: &OwnedFd) -> Result<()> {
    let peer_message = LinkMessageBuilder::<LinkUnspec>::new()
        .name(peer)
        .setns_by_fd(netns.as_raw_fd())
        .build();
    let message = LinkVeth::new(name, peer)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer_message)))
        .up()
        .build();
    handle
        .link()
        .add(message)
        .execute()
        .await
        .with_context(|| format!("make veth pair {name}/{peer}"))
}

/// With an address of its own: else a bridge takes that of a port, and neighbors lose it with the port.
pub async fn bridge(handle: &Handle, name: &str) -> Result<()> {
    let message = LinkBridge::new(name)
        .address(vec![0x0a, 0x58, 10, 88, 0, 1])
        .up()
        .build();
    handle
        .link()
        .add(message)
        .execute()
        .await
        .with_context(|| format!("make bridge {name}"))
}

pub async fn plug_into(handle: &Handle, interface: &str, bridge: &str) -> Result<()> {
    let message = LinkUnspec::new_with_index(index(interface)?)
        .controller(index(bridge)?)
        .build();
    handle
        .link()
        .change(message)
        .execute()
        .await
        .with_context(|| format!("plug {interface} into {bridge}"))
}

pub async fn up(handle: &Handle, interface: &str) -> Result<()> {
    let message = LinkUnspec::new_with_index(index(interface)?).up().build();
    handle
        .link()
        .change(message)
        .execute()
        .await
        .with_context(|| format!("bring {interface} up"))
}

pub async fn delete(handle: &Handle, interface: &str) -> Result<()> {
    handle
        .link()
        .del(index(interface)?)
        .execute()
        .await
        .with_context(|| format!("delete {interface}"))
}

pub async fn add_address(handle: &Handle, interface: &str, address: IpAddr, prefix: u8) -> Result<()> {
    let mut request = handle.address().add(index(interface)?, address, prefix);
    // Without it an IPv6 address can't be bound to before a kernel thread has run, even where duplicate address detection is off.
    if address.is_ipv6() {
        request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
    }
    request
        .execute()
        .await
        .with_context(|| format!("give {interface} the address {address}/{prefix}"))
}

/// The interfaces that could carry a packet away: up, and no loopback.
pub async fn active_interfaces(handle: &Handle) -> Result<Vec<String>> {
    let mut links = handle.link().get().execute();
    let mut names = Vec::new();
    while let Some(link) = links.try_next().await? {
        let flags = link.header.flags;
        if flags.contains(LinkFlags::Up) && !flags.contains(LinkFlags::Loopback) {
            names.extend(link.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            }));
        }
    }
    Ok(names)
}

/// How many default routes there are that lead somewhere, both families.
pub async fn default_routes(handle: &Handle) -> Result<usize> {
    let mut count = 0;
    for query in [
        RouteMessageBuilder::<Ipv4Addr>::new().build(),
        RouteMessageBuilder::<Ipv6Addr>::new().build(),
    ] {
        let mut routes = handle.route().get(query).execute();
        while let Some(route) = routes.try_next().await? {
            count +=
                usize::from(route.header.destination_prefix_length == 0 && route.header.kind == RouteType::Unicast);
        }
    }
    Ok(count)
}
