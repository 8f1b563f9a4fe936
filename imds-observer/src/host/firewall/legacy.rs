//! The rules of the older iptables, which `nft` doesn't show: read through `getsockopt`, as `iptables-legacy-save` does.
//!
//! Only tables that exist already: asking for one that doesn't would make it.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::{
    Base, Chain, ChainId, Engine, Family, FirewallError, Hook, Match, Rule, Ruleset, Step, TableId, Verdict, text,
    u16_at, u32_at, xt,
};

/// `IPT_SO_GET_INFO` and `_GET_ENTRIES`; those of IPv6 have the same numbers.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
const NAME_BYTES: usize = 32;
/// `struct ipt_getinfo`.
const INFO_BYTES: usize = 84;
/// `struct ipt_get_entries` before its entries.
const ENTRIES_HEADER: usize = 40;
const HOOKS: usize = 5;
/// kube-proxy's largest are some ten megabytes.
const MAX_BYTES: usize = 64 << 20;
/// `struct xt_entry_match` and `_target` before their data, and the name in them.
const PART_HEADER: usize = 32;
const PART_NAME: std::ops::Range<usize> = 2..31;

/// Where the fields of `struct ipt_entry` or `ip6t_entry` are.
struct Layout {
    address_bytes: usize,
    /// Offset of the incoming interface's name. The outgoing one's name and the masks of both follow.
    interfaces: usize,
    protocol: usize,
    flags: usize,
    inverted: usize,
    /// Bit of `flags` for `--goto`.
    goto: u8,
    target_offset: usize,
    next_offset: usize,
    bytes: usize,
}

const V4: Layout = Layout {
    address_bytes: 4,
    interfaces: 16,
    protocol: 80,
    flags: 82,
    inverted: 83,
    goto: 2,
    target_offset: 88,
    next_offset: 90,
    bytes: 112,
};
const V6: Layout = Layout {
    address_bytes: 16,
    interfaces: 64,
    protocol: 128,
    flags: 131,
    inverted: 132,
    goto: 4,
    target_offset: 140,
    next_offset: 142,
    bytes: 168,
};

/// All tables of the calling process's network namespace. Needs CAP_NET_ADMIN.
pub fn read() -> Result<Ruleset, FirewallError> {
    let mut ruleset = Ruleset::default();
    for (family, names) in [
        (Family::V4, "/proc/thread-self/net/ip_tables_names"),
        (Family::V6, "/proc/thread-self/net/ip6_tables_names"),
    ] {
        let names = match fs::read_to_string(names) {
            Ok(names) => names,
            // The module isn't there: no tables.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => {
                return Err(FirewallError::Legacy {
                    table: names.to_owned(),
                    source,
                });
            }
        };
        for name in names.lines() {
            read_table(family, name, &mut ruleset).map_err(|source| FirewallError::Legacy {
                table: name.to_owned(),
                source,
            })?;
        }
    }
    Ok(ruleset)
}

