//! Conditions and places of rules as text.

use std::fmt;
use std::net::IpAddr;

use super::super::packet::Open;
use super::super::{Engine, TableId};
use super::{Condition, Stop, Truth};

pub(super) fn unread(name: &str) -> Condition {
    Condition {
        text: format!("match `{name}` (not evaluated)"),
        reported: false,
        cgroup: None,
    }
}

pub(super) fn negated(open: Open, value: &str, inverted: bool) -> Truth {
    let not = if inverted { "not " } else { "" };
    Truth::If(asked(open, &format!("{not}{value}")))
}

pub(super) fn asked(open: Open, value: &str) -> Condition {
    let (text, reported) = match open {
        Open::Uid => (format!("uid {value}"), true),
        Open::Gid => (format!("gid {value}"), true),
        Open::Cgroup => (format!("cgroup {value}"), true),
        Open::InName | Open::InIndex => (format!("input interface {value}"), true),
        Open::OutName | Open::OutIndex => (format!("output interface {value}"), true),
        Open::Source => (format!("source {value}"), true),
        Open::Destination => (format!("destination {value}"), true),
        Open::Port => (format!("client port {value}"), false),
        Open::Other(name) => (format!("match `{name}` (not evaluated)"), false),
    };
    Condition {
        text,
        reported,
        cgroup: None,
    }
}

pub(super) fn numbers((from, to): (u32, u32)) -> String {
    if from == to {
        from.to_string()
    } else {
        format!("{from} to {to}")
    }
}

pub(super) fn value_text(open: Open, data: &[u8], mask: &[u8], swapped: bool) -> String {
    match open {
        Open::Source | Open::Destination => address(data, mask),
        Open::InName | Open::OutName => {
            let name = super::super::text(data);
            // A comparison without the end of the name: all that begin so.
            if data.len() < 16 && !data.contains(&0) {
                format!("{name}*")
            } else {
                name
            }
        }
        Open::Port => data
            .first_chunk()
            .map_or_else(String::new, |port| u16::from_be_bytes(*port).to_string()),
        Open::Cgroup => data
            .first_chunk()
            .map_or_else(String::new, |id| format!("with id {}", u64::from_ne_bytes(*id))),
        _ => data.first_chunk().map_or_else(String::new, |bytes| {
            let number = if swapped {
                u32::from_be_bytes(*bytes)
            } else {
                u32::from_ne_bytes(*bytes)
            };
            number.to_string()
        }),
    }
}

/// With the length of its prefix, if that isn't the whole.
pub(super) fn address(data: &[u8], mask: &[u8]) -> String {
    // Cut to whole bytes for a short prefix.
    let mut bytes = data.to_vec();
    let width = if data.len() <= 4 { 4 } else { 16 };
    bytes.resize(width, 0);
    let mut mask = mask[..mask.len().min(data.len())].to_vec();
    mask.resize(width, 0);
    let address: IpAddr = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(v4) => v4.into(),
        Err(_) => <[u8; 16]>::try_from(bytes.as_slice()).unwrap_or_default().into(),
    };
    let prefix: u32 = mask.iter().map(|byte| byte.count_ones()).sum();
    if prefix as usize == width * 8 {
        address.to_string()
    } else {
        format!("{address}/{prefix}")
    }
}

impl fmt::Display for Stop {
    /// `nft table inet filter, chain output, handle 7, at OUTPUT`
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TableId { engine, family, name } = &self.chain.table;
        match engine {
            Engine::Nft => write!(
                formatter,
                "nft table {family} {name}, chain {}, {}, at {}",
                self.chain.name, self.rule, self.hook
            ),
            Engine::Legacy => {
                let program = if family.takes(true) {
                    "ip6tables-legacy"
                } else {
                    "iptables-legacy"
                };
                write!(
                    formatter,
                    "{program} table {name}, chain {}, {}, at {}",
                    self.chain.name, self.rule, self.hook
                )
            }
        }
    }
}
