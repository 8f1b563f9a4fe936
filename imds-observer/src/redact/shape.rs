//! Shapes of values that hold no secret: numbers, addresses, identifiers of AWS, file names, URLs without their secrets.

use std::net::IpAddr;

use super::task_ids::{self, PathContext};
use super::words::is_known;
use super::{MARK, is_mark, text};

/// Longest file name, URL or list that is kept.
const MAX_VALUE_BYTES: usize = 512;

/// Endings of files that programs are started with.
const ENDINGS: &[&str] = &[
    "bash",
    "bin",
    "cfg",
    "cjs",
    "class",
    "conf",
    "crt",
    "csv",
    "dat",
    "dll",
    "env",
    "exe",
    "go",
    "gz",
    "html",
    "ini",
    "jar",
    "js",
    "json",
    "key",
    "log",
    "lua",
    "mjs",
    "pem",
    "php",
    "pid",
    "pl",
    "pm",
    "properties",
    "py",
    "pyc",
    "pyz",
    "rb",
    "sh",
    "so",
    "sock",
    "socket",
    "sql",
    "tar",
    "tgz",
    "toml",
    "ts",
    "txt",
    "war",
    "xml",
    "yaml",
    "yml",
    "zip",
    "zst",
];

/// Headers of which the name is kept. The value is subject to the rules of values.
const HEADERS: &[&str] = &[
    "accept",
    "accept-encoding",
    "authorization",
    "cache-control",
    "connection",
    "content-length",
    "content-type",
    "cookie",
    "host",
    "metadata",
    "metadata-flavor",
    "proxy-authorization",
    "user-agent",
    "metadata-token",
    "metadata-token-expiry-seconds",
    "x-aliyun-ecs-metadata-token",
    "x-aliyun-ecs-metadata-token-ttl-seconds",
    "x-api-key",
    "x-aws-ec2-metadata-token",
    "x-aws-ec2-metadata-token-ttl-seconds",
    "x-forwarded-for",
    "x-google-metadata-request",
    "x-metadata-token",
    "x-metadata-token-ttl-seconds",
    "x-vault-token",
];

/// A part of a name that a person chose: a word, a number, a short mixture such as `m5d` or `rsa2048`. Keys and passwords from generators
/// mix letters and digits, or letters of both cases.
fn is_wordy_part(part: &str) -> bool {
    let bytes = part.as_bytes();
    let count = |test: fn(&u8) -> bool| bytes.iter().filter(|byte| test(byte)).count();
    let (lower, upper, digits) = (
        count(u8::is_ascii_lowercase),
        count(u8::is_ascii_uppercase),
        count(u8::is_ascii_digit),
    );
    if lower + upper + digits != bytes.len() {
        return false;
    }
    match (lower, upper, digits) {
        (_, 0, 0) => lower <= 32,
        (0, _, 0) => upper <= 12,
        (0, 0, _) => digits <= 10,
        // One capital for each four letters at most, as in `MyInstanceRole`.
        (_, _, 0) => upper * 4 <= lower + 3 && bytes.len() <= 40,
        (_, 0, _) => bytes.len() <= 8 || (digits <= 4 && bytes[lower..].iter().all(u8::is_ascii_digit) && lower <= 20),
        _ => bytes.len() <= 4,
    }
}

/// Whether the name consists of words, and of so few that it isn't one random text that was split.
pub(super) fn is_wordy(name: &str) -> bool {
    if is_mark(name) {
        return true;
    }
    let separators = ['-', '_', '.', '+', '@', ':', '~', ','];
    name.split(separators)
        .all(|part| part.is_empty() || is_wordy_part(part))
        && !text::looks_random(name.as_bytes())
        && !task_ids::has_id(name.as_bytes())
}

/// A name for a file, a script or a class that can be part of a workload's name.
pub fn is_file_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 128 && !is_mark(name) && is_wordy(name)
}

/// Whether the argument names a program for an interpreter: a file, by its path or its ending, or a class.
pub fn is_script(argument: &str) -> bool {
    let is_class = || argument.contains('.') && !argument.contains([':', '@', ',', '/']) && is_file_name(argument);
    !is_mark(argument) && !argument.contains("://") && (is_path(argument) || is_class())
}

/// A path whose segments are all wordy.
pub(super) fn is_path(value: &str) -> bool {
    let rooted = ["/", "./", "../", "~/"].iter().any(|root| value.starts_with(root));
    let last = value.rsplit('/').next().unwrap_or_default();
    let known_ending = last
        .rsplit_once('.')
        .is_some_and(|(stem, ending)| !stem.is_empty() && ENDINGS.contains(&ending));
    (rooted || known_ending)
        && value.len() <= MAX_VALUE_BYTES
        && value.split('/').all(is_wordy)
        && text::without_task_ids(value, PathContext::Text).is_none()
}

fn is_number(value: &str) -> bool {
    let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == '%');
    let unit = &value[digits.len()..];
    let number = digits
        .split_once('.')
        .map_or(!digits.is_empty() && digits.len() <= 5, |(whole, part)| {
            (1..=5).contains(&whole.len()) && (1..=3).contains(&part.len())
        });
    number
        && digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
        && [
            "", "%", "ns", "us", "ms", "s", "m", "h", "d", "b", "B", "k", "K", "M", "G", "T", "Ki", "Mi", "Gi", "kb",
            "mb", "gb", "KB", "MB", "GB", "g",
        ]
        .contains(&unit)
}

/// `2021-02-01`, as in `api-version`.
fn is_date(value: &str) -> bool {
    value.len() == 10
        && value.bytes().enumerate().all(|(at, byte)| match at {
            4 | 7 => byte == b'-',
            _ => byte.is_ascii_digit(),
        })
}

