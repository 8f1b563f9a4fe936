//! Why a connection to IMDS didn't come to be, from what the kernel showed of the attempt. docs/faults.md has the measurements.
//!
//! The seven detectors of this kind differ in their [`Cause`] and their text; [`CauseDetector`] does the rest. A
//! drop record and the connect record of the same attempt are one occurrence: whichever comes first counts.

use std::fmt;
use std::num::NonZeroUsize;

use lru::LruCache;

use super::knowledge::{answered, is_v6};
use super::share::{Recent, Share};
use super::table::bounded;
use super::{Context, Details, Detector, Exchanges, Limits, Observation, Scope, Sighting, Sightings};
use crate::host_facts::nat_target;
use crate::record::{
    Code, Connect, ConnectOutcome, DropCause, Exchange, IcmpCode, Of, PacketDirection, PacketDrop, Remedy, SECOND,
    Severity, Subject, Time, workload,
};

/// Places (host, pods) with failures that are remembered by one detector.
const MAX_PLACES: NonZeroUsize = NonZeroUsize::new(512).unwrap();
/// Connections whose failure has been counted.
const MAX_COUNTED: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// IPv6 failures that wait for IPv4 to show whether it works.
const MAX_HELD: NonZeroUsize = NonZeroUsize::new(256).unwrap();
/// How long they wait.
const HOLD_NS: u64 = 5 * SECOND;
/// An IPv4 answer this recent means that IPv4 works.
pub(super) const V4_WORKS_NS: u64 = 600 * SECOND;
/// The kernel asks three times, a second apart, who has an address, and then drops what waited for it.
const NEIGHBOR_NS: u64 = 5 * SECOND / 2;
/// TTLs that systems send with.
const INITIAL_TTLS: [u8; 3] = [64, 128, 255];
/// Programs, users and cgroups that one finding names of each.
const MAX_NAMED: usize = 8;

const EPERM: i32 = 1;
const EACCES: i32 = 13;
const EINVAL: i32 = 22;
const ENETUNREACH: i32 = 101;
const ECONNREFUSED: i32 = 111;
const EHOSTUNREACH: i32 = 113;

/// An enum whose variants have names in evidence and text.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$of:meta])* $variant:ident => $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$of])* $variant,)*
        }

        impl $name {
            pub(super) fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

named! {
    /// Where a firewall's rule acts: a hook of netfilter.
    Hook {
        Output => "OUTPUT",
        Forward => "FORWARD",
        Postrouting => "POSTROUTING",
    }
}

named! {
    /// Fault of a route.
    RouteFault {
        Missing => "missing",
        /// The kernel frees what has no route in the same location as what a route refuses.
        MissingOrRefusing => "missing or refusing",
        ReversePathFilter => "reverse path filter",
        /// It sends a request around until no hop is left.
        Loop => "loop",
        Blackhole => "blackhole",
        Prohibit => "prohibit",
        Unreachable => "unreachable",
    }
}

named! {
    /// Policy that denies traffic: a BPF program or traffic control.
    Policy {
        CgroupConnect => "cgroup connect program",
        CgroupEgress => "cgroup_skb egress program",
        CgroupIngress => "cgroup_skb ingress program or socket filter",
        TrafficControl => "traffic control",
        TrafficControlEgress => "traffic control egress",
        TrafficControlIngress => "traffic control ingress",
        QueueingDiscipline => "queueing discipline",
        Xdp => "XDP program",
    }
}

/// Cause of a failed connection attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    Firewall(Hook),
    Route(RouteFault),
    Neighbor,
    Refused,
    Policy(Policy),
    /// Nothing comes back.
    Silence,
    /// NAT or a program at the socket sends it elsewhere, and nothing comes back.
    Redirected,
    /// An answer reached this host and no socket.
    ResponseDropped,
}

