//! All connections: from events to facts.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::num::NonZeroUsize;

use foldhash::fast::RandomState;
use lru::LruCache;
use serde::{Deserialize, Serialize};

use super::Fact;
use super::connection::{Context, Flow, Fresh};
use super::shares::Shares;
use crate::event::{Direction, Event, FlowId, Packet, SocketState, Vantage};
use crate::flow::{FoundResponse, Seq, StreamLimits};
use crate::imds::Hasher;
use crate::record::{LossCounts, SECOND, Time};

/// Bounds of a [`FlowTable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections. Beyond it, as beyond the budget, the client with the largest share loses its oldest.
    pub flows: usize,
    /// Bytes of all connections together, with their requests, heads and pieces. A client that fills it loses connections of its own, not those
    /// of others.
    pub budget_bytes: usize,
    /// Requests of one connection that wait for an answer; the oldest goes first.
    pub pending: usize,
    /// Responses of one connection that wait for the request that they answer; one more is left out.
    pub early: usize,
    /// Connections whose two addresses, before and after NAT, are remembered, and segments by which they are found. After it, the oldest
    /// are two connections.
    pub translated: usize,
    pub stream: StreamLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            flows: 65_536,
            budget_bytes: 32 << 20,
            pending: 64,
            early: 16,
            translated: 16_384,
            stream: StreamLimits::default(),
        }
    }
}

/// Whose connections are followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Sockets of the whole host, and connections that only uplinks and drops show.
    #[default]
    Host,
    /// Sockets that the programs at one cgroup have reported. Hooks that see the whole host (drops, socket states) only add to them.
    Cgroup {
        /// The user has named the uplinks: what they show of clients without a socket here is followed too.
        uplinks: bool,
    },
}

impl Scope {
    /// Whether an event may be about a connection that nothing else has shown.
    fn admits(self, event: &Event) -> bool {
        match (self, event) {
            (Self::Host, _) | (_, Event::Connect(_) | Event::Redirection(_)) => true,
            (Self::Cgroup { uplinks }, Event::Packet(packet)) => packet.vantage != Vantage::Uplink || uplinks,
            (Self::Cgroup { .. }, _) => false,
        }
    }
}

/// A segment that comes again under another address within this time has passed NAT.
const NAT_NS: u64 = SECOND;

/// A connection is mostly over and forgotten by then: what could happen in minutes is looked at once before, after this.
const YOUNG_NS: u64 = SECOND * 6 / 5;

/// Facts that one call gives at most: what a hostile client left to time out all at once is handed over piece by piece.
const MAX_FACTS: usize = 1024;

/// Flows whose room is kept, a KiB each: about as many come as go.
const SPARE: usize = 64;

/// Sequence number, acknowledgement and endpoint of a segment that a client sends: NAT leaves them alone.
type Numbers = (u32, u32, SocketAddr);

/// Sequence numbers of a request's segment with SYN or payload. A SYN acknowledges nothing.
fn numbers(packet: &Packet) -> Option<Numbers> {
    if packet.icmp.is_some() || packet.direction != Direction::Request || packet.tcp_flags & Packet::RST != 0 {
        return None;
    }
    if packet.tcp_flags & Packet::SYN != 0 {
        return Some((packet.seq, 0, packet.remote));
    }
    (packet.payload_len > 0).then_some((packet.seq, packet.ack, packet.remote))
}

fn is_near(a: Time, b: Time) -> bool {
    a.since(b).max(b.since(a)) < NAT_NS
}

