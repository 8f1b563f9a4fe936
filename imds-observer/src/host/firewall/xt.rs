//! Matches and targets of iptables, as both engines hold them: the kernel's own structs in `linux/netfilter/xt_*.h`.

use std::net::IpAddr;

use super::{Match, Step, Verdict, redirection, text, u16_at, u32_at};

/// Bits in `xt_conntrack_mtinfo*`: only the state is asked.
const CONNTRACK_STATE: u16 = 1;
const CONNTRACK_STATE_ALIAS: u16 = 1 << 13;
/// `struct xt_addrtype_info_v1` flags: inverted source, inverted destination, and limits to an interface.
const ADDRTYPE_INVERT_DESTINATION: u32 = 2;
const ADDRTYPE_LIMITS: u32 = 4 | 8;

/// Conditions of a match with this name. A condition that isn't read here may or may not hold.
pub(super) fn conditions(name: &str, revision: u32, info: &[u8]) -> Vec<Step> {
    let read = match name {
        "comment" => Some(Vec::new()),
        "tcp" => tcp(info),
        // Requests go over TCP.
        "udp" | "icmp" | "icmp6" | "sctp" | "dccp" | "udplite" | "esp" | "ah" | "gre" => Some(vec![Match::Protocol {
            number: 17,
            inverted: false,
        }]),
        "owner" => owner(info),
        "cgroup" if revision >= 1 => cgroup(info),
        "mark" if revision >= 1 => mark(info, false),
        "connmark" if revision >= 1 => mark(info, true),
        "multiport" => multiport(info, revision),
        "conntrack" if revision >= 1 => conntrack(info, revision),
        "state" => u32_at(info, 0).map(|mask| vec![Match::State { mask, inverted: false }]),
        "addrtype" if revision >= 1 => addrtype(info),
        "iprange" if revision >= 1 => iprange(info),
        _ => None,
    };
    match read {
        Some(matches) => matches.into_iter().map(Step::Match).collect(),
        None => vec![Step::Unread(name.to_owned())],
    }
}

/// Steps of a target with this name.
pub(super) fn target(name: &str, info: &[u8]) -> Vec<Step> {
    let verdict = match name {
        "REJECT" => Verdict::Reject,
        "DNAT" | "REDIRECT" => {
            let (address, port) = nat_range(info);
            Verdict::Redirect(redirection(&name.to_ascii_lowercase(), address, port))
        }
        "TPROXY" => Verdict::Redirect(name.to_ascii_lowercase()),
        "MASQUERADE" | "SNAT" | "NETMAP" => Verdict::Accept,
        "NFQUEUE" => Verdict::Queue,
        "MARK" => {
            return match (u32_at(info, 0), u32_at(info, 4)) {
                (Some(mark), Some(mask)) => vec![Step::ChangeMark { mark, mask }],
                _ => vec![Step::Unread(name.to_owned())],
            };
        }
        "NOTRACK" => return vec![Step::Untrack],
        // XT_CT_NOTRACK in the flags.
        "CT" if u16_at(info, 0).is_some_and(|flags| flags & 1 != 0) => return vec![Step::Untrack],
        // Notes, counters and changes that don't decide.
        _ => Verdict::Continue,
    };
    vec![Step::Verdict(verdict)]
}

/// The first address and port of a range: `nf_nat_ipv4_multi_range_compat` (a count, then IPv4), else `nf_nat_range`.
fn nat_range(info: &[u8]) -> (Option<IpAddr>, Option<u16>) {
    const ADDRESSES: u32 = 1;
    const PORTS: u32 = 2;
    let of_v4 = info.len() < 40;
    let begin = if of_v4 { 4 } else { 0 };
    let flags = u32_at(info, begin).unwrap_or(0);
    let address = info
        .get(begin + 4..begin + 8)
        .and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
    let whole = info.get(4..20).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
    let address = match (address, whole) {
        // The union holds an IPv4 address with nothing behind it.
        (_, Some(whole)) if !of_v4 && whole[4..].iter().any(|byte| *byte != 0) => Some(IpAddr::from(whole)),
        (address, _) => address.map(IpAddr::from),
    };
    let at = if of_v4 { begin + 12 } else { 36 };
    let port = info
        .get(at..at + 2)
        .map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    (
        address.filter(|_| flags & ADDRESSES != 0),
        port.filter(|_| flags & PORTS != 0),
    )
}

