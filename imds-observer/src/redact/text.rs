//! Text of untrusted bytes, without what is named like a secret or looks like one.

use std::sync::LazyLock;

use memchr::memmem::Finder;

use super::task_ids::{self, PathContext};
use super::{MARK, shape};

/// How often percent-encoding is undone to find an encoded name: encoders of encoders exist.
const MAX_DECODINGS: usize = 3;
/// Longest name in front of `=` or `:`.
const MAX_NAME_BYTES: usize = 128;
/// Shortest text without separators that is random rather than a name.
const RANDOM_MIN: usize = 20;
/// Longest part of a query without a value that is shown.
const MAX_BARE_BYTES: usize = 20;

/// Text that begins so is a secret, if at least so many bytes follow: tokens of IMDS, access keys, JSON web tokens, tokens of well-known services.
const STARTS: &[(&[u8], usize)] = &[
    (b"AQAE", 4),
    (b"AKIA", 12),
    (b"ASIA", 12),
    (b"eyJ", 12),
    (b"ghp_", 16),
    (b"glpat-", 16),
    (b"xox", 12),
    (b"hvs.", 16),
    (b"ya29.", 16),
];

/// In names of secrets, in lower case and without separators.
const SECRET_PARTS: &[&str] = &[
    "token",
    "passw",
    "passphrase",
    "pwd",
    "secret",
    "credential",
    "authorization",
    "apikey",
    "accesskey",
    "privatekey",
    "signature",
    "cookie",
    "bearer",
    "sessionid",
    "accountkey",
    "signingkey",
    "encryptionkey",
    "masterkey",
    "clientkey",
    "connectionstring",
];
const SECRET_NAMES: &[&str] = &[
    "pass", "auth", "key", "sig", "pin", "jwt", "sas", "otp", "dsn", "code", "psk", "nonce",
];

static BEARER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"earer"));

fn is_separator(byte: u8) -> bool {
    matches!(byte, b'-' | b'_' | b'.' | b'[' | b']' | b' ')
}

/// Whether a value with this name is a secret, whatever it looks like.
pub fn is_secret_name(name: &[u8]) -> bool {
    let name: String = name
        .iter()
        .filter(|byte| !is_separator(**byte))
        .map(|byte| byte.to_ascii_lowercase() as char)
        .collect();
    // The lifetime of a token is none.
    if name.ends_with("ttlseconds") || name.ends_with("ttl") {
        return false;
    }
    SECRET_PARTS.iter().any(|part| name.contains(part)) || SECRET_NAMES.contains(&name.as_str())
}

/// Bytes with their positions in the original, percent-encoding undone.
struct Plain {
    bytes: Vec<u8>,
    /// One more than bytes: the end.
    positions: Vec<usize>,
}

impl Plain {
    fn of(original: &[u8]) -> Self {
        let mut plain = Self {
            bytes: original.to_vec(),
            positions: (0..=original.len()).collect(),
        };
        for _ in 0..MAX_DECODINGS {
            if memchr::memchr(b'%', &plain.bytes).is_none() || !plain.decode() {
                break;
            }
        }
        plain
    }

    /// Undoes one layer. False: there was none.
    fn decode(&mut self) -> bool {
        let digit = |at: usize| self.bytes.get(at).and_then(|byte| (*byte as char).to_digit(16));
        let (mut bytes, mut positions) = (
            Vec::with_capacity(self.bytes.len()),
            Vec::with_capacity(self.positions.len()),
        );
        let mut at = 0;
        while let Some(&byte) = self.bytes.get(at) {
            positions.push(self.positions[at]);
            match (byte, digit(at + 1), digit(at + 2)) {
                (b'%', Some(high), Some(low)) => {
                    bytes.push((high * 16 + low) as u8);
                    at += 3;
                }
                _ => {
                    bytes.push(byte);
                    at += 1;
                }
            }
        }
        let changed = bytes.len() != self.bytes.len();
        positions.push(*self.positions.last().unwrap_or(&0));
        (self.bytes, self.positions) = (bytes, positions);
        changed
    }

    /// The span of the original for one of the plain bytes.
    fn span(&self, start: usize, end: usize) -> (usize, usize) {
        (self.positions[start], self.positions[end])
    }
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=' | b'_' | b'-' | b'.')
}