fn read_table(family: Family, name: &str, ruleset: &mut Ruleset) -> io::Result<()> {
    let v6 = family == Family::V6;
    let (domain, level) = if v6 {
        (AddressFamily::Inet6, libc::IPPROTO_IPV6)
    } else {
        (AddressFamily::Inet, libc::IPPROTO_IP)
    };
    // A socket of any kind works: privileges are checked by `getsockopt()`. Nothing is ever sent through it.
    let socket = socket(domain, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut info = vec![0; INFO_BYTES];
    put_name(&mut info, name)?;
    ask(&socket, level, GET_INFO, &mut info)?;
    let size = u32_at(&info, 80).unwrap_or(0) as usize;
    if size > MAX_BYTES {
        return Err(io::Error::other(format!(
            "{size} bytes of rules are more than {MAX_BYTES}"
        )));
    }
    let mut entries = vec![0; ENTRIES_HEADER + size];
    put_name(&mut entries, name)?;
    entries[NAME_BYTES..NAME_BYTES + 4].copy_from_slice(&(size as u32).to_ne_bytes());
    // EAGAIN: the table has changed between the two questions.
    ask(&socket, level, GET_ENTRIES, &mut entries)?;
    let table = TableId {
        engine: Engine::Legacy,
        family,
        name: name.to_owned(),
    };
    let layout = if v6 { &V6 } else { &V4 };
    ruleset
        .chains
        .extend(chains(&table, layout, &info, &entries[ENTRIES_HEADER..]));
    Ok(())
}

fn put_name(buffer: &mut [u8], name: &str) -> io::Result<()> {
    // One byte stays for the end.
    if name.len() >= NAME_BYTES {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    buffer[..name.len()].copy_from_slice(name.as_bytes());
    Ok(())
}

fn ask(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, buffer: &mut [u8]) -> io::Result<()> {
    let mut length = buffer.len() as libc::socklen_t;
    // SAFETY: the buffer has the stated length, which the kernel checks against what it writes.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            option,
            buffer.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    nix::errno::Errno::result(result).map(drop).map_err(Into::into)
}

/// Cuts the blob into its chains. Hooks enter at offsets; chains of the user begin behind an entry that bears their name.
fn chains(table: &TableId, layout: &Layout, info: &[u8], blob: &[u8]) -> HashMap<ChainId, Chain> {
    let mut names: HashMap<usize, (String, Option<Hook>)> = HashMap::new();
    let (hooks, mut policies) = (u32_at(info, 32).unwrap_or(0), Vec::new());
    for number in 0..HOOKS {
        if hooks & 1 << number != 0
            && let Some(hook) = Hook::from_number(number as u32)
            && let (Some(entry), Some(policy)) = (u32_at(info, 36 + number * 4), u32_at(info, 56 + number * 4))
        {
            names.insert(entry as usize, (hook.to_string(), Some(hook)));
            policies.push(policy as usize);
        }
    }
    let entries = entries(layout, blob);
    for (offset, entry) in &entries {
        let (target, data) = target(layout, entry);
        if target == "ERROR" {
            names.insert(offset + entry.len(), (text(data), None));
        }
    }
    let (mut found, mut current): (HashMap<ChainId, Chain>, Option<ChainId>) = (HashMap::new(), None);
    let mut number = 0;
    for (offset, entry) in &entries {
        if let Some((name, hook)) = names.get(offset) {
            let id = ChainId {
                table: table.clone(),
                name: name.clone(),
            };
            let base = hook.map(|hook| Base {
                hook,
                priority: priority(&table.name, hook),
                // The policy is the last entry.
                drops: false,
            });
            found.insert(
                id.clone(),
                Chain {
                    base,
                    rules: Vec::new(),
                },
            );
            current = Some(id);
            number = 0;
        }
        number += 1;
        let (target, data) = target(layout, entry);
        if target == "ERROR" {
            // The head of the next chain, or the end.
            current = None;
            continue;
        }
        let Some(chain) = current.as_ref().and_then(|id| found.get_mut(id)) else {
            continue;
        };
        let mut steps = conditions(layout, entry);
        if target.is_empty() {
            let goto = entry.get(layout.flags).is_some_and(|flags| flags & layout.goto != 0);
            steps.push(Step::Verdict(standard(data, offset + entry.len(), goto, &names)));
        } else {
            steps.extend(xt::target(&target, data));
        }
        let name = if policies.contains(offset) {
            "policy".to_owned()
        } else {
            format!("rule {number}")
        };
        chain.rules.push(Rule { name, steps });
    }
    found
}

/// In `linux/netfilter_ipv4.h`.
fn priority(table: &str, hook: Hook) -> i32 {
    match (table, hook) {
        ("raw", _) => -300,
        ("mangle", _) => -150,
        ("nat", Hook::Prerouting | Hook::Output) => -100,
        ("nat", _) => 100,
        ("security", _) => 50,
        _ => 0,
    }
}

/// Offsets and bytes of the entries.
fn entries<'a>(layout: &Layout, blob: &'a [u8]) -> Vec<(usize, &'a [u8])> {
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(next) = u16_at(blob, at + layout.next_offset) {
        let next = usize::from(next);
        let Some(entry) = blob.get(at..at + next).filter(|_| next >= layout.bytes) else {
            break;
        };
        found.push((at, entry));
        at += next;
    }
    found
}

/// Name and data of an entry's target.
fn target<'a>(layout: &Layout, entry: &'a [u8]) -> (String, &'a [u8]) {
    let at = u16_at(entry, layout.target_offset).map_or(entry.len(), usize::from);
    let part = entry.get(at..).unwrap_or_default();
    let name = part.get(PART_NAME).map(text).unwrap_or_default();
    (name, part.get(PART_HEADER..).unwrap_or_default())
}

fn standard(data: &[u8], next: usize, goto: bool, names: &HashMap<usize, (String, Option<Hook>)>) -> Verdict {
    match u32_at(data, 0).map(u32::cast_signed) {
        // NF_DROP, NF_ACCEPT, NF_QUEUE, and NF_REPEAT, which means RETURN: each as -verdict - 1.
        Some(-1) => Verdict::Drop,
        Some(-2) => Verdict::Accept,
        Some(-4) => Verdict::Queue,
        Some(-5) => Verdict::Return,
        Some(offset) if offset >= 0 && offset as usize != next => match names.get(&(offset as usize)) {
            Some((name, _)) if goto => Verdict::Goto(name.clone()),
            Some((name, _)) => Verdict::Jump(name.clone()),
            None => Verdict::Continue,
        },
        // A rule without target goes on with the next one.
        _ => Verdict::Continue,
    }
}

