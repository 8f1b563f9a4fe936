//! Records of requests and their results: `exchange`, `connect`, `drop`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Container, Process, json_cache};
use crate::redact;

/// A TCP connection from the client's side, before NAT if known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Connection {
    /// Opaque; the same for all records of one connection within one run.
    pub id: String,
    /// `address:port`; null before the kernel has chosen it.
    pub local: Option<String>,
    pub remote: String,
    /// Which exchange on this connection, from 1. 0: none (a connect or drop record).
    pub exchange: u32,
    /// Network interface of traffic that belongs to no socket of this host.
    #[serde(default)]
    pub interface: Option<String>,
    /// cgroup v2 path of the socket, if `process` is null.
    #[serde(default)]
    pub cgroup: Option<String>,
    /// Inode of the socket's network namespace, where `process` is null.
    #[serde(default)]
    pub netns: Option<u32>,
    /// `address:port` to which NAT of the client's own network namespace sends the connection instead of `remote`; null: not redirected
    /// there, or not known.
    #[serde(default)]
    pub redirected_to: Option<String>,
}

/// An end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum End {
    Client,
    Server,
}

/// How a request asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ImdsVersion {
    /// The token PUT.
    Token,
    /// With a token.
    V2,
    /// Without a token.
    V1,
    /// Another cloud's dialect, or no IMDS request at all.
    Other,
}

impl ImdsVersion {
    pub const ALL: [Self; 4] = [Self::Token, Self::V2, Self::V1, Self::Other];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::V2 => "v2",
            Self::V1 => "v1",
            Self::Other => "other",
        }
    }
}

/// Whose metadata protocol a request speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Dialect {
    Aws,
    EksPodIdentity,
    Ecs,
    Gcp,
    Azure,
    Oracle,
    Openstack,
    Huawei,
    Alibaba,
    Ibm,
    Linode,
    Digitalocean,
    Hetzner,
    Scaleway,
    /// Firecracker's metadata service, asked with headers of its own.
    Mmds,
    /// Not HTTP, or nothing that we know.
    Unknown,
}

impl Dialect {
    pub const ALL: [Self; 16] = [
        Self::Aws,
        Self::EksPodIdentity,
        Self::Ecs,
        Self::Gcp,
        Self::Azure,
        Self::Oracle,
        Self::Openstack,
        Self::Huawei,
        Self::Alibaba,
        Self::Ibm,
        Self::Linode,
        Self::Digitalocean,
        Self::Hetzner,
        Self::Scaleway,
        Self::Mmds,
        Self::Unknown,
    ];

    /// The name in records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Aws => "aws",
            Self::EksPodIdentity => "eks-pod-identity",
            Self::Ecs => "ecs",
            Self::Gcp => "gcp",
            Self::Azure => "azure",
            Self::Oracle => "oracle",
            Self::Openstack => "openstack",
            Self::Huawei => "huawei",
            Self::Alibaba => "alibaba",
            Self::Ibm => "ibm",
            Self::Linode => "linode",
            Self::Digitalocean => "digitalocean",
            Self::Hetzner => "hetzner",
            Self::Scaleway => "scaleway",
            Self::Mmds => "mmds",
            Self::Unknown => "unknown",
        }
    }

    /// By its name in records.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dialect| dialect.as_str() == name)
    }
}

/// Which service an address belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Endpoint {
    /// The instance's metadata service, on AWS and on the clouds that use its address.
    Imds,
    /// The EKS Pod Identity Agent of a node.
    EksPodIdentity,
    /// The ECS agent's endpoint for task credentials and task metadata.
    Ecs,
    /// An address that the user gave.
    Other,
}

impl Endpoint {
    pub const ALL: [Self; 4] = [Self::Imds, Self::EksPodIdentity, Self::Ecs, Self::Other];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Imds => "imds",
            Self::EksPodIdentity => "eks-pod-identity",
            Self::Ecs => "ecs",
            Self::Other => "other",
        }
    }

    /// By its name in records.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|endpoint| endpoint.as_str() == name)
    }

    /// An agent on the same host: packets to it never leave by an uplink, so neither hop limit nor packet quota apply.
    pub fn is_agent(self) -> bool {
        matches!(self, Self::EksPodIdentity | Self::Ecs)
    }
}