impl Cause {
    /// IPv6 fails in this way where it is simply not set up.
    pub(super) fn usual_without_ipv6(self) -> bool {
        matches!(self, Self::Route(_) | Self::Refused | Self::Silence)
    }
}

/// Facts that a drop shows about its connection, kept for the later connect record.
#[derive(Clone, Copy, Debug)]
pub struct DropNote {
    /// `None`: this kernel dropped it for an unknown reason.
    pub cause: Option<Cause>,
    /// The drop has neither reason nor function (before 5.17, and for some reasons later, to an observer that may not read
    /// addresses). What else the attempt met counts more than where its packet had come to.
    pub guessed: bool,
    pub time: Time,
}

impl DropNote {
    /// The note of this drop. `None`: the drop adds nothing to the other drops of its connection.
    pub(super) fn of(drop: &Of<'_, PacketDrop>) -> Option<Self> {
        if let Some(cause) = of_drop(drop) {
            return Some(Self {
                cause: Some(cause),
                guessed: false,
                time: drop.time,
            });
        }
        let unreported = matches!(drop.reason.as_deref(), None | Some("NOT_SPECIFIED")) && drop.location.is_none();
        (unreported && drop.direction == PacketDirection::Request).then(|| Self {
            cause: guess(drop),
            guessed: true,
            time: drop.time,
        })
    }
}

/// Where a request had come to when it was dropped. It has no device before OUTPUT is through, and only forwarding takes
/// from its TTL, right before FORWARD.
fn guess(drop: &Of<'_, PacketDrop>) -> Option<Cause> {
    let own = drop.process.as_ref().and_then(|process| process.netns);
    match (own, drop.netns) {
        (_, None) => Some(Cause::Firewall(Hook::Output)),
        (Some(own), Some(dropped)) if own == dropped => Some(Cause::Policy(Policy::CgroupEgress)),
        // Before its route was looked up: an ingress filter, PREROUTING, or no route.
        _ if drop.ttl.is_none_or(|ttl| INITIAL_TTLS.contains(&ttl)) => None,
        _ => Some(Cause::Firewall(Hook::Forward)),
    }
}

/// [`location_of`] a drop without a reason (before 5.17) and without a function (no symbols).
pub(super) const UNNAMED: &str = "?@?";

/// `reason@location`, as far as both are known.
pub(super) fn location_of(reason: Option<&str>, location: Option<&str>) -> String {
    format!("{}@{}", reason.unwrap_or("?"), location.unwrap_or("?"))
}

/// The kernel freed a packet because its TTL was used up. Before 5.17 there is only the function.
pub(super) fn is_ttl_drop(reason: Option<&str>, location: Option<&str>) -> bool {
    let forwarding = matches!(location, Some("ip_forward" | "ip6_forward"));
    match reason {
        Some("IP_INHDR") => forwarding || location.is_none(),
        Some("NOT_SPECIFIED") | None => forwarding,
        Some(_) => false,
    }
}

/// A response whose TTL is used up: by the kernel's reason, or in an eBPF datapath's program on the way to a pod. That is
/// token-response-lost; a firewall rule drops for its own reason, whatever the TTL.
pub(super) fn is_spent(drop: &Of<'_, PacketDrop>) -> bool {
    let (reason, location) = (drop.reason.as_deref(), drop.location.as_deref());
    is_ttl_drop(reason, location)
        || drop.ttl.is_some_and(|ttl| ttl <= 1) && of_reason(reason, location) != Some(Met::Firewall)
}

/// The part of the kernel that dropped a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Met {
    /// netfilter, at a hook that the drop doesn't show.
    Firewall,
    Other(Cause),
}

