//! Where would the firewall stop this packet, and for whom?
//!
//! Rules are followed as the kernel follows them, with three answers instead of two: a rule matches, doesn't, or does if
//! something holds that isn't known of the packet. Such conditions are kept with the verdict that they lead to.

use std::fmt;
use std::net::IpAddr;

use super::nft::WORDS;
use super::packet::{Byte, Open, Packet};
use super::{
    Chain, ChainId, Comparison, Element, Engine, Hook, Loaded, Match, Rule, Ruleset, Set, Step, TableId, Verdict, Word,
};

/// Limit of steps for one packet. Large rule sets usually end early.
const MAX_STEPS: usize = 200_000;
/// The kernel allows no deeper jumps.
const MAX_DEPTH: usize = 16;
/// Limit of reported locations.
const MAX_STOPS: usize = 32;
/// Elements of a map whose verdicts are followed though the key isn't known.
const MAX_BRANCHES: usize = 64;
/// Limit of reported conditions per verdict.
const MAX_CONDITIONS: usize = 8;

/// Something that must hold for a verdict to apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Reads after "for": `uid 1000`, `what comes in from veth0`.
    pub text: String,
    /// Tells who is hit. Otherwise whether it holds can't be told from the rule.
    pub told: bool,
    /// The id of the cgroup in the text, for whoever can name it.
    pub cgroup: Option<u64>,
}

/// What becomes of the packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Dropped,
    Rejected,
    Redirected(String),
    /// To a program that decides.
    Queued,
}

/// A place at which the packet doesn't go on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    pub hook: Hook,
    pub chain: ChainId,
    /// `handle 7`, `rule 3`, `policy`.
    pub rule: String,
    pub outcome: Outcome,
    /// All must hold; empty: every such packet.
    pub conditions: Vec<Condition>,
    /// Those of which one holds go on.
    pub unless: Vec<Condition>,
}

/// Where a packet was led.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Walk {
    pub stops: Vec<Stop>,
    /// Base chains that were asked.
    pub chains: usize,
    /// Too many rules: there may be more stops.
    pub given_up: bool,
}

/// Leads a packet through all chains of these hooks, in their order.
pub fn walk(rules: &Ruleset, hooks: &[Hook], packet: &Packet) -> Walk {
    let mut walker = Walker {
        rules,
        packet,
        network: packet.network(),
        transport: packet.transport(),
        mark: Cell::Known([0; 4]),
        state: Ok(packet.state()),
        words: [Cell::Known([0; 4]); WORDS],
        hook: Hook::Output,
        steps: 0,
        unless: Vec::new(),
        walk: Walk::default(),
    };
    for hook in hooks {
        let mut bases: Vec<_> = rules
            .chains
            .iter()
            .filter(|(id, _)| id.table.family.takes(packet.v6()))
            .filter_map(|(id, chain)| Some((chain.base.filter(|base| base.hook == *hook)?, id, chain)))
            .collect();
        bases.sort_by(|(a, a_id, _), (b, b_id, _)| {
            (a.priority, &a_id.table.name, &a_id.name).cmp(&(b.priority, &b_id.table.name, &b_id.name))
        });
        for (base, id, chain) in bases {
            walker.hook = *hook;
            walker.walk.chains += 1;
            walker.unless.clear();
            let flow = walker.chain(id, chain, &[], 0);
            if flow == Flow::Through && base.drops {
                walker.stop(id, "policy", Outcome::Dropped, &[]);
            }
        }
    }
    walker.walk
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    /// Decided for every such packet.
    Ended,
    Through,
}

/// One answer to what a step asks.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Truth {
    Yes,
    No,
    If(Condition),
}

impl Truth {
    fn of(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

/// Four bytes, known or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cell {
    Known([u8; 4]),
    Open {
        open: Open,
        /// Bits that are left of the value.
        mask: [u8; 4],
        /// In network order though the value isn't by nature.
        swapped: bool,
    },
}

struct Walker<'a> {
    rules: &'a Ruleset,
    packet: &'a Packet,
    network: Vec<Byte>,
    transport: Vec<Byte>,
    mark: Cell,
    state: Result<u32, Open>,
    words: [Cell; WORDS],
    hook: Hook,
    steps: usize,
    unless: Vec<Condition>,
    walk: Walk,
}

