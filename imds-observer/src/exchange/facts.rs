//! What the pairing of requests and responses yields, before anybody knows who the process is.

use crate::event::{FlowId, Sender};
use crate::record::{ConnectOutcome, Connection, End, ExchangeOutcome, PacketDirection, Request, Response, Time};

/// Becomes an `exchange` record once the process is known.
#[derive(Clone, Debug, PartialEq)]
pub struct ExchangeFacts {
    pub flow: FlowId,
    pub sender: Option<Sender>,
    /// Where a client without a socket of this host was seen; 0: not known, or it has one.
    pub ifindex: u32,
    pub time: Time,
    pub connection: Connection,
    pub request: Request,
    pub response: Option<Response>,
    pub outcome: ExchangeOutcome,
    pub latency_ns: Option<u64>,
    pub waited_ns: Option<u64>,
    pub connect_ns: Option<u64>,
    pub closed_by: Option<End>,
}

/// Becomes a `connect` record.
#[derive(Clone, Debug, PartialEq)]
pub struct ConnectFacts {
    pub flow: FlowId,
    pub sender: Option<Sender>,
    /// Where a client without a socket of this host was seen; 0: not known, or it has one.
    pub ifindex: u32,
    pub time: Time,
    pub connection: Connection,
    pub outcome: ConnectOutcome,
    pub errno: Option<i32>,
    pub elapsed_ns: u64,
    pub syns: u32,
    pub wire_syns: u32,
    pub syn_acks: u32,
    pub dropped: Option<String>,
    pub icmp: Option<String>,
}

/// Becomes a `drop` record.
#[derive(Clone, Debug, PartialEq)]
pub struct DropFacts {
    pub flow: FlowId,
    pub sender: Option<Sender>,
    /// Where a client without a socket of this host was seen; 0: not known, or it has one.
    pub ifindex: u32,
    pub time: Time,
    pub connection: Connection,
    pub direction: PacketDirection,
    pub reason: Option<String>,
    pub location: Option<String>,
    pub ttl: Option<u8>,
    pub netns: Option<u32>,
}

/// Anything that the flow table yields.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    Exchange(ExchangeFacts),
    Connect(ConnectFacts),
    Drop(DropFacts),
}
