//! Which service an address belongs to, and what follows from that: its protocol, how fast it answers, which limits apply.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::Deserialize;

use crate::record::{Body, Dialect, Endpoint, Exchange, Record};

const IMDS_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254));
const IMDS_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254));
const POD_IDENTITY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23));
const POD_IDENTITY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23));
const ECS_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2));
const ALIBABA_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200));
const SCALEWAY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 42, 42));
const SCALEWAY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42));

/// Addresses of IMDS alone.
pub const IMDS: [IpAddr; 2] = [IMDS_V4, IMDS_V6];

/// Endpoints that are observed by default.
pub const DEFAULT_ENDPOINTS: [IpAddr; 5] = [IMDS_V4, IMDS_V6, POD_IDENTITY_V4, POD_IDENTITY_V6, ECS_V4];

/// How fast an endpoint answers when all is well, milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Norm {
    /// Highest usual 95th percentile.
    pub p95_ms: u64,
    /// A response above it is very slow.
    pub slow_ms: u64,
}

/// A service with addresses of its own.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    pub endpoint: Endpoint,
    /// As `--endpoint` takes it.
    pub name: &'static str,
    pub addresses: &'static [IpAddr],
    pub port: u16,
    /// Dialect of the service. `None`: the request decides.
    pub dialect: Option<Dialect>,
    /// The quota of packets to link-local addresses counts its packets.
    pub quota: bool,
    /// Its responses carry a hop limit that can be too small.
    pub hop_limit: bool,
    /// `None`: as the options of `slow-responses` have it.
    pub norm: Option<Norm>,
}

/// Pod Identity: a miss of the agent's cache calls EKS Auth, with a timeout of 1 s and two tries; concurrent misses of one pod wait for one
/// call, up to 1.8 s [aws/eks-pod-identity-agent]. ECS: the agent answers from memory.
pub const SERVICES: &[Service] = &[
    Service {
        endpoint: Endpoint::Imds,
        name: "imds",
        addresses: &IMDS,
        port: 80,
        dialect: None,
        quota: true,
        hop_limit: true,
        norm: None,
    },
    Service {
        endpoint: Endpoint::EksPodIdentity,
        name: "eks-pod-identity",
        addresses: &[POD_IDENTITY_V4, POD_IDENTITY_V6],
        port: 80,
        dialect: Some(Dialect::EksPodIdentity),
        quota: false,
        hop_limit: false,
        norm: Some(Norm {
            p95_ms: 1000,
            slow_ms: 2000,
        }),
    },
    Service {
        endpoint: Endpoint::Ecs,
        name: "ecs",
        addresses: &[ECS_V4],
        port: 80,
        dialect: Some(Dialect::Ecs),
        quota: false,
        hop_limit: false,
        norm: Some(Norm {
            p95_ms: 500,
            slow_ms: 1000,
        }),
    },
    Service {
        endpoint: Endpoint::Other,
        name: "alibaba",
        addresses: &[ALIBABA_V4],
        port: 80,
        dialect: Some(Dialect::Alibaba),
        quota: false,
        hop_limit: true,
        norm: None,
    },
    Service {
        endpoint: Endpoint::Other,
        name: "scaleway",
        addresses: &[SCALEWAY_V4, SCALEWAY_V6],
        port: 80,
        dialect: Some(Dialect::Scaleway),
        quota: false,
        hop_limit: false,
        norm: None,
    },
];

/// The service that an address belongs to; `None`: an address that the user gave.
pub fn service_at(address: IpAddr) -> Option<&'static Service> {
    let address = address.to_canonical();
    SERVICES.iter().find(|service| service.addresses.contains(&address))
}

/// Which service an address belongs to.
pub fn endpoint_at(address: IpAddr) -> Endpoint {
    service_at(address).map_or(Endpoint::Other, |service| service.endpoint)
}

/// The service with this endpoint.
pub fn service(endpoint: Endpoint) -> Option<&'static Service> {
    SERVICES
        .iter()
        .find(|service| service.endpoint == endpoint && endpoint != Endpoint::Other)
}

/// The same from a record's `address:port`.
pub fn endpoint_of(remote: &str) -> Endpoint {
    // Nearly always.
    if remote == "169.254.169.254:80" {
        return Endpoint::Imds;
    }
    let address = remote
        .rsplit_once(':')
        .map_or(remote, |(address, _)| address)
        .trim_start_matches('[')
        .trim_end_matches(']');
    address.parse().map_or(Endpoint::Other, endpoint_at)
}

