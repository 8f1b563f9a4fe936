//! nftables' rules, as the kernel dumps them over netlink.
//!
//! The crates that decode these messages leave out what decides here (matches of `iptables-nft`, sockets, ranges, NAT), so
//! only their reader of attributes is used. What isn't understood becomes a step that may or may not hold.

use std::net::IpAddr;

use netlink_packet_core::NlasIterator;
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::{
    Base, Chain, ChainId, Comparison, Element, Engine, Family, FirewallError, Hook, Loaded, Rule, Ruleset, Set, Step,
    TableId, Verdict, Word, redirection, text, xt,
};
use crate::host::netlink::{Netlink, NetlinkError, Reply};

/// `NFNL_SUBSYS_NFTABLES`, and the questions in `enum nf_tables_msg_types`.
const SUBSYSTEM: u16 = 10 << 8;
const GET_TABLES: u16 = SUBSYSTEM + 1;
const GET_CHAINS: u16 = SUBSYSTEM + 4;
const GET_RULES: u16 = SUBSYSTEM + 7;
const GET_SETS: u16 = SUBSYSTEM + 10;
const GET_ELEMENTS: u16 = SUBSYSTEM + 13;
/// `struct nfgenmsg`.
const HEADER: usize = 4;

const TABLE_DORMANT: u32 = 1;
const SET_INTERVAL: u32 = 4;
const ELEMENT_INTERVAL_END: u32 = 1;
const ELEMENT_CATCH_ALL: u32 = 2;
/// Sets whose elements are read; what refers to another one may or may not hold.
const MAX_SETS: usize = 2_048;
/// Values are held in 16 words.
pub(super) const WORDS: usize = 16;

/// All tables of the network namespace that the calling thread is in. Needs CAP_NET_ADMIN.
pub fn read() -> Result<Ruleset, FirewallError> {
    let mut netlink = Netlink::open(NETLINK_NETFILTER)?;
    let mut ruleset = Ruleset::default();
    let everything = [0; HEADER];
    let dormant: Vec<TableId> = netlink
        .dump(GET_TABLES, &everything)?
        .iter()
        .filter_map(dormant_table)
        .collect();
    for reply in netlink.dump(GET_CHAINS, &everything)? {
        match chain(&reply) {
            Some((id, chain)) if !dormant.contains(&id.table) => {
                ruleset.chains.insert(id, chain);
            }
            Some(_) => {}
            None => ruleset.left_out += 1,
        }
    }
    // In the order of each chain.
    for reply in netlink.dump(GET_RULES, &everything)? {
        if let Some((id, rule)) = rule(&reply)
            && let Some(chain) = ruleset.chains.get_mut(&id)
        {
            chain.rules.push(rule);
        }
    }
    let sets: Vec<_> = netlink.dump(GET_SETS, &everything)?.iter().filter_map(set).collect();
    for (table, name, family, mut set) in sets.into_iter().take(MAX_SETS) {
        for reply in netlink.dump(GET_ELEMENTS, &question(family, &[(1, &table.name), (2, &name)]))? {
            set.elements.extend(elements(&reply));
        }
        ruleset.sets.insert((table, name), set);
    }
    Ok(ruleset)
}

