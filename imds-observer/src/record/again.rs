//! JSON of what stands in record after record, made once: half of an exchange's line is its caller.

use std::cell::RefCell;
use std::sync::Arc;
use std::thread::LocalKey;

use serde::ser::Error as _;
use serde::{Serialize, Serializer};
use serde_json::value::{RawValue, to_raw_value};

use super::{Container, Process};

/// Callers whose JSON a thread remembers, by address; another one takes the place of the one before. About 1 KiB each.
const PLACES: usize = 64;

/// Kept alive, so no address is reused.
pub(super) type Known<T> = RefCell<Vec<Option<(Arc<T>, Box<RawValue>)>>>;

thread_local! {
    static PROCESSES: Known<Process> = const { RefCell::new(Vec::new()) };
    static CONTAINERS: Known<Container> = const { RefCell::new(Vec::new()) };
}

/// Stands in many records.
pub(super) trait Again: Serialize + Sized + 'static {
    /// What this thread has written of it.
    fn known() -> &'static LocalKey<Known<Self>>;
}

impl Again for Process {
    fn known() -> &'static LocalKey<Known<Self>> {
        &PROCESSES
    }
}

impl Again for Container {
    fn known() -> &'static LocalKey<Known<Self>> {
        &CONTAINERS
    }
}

/// For `serialize_with`. Whoever shares a value never changes it.
#[expect(clippy::ref_option, reason = "serde hands over the field as it is")]
pub(super) fn write<T: Again, S: Serializer>(value: &Option<Arc<T>>, serializer: S) -> Result<S::Ok, S::Error> {
    let Some(value) = value else {
        return serializer.serialize_none();
    };
    T::known().with_borrow_mut(|known| {
        known.resize_with(PLACES, || None);
        let place = (Arc::as_ptr(value) as usize / align_of::<u128>()) % PLACES;
        if let Some((_, json)) = known[place].as_ref().filter(|(of, _)| Arc::ptr_eq(of, value)) {
            return json.serialize(serializer);
        }
        let json = to_raw_value(value.as_ref()).map_err(S::Error::custom)?;
        let (_, json) = known[place].insert((Arc::clone(value), json));
        json.serialize(serializer)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Exchange, Record};
    use crate::source::ndjson::parse;

    #[test]
    fn a_caller_is_written_as_itself_whoever_was_written_before() {
        let callers: Vec<Exchange> = (0..3 * PLACES)
            .map(|number| Exchange::example(&format!("app{number}"), 200))
            .collect();
        for _ in 0..2 {
            for (number, exchange) in callers.iter().enumerate() {
                let line = serde_json::to_string(exchange).unwrap();
                assert!(line.contains(&format!("\"exe\":\"/opt/app{number}\"")), "{line}");
                assert_eq!(parse(line.as_bytes()), Ok(Record::Exchange(exchange.clone())));
            }
        }
        PROCESSES.with_borrow(|known| assert_eq!(known.len(), PLACES));
    }
}
