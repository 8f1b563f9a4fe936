//! Where would the firewall stop this packet, and for whom?
//!
//! Rules are followed as the kernel follows them, with three answers instead of two: a rule matches, doesn't, or does if
//! something holds that isn't known of the packet. Such conditions are kept with the verdict that they lead to.

mod matching;
mod text;
mod values;

use super::nft::WORDS;
use super::packet::{Byte, Open, Packet};
use super::{Chain, ChainId, Comparison, Hook, Rule, Ruleset, Step, TableId, Verdict, Word};
use matching::invert;
use text::unread;
use values::{Cell, open_cell};

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
    /// Determines whose packets match. Otherwise the rule doesn't show whether it holds.
    pub reported: bool,
    /// The id of the cgroup in the text, for a caller that can name it.
    pub cgroup: Option<u64>,
}

/// Result for the packet.
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
    /// Packets for which one of these conditions holds continue.
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

    /// Packets that match these conditions skip later rules.
    fn exempt(&mut self, own: Vec<Condition>) {
        if !own.is_empty() && self.unless.len() < MAX_CONDITIONS {
            let reported = own.iter().all(|condition| condition.reported);
            let text = own.into_iter().map(|condition| condition.text).collect::<Vec<_>>();
            self.unless.push(Condition {
                text: text.join(" and "),
                reported,
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
}

enum Next {
    Rule,
    Through,
    Ended,
}

#[cfg(test)]
mod tests {
    use super::super::{Base, Element, Engine, Family, Loaded, Match, Set};
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

    fn reported(ruleset: &Ruleset) -> Vec<String> {
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
        assert_eq!(reported(&drop(IMDS)), ["handle 0 Dropped for [] unless []"]);
        assert_eq!(reported(&drop([10, 0, 0, 1])), [""; 0]);
    }

    #[test]
    fn whom_a_rule_hits_is_reported() {
        let only = rule(&[&destination(IMDS), &uid(Comparison::Equal, 1000)], Verdict::Reject);
        assert_eq!(
            reported(&ruleset(false, vec![("output", vec![only])])),
            ["handle 0 Rejected for [uid 1000] unless []"]
        );
        let spared = vec![
            rule(&[&uid(Comparison::Equal, 0)], Verdict::Accept),
            rule(&[&destination(IMDS)], Verdict::Drop),
        ];
        assert_eq!(
            reported(&ruleset(false, vec![("output", spared)])),
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
        assert_eq!(reported(&ruleset(false, chains(jump()))), [""; 0]);
        assert_eq!(
            reported(&ruleset(true, chains(jump()))),
            ["policy Dropped for [] unless []"]
        );
        let accepted = vec![rule(&[&destination(IMDS)], Verdict::Accept), rule(&[], Verdict::Drop)];
        assert_eq!(reported(&ruleset(true, vec![("output", accepted)])), [""; 0]);
        let endless = vec![("output", vec![rule(&[], Verdict::Goto("output".into()))])];
        assert_eq!(reported(&ruleset(false, endless)), [""; 0]);
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
            reported(&ruleset(false, vec![("output", vec![state(1)])])),
            [""; 0],
            "invalid"
        );
        assert_eq!(
            reported(&ruleset(false, vec![("output", vec![state(8)])])).len(),
            1,
            "new"
        );

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
            reported(&ruleset)
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
        assert!(!walk.stops[0].conditions[0].reported);
    }
}
