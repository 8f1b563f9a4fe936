//! Does a step match? Comparisons, sets and matches, with a condition where the packet leaves it open.

use super::super::packet::{Open, Packet};
use super::super::{Comparison, Element, Match, Set, TableId, Word};
use super::text::{asked, negated, numbers, unread, value_text};
use super::values::Cell;
use super::{Condition, MAX_CONDITIONS, Truth, Walker};

impl Walker<'_> {
    pub(super) fn compare(&self, word: Word, how: Comparison, data: &[u8]) -> Truth {
        match self.known(word, data.len()) {
            Ok(value) => {
                let order = value.as_slice().cmp(data);
                Truth::of(match how {
                    Comparison::Equal => order.is_eq(),
                    Comparison::NotEqual => order.is_ne(),
                    Comparison::Less => order.is_lt(),
                    Comparison::LessOrEqual => order.is_le(),
                    Comparison::Greater => order.is_gt(),
                    Comparison::GreaterOrEqual => order.is_ge(),
                })
            }
            Err(open) => {
                // A known part may decide already.
                if how == Comparison::Equal && self.contradicts(word, data) {
                    return Truth::No;
                }
                Truth::If(self.condition(open, word, how, data))
            }
        }
    }

    pub(super) fn contradicts(&self, word: Word, data: &[u8]) -> bool {
        data.chunks(4).enumerate().any(|(at, wanted)| {
            matches!(self.words.get(word + at), Some(Cell::Known(bytes)) if bytes[..wanted.len()] != *wanted)
        })
    }

    pub(super) fn condition(&self, open: Open, word: Word, how: Comparison, data: &[u8]) -> Condition {
        let (mask, swapped) = self.open_mask(word, data.len());
        let value = value_text(open, data, &mask, swapped);
        let relation = match how {
            Comparison::Equal => "",
            Comparison::NotEqual => "not ",
            Comparison::Less => "below ",
            Comparison::LessOrEqual => "at most ",
            Comparison::Greater => "above ",
            Comparison::GreaterOrEqual => "at least ",
        };
        let mut condition = asked(open, &format!("{relation}{value}"));
        if open == Open::Cgroup {
            condition.cgroup = data.first_chunk().copied().map(u64::from_ne_bytes);
        }
        condition
    }

    pub(super) fn range(&self, open: Open, word: Word, from: &[u8], to: &[u8], inverted: bool) -> Condition {
        let (mask, swapped) = self.open_mask(word, from.len());
        let not = if inverted { "not " } else { "" };
        let (from, to) = (
            value_text(open, from, &mask, swapped),
            value_text(open, to, &mask, swapped),
        );
        asked(open, &format!("{not}{from} to {to}"))
    }

    /// The set's keys begin at this word.
    pub(super) fn key(&self, word: Word, set: &Set) -> Result<Vec<u8>, Open> {
        let width = set.elements.iter().map(|element| element.key.len()).max().unwrap_or(4);
        self.known(word, width)
    }

    pub(super) fn lookup(
        &mut self,
        table: &TableId,
        word: Word,
        name: &str,
        inverted: bool,
        to: Option<Word>,
    ) -> Truth {
        let Some(set) = self.rules.sets.get(&(table.clone(), name.to_owned())) else {
            return Truth::If(unread(&format!("set {name}")));
        };
        let key = match self.key(word, set) {
            Ok(key) => key,
            Err(open) => {
                if let Some(to) = to {
                    self.put(to, vec![Err(Open::Other("a map's value")); 16]);
                }
                return self.open_lookup(open, word, name, set, inverted);
            }
        };
        let found = set.find(&key);
        if let (Some(to), Some(element)) = (to, found) {
            let data = element.data.clone();
            self.put(to, data.into_iter().map(Ok));
        }
        invert(Truth::of(found.is_some()), inverted)
    }

    pub(super) fn open_lookup(&self, open: Open, word: Word, name: &str, set: &Set, inverted: bool) -> Truth {
        let begins = || set.elements.iter().filter(|element| !element.ends);
        let possible =
            set.intervals || begins().any(|element| element.catch_all || !self.contradicts(word, &element.key));
        if !possible {
            return Truth::of(inverted);
        }
        let not = if inverted { "not " } else { "" };
        let anonymous = name.starts_with("__set") || name.starts_with("__map");
        let text = if set.intervals || !set.parts.is_empty() || begins().count() > MAX_CONDITIONS {
            let name = if anonymous { "a set" } else { name };
            format!("{not}in {name}")
        } else {
            let value = |element: &Element| {
                let (mask, swapped) = self.open_mask(word, element.key.len());
                value_text(open, &element.key, &mask, swapped)
            };
            format!("{not}{}", begins().map(value).collect::<Vec<_>>().join(" or "))
        };
        Truth::If(asked(open, &text))
    }

    pub(super) fn matches(&self, wanted: &Match) -> Truth {
        match wanted {
            Match::Always => Truth::Yes,
            Match::Protocol { number, inverted } => invert(Truth::of(*number == Packet::protocol()), *inverted),
            Match::Address {
                source,
                address,
                mask,
                inverted,
            } => match self.packet.address(*source) {
                Ok(own) if own.len() == address.len() => {
                    let equal = own
                        .iter()
                        .zip(address)
                        .zip(mask)
                        .all(|((a, b), mask)| a & mask == b & mask);
                    invert(Truth::of(equal), *inverted)
                }
                Ok(_) => invert(Truth::No, *inverted),
                Err(open) => negated(open, &value_text(open, address, mask, false), *inverted),
            },
            Match::AddressRange {
                source,
                from,
                to,
                inverted,
            } => match self.packet.address(*source) {
                Ok(own) => {
                    let inside = own.as_slice() >= &from[..own.len().min(from.len())]
                        && own.as_slice() <= &to[..own.len().min(to.len())];
                    invert(Truth::of(inside), *inverted)
                }
                Err(open) => negated(open, "in a range", *inverted),
            },
            Match::Interface {
                incoming,
                name,
                prefix,
                inverted,
            } => {
                let (interface, open) = if *incoming {
                    (&self.packet.iif, Open::InName)
                } else {
                    (&self.packet.oif, Open::OutName)
                };
                match interface {
                    Some((own, _)) if *prefix => invert(Truth::of(own.starts_with(name.as_str())), *inverted),
                    Some((own, _)) => invert(Truth::of(own == name), *inverted),
                    None if *prefix => negated(open, &format!("{name}*"), *inverted),
                    None => negated(open, name, *inverted),
                }
            }
            Match::Ports {
                source,
                ranges,
                inverted,
            } => match self.packet.port(*source) {
                Some(port) => {
                    let within = ranges.iter().any(|(from, to)| (*from..=*to).contains(&port));
                    invert(Truth::of(within), *inverted)
                }
                None => negated(Open::Port, "in a range", *inverted),
            },
            Match::TcpFlags { mask, value, inverted } => {
                invert(Truth::of(self.packet.tcp_flags() & mask == *value), *inverted)
            }
            // A packet without a socket has no owner: no match, whether the rule is inverted or not.
            Match::Uids { .. } | Match::Gids { .. } | Match::Cgroup { .. } if !self.packet.local => Truth::No,
            Match::Uids { range, inverted } => negated(Open::Uid, &numbers(*range), *inverted),
            Match::Gids { range, inverted } => negated(Open::Gid, &numbers(*range), *inverted),
            Match::Cgroup { path, inverted } => {
                let path = path.trim_start_matches('/');
                negated(Open::Cgroup, &format!("/{path}"), *inverted)
            }
            Match::Mark {
                connection,
                mark,
                mask,
                inverted,
            } => {
                let own = if *connection {
                    if self.packet.response { Err(()) } else { Ok(0) }
                } else if let Cell::Known(bytes) = self.mark {
                    Ok(u32::from_ne_bytes(bytes))
                } else {
                    Err(())
                };
                match own {
                    Ok(own) => invert(Truth::of(own & mask == *mark), *inverted),
                    Err(()) => Truth::If(unread("mark")),
                }
            }
            Match::State { mask, inverted } => match self.state {
                Ok(state) => invert(Truth::of(state & mask != 0), *inverted),
                Err(_) => Truth::If(unread("connection state")),
            },
            Match::DestinationType { mask, inverted } => {
                if self.packet.response {
                    return Truth::If(unread("address type"));
                }
                // 1 << RTN_UNICAST
                invert(Truth::of(mask & 1 << 1 != 0), *inverted)
            }
        }
    }
}

