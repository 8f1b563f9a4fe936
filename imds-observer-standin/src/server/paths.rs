//! The documents below a version: which exist, what they hold, and what a directory lists.
//!
//! Every value is made up; nothing here works anywhere.

use jiff::{Timestamp, ToSpan};

use super::behaviour::Behaviour;

pub const ROLE: &str = "lab-role";
pub const INSTANCE_ID: &str = "i-0123456789abcdef0";
const MAC: &str = "0a:00:00:00:00:05";

/// The versions `/` lists. Any other well-formed date is served too: clients pin dates of their own.
pub(super) const VERSIONS: &[&str] = &["1.0", "2009-04-04", "2016-09-02", "2021-03-23", "2024-04-11", "latest"];

/// Leaves with a constant value, written after the version.
const LEAVES: &[(&str, &str)] = &[
    ("meta-data/ami-id", "ami-0123456789abcdef0"),
    ("meta-data/ami-launch-index", "0"),
    ("meta-data/ami-manifest-path", "(unknown)"),
    ("meta-data/autoscaling/target-lifecycle-state", "InService"),
    ("meta-data/block-device-mapping/ami", "/dev/xvda"),
    ("meta-data/block-device-mapping/root", "/dev/xvda"),
    ("meta-data/events/maintenance/history", "[]"),
    ("meta-data/events/maintenance/scheduled", "[]"),
    ("meta-data/hostname", "ip-10-77-0-5.ec2.internal"),
    ("meta-data/instance-action", "none"),
    ("meta-data/instance-id", INSTANCE_ID),
    ("meta-data/instance-life-cycle", "on-demand"),
    ("meta-data/instance-type", "m5.large"),
    ("meta-data/local-hostname", "ip-10-77-0-5.ec2.internal"),
    ("meta-data/local-ipv4", "10.77.0.5"),
    ("meta-data/mac", MAC),
    ("meta-data/managed-ssh-keys/signer-cert", "made-up signer certificate"),
    (
        "meta-data/managed-ssh-keys/active-keys/lab-user",
        "ssh-ed25519 AAAAmadeup lab-user",
    ),
    ("meta-data/network/interfaces/macs/0a:00:00:00:00:05/device-number", "0"),
    (
        "meta-data/network/interfaces/macs/0a:00:00:00:00:05/interface-id",
        "eni-0123456789abcdef0",
    ),
    ("meta-data/network/interfaces/macs/0a:00:00:00:00:05/ipv6s", "fd77::5"),
    (
        "meta-data/network/interfaces/macs/0a:00:00:00:00:05/local-hostname",
        "ip-10-77-0-5.ec2.internal",
    ),
    (
        "meta-data/network/interfaces/macs/0a:00:00:00:00:05/local-ipv4s",
        "10.77.0.5",
    ),
    ("meta-data/network/interfaces/macs/0a:00:00:00:00:05/mac", MAC),
    (
        "meta-data/network/interfaces/macs/0a:00:00:00:00:05/owner-id",
        "123456789012",
    ),
    (
        "meta-data/network/interfaces/macs/0a:00:00:00:00:05/security-group-ids",
        "sg-0123456789abcdef0",
    ),
    (
        "meta-data/network/interfaces/macs/0a:00:00:00:00:05/security-groups",
        "lab",
    ),
    (
        "meta-data/network/interfaces/macs/0a:00:00:00:00:05/subnet-id",
        "subnet-0123456789abcdef0",
    ),
    (
        "meta-data/network/interfaces/macs/0a:00:00:00:00:05/subnet-ipv4-cidr-block",
        "10.77.0.0/24",
    ),
    (
        "meta-data/network/interfaces/macs/0a:00:00:00:00:05/vpc-id",
        "vpc-0123456789abcdef0",
    ),
    (
        "meta-data/network/interfaces/macs/0a:00:00:00:00:05/vpc-ipv4-cidr-block",
        "10.77.0.0/16",
    ),
    (
        "meta-data/network/interfaces/macs/0a:00:00:00:00:05/vpc-ipv4-cidr-blocks",
        "10.77.0.0/16",
    ),
    ("meta-data/placement/availability-zone", "us-east-1a"),
    ("meta-data/placement/availability-zone-id", "use1-az1"),
    ("meta-data/placement/region", "us-east-1"),
    ("meta-data/profile", "default-hvm"),
    ("meta-data/public-keys/0/openssh-key", "ssh-ed25519 AAAAmadeup lab-key"),
    ("meta-data/reservation-id", "r-0123456789abcdef0"),
    ("meta-data/security-groups", "lab"),
    ("meta-data/services/domain", "amazonaws.com"),
    ("meta-data/services/partition", "aws"),
    ("meta-data/system", "nitro"),
    ("meta-data/tags/instance/Name", "lab-node"),
    ("dynamic/instance-identity/pkcs7", "made-up-pkcs7"),
    ("dynamic/instance-identity/rsa2048", "made-up-rsa2048"),
    ("dynamic/instance-identity/signature", "made-up-signature"),
];