/// `struct nfgenmsg` and some strings.
fn question(family: u8, strings: &[(u16, &str)]) -> Vec<u8> {
    let mut bytes = vec![family, 0, 0, 0];
    for (kind, text) in strings {
        bytes.extend((text.len() as u16 + 5).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(text.as_bytes());
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// Numbers are big-endian here.
struct Attributes<'a>(Vec<(u16, &'a [u8])>);

impl<'a> Attributes<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        let read = NlasIterator::new(bytes).map_while(Result::ok).filter_map(|attribute| {
            let (kind, length) = (attribute.kind(), usize::from(attribute.length()));
            Some((kind, attribute.into_inner().get(4..length)?))
        });
        Self(read.collect())
    }

    fn bytes(&self, kind: u16) -> Option<&'a [u8]> {
        self.0.iter().find(|(found, _)| *found == kind).map(|(_, bytes)| *bytes)
    }

    fn nested(&self, kind: u16) -> Option<Self> {
        self.bytes(kind).map(Self::of)
    }

    fn text(&self, kind: u16) -> Option<String> {
        self.bytes(kind).map(text)
    }

    fn u32(&self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(*self.bytes(kind)?.first_chunk()?))
    }

    fn u64(&self, kind: u16) -> Option<u64> {
        Some(u64::from_be_bytes(*self.bytes(kind)?.first_chunk()?))
    }

    /// `NFTA_DATA_VALUE`
    fn data(&self, kind: u16) -> Option<Vec<u8>> {
        Some(self.nested(kind)?.bytes(1)?.to_vec())
    }

    fn verdict(&self, kind: u16) -> Option<Verdict> {
        let verdict = self.nested(kind)?.nested(2)?;
        let chain = || verdict.text(2);
        Some(match verdict.u32(1)?.cast_signed() {
            0 => Verdict::Drop,
            1 => Verdict::Accept,
            // NFT_CONTINUE and NFT_BREAK.
            -1 | -2 => Verdict::Continue,
            -3 => Verdict::Jump(chain()?),
            -4 => Verdict::Goto(chain()?),
            -5 => Verdict::Return,
            // NF_QUEUE, with the queue's number in the upper half.
            code if code & 0xff == 3 => Verdict::Queue,
            _ => return None,
        })
    }

    fn word(&self, kind: u16) -> Option<Word> {
        word(self.u32(kind)?)
    }
}

/// Registers 1 to 4 are four words each and lie over the registers 8 to 23 of one word.
fn word(register: u32) -> Option<Word> {
    match register {
        1..=4 => Some((register as usize - 1) * 4),
        8..=23 => Some(register as usize - 8),
        _ => None,
    }
}

/// `None`: a bridge's or a device's.
fn family(number: u8) -> Option<Family> {
    match number {
        1 => Some(Family::Both),
        2 => Some(Family::V4),
        10 => Some(Family::V6),
        _ => None,
    }
}

fn table_id(reply: &Reply, name: String) -> Option<TableId> {
    Some(TableId {
        engine: Engine::Nft,
        family: family(*reply.payload.first()?)?,
        name,
    })
}

fn body(reply: &Reply) -> Attributes<'_> {
    Attributes::of(reply.payload.get(HEADER..).unwrap_or_default())
}

/// A table that was switched off with all its chains.
fn dormant_table(reply: &Reply) -> Option<TableId> {
    let attributes = body(reply);
    (attributes.u32(2)? & TABLE_DORMANT != 0)
        .then(|| table_id(reply, attributes.text(1)?))
        .flatten()
}

fn chain(reply: &Reply) -> Option<(ChainId, Chain)> {
    let attributes = body(reply);
    let table = table_id(reply, attributes.text(1)?)?;
    let base = match attributes.nested(4) {
        Some(hook) => Some(Base {
            // `inet` has a hook at devices as well.
            hook: Hook::from_number(hook.u32(1)?)?,
            priority: hook.u32(2)?.cast_signed(),
            drops: attributes.u32(5) == Some(0),
        }),
        None => None,
    };
    let name = attributes.text(3)?;
    let chain = Chain {
        base,
        rules: Vec::new(),
    };
    Some((ChainId { table, name }, chain))
}

