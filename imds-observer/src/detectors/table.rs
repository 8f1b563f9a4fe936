//! Bounded tables that cost nothing before they are used.

use std::hash::Hash;
use std::num::NonZeroUsize;

use lru::LruCache;

/// An LRU that holds at most `bound` entries. `LruCache::new` would take the room for all of them at once, and there is a
/// set of detectors for every host of a fleet's traces.
pub(super) fn bounded<K: Hash + Eq, V>(bound: NonZeroUsize) -> LruCache<K, V> {
    let mut table = LruCache::unbounded();
    table.resize(bound);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_holds() {
        let mut table = bounded(NonZeroUsize::new(2).unwrap());
        for n in 0..5 {
            table.push(n, ());
        }
        assert_eq!(table.len(), 2);
        assert!(table.contains(&4));
    }
}