impl Exchange {
    /// The service that was asked; by the address in records of earlier versions.
    pub fn endpoint(&self) -> Endpoint {
        self.request
            .endpoint
            .unwrap_or_else(|| endpoint_of(&self.connection.remote))
    }
}

/// Whether the Pod Identity Agent asks itself: it probes its own addresses, and expects 404. A client's name counts only for this endpoint.
pub fn is_own_request(record: &Record) -> bool {
    let (process, connection, endpoint) = match &record.body {
        Body::Exchange(exchange) => (&exchange.process, &exchange.connection, exchange.request.endpoint),
        Body::Connect(connect) => (&connect.process, &connect.connection, None),
        Body::Drop(drop) => (&drop.process, &drop.connection, None),
        _ => return false,
    };
    if endpoint.is_some_and(|endpoint| endpoint != Endpoint::EksPodIdentity) {
        return false;
    }
    let Some(process) = process else { return false };
    let program = process.exe.as_deref().and_then(|exe| exe.rsplit('/').next());
    (program == Some(AGENT) || program.is_none() && process.comm.starts_with(&AGENT[..COMM_BYTES]))
        && endpoint_of(&connection.remote) == Endpoint::EksPodIdentity
}

/// The Pod Identity Agent's program, of whose name the kernel keeps 15 bytes.
const AGENT: &str = "eks-pod-identity-agent";
const COMM_BYTES: usize = 15;

/// The addresses behind an uplink. Packets to an agent of this host don't leave the host.
pub fn beyond_this_host(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let outside = |address: &&IpAddr| !endpoint_at(**address).is_agent();
    addresses.iter().filter(outside).copied().collect()
}

/// An endpoint as users name it: an address, or a service with all its addresses.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Selection(pub Vec<IpAddr>);

impl Selection {
    /// The addresses of several, each once.
    pub fn addresses(all: &[Self]) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        for address in all.iter().flat_map(|selection| &selection.0) {
            if !addresses.contains(address) {
                addresses.push(*address);
            }
        }
        addresses
    }
}

impl FromStr for Selection {
    type Err = UnknownEndpoint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(service) = SERVICES.iter().find(|service| service.name == text) {
            return Ok(Self(service.addresses.to_vec()));
        }
        let address = text.parse().map_err(|_| UnknownEndpoint)?;
        Ok(Self(vec![address]))
    }
}

impl TryFrom<String> for Selection {
    type Error = UnknownEndpoint;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// Neither an IP address nor the name of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownEndpoint;

impl fmt::Display for UnknownEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an IP address, nor one of")?;
        for (at, service) in SERVICES.iter().enumerate() {
            let separator = if at == 0 { ' ' } else { ',' };
            write!(f, "{separator}{}", service.name)?;
        }
        Ok(())
    }
}

impl std::error::Error for UnknownEndpoint {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_belongs_to_one_service() {
        for (remote, endpoint) in [
            ("169.254.169.254:80", Endpoint::Imds),
            ("169.254.169.254:1338", Endpoint::Imds),
            ("[fd00:ec2::254]:80", Endpoint::Imds),
            ("169.254.170.23:80", Endpoint::EksPodIdentity),
            ("[fd00:ec2::23]:80", Endpoint::EksPodIdentity),
            ("[::ffff:169.254.170.2]:80", Endpoint::Ecs),
            ("169.254.170.2:80", Endpoint::Ecs),
            ("169.254.170.20:80", Endpoint::Other),
            ("100.100.100.200:80", Endpoint::Other),
            ("", Endpoint::Other),
        ] {
            assert_eq!(endpoint_of(remote), endpoint, "{remote}");
        }
        let all: Vec<&IpAddr> = SERVICES.iter().flat_map(|service| service.addresses).collect();
        for (at, address) in all.iter().enumerate() {
            assert!(!all[..at].contains(address), "{address} is there twice");
        }
    }

    #[test]
    fn the_default_is_every_endpoint_of_aws() {
        let names = ["imds", "eks-pod-identity", "ecs"].map(|name| name.parse::<Selection>().unwrap());
        assert_eq!(Selection::addresses(&names), DEFAULT_ENDPOINTS);
        assert_eq!(beyond_this_host(&DEFAULT_ENDPOINTS), IMDS);
        let error = "imdsv2".parse::<Selection>().unwrap_err().to_string();
        assert!(
            error.contains("an IP address") && error.contains("imds,eks-pod-identity,ecs"),
            "{error}"
        );
    }
}