/// A long run of letters of both cases and digits, as generators make it.
pub(super) fn looks_random(bytes: &[u8]) -> bool {
    runs(bytes).any(|(start, end)| is_random_run(&bytes[start..end]))
}

fn is_random_run(run: &[u8]) -> bool {
    run.len() >= RANDOM_MIN
        && run.iter().any(u8::is_ascii_uppercase)
        && run.iter().any(u8::is_ascii_lowercase)
        && run.iter().any(u8::is_ascii_digit)
}

/// Runs of letters and digits.
fn runs(bytes: &[u8]) -> impl Iterator<Item = (usize, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + bytes.get(at..)?.iter().position(u8::is_ascii_alphanumeric)?;
        let end = bytes[start..]
            .iter()
            .position(|byte| !byte.is_ascii_alphanumeric())
            .map_or(bytes.len(), |length| start + length);
        at = end;
        Some((start, end))
    })
}

/// Whether any rule could apply: nearly all texts end here.
fn is_suspicious(bytes: &[u8]) -> bool {
    memchr::memchr3(b'=', b':', b'%', bytes).is_some()
        || BEARER.find(bytes).is_some()
        || bytes.windows(3).any(begins)
        || looks_random(bytes)
        || task_ids::may_hold(bytes)
}

/// A quick test for [`STARTS`].
fn begins(start: &[u8]) -> bool {
    STARTS.iter().any(|(known, _)| start == &known[..3])
}

/// Spans of plain bytes that are replaced; they may overlap.
fn secrets(plain: &[u8], context: PathContext) -> Vec<(usize, usize)> {
    let mut spans = Vec::new();
    named(plain, &mut spans);
    unnamed(plain, &mut spans);
    userinfo(plain, &mut spans);
    task_ids::find(plain, context, &mut spans);
    spans
}

/// `NAME = value`, `"NAME": "value"`, `Bearer value`.
fn named(plain: &[u8], spans: &mut Vec<(usize, usize)>) {
    let is_padding = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, b'"' | b'\'' | b'\\' | b'`');
    let mut from = 0;
    for joiner in memchr::memchr2_iter(b'=', b':', plain) {
        if joiner < from {
            continue;
        }
        let before = &plain[..joiner];
        let end = before.iter().rposition(|byte| !is_padding(byte)).map_or(0, |at| at + 1);
        let start = before[..end]
            .iter()
            .rposition(|byte| !(byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'[' | b']')))
            .map_or(0, |at| at + 1);
        let name = &before[start.max(end.saturating_sub(MAX_NAME_BYTES))..end];
        if !is_secret_name(name) {
            continue;
        }
        let value = joiner + 1;
        // A parameter ends where the next begins; a header, or a member of an object, may hold anything.
        let end = match plain[joiner] {
            b'=' => memchr::memchr2(b'&', b';', &plain[value..]).map_or(plain.len(), |end| value + end),
            _ => plain.len(),
        };
        if end > value {
            spans.push((value, end));
        }
        from = end;
    }
    for found in BEARER.find_iter(plain) {
        let after = found + 5;
        let first = found.checked_sub(1).and_then(|at| plain.get(at));
        if first.is_some_and(|byte| byte.eq_ignore_ascii_case(&b'b'))
            && plain
                .get(after)
                .is_some_and(|byte| byte.is_ascii_whitespace() || *byte == b'+')
        {
            spans.push((after + 1, plain.len()));
        }
    }
}

fn unnamed(plain: &[u8], spans: &mut Vec<(usize, usize)>) {
    let mut from = 0;
    for (at, window) in plain.windows(3).enumerate() {
        if at < from || !begins(window) {
            continue;
        }
        let rest = &plain[at..];
        let length = rest.iter().position(|byte| !is_token_byte(*byte)).unwrap_or(rest.len());
        let known = STARTS
            .iter()
            .any(|(start, more)| rest.starts_with(start) && length >= start.len() + more);
        if known {
            spans.push((at, at + length));
            from = at + length;
        }
    }
    spans.extend(runs(plain).filter(|(start, end)| is_random_run(&plain[*start..*end])));
}