impl Set {
    pub(super) fn find(&self, key: &[u8]) -> Option<&Element> {
        let own =
            if self.parts.is_empty() && self.intervals && self.elements.iter().all(|element| element.key_end.is_none())
            {
                // Intervals as begins and ends: the last one that isn't above the key decides. Where one ends and another
                // begins, the begin counts.
                self.elements
                    .iter()
                    .filter(|element| !element.catch_all && element.key.as_slice() <= key)
                    .max_by(|a, b| (&a.key, !a.ends).cmp(&(&b.key, !b.ends)))
                    .filter(|element| !element.ends)
            } else {
                self.elements
                    .iter()
                    .filter(|element| !element.catch_all && !element.ends)
                    .find(|element| match &element.key_end {
                        None => element.key == key,
                        Some(end) => self.within(key, &element.key, end),
                    })
            };
        own.or_else(|| self.elements.iter().find(|element| element.catch_all))
    }

    /// Each part of a concatenated key by itself; parts are padded to words.
    pub(super) fn within(&self, key: &[u8], from: &[u8], to: &[u8]) -> bool {
        let whole = [key.len()];
        let parts: &[usize] = if self.parts.is_empty() { &whole } else { &self.parts };
        let mut at = 0;
        for width in parts {
            let part = at..at + width;
            let (Some(key), Some(from), Some(to)) = (key.get(part.clone()), from.get(part.clone()), to.get(part))
            else {
                return false;
            };
            if key < from || key > to {
                return false;
            }
            at += width.next_multiple_of(4);
        }
        true
    }
}

pub(super) fn invert(truth: Truth, inverted: bool) -> Truth {
    match truth {
        Truth::Yes => Truth::of(!inverted),
        Truth::No => Truth::of(inverted),
        // Its text contains it already.
        open @ Truth::If(_) => open,
    }
}
