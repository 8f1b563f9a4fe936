//! Sockets that change their state or report an error without a packet.

use super::super::kernel::Kernel;
use super::{Alternative, HookSpec, Method};

pub(super) const STATE: HookSpec = HookSpec {
    alternatives: &[
        Alternative {
            program: "socket_state_btf",
            name: "socket-state",
            method: Method::BtfTracepoint,
            target: "inet_sock_set_state",
        },
        Alternative {
            program: "socket_state",
            name: "socket-state",
            method: Method::RawTracepoint,
            target: "inet_sock_set_state",
        },
    ],
    hides: "clients that abandon a connection without sending a packet",
};

pub(super) const ERROR: HookSpec = HookSpec {
    alternatives: &[Alternative {
        program: "socket_error",
        name: "socket-error",
        method: Method::RawTracepoint,
        target: "inet_sk_error_report",
    }],
    hides: "socket errors that no packet reports",
};

impl Kernel {
    pub(in super::super) fn attach_socket(&mut self, types: &aya::Btf) {
        self.attach_traced(&STATE, Some(types));
        self.attach_traced(&ERROR, Some(types));
    }
}