/// Ids are hashed with a random seed: a client that chooses its ports, or a capture, must not choose the buckets of its connections.
///
/// See the module's text. Event time comes from events and [`Self::advance`], and never runs backwards.
#[derive(Debug)]
pub struct FlowTable {
    limits: Limits,
    scope: Scope,
    hasher: Hasher,
    flows: LruCache<FlowId, Box<Flow>, RandomState>,
    /// Room of those that are gone, for the next ones.
    #[expect(clippy::vec_box, reason = "the boxes are what is kept")]
    spare: Vec<Box<Flow>>,
    /// A connection's second address pair to its first, or to its socket.
    aliases: LruCache<FlowId, FlowId, RandomState>,
    /// The flow that sent a segment with these numbers, and when.
    sent: LruCache<Numbers, (FlowId, Time), RandomState>,
    /// A flow that turned out to be the other side of the one that an event belongs to.
    joined: Option<FlowId>,
    timers: BinaryHeap<Reverse<(Time, FlowId)>>,
    now: Time,
    /// See [`Self::hold`].
    held_since: Option<Time>,
    loss: LossCounts,
    shares: Shares,
    fresh: Vec<Fresh>,
    heads: Vec<FoundResponse>,
    /// The source reports the states of sockets, so their end will be seen.
    sees_sockets: bool,
    /// When events were lost last, and how many by then: the end of a socket may have been among them.
    lost: (Time, u64),
}

impl FlowTable {
    pub fn new(limits: Limits, hasher: Hasher) -> Self {
        let size = |entries: usize| NonZeroUsize::new(entries).unwrap_or(NonZeroUsize::MIN);
        let nat = size(limits.translated.min(limits.flows));
        Self {
            limits,
            scope: Scope::default(),
            hasher,
            // Unbounded to the cache, so that it takes no room before it is needed: `reach` keeps the bound and counts.
            flows: LruCache::unbounded_with_hasher(RandomState::default()),
            spare: Vec::new(),
            aliases: LruCache::with_hasher(nat, RandomState::default()),
            sent: LruCache::with_hasher(nat, RandomState::default()),
            joined: None,
            timers: BinaryHeap::new(),
            now: Time(0),
            held_since: None,
            loss: LossCounts::default(),
            shares: Shares::default(),
            fresh: Vec::new(),
            heads: Vec::new(),
            sees_sockets: false,
            lost: (Time(0), 0),
        }
    }

    #[must_use]
    pub fn within(mut self, scope: Scope) -> Self {
        self.scope = scope;
        self
    }

    /// Counts of input that could not be read or kept since the start: `unparsed`, `truncated`, `evicted`.
    pub fn loss(&self) -> LossCounts {
        self.loss
    }

    /// Connections that are held at the moment.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// Bytes that the connections hold, as the budget counts them.
    pub fn held_bytes(&self) -> usize {
        self.shares.total()
    }

    /// Takes an event in. Events that are no flow's concern are passed over.
    pub fn handle(&mut self, event: &Event, out: &mut Vec<Fact>) {
        if let Some(time) = event.time() {
            self.advance(time, out);
        }
        if !self.scope.admits(event) && !self.knows(event) {
            return;
        }
        match event {
            Event::Connect(event) => {
                let id = event.flow;
                if self.flows.peek(&id).is_some_and(|flow| flow.tries_again()) {
                    self.conclude(id, out);
                }
                self.reach(id, event.time, event.remote, out, |flow, context, _| {
                    flow.connect(event, context.limits);
                });
            }
            Event::ConnectReturned(event) => {
                if let Some(flow) = self.flows.get_mut(&event.flow) {
                    flow.connect_returned(event);
                    self.settle(event.flow, false, out);
                }
            }
            Event::Socket(event) => {
                self.sees_sockets = true;
                // A connection that ends before anything else was observed causes no record.
                if matches!(event.state, SocketState::ErrorReport | SocketState::Closed)
                    && !self.flows.contains(&event.flow)
                {
                    return;
                }
                self.reach(event.flow, event.time, event.remote, out, |flow, _, _| {
                    flow.socket(event);
                });
            }
            Event::Drop(event) => {
                let id = self.alias(event.flow);
                self.reach(id, event.time, event.remote, out, |flow, _, out| {
                    flow.dropped(event, out);
                });
            }
            Event::Redirection(event) => {
                self.reach(event.flow, event.time, event.remote, out, |flow, _, _| {
                    flow.redirected(event);
                });
            }
            Event::Packet(packet) => {
                let id = self.flow_of(packet, out);
                self.reach(id, packet.time, packet.remote, out, |flow, context, _| {
                    flow.packet(packet, context);
                });
                if let Some(other) = self.joined.take() {
                    self.join(other, id, out);
                }
            }
            Event::Loss(loss) => {
                if loss.ring_buffer > self.lost.1 {
                    self.lost = (self.now, loss.ring_buffer);
                }
            }
            Event::Process { .. }
            | Event::Caller { .. }
            | Event::Interface(_)
            | Event::ClockStep(_)
            | Event::Record(_) => {}
        }
    }

