//! A scripted client: sends exactly what a real one sends, with its timing and segments.
//!
//! Scripts are data, so that a client can be a process of its own (`imds-observer-lab client SCRIPT.json`).
//! Its output has the result of each step, and never a token or a body.

mod presets;
mod run;

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

pub use presets::*;
pub use run::run;

pub const TOKEN_PATH: &str = "/latest/api/token";
pub const CREDENTIALS_PATH: &str = "/latest/meta-data/iam/security-credentials/";

/// The actions of a client from start to end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// Default address to connect to.
    #[serde(default = "imds_v4")]
    pub target: SocketAddr,
    /// Name of the process (15 bytes are used). Scripts replace programs that are not available.
    #[serde(default)]
    pub comm: Option<String>,
    #[serde(default)]
    pub user_agent: Option<String>,
    /// How often the steps are gone through.
    #[serde(default = "one")]
    pub rounds: u32,
    pub steps: Vec<Step>,
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Step {
    pub target: Option<SocketAddr>,
    /// Only in this round, counted from 0: a token is fetched once and used again.
    pub only_in_round: Option<u32>,
    pub sleep_before_ms: u64,
    pub method: String,
    /// `{role}` is replaced by the last listed role.
    pub path: String,
    /// Sent unchanged, after `Host` and `User-Agent`.
    pub headers: Vec<(String, String)>,
    /// Adds the header of the token PUT.
    pub token_ttl_s: Option<u32>,
    pub token: TokenUse,
    pub http_1_0: bool,
    pub body: String,
    pub connection: Connection,
    pub segments: Segments,
    /// Pause between segments. Without one the kernel may still join them.
    pub segment_gap_ms: u64,
    /// Sent together with the next step's request, before an answer is read.
    pub pipelined: bool,
    /// At least this many unanswered attempts before it fails.
    pub tries: u32,
    pub connect_timeout_ms: u64,
    /// From the request to the end of the answer.
    pub timeout_ms: u64,
}

impl Default for Step {
    fn default() -> Self {
        Self {
            target: None,
            only_in_round: None,
            sleep_before_ms: 0,
            method: "GET".to_owned(),
            path: "/".to_owned(),
            headers: Vec::new(),
            token_ttl_s: None,
            token: TokenUse::None,
            http_1_0: false,
            body: String::new(),
            connection: Connection::New,
            segments: Segments::Whole,
            segment_gap_ms: 0,
            pipelined: false,
            tries: 1,
            connect_timeout_ms: 1000,
            timeout_ms: 1000,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenUse {
    None,
    /// Sent when there is one; without one it is a v1 request.
    IfHeld,
    /// The step is left out when there is none.
    Required,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Connection {
    New,
    /// The one of the step before, if it is still open.
    Keep,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Segments {
    Whole,
    Bytes,
    /// Lengths of the first segments; the rest goes in one.
    Sizes(Vec<usize>),
}

/// How a step went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    pub round: u32,
    pub step: usize,
    pub method: String,
    pub path: String,
    pub target: SocketAddr,
    pub local: Option<SocketAddr>,
    /// Whether a token was sent along; never which.
    pub had_token: bool,
    pub status: Option<u16>,
    pub error: Option<Failure>,
    /// When the request began to be sent, in nanoseconds since the Unix epoch; `null` if it never was.
    pub sent_unix_ns: Option<u64>,
    /// From then to the first byte of the answer.
    pub latency_ns: Option<u64>,
    /// All of the step, connecting included.
    pub elapsed_ns: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub phase: Phase,
    pub what: String,
    pub errno: Option<i32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    Connect,
    Send,
    Receive,
}

fn one() -> u32 {
    1
}

fn imds_v4() -> SocketAddr {
    (crate::topology::IMDS_V4, crate::topology::IMDS_PORT).into()
}