/// Conditions in an entry's head and matches.
fn conditions(layout: &Layout, entry: &[u8]) -> Vec<Step> {
    let width = layout.address_bytes;
    let inverted = entry.get(layout.inverted).copied().unwrap_or(0);
    let field = |at: usize, width: usize| entry.get(at..at + width).unwrap_or_default().to_vec();
    let mut steps = Vec::new();
    // Source, destination, and their masks.
    for (source, at, bit) in [(true, 0, 0x08), (false, width, 0x10)] {
        let (address, mask) = (field(at, width), field(at + 2 * width, width));
        if mask.iter().any(|byte| *byte != 0) || inverted & bit != 0 {
            steps.push(Step::Match(Match::Address {
                source,
                address,
                mask,
                inverted: inverted & bit != 0,
            }));
        }
    }
    for (incoming, at, bit) in [(true, layout.interfaces, 0x01), (false, layout.interfaces + 16, 0x02)] {
        let (name, mask) = (field(at, 16), field(at + 32, 16));
        if mask.iter().any(|byte| *byte != 0) {
            let name = text(&name);
            // The mask of a whole name covers its end, too.
            let asked = mask.iter().filter(|byte| **byte != 0).count();
            steps.push(Step::Match(Match::Interface {
                incoming,
                prefix: asked <= name.len(),
                name,
                inverted: inverted & bit != 0,
            }));
        }
    }
    match u16_at(entry, layout.protocol) {
        None | Some(0) => {}
        Some(number) => steps.push(Step::Match(Match::Protocol {
            number: number as u8,
            inverted: inverted & 0x40 != 0,
        })),
    }
    let end = u16_at(entry, layout.target_offset).map_or(0, usize::from);
    let mut at = layout.bytes;
    while at + PART_HEADER <= end {
        let size = u16_at(entry, at).map_or(0, usize::from);
        let Some(part) = entry.get(at..at + size).filter(|part| part.len() >= PART_HEADER) else {
            break;
        };
        let revision = u32::from(part[PART_NAME.end]);
        steps.extend(xt::conditions(&text(&part[PART_NAME]), revision, &part[PART_HEADER..]));
        at += size;
    }
    steps
}

/// Any bytes as a table's blob: for the fuzz targets.
pub(super) fn read_any(bytes: &[u8]) {
    let (info, blob) = bytes.split_at(bytes.len().min(84));
    for (family, layout) in [(Family::V4, &V4), (Family::V6, &V6)] {
        let table = TableId {
            engine: Engine::Legacy,
            family,
            name: "filter".to_owned(),
        };
        let _ = chains(&table, layout, info, blob);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An entry without matches.
    fn entry(layout: &Layout, target: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; layout.bytes + PART_HEADER + data.len()];
        bytes[layout.bytes + 2..layout.bytes + 2 + target.len()].copy_from_slice(target.as_bytes());
        bytes[layout.bytes + PART_HEADER..].copy_from_slice(data);
        let (at, next) = (layout.bytes as u16, bytes.len() as u16);
        bytes[layout.target_offset..layout.target_offset + 2].copy_from_slice(&at.to_ne_bytes());
        bytes[layout.next_offset..layout.next_offset + 2].copy_from_slice(&next.to_ne_bytes());
        bytes
    }

    fn verdict(number: i32) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&number.to_ne_bytes());
        bytes
    }

    #[test]
    fn chains_of_hooks_and_of_the_user_are_cut_apart() {
        for (family, layout) in [(Family::V4, &V4), (Family::V6, &V6)] {
            let standard = layout.bytes + PART_HEADER + 8;
            let head = layout.bytes + PART_HEADER + 30;
            // OUTPUT: jump to `mine`, policy ACCEPT; `mine`: DROP, RETURN.
            let mine = 2 * standard + head;
            let mut blob = entry(layout, "", &verdict(mine as i32));
            blob.extend(entry(layout, "", &verdict(-2)));
            let mut name = [0; 30];
            name[..4].copy_from_slice(b"mine");
            blob.extend(entry(layout, "ERROR", &name));
            blob.extend(entry(layout, "", &verdict(-1)));
            blob.extend(entry(layout, "", &verdict(-5)));
            name[..5].copy_from_slice(b"ERROR");
            blob.extend(entry(layout, "ERROR", &name));
            let mut info = vec![0; INFO_BYTES];
            info[32..36].copy_from_slice(&(1_u32 << 3).to_ne_bytes());
            info[56 + 12..72].copy_from_slice(&(standard as u32).to_ne_bytes());

            let table = TableId {
                engine: Engine::Legacy,
                family,
                name: "filter".into(),
            };
            let chains = chains(&table, layout, &info, &blob);
            let rules = |name: &str| {
                let id = ChainId {
                    table: table.clone(),
                    name: name.into(),
                };
                let rules = &chains[&id].rules;
                let last = |rule: &Rule| (rule.name.clone(), rule.steps.last().cloned().unwrap());
                rules.iter().map(last).collect::<Vec<_>>()
            };
            let step = |name: &str, verdict| (name.to_owned(), Step::Verdict(verdict));
            assert_eq!(
                rules("OUTPUT"),
                [
                    step("rule 1", Verdict::Jump("mine".into())),
                    step("policy", Verdict::Accept)
                ]
            );
            assert_eq!(
                rules("mine"),
                [step("rule 1", Verdict::Drop), step("rule 2", Verdict::Return)]
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(
            info in proptest::collection::vec(any::<u8>(), 0..100),
            blob in proptest::collection::vec(any::<u8>(), 0..600),
        ) {
            let table = TableId { engine: Engine::Legacy, family: Family::V4, name: "filter".into() };
            let _ = chains(&table, &V4, &info, &blob);
            let _ = chains(&table, &V6, &info, &blob);
        }
    }
}