    /// Whether the event's connection is followed already.
    fn knows(&self, event: &Event) -> bool {
        let id = match event {
            Event::Packet(packet) => packet.flow,
            Event::Drop(drop) => drop.flow,
            Event::Socket(change) => change.flow,
            Event::ConnectReturned(result) => result.flow,
            _ => return false,
        };
        self.flows.contains(self.aliases.peek(&id).unwrap_or(&id))
    }

    /// The source has read an event of this time but not passed it on yet. Until it has (`None`), time stops there, whatever the time of
    /// other events: the end of a connection may depend on that event.
    pub fn hold(&mut self, since: Option<Time>) {
        self.held_since = since;
    }

    /// Lets time pass: gives what is decided by silence. True: there is more of it, so call again.
    pub fn advance(&mut self, now: Time, out: &mut Vec<Fact>) -> bool {
        self.now = self.now.max(self.held_since.map_or(now, |held| now.min(held)));
        while let Some(&Reverse((due, id))) = self.timers.peek() {
            if due > self.now {
                break;
            }
            if out.len() >= MAX_FACTS {
                return true;
            }
            self.timers.pop();
            // An entry that was overtaken by an earlier one means nothing any more.
            if let Some(flow) = self.flows.peek_mut(&id).filter(|flow| flow.scheduled == Some(due)) {
                flow.scheduled = None;
                self.settle(id, false, out);
            }
        }
        false
    }

    /// Nothing more will come: gives all that is left, as open where nothing decides it.
    pub fn finish(&mut self, now: Time, out: &mut Vec<Fact>) {
        self.advance(now, out);
        let ends_are_seen = self.ends_are_seen();
        while let Some((id, flow)) = self.flows.pop_lru() {
            self.settle_last(flow, ends_are_seen, out);
            self.aliases.pop(&id);
        }
        self.shares = Shares::default();
        self.timers.clear();
    }

    /// The flow that a packet belongs to. A connection may show under two address pairs, or a new one under an old pair.
    fn flow_of(&mut self, packet: &Packet, out: &mut Vec<Fact>) -> FlowId {
        let id = packet.flow;
        let numbers = numbers(packet);
        let first = numbers.is_some() && packet.tcp_flags & Packet::SYN != 0;
        let another = |flow: &Flow| flow.isn().is_some_and(|isn| isn != Seq(packet.seq));
        if let FlowId::Cookie(_) = id {
            let Some(numbers) = numbers.filter(|_| packet.vantage == Vantage::Socket) else {
                return id;
            };
            // Wire events may lag behind socket events, so only a socket event marks a new connection.
            if first && self.flows.peek(&id).is_some_and(|flow| another(flow)) {
                self.conclude(id, out);
                if let Some(flow) = self.flows.peek_mut(&id) {
                    flow.begin_again(&self.limits);
                }
            }
            self.joined = match self.sent.put(numbers, (id, packet.time)) {
                Some((other @ FlowId::Addresses { .. }, time)) if is_near(packet.time, time) => Some(other),
                _ => None,
            };
            return id;
        }
        let Some(numbers) = numbers else {
            return self.alias(id);
        };
        match self.sent.get(&numbers).copied() {
            Some((known, _)) if known == id => {}
            Some((known, time)) if is_near(packet.time, time) || self.aliases.peek(&id) == Some(&known) => {
                let older = |flow: &Flow| first && flow.isn() != Some(Seq(packet.seq));
                if self.flows.peek(&id).is_some_and(|flow| older(flow)) {
                    self.conclude(id, out);
                    self.forget(id);
                }
                self.join(id, known, out);
                return known;
            }
            _ => {
                self.sent.put(numbers, (id, packet.time));
            }
        }
        if !first {
            return self.alias(id);
        }
        self.aliases.pop(&id);
        let reused = self.flows.peek(&id).is_some_and(|flow| another(flow));
        if reused {
            self.conclude(id, out);
            self.forget(id);
        }
        id
    }

