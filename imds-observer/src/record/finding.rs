//! A detector's verdict.

use std::fmt;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Container, Process, Time};

macro_rules! codes {
    ($($variant:ident => $text:literal,)*) => {
        /// Finding codes. Their names are a stable interface.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        pub enum Code {
            $(#[serde(rename = $text)] $variant,)*
        }

        impl Code {
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

codes! {
    TokenResponseLost => "token-response-lost",
    TightPolling => "tight-polling",
    Imdsv1Request => "imdsv1-request",
    TokenNotReused => "token-not-reused",
    CredentialChurn => "credential-churn",
    SlowResponses => "slow-responses",
    PacketQuota => "packet-quota",
    TokenRejected => "token-rejected",
    BadTokenRequest => "bad-token-request",
    AccessForbidden => "access-forbidden",
    ServerErrors => "server-errors",
    PathDisappeared => "path-disappeared",
    NotFound => "not-found",
    BlockedByFirewall => "blocked-by-firewall",
    NoRoute => "no-route",
    NeighborUnresolved => "neighbor-unresolved",
    ConnectionRefused => "connection-refused",
    DeniedByPolicy => "denied-by-policy",
    NoAnswer => "no-answer",
    ProxiedRequest => "proxied-request",
    Ipv6EndpointSilent => "ipv6-endpoint-silent",
    TokenRequestRefused => "token-request-refused",
    CredentialsUnusable => "credentials-unusable",
    StaleRoleName => "stale-role-name",
    NoInstanceRole => "no-instance-role",
    UnexpectedRedirect => "unexpected-redirect",
    ConnectionAborted => "connection-aborted",
    ResponseDropped => "response-dropped",
    RedirectedLocally => "redirected-locally",
    ConnectDelayed => "connect-delayed",
    NodeRoleUsed => "node-role-used",
    ContainerCredentialsFailed => "container-credentials-failed",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How bad. Ordered: `Info < Warning < High < Critical`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Info,
    Warning,
    High,
    Critical,
}

impl Severity {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

/// State of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FindingState {
    Open,
    Update,
    Resolved,
}

/// Whom or what a finding is about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Subject {
    /// Stable within one run: the same for all states of one finding.
    pub key: String,
    /// For people: `pod payments/api-7c9d`, `curl (parent bash 4100)`, `host`, `interface eth0`.
    pub name: String,
    /// Newest process that showed it; null for the host or an interface.
    pub process: Option<Arc<Process>>,
    pub container: Option<Arc<Container>>,
    /// Workload, as reports group by it.
    #[serde(default)]
    pub workload: Option<String>,
}

/// Remedy of a finding.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Remedy {
    pub text: String,
    pub commands: Vec<String>,
}

/// A detector's verdict opens, changes or ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    pub code: Code,
    pub severity: Severity,
    pub state: FindingState,
    pub subject: Subject,
    pub first_seen: Time,
    pub last_seen: Time,
    /// Occurrences so far.
    pub count: u64,
    /// One sentence.
    pub summary: String,
    /// Evidence of the verdict. The keys depend on the code; the detector's page lists them.
    pub evidence: Map<String, Value>,
    pub remedy: Remedy,
}
