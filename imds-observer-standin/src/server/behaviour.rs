//! How the stand-in behaves: everything that can be switched while it runs.

use serde::{Deserialize, Serialize};

use super::paths::ROLE;

/// The whole switchboard. The default is a healthy instance as EC2 starts it: tokens optional, hop limit 1,
/// one connection a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Behaviour {
    /// `false` closes the listeners, so that the kernel answers a SYN with a reset: the server is down.
    pub listening: bool,
    /// Which service it is.
    pub serves: Serves,
    /// Pod Identity: the pod's service account has an association.
    pub association: bool,
    /// Other clouds: the machine has an identity (a service account, a managed identity, a trusted profile).
    pub identity: bool,
    /// Oracle: version 1 is enabled.
    pub legacy: bool,
    /// `required`: a request without a token is answered 401.
    pub tokens: Tokens,
    /// `disabled`: everything is answered 403, as with `--http-endpoint disabled`.
    pub endpoint: Endpoint,
    /// IP TTL (IPv6 hop limit) of a successful answer to the token PUT: 1..=64 on EC2.
    pub hop_limit: u8,
    /// IP TTL (IPv6 hop limit) of everything else, handshakes included.
    pub other_ttl: u8,
    /// EC2 closes after each answer; stand-ins and proxies often don't.
    pub keep_alive: bool,
    /// Wait this long between reading a request and answering it.
    pub delay_ms: u64,
    /// Answer a share of the requests with an error instead.
    pub error: Option<ErrorRate>,
    /// Paths (each with all below it, written after the version: `meta-data/spot`) answered 404 from now on.
    pub missing: Vec<String>,
    /// Every token counts as expired, also one issued a moment ago.
    pub reject_tokens: bool,
    /// The token PUT is answered 403 with an empty body, as kiam-like proxies do.
    pub forbid_put: bool,
    /// The token PUT is answered with this status and an empty body, as by what knows no IMDSv2.
    pub put_status: Option<u16>,
    /// Every GET and HEAD is answered with this status.
    pub get_status: Option<u16>,
    /// Other requests are answered with this status and a `Location`, as by a gateway.
    pub redirect: Option<u16>,
    /// Name of the instance's role.
    pub role: String,
    /// The role can't be assumed: its credentials are answered 200 with a short error.
    pub role_unassumable: bool,
    /// How a request that was read is answered.
    pub answer: AnswerMode,
    /// Read requests that come over IPv6 and never answer them.
    pub silent_v6: bool,
    /// Restricts `delay_ms`, `error` and `answer` to these paths, written as in `missing`; empty means all.
    pub only: Vec<String>,
    /// `tags/instance/*` exists.
    pub instance_tags: bool,
    /// The `Server` header; a proxy would put its own here.
    pub server: String,
    /// A `Via` header, as a proxy would add.
    pub via: Option<String>,
    /// How long made-up role credentials are valid from the moment they are read.
    pub credential_lifetime_s: u32,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            listening: true,
            serves: Serves::Imds,
            association: true,
            identity: true,
            legacy: false,
            tokens: Tokens::Optional,
            endpoint: Endpoint::Enabled,
            hop_limit: 1,
            other_ttl: 255,
            keep_alive: false,
            delay_ms: 0,
            error: None,
            missing: Vec::new(),
            reject_tokens: false,
            forbid_put: false,
            put_status: None,
            get_status: None,
            redirect: None,
            role: ROLE.to_owned(),
            role_unassumable: false,
            answer: AnswerMode::Normal,
            silent_v6: false,
            only: Vec::new(),
            instance_tags: true,
            server: "EC2ws".to_owned(),
            via: None,
            credential_lifetime_s: 6 * 3600,
        }
    }
}

/// A service that a client asks for credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Serves {
    Imds,
    /// The EKS Pod Identity Agent.
    PodIdentity,
    /// The ECS agent.
    Ecs,
    Gcp,
    Azure,
    Ibm,
    Oracle,
    OpenStack,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tokens {
    Optional,
    Required,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Endpoint {
    Enabled,
    Disabled,
}

/// A share of requests that fail. Spread evenly, not at random, so that a test can count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorRate {
    /// 429 or 503 on EC2; any status is taken.
    pub status: u16,
    /// Number of requests out of a thousand that fail.
    pub per_mille: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnswerMode {
    Normal,
    /// Keep the connection and never answer.
    Silent,
    /// Answer with a TCP reset.
    Reset,
    /// Close without a byte.
    Close,
    /// Answer with bytes that are not HTTP, then close.
    Garbage,
}

impl Behaviour {
    /// Overlays the named members of a JSON object; the others keep their value.
    pub fn patched(&self, patch: &serde_json::Value) -> Result<Self, serde_json::Error> {
        let mut whole = serde_json::to_value(self)?;
        match (whole.as_object_mut(), patch.as_object()) {
            (Some(whole), Some(patch)) => {
                for (name, value) in patch {
                    whole.insert(name.clone(), value.clone());
                }
            }
            _ => return Err(serde::de::Error::custom("a behavior patch is a JSON object")),
        }
        serde_json::from_value(whole)
    }

    /// Whether `delay_ms`, `error` and `answer` concern this path (without its version).
    pub(super) fn concerns(&self, path: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|prefix| is_below(path, prefix))
    }

    pub(super) fn is_missing(&self, path: &str) -> bool {
        self.missing.iter().any(|prefix| is_below(path, prefix))
    }
}

fn is_below(path: &str, prefix: &str) -> bool {
    let prefix = prefix.trim_matches('/');
    path.trim_matches('/')
        .strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_changes_what_it_names_and_nothing_else() {
        let before = Behaviour {
            hop_limit: 2,
            ..Behaviour::default()
        };
        let after = before
            .patched(&serde_json::json!({"tokens": "required", "delay_ms": 5}))
            .unwrap();
        assert_eq!(
            after,
            Behaviour {
                tokens: Tokens::Required,
                delay_ms: 5,
                ..before.clone()
            }
        );
        assert!(
            before.patched(&serde_json::json!({"tokns": "required"})).is_err(),
            "a misspelt switch is refused"
        );
        assert!(before.patched(&serde_json::json!([])).is_err());
    }

    #[test]
    fn a_prefix_ends_at_a_path_segment() {
        assert!(is_below("meta-data/spot/instance-action", "meta-data/spot"));
        assert!(is_below("meta-data/spot/", "/meta-data/spot"));
        assert!(!is_below("meta-data/spotless", "meta-data/spot"));
    }
}