fn rule(reply: &Reply) -> Option<(ChainId, Rule)> {
    let attributes = body(reply);
    let id = ChainId {
        table: table_id(reply, attributes.text(1)?)?,
        name: attributes.text(2)?,
    };
    let mut steps = Vec::new();
    for (_, expression) in attributes.nested(4).map(|list| list.0).unwrap_or_default() {
        let expression = Attributes::of(expression);
        let name = expression.text(1).unwrap_or_default();
        let data = expression.nested(2).unwrap_or(Attributes(Vec::new()));
        let mut read = self::expression(&name, &data).unwrap_or_else(|| vec![Step::Unread(name.clone())]);
        if let Some(Step::Verdict(Verdict::Redirect(how))) = read.last_mut() {
            let (address, port) = target_of(&name, &data, &steps);
            *how = redirection(how, address, port);
        }
        steps.extend(read);
    }
    let name = format!("handle {}", attributes.u64(3).unwrap_or(0));
    Some((id, Rule { name, steps }))
}

/// The address and the port that the expression `nat` or `redir` sets, if the rule puts them into registers as they are.
fn target_of(name: &str, of: &Attributes<'_>, steps: &[Step]) -> (Option<IpAddr>, Option<u16>) {
    let (address, port) = match name {
        "nat" => (of.word(3), of.word(5)),
        "redir" => (None, of.word(1)),
        _ => (None, None),
    };
    let put = |register: Word| {
        steps.iter().rev().find_map(|step| match step {
            Step::Put { to, data } if *to == register => Some(data.as_slice()),
            _ => None,
        })
    };
    let address = address.and_then(put).and_then(|data| match data.len() {
        4 => <[u8; 4]>::try_from(data).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(data).ok().map(IpAddr::from),
        _ => None,
    });
    let port = port
        .and_then(put)
        .and_then(|data| Some(u16::from_be_bytes([*data.first()?, *data.get(1)?])));
    (address, port)
}

