//! `--against`: what the stand-in for IMDS is like.

use std::fmt;
use std::str::FromStr;

use imds_observer_standin::server::{Behaviour, Endpoint, Serves, Tokens};
use imds_observer_standin::world::{MAX_HOPS, WorldOptions};

use crate::quantity::Span;
use crate::record::Dialect;

/// The options, and how they were written.
#[derive(Clone, Debug, PartialEq)]
pub struct Against {
    pub options: WorldOptions,
    text: String,
}

const HELP: &str = "tokens=optional|required, hop-limit=1..64, hops=0..8|host|container|nested, ipv6, role=NAME|none, \
    latency=SPAN, fail=PUT:STATUS|GET:STATUS, endpoint=enabled|disabled, cloud=NAME, pod-identity, ecs";

/// Clouds whose metadata service the stand-in speaks.
const CLOUDS: [(Dialect, Serves); 6] = [
    (Dialect::Aws, Serves::Imds),
    (Dialect::Gcp, Serves::Gcp),
    (Dialect::Azure, Serves::Azure),
    (Dialect::Ibm, Serves::Ibm),
    (Dialect::Oracle, Serves::Oracle),
    (Dialect::Openstack, Serves::OpenStack),
];

impl Default for Against {
    fn default() -> Self {
        Self {
            options: WorldOptions {
                imds: Behaviour::default(),
                hops: 0,
                ipv6: false,
                pod_identity: false,
                ecs: false,
            },
            text: String::new(),
        }
    }
}

impl fmt::Display for Against {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Against {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut against = Self::default();
        let mut seen = Vec::new();
        for option in text.split(',') {
            let (name, value) = match option.split_once('=') {
                Some((name, value)) => (name.trim(), Some(value.trim())),
                None => (option.trim(), None),
            };
            // `fail` may concern both methods.
            if name != "fail" && seen.contains(&name) {
                return Err(format!("`{name}` is given twice"));
            }
            seen.push(name);
            against
                .set(name, value)
                .map_err(|why| format!("`{}`: {why}", option.trim()))?;
        }
        against.text = against.described();
        Ok(against)
    }
}

impl Against {
    /// The same with other values of what the matrix varies.
    #[must_use]
    pub fn with(&self, tokens: Tokens, hop_limit: u8, hops: u8) -> Self {
        let mut other = self.clone();
        other.options.imds.tokens = tokens;
        other.options.imds.hop_limit = hop_limit;
        other.options.hops = hops;
        other.text = other.described();
        other
    }

    /// The cloud that the stand-in is a part of.
    pub fn cloud(&self) -> Dialect {
        let found = CLOUDS.iter().find(|(_, serves)| *serves == self.options.imds.serves);
        found.map_or(Dialect::Aws, |(dialect, _)| *dialect)
    }

    fn set(&mut self, name: &str, value: Option<&str>) -> Result<(), String> {
        let options = &mut self.options;
        let imds = &mut options.imds;
        match (name, value) {
            ("tokens", Some("optional")) => imds.tokens = Tokens::Optional,
            ("tokens", Some("required")) => imds.tokens = Tokens::Required,
            ("endpoint", Some("enabled")) => imds.endpoint = Endpoint::Enabled,
            ("endpoint", Some("disabled")) => imds.endpoint = Endpoint::Disabled,
            ("hop-limit", Some(value)) => imds.hop_limit = number(value, 1, 64)?,
            ("hops", Some("host")) => options.hops = 0,
            ("hops", Some("container")) => options.hops = 1,
            ("hops", Some("nested")) => options.hops = 2,
            ("hops", Some(value)) => options.hops = number(value, 0, MAX_HOPS)?,
            ("ipv6", None) => options.ipv6 = true,
            ("pod-identity", None) => options.pod_identity = true,
            ("ecs", None) => options.ecs = true,
            ("role", Some("none")) => imds.missing = vec!["meta-data/iam".to_owned()],
            ("role", Some(value)) if is_role(value) => value.clone_into(&mut imds.role),
            ("role", Some(_)) => return Err("not a role name (letters, digits and +=.@_-)".to_owned()),
            ("latency", Some(value)) => {
                let Span(span) = value.parse()?;
                imds.delay_ms = u64::try_from(span.as_millis()).map_err(|_| "too long".to_owned())?;
                if imds.delay_ms == 0 || imds.delay_ms > 3_600_000 {
                    return Err("not between 1ms and 1h".to_owned());
                }
            }
            ("fail", Some(value)) => match value.split_once(':') {
                Some(("PUT", status)) => imds.put_status = Some(error_status(status)?),
                Some(("GET", status)) => imds.get_status = Some(error_status(status)?),
                _ => return Err("expected PUT:STATUS or GET:STATUS".to_owned()),
            },
            ("cloud", Some(value)) => {
                let found = CLOUDS.iter().find(|(dialect, _)| dialect.as_str() == value);
                let Some((_, serves)) = found else {
                    let names: Vec<&str> = CLOUDS.iter().map(|(dialect, _)| dialect.as_str()).collect();
                    return Err(format!("expected one of {}", names.join(", ")));
                };
                imds.serves = *serves;
            }
            ("ipv6" | "pod-identity" | "ecs", Some(_)) => return Err("takes no value".to_owned()),
            _ => return Err(format!("expected one of {HELP}")),
        }
        Ok(())
    }

