//! A scripted client: sends exactly the bytes of a real client, with its timing and segments.
//!
//! Scripts are data, so that a client can run as a separate process (`imds-observer-lab client SCRIPT.json`). The output contains the
//! result of each step, but never a token or a body.

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
    /// Number of times that the steps are run.
    #[serde(default = "one")]
    pub rounds: u32,
    pub steps: Vec<Step>,
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Step {
    pub target: Option<SocketAddr>,
    /// Run only in this round, counted from 0. For example, a token is fetched once and then reused.
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
    /// Sent together with the next step's request, before any response is read.
    pub pipelined: bool,
    /// Limit on the number of attempts: the step is repeated after an attempt without a response.
    pub tries: u32,
    pub connect_timeout_ms: u64,
    /// Timeout from the request to the end of the response.
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
    /// Sent if the client holds a token. Otherwise, the request is IMDSv1.
    IfHeld,
    /// The step is skipped if the client holds no token.
    Required,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Connection {
    New,
    /// The connection of the previous step, if it is still open.
    Keep,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Segments {
    Whole,
    Bytes,
    /// Lengths of the first segments. The remaining bytes are one segment.
    Sizes(Vec<usize>),
}

/// Result of a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    pub round: u32,
    pub step: usize,
    pub method: String,
    pub path: String,
    pub target: SocketAddr,
    pub local: Option<SocketAddr>,
    /// Whether the request had a token. The token itself is never printed.
    pub had_token: bool,
    pub status: Option<u16>,
    pub error: Option<Failure>,
    /// Time at which sending the request began, in nanoseconds since the Unix epoch; `null` if it was never sent.
    pub sent_unix_ns: Option<u64>,
    /// Time from there to the first byte of the response.
    pub latency_ns: Option<u64>,
    /// Duration of the whole step, including connecting.
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
