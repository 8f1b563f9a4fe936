//! Packets that this kernel drops.

use super::super::kernel::Kernel;
use super::{Alternative, HookSpec, Method};

pub(super) const DROP: HookSpec = HookSpec {
    alternatives: &[
        Alternative {
            program: "drop_btf",
            name: "drop-btf",
            method: Method::BtfTracepoint,
            target: "kfree_skb",
        },
        Alternative {
            program: "drop_raw",
            name: "drop-raw",
            method: Method::RawTracepoint,
            target: "kfree_skb",
        },
    ],
    hides: "packets that this kernel drops, and drop reasons",
};

impl Kernel {
    pub(in super::super) fn attach_drop(&mut self, types: &aya::Btf) {
        self.attach_traced(&DROP, Some(types));
    }
}
