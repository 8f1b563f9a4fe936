//! Which rules does this host's firewall hold?
//!
//! Read from the kernel itself: nftables over netlink, the older iptables over their socket option. The programs `nft` and
//! `iptables` are not needed, which a container seldom has, and of the two kinds neither is overlooked. [`walk`] leads an
//! imagined packet through the rules.

pub mod legacy;
pub mod nft;
pub mod packet;
pub mod walk;
mod xt;

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::netlink::NetlinkError;

/// The one of the kernel's two rule engines that holds a rule. `iptables-nft` creates rules of the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Engine {
    Nft,
    Legacy,
}

/// Where in a packet's way a chain is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

impl Hook {
    /// `enum nf_inet_hooks`.
    pub(crate) fn from_number(number: u32) -> Option<Self> {
        [
            Self::Prerouting,
            Self::Input,
            Self::Forward,
            Self::Output,
            Self::Postrouting,
        ]
        .get(number as usize)
        .copied()
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Prerouting => "PREROUTING",
            Self::Input => "INPUT",
            Self::Forward => "FORWARD",
            Self::Output => "OUTPUT",
            Self::Postrouting => "POSTROUTING",
        })
    }
}

/// The protocols that a table is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    V4,
    V6,
    Both,
}

impl Family {
    fn takes(self, v6: bool) -> bool {
        match self {
            Self::V4 => !v6,
            Self::V6 => v6,
            Self::Both => true,
        }
    }
}

impl fmt::Display for Family {
    /// As `nft` calls it.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
            Self::Both => "inet",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TableId {
    pub engine: Engine,
    pub family: Family,
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ChainId {
    pub table: TableId,
    pub name: String,
}

/// Hook, type and priority of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    pub hook: Hook,
    /// Lower comes first.
    pub priority: i32,
    /// Whether the chain's policy is to drop.
    pub drops: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    pub base: Option<Base>,
    pub rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// How the engine's own program calls it: `handle 7`, `rule 3`, `policy`.
    pub name: String,
    pub steps: Vec<Step>,
}

/// One of the 16 words in which nftables keeps values between expressions.
pub type Word = usize;

/// A step of a rule. Steps run in order until a condition doesn't hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Load {
        what: Loaded,
        to: Word,
        bytes: usize,
    },
    Put {
        to: Word,
        data: Vec<u8>,
    },
    Bits {
        from: Word,
        to: Word,
        mask: Vec<u8>,
        xor: Vec<u8>,
    },
    Swap {
        from: Word,
        to: Word,
        bytes: usize,
        /// Bytes that change places with each other.
        unit: usize,
    },
    Compare {
        word: Word,
        how: Comparison,
        data: Vec<u8>,
    },
    Range {
        word: Word,
        from: Vec<u8>,
        to: Vec<u8>,
        inverted: bool,
    },
    Lookup {
        word: Word,
        set: String,
        inverted: bool,
        /// A map's value goes there.
        to: Option<Word>,
        /// The map's value is the verdict.
        verdict: bool,
    },
    Match(Match),
    SetMark {
        from: Word,
    },
    /// iptables' way: `mark = mark & !mask ^ mark`.
    ChangeMark {
        mark: u32,
        mask: u32,
    },
    /// The packet isn't tracked from here on.
    Untrack,
    Verdict(Verdict),
    /// Something that may or may not hold: rates, sets of other modules, time.
    Unread(String),
}