/// `://user:pass@`: the password may hold a slash or another @. `user:pass@` without a scheme: it may not.
fn userinfo(plain: &[u8], spans: &mut Vec<(usize, usize)>) {
    for end in memchr::memchr_iter(b'@', plain) {
        let start = plain[..end]
            .iter()
            .rposition(|byte| byte.is_ascii_whitespace() || matches!(byte, b'/' | b'"' | b'\'' | b'(' | b'@'))
            .map_or(0, |at| at + 1);
        if let Some(colon) = memchr::memchr(b':', &plain[start..end])
            && colon + 1 < end - start
        {
            spans.push((start, end));
        }
    }
    for scheme in memchr::memmem::find_iter(plain, b"://") {
        let start = scheme + 3;
        let rest = &plain[start..];
        let word = rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len());
        if let Some(end) = memchr::memrchr(b'@', &rest[..word])
            && end > 0
        {
            spans.push((start, start + end));
        }
    }
}

/// The bytes with a mark for each secret.
fn cleaned(bytes: &[u8], context: PathContext) -> Option<Vec<u8>> {
    if !is_suspicious(bytes) {
        return None;
    }
    let plain = Plain::of(bytes);
    let spans = secrets(&plain.bytes, context);
    (!spans.is_empty()).then(|| replaced(bytes, &plain, spans))
}

/// The text with a mark for each id of a task that it holds; `None`: it holds none.
pub(super) fn without_task_ids(text: &str, context: PathContext) -> Option<String> {
    if !task_ids::may_hold(text.as_bytes()) && memchr::memchr(b'%', text.as_bytes()).is_none() {
        return None;
    }
    let plain = Plain::of(text.as_bytes());
    let mut spans = Vec::new();
    task_ids::find(&plain.bytes, context, &mut spans);
    (!spans.is_empty()).then(|| lossy(&replaced(text.as_bytes(), &plain, spans), usize::MAX))
}

fn replaced(bytes: &[u8], plain: &Plain, mut spans: Vec<(usize, usize)>) -> Vec<u8> {
    spans.sort_unstable();
    let mut clean = Vec::with_capacity(bytes.len());
    let mut from = 0;
    for (start, end) in spans {
        let (start, end) = plain.span(start, end);
        if end <= from {
            continue;
        }
        if start >= from {
            clean.extend_from_slice(&bytes[from..start]);
            // A mark is shown as it is.
            clean.extend_from_slice(MARK.as_bytes());
        }
        from = end;
    }
    clean.extend_from_slice(&bytes[from..]);
    clean
}