impl Walker<'_> {
    fn chain(&mut self, id: &ChainId, chain: &Chain, path: &[Condition], depth: usize) -> Flow {
        for rule in &chain.rules {
            match self.rule(id, rule, path, depth) {
                Next::Rule => {}
                Next::Through => return Flow::Through,
                Next::Ended => return Flow::Ended,
            }
        }
        Flow::Through
    }

    fn rule(&mut self, id: &ChainId, rule: &Rule, path: &[Condition], depth: usize) -> Next {
        let mut own: Vec<Condition> = Vec::new();
        self.steps += 1 + rule.steps.len();
        if self.steps > MAX_STEPS {
            self.walk.given_up = true;
            return Next::Ended;
        }
        for step in &rule.steps {
            if let Step::Verdict(verdict) = step {
                if *verdict == Verdict::Continue {
                    continue;
                }
                return self.verdict(id, &rule.name, verdict, path, own, depth);
            }
            if let Step::Lookup {
                word,
                set,
                to: None,
                verdict: true,
                ..
            } = step
            {
                return self.verdict_map(id, &rule.name, (*word, set), path, own, depth);
            }
            match self.step(&id.table, step, !own.is_empty()) {
                Truth::Yes => {}
                Truth::No => return Next::Rule,
                Truth::If(condition) => own.push(condition),
            }
        }
        Next::Rule
    }

    fn verdict(
        &mut self,
        id: &ChainId,
        rule: &str,
        verdict: &Verdict,
        path: &[Condition],
        own: Vec<Condition>,
        depth: usize,
    ) -> Next {
        let certain = own.is_empty();
        let ended = if certain { Next::Ended } else { Next::Rule };
        let all = || [path, &own].concat();
        match verdict {
            Verdict::Continue => Next::Rule,
            Verdict::Accept => {
                self.exempt(own);
                ended
            }
            Verdict::Return => {
                self.exempt(own);
                if certain { Next::Through } else { Next::Rule }
            }
            Verdict::Drop | Verdict::Reject | Verdict::Queue | Verdict::Redirect(_) => {
                let outcome = match verdict {
                    Verdict::Reject => Outcome::Rejected,
                    Verdict::Queue => Outcome::Queued,
                    Verdict::Redirect(how) => Outcome::Redirected(how.clone()),
                    _ => Outcome::Dropped,
                };
                self.stop(id, rule, outcome, &all());
                ended
            }
            Verdict::Jump(name) | Verdict::Goto(name) => {
                let target = ChainId {
                    table: id.table.clone(),
                    name: name.clone(),
                };
                let Some(chain) = self.rules.chains.get(&target).filter(|_| depth < MAX_DEPTH) else {
                    return Next::Rule;
                };
                let flow = self.chain(&target, chain, &all(), depth + 1);
                match (flow, verdict, certain) {
                    (Flow::Ended, _, true) => Next::Ended,
                    (Flow::Through, Verdict::Goto(_), true) => Next::Through,
                    _ => Next::Rule,
                }
            }
        }
    }

    /// Those of whom this holds aren't concerned by what follows.
    fn exempt(&mut self, own: Vec<Condition>) {
        if !own.is_empty() && self.unless.len() < MAX_CONDITIONS {
            let told = own.iter().all(|condition| condition.told);
            let text = own.into_iter().map(|condition| condition.text).collect::<Vec<_>>();
            self.unless.push(Condition {
                text: text.join(" and "),
                told,
                cgroup: None,
            });
        }
    }

    fn stop(&mut self, id: &ChainId, rule: &str, outcome: Outcome, conditions: &[Condition]) {
        if self.walk.stops.len() == MAX_STOPS {
            self.walk.given_up = true;
            return;
        }
        let mut conditions = conditions.to_vec();
        conditions.dedup();
        conditions.truncate(MAX_CONDITIONS);
        self.walk.stops.push(Stop {
            hook: self.hook,
            chain: id.clone(),
            rule: rule.to_owned(),
            outcome,
            conditions,
            unless: self.unless.clone(),
        });
    }

    fn verdict_map(
        &mut self,
        id: &ChainId,
        rule: &str,
        (word, name): (Word, &str),
        path: &[Condition],
        own: Vec<Condition>,
        depth: usize,
    ) -> Next {
        let Some(set) = self.rules.sets.get(&(id.table.clone(), name.to_owned())) else {
            return Next::Rule;
        };
        if let Ok(key) = self.key(word, set) {
            return match set.find(&key).and_then(|element| element.verdict.as_ref()) {
                Some(Verdict::Continue) | None => Next::Rule,
                Some(verdict) => self.verdict(id, rule, verdict, path, own, depth),
            };
        }
        for element in set.elements.iter().filter(|element| !element.ends).take(MAX_BRANCHES) {
            let Some(verdict) = &element.verdict else { continue };
            let mut own = own.clone();
            match self.compare(word, Comparison::Equal, &element.key) {
                Truth::No => continue,
                Truth::Yes => own.push(unread("the rest of a key")),
                Truth::If(condition) => own.push(condition),
            }
            // A conditional verdict never ends the chain.
            self.verdict(id, rule, verdict, path, own, depth);
        }
        Next::Rule
    }

    /// Every step but a verdict.
    fn step(&mut self, table: &TableId, step: &Step, conditional: bool) -> Truth {
        match step {
            Step::Verdict(_) => {}
            Step::Unread(name) => return Truth::If(unread(name)),
            Step::Match(wanted) => return self.matches(wanted),
            Step::Load { what, to, bytes } => return self.load(*what, *to, *bytes),
            Step::Put { to, data } => self.put(*to, data.iter().map(|byte| Ok(*byte))),
            Step::Bits { from, to, mask, xor } => self.bits(*from, *to, mask, xor),
            Step::Swap { from, to, bytes, unit } => self.swap(*from, *to, *bytes, *unit),
            Step::Compare { word, how, data } => return self.compare(*word, *how, data),
            Step::Range {
                word,
                from,
                to,
                inverted,
            } => {
                let inside = match self.known(*word, from.len()) {
                    Ok(value) => Truth::of(value >= *from && value <= *to),
                    Err(open) => Truth::If(self.range(open, *word, from, to, *inverted)),
                };
                return invert(inside, *inverted);
            }
            Step::Lookup {
                word,
                set,
                inverted,
                to,
                ..
            } => return self.lookup(table, *word, set, *inverted, *to),
            Step::SetMark { from } => {
                let value = self.words.get(*from).copied();
                self.mark = match value {
                    Some(Cell::Known(bytes)) if !conditional => Cell::Known(bytes),
                    _ => open_cell(Open::Other("mark")),
                };
            }
            Step::ChangeMark { mark, mask } => {
                self.mark = match self.mark {
                    Cell::Known(bytes) if !conditional => {
                        Cell::Known((u32::from_ne_bytes(bytes) & !mask ^ mark).to_ne_bytes())
                    }
                    _ => open_cell(Open::Other("mark")),
                };
            }
            Step::Untrack => self.state = Err(Open::Other("connection state")),
        }
        Truth::Yes
    }

    fn put(&mut self, to: Word, bytes: impl IntoIterator<Item = Byte>) {
        let bytes: Vec<Byte> = bytes.into_iter().collect();
        for (word, chunk) in bytes.chunks(4).enumerate() {
            let mut cell = [0; 4];
            let mut open = None;
            for (at, byte) in chunk.iter().enumerate() {
                match byte {
                    Ok(byte) => cell[at] = *byte,
                    Err(why) => open = Some(*why),
                }
            }
            if let Some(slot) = self.words.get_mut(to + word) {
                *slot = open.map_or(Cell::Known(cell), open_cell);
            }
        }
    }

    fn load(&mut self, what: Loaded, to: Word, bytes: usize) -> Truth {
        let bytes = bytes.clamp(1, WORDS * 4);
        let number = |number: u32| number.to_ne_bytes().map(Ok).to_vec();
        let name = |interface: &Option<(String, u32)>, open| match interface {
            Some((name, _)) => {
                let mut bytes: Vec<Byte> = name.bytes().take(16).map(Ok).collect();
                bytes.resize(16, Ok(0));
                bytes
            }
            None => vec![Err(open); 16],
        };
        let index = |interface: &Option<(String, u32)>, open| match interface {
            Some((_, index)) => number(*index),
            None => vec![Err(open); 4],
        };
        let v6 = self.packet.v6();
        let value: Vec<Byte> = match what {
            Loaded::Network { offset } | Loaded::Transport { offset } => {
                let header = if matches!(what, Loaded::Network { .. }) {
                    &self.network
                } else {
                    &self.transport
                };
                let beyond = Err(Open::Other("payload"));
                (offset..offset.saturating_add(bytes))
                    .map(|at| header.get(at).copied().unwrap_or(beyond))
                    .collect()
            }
            // Whose packet isn't this host's has no socket: the rule breaks off.
            Loaded::Uid | Loaded::Gid | Loaded::Cgroup if !self.packet.local => return Truth::No,
            Loaded::Uid => vec![Err(Open::Uid); 4],
            Loaded::Gid => vec![Err(Open::Gid); 4],
            Loaded::Cgroup => vec![Err(Open::Cgroup); 8],
            Loaded::InName => name(&self.packet.iif, Open::InName),
            Loaded::OutName => name(&self.packet.oif, Open::OutName),
            Loaded::InIndex => index(&self.packet.iif, Open::InIndex),
            Loaded::OutIndex => index(&self.packet.oif, Open::OutIndex),
            Loaded::Mark => match self.mark {
                Cell::Known(bytes) => bytes.map(Ok).to_vec(),
                Cell::Open { open, .. } => vec![Err(open); 4],
            },
            // Connections are marked by rules like these, before or after.
            Loaded::ConnectionMark if self.packet.response => vec![Err(Open::Other("connection mark")); 4],
            Loaded::ConnectionMark => number(0),
            Loaded::State => match self.state {
                Ok(state) => number(state),
                Err(open) => vec![Err(open); 4],
            },
            Loaded::Direction => vec![Ok(u8::from(self.packet.response))],
            // RTN_UNICAST: an endpoint is another host's. The client's kind isn't known here.
            Loaded::DestinationType if !self.packet.response => number(1),
            Loaded::DestinationType => vec![Err(Open::Other("address type")); 4],
            Loaded::Family => vec![Ok(if v6 { 10 } else { 2 })],
            Loaded::EtherType => {
                let kind: u16 = if v6 { 0x86dd } else { 0x0800 };
                kind.to_be_bytes().map(Ok).to_vec()
            }
            Loaded::Protocol => vec![Ok(Packet::protocol())],
            Loaded::Other(name) => vec![Err(Open::Other(name)); bytes],
        };
        self.put(to, value);
        Truth::Yes
    }

    fn bits(&mut self, from: Word, to: Word, mask: &[u8], xor: &[u8]) {
        for (word, masks) in mask.chunks(4).enumerate() {
            let bit = |bytes: &[u8], at: usize| bytes.get(at).copied().unwrap_or(0);
            let Some(cell) = self.words.get(from + word).copied() else {
                return;
            };
            let cell = match cell {
                Cell::Known(bytes) => Cell::Known(std::array::from_fn(|at| {
                    bytes[at] & bit(masks, at) ^ bit(xor, word * 4 + at)
                })),
                Cell::Open {
                    open,
                    mask: old,
                    swapped,
                } => Cell::Open {
                    open,
                    mask: std::array::from_fn(|at| old[at] & bit(masks, at)),
                    swapped,
                },
            };
            if let Some(slot) = self.words.get_mut(to + word) {
                *slot = cell;
            }
        }
    }

    fn swap(&mut self, from: Word, to: Word, bytes: usize, unit: usize) {
        for word in 0..bytes.min(WORDS * 4).div_ceil(4) {
            let cell = match self.words.get(from + word).copied() {
                Some(Cell::Known([a, b, c, d])) if cfg!(target_endian = "little") => match unit {
                    2 => Cell::Known([b, a, d, c]),
                    4 => Cell::Known([d, c, b, a]),
                    _ => open_cell(Open::Other("swapped value")),
                },
                Some(Cell::Known(bytes)) => Cell::Known(bytes),
                Some(Cell::Open { open, mask, swapped }) => Cell::Open {
                    open,
                    mask,
                    swapped: !swapped,
                },
                None => return,
            };
            if let Some(slot) = self.words.get_mut(to + word) {
                *slot = cell;
            }
        }
    }

    /// The value of so many bytes, or what is open of it.
    fn known(&self, word: Word, bytes: usize) -> Result<Vec<u8>, Open> {
        let mut value = Vec::with_capacity(bytes);
        for at in word..word + bytes.div_ceil(4).min(WORDS) {
            match self.words.get(at) {
                Some(Cell::Known(bytes)) => value.extend(bytes),
                Some(Cell::Open { open, .. }) => return Err(*open),
                None => return Err(Open::Other("value")),
            }
        }
        value.truncate(bytes);
        Ok(value)
    }

    fn compare(&self, word: Word, how: Comparison, data: &[u8]) -> Truth {
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

    fn contradicts(&self, word: Word, data: &[u8]) -> bool {
        data.chunks(4).enumerate().any(|(at, wanted)| {
            matches!(self.words.get(word + at), Some(Cell::Known(bytes)) if bytes[..wanted.len()] != *wanted)
        })
    }

    fn condition(&self, open: Open, word: Word, how: Comparison, data: &[u8]) -> Condition {
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

    fn range(&self, open: Open, word: Word, from: &[u8], to: &[u8], inverted: bool) -> Condition {
        let (mask, swapped) = self.open_mask(word, from.len());
        let not = if inverted { "not " } else { "" };
        let (from, to) = (
            value_text(open, from, &mask, swapped),
            value_text(open, to, &mask, swapped),
        );
        asked(open, &format!("{not}{from} to {to}"))
    }

    fn open_mask(&self, word: Word, bytes: usize) -> (Vec<u8>, bool) {
        let mut mask = Vec::with_capacity(bytes);
        let mut swapped = false;
        for at in word..word + bytes.div_ceil(4).min(WORDS) {
            match self.words.get(at) {
                Some(Cell::Open {
                    mask: cell,
                    swapped: turned,
                    ..
                }) => {
                    mask.extend(cell);
                    swapped |= turned;
                }
                _ => mask.extend([0xff; 4]),
            }
        }
        mask.truncate(bytes);
        (mask, swapped)
    }

    /// The set's keys begin at this word.
    fn key(&self, word: Word, set: &Set) -> Result<Vec<u8>, Open> {
        let width = set.elements.iter().map(|element| element.key.len()).max().unwrap_or(4);
        self.known(word, width)
    }

    fn lookup(&mut self, table: &TableId, word: Word, name: &str, inverted: bool, to: Option<Word>) -> Truth {
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

    fn open_lookup(&self, open: Open, word: Word, name: &str, set: &Set, inverted: bool) -> Truth {
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

    fn matches(&self, wanted: &Match) -> Truth {
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
            // A packet without a socket has no owner: the kernel says no, whichever way round it is asked.
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

enum Next {
    Rule,
    Through,
    Ended,
}

impl Set {
    fn find(&self, key: &[u8]) -> Option<&Element> {
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
    fn within(&self, key: &[u8], from: &[u8], to: &[u8]) -> bool {
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

fn open_cell(open: Open) -> Cell {
    Cell::Open {
        open,
        mask: [0xff; 4],
        swapped: false,
    }
}

fn invert(truth: Truth, inverted: bool) -> Truth {
    match truth {
        Truth::Yes => Truth::of(!inverted),
        Truth::No => Truth::of(inverted),
        // Its text contains it already.
        open @ Truth::If(_) => open,
    }
}

fn unread(name: &str) -> Condition {
    Condition {
        text: format!("match `{name}` (not evaluated)"),
        told: false,
        cgroup: None,
    }
}

fn negated(open: Open, value: &str, inverted: bool) -> Truth {
    let not = if inverted { "not " } else { "" };
    Truth::If(asked(open, &format!("{not}{value}")))
}

fn asked(open: Open, value: &str) -> Condition {
    let (text, told) = match open {
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
        told,
        cgroup: None,
    }
}

fn numbers((from, to): (u32, u32)) -> String {
    if from == to {
        from.to_string()
    } else {
        format!("{from} to {to}")
    }
}

fn value_text(open: Open, data: &[u8], mask: &[u8], swapped: bool) -> String {
    match open {
        Open::Source | Open::Destination => address(data, mask),
        Open::InName | Open::OutName => {
            let name = super::text(data);
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
fn address(data: &[u8], mask: &[u8]) -> String {
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

#[cfg(test)]
mod tests {
    use super::super::{Base, Family};
    use super::*;
    use proptest::prelude::*;

    fn table() -> TableId {
        TableId {
            engine: Engine::Nft,
            family: Family::Both,
            name: "filter".into(),
        }
    }

    fn id(name: &str) -> ChainId {
        ChainId {
            table: table(),
            name: name.into(),
        }
    }

    fn request() -> Packet {
        Packet {
            endpoint: "169.254.169.254".parse().unwrap(),
            client: Some("10.0.0.5".parse().unwrap()),
            response: false,
            iif: Some((String::new(), 0)),
            oif: Some(("eth0".into(), 2)),
            local: true,
        }
    }

    fn ruleset(drops: bool, chains: Vec<(&str, Vec<Vec<Step>>)>) -> Ruleset {
        let mut ruleset = Ruleset::default();
        for (number, (name, rules)) in chains.into_iter().enumerate() {
            let base = (number == 0).then_some(Base {
                hook: Hook::Output,
                priority: 0,
                drops,
            });
            let rules = rules
                .into_iter()
                .enumerate()
                .map(|(number, steps)| Rule {
                    name: format!("handle {number}"),
                    steps,
                })
                .collect();
            ruleset.chains.insert(id(name), Chain { base, rules });
        }
        ruleset
    }

    /// `ip daddr ADDRESS`
    fn destination(address: [u8; 4]) -> [Step; 2] {
        [
            Step::Load {
                what: Loaded::Network { offset: 16 },
                to: 0,
                bytes: 4,
            },
            Step::Compare {
                word: 0,
                how: Comparison::Equal,
                data: address.to_vec(),
            },
        ]
    }

    fn uid(how: Comparison, uid: u32) -> [Step; 2] {
        [
            Step::Load {
                what: Loaded::Uid,
                to: 0,
                bytes: 4,
            },
            Step::Compare {
                word: 0,
                how,
                data: uid.to_ne_bytes().to_vec(),
            },
        ]
    }

    fn rule(conditions: &[&[Step]], verdict: Verdict) -> Vec<Step> {
        let mut steps = conditions.concat();
        steps.push(Step::Verdict(verdict));
        steps
    }

    fn told(ruleset: &Ruleset) -> Vec<String> {
        walk(ruleset, &[Hook::Output], &request())
            .stops
            .iter()
            .map(|stop| {
                let texts =
                    |conditions: &[Condition]| conditions.iter().map(|c| c.text.clone()).collect::<Vec<_>>().join(", ");
                format!(
                    "{} {:?} for [{}] unless [{}]",
                    stop.rule,
                    stop.outcome,
                    texts(&stop.conditions),
                    texts(&stop.unless)
                )
            })
            .collect()
    }

    const IMDS: [u8; 4] = [169, 254, 169, 254];

    #[test]
    fn a_rule_for_the_endpoint_stops_it_and_one_for_another_does_not() {
        let drop = |address| {
            ruleset(
                false,
                vec![("output", vec![rule(&[&destination(address)], Verdict::Drop)])],
            )
        };
        assert_eq!(told(&drop(IMDS)), ["handle 0 Dropped for [] unless []"]);
        assert_eq!(told(&drop([10, 0, 0, 1])), [""; 0]);
    }

    #[test]
    fn whom_a_rule_hits_is_told() {
        let only = rule(&[&destination(IMDS), &uid(Comparison::Equal, 1000)], Verdict::Reject);
        assert_eq!(
            told(&ruleset(false, vec![("output", vec![only])])),
            ["handle 0 Rejected for [uid 1000] unless []"]
        );
        let spared = vec![
            rule(&[&uid(Comparison::Equal, 0)], Verdict::Accept),
            rule(&[&destination(IMDS)], Verdict::Drop),
        ];
        assert_eq!(
            told(&ruleset(false, vec![("output", spared)])),
            ["handle 1 Dropped for [] unless [uid 0]"]
        );
    }

    #[test]
    fn jumps_gotos_returns_and_policies_are_followed() {
        let mine = vec![
            rule(&[&destination([10, 0, 0, 1])], Verdict::Drop),
            rule(&[], Verdict::Return),
            rule(&[], Verdict::Drop),
        ];
        let chains = |verdict| vec![("output", vec![rule(&[], verdict)]), ("mine", mine.clone())];
        let jump = || Verdict::Jump("mine".into());
        assert_eq!(told(&ruleset(false, chains(jump()))), [""; 0]);
        assert_eq!(
            told(&ruleset(true, chains(jump()))),
            ["policy Dropped for [] unless []"]
        );
        let accepted = vec![rule(&[&destination(IMDS)], Verdict::Accept), rule(&[], Verdict::Drop)];
        assert_eq!(told(&ruleset(true, vec![("output", accepted)])), [""; 0]);
        let endless = vec![("output", vec![rule(&[], Verdict::Goto("output".into()))])];
        assert_eq!(told(&ruleset(false, endless)), [""; 0]);
    }

    #[test]
    fn marks_states_and_sets_are_followed() {
        let state = |bits: u32| {
            vec![
                Step::Load {
                    what: Loaded::State,
                    to: 0,
                    bytes: 4,
                },
                Step::Bits {
                    from: 0,
                    to: 0,
                    mask: bits.to_ne_bytes().to_vec(),
                    xor: vec![0; 4],
                },
                Step::Compare {
                    word: 0,
                    how: Comparison::NotEqual,
                    data: vec![0; 4],
                },
                Step::Verdict(Verdict::Drop),
            ]
        };
        assert_eq!(
            told(&ruleset(false, vec![("output", vec![state(1)])])),
            [""; 0],
            "invalid"
        );
        assert_eq!(told(&ruleset(false, vec![("output", vec![state(8)])])).len(), 1, "new");

        let lookup = |inverted| {
            let [load, _] = destination(IMDS);
            let found = Step::Lookup {
                word: 0,
                set: "link-local".into(),
                inverted,
                to: None,
                verdict: false,
            };
            vec![load, found, Step::Verdict(Verdict::Drop)]
        };
        let element = |key: [u8; 4], ends| Element {
            key: key.to_vec(),
            ends,
            ..Element::default()
        };
        let set = Set {
            intervals: true,
            parts: Vec::new(),
            elements: vec![
                element([0, 0, 0, 0], true),
                element([169, 255, 0, 0], true),
                element([169, 254, 0, 0], false),
            ],
        };
        let with_set = |inverted| {
            let mut ruleset = ruleset(false, vec![("output", vec![lookup(inverted)])]);
            ruleset.sets.insert((table(), "link-local".into()), set.clone());
            told(&ruleset)
        };
        assert_eq!(with_set(false).len(), 1);
        assert_eq!(with_set(true), [""; 0]);
    }

    proptest! {
        #[test]
        fn any_steps_are_survived(
            steps in proptest::collection::vec((0..7, 0..20_usize, 0..80_usize, proptest::collection::vec(any::<u8>(), 0..80)), 0..12),
            v6 in any::<bool>(),
            response in any::<bool>(),
        ) {
            let steps = steps.into_iter().map(|(kind, word, bytes, data)| match kind {
                0 => Step::Load { what: Loaded::Network { offset: bytes }, to: word, bytes },
                1 => Step::Load { what: Loaded::Cgroup, to: word, bytes },
                2 => Step::Bits { from: word, to: bytes, mask: data.clone(), xor: data },
                3 => Step::Swap { from: word, to: bytes, bytes, unit: data.len() },
                4 => Step::Range { word, from: data.clone(), to: data, inverted: v6 },
                5 => Step::Match(Match::AddressRange { source: v6, from: data.clone(), to: data, inverted: response }),
                _ => Step::Compare { word, how: Comparison::Equal, data },
            });
            let steps = steps.chain([Step::Verdict(Verdict::Drop)]).collect();
            let endpoint = if v6 { "fd00:ec2::254" } else { "169.254.169.254" };
            let packet = Packet { endpoint: endpoint.parse().unwrap(), response, ..request() };
            let _ = walk(&ruleset(true, vec![("output", vec![steps])]), &[Hook::Output], &packet);
        }
    }

    #[test]
    fn what_is_not_read_makes_a_verdict_uncertain() {
        let limited = vec![rule(
            &[&destination(IMDS), &[Step::Unread("limit".into())]],
            Verdict::Drop,
        )];
        let walk = walk(&ruleset(false, vec![("output", limited)]), &[Hook::Output], &request());
        assert!(!walk.stops[0].conditions[0].told);
    }
}
