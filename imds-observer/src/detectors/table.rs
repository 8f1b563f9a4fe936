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

/// The entry of this key, made if there is none; `evicted` counts the one that had to go for it.
pub(super) fn entry<'a, K: Hash + Eq, V>(
    table: &'a mut LruCache<K, V>,
    key: K,
    evicted: &mut u64,
    make: impl FnOnce() -> V,
) -> &'a mut V {
    let full = table.len() == table.cap().get();
    table.get_or_insert_mut(key, || {
        *evicted += u64::from(full);
        make()
    })
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

    #[test]
    fn an_entry_is_made_once_and_what_goes_for_it_is_counted() {
        let mut table = bounded(NonZeroUsize::new(2).unwrap());
        let mut evicted = 0;
        for n in [1, 2, 1, 2, 3, 1] {
            *entry(&mut table, n, &mut evicted, || 0) += 1;
        }
        assert_eq!(evicted, 2);
        assert_eq!(
            (table.peek(&1), table.peek(&2), table.peek(&3)),
            (Some(&1), None, Some(&1))
        );
    }
}