    /// The flow that an address pair is known to belong to, as long as that lives: NAT soon gives the port to another one.
    fn alias(&mut self, id: FlowId) -> FlowId {
        match self.aliases.get(&id) {
            Some(known) if self.flows.peek(known).is_some_and(|flow| !flow.is_closed()) => *known,
            _ => id,
        }
    }

    /// From now on `id` is another side of `known`, which takes over what was seen of it.
    fn join(&mut self, id: FlowId, known: FlowId, out: &mut Vec<Fact>) {
        if let Some((other, gone)) = self.aliases.push(id, known)
            && other != id
        {
            self.loss.evicted += u64::from(self.flows.peek(&gone).is_some_and(|flow| flow.is_busy()));
        }
        if !self.flows.contains(&known) {
            return;
        }
        let Some(mut other) = self.forget(id) else {
            return;
        };
        if let Some(flow) = self.flows.peek_mut(&known) {
            self.loss.truncated += flow.absorb(&mut other);
        }
        self.keep(other);
        self.settle(known, false, out);
    }

    /// Keeps a flow's buffer for the next one, and no byte of what was read.
    fn keep(&mut self, mut gone: Box<Flow>) {
        if self.spare.len() < SPARE {
            gone.begin_again(&self.limits);
            self.spare.push(gone);
        }
    }

