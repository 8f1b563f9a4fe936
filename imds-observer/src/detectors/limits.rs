//! How large the detectors' tables may be.

use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};

/// Bounds of the detectors of one host. Each detector has tables of its own, because what they hold differs in size. Their constants
/// give the sizes at these defaults, and a table by clients grows and shrinks with `clients`, one by paths with `paths` and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Hosts of a fleet's traces whose detectors are kept at once; the one silent for longest is finished.
    pub hosts: usize,
    /// Clients that something is known of: processes of one kind, see [`crate::record::workload::Group`].
    pub clients: usize,
    /// Paths in the largest table by paths.
    pub paths: usize,
    /// Places where a fault of the network may sit: the host, and pods.
    pub places: usize,
    /// Connections of which a drop or a failure is remembered.
    pub connections: usize,
    /// Interfaces whose packets are compared with the quota.
    pub interfaces: usize,
    /// Callers whose derived values are remembered. One more, and all are derived again.
    pub callers: usize,
    /// Open findings of one code; what is found besides is one finding more.
    pub findings: usize,
}

impl Limits {
    pub const DEFAULT: Self = Self {
        hosts: 256,
        clients: 8_192,
        paths: 16_384,
        places: 512,
        connections: 4_096,
        interfaces: 128,
        callers: 2_048,
        findings: 256,
    };

    pub(super) fn clients(&self, by_default: NonZeroUsize) -> NonZeroUsize {
        share(by_default, self.clients, Self::DEFAULT.clients)
    }

    pub(super) fn paths(&self, by_default: NonZeroUsize) -> NonZeroUsize {
        share(by_default, self.paths, Self::DEFAULT.paths)
    }

    pub(super) fn places(&self, by_default: NonZeroUsize) -> NonZeroUsize {
        share(by_default, self.places, Self::DEFAULT.places)
    }

    pub(super) fn connections(&self, by_default: NonZeroUsize) -> NonZeroUsize {
        share(by_default, self.connections, Self::DEFAULT.connections)
    }

    pub(super) fn interfaces(&self, by_default: NonZeroUsize) -> NonZeroUsize {
        share(by_default, self.interfaces, Self::DEFAULT.interfaces)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// A table's size where `limit` is what was set in place of `default`.
fn share(by_default: NonZeroUsize, limit: usize, default: usize) -> NonZeroUsize {
    let size = by_default.get().saturating_mul(limit) / default;
    NonZeroUsize::new(size).unwrap_or(NonZeroUsize::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_grow_and_shrink_with_their_limit() {
        let own = NonZeroUsize::new(2_048).unwrap();
        assert_eq!(Limits::DEFAULT.clients(own), own);
        let of = |clients| {
            Limits {
                clients,
                ..Limits::DEFAULT
            }
            .clients(own)
            .get()
        };
        assert_eq!((of(16_384), of(1_024), of(1)), (4_096, 256, 1));
    }
}
