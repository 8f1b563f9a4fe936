//! A simulated packet between a client and an endpoint: its known and its unknown properties.

use std::net::IpAddr;

use super::octets;

const TCP: u8 = 6;
const PORT: u16 = 80;

/// Something that isn't known of the packet and that a rule may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    Uid,
    Gid,
    Cgroup,
    InName,
    OutName,
    InIndex,
    OutIndex,
    Source,
    Destination,
    /// The client's port.
    Port,
    Other(&'static str),
}

/// A packet as it passes the firewall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub endpoint: IpAddr,
    /// The other end; `None`: any.
    pub client: Option<IpAddr>,
    /// From the endpoint, on an established connection; otherwise the first packet of a connection to it.
    pub response: bool,
    /// `Some("")`: none, as for packets of this host.
    pub iif: Option<(String, u32)>,
    pub oif: Option<(String, u32)>,
    /// Whether a local socket sends it.
    pub local: bool,
}

/// A byte of a header, if it is the same for all such packets.
pub(super) type Byte = Result<u8, Open>;

impl Packet {
    pub fn v6(&self) -> bool {
        self.endpoint.is_ipv6()
    }

    pub(super) fn address(&self, source: bool) -> Result<Vec<u8>, Open> {
        if source == self.response {
            return Ok(octets(self.endpoint));
        }
        let open = if source { Open::Source } else { Open::Destination };
        self.client
            .filter(|client| client.is_ipv6() == self.v6())
            .map(octets)
            .ok_or(open)
    }

    /// Port of one end. `None`: the client's, which is unknown.
    pub(super) fn port(&self, source: bool) -> Option<u16> {
        (source == self.response).then_some(PORT)
    }

    pub(super) fn protocol() -> u8 {
        TCP
    }

    /// SYN, or ACK with data.
    pub(super) fn tcp_flags(&self) -> u8 {
        if self.response { 0x18 } else { 0x02 }
    }

    /// `NF_CT_STATE_BIT`: new or established.
    pub(super) fn state(&self) -> u32 {
        if self.response { 1 << 1 } else { 1 << 3 }
    }

    fn octets_or_open(&self, source: bool) -> Vec<Byte> {
        let width = if self.v6() { 16 } else { 4 };
        match self.address(source) {
            Ok(bytes) => bytes.into_iter().map(Ok).collect(),
            Err(open) => vec![Err(open); width],
        }
    }

    pub(super) fn network(&self) -> Vec<Byte> {
        let length = [Err(Open::Other("length")); 2];
        let ttl = if self.local { Ok(64) } else { Err(Open::Other("ttl")) };
        let mut bytes = Vec::with_capacity(40);
        if self.v6() {
            bytes.extend([Ok(0x60), Ok(0), Ok(0), Ok(0)]);
            bytes.extend(length);
            bytes.extend([Ok(TCP), ttl]);
        } else {
            bytes.extend([Ok(0x45), Ok(0)]);
            bytes.extend(length);
            bytes.extend([Err(Open::Other("id")); 2]);
            // Don't fragment.
            bytes.extend([Ok(0x40), Ok(0), ttl, Ok(TCP)]);
            bytes.extend([Err(Open::Other("checksum")); 2]);
        }
        bytes.extend(self.octets_or_open(true));
        bytes.extend(self.octets_or_open(false));
        bytes
    }

    pub(super) fn transport(&self) -> Vec<Byte> {
        let mut bytes = Vec::with_capacity(20);
        for source in [true, false] {
            match self.port(source) {
                Some(port) => bytes.extend(port.to_be_bytes().map(Ok)),
                None => bytes.extend([Err(Open::Port); 2]),
            }
        }
        bytes.extend([Err(Open::Other("tcp sequence")); 8]);
        bytes.extend([Err(Open::Other("tcp header length")), Ok(self.tcp_flags())]);
        bytes.extend([Err(Open::Other("tcp window")); 6]);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_have_their_fields_where_packets_have_them() {
        let packet = Packet {
            endpoint: "169.254.169.254".parse().unwrap(),
            client: Some("10.0.0.5".parse().unwrap()),
            response: false,
            iif: None,
            oif: None,
            local: true,
        };
        let network = packet.network();
        assert_eq!(network.len(), 20);
        assert_eq!((network[8], network[9]), (Ok(64), Ok(6)));
        assert_eq!(network[12..16], [10, 0, 0, 5].map(Ok));
        assert_eq!(network[16..], [169, 254, 169, 254].map(Ok));
        let transport = packet.transport();
        assert_eq!(transport[..4], [Err(Open::Port), Err(Open::Port), Ok(0), Ok(80)]);
        assert_eq!(transport[13], Ok(2));
        let response = Packet {
            endpoint: "fd00:ec2::254".parse().unwrap(),
            client: None,
            response: true,
            ..packet
        };
        let network = response.network();
        assert_eq!((network.len(), network[6]), (40, Ok(6)));
        assert_eq!(network[8], Ok(0xfd));
        assert_eq!(network[24], Err(Open::Destination));
        assert_eq!(response.transport()[1], Ok(80));
    }
}