/// `None`: not understood.
fn expression(name: &str, of: &Attributes<'_>) -> Option<Vec<Step>> {
    let verdict = |verdict| Some(vec![Step::Verdict(verdict)]);
    let other = |to: Option<Word>, name| {
        let what = Loaded::Other(name);
        Some(vec![Step::Load {
            what,
            to: to?,
            bytes: 16,
        }])
    };
    let step = match name {
        "immediate" => match of.u32(1)? {
            0 => Step::Verdict(of.verdict(2)?),
            register => Step::Put {
                to: word(register)?,
                data: of.data(2)?,
            },
        },
        "cmp" => Step::Compare {
            word: of.word(1)?,
            how: comparison(of.u32(2)?)?,
            data: of.data(3)?,
        },
        "range" => Step::Range {
            word: of.word(1)?,
            inverted: of.u32(2)? == 1,
            from: of.data(3)?,
            to: of.data(4)?,
        },
        "bitwise" if of.u32(6).unwrap_or(0) == 0 => Step::Bits {
            from: of.word(1)?,
            to: of.word(2)?,
            mask: of.data(4)?,
            xor: of.data(5)?,
        },
        "bitwise" => return other(of.word(2), "shifted value"),
        "byteorder" => Step::Swap {
            from: of.word(1)?,
            to: of.word(2)?,
            bytes: of.u32(4)? as usize,
            unit: of.u32(5)? as usize,
        },
        "lookup" => {
            let register = of.u32(3);
            Step::Lookup {
                set: of.text(1)?,
                word: of.word(2)?,
                inverted: of.u32(5).unwrap_or(0) & 1 != 0,
                to: register.and_then(word),
                verdict: register == Some(0),
            }
        }
        "payload" => match of.word(1) {
            // Writes into the packet; what it writes is not followed.
            None => return Some(Vec::new()),
            Some(to) => Step::Load {
                what: payload(of.u32(2)?, of.u32(3)? as usize),
                to,
                bytes: of.u32(4)? as usize,
            },
        },
        "meta" => match of.word(1) {
            Some(to) => {
                let (what, bytes) = meta(of.u32(2)?);
                Step::Load { what, to, bytes }
            }
            None if of.u32(2)? == 3 => Step::SetMark { from: of.word(3)? },
            None => return Some(Vec::new()),
        },
        "ct" => match of.word(1) {
            Some(to) => {
                let what = match of.u32(2)? {
                    0 => Loaded::State,
                    1 => Loaded::Direction,
                    3 => Loaded::ConnectionMark,
                    _ => Loaded::Other("connection"),
                };
                let bytes = if what == Loaded::Direction { 1 } else { 4 };
                Step::Load { what, to, bytes }
            }
            None => return Some(Vec::new()),
        },
        "socket" => {
            // NFT_SOCKET_CGROUPV2
            let cgroup = of.u32(1)? == 3;
            Step::Load {
                what: if cgroup {
                    Loaded::Cgroup
                } else {
                    Loaded::Other("socket")
                },
                to: of.word(2)?,
                bytes: if cgroup { 8 } else { 4 },
            }
        }
        "fib" => {
            // NFT_FIB_RESULT_ADDRTYPE of the destination.
            let kind = of.u32(2)? == 3 && of.u32(3)? & 0b11 == 0b10;
            Step::Load {
                what: if kind {
                    Loaded::DestinationType
                } else {
                    Loaded::Other("fib")
                },
                to: of.word(1)?,
                bytes: 4,
            }
        }
        "rt" => return other(of.word(1), "route"),
        "numgen" => return other(of.word(1), "numgen"),
        "osf" => return other(of.word(1), "osf"),
        "exthdr" => {
            return match of.word(1) {
                Some(to) => other(Some(to), "header option"),
                None => Some(Vec::new()),
            };
        }
        "hash" => return other(of.word(2), "hash"),
        "notrack" => Step::Untrack,
        "counter" | "log" | "last" | "dup" | "objref" | "flow_offload" => return Some(Vec::new()),
        "reject" => return verdict(Verdict::Reject),
        "nat" if of.u32(1)? == 0 => return verdict(Verdict::Accept),
        "nat" => return verdict(Verdict::Redirect("dnat".into())),
        "redir" => return verdict(Verdict::Redirect("redirect".into())),
        "tproxy" => return verdict(Verdict::Redirect("tproxy".into())),
        "masq" => return verdict(Verdict::Accept),
        "queue" => return verdict(Verdict::Queue),
        "match" => return Some(xt::conditions(&of.text(1)?, of.u32(2)?, of.bytes(3)?)),
        "target" => return Some(xt::target(&of.text(1)?, of.bytes(3)?)),
        _ => return None,
    };
    Some(vec![step])
}

fn comparison(number: u32) -> Option<Comparison> {
    use Comparison::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, NotEqual};
    [Equal, NotEqual, Less, LessOrEqual, Greater, GreaterOrEqual]
        .get(number as usize)
        .copied()
}

fn payload(base: u32, offset: usize) -> Loaded {
    match base {
        1 => Loaded::Network { offset },
        2 => Loaded::Transport { offset },
        0 => Loaded::Other("link-layer header"),
        _ => Loaded::Other("payload"),
    }
}

/// `enum nft_meta_keys`, and how wide the value is.
fn meta(key: u32) -> (Loaded, usize) {
    match key {
        1 => (Loaded::EtherType, 2),
        3 => (Loaded::Mark, 4),
        4 => (Loaded::InIndex, 4),
        5 => (Loaded::OutIndex, 4),
        6 => (Loaded::InName, 16),
        7 => (Loaded::OutName, 16),
        10 => (Loaded::Uid, 4),
        11 => (Loaded::Gid, 4),
        15 => (Loaded::Family, 1),
        16 => (Loaded::Protocol, 1),
        0 => (Loaded::Other("length"), 4),
        23 => (Loaded::Other("cgroup class"), 4),
        24 => (Loaded::Other("random"), 4),
        30..=32 => (Loaded::Other("time"), 8),
        _ => (Loaded::Other("meta"), 16),
    }
}

