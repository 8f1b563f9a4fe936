//! How much memory each client's connections hold, so that one client cannot crowd out the others.
//!
//! A client is a cgroup, or a network namespace where the cgroup is not known: an unprivileged process can't leave the one, and everything
//! that it makes inside of the other is below it.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use lru::LruCache;

use super::connection::Flow;
use crate::event::{FlowId, Sender};

/// Bytes that a connection costs besides its own: its entries in the table, in the list of timers and in the client's list.
const ENTRY_BYTES: usize = 256;

/// Who holds a connection: the id of a cgroup, or the inode of a network namespace, folded to 32 bits. Two clients of one number share a share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Owner(u32);

impl Owner {
    fn of(sender: Option<&Sender>) -> Self {
        Self(sender.map_or(0, |sender| match sender.cgroup_id {
            0 => sender.netns,
            id => (id ^ id >> 32) as u32,
        }))
    }
}

/// A connection's part of the budget.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Charge {
    owner: Owner,
    /// 0: nothing is.
    bytes: u32,
}

#[derive(Debug)]
struct Share {
    bytes: usize,
    /// The one that came first, or was passed over longest ago, is the least recently used.
    flows: LruCache<FlowId, (), RandomState>,
}

impl Default for Share {
    fn default() -> Self {
        Self {
            bytes: 0,
            flows: LruCache::unbounded_with_hasher(RandomState::default()),
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Shares {
    total: usize,
    owners: HashMap<Owner, Share>,
}

impl Shares {
    pub(super) fn total(&self) -> usize {
        self.total
    }

    /// Counts what the connection holds by now, for the client that is known by now.
    pub(super) fn charge(&mut self, id: FlowId, flow: &mut Flow) {
        let bytes = flow.held_bytes() + ENTRY_BYTES;
        let owner = Owner::of(flow.sender());
        let known = flow.share.bytes as usize;
        if known > 0 && flow.share.owner == owner {
            if known != bytes {
                let share = self.owners.entry(owner).or_default();
                share.bytes = share.bytes - known + bytes;
                self.total = self.total - known + bytes;
                flow.share.bytes = bytes as u32;
            }
            return;
        }
        self.release(id, flow);
        let share = self.owners.entry(owner).or_default();
        share.bytes += bytes;
        share.flows.put(id, ());
        self.total += bytes;
        flow.share.owner = owner;
        flow.share.bytes = bytes as u32;
    }

    /// The connection is forgotten, or another client's.
    pub(super) fn release(&mut self, id: FlowId, flow: &Flow) {
        let Charge { owner, bytes, .. } = flow.share;
        if bytes == 0 {
            return;
        }
        let bytes = bytes as usize;
        self.total -= bytes;
        if let Some(share) = self.owners.get_mut(&owner) {
            share.bytes -= bytes;
            share.flows.pop(&id);
            if share.flows.is_empty() {
                self.owners.remove(&owner);
            }
        }
    }

    /// The client that holds the most.
    pub(super) fn largest(&self) -> Option<Owner> {
        let largest = self.owners.iter().max_by_key(|(owner, share)| (share.bytes, **owner));
        largest.map(|(owner, _)| *owner)
    }

    /// The oldest connection of this client but `kept`: one on which nothing is awaited if the first `looks` have one, else the oldest.
    pub(super) fn oldest(
        &mut self,
        owner: Owner,
        looks: usize,
        kept: FlowId,
        is_busy: impl Fn(&FlowId) -> bool,
    ) -> Option<FlowId> {
        let flows = &mut self.owners.get_mut(&owner)?.flows;
        for _ in 0..looks.min(flows.len()) {
            let id = *flows.peek_lru()?.0;
            if id != kept && !is_busy(&id) {
                return Some(id);
            }
            flows.promote(&id);
        }
        if *flows.peek_lru()?.0 == kept {
            flows.promote(&kept);
        }
        flows.peek_lru().map(|(id, ())| *id).filter(|id| *id != kept)
    }
}
