//! An attempt to connect, and why it failed.
//!
//! Evidence comes in any order: the RST before or after the errno, the drop after the client has gone. So an end is held for [`SETTLE_NS`], and a silent
//! end without a cause, whose SYN no uplink has seen, until [`LATE_DROP_NS`] after the start: an unanswered ARP frees the SYN at about 3.05 s,
//! when a client that waits 2 s is long gone. One fact per attempt, never two.

use super::errno;
use crate::event::{IcmpError, Sender};
use crate::record::{Connect, ConnectOutcome, Connection, DropCause, IcmpCode, SECOND, Time};

/// How long an end waits for what explains it.
const SETTLE_NS: u64 = SECOND / 10;
/// How long after the start a drop may still explain a silent end.
const LATE_DROP_NS: u64 = 4 * SECOND;
/// Linux times out after 127 s with its default of six retries.
const SILENCE_NS: u64 = 130 * SECOND;
/// A SYN that comes again within this time is a copy seen at another interface: the first timeout of TCP is 1 s.
pub(super) const COPY_NS: u64 = 3_000_000;

#[derive(Clone, Debug)]
struct End {
    time: Time,
    outcome: ConnectOutcome,
    /// The client closed without an explicit outcome.
    silent: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) time: Time,
    pub(super) sender: Option<Sender>,
    /// The first SYN, wherever it was seen first.
    first_syn: Option<Time>,
    last_syn: [Option<Time>; 3],
    syns: u32,
    wire_syns: u32,
    /// Something besides `connect()` itself was seen: silence then means something.
    watched: bool,
    /// Without a local socket, the end of the client's wait is not visible.
    socketless: bool,
    /// The socket's states are reported: its end will be.
    has_states: bool,
    established: Option<Time>,
    /// The client went on as one that is connected. Until then the SYN-ACK may be refused behind the hook that has seen it.
    confirmed: bool,
    /// SYN-ACKs at the uplink, where they are reported.
    wire_syn_acks: u32,
    /// SYN-ACKs that were dropped here, or refused behind the socket's hook.
    refused: u32,
    end: Option<End>,
    errno: Option<i32>,
    dropped: Option<DropCause>,
    icmp: Option<IcmpCode>,
    done: bool,
}

/// Outcome of an errno of `connect()`; `None`: not an end.
fn outcome_of(errno: i32) -> Option<ConnectOutcome> {
    Some(match errno {
        // The socket is on its way, or connected already.
        0 | errno::EINPROGRESS | errno::EALREADY | errno::EINTR | errno::EISCONN | errno::EAGAIN => return None,
        errno::ECONNREFUSED => ConnectOutcome::Refused,
        // A blackhole route gives EINVAL.
        errno::ENETUNREACH | errno::EINVAL | errno::ENETDOWN => ConnectOutcome::NoRoute,
        errno::EHOSTUNREACH | errno::EHOSTDOWN => ConnectOutcome::HostUnreachable,
        // EACCES: a prohibit route. EPERM: a cgroup program, or a packet filter.
        errno::EACCES | errno::EPERM => ConnectOutcome::Denied,
        errno::ETIMEDOUT => ConnectOutcome::Timeout,
        _ => ConnectOutcome::Error,
    })
}

fn outcome_of_icmp(icmp: IcmpError) -> Option<ConnectOutcome> {
    Some(match (icmp.v6, icmp.kind, icmp.code) {
        (false, 3, 3) | (true, 1, 4) => ConnectOutcome::Refused,
        (false, 3, 0 | 6 | 11) | (true, 1, 0) => ConnectOutcome::NoRoute,
        (false, 3, 9 | 10 | 13) | (true, 1, 1 | 5 | 6) => ConnectOutcome::Denied,
        (false, 3, _) | (true, 1, _) => ConnectOutcome::HostUnreachable,
        _ => return None,
    })
}

impl Attempt {
    pub(super) fn new(time: Time, sender: Option<Sender>, socketless: bool) -> Self {
        Self {
            time,
            sender,
            first_syn: None,
            last_syn: [None; 3],
            syns: 0,
            wire_syns: 0,
            watched: false,
            socketless,
            has_states: false,
            established: None,
            confirmed: false,
            wire_syn_acks: 0,
            refused: 0,
            end: None,
            errno: None,
            dropped: None,
            icmp: None,
            done: false,
        }
    }

