//! Cache of data derived from a caller, keyed by the identity of its records' shared process and container.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::record::{Container, Process};

/// Keyed by `Arc` identity: two `Arc`s for one process are distinct keys. The cache keeps them alive, so no address is reused.
#[derive(Debug)]
pub(crate) struct ByCaller<T> {
    /// Index into `known`, by addresses.
    slots: FxHashMap<(usize, usize), usize>,
    known: Vec<Known<T>>,
    limit: usize,
}

#[derive(Debug)]
struct Known<T> {
    _process: Option<Arc<Process>>,
    _container: Option<Arc<Container>>,
    value: T,
}

impl<T> ByCaller<T> {
    /// `limit`: capacity. One caller more clears the cache, and the data is derived again.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            slots: FxHashMap::default(),
            known: Vec::new(),
            limit,
        }
    }

    pub(crate) fn get(
        &mut self,
        process: Option<&Arc<Process>>,
        container: Option<&Arc<Container>>,
        work_out: impl FnOnce() -> T,
    ) -> &T {
        let slot = self.slot(process, container, work_out);
        self.at(slot)
    }

    /// Index of a caller; see [`Self::at`].
    pub(crate) fn slot(
        &mut self,
        process: Option<&Arc<Process>>,
        container: Option<&Arc<Container>>,
        work_out: impl FnOnce() -> T,
    ) -> usize {
        let key = (address(process), address(container));
        if let Some(slot) = self.slots.get(&key) {
            return *slot;
        }
        if self.known.len() >= self.limit {
            self.slots.clear();
            self.known.clear();
        }
        self.known.push(Known {
            _process: process.cloned(),
            _container: container.cloned(),
            value: work_out(),
        });
        self.slots.insert(key, self.known.len() - 1);
        self.known.len() - 1
    }

    /// Entry at an index. Indexes are valid until the next lookup.
    pub(crate) fn at(&self, slot: usize) -> &T {
        &self.known[slot].value
    }
}

/// 0: there is none.
fn address<T>(shared: Option<&Arc<T>>) -> usize {
    shared.map_or(0, |shared| Arc::as_ptr(shared) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(id: usize) -> Arc<Container> {
        Arc::new(Container {
            id: id.to_string(),
            runtime: None,
            name: None,
            image: None,
            pod: None,
        })
    }

    #[test]
    fn what_is_known_is_not_worked_out_again() {
        let mut known = ByCaller::new(2048);
        let (one, two) = (container(1), container(2));
        for _ in 0..2 {
            assert_eq!(*known.get(None, Some(&one), || 1), 1);
            assert_eq!(*known.get(None, Some(&two), || 2), 2);
            assert_eq!(*known.get(None, None, || 0), 0);
        }
        assert_eq!(*known.get(None, Some(&one), || 9), 1);
    }

    #[test]
    fn memory_is_bounded_and_nobody_is_mistaken() {
        let mut known = ByCaller::new(2048);
        for round in 0..3 {
            for id in 0..5000 {
                let container = container(id);
                assert_eq!(*known.get(None, Some(&container), || (round, id)), (round, id));
            }
        }
        assert!(known.known.len() <= 2048);
    }
}