/// A request head, without what is secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Null if the bytes were no HTTP request.
    pub method: Option<String>,
    /// Path and query, at most 512 bytes.
    #[serde(default, deserialize_with = "recorded_path")]
    pub path: Option<String>,
    pub dialect: Dialect,
    /// Null if the head was cut before the headers that decide it.
    pub imds_version: Option<ImdsVersion>,
    /// Salted hash that distinguishes tokens within one run; never a token.
    pub token: Option<String>,
    /// Lifetime that a token PUT asks for, seconds.
    pub token_ttl_s: Option<u32>,
    pub user_agent: Option<String>,
    /// IP TTL: as seen on the wire at the uplink, else at the socket. See `ttl_on_wire`.
    pub ttl: Option<u8>,
    /// Carries `X-Forwarded-For` or `Via`, or an absolute request target.
    pub forwarded: bool,
    /// Times that the request (or a part of it) was sent again.
    #[serde(default)]
    pub retransmits: u32,
    /// Whether `ttl` was read on the wire, at an uplink or in a capture. False: at the socket, so it doesn't include the hops that the
    /// request crossed. Null: no TTL, or a record of an earlier version.
    #[serde(default)]
    pub ttl_on_wire: Option<bool>,
    /// Forwarding hops between the process and the uplink: the TTL at the socket less that on the wire. Null where one of them was not seen.
    #[serde(default)]
    pub hops: Option<u8>,
    /// The service that the address belongs to. Null in records of earlier versions.
    #[serde(default)]
    pub endpoint: Option<Endpoint>,
    /// The trace of the application that the request carries: 32 hexadecimal digits (`traceparent`, `sentry-trace`), or Datadog's decimal
    /// number (`x-datadog-trace-id`). Absent where it carries none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
}

/// Traces of earlier versions hold ids that are credentials.
fn recorded_path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let path = Option::<String>::deserialize(deserializer)?;
    Ok(path.map(|path| redact::recorded_path(&path).unwrap_or(path)))
}

impl Request {
    /// The TTL from which hops can be computed: `None` where it was not seen on the wire.
    pub fn wire_ttl(&self) -> Option<u8> {
        self.ttl.filter(|_| self.ttl_on_wire != Some(false))
    }
}

/// A response head's first line, and its fate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Response {
    /// Null if what came back didn't begin as HTTP.
    pub status: Option<u16>,
    /// IP TTL on arrival at the uplink; null where it was not seen there.
    pub ttl: Option<u8>,
    /// Whether it reached the process's socket. Null: unknown.
    pub delivered: Option<bool>,
    /// `Server` header, from captures only: live, it stays in the kernel.
    pub server: Option<String>,
    /// Times that it arrived again.
    #[serde(default)]
    pub retransmits: u32,
    /// `type/code` of the ICMP error with which this host reported to IMDS that it was dropped.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub icmp: Option<IcmpCode>,
    /// Carries `Via` or `X-Cache`: from captures only.
    #[serde(default)]
    pub via_proxy: Option<bool>,
    /// Bytes of the response as sent, head and body: from `Content-Length` or from the sequence numbers. Null where neither shows it by
    /// the time the record is written.
    #[serde(default)]
    pub length: Option<u64>,
}

/// Type and code of an ICMP error, or of an ICMPv6 error where the endpoint's address is IPv6. Written as `11/0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IcmpCode {
    pub kind: u8,
    pub code: u8,
}

impl fmt::Display for IcmpCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.code)
    }
}

impl FromStr for IcmpCode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let part = |part: &str| part.parse().ok();
        text.split_once('/')
            .and_then(|(kind, code)| Some((part(kind)?, part(code)?)))
            .map(|(kind, code)| Self { kind, code })
            .ok_or("expected `type/code`")
    }
}

/// Why and where this kernel dropped a packet. Written as `NETFILTER_DROP@nft_do_chain`; an unknown part is `unknown`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropCause {
    /// The kernel's name, without `SKB_DROP_REASON_`.
    pub reason: Option<String>,
    /// Kernel function.
    pub location: Option<String>,
}

const UNKNOWN: &str = "unknown";

impl fmt::Display for DropCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [reason, location] = [&self.reason, &self.location].map(|part| part.as_deref().unwrap_or(UNKNOWN));
        write!(f, "{reason}@{location}")
    }
}

impl FromStr for DropCause {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (reason, location) = text.split_once('@').unwrap_or((text, UNKNOWN));
        let known = |part: &str| (!matches!(part, "" | UNKNOWN)).then(|| part.to_owned());
        Ok(Self {
            reason: known(reason),
            location: known(location),
        })
    }
}

/// Types that are text in JSON.
macro_rules! as_text {
    ($($type:ty),*) => {
        $(impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        })*
    };
}

as_text!(IcmpCode, DropCause);

/// Outcome of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExchangeOutcome {
    Answered,
    /// The response arrived at this host and died on the way to the process.
    Lost,
    Unanswered,
    Reset,
    /// The client closed the connection.
    Closed,
    /// Still waiting when the observer stopped.
    Open,
}

impl ExchangeOutcome {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Lost => "lost",
            Self::Unanswered => "unanswered",
            Self::Reset => "reset",
            Self::Closed => "closed",
            Self::Open => "open",
        }
    }
}