/// The cause that a drop's reason, or else the function that freed the packet, names.
fn of_reason(reason: Option<&str>, location: Option<&str>) -> Option<Met> {
    Some(Met::Other(match reason {
        Some("NETFILTER_DROP") => return Some(Met::Firewall),
        Some("BPF_CGROUP_EGRESS") => Cause::Policy(Policy::CgroupEgress),
        Some("SOCKET_FILTER") => Cause::Policy(Policy::CgroupIngress),
        Some("TC_EGRESS") => Cause::Policy(Policy::TrafficControlEgress),
        Some("TC_INGRESS") => Cause::Policy(Policy::TrafficControlIngress),
        Some("QDISC_DROP" | "QDISC_EGRESS") => Cause::Policy(Policy::QueueingDiscipline),
        Some("XDP") => Cause::Policy(Policy::Xdp),
        Some("IP_INNOROUTES" | "IP_OUTNOROUTES") => Cause::Route(RouteFault::Missing),
        Some("IP_RPFILTER") => Cause::Route(RouteFault::ReversePathFilter),
        Some("NEIGH_FAILED" | "NEIGH_CREATEFAIL" | "NEIGH_QUEUEFULL" | "NEIGH_DEAD") => Cause::Neighbor,
        Some("NOT_SPECIFIED") | None => return of_location(location?),
        Some(_) => return None,
    }))
}

fn of_location(location: &str) -> Option<Met> {
    // The compiler names what it made of a function `ip_error.part.0` or the like.
    let function = location.split('.').next().unwrap_or(location);
    Some(Met::Other(match function {
        "nft_do_chain" | "nf_hook_slow" | "ipt_do_table" | "ip6t_do_table" => return Some(Met::Firewall),
        "neigh_invalidate" | "__neigh_event_send" | "arp_error_report" | "ndisc_error_report" => Cause::Neighbor,
        "ip_error" | "ip6_pkt_drop" => Cause::Route(RouteFault::MissingOrRefusing),
        // A blackhole route discards packets here.
        "dst_discard" | "dst_discard_out" => Cause::Route(RouteFault::Blackhole),
        "tcf_action_exec" | "sch_handle_egress" | "tcx_run" => Cause::Policy(Policy::TrafficControl),
        // Before 5.17 there is no reason, and what these call is part of them.
        "__dev_queue_xmit" => Cause::Policy(Policy::TrafficControlEgress),
        "__netif_receive_skb_core" => Cause::Policy(Policy::TrafficControlIngress),
        "ip_finish_output" | "ip6_finish_output" => Cause::Policy(Policy::CgroupEgress),
        _ => return None,
    }))
}

/// The cause that a drop record shows for its connection.
pub(super) fn of_drop(drop: &Of<'_, PacketDrop>) -> Option<Cause> {
    let (reason, location) = (drop.reason.as_deref(), drop.location.as_deref());
    let request = drop.direction == PacketDirection::Request;
    // Without a reason and a function, no hop left is the only trace of a loop: no path has so many.
    let is_exhausted = reason.is_none() && location.is_none() && drop.ttl.is_some_and(|ttl| ttl <= 1);
    if request && (is_ttl_drop(reason, location) || is_exhausted) {
        return Some(Cause::Route(RouteFault::Loop));
    }
    let Some(met) = of_reason(reason, location) else {
        let reported = reason.is_some_and(|reason| reason != "NOT_SPECIFIED");
        return (reported && !request && !is_ttl_drop(reason, location)).then_some(Cause::ResponseDropped);
    };
    let own = drop.process.as_ref().and_then(|process| process.netns);
    let elsewhere = match (own, drop.netns) {
        (Some(own), Some(dropped)) => own != dropped,
        _ => drop.container.is_some(),
    };
    if !request {
        // Whatever drops it: the request has reached the endpoint, and response-dropped names what drops the response.
        return (!is_spent(drop)).then_some(Cause::ResponseDropped);
    }
    Some(match met {
        Met::Firewall if elsewhere => Cause::Firewall(Hook::Forward),
        Met::Firewall => Cause::Firewall(Hook::Output),
        Met::Other(cause) => cause,
    })
}

