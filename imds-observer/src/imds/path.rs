//! Classifies paths: equal to another one, a role's credentials, or one whose 404 is normal.
//!
//! Paths: <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-categories.html>.

use std::borrow::Cow;

/// The path without query, doubled slashes, trailing slash and needless percent-encoding: `//%6catest/meta-data/?x` is `/latest/meta-data`.
/// For grouping; records keep the raw path.
pub fn normalise(path: &str) -> Cow<'_, str> {
    match decoded(path) {
        Some(plain) => Cow::Owned(normal(&plain).into_owned()),
        None => normal(path),
    }
}

/// The path with its letters, digits and the marks `-._~/` as they are: encoding them makes no other path. `None`: none is encoded.
fn decoded(path: &str) -> Option<String> {
    memchr::memchr(b'%', path.as_bytes())?;
    let mut plain = String::with_capacity(path.len());
    let mut rest = path;
    while let Some((before, behind)) = rest.split_once('%') {
        plain.push_str(before);
        let code = behind
            .get(..2)
            .filter(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
        match code.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'/') => {
                plain.push(byte as char);
                rest = &behind[2..];
            }
            _ => {
                plain.push('%');
                rest = behind;
            }
        }
    }
    plain.push_str(rest);
    Some(plain)
}

fn normal(path: &str) -> Cow<'_, str> {
    let end = memchr::memchr2(b'?', b'#', path.as_bytes());
    let path = end.map_or(path, |end| &path[..end]);
    let doubled = || memchr::memchr_iter(b'/', path.as_bytes()).any(|at| path[at + 1..].starts_with('/'));
    let clean = path.starts_with('/') && (path.len() == 1 || !path.ends_with('/')) && !doubled();
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

/// `latest`, `2021-03-23`, `1.0`: entries at the root of the EC2 tree.
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

/// A normalized path in the EC2 tree, or its root.
pub fn is_aws_path(path: &str) -> bool {
    path == "/" || path.split('/').nth(1).is_some_and(is_version)
}

/// The part of a normalized path behind the version: `/latest/meta-data/x` and `/2021-03-23/meta-data/x` are one thing,
/// `meta-data/x`. A path without a version stays whole.
pub fn below_version(normal: &str) -> &str {
    let rest = normal.strip_prefix('/').unwrap_or(normal);
    match rest.split_once('/') {
        Some((version, rest)) if is_version(version) => rest,
        _ => rest,
    }
}

/// The path that gives tokens; dated versions give none, but clients try.
pub fn is_token_path(path: &str) -> bool {
    let path = normalise(path);
    is_aws_path(&path) && below_version(&path) == "api/token"
}

/// A token path below another version than `latest`: IMDS refuses it with 403 [awsdocs/amazon-ec2-user-guide#182].
pub fn is_dated_token_path(path: &str) -> bool {
    is_token_path(path) && !normalise(path).starts_with("/latest/")
}

/// The list of the instance's roles: it has one, or none.
pub fn is_role_listing(below: &str) -> bool {
    below == "meta-data/iam/security-credentials"
}

/// The role whose credentials a path gives, from its part below the version.
pub fn role_of(below: &str) -> Option<&str> {
    let role = below
        .strip_prefix("meta-data/iam/security-credentials/")
        .or_else(|| below.strip_prefix("meta-data/identity-credentials/ec2/security-credentials/"))?;
    (!role.is_empty()).then_some(role)
}

/// Paths whose 404 means "nothing is due" or "no such thing here". Not `tags/instance`: a client that requests tags that are not enabled never gets them.
const NATURAL_404: &[&str] = &[
    "spot",
    "events/recommendations",
    "network/interfaces/macs",
    "managed-ssh-keys",
    "outpost-arn",
    "public-ipv4",
    "public-hostname",
    "elastic-gpus",
    "elastic-inference",
    "ancestor-ami-ids",
    "kernel-id",
    "ramdisk-id",
    "product-codes",
    "public-keys",
    "placement/group-name",
    "placement/host-id",
    "placement/partition-number",
];