/// Leaves whose value depends on the moment.
const COMPUTED: &[&str] = &[
    "meta-data/iam/info",
    "meta-data/identity-credentials/ec2/info",
    "meta-data/identity-credentials/ec2/security-credentials/ec2-instance",
    "dynamic/instance-identity/document",
    "user-data",
];

pub(super) struct Document {
    pub(super) body: String,
    pub(super) content_type: &'static str,
}

/// The document at a path (without its version, without leading slash), or the listing of a directory.
pub(super) fn lookup(path: &str, behaviour: &Behaviour, now: Timestamp) -> Option<Document> {
    let path = path.trim_matches('/');
    if behaviour.is_missing(path) || (!behaviour.instance_tags && path.starts_with("meta-data/tags")) {
        return None;
    }
    if let Some((_, value)) = LEAVES.iter().find(|(leaf, _)| *leaf == path) {
        return Some(text((*value).to_owned()));
    }
    if COMPUTED.contains(&path) || path == credentials_of(&behaviour.role) {
        return computed(path, behaviour, now);
    }
    listing(path, behaviour).map(text)
}

fn credentials_of(role: &str) -> String {
    format!("meta-data/iam/security-credentials/{role}")
}

fn text(body: String) -> Document {
    Document {
        body,
        content_type: "text/plain",
    }
}

fn computed(path: &str, behaviour: &Behaviour, now: Timestamp) -> Option<Document> {
    let expiry = now
        .checked_add(i64::from(behaviour.credential_lifetime_s).seconds())
        .unwrap_or(now);
    let stamp = |time: Timestamp| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let document = match path {
        "user-data" => {
            return Some(Document {
                body: "#cloud-config\n{}\n".to_owned(),
                content_type: "application/octet-stream",
            });
        }
        "meta-data/iam/info" => serde_json::json!({
            "Code": "Success",
            "LastUpdated": stamp(now),
            "InstanceProfileArn": format!("arn:aws:iam::123456789012:instance-profile/{}", behaviour.role),
            "InstanceProfileId": "AIPAMADEUPMADEUPMADE",
        }),
        "meta-data/identity-credentials/ec2/info" => serde_json::json!({
            "Code": "Success", "LastUpdated": stamp(now), "AccountId": "123456789012",
        }),
        "dynamic/instance-identity/document" => serde_json::json!({
            "accountId": "123456789012",
            "architecture": "x86_64",
            "availabilityZone": "us-east-1a",
            "imageId": "ami-0123456789abcdef0",
            "instanceId": INSTANCE_ID,
            "instanceType": "m5.large",
            "pendingTime": "2024-01-01T00:00:00Z",
            "privateIp": "10.77.0.5",
            "region": "us-east-1",
            "version": "2017-09-30",
        }),
        _ if behaviour.role_unassumable => serde_json::json!({
            "Code": "AssumeRoleUnauthorizedAccess",
            "Message": format!("EC2 cannot assume the role {}.", behaviour.role),
            "LastUpdated": stamp(now),
        }),
        _ => serde_json::json!({
            "Code": "Success",
            "LastUpdated": stamp(now),
            "Type": "AWS-HMAC",
            "AccessKeyId": "ASIAMADEUPMADEUPMADE",
            "SecretAccessKey": "made/up/secret/of/the/lab/not/a/real/key",
            "Token": "made-up-session-token-of-the-lab/".repeat(27),
            "Expiration": stamp(expiry),
        }),
    };
    serde_json::to_string_pretty(&document).ok().map(text)
}