/// Not longer than `limit`, with replacement characters for what isn't UTF-8.
fn lossy(bytes: &[u8], limit: usize) -> String {
    // To see that a text is UTF-8 costs a part of what replacing does.
    let mut text = match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => String::from_utf8_lossy(bytes).into_owned(),
    };
    if text.len() > limit {
        let end = (0..=limit).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

/// Bytes that are looked at: more than the limit, so that the cut makes no secret too short to be seen.
fn looked_at(bytes: &[u8], limit: usize) -> &[u8] {
    &bytes[..bytes.len().min(limit.saturating_mul(2))]
}

/// Text of `bytes`, at most `limit` bytes long, with a mark for each secret.
pub fn printable(bytes: &[u8], limit: usize) -> String {
    let bytes = looked_at(bytes, limit);
    lossy(cleaned(bytes, PathContext::Text).as_deref().unwrap_or(bytes), limit)
}

/// As [`printable`], for the target of a request: of its query, values are shown by the allow-list.
pub fn request_path(bytes: &[u8], limit: usize) -> String {
    let bytes = looked_at(bytes, limit);
    let query_at = memchr::memchr2(b'?', b'%', bytes).and_then(|_| {
        let plain = Plain::of(bytes);
        let at = memchr::memchr(b'?', &plain.bytes)?;
        Some(plain.span(at, at + 1))
    });
    let Some((end, start)) = query_at else {
        return lossy(cleaned(bytes, PathContext::Request).as_deref().unwrap_or(bytes), limit);
    };
    let (path, mark, rest) = (&bytes[..end], &bytes[end..start], &bytes[start..]);
    let mut text = cleaned(path, PathContext::Request).unwrap_or_else(|| path.to_vec());
    text.extend_from_slice(mark);
    let is_name = if task_ids::is_agents(&Plain::of(path).bytes) {
        |_: &[u8]| false
    } else {
        is_bare_name
    };
    text.extend_from_slice(query(rest, is_name).as_bytes());
    lossy(&text, limit)
}

/// A query with the values that the allow-list knows and a mark for each other value. A part that is no `key=value` is shown if the
/// allow-list or `is_name` knows it.
pub(super) fn query(bytes: &[u8], is_name: fn(&[u8]) -> bool) -> String {
    let plain = Plain::of(bytes);
    let mut out = String::with_capacity(bytes.len());
    let mut start = 0;
    loop {
        let end = memchr::memchr2(b'&', b';', &plain.bytes[start..]).map_or(plain.bytes.len(), |end| start + end);
        parameter(bytes, &plain, (start, end), is_name, &mut out);
        if end == plain.bytes.len() {
            return out;
        }
        let (from, to) = plain.span(end, end + 1);
        out.push_str(&String::from_utf8_lossy(&bytes[from..to]));
        start = end + 1;
    }
}

fn parameter(
    bytes: &[u8],
    plain: &Plain,
    (start, end): (usize, usize),
    is_bare_name: fn(&[u8]) -> bool,
    out: &mut String,
) {
    let original = |start: usize, end: usize| {
        let (from, to) = plain.span(start, end);
        String::from_utf8_lossy(&bytes[from..to])
    };
    let text = &plain.bytes[start..end];
    let is_name = |name: &[u8]| name.len() <= MAX_NAME_BYTES && std::str::from_utf8(name).is_ok_and(shape::is_wordy);
    let Some(joiner) = memchr::memchr(b'=', text) else {
        // Without a value it is a name, or a value itself.
        if std::str::from_utf8(text).is_ok_and(shape::is_plain) || is_bare_name(text) {
            out.push_str(&original(start, end));
        } else {
            out.push_str(MARK);
        }
        return;
    };
    let (name, value) = (&text[..joiner], &text[joiner + 1..]);
    // Base64 ends in `=`, too.
    let known = !value.is_empty() || is_secret_name(name) || std::str::from_utf8(name).is_ok_and(shape::is_plain);
    if !is_name(name) || !known {
        out.push_str(MARK);
        return;
    }
    out.push_str(&original(start, start + joiner + 1));
    let plain_value = std::str::from_utf8(value).is_ok_and(shape::is_plain);
    // The id of an ECS task is its credential, whatever its shape.
    let is_secret = is_secret_name(name) || name.eq_ignore_ascii_case(b"id");
    if value.is_empty() || plain_value && !is_secret {
        out.push_str(&original(start + joiner + 1, end));
    } else {
        out.push_str(MARK);
    }
}

/// A short name without a value: `?acl`, `?request-17`. Keys and tokens are longer. A shorter secret has no place in a request to IMDS, but
/// one in the URLs of a command line.
fn is_bare_name(text: &[u8]) -> bool {
    let known = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    text.len() <= MAX_BARE_BYTES && text.iter().all(known) && !looks_random(text) && !text.windows(3).any(begins)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("/latest/api/token")]
    #[case("/latest/meta-data/iam/")]
    #[case("/latest/meta-data/network/interfaces/macs/0a:1b:2c:3d:4e:5f/vpc-id")]
    #[case("/latest/meta-data/iam/security-credentials/MyApp-Prod-InstanceRole-1A2B3C4D5E6F")]
    #[case("Botocore/1.2 md/Botocore#1 ua/2.0")]
    #[case("aws-sdk-go-v2/1.30.3 os/linux lang/go#1.22.5 md/GOOS#linux md/GOARCH#amd64 ft/ec2-imds")]
    #[case("/metadata/instance?api-version=2021-02-01")]
    #[case("/computeMetadata/v1/?recursive=true&alt=json&wait_for_change=true&timeout_sec=60")]
    #[case("/a?token")]
    #[case("/latest/meta-data/instance-id?probe-17&run.3")]
    #[case("/latest/meta-data/instance-id?h2twP0-&ttl=41")]
    #[case("/AQAE")]
    fn plain_text_stays(#[case] text: &str) {
        assert_eq!(request_path(text.as_bytes(), 512), text);
    }

    #[rstest]
    #[case(
        "/latest?X-aws-ec2-metadata-token=abc&b=c",
        "/latest?X-aws-ec2-metadata-token=[redacted]&b=c"
    )]
    #[case(
        "/?a=b&x-aws-ec2-metadata-TOKEN%3Dabc",
        "/?a=b&x-aws-ec2-metadata-TOKEN%3D[redacted]"
    )]
    #[case("/?X%2Daws%2Dtok%65n=abc", "/?X%2Daws%2Dtok%65n=[redacted]")]
    #[case("/?X%252Daws%252Dtok%2565n=abc", "/?X%252Daws%252Dtok%2565n=[redacted]")]
    #[case("/x/AQAEAAbcdefghijklmnop==?b", "/x/[redacted]?b")]
    #[case("/x/%41QAE%41Abcdefghijklmnop==?b", "/x/[redacted]?b")]
    #[case("/?token=&token=S3CRET", "/?token=&token=[redacted]")]
    #[case("/?a=1;password=S3CRET;c=2", "/?a=1;password=[redacted];c=2")]
    #[case("/?{\"token\":\"S3CRET\"}", "/?[redacted]")]
    #[case("/?q=S3CRET+S3CRET", "/?q=[redacted]")]
    #[case("/%3Ftoken%3DS3CRET", "/%3Ftoken%3D[redacted]")]
    #[case("/latest/token=S3CRET", "/latest/token=[redacted]")]
    #[case("/?AQAEAAbcdefg", "/?[redacted]")]
    #[case("/?abcdefghijklmnopqrstuvw", "/?[redacted]")]
    fn targets_lose_their_secrets(#[case] target: &str, #[case] shown: &str) {
        assert_eq!(request_path(target.as_bytes(), 512), shown);
    }

    #[rstest]
    #[case(
        "curl X-aws-ec2-metadata-token : abc def",
        "curl X-aws-ec2-metadata-token :[redacted]"
    )]
    #[case("agent/1 Authorization: Bearer S3CRET", "agent/1 Authorization:[redacted]")]
    #[case("agent/1 bearer S3CRET", "agent/1 bearer [redacted]")]
    #[case("agent/1 {\"api_key\": \"S3CRET\"}", "agent/1 {\"api_key\":[redacted]")]
    #[case("agent/1 +http://user:pa/ss@host/", "agent/1 +http://[redacted]@host/")]
    #[case("agent AKIAIOSFODNN7EXAMPLE", "agent [redacted]")]
    #[case("token=;token=S3CRET", "token=;token=[redacted]")]
    #[case("agent/1 (user:S3CRET@host)", "agent/1 ([redacted]@host)")]
    #[case("agent/1 hvs.CAESIJmadeupmadeup", "agent/1 [redacted]")]
    fn texts_lose_their_secrets(#[case] text: &str, #[case] shown: &str) {
        assert_eq!(printable(text.as_bytes(), 512), shown);
    }

    proptest! {
        #[test]
        fn bounded_and_total(bytes in proptest::collection::vec(any::<u8>(), 0..1500)) {
            prop_assert!(printable(&bytes, 512).len() <= 512);
            prop_assert!(request_path(&bytes, 512).len() <= 512);
        }

        #[test]
        fn what_was_cleaned_stays(text in "[a-z=:;&?%/@A-Z0-9\" ]{0,80}") {
            let once = printable(text.as_bytes(), 512);
            prop_assert_eq!(printable(once.as_bytes(), 512).replace("[redacted]", ""), once.replace("[redacted]", ""));
        }

        #[test]
        fn no_real_looking_token_survives(before in "[a-z/? ]{0,600}", token in "AQAE[A-Za-z0-9+/]{30,52}==", after in "[a-z&]{0,20}") {
            for shown in [printable, request_path] {
                let shown = shown(format!("{before}{token}{after}").as_bytes(), 512);
                prop_assert!(!shown.contains(&token[..20]));
            }
        }
    }
}
