//! Values by the bytes that they were read from.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use foldhash::fast::RandomState;

/// A bounded map. When it is full, it is cleared: a value that is missing is read again.
pub(crate) struct Memo<V> {
    known: HashMap<Arc<[u8]>, V, RandomState>,
    /// Entries.
    limit: usize,
    /// Bytes of all keys.
    bytes: usize,
}

/// Most bytes of all keys: what was read from them takes about as much again.
const MAX_BYTES: usize = 2 * 1024 * 1024;

impl<V> Memo<V> {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            known: HashMap::default(),
            limit,
            bytes: 0,
        }
    }

    pub(crate) fn get(&self, text: &[u8]) -> Option<(&Arc<[u8]>, &V)> {
        self.known.get_key_value(text)
    }

    /// Keeps the value, unless there is one already, and returns the one that is kept.
    pub(crate) fn insert(&mut self, text: &[u8], value: V) -> (Arc<[u8]>, &V) {
        if self.known.len() >= self.limit || self.bytes.saturating_add(text.len()) > MAX_BYTES {
            self.known.clear();
            self.bytes = 0;
        }
        let text: Arc<[u8]> = text.into();
        match self.known.entry(text) {
            Entry::Occupied(known) => (known.key().clone(), known.into_mut()),
            Entry::Vacant(place) => {
                let text = place.key().clone();
                self.bytes += text.len();
                (text, place.insert(value))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_and_bytes_are_bounded() {
        let mut memo = Memo::new(100);
        for value in 0..1000_usize {
            memo.insert(value.to_string().as_bytes(), value);
            assert!(memo.known.len() <= 100);
            assert_eq!(
                memo.get(value.to_string().as_bytes()).map(|(_, value)| *value),
                Some(value)
            );
        }
        let mut memo = Memo::new(100);
        for value in 0..10_u8 {
            memo.insert(&vec![value; MAX_BYTES / 3], value);
            assert!(memo.known.len() <= 3);
        }
    }

    #[test]
    fn the_first_value_stays() {
        let mut memo = Memo::new(100);
        memo.insert(b"a", 1);
        assert_eq!(*memo.insert(b"a", 2).1, 1);
    }
}
