//! Results of pairing requests and responses, before the process is known.

use crate::event::{FlowId, Sender};
use crate::record::{Body, Caller, Host, Record, Time};

/// A record without its caller: an exchange, a connect or a drop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fact<B = Body> {
    pub flow: FlowId,
    pub sender: Option<Sender>,
    /// Where a client without a socket of this host was seen; 0: not known, or it has one.
    pub ifindex: u32,
    pub time: Time,
    pub body: B,
}

impl<B> std::ops::Deref for Fact<B> {
    type Target = B;

    fn deref(&self) -> &B {
        &self.body
    }
}

impl Fact {
    /// The record, once the caller is known.
    pub fn attribute(mut self, caller: Caller, host: &Host) -> Record {
        if let Some((process, container, _)) = self.body.traffic_mut() {
            (*process, *container) = (caller.process, caller.container);
        }
        Record {
            time: self.time,
            host: host.clone(),
            body: self.body,
        }
    }
}
