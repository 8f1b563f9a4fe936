//! What a path is: the same as another, secret, or one whose 404 means nothing. Facts: imds-facts, the provider's user guide.

use std::borrow::Cow;

/// How much harm the answer can do in the wrong hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sensitivity {
    Low,
    Medium,
    /// Keys for logins, proof of identity, user data that may hold secrets.
    High,
    /// Credentials.
    Secret,
}

/// The path without query, doubled slashes and trailing slash: `//latest/meta-data/?x` is `/latest/meta-data`. For grouping; records keep the raw path.
pub fn normalise(path: &str) -> Cow<'_, str> {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let clean = !path.contains("//") && path.starts_with('/') && (path.len() == 1 || !path.ends_with('/'));
    if clean {
        return Cow::Borrowed(path);
    }
    let mut joined = String::with_capacity(path.len() + 1);
    for part in path.split('/').filter(|part| !part.is_empty()) {
        joined.push('/');
        joined.push_str(part);
    }
    if joined.is_empty() {
        joined.push('/');
    }
    Cow::Owned(joined)
}

/// `latest`, `2021-03-23`, `1.0`: what stands at the root of the EC2 tree.
fn is_version(part: &str) -> bool {
    let dated = part.len() == 10
        && part.bytes().enumerate().all(|(at, byte)| {
            if matches!(at, 4 | 7) {
                byte == b'-'
            } else {
                byte.is_ascii_digit()
            }
        });
    part == "latest" || part == "1.0" || dated
}

/// A normalised path in the EC2 tree, or its root.
pub(super) fn is_aws_path(path: &str) -> bool {
    path == "/" || path.split('/').nth(1).is_some_and(is_version)
}

/// The part behind the version: `meta-data/iam/info`.
fn behind_version(path: &str) -> Option<&str> {
    let (version, rest) = path.strip_prefix('/')?.split_once('/')?;
    is_version(version).then_some(rest)
}

/// The path that gives tokens; dated versions give none, but clients try.
pub fn is_token_path(path: &str) -> bool {
    behind_version(&normalise(path)) == Some("api/token")
}

/// The role whose credentials are asked for.
pub fn role_of(path: &str) -> Option<String> {
    let path = normalise(path);
    let role = behind_version(&path)?.strip_prefix("meta-data/iam/security-credentials/")?;
    Some(role.to_owned())
}

fn starts(rest: &str, prefix: &str) -> bool {
    rest.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// How secret the answer to a path is.
pub fn sensitivity(path: &str) -> Sensitivity {
    let path = normalise(path);
    let Some(rest) = behind_version(&path) else {
        return Sensitivity::Low;
    };
    if starts(rest, "api/token") {
        return Sensitivity::Secret;
    }
    if starts(rest, "user-data") || starts(rest, "dynamic/instance-identity") {
        return Sensitivity::High;
    }
    let Some(item) = rest.strip_prefix("meta-data/") else {
        return Sensitivity::Low;
    };
    // The bare list names the role only.
    if item == "iam/security-credentials" {
        return Sensitivity::Medium;
    }
    if starts(item, "iam/security-credentials") || starts(item, "identity-credentials/ec2") {
        return Sensitivity::Secret;
    }
    if starts(item, "managed-ssh-keys") {
        return Sensitivity::High;
    }
    if starts(item, "iam") || starts(item, "tags/instance") || starts(item, "identity-credentials") {
        return Sensitivity::Medium;
    }
    Sensitivity::Low
}

const USUAL: [&str; 7] = [
    "spot",
    "events/recommendations/rebalance",
    "events/maintenance",
    "outpost-arn",
    "public-ipv4",
    "public-hostname",
    "tags/instance",
];

/// Whether 404 is this path's usual answer: nothing planned, nothing there.
pub fn is_natural_404(path: &str) -> bool {
    let path = normalise(path);
    let Some(item) = behind_version(&path).and_then(|rest| rest.strip_prefix("meta-data/")) else {
        return false;
    };
    USUAL.iter().any(|usual| starts(item, usual))
        || (item.starts_with("network/interfaces/macs/")
            && (item.ends_with("/network-card") || item.contains("ipv6") || item.contains("public-")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_forms() {
        for (raw, normal) in [
            ("/latest/meta-data/", "/latest/meta-data"),
            ("//latest//meta-data/?a=//b", "/latest/meta-data"),
            ("/latest", "/latest"),
            ("/", "/"),
            ("", "/"),
            ("///", "/"),
            ("*", "/*"),
        ] {
            assert_eq!(normalise(raw), normal);
        }
    }

    #[test]
    fn tables() {
        assert!(is_token_path("//latest/api/token/"));
        assert!(!is_token_path("/latest/api/tokens"));
        assert!(!is_token_path("/api/token"));
        let below = |item: &str| format!("/2021-03-23/meta-data/{item}");
        assert_eq!(
            sensitivity(&below("iam/security-credentials/role")),
            Sensitivity::Secret
        );
        assert_eq!(sensitivity(&below("iam/security-credentials/")), Sensitivity::Medium);
        assert_eq!(sensitivity("/latest/user-data"), Sensitivity::High);
        assert_eq!(sensitivity(&below("instance-id")), Sensitivity::Low);
        assert_eq!(sensitivity("/x"), Sensitivity::Low);
        assert!(is_natural_404(&below("spot/instance-action")));
        assert!(is_natural_404(&below("network/interfaces/macs/0a:1b/network-card")));
        assert!(!is_natural_404(&below("autoscaling/target-lifecycle-state")));
        assert!(!is_natural_404(&below("spotted")));
        assert_eq!(role_of(&below("iam/security-credentials/web")).as_deref(), Some("web"));
        assert_eq!(role_of(&below("iam/security-credentials/")), None);
    }
}