/// The cause that a connect record shows, together with an earlier drop of the same connection.
pub(super) fn of_connect(connect: &Of<'_, Connect>, note: Option<DropNote>) -> Option<Cause> {
    let own_hook = if connect.syns == 0 {
        Hook::Output
    } else if connect.container.is_some() {
        Hook::Forward
    } else {
        Hook::Postrouting
    };
    let over = connect.time.plus_ns(connect.elapsed_ns);
    match note.filter(|note| !note.guessed) {
        // A response after the client has closed its socket is dropped too, and explains nothing.
        Some(note) if note.cause == Some(Cause::ResponseDropped) && note.time > over => {}
        Some(note) => return note.cause,
        None => {}
    }
    // The note also holds what the client's own packets met; a late answer is no part of it.
    let note = note.filter(|note| note.guessed);
    // The endpoint has answered.
    if connect.syn_acks > 0 && connect.errno != Some(ECONNREFUSED) {
        return Some(Cause::ResponseDropped);
    }
    if let Some(DropCause { reason, location }) = &connect.dropped {
        let (reason, location) = (reason.as_deref(), location.as_deref());
        // A SYN that left this host had hops left: the drop is the SYN-ACK's. A dropped SYN has left a note.
        if is_ttl_drop(reason, location) && connect.wire_syns > 0 {
            return Some(Cause::ResponseDropped);
        }
        let all_left = connect.syns > 0 && connect.wire_syns >= connect.syns;
        match of_reason(reason, location) {
            Some(Met::Firewall) if all_left => return Some(Cause::ResponseDropped),
            Some(Met::Firewall) => return Some(Cause::Firewall(own_hook)),
            Some(Met::Other(cause)) => return Some(cause),
            None => {}
        }
    }
    let no_syn = connect.syns == 0 && connect.wire_syns == 0;
    let slow = connect.elapsed_ns >= SECOND;
    let icmp = connect.icmp.map(|icmp| (icmp.kind, icmp.code));
    // Type and code mean other things in ICMPv6.
    let by_icmp = match (is_v6(&connect.connection.remote), icmp) {
        (false, Some((3, 0))) | (true, Some((1, 0))) => Some(Cause::Route(RouteFault::Missing)),
        (false, Some((3, 1))) | (true, Some((1, 3))) if slow => Some(Cause::Neighbor),
        (false, Some((3, 1 | 2 | 3 | 9 | 10 | 13))) | (true, Some((1, 1 | 3 | 4))) => Some(Cause::Firewall(own_hook)),
        _ => None,
    };
    if let Some(met) = by_icmp {
        return Some(match (met, note) {
            // The same "prohibited" comes from a route and from a firewall in FORWARD, which has taken from the TTL by then.
            (Cause::Firewall(_), Some(DropNote { cause: None, .. })) => Cause::Route(RouteFault::Prohibit),
            (
                Cause::Firewall(_),
                Some(DropNote {
                    cause: Some(cause @ Cause::Firewall(_)),
                    ..
                }),
            ) => cause,
            _ => met,
        });
    }
    match connect.errno {
        Some(EPERM) if no_syn => return Some(Cause::Policy(Policy::CgroupConnect)),
        Some(EPERM) => return Some(Cause::Policy(Policy::CgroupEgress)),
        Some(EACCES) if no_syn => return Some(Cause::Route(RouteFault::Prohibit)),
        Some(EINVAL) if no_syn => return Some(Cause::Route(RouteFault::Blackhole)),
        Some(ENETUNREACH) => return Some(Cause::Route(RouteFault::Missing)),
        // The kernel asks three times, a second apart, who has the address.
        Some(EHOSTUNREACH) if slow => return Some(Cause::Neighbor),
        Some(EHOSTUNREACH) => return Some(Cause::Route(RouteFault::Unreachable)),
        Some(ECONNREFUSED) if connect.connection.redirected_to.is_some() && connect.dropped.is_none() => {
            return Some(Cause::Refused);
        }
        // A server's refusal answers a SYN; this attempt never sent one.
        Some(ECONNREFUSED) if no_syn => return Some(Cause::Firewall(Hook::Output)),
        Some(ECONNREFUSED) => return Some(Cause::Refused),
        _ => {}
    }
    match connect.outcome {
        ConnectOutcome::Refused => Some(Cause::Refused),
        ConnectOutcome::NoRoute => Some(Cause::Route(RouteFault::Missing)),
        ConnectOutcome::HostUnreachable if slow => Some(Cause::Neighbor),
        ConnectOutcome::HostUnreachable => Some(Cause::Route(RouteFault::Unreachable)),
        ConnectOutcome::Denied => Some(Cause::Policy(Policy::CgroupConnect)),
        ConnectOutcome::Timeout if note.is_some() => {
            let note = note?;
            match (note.cause, connect.wire_syns) {
                // A policy drops at once. What waited this long waited for an address.
                (Some(Cause::Policy(_)), 0) if note.time.since(connect.time) >= NEIGHBOR_NS => Some(Cause::Neighbor),
                // IPv6 gives its packets a device before OUTPUT.
                (Some(Cause::Policy(_)), 0) if connect.syns == 0 => Some(Cause::Firewall(Hook::Output)),
                (cause, 0) => cause,
                (Some(Cause::Policy(_)), _) => Some(Cause::Policy(Policy::TrafficControlEgress)),
                // It has left: the dropped packet was a copy.
                _ => Some(Cause::Silence),
            }
        }
        ConnectOutcome::Timeout if connect.connection.redirected_to.is_some() && connect.dropped.is_none() => {
            Some(Cause::Redirected)
        }
        ConnectOutcome::Timeout if connect.wire_syns == 0 && connect.syns == 0 => Some(Cause::Firewall(Hook::Output)),
        // Dropped here for an unknown reason: that is no silence.
        ConnectOutcome::Timeout if connect.dropped.is_some() && connect.wire_syns == 0 => None,
        ConnectOutcome::Timeout => Some(Cause::Silence),
        ConnectOutcome::Error => None,
    }
}