/// A request and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Exchange {
    #[serde(serialize_with = "json_cache::process")]
    pub process: Option<Arc<Process>>,
    #[serde(serialize_with = "json_cache::container")]
    pub container: Option<Arc<Container>>,
    pub connection: Connection,
    pub request: Request,
    pub response: Option<Response>,
    pub outcome: ExchangeOutcome,
    /// From `time` to the first byte of the response.
    pub latency_ns: Option<u64>,
    /// From `time` until the client had its response or closed: the cost of the exchange.
    #[serde(default)]
    pub waited_ns: Option<u64>,
    /// TCP handshake of this connection, on its first exchange.
    #[serde(default)]
    pub connect_ns: Option<u64>,
    /// Which end closed or reset the connection before a response came; null with a response, while the connection is open, and where
    /// it was not seen.
    #[serde(default)]
    pub closed_by: Option<End>,
}

/// Why a connection never came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ConnectOutcome {
    Refused,
    NoRoute,
    HostUnreachable,
    Denied,
    Timeout,
    Error,
}

impl ConnectOutcome {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::NoRoute => "no-route",
            Self::HostUnreachable => "host-unreachable",
            Self::Denied => "denied",
            Self::Timeout => "timeout",
            Self::Error => "error",
        }
    }
}

/// An attempt that never became a connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Connect {
    pub process: Option<Arc<Process>>,
    pub container: Option<Arc<Container>>,
    pub connection: Connection,
    pub outcome: ConnectOutcome,
    /// Positive; null where the kernel doesn't let us see it.
    pub errno: Option<i32>,
    pub elapsed_ns: u64,
    /// SYNs that left the socket's cgroup.
    #[serde(default)]
    pub syns: u32,
    /// SYNs that left through an uplink.
    #[serde(default)]
    pub wire_syns: u32,
    /// SYN-ACKs that came to this host and connected nothing.
    #[serde(default)]
    pub syn_acks: u32,
    /// `reason@location` of the drop that this attempt met.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub dropped: Option<DropCause>,
    /// `type/code` of the ICMP error that this attempt met.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub icmp: Option<IcmpCode>,
    /// NAT rule of this host that matches this attempt's requests, where none of its SYNs left through an uplink. Null: none, or not read.
    #[serde(default)]
    pub nat_rule: Option<String>,
}

/// Which way a dropped packet went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PacketDirection {
    Request,
    Response,
}

/// A packet of an IMDS flow freed by this kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Drop")]
pub struct PacketDrop {
    pub process: Option<Arc<Process>>,
    pub container: Option<Arc<Container>>,
    pub connection: Connection,
    pub direction: PacketDirection,
    /// The kernel's name, without `SKB_DROP_REASON_`; null before 5.17.
    pub reason: Option<String>,
    /// Kernel function; null where `/proc/kallsyms` hides addresses.
    pub location: Option<String>,
    pub ttl: Option<u8>,
    pub netns: Option<u32>,
}

#[cfg(test)]
impl super::Record<Exchange> {
    /// One request that was answered with this status, by the program `/opt/NAME`.
    pub(crate) fn example(name: &str, status: u16) -> Self {
        const TEXT: &str = r#"{"record":"exchange","schema":1,"time":"2026-03-01T12:00:00.000000000Z","host":"n","process":{"pid":7,"tid":7,"namespace_pid":null,"comm":"app","exe":"/opt/NAME","cmdline":["app"],"uid":0,"start_time":null,"ancestors":[],"cgroup":null,"netns":null},"container":null,"connection":{"id":"1","local":null,"remote":"169.254.169.254:80","exchange":1},"request":{"method":"GET","path":"/","dialect":"aws","imds_version":"v1","token":null,"token_ttl_s":null,"user_agent":null,"ttl":64,"forwarded":false},"response":{"status":STATUS,"ttl":255,"delivered":true,"server":null},"outcome":"answered","latency_ns":300000}"#;
        let text = TEXT.replace("NAME", name).replace("STATUS", &status.to_string());
        serde_json::from_str(&text).expect("an exchange")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drop_causes_and_icmp_codes_are_read_as_they_are_written() {
        for text in [
            "NETFILTER_DROP@nft_do_chain",
            "unknown@ip_error",
            "NEIGH_FAILED@unknown",
            "unknown@unknown",
        ] {
            assert_eq!(text.parse::<DropCause>().unwrap().to_string(), text);
        }
        let before_5_17: DropCause = "unknown@ip_error".parse().unwrap();
        assert_eq!(
            (before_5_17.reason, before_5_17.location.as_deref()),
            (None, Some("ip_error"))
        );
        assert_eq!("11/0".parse(), Ok(IcmpCode { kind: 11, code: 0 }));
        for text in ["", "11", "11/", "256/0", "a/b", "1/2/3"] {
            assert!(text.parse::<IcmpCode>().is_err(), "{text}");
        }
    }
}
