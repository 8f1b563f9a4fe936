//! Remembers what was worked out of a caller, for as long as its records share what they tell of it.

use std::sync::Arc;

use crate::record::{Container, Process};

/// Sets of two. A third caller of a set pushes the older one out, which is then worked out anew: memory is bounded, and nothing else is lost.
const SETS: usize = 512;

/// By identity, not by content: the same process told twice is two callers here. What is remembered is kept alive, so no address is reused.
#[derive(Debug)]
pub(crate) struct ByCaller<T> {
    slots: Vec<Option<Slot<T>>>,
}

#[derive(Debug)]
struct Slot<T> {
    process: Option<Arc<Process>>,
    container: Option<Arc<Container>>,
    value: T,
}

impl<T> Default for ByCaller<T> {
    fn default() -> Self {
        Self { slots: Vec::new() }
    }
}

impl<T> ByCaller<T> {
    pub(crate) fn get(
        &mut self,
        process: Option<&Arc<Process>>,
        container: Option<&Arc<Container>>,
        work_out: impl FnOnce() -> T,
    ) -> &T {
        if self.slots.is_empty() {
            self.slots.resize_with(2 * SETS, || None);
        }
        let at = 2 * set(address(process), address(container));
        let is = |slot: &Option<Slot<T>>| {
            slot.as_ref().is_some_and(|slot| {
                address(slot.process.as_ref()) == address(process)
                    && address(slot.container.as_ref()) == address(container)
            })
        };
        let [newer, older] = &mut self.slots[at..at + 2] else {
            unreachable!("a set has two slots")
        };
        if !is(newer) {
            std::mem::swap(newer, older);
        }
        let known = is(newer);
        let slot = newer.take().filter(|_| known);
        &newer
            .insert(slot.unwrap_or_else(|| Slot {
                process: process.cloned(),
                container: container.cloned(),
                value: work_out(),
            }))
            .value
    }
}

/// 0: there is none.
fn address<T>(shared: Option<&Arc<T>>) -> usize {
    shared.map_or(0, |shared| Arc::as_ptr(shared) as usize)
}

fn set(process: usize, container: usize) -> usize {
    // The multiplier of Fibonacci hashing: the upper bits depend on all bits.
    let mixed = (process as u64 ^ (container as u64).rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 32) as usize % SETS
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
        let mut known = ByCaller::default();
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
        let mut known = ByCaller::default();
        for round in 0..3 {
            for id in 0..5000 {
                let container = container(id);
                assert_eq!(*known.get(None, Some(&container), || (round, id)), (round, id));
            }
        }
        assert_eq!(known.slots.len(), 2 * SETS);
    }
}
