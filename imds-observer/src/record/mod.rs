//! The versioned public records: the only types that leave the process.
//!
//! `docs/records.md` describes the fields; `imds-observer schema` prints the JSON Schema of these types.

mod by_caller;
mod exchange;
mod finding;
mod json_cache;
mod process;
mod schema;
#[cfg(live)]
pub(crate) mod steady;
mod summary;
mod time;
pub mod workload;

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) use by_caller::ByCaller;
pub use exchange::{
    Connect, ConnectOutcome, Connection, Dialect, Drop, End, Exchange, ExchangeOutcome, ImdsVersion, PacketDirection,
    Request, Response,
};
pub use finding::{Code, Finding, FindingState, Remedy, Severity, Subject};
pub(crate) use process::ProcessMemo;
pub use process::{Ancestor, Caller, Container, Pod, Process, Unredacted, arguments};
pub use schema::schema;
pub use summary::{
    Attached, Confinement, InterfaceSummary, Loss, LossCounts, Missing, Mode, PathCount, ProcessSummary, Quantiles,
    Start, Summary, VpcResolver,
};
pub use time::{SECOND, Time};

/// Version of the record format that this program writes.
pub const SCHEMA: u32 = 1;

/// Name of the host that a record comes from; shared by all records of one run.
pub type Host = Arc<str>;

/// Kinds of record, as the `record` field names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Start,
    Exchange,
    Connect,
    Drop,
    Finding,
    Summary,
    Loss,
}

impl Kind {
    pub const ALL: [Self; 7] = [
        Self::Start,
        Self::Exchange,
        Self::Connect,
        Self::Drop,
        Self::Finding,
        Self::Summary,
        Self::Loss,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Exchange => "exchange",
            Self::Connect => "connect",
            Self::Drop => "drop",
            Self::Finding => "finding",
            Self::Summary => "summary",
            Self::Loss => "loss",
        }
    }
}

/// Any record. Large kinds are boxed by those who store many.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Record {
    Start(Start),
    Exchange(Exchange),
    Connect(Connect),
    Drop(Drop),
    Finding(Finding),
    Summary(Summary),
    Loss(Loss),
}

impl Record {
    pub fn kind(&self) -> Kind {
        match self {
            Self::Start(_) => Kind::Start,
            Self::Exchange(_) => Kind::Exchange,
            Self::Connect(_) => Kind::Connect,
            Self::Drop(_) => Kind::Drop,
            Self::Finding(_) => Kind::Finding,
            Self::Summary(_) => Kind::Summary,
            Self::Loss(_) => Kind::Loss,
        }
    }

    pub fn time(&self) -> Time {
        match self {
            Self::Start(record) => record.time,
            Self::Exchange(record) => record.time,
            Self::Connect(record) => record.time,
            Self::Drop(record) => record.time,
            Self::Finding(record) => record.time,
            Self::Summary(record) => record.time,
            Self::Loss(record) => record.time,
        }
    }

    pub fn host(&self) -> &Host {
        match self {
            Self::Start(record) => &record.host,
            Self::Exchange(record) => &record.host,
            Self::Connect(record) => &record.host,
            Self::Drop(record) => &record.host,
            Self::Finding(record) => &record.host,
            Self::Summary(record) => &record.host,
            Self::Loss(record) => &record.host,
        }
    }

    /// When the record's subject ended, according to the record: records are written in about this order.
    pub fn settled(&self) -> Time {
        match self {
            Self::Exchange(record) => record.time.plus_ns(record.waited_ns.or(record.latency_ns).unwrap_or(0)),
            Self::Connect(record) => record.time.plus_ns(record.elapsed_ns),
            other => other.time(),
        }
    }
}