/// A connection that failed, or a packet of it that was dropped.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) cause: Cause,
    pub(super) time: Time,
    pub(super) v6: bool,
    connection: String,
    remote: String,
    dropped: Option<String>,
    icmp: Option<IcmpCode>,
    errno: Option<i32>,
    pub(super) syns: Option<(u32, u32)>,
    /// SYN-ACKs that came to this host all the same.
    pub(super) syn_acks: u32,
    pub(super) elapsed_ns: u64,
    pub(super) redirected_to: Option<String>,
    pub(super) nat_rule: Option<String>,
    /// The client's own end of the connection.
    local: Option<String>,
}

/// The failed connection that an observation shows.
pub(super) fn failure(observation: &Observation<'_>, context: &Context<'_>) -> Option<Failure> {
    match observation {
        Observation::Connect(connect) => Some(Failure {
            cause: match of_connect(connect, context.knowledge.drop_note(&connect.connection.id))? {
                // A filter in OUTPUT comes behind NAT, and sees the address that NAT has made.
                Cause::Silence | Cause::Firewall(Hook::Output)
                    if connect.outcome == ConnectOutcome::Timeout && connect.nat_rule.is_some() =>
                {
                    Cause::Redirected
                }
                cause => cause,
            },
            nat_rule: connect.nat_rule.clone(),
            time: connect.time,
            v6: is_v6(&connect.connection.remote),
            connection: connect.connection.id.clone(),
            remote: connect.connection.remote.clone(),
            dropped: connect.dropped.as_ref().map(ToString::to_string),
            icmp: connect.icmp,
            errno: connect.errno,
            syns: Some((connect.syns, connect.wire_syns)),
            syn_acks: connect.syn_acks,
            elapsed_ns: connect.elapsed_ns,
            redirected_to: connect.connection.redirected_to.clone(),
            local: connect.connection.local.clone(),
        }),
        Observation::Drop(drop) => Some(Failure {
            cause: of_drop(drop)?,
            time: drop.time,
            v6: is_v6(&drop.connection.remote),
            connection: drop.connection.id.clone(),
            remote: drop.connection.remote.clone(),
            dropped: Some(location_of(drop.reason.as_deref(), drop.location.as_deref())),
            icmp: None,
            errno: None,
            syns: None,
            syn_acks: 0,
            elapsed_ns: 0,
            redirected_to: drop.connection.redirected_to.clone(),
            nat_rule: None,
            local: drop.connection.local.clone(),
        }),
        Observation::Exchange(_) | Observation::Interface(_) => None,
    }
}