    /// Neither connected nor finally failed.
    pub(super) fn is_open(&self) -> bool {
        !self.done && self.established.is_none()
    }

    /// Has failed, although it may not be reported yet.
    pub(super) fn has_failed(&self) -> bool {
        self.established.is_none() && (self.done || self.end.is_some())
    }

    /// A SYN; `socket` and `wire` are what the vantage point counts as, `vantage` distinguishes the points. Whether it shows that a SYN-ACK
    /// before has connected nothing.
    pub(super) fn syn(&mut self, time: Time, socket: bool, wire: bool, vantage: usize) -> bool {
        self.watched = true;
        self.first_syn.get_or_insert(time);
        let Some(last) = self.last_syn.get_mut(vantage) else {
            return false;
        };
        if last.is_some_and(|last| time.since(last) < COPY_NS) {
            return false;
        }
        *last = Some(time);
        // A connected socket sends no SYN.
        let refused = socket && self.revoke();
        self.syns = self.syns.saturating_add(u32::from(socket));
        self.wire_syns = self.wire_syns.saturating_add(u32::from(wire));
        refused
    }

    /// Takes over the SYNs that were seen at an uplink before it was known whose they are.
    pub(super) fn absorb(&mut self, other: &Self) {
        self.watched |= other.watched;
        self.wire_syns = self.wire_syns.saturating_add(other.wire_syns);
        for (known, seen) in self.last_syn.iter_mut().zip(other.last_syn) {
            *known = (*known).max(seen);
        }
    }

    pub(super) fn watch(&mut self) {
        self.watched = true;
    }

    /// The socket's states are reported.
    pub(super) fn has_states(&mut self) {
        self.watched = true;
        self.has_states = true;
    }

    /// The client is connected: it, or its socket, shows so.
    pub(super) fn establish(&mut self, time: Time) {
        if self.is_open() {
            self.established = Some(time);
        }
        self.confirmed = true;
    }

    /// A SYN-ACK is on its way into the socket. Another program at the same hook, or the socket's filter, may still refuse it: where one was
    /// refused before, only what the client does next shows that it is connected.
    pub(super) fn answered(&mut self, time: Time) {
        if self.is_open() && self.refused == 0 {
            self.established = Some(time);
        }
    }

    /// A SYN-ACK arrived at this host, on its way to a socket.
    pub(super) fn arrived(&mut self) {
        self.wire_syn_acks = self.wire_syn_acks.saturating_add(1);
    }

    /// The SYN-ACK has not connected the socket after all; whether that is news.
    pub(super) fn revoke(&mut self) -> bool {
        let refused = self.established.is_some() && !self.confirmed && !self.done;
        if refused {
            self.established = None;
            self.refused = self.refused.saturating_add(1);
        }
        refused
    }

    /// A SYN-ACK was dropped here; whether it was taken for a connection.
    pub(super) fn answer_dropped(&mut self) -> bool {
        let taken = self.revoke();
        if !taken && self.is_open() {
            self.refused = self.refused.saturating_add(1);
        }
        taken
    }

    /// Duration of the handshake, once it is over.
    pub(super) fn handshake_ns(&self) -> Option<u64> {
        let established = self.established?;
        // Without a SYN in sight the attempt began before we looked, or the hook is missing.
        Some(established.since(self.first_syn?))
    }

    fn fail(&mut self, time: Time, outcome: ConnectOutcome, silent: bool) {
        match &mut self.end {
            None => self.end = Some(End { time, outcome, silent }),
            // An explicit outcome overrides a silent close.
            Some(end) if end.silent && !silent => {
                end.outcome = outcome;
                end.silent = false;
            }
            Some(_) => {}
        }
    }

    /// `connect()` has returned, or the socket reports an error.
    pub(super) fn errno(&mut self, time: Time, errno: i32) {
        if !self.is_open() {
            return;
        }
        if errno == 0 || errno == errno::EISCONN {
            self.establish(time);
        } else if let Some(outcome) = outcome_of(errno) {
            self.errno.get_or_insert(errno);
            match &mut self.end {
                Some(end) => {
                    end.outcome = outcome;
                    end.silent = false;
                }
                None => self.fail(time, outcome, false),
            }
        }
    }

