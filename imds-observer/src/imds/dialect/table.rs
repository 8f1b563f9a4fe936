//! The table that describes a metadata protocol, and the matching of paths with its patterns.

use crate::record::Dialect;

/// A metadata protocol, as detectors need to know it.
///
/// Patterns are normalized paths. `*` is any one segment, `**` at the end is any number of them, also none.
#[derive(Debug)]
pub struct Protocol {
    pub dialect: Dialect,
    /// The service as texts name it.
    pub service: &'static str,
    /// Serves EC2's tree as well, without EC2's tokens.
    pub ec2_tree: bool,
    /// Prefixes of the `Server` header that only this service has.
    pub servers: &'static [&'static str],
    /// Paths whose responses hold credentials.
    pub credentials: &'static [&'static str],
    pub token: Option<&'static TokenProtocol>,
    /// Paths whose 404 is an answer like any other.
    pub absent: &'static [&'static str],
    /// Keys of queries whose response waits for a change.
    pub hanging: &'static [&'static str],
    /// Meanings of refusals, the most specific first.
    pub refusals: &'static [Refusal],
    /// Remedy for 429 and 5xx.
    pub overload: &'static str,
    /// Where the vendor describes the service.
    pub documentation: &'static str,
}

/// A session token that a client requests with PUT.
#[derive(Debug)]
pub struct TokenProtocol {
    pub paths: &'static [&'static str],
    /// Header with the token, lower case.
    pub header: &'static str,
    /// Header with the lifetime that is requested, lower case. `None`: it is in the body.
    pub lifetime: Option<&'static str>,
    /// Description of the request that the client must send.
    pub request: &'static str,
    /// How to raise the hop limit of token responses. `None`: it has none, or none is documented.
    pub hop_limit: Option<&'static str>,
}

/// Meaning of a status on some paths.
#[derive(Debug)]
pub struct Refusal {
    pub statuses: &'static [u16],
    /// Where it means that; empty: on all paths.
    pub paths: &'static [&'static str],
    /// Only for requests that were forwarded.
    pub forwarded: bool,
    /// Its name in evidence.
    pub cause: &'static str,
    /// The end of a sentence about the client's requests.
    pub means: &'static str,
    pub remedy: &'static str,
    pub commands: &'static [&'static str],
}

impl Refusal {
    /// With `..Refusal::NONE`, a row states only what it needs.
    pub(super) const NONE: Self = Self {
        statuses: &[],
        paths: &[],
        forwarded: false,
        cause: "",
        means: "",
        remedy: "",
        commands: &[],
    };
}

impl Protocol {
    /// A protocol of which nothing is known.
    pub(super) const NONE: Self = Self {
        dialect: Dialect::Unknown,
        service: "the metadata service",
        ec2_tree: false,
        servers: &[],
        credentials: &[],
        token: None,
        absent: &[],
        hanging: &[],
        refusals: &[],
        overload: "Reduce the request rate, and retry with exponential backoff and jitter.",
        documentation: "",
    };

    /// Whether a normalized path leads to credentials.
    pub fn is_credentials(&self, path: &str) -> bool {
        any(self.credentials, path)
    }

    /// Whether 404 is an answer like any other for a normalized path.
    pub fn may_be_absent(&self, path: &str) -> bool {
        any(self.absent, path)
    }

    /// Whether the response to this path and query waits until something changes.
    pub fn hangs(&self, path_and_query: &str) -> bool {
        let Some((_, query)) = path_and_query.split_once('?') else {
            return false;
        };
        !self.hanging.is_empty()
            && query.split('&').any(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                self.hanging.contains(&key) && !value.eq_ignore_ascii_case("false")
            })
    }

    /// Meaning of a refusal of a normalized path.
    pub fn refusal(&self, status: u16, path: &str, forwarded: bool) -> Option<&'static Refusal> {
        self.refusals.iter().find(|refusal| {
            refusal.statuses.contains(&status)
                && (refusal.paths.is_empty() || any(refusal.paths, path))
                && (!refusal.forwarded || forwarded)
        })
    }
}

fn any(patterns: &[&str], path: &str) -> bool {
    patterns.iter().any(|pattern| matches(pattern, path))
}

/// Whether a normalized path has this form.
pub(super) fn matches(pattern: &str, path: &str) -> bool {
    let mut segments = path.split('/');
    for wanted in pattern.split('/') {
        match (wanted, segments.next()) {
            ("**", _) => return true,
            ("*", Some(segment)) if !segment.is_empty() => {}
            (wanted, Some(segment)) if wanted == segment => {}
            _ => return false,
        }
    }
    segments.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, path, matching) in [
            ("/a/b", "/a/b", true),
            ("/a/b", "/a/b/c", false),
            ("/a/b", "/a", false),
            ("/a/*/c", "/a/b/c", true),
            ("/a/*/c", "/a/c", false),
            ("/a/**", "/a/b/c", true),
            ("/a/**", "/a", true),
            ("/a/**", "/ab", false),
            ("/**", "/", true),
        ] {
            assert_eq!(matches(pattern, path), matching, "{pattern} {path}");
        }
    }
}