/// A value that nftables loads from a packet or from its metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loaded {
    Network {
        offset: usize,
    },
    Transport {
        offset: usize,
    },
    Uid,
    Gid,
    /// The socket's cgroup, at this depth below the root.
    Cgroup,
    InName,
    OutName,
    InIndex,
    OutIndex,
    Mark,
    ConnectionMark,
    State,
    Direction,
    /// The endpoint's kind of address, as routing sees it.
    DestinationType,
    /// `NFPROTO_IPV4` or `_IPV6`.
    Family,
    /// The same, as the link layer has it.
    EtherType,
    Protocol,
    Other(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// A condition of an iptables rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    Always,
    Address {
        source: bool,
        address: Vec<u8>,
        mask: Vec<u8>,
        inverted: bool,
    },
    Interface {
        incoming: bool,
        name: String,
        /// A trailing `+`: all names that begin so.
        prefix: bool,
        inverted: bool,
    },
    Protocol {
        number: u8,
        inverted: bool,
    },
    Ports {
        source: bool,
        ranges: Vec<(u16, u16)>,
        inverted: bool,
    },
    TcpFlags {
        mask: u8,
        value: u8,
        inverted: bool,
    },
    Uids {
        range: (u32, u32),
        inverted: bool,
    },
    Gids {
        range: (u32, u32),
        inverted: bool,
    },
    Cgroup {
        path: String,
        inverted: bool,
    },
    Mark {
        connection: bool,
        mark: u32,
        mask: u32,
        inverted: bool,
    },
    State {
        mask: u32,
        inverted: bool,
    },
    DestinationType {
        mask: u32,
        inverted: bool,
    },
    AddressRange {
        source: bool,
        from: Vec<u8>,
        to: Vec<u8>,
        inverted: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    Drop,
    Reject,
    /// Sent elsewhere: `DNAT`, `REDIRECT`, `TPROXY`.
    Redirect(String),
    /// A program decides.
    Queue,
    Jump(String),
    Goto(String),
    Return,
    /// Nothing; the next step.
    Continue,
}

/// `dnat to 192.0.2.1:80`, as far as the target is known.
fn redirection(how: &str, address: Option<IpAddr>, port: Option<u16>) -> String {
    match (address, port) {
        (Some(address), Some(port)) => format!("{how} to {}", SocketAddr::new(address, port)),
        (Some(address), None) => format!("{how} to {address}"),
        (None, Some(port)) => format!("{how} to :{port}"),
        (None, None) => how.to_owned(),
    }
}

/// A named or anonymous set or map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    pub intervals: bool,
    /// Widths of a concatenated key's parts; empty: one part.
    pub parts: Vec<usize>,
    pub elements: Vec<Element>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Element {
    pub key: Vec<u8>,
    /// End of an interval, inclusive.
    pub key_end: Option<Vec<u8>>,
    /// An interval that began before ends here, exclusively.
    pub ends: bool,
    /// Whether the element matches all values that no other element matches.
    pub catch_all: bool,
    pub data: Vec<u8>,
    pub verdict: Option<Verdict>,
}

/// All rules of a network namespace.
#[derive(Clone, Debug, Default)]
pub struct Ruleset {
    pub chains: HashMap<ChainId, Chain>,
    pub sets: HashMap<(TableId, String), Set>,
    /// Chains at devices and bridges, which are not looked into.
    pub left_out: usize,
}

impl Ruleset {
    pub fn extend(&mut self, other: Self) {
        self.chains.extend(other.chains);
        self.sets.extend(other.sets);
        self.left_out += other.left_out;
    }
}

/// Why rules can't be read.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    #[error("nftables: {0}")]
    Nft(#[from] NetlinkError),
    #[error("iptables table {table}: {source}")]
    Legacy { table: String, source: std::io::Error },
}

impl FirewallError {
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Nft(error) => error.errno(),
            Self::Legacy { source, .. } => source.raw_os_error(),
        }
    }
}

/// An address's bytes, as packets have them.
pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// A string that ends at its first zero.
pub(crate) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}
/// Any bytes as rules in each form that the kernel gives them: for the fuzz targets.
pub(super) fn read_any(bytes: &[u8]) {
    const EXTENSIONS: &[&str] = &[
        "tcp",
        "udp",
        "owner",
        "cgroup",
        "mark",
        "connmark",
        "multiport",
        "conntrack",
        "addrtype",
        "comment",
        "state",
        "set",
        "REJECT",
        "DNAT",
        "MARK",
    ];
    nft::read_any(bytes);
    legacy::read_any(bytes);
    if let [name, revision, info @ ..] = bytes {
        let name = EXTENSIONS[usize::from(*name) % EXTENSIONS.len()];
        let _ = (xt::conditions(name, u32::from(*revision), info), xt::target(name, info));
    }
}
