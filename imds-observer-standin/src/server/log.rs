//! Log of the requests that the server received: the reference with which an observer's records are compared.

use std::{collections::VecDeque, net::SocketAddr};

use serde::{Deserialize, Serialize};

/// One request as it arrived here, and what became of it. Never a token, never a body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// Nanoseconds since the Unix epoch at which the head was complete.
    pub time_unix_ns: u64,
    pub peer: SocketAddr,
    pub local: SocketAddr,
    /// Number of this request on its connection, from 1.
    pub exchange: u32,
    pub method: String,
    pub path: String,
    pub user_agent: Option<String>,
    pub had_token: bool,
    pub token_ttl_s: Option<u32>,
    pub forwarded: bool,
    /// `null`: never answered.
    pub status: Option<u16>,
    /// IP TTL or hop limit the answer left with.
    pub response_ttl: Option<u8>,
}

/// The requests seen since the last look, bounded; the oldest go first and are counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestLog {
    pub requests: VecDeque<Served>,
    /// Every request since the start, also those no longer in `requests`.
    pub total: u64,
    pub evicted: u64,
}

impl RequestLog {
    pub(super) fn push(&mut self, served: Served, capacity: usize) {
        self.total += 1;
        if self.requests.len() >= capacity {
            self.requests.pop_front();
            self.evicted += 1;
        }
        self.requests.push_back(served);
    }

    /// Hands out what is held and forgets it; the counts go on.
    pub(super) fn take(&mut self) -> Self {
        Self {
            requests: std::mem::take(&mut self.requests),
            ..*self
        }
    }
}
