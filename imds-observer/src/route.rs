//! Asks the kernel how it would route to an address. Sends nothing: the answer comes from the routing tables.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::net::if_::if_indextoname;

/// An address of TEST-NET-2, used by nobody: whatever reaches it goes by the default route.
const ANYWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));
/// More than one route's answer.
const ANSWER_BYTES: usize = 8192;

/// Where packets to an address would go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub interface: Option<String>,
    pub gateway: Option<IpAddr>,
    /// Source address that would be used.
    pub source: Option<IpAddr>,
    /// The address is this host's own.
    pub local: bool,
}

/// The default route.
pub fn default() -> io::Result<Route> {
    to(ANYWHERE)
}

/// As `ip route get`. No route is an error with its errno (`ENETUNREACH`, `EHOSTUNREACH`, `EACCES`, `EINVAL`).
pub fn to(address: IpAddr) -> io::Result<Route> {
    let mut request = RouteMessage::default();
    (request.header.address_family, request.header.destination_prefix_length) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    request.attributes.push(RouteAttribute::Destination(address.into()));
    let mut message = NetlinkMessage::from(RouteNetlinkMessage::GetRoute(request));
    message.header.flags = NLM_F_REQUEST;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len().max(ANSWER_BYTES)];
    message.serialize(&mut bytes);

    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.send_to(&bytes[..message.buffer_len()], &SocketAddr::new(0, 0), 0)?;
    bytes.resize(ANSWER_BYTES, 0);
    let (read, _) = socket.recv_from(&mut &mut bytes[..], 0)?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes[..read])
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
    match answer.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => Ok(read_route(&route)),
        NetlinkPayload::Error(error) => Err(error.to_io()),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the kernel's answer is no route",
        )),
    }
}

fn read_route(message: &RouteMessage) -> Route {
    let mut route = Route {
        interface: None,
        gateway: None,
        source: None,
        local: message.header.kind == RouteType::Local,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => {
                route.interface = if_indextoname(*index)
                    .ok()
                    .map(|name| name.to_string_lossy().into_owned());
            }
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            _ => {}
        }
    }
    route
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_address_is_our_own() {
        let route = to(Ipv4Addr::LOCALHOST.into()).unwrap();
        assert!(route.local);
        assert_eq!(route.interface.as_deref(), Some("lo"));
    }
}