fn set(reply: &Reply) -> Option<(TableId, String, u8, Set)> {
    let attributes = body(reply);
    let table = table_id(reply, attributes.text(1)?)?;
    let part = |(_, field): &(u16, &[u8])| Attributes::of(field).u32(1).map(|width| width as usize);
    let parts = attributes
        .nested(9)
        .and_then(|description| description.nested(2))
        .map(|parts| parts.0.iter().filter_map(part).collect())
        .unwrap_or_default();
    let set = Set {
        intervals: attributes.u32(3)? & SET_INTERVAL != 0,
        parts,
        elements: Vec::new(),
    };
    Some((table, attributes.text(2)?, *reply.payload.first()?, set))
}

fn elements(reply: &Reply) -> Vec<Element> {
    let list = body(reply).nested(3).map(|list| list.0).unwrap_or_default();
    let element = |(_, bytes): &(u16, &[u8])| {
        let attributes = Attributes::of(bytes);
        let flags = attributes.u32(3).unwrap_or(0);
        Element {
            key: attributes.data(1).unwrap_or_default(),
            key_end: attributes.data(10),
            ends: flags & ELEMENT_INTERVAL_END != 0,
            catch_all: flags & ELEMENT_CATCH_ALL != 0,
            data: attributes.data(2).unwrap_or_default(),
            verdict: attributes.verdict(2),
        }
    };
    list.iter().map(element).collect()
}

/// Whether the error means that this kernel has no nftables.
pub fn absent(error: &FirewallError) -> bool {
    matches!(
        error,
        FirewallError::Nft(NetlinkError::Refused(libc::EOPNOTSUPP | libc::EINVAL))
    ) || matches!(error.errno(), Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT))
}

/// Any bytes as each kind of reply: for the fuzz targets.
pub(super) fn read_any(bytes: &[u8]) {
    const NAMES: &[&str] = &[
        "immediate",
        "cmp",
        "range",
        "bitwise",
        "byteorder",
        "lookup",
        "payload",
        "meta",
        "ct",
        "socket",
        "fib",
        "match",
        "target",
        "nat",
        "exthdr",
    ];
    let reply = Reply {
        kind: 0,
        payload: bytes.to_vec(),
    };
    let _ = (
        chain(&reply),
        rule(&reply),
        set(&reply),
        elements(&reply),
        dormant_table(&reply),
    );
    if let Some((name, rest)) = bytes.split_first() {
        let _ = expression(NAMES[usize::from(*name) % NAMES.len()], &Attributes::of(rest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn registers_of_both_widths_lie_over_each_other() {
        assert_eq!([1, 2, 4, 8, 12, 23].map(word), [0, 4, 12, 0, 4, 15].map(Some));
        assert_eq!([0, 5, 7, 24, u32::MAX].map(word), [None; 5]);
    }

    #[test]
    fn questions_are_padded() {
        let bytes = question(2, &[(1, "raw"), (2, "x")]);
        assert_eq!(bytes.len(), 4 + 8 + 8);
        assert_eq!(Attributes::of(&bytes[4..]).text(2).as_deref(), Some("x"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(payload in proptest::collection::vec(any::<u8>(), 0..300)) {
            let reply = Reply { kind: 0, payload };
            let _ = (chain(&reply), rule(&reply), set(&reply), elements(&reply), dormant_table(&reply));
        }

        #[test]
        fn any_expression_is_survived(
            name in prop::sample::select(vec!["immediate", "cmp", "range", "bitwise", "byteorder", "lookup", "payload", "meta", "ct",
                "socket", "fib", "match", "target", "nat", "exthdr"]),
            kinds in proptest::collection::vec((1_u16..8, proptest::collection::vec(any::<u8>(), 0..40)), 0..8),
        ) {
            let attributes = Attributes(kinds.iter().map(|(kind, bytes)| (*kind, bytes.as_slice())).collect());
            let _ = expression(name, &attributes);
        }
    }
}