fn tcp(info: &[u8]) -> Option<Vec<Match>> {
    let port = |at| u16_at(info, at);
    let inverted = *info.get(11)?;
    let mut matches = Vec::new();
    for (source, at, bit) in [(true, 0, 1), (false, 4, 2)] {
        let range = (port(at)?, port(at + 2)?);
        if range != (0, u16::MAX) || inverted & bit != 0 {
            matches.push(Match::Ports {
                source,
                ranges: vec![range],
                inverted: inverted & bit != 0,
            });
        }
    }
    if *info.get(8)? != 0 {
        // A TCP option.
        return None;
    }
    let (mask, value) = (*info.get(9)?, *info.get(10)?);
    if mask != 0 || inverted & 4 != 0 {
        matches.push(Match::TcpFlags {
            mask,
            value,
            inverted: inverted & 4 != 0,
        });
    }
    Some(matches)
}

fn owner(info: &[u8]) -> Option<Vec<Match>> {
    let (asked, inverted) = (*info.get(16)?, *info.get(17)?);
    let mut matches = Vec::new();
    if asked & 1 != 0 {
        matches.push(Match::Uids {
            range: (u32_at(info, 0)?, u32_at(info, 4)?),
            inverted: inverted & 1 != 0,
        });
    }
    if asked & 2 != 0 {
        matches.push(Match::Gids {
            range: (u32_at(info, 8)?, u32_at(info, 12)?),
            inverted: inverted & 2 != 0,
        });
    }
    // Whether a socket exists: it does, of a client here.
    Some(matches)
}

/// Revision 1 has room for a whole path, revision 2 for 512 bytes; the layout before that is the same.
fn cgroup(info: &[u8]) -> Option<Vec<Match>> {
    if *info.first()? == 0 {
        return None;
    }
    Some(vec![Match::Cgroup {
        path: text(info.get(4..)?),
        inverted: *info.get(2)? != 0,
    }])
}

fn mark(info: &[u8], connection: bool) -> Option<Vec<Match>> {
    Some(vec![Match::Mark {
        connection,
        mark: u32_at(info, 0)?,
        mask: u32_at(info, 4)?,
        inverted: *info.get(8)? != 0,
    }])
}

fn multiport(info: &[u8], revision: u32) -> Option<Vec<Match>> {
    const PORTS: usize = 15;
    let (kind, count) = (*info.first()?, usize::from(*info.get(1)?).min(PORTS));
    let source = match kind {
        0 => true,
        1 => false,
        // Either of both.
        _ => return None,
    };
    let port = |index: usize| u16_at(info, 2 + index * 2);
    let continues = |index: usize| revision >= 1 && info.get(32 + index).is_some_and(|flag| *flag != 0);
    let inverted = revision >= 1 && *info.get(47)? != 0;
    let mut ranges = Vec::new();
    let mut index = 0;
    while index < count {
        let first = port(index)?;
        if continues(index) && index + 1 < count {
            ranges.push((first, port(index + 1)?));
            index += 1;
        } else {
            ranges.push((first, first));
        }
        index += 1;
    }
    Some(vec![Match::Ports {
        source,
        ranges,
        inverted,
    }])
}

fn conntrack(info: &[u8], revision: u32) -> Option<Vec<Match>> {
    let (asked, inverted) = (u16_at(info, 146)?, u16_at(info, 148)?);
    if asked & !(CONNTRACK_STATE | CONNTRACK_STATE_ALIAS) != 0 || asked & CONNTRACK_STATE == 0 {
        return None;
    }
    let mask = if revision == 1 {
        u32::from(*info.get(150)?)
    } else {
        u32::from(u16_at(info, 150)?)
    };
    Some(vec![Match::State {
        mask,
        inverted: inverted & CONNTRACK_STATE != 0,
    }])
}