/// What one detector reports of a failure: a sentence about the subject, and what to do. `P`: what it takes from the cause.
pub(super) type Describe<P> = fn(P, &Failure, &str, &Context<'_>) -> (String, Remedy);

/// How bad a failure is, given the newest ones of its location.
pub(super) type SeverityOf = fn(&Failure, Recent) -> Severity;

/// Failures at the host or in one pod.
#[derive(Debug, Default)]
struct LocationFailures {
    attempts: u64,
    /// Failures that were not reported one by one, and when the first of them was: the next report counts them too.
    before: Option<(Time, u64)>,
    share: Share,
    waited_ns: u64,
    /// Clients that failed last; one of them must succeed before the fault counts as gone.
    client: Option<u64>,
    named: Vec<String>,
    /// Whom a rule by user or cgroup may have meant.
    uids: Vec<u32>,
    cgroups: Vec<String>,
    dropped: Option<String>,
    icmp: Option<IcmpCode>,
    errno: Option<i32>,
    syns: Option<(u32, u32)>,
    connect_reported: bool,
}

struct Held {
    failure: Failure,
    since: Time,
    client: Option<u64>,
    subject: Subject,
}

/// The common part of the connectivity detectors.
pub(super) struct CauseDetector<P = ()> {
    code: Code,
    severity: SeverityOf,
    quiet_ns: u64,
    /// At boot the network comes up late: attempts before that are no fault.
    boot_is_excuse: bool,
    accepts: fn(Cause) -> Option<P>,
    describe: Describe<P>,
    locations: LruCache<String, LocationFailures>,
    counted: LruCache<String, ()>,
    held: Vec<Held>,
    max_held: usize,
    evicted: u64,
}

impl<P> CauseDetector<P> {
    pub(super) fn new(
        limits: &Limits,
        code: Code,
        quiet_s: u64,
        accepts: fn(Cause) -> Option<P>,
        describe: Describe<P>,
    ) -> Self {
        Self {
            code,
            severity: |_, _| Severity::High,
            quiet_ns: quiet_s.saturating_mul(SECOND),
            boot_is_excuse: false,
            accepts,
            describe,
            locations: bounded(limits.places(MAX_PLACES)),
            counted: bounded(limits.connections(MAX_COUNTED)),
            held: Vec::new(),
            max_held: limits.connections(MAX_HELD).get(),
            evicted: 0,
        }
    }

    pub(super) fn with_severity(mut self, severity: SeverityOf) -> Self {
        self.severity = severity;
        self
    }

    pub(super) fn excused_at_boot(mut self) -> Self {
        self.boot_is_excuse = true;
        self
    }

    /// The next failure at this location is the last of `count` since `first`.
    pub(super) fn began(&mut self, key: &str, first: Time, count: u64) {
        if !self.locations.contains(key) {
            self.evicted += u64::from(
                self.locations
                    .push(key.to_owned(), LocationFailures::default())
                    .is_some(),
            );
        }
        if let Some(location) = self.locations.get_mut(key) {
            location.before = Some((first, count.saturating_sub(1)));
        }
    }

    pub(super) fn report(
        &mut self,
        failure: &Failure,
        client: Option<u64>,
        subject: &Subject,
        context: &Context<'_>,
        sightings: &mut Sightings<'_>,
    ) {
        let Some(of_cause) = (self.accepts)(failure.cause) else {
            return;
        };
        let fresh = !self.counted.contains(&failure.connection);
        if fresh && self.counted.push(failure.connection.clone(), ()).is_some() {
            // An old connection id: at worst its connect record counts once more.
            self.evicted += 1;
        }
        if !self.locations.contains(&subject.key) {
            self.evicted += u64::from(
                self.locations
                    .push(subject.key.clone(), LocationFailures::default())
                    .is_some(),
            );
        }
        let Some(location) = self.locations.get_mut(&subject.key) else {
            return;
        };
        let before = location.before.take();
        let count = u64::from(fresh) + before.map_or(0, |(_, count)| count);
        location.attempts += count;
        // Attempts that failed are no requests.
        let requests = context.client().map_or(0, |client| client.requests) + location.attempts;
        let recent = location.share.add(failure.time, requests);
        location.waited_ns = location.waited_ns.saturating_add(failure.elapsed_ns);
        location.client = client.or(location.client);
        location.dropped = failure.dropped.clone().or(location.dropped.take());
        location.icmp = failure.icmp.or(location.icmp);
        location.errno = failure.errno.or(location.errno);
        location.syns = failure.syns.or(location.syns);
        if let Some(process) = subject.process.as_deref() {
            note(&mut location.named, Some(workload::program(process)));
            note(&mut location.uids, process.uid);
            note(&mut location.cgroups, process.cgroup.clone());
        }
        // The first connect record after a drop adds what the drop lacks: errno and time.
        let news = failure.syns.is_some() && !location.connect_reported && !fresh;
        location.connect_reported |= failure.syns.is_some();
        let sighting = Sighting {
            key: &subject.key,
            severity: (self.severity)(failure, recent),
            time: failure.time,
            count,
            news,
        };
        if let Some((first, _)) = before {
            sightings.since(first);
        }
        let describe = self.describe;
        sightings.report(sighting, || {
            let (summary, remedy) = describe(of_cause, failure, &subject.name, context);
            Details {
                subject: subject.clone(),
                summary,
                evidence: location.evidence(failure),
                remedy,
            }
        });
    }

    /// The client that failed has an answer now.
    fn succeeded(&mut self, context: &Context<'_>, time: Time, sightings: &mut Sightings<'_>) {
        if !sightings.any_open() {
            return;
        }
        let key = context.location_key();
        if let Some(location) = self.locations.get(key)
            && location.client == context.client().map(|client| client.handle)
        {
            sightings.clear(key, time);
        }
    }
}

impl LocationFailures {
    fn evidence(&self, failure: &Failure) -> serde_json::Map<String, serde_json::Value> {
        let (cause, at) = match failure.cause {
            Cause::Firewall(hook) => ("firewall", Some(hook.as_str())),
            Cause::Route(fault) => ("route", Some(fault.as_str())),
            Cause::Neighbor => ("neighbor", None),
            Cause::Refused => ("refused", None),
            Cause::Policy(policy) => ("policy", Some(policy.as_str())),
            Cause::Silence => ("silence", None),
            Cause::Redirected => ("redirected", None),
            Cause::ResponseDropped => ("response-dropped", None),
        };
        let mut evidence = evidence! {
            "cause": cause,
            "at": at,
            "endpoint": failure.remote,
            "client": failure.local,
            "redirected_to": failure.redirected_to,
            "attempts": self.attempts,
            "seconds_lost": (self.waited_ns as f64 / 1e6).round() / 1e3,
            "drop": self.dropped,
            "errno": self.errno,
            "icmp": self.icmp,
            "syns": self.syns.map(|(socket, _)| socket),
            "wire_syns": self.syns.map(|(_, wire)| wire),
            "programs": self.named,
            "uids": self.uids,
            "cgroups": self.cgroups,
        };
        if let Some(rule) = &failure.nat_rule {
            evidence.insert("nat_rule".to_owned(), rule.as_str().into());
        }
        if failure.syn_acks > 0 {
            evidence.insert("syn_acks".to_owned(), failure.syn_acks.into());
        }
        evidence
    }
}

fn note<T: PartialEq>(known: &mut Vec<T>, new: Option<T>) {
    if let Some(new) = new
        && known.len() < MAX_NAMED
        && !known.contains(&new)
    {
        known.push(new);
    }
}

impl<P> Detector for CauseDetector<P> {
    fn code(&self) -> Code {
        self.code
    }

    fn scope(&self) -> Scope {
        Scope::Clouds
    }

    fn quiet_ns(&self) -> u64 {
        self.quiet_ns
    }

    /// They end what is open.
    fn wants(&self) -> Exchanges {
        Exchanges::NONE
    }

    fn observe(&mut self, observation: &Observation<'_>, context: &Context<'_>, sightings: &mut Sightings<'_>) {
        if let Observation::Exchange(exchange) = observation {
            if answered(exchange) {
                self.succeeded(context, exchange.time, sightings);
            }
            return;
        }
        let Some(failure) = failure(observation, context).filter(|failure| (self.accepts)(failure.cause).is_some())
        else {
            return;
        };
        if self.boot_is_excuse && context.booting(failure.time) {
            return;
        }
        let client = context.client().map(|client| client.handle);
        let subject = context.location_subject();
        if failure.v6 && failure.cause.usual_without_ipv6() {
            if self.held.len() == self.max_held {
                self.held.remove(0);
                self.evicted += 1;
            }
            self.held.push(Held {
                failure,
                since: context.now,
                client,
                subject,
            });
            return;
        }
        self.report(&failure, client, &subject, context, sightings);
    }

    fn tick(&mut self, context: &Context<'_>, last: bool, sightings: &mut Sightings<'_>) {
        if self.held.is_empty() {
            return;
        }
        let due = |held: &mut Held| last || context.now.since(held.since) >= HOLD_NS;
        for held in self.held.extract_if(.., due).collect::<Vec<_>>() {
            // Where IPv4 works, ipv6-endpoint-silent reports it; a silent endpoint is always reported there.
            if held.failure.cause != Cause::Silence && !context.knowledge.v4_works(held.failure.time) {
                self.report(&held.failure, held.client, &held.subject, context, sightings);
            }
        }
    }

    fn evicted(&self) -> u64 {
        self.evicted
    }
}

impl Failure {
    /// A request on an established connection, without a response.
    pub(super) fn unanswered(exchange: &Of<'_, Exchange>) -> Self {
        Self {
            cause: Cause::Silence,
            time: exchange.time,
            v6: is_v6(&exchange.connection.remote),
            connection: format!("{}/{}", exchange.connection.id, exchange.connection.exchange),
            remote: exchange.connection.remote.clone(),
            dropped: None,
            icmp: None,
            errno: None,
            syns: None,
            syn_acks: 0,
            elapsed_ns: exchange.waited_ns.unwrap_or(0),
            redirected_to: exchange.connection.redirected_to.clone(),
            nat_rule: None,
            local: exchange.connection.local.clone(),
        }
    }

    /// The address or port to which the NAT rule redirects.
    pub(super) fn nat_target(&self) -> Option<&str> {
        nat_target(self.nat_rule.as_deref()?)
    }

    /// Address of the endpoint, without its port.
    pub(super) fn endpoint(&self) -> &str {
        let address = self
            .remote
            .rsplit_once(':')
            .map_or(self.remote.as_str(), |(address, _)| address);
        address.trim_start_matches('[').trim_end_matches(']')
    }

    /// `iptables` or `ip6tables`.
    pub(super) fn iptables(&self) -> &'static str {
        if self.v6 { "ip6tables" } else { "iptables" }
    }
}