/// Paths of an interface that always exist while the interface does [D]. Addresses of one family, prefixes and associations may be absent.
const INTERFACE: &[&str] = &[
    "device-number",
    "interface-id",
    "local-hostname",
    "local-ipv4s",
    "mac",
    "owner-id",
    "security-group-ids",
    "security-groups",
    "subnet-id",
    "subnet-ipv4-cidr-block",
    "vpc-id",
    "vpc-ipv4-cidr-block",
    "vpc-ipv4-cidr-blocks",
];

/// Whether 404 is an answer like any other for this path, given from below its version.
pub fn is_natural_404(below: &str) -> bool {
    let Some(item) = below.strip_prefix("meta-data/") else {
        return false;
    };
    NATURAL_404.iter().any(|natural| {
        item.strip_prefix(natural)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

/// Whether a client may ask for this path again and again and be answered 404 each time, and nothing is wrong. Stricter than
/// [`is_natural_404`]: an interface comes and goes, but who keeps asking for the subnet of one that isn't there fails.
pub fn may_be_absent(below: &str) -> bool {
    let interface = below
        .strip_prefix("meta-data/network/interfaces/macs/")
        .filter(|interface| !interface.is_empty());
    match interface {
        Some(interface) => interface
            .split_once('/')
            .is_some_and(|(_, item)| !INTERFACE.contains(&item)),
        None => is_natural_404(below),
    }
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
            ("/%6catest/meta%2Ddata", "/latest/meta-data"),
            ("/latest%2Fapi/token", "/latest/api/token"),
            ("/a%20b%", "/a%20b%"),
        ] {
            assert_eq!(normalise(raw), normal);
        }
    }

    #[test]
    fn versions_are_one_thing() {
        for path in [
            "/latest/meta-data/mac",
            "/2021-03-23/meta-data/mac",
            "/1.0/meta-data/mac",
        ] {
            assert_eq!(below_version(path), "meta-data/mac");
        }
        assert_eq!(below_version("/computeMetadata/v1"), "computeMetadata/v1");
        assert_eq!(below_version("/latest"), "latest");
        assert_eq!(below_version("/"), "");
    }

    #[test]
    fn tables() {
        assert!(is_token_path("//latest/api/token/"));
        assert!(!is_token_path("/latest/api/tokens"));
        assert!(!is_token_path("/api/token"));
        for natural in [
            "spot/instance-action",
            "network/interfaces/macs/0a:1b/network-card",
            "outpost-arn",
        ] {
            assert!(is_natural_404(&format!("meta-data/{natural}")), "{natural}");
        }
        for unusual in [
            "autoscaling/target-lifecycle-state",
            "spotted",
            "tags/instance/Name",
            "iam/info",
        ] {
            assert!(!is_natural_404(&format!("meta-data/{unusual}")), "{unusual}");
        }
        let mac = "meta-data/network/interfaces/macs/0a:1b";
        for absent in ["ipv6s", "network-card", "ipv4-prefix", "ipv4-associations/1.2.3.4"] {
            assert!(may_be_absent(&format!("{mac}/{absent}")), "{absent}");
        }
        for needed in [
            mac.to_owned(),
            format!("{mac}/local-ipv4s"),
            "meta-data/placement/region".to_owned(),
        ] {
            assert!(!may_be_absent(&needed), "{needed}");
        }
        assert!(may_be_absent("meta-data/spot/instance-action"));
        assert!(is_dated_token_path("/2021-01-03/api/token"));
        assert!(!is_dated_token_path("//latest/api/token/"));
        assert_eq!(role_of("meta-data/iam/security-credentials/web"), Some("web"));
        assert_eq!(role_of("meta-data/iam/security-credentials/"), None);
        assert_eq!(role_of("meta-data/iam/security-credentials"), None);
    }
}