fn addrtype(info: &[u8]) -> Option<Vec<Match>> {
    let (source, destination, flags) = (u16_at(info, 0)?, u16_at(info, 2)?, u32_at(info, 4)?);
    if source != 0 || destination == 0 || flags & ADDRTYPE_LIMITS != 0 {
        return None;
    }
    Some(vec![Match::DestinationType {
        mask: destination.into(),
        inverted: flags & ADDRTYPE_INVERT_DESTINATION != 0,
    }])
}

/// Addresses are `union nf_inet_addr`, 16 bytes; of those an IPv4 address takes the first four.
fn iprange(info: &[u8]) -> Option<Vec<Match>> {
    let flags = *info.get(64)?;
    let mut matches = Vec::new();
    for (source, at, asked, inverted) in [(true, 0, 1, 1 << 4), (false, 32, 2, 1 << 5)] {
        if flags & asked != 0 {
            matches.push(Match::AddressRange {
                source,
                from: info.get(at..at + 16)?.to_vec(),
                to: info.get(at + 16..at + 32)?.to_vec(),
                inverted: flags & inverted != 0,
            });
        }
    }
    Some(matches)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nat_targets_name_address_and_port() {
        let how = |name: &str, info: &[u8]| match target(name, info).remove(0) {
            Step::Verdict(Verdict::Redirect(how)) => how,
            other => panic!("{other:?}"),
        };
        // A count of 1, flags, two addresses, two ports.
        let mut compat = [0u8; 24];
        compat[0] = 1;
        compat[4] = 3;
        compat[8..12].copy_from_slice(&[10, 0, 1, 23]);
        compat[16..18].copy_from_slice(&8181u16.to_be_bytes());
        assert_eq!(how("DNAT", &compat), "dnat to 10.0.1.23:8181");
        compat[4] = 2;
        assert_eq!(how("REDIRECT", &compat), "redirect to :8181");
        let mut range = [0u8; 48];
        range[0] = 3;
        range[4..8].copy_from_slice(&[127, 0, 0, 1]);
        range[36..38].copy_from_slice(&1338u16.to_be_bytes());
        assert_eq!(how("DNAT", &range), "dnat to 127.0.0.1:1338");
        range[4] = 0xfd;
        range[19] = 1;
        assert!(how("DNAT", &range).ends_with("::1]:1338"));
        range[0] = 0;
        assert_eq!(how("DNAT", &range), "dnat");
        assert_eq!(how("DNAT", &[]), "dnat");
    }

    #[test]
    fn matches_are_read_from_their_structs() {
        // -m tcp --dport 80
        let tcp = [0, 0, 255, 255, 80, 0, 80, 0, 0, 0, 0, 0];
        assert_eq!(
            conditions("tcp", 0, &tcp),
            [Step::Match(Match::Ports {
                source: false,
                ranges: vec![(80, 80)],
                inverted: false
            })]
        );
        // -m owner ! --uid-owner 0
        let mut owner = [0; 20];
        owner[16] = 1;
        owner[17] = 1;
        assert_eq!(
            conditions("owner", 1, &owner),
            [Step::Match(Match::Uids {
                range: (0, 0),
                inverted: true
            })]
        );
        // -m cgroup --path a/b
        let mut cgroup = vec![0; 528];
        cgroup[0] = 1;
        cgroup[4..7].copy_from_slice(b"a/b");
        assert_eq!(
            conditions("cgroup", 2, &cgroup),
            [Step::Match(Match::Cgroup {
                path: "a/b".into(),
                inverted: false
            })]
        );
        assert_eq!(conditions("hashlimit", 3, &[]), [Step::Unread("hashlimit".into())]);
        assert_eq!(target("LOG", &[]), [Step::Verdict(Verdict::Continue)]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(
            name in prop::sample::select(vec!["tcp", "owner", "cgroup", "mark", "connmark", "multiport", "conntrack", "state", "addrtype",
                "iprange", "limit"]),
            revision in 0_u32..4,
            info in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = (conditions(name, revision, &info), target("MARK", &info), target("CT", &info));
        }
    }
}