    /// The server, or something on the way, has answered the SYN with RST.
    pub(super) fn reset(&mut self, time: Time) {
        if self.is_open() {
            self.fail(time, ConnectOutcome::Refused, false);
        }
    }

    /// The socket closes from a state that only a connected one has.
    pub(super) fn connected_before(&mut self, time: Time) {
        if self.established.is_some() {
            self.establish(time);
        }
    }

    /// The client has closed the socket.
    pub(super) fn close(&mut self, time: Time) {
        if self.is_open() {
            self.fail(time, ConnectOutcome::Timeout, true);
        }
    }

    pub(super) fn icmp(&mut self, time: Time, icmp: IcmpError) {
        if !self.is_open() {
            return;
        }
        self.icmp.get_or_insert(icmp.code());
        // If there is a socket, its error shows the effect of the message.
        if self.socketless
            && let Some(outcome) = outcome_of_icmp(icmp)
        {
            self.fail(time, outcome, false);
        }
    }

    pub(super) fn dropped(&mut self, evidence: impl FnOnce() -> DropCause) {
        if self.is_open() {
            self.watched = true;
            self.dropped.get_or_insert_with(evidence);
        }
    }

    /// When [`Self::settle`] will have a result, without further events.
    pub(super) fn due(&self) -> Option<Time> {
        if !self.is_open() {
            return None;
        }
        if let Some(end) = &self.end {
            let unexplained = end.silent && self.dropped.is_none() && self.icmp.is_none() && self.wire_syns == 0;
            let settled = end.time.plus_ns(SETTLE_NS);
            return Some(if unexplained {
                settled.max(self.time.plus_ns(LATE_DROP_NS))
            } else {
                settled
            });
        }
        if self.socketless && self.wire_syns > 0 {
            // A client that is still there sends its SYN again: after 1, 3, 7, 15... s (newer kernels sooner).
            let wait = (1_u64 << self.wire_syns.min(8)).saturating_add(1) * SECOND;
            return Some(self.time.plus_ns(wait.min(SILENCE_NS)));
        }
        // The kernel tries for as long as it is configured to, and reports the end.
        (!self.has_states).then(|| self.time.plus_ns(SILENCE_NS))
    }

    pub(super) fn is_due(&self, now: Time) -> bool {
        self.due().is_some_and(|due| now >= due)
    }

    /// When it began, and the process that made it.
    pub(super) fn origin(&self) -> (Time, Option<Sender>) {
        (self.time, self.sender)
    }

    /// The record without its caller, once the attempt has failed for good.
    /// `last`: shutting down; do not wait, and do not report open attempts as failures.
    pub(super) fn settle(&mut self, now: Time, last: bool, connection: Connection) -> Option<Connect> {
        let due = self.due()?;
        let overdue = now >= due;
        if self.end.is_none() && !overdue {
            // The end of a socketless client's wait is not visible: a SYN without answer for 3 s is no slow handshake.
            if !(last && self.socketless && self.wire_syns > 0 && now.since(self.time) >= 3 * SECOND) {
                return None;
            }
        } else if !overdue && !last {
            return None;
        }
        self.done = true;
        let silent = self.end.is_none();
        if silent && !self.watched {
            return None;
        }
        let given_up = self.last_syn.into_iter().flatten().max().filter(|_| self.socketless);
        let (end, outcome) = self
            .end
            .as_ref()
            .map_or((given_up.unwrap_or(now), ConnectOutcome::Timeout), |end| {
                (end.time, end.outcome)
            });
        Some(Connect {
            process: None,
            container: None,
            connection,
            outcome,
            errno: self.errno,
            elapsed_ns: end.since(self.time),
            syns: self.syns,
            wire_syns: self.wire_syns,
            syn_acks: self.wire_syn_acks.max(self.refused),
            dropped: self.dropped.take(),
            icmp: self.icmp,
            nat_rule: None,
        })
    }
}