    /// Lets `act` add to what is known of a flow, new or not, and gives what that decides.
    fn reach(
        &mut self,
        id: FlowId,
        time: Time,
        remote: SocketAddr,
        out: &mut Vec<Fact>,
        act: impl FnOnce(&mut Flow, &mut Context<'_>, &mut Vec<Fact>),
    ) {
        let full = self.flows.len() >= self.limits.flows && !self.flows.contains(&id);
        if full || self.shares.total() > self.limits.budget_bytes {
            self.shed(id, full, out);
        }
        let ends_are_seen = self.ends_are_seen();
        let (limits, spare) = (&self.limits, &mut self.spare);
        let flow = self.flows.get_or_insert_mut(id, || {
            let new = Flow::new(id, time, remote, limits);
            match spare.pop() {
                Some(mut room) => {
                    *room = new;
                    room
                }
                None => Box::new(new),
            }
        });
        let mut context = Context {
            limits,
            hasher: &self.hasher,
            loss: &mut self.loss,
            fresh: &mut self.fresh,
            heads: &mut self.heads,
            ends_are_seen,
        };
        act(flow, &mut context, out);
        let again = ask(flow, self.now, false, &mut context, out);
        self.shares.charge(id, flow);
        self.remember(id, again);
    }

    /// Evicts connections and gives what is known of them: from the client that holds the most, the oldest first, and those on which nothing is awaited before others.
    /// Never `kept`, which is about to be used.
    fn shed(&mut self, kept: FlowId, full: bool, out: &mut Vec<Fact>) {
        /// Connections that are looked at for one on which nothing is awaited.
        const LOOKS: usize = 64;
        // A part more than is needed, so that this is done once for many packets.
        let most_bytes = self.limits.budget_bytes - self.limits.budget_bytes / 16;
        let most_flows = self.limits.flows - (self.limits.flows / 64).max(usize::from(full)).min(self.limits.flows);
        while self.shares.total() > most_bytes || full && self.flows.len() > most_flows {
            let Some(owner) = self.shares.largest() else { return };
            let flows = &self.flows;
            let is_busy = |id: &FlowId| flows.peek(id).is_some_and(|flow| flow.is_busy());
            let Some(id) = self.shares.oldest(owner, LOOKS, kept, is_busy) else {
                return;
            };
            let Some(gone) = self.forget(id) else { continue };
            self.loss.evicted += gone.awaited();
            self.settle_last(gone, None, out);
        }
    }

    /// Gives what is left of a connection that has been taken out.
    fn settle_last(&mut self, mut gone: Box<Flow>, ends_are_seen: Option<Time>, out: &mut Vec<Fact>) {
        let mut context = Context {
            limits: &self.limits,
            hasher: &self.hasher,
            loss: &mut self.loss,
            fresh: &mut self.fresh,
            heads: &mut self.heads,
            ends_are_seen,
        };
        gone.settle(self.now, true, &mut context, out);
    }

    /// Takes a connection out, and what it holds out of its client's share.
    fn forget(&mut self, id: FlowId) -> Option<Box<Flow>> {
        let gone = self.flows.pop(&id)?;
        self.shares.release(id, &gone);
        Some(gone)
    }

    /// Sockets opened after this will be seen to end.
    fn ends_are_seen(&self) -> Option<Time> {
        self.sees_sockets.then_some(self.lost.0)
    }

    /// Another connection begins under the same id: gives what is left of this one.
    fn conclude(&mut self, id: FlowId, out: &mut Vec<Fact>) {
        if let Some(flow) = self.flows.peek_mut(&id) {
            flow.supersede();
        }
        self.settle(id, true, out);
    }

    fn settle(&mut self, id: FlowId, last: bool, out: &mut Vec<Fact>) {
        let ends_are_seen = self.ends_are_seen();
        let Some(flow) = self.flows.peek_mut(&id) else { return };
        let mut context = Context {
            limits: &self.limits,
            hasher: &self.hasher,
            loss: &mut self.loss,
            fresh: &mut self.fresh,
            heads: &mut self.heads,
            ends_are_seen,
        };
        let again = ask(flow, self.now, last, &mut context, out);
        self.shares.charge(id, flow);
        self.remember(id, again);
    }

    /// Sees to it that a flow is asked again, or forgotten.
    fn remember(&mut self, id: FlowId, again: Again) {
        match again {
            Again::Never => {
                if let Some(gone) = self.forget(id) {
                    self.keep(gone);
                }
            }
            Again::AsPlanned => {}
            Again::At(due) => {
                self.timers.push(Reverse((due, id)));
                self.trim_timers();
            }
        }
    }

    /// Overtaken entries are left in the heap until their time comes; this keeps them from outnumbering the flows.
    fn trim_timers(&mut self) {
        if self.timers.len() > 1024 + 4 * self.flows.len() {
            let flows = &self.flows;
            self.timers
                .retain(|Reverse((due, id))| flows.peek(id).is_some_and(|flow| flow.scheduled == Some(*due)));
        }
    }
}

/// When a flow is to be asked again.
#[derive(Clone, Copy)]
enum Again {
    /// It can be forgotten.
    Never,
    /// By the timer that it has.
    AsPlanned,
    At(Time),
}

/// Lets a flow decide what it can by `now`.
fn ask(flow: &mut Flow, now: Time, last: bool, context: &mut Context<'_>, out: &mut Vec<Fact>) -> Again {
    let Some(due) = flow.settle(now, last, context, out) else {
        return Again::Never;
    };
    // A date that has passed already would make `advance` come back here for ever.
    debug_assert!(
        last || due > now,
        "a flow wants to be asked again at {due}, and it is {now}"
    );
    let due = due.max(now.plus_ns(1));
    // Dates far ahead that nothing comes of would fill the heap.
    let young = flow.opened.plus_ns(YOUNG_NS);
    let due = if now < young { due.min(young) } else { due };
    // One live entry a flow: only an earlier date needs a new one.
    if flow.scheduled.is_some_and(|scheduled| due >= scheduled) {
        return Again::AsPlanned;
    }
    flow.scheduled = Some(due);
    Again::At(due)
}