    fn described(&self) -> String {
        let WorldOptions {
            imds,
            hops,
            ipv6,
            pod_identity,
            ecs,
        } = &self.options;
        let tokens = match imds.tokens {
            Tokens::Optional => "optional",
            Tokens::Required => "required",
        };
        let mut parts = vec![
            format!("tokens={tokens}"),
            format!("hop-limit={}", imds.hop_limit),
            format!("hops={hops}"),
        ];
        if self.cloud() != Dialect::Aws {
            parts.push(format!("cloud={}", self.cloud().as_str()));
        }
        if imds.endpoint == Endpoint::Disabled {
            parts.push("endpoint=disabled".to_owned());
        }
        if !imds.missing.is_empty() {
            parts.push("role=none".to_owned());
        } else if imds.role != Behaviour::default().role {
            parts.push(format!("role={}", imds.role));
        }
        if imds.delay_ms > 0 {
            parts.push(format!("latency={}ms", imds.delay_ms));
        }
        parts.extend(imds.put_status.map(|status| format!("fail=PUT:{status}")));
        parts.extend(imds.get_status.map(|status| format!("fail=GET:{status}")));
        for (given, name) in [(ipv6, "ipv6"), (pod_identity, "pod-identity"), (ecs, "ecs")] {
            if *given {
                parts.push(name.to_owned());
            }
        }
        parts.join(",")
    }
}

fn number(text: &str, least: u8, most: u8) -> Result<u8, String> {
    let number = text.parse().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("not a number from {least} to {most}"))
}

fn error_status(text: &str) -> Result<u16, String> {
    let status = text.parse().ok().filter(|status| (300..600).contains(status));
    status.ok_or_else(|| "not a status from 300 to 599".to_owned())
}

/// The characters of IAM role names.
fn is_role(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "+=.@_-".contains(c);
    (1..=64).contains(&name.len()) && name.chars().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_described() {
        let against: Against = "tokens=required, hop-limit=2,hops=nested,ipv6,role=web,latency=50ms,fail=PUT:403"
            .parse()
            .unwrap();
        let imds = &against.options.imds;
        assert_eq!((imds.tokens, imds.hop_limit, imds.delay_ms), (Tokens::Required, 2, 50));
        assert_eq!((imds.put_status, imds.get_status), (Some(403), None));
        assert_eq!((against.options.hops, against.options.ipv6), (2, true));
        assert_eq!(
            against.to_string(),
            "tokens=required,hop-limit=2,hops=2,role=web,latency=50ms,fail=PUT:403,ipv6"
        );
        assert_eq!(against.to_string().parse::<Against>().unwrap(), against);
    }

    #[test]
    fn mistakes_are_errors() {
        for text in [
            "",
            "tokens",
            "tokens=maybe",
            "hop-limit=0",
            "hop-limit=65",
            "hops=9",
            "hops=-1",
            "ipv6=yes",
            "role=",
            "role=a/b",
            "latency=0ms",
            "latency=2h",
            "fail=403",
            "fail=PUT:200",
            "fail=POST:403",
            "tokens=required,tokens=optional",
            "tokens=required,",
            "unknown=1",
            "cloud=ecs",
            "cloud=",
        ] {
            assert!(text.parse::<Against>().is_err(), "{text}");
        }
    }

    #[test]
    fn every_cloud_is_read_as_it_is_described() {
        for (dialect, serves) in CLOUDS {
            let against: Against = format!("cloud={}", dialect.as_str()).parse().unwrap();
            assert_eq!((against.cloud(), against.options.imds.serves), (dialect, serves));
            assert_eq!(against.to_string().parse::<Against>().unwrap(), against);
        }
    }

    #[test]
    fn the_matrix_changes_what_it_varies() {
        let base: Against = "role=web".parse().unwrap();
        let cell = base.with(Tokens::Required, 2, 1);
        assert_eq!(cell.to_string(), "tokens=required,hop-limit=2,hops=1,role=web");
    }
}