/// A region, an availability zone, or the id of a resource.
fn is_aws_name(value: &str) -> bool {
    let region = || {
        let mut parts = value.split('-');
        let continent = parts
            .next()
            .is_some_and(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_lowercase()));
        let mut rest: Vec<&str> = parts.collect();
        let zone = rest.pop().unwrap_or_default();
        let directions = [
            "gov",
            "iso",
            "isob",
            "north",
            "south",
            "east",
            "west",
            "central",
            "northeast",
            "northwest",
            "southeast",
            "southwest",
        ];
        continent
            && !rest.is_empty()
            && rest.iter().all(|part| directions.contains(part))
            && matches!(zone.as_bytes(), [b'0'..=b'9'] | [b'0'..=b'9', b'a'..=b'h'])
    };
    let resource = || {
        value.split_once('-').is_some_and(|(kind, id)| {
            ["i", "ami", "vol", "eni", "subnet", "vpc", "sg", "lt", "eipalloc"].contains(&kind)
                && matches!(id.len(), 8 | 17)
                && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        })
    };
    region() || resource()
}

/// An address or a name of a host, with or without a port or a prefix length.
pub(super) fn is_host(value: &str) -> bool {
    let is_port = |port: &str| !port.is_empty() && port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit());
    if value.parse::<IpAddr>().is_ok() {
        return true;
    }
    if let Some((address, rest)) = value.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return address.parse::<IpAddr>().is_ok() && (rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port));
    }
    if let Some((address, length)) = value.split_once('/') {
        return address.parse::<IpAddr>().is_ok() && length.len() <= 3 && is_port(length);
    }
    let name = match value.rsplit_once(':') {
        Some((name, port)) if is_port(port) => name,
        Some(_) => return false,
        None => value,
    };
    let known = [
        ".amazonaws.com",
        ".internal",
        ".local",
        ".svc",
        ".example.com",
        "example.com",
    ];
    name.parse::<IpAddr>().is_ok()
        || name == "localhost"
        || (name.is_empty() && !value.is_empty())
        || (known.iter().any(|ending| name.ends_with(ending)) && name.split('.').all(is_wordy))
}

/// Whether nothing of the value needs to be replaced.
pub(super) fn is_plain(value: &str) -> bool {
    value.len() <= MAX_VALUE_BYTES
        && (is_mark(value)
            || value.len() <= 1
            || matches!(value, "--" | ".." | "::" | "||" | "&&" | "{}" | "*/*")
            || is_number(value)
            || is_date(value)
            || is_host(value)
            || is_aws_name(value)
            || is_path(value)
            || value.split(',').all(|word| is_known(word) || is_number(word))
            || value
                .split_once('/')
                .is_some_and(|(kind, form)| is_known(kind) && is_known(form)))
}

/// The value, a URL without its secrets, or nothing.
pub(super) fn shown(value: &str) -> Option<String> {
    let without_ids = text::without_task_ids(value, PathContext::Text);
    let value = without_ids.as_deref().unwrap_or(value);
    if is_plain(value) {
        return Some(value.to_owned());
    }
    if let Some(file) = value.strip_prefix('@').filter(|file| is_path(file)) {
        return Some(format!("@{file}"));
    }
    url(value)
}

/// Scheme, host, wordy segments of the path and the keys of the query.
fn url(value: &str) -> Option<String> {
    const SCHEMES: &[&str] = &["http", "https", "tcp", "udp", "unix", "file", "s3", "grpc", "ws", "wss"];
    let (scheme, rest) = value.split_once("://")?;
    if !SCHEMES.contains(&scheme) || value.len() > MAX_VALUE_BYTES {
        return None;
    }
    let mut out = format!("{scheme}://");
    // A password in front of the host may hold any character: everything up to the last @ is one.
    let rest = match rest.rsplit_once('@') {
        Some((_, behind)) => {
            out.push_str(MARK);
            out.push('@');
            behind
        }
        None => rest,
    };
    let (rest, fragment) = rest.split_once('#').map_or((rest, false), |(rest, _)| (rest, true));
    let (rest, query) = rest
        .split_once('?')
        .map_or((rest, None), |(rest, query)| (rest, Some(query)));
    for (at, segment) in rest.split('/').enumerate() {
        if at > 0 {
            out.push('/');
        }
        let kept = if at == 0 {
            is_host(segment) || (segment.contains('.') && is_wordy(segment)) || scheme == "s3" && is_wordy(segment)
        } else {
            is_wordy(segment)
        };
        out.push_str(if kept || segment.is_empty() { segment } else { MARK });
    }
    if let Some(query) = query {
        out.push('?');
        out.push_str(&text::query(query.as_bytes(), |_| false));
    }
    if fragment {
        out.push('#');
        out.push_str(MARK);
    }
    Some(out)
}

/// `Name: value`, with the value subject to the same rules.
pub(super) fn header(argument: &str) -> Option<String> {
    let (name, value) = argument.split_once(':')?;
    let known = HEADERS.contains(&name.trim().to_ascii_lowercase().as_str());
    if !known {
        return None;
    }
    let start = value.len() - value.trim_start().len();
    let (space, value) = value.split_at(start);
    let value = value.trim_end();
    let kept = !text::is_secret_name(name.as_bytes()) && is_plain(value);
    Some(match value {
        "" => format!("{name}:"),
        _ if kept => format!("{name}:{space}{value}"),
        _ => format!("{name}:{space}{MARK}"),
    })
}
