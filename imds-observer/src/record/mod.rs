//! The versioned public records: the only types that leave the process.
//!
//! `docs/records.md` describes the fields; `imds-observer schema` prints the JSON Schema of these types.

mod by_caller;
mod envelope;
mod exchange;
mod finding;
mod json_cache;
mod process;
mod schema;
#[cfg(live)]
pub(crate) mod steady;
pub(crate) mod steps;
mod summary;
mod time;
pub mod workload;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub(crate) use by_caller::ByCaller;
use envelope::Named;
pub use exchange::{
    Connect, ConnectOutcome, Connection, Dialect, DropCause, End, Endpoint, Exchange, ExchangeOutcome, IcmpCode,
    ImdsVersion, PacketDirection, PacketDrop, Request, Response,
};
pub use finding::{Code, Finding, FindingState, Remedy, Severity, Subject};
pub(crate) use process::ProcessMemo;
pub use process::{Ancestor, Caller, Container, Pod, PodIdentity, Process, Unredacted, arguments};
pub use schema::schema;
pub use summary::{
    Attached, Confinement, InterfaceSummary, LossCounts, Missing, Mode, NetworkTool, NodeOwner, NodeOwnerKind,
    PathCount, ProcessSummary, Quantiles, Start, Summary, VpcResolver,
};
pub use time::{SECOND, Time};

/// Version of the record format that this program writes.
pub const SCHEMA: u32 = 1;

/// Name of the host that a record comes from; shared by all records of one run.
pub type Host = Arc<str>;

/// A line of NDJSON: the envelope that all records have, and the body of one kind.
///
/// `Record<B>` is a record of a kind that is known, which derefs to its body.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Record<B = Body, H = Host> {
    /// Time of the event. For an exchange, the time at which the first byte of the request left the process.
    pub time: Time,
    pub host: H,
    pub body: B,
}

/// A record of a known kind, borrowed.
pub type Of<'a, B> = Record<&'a B, &'a Host>;

impl<B, H> std::ops::Deref for Record<B, H> {
    type Target = B;

    fn deref(&self) -> &B {
        &self.body
    }
}

impl<B, H> std::ops::DerefMut for Record<B, H> {
    fn deref_mut(&mut self) -> &mut B {
        &mut self.body
    }
}

/// One line for each kind of record: its name in the `record` field, and its body.
macro_rules! kinds {
    ($($kind:ident($body:ident) => $name:literal,)*) => {
        /// Kinds of record, as the `record` field names them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum Kind {
            $($kind,)*
        }

        impl Kind {
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$kind,)*];

            pub fn as_str(self) -> &'static str {
                match self { $(Self::$kind => $name,)* }
            }

            /// Reads a record of this kind.
            pub(crate) fn read(self, json: &[u8]) -> serde_json::Result<Record> {
                match self { $(Self::$kind => serde_json::from_slice::<Record<$body>>(json).map(Into::into),)* }
            }

            /// Name of the body's schema, which `generator` then has.
            fn schema(self, generator: &mut schemars::SchemaGenerator) -> String {
                match self { $(Self::$kind => schema::name::<$body>(generator),)* }
            }
        }

        /// Content of a record. Code that stores many records boxes the large kinds.
        #[derive(Clone, Debug, PartialEq, Serialize)]
        #[serde(untagged)]
        pub enum Body {
            $($kind($body),)*
        }

        impl Body {
            pub fn kind(&self) -> Kind {
                match self { $(Self::$kind(_) => Kind::$kind,)* }
            }
        }

        impl Named for Body {
            fn name(&self) -> &'static str {
                self.kind().as_str()
            }
        }

        $(impl Named for $body {
            fn name(&self) -> &'static str {
                $name
            }
        })*

        $(impl From<Record<$body>> for Record {
            fn from(record: Record<$body>) -> Self {
                let Record { time, host, body } = record;
                Self { time, host, body: Body::$kind(body) }
            }
        })*
    };
}

kinds! {
    Start(Start) => "start",
    Exchange(Exchange) => "exchange",
    Connect(Connect) => "connect",
    Drop(PacketDrop) => "drop",
    Finding(Finding) => "finding",
    Summary(Summary) => "summary",
    Loss(LossCounts) => "loss",
}

impl Record {
    /// The envelope with a part of the body.
    pub fn with<'a, B>(&'a self, body: &'a B) -> Of<'a, B> {
        let Self { time, host, .. } = self;
        Record {
            time: *time,
            host,
            body,
        }
    }

    /// When the record's subject ended, according to the record: records are written in about this order.
    pub fn settled(&self) -> Time {
        match &self.body {
            Body::Exchange(exchange) => self
                .time
                .plus_ns(exchange.waited_ns.or(exchange.latency_ns).unwrap_or(0)),
            Body::Connect(connect) => self.time.plus_ns(connect.elapsed_ns),
            _ => self.time,
        }
    }
}

type CallerOf<'a> = (
    &'a mut Option<Arc<Process>>,
    &'a mut Option<Arc<Container>>,
    &'a mut Connection,
);

impl Body {
    /// Caller and connection of an exchange, a connect or a drop.
    pub(crate) fn traffic_mut(&mut self) -> Option<CallerOf<'_>> {
        Some(match self {
            Self::Exchange(body) => (&mut body.process, &mut body.container, &mut body.connection),
            Self::Connect(body) => (&mut body.process, &mut body.container, &mut body.connection),
            Self::Drop(body) => (&mut body.process, &mut body.container, &mut body.connection),
            _ => return None,
        })
    }
}

impl<B> Record<B> {
    pub fn by_ref(&self) -> Of<'_, B> {
        let Self { time, host, body } = self;
        Record {
            time: *time,
            host,
            body,
        }
    }
}

impl<B: Clone> Of<'_, B> {
    pub fn cloned(&self) -> Record<B> {
        let Self { time, host, body } = *self;
        Record {
            time,
            host: host.clone(),
            body: body.clone(),
        }
    }
}