fn listing(path: &str, behaviour: &Behaviour) -> Option<String> {
    if path == "meta-data/public-keys" {
        return Some("0=lab-key".to_owned());
    }
    let role = credentials_of(&behaviour.role);
    let leaves = LEAVES
        .iter()
        .map(|(leaf, _)| *leaf)
        .chain(COMPUTED.iter().copied())
        .chain(std::iter::once(role.as_str()));
    let mut names: Vec<String> = leaves
        .filter(|leaf| !behaviour.is_missing(leaf))
        .filter(|leaf| behaviour.instance_tags || !leaf.starts_with("meta-data/tags"))
        .filter_map(|leaf| {
            let rest = if path.is_empty() {
                leaf
            } else {
                leaf.strip_prefix(path)?.strip_prefix('/')?
            };
            Some(match rest.split_once('/') {
                // A version's own listing has no slashes on EC2, every deeper one has.
                Some((directory, _)) if path.is_empty() => directory.to_owned(),
                Some((directory, _)) => format!("{directory}/"),
                None => rest.to_owned(),
            })
        })
        .collect();
    names.sort();
    names.dedup();
    (!names.is_empty()).then(|| names.join("\n"))
}

/// Splits `/latest//meta-data/x` into the version and the rest; `None` when it is no version.
pub(super) fn split_version(path: &str) -> Option<(&str, String)> {
    let mut segments = path.split('/').filter(|segment| !segment.is_empty());
    let version = segments.next()?;
    let is_version = VERSIONS.contains(&version) || is_date(version);
    is_version.then(|| (version, segments.collect::<Vec<_>>().join("/")))
}

fn is_date(segment: &str) -> bool {
    let shape: String = segment
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    shape == "0000-00-00"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(path: &str) -> Option<String> {
        lookup(path, &Behaviour::default(), Timestamp::UNIX_EPOCH).map(|document| document.body)
    }

    #[test]
    fn directories_list_their_children() {
        assert_eq!(body("").as_deref(), Some("dynamic\nmeta-data\nuser-data"));
        assert_eq!(body("meta-data/iam/").as_deref(), Some("info\nsecurity-credentials/"));
        assert_eq!(body("meta-data/iam/security-credentials/").as_deref(), Some(ROLE));
        assert_eq!(
            body("meta-data/network/interfaces/macs").as_deref(),
            Some("0a:00:00:00:00:05/")
        );
        assert_eq!(body("meta-data/public-keys/").as_deref(), Some("0=lab-key"));
        for absent in [
            "meta-data/spot/instance-action",
            "meta-data/outpost-arn",
            "meta-data/instance",
            "nothing",
        ] {
            assert_eq!(body(absent), None, "{absent}");
        }
    }

    #[test]
    fn every_leaf_is_listed_on_the_way_down() {
        for leaf in LEAVES.iter().map(|(leaf, _)| *leaf).chain(COMPUTED.iter().copied()) {
            assert!(body(leaf).is_some(), "{leaf}");
            if leaf.contains("public-keys") {
                continue;
            }
            let mut directory = String::new();
            for segment in leaf.split('/') {
                let names = body(&directory).unwrap();
                assert!(
                    names.lines().any(|name| name.trim_end_matches('/') == segment),
                    "{directory} lacks {segment}"
                );
                directory = format!("{directory}/{segment}");
            }
        }
    }

    #[test]
    fn a_missing_path_takes_what_is_below_with_it() {
        let behaviour = Behaviour {
            missing: vec!["meta-data/autoscaling".into()],
            ..Behaviour::default()
        };
        let at = |path| lookup(path, &behaviour, Timestamp::UNIX_EPOCH).map(|document| document.body);
        assert_eq!(at("meta-data/autoscaling/target-lifecycle-state"), None);
        assert!(!at("meta-data/").unwrap().contains("autoscaling"));
    }

    #[test]
    fn versions() {
        assert_eq!(split_version("//latest/").unwrap(), ("latest", String::new()));
        assert_eq!(
            split_version("/2021-03-23/meta-data/").unwrap(),
            ("2021-03-23", "meta-data".into())
        );
        assert_eq!(split_version("/2099-01-01/user-data").unwrap().1, "user-data");
        assert!(split_version("/computeMetadata/v1/").is_none());
        assert!(split_version("/").is_none());
    }
}
