//! Per-thread cache of serialized processes and containers: half of an exchange's line is its caller.

use std::cell::RefCell;
use std::sync::Arc;

use serde::ser::Error as _;
use serde::{Serialize, Serializer};
use serde_json::value::{RawValue, to_raw_value};

use super::by_caller::ByCaller;
use super::{Container, Process};

/// Processes and containers cached per thread; about 1 KiB each.
const LIMIT: usize = 256;

/// `None`: not serializable, which doesn't occur for parts of a record.
type Written = Option<Box<RawValue>>;

thread_local! {
    static WRITTEN: RefCell<Cache> = RefCell::new(Cache::new());
}

struct Cache {
    written: ByCaller<Written>,
    /// Steps of the wall clock that the start times of processes are written with.
    stepped_ns: i64,
}

impl Cache {
    fn new() -> Self {
        Self {
            written: ByCaller::new(LIMIT),
            stepped_ns: stepped_ns(),
        }
    }
}

#[cfg(live)]
use super::steady::stepped_ns;

#[cfg(not(live))]
fn stepped_ns() -> i64 {
    0
}

/// For `serialize_with`. Shared values never change.
#[expect(clippy::ref_option, reason = "serde hands over the field as it is")]
pub(super) fn process<S: Serializer>(value: &Option<Arc<Process>>, serializer: S) -> Result<S::Ok, S::Error> {
    write(value.as_ref(), None, value, serializer)
}

/// The same for a container.
#[expect(clippy::ref_option, reason = "serde hands over the field as it is")]
pub(super) fn container<S: Serializer>(value: &Option<Arc<Container>>, serializer: S) -> Result<S::Ok, S::Error> {
    write(None, value.as_ref(), value, serializer)
}

/// `value`: whichever of the two it is, or null.
fn write<S: Serializer>(
    process: Option<&Arc<Process>>,
    container: Option<&Arc<Container>>,
    value: &impl Serialize,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    WRITTEN.with_borrow_mut(|cache| {
        if cache.stepped_ns != stepped_ns() {
            *cache = Cache::new();
        }
        let json = cache.written.get(process, container, || to_raw_value(value).ok());
        json.as_ref()
            .ok_or_else(|| S::Error::custom("a caller can't be written"))?
            .serialize(serializer)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Exchange, Record};
    use crate::source::ndjson::parse;

    #[test]
    fn a_caller_is_written_as_itself_whoever_was_written_before() {
        let callers: Vec<Record<Exchange>> = (0..LIMIT + LIMIT / 2)
            .map(|number| Record::example(&format!("app{number}"), 200))
            .collect();
        for _ in 0..2 {
            for (number, exchange) in callers.iter().enumerate() {
                let line = serde_json::to_string(exchange).unwrap();
                assert!(line.contains(&format!("\"exe\":\"/opt/app{number}\"")), "{line}");
                assert_eq!(parse(line.as_bytes()), Ok(exchange.clone().into()));
            }
        }
    }
}
