//! Ids in paths of the ECS agent. Such an id is the credential of a task: it is all that the agent asks of a caller.

use super::{MARK, shape};

/// Segments behind which everything is an id: `/v2/credentials/ID`.
const ID_FOLLOWS: &[&str] = &["credentials", "splunk-token", "container-env"];
/// Versions of the agent's metadata: `/v4/ID/task`.
const METADATA: &[&str] = &["v3", "v4"];
/// Segments behind the id of `METADATA`, in lower case.
const ITEMS: &[&str] = &["task", "tasks", "taskwithtags", "stats"];
/// Segments behind the id of `/api/ID/...`.
const APIS: &[&str] = &["task-protection", "fault"];

/// Where a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PathContext {
    /// The whole text is the path of a request to a metadata endpoint.
    Request,
    /// Somewhere in a text: an argument, a user agent.
    Text,
}

/// Adds the spans of ids in `plain`, whose percent-encoding is undone. Marks are no ids.
pub(super) fn find(plain: &[u8], context: PathContext, spans: &mut Vec<(usize, usize)>) {
    if !may_hold(plain) {
        return;
    }
    match context {
        PathContext::Request => in_path(plain, 0, Host::Agent, spans),
        PathContext::Text => {
            let mut from = 0;
            while from < plain.len() {
                let end = plain[from..]
                    .iter()
                    .position(|byte| ends_word(*byte))
                    .map_or(plain.len(), |length| from + length);
                in_word(plain, from, end, spans);
                from = end + 1;
            }
        }
    }
}

/// A quick test: nearly all texts end here.
pub(super) fn may_hold(bytes: &[u8]) -> bool {
    let marked = memchr::memchr_iter(b'/', bytes).any(|at| match &bytes[at + 1..] {
        [b'v' | b'V', b'0'..=b'9', ..] => true,
        rest => rest.get(..3).is_some_and(|api| api.eq_ignore_ascii_case(b"api")),
    });
    marked || !bytes.starts_with(b"/latest/") && has_id(bytes)
}

fn ends_word(byte: u8) -> bool {
    byte.is_ascii_whitespace()
        || matches!(
            byte,
            b'"' | b'\'' | b'`' | b',' | b';' | b'(' | b')' | b'<' | b'>' | b'|'
        )
}

/// A word with a path in it: `/v4/ID`, `http://169.254.170.2/v4/ID`, `169.254.170.2/v4/ID`.
fn in_word(plain: &[u8], start: usize, end: usize, spans: &mut Vec<(usize, usize)>) {
    let word = &plain[..end];
    let host = memchr::memmem::find(&word[start..], b"://").map_or(start, |at| start + at + 3);
    let Some(path) = memchr::memchr(b'/', &word[host..]).map(|at| host + at) else {
        return;
    };
    // `URI=/v4/ID`: a name may be in front.
    let host = memchr::memrchr(b'=', &word[host..path]).map_or(host, |at| host + at + 1);
    let is_address = word[host..path]
        .iter()
        .all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b'.' | b':' | b'[' | b']' | b'x' | b'X'));
    let host = match (host == path, is_address) {
        (true, _) => Host::None,
        (false, true) => Host::Agent,
        (false, false) => Host::Other,
    };
    in_path(word, path, host, spans);
}

/// Whose path it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Host {
    /// An address, which the agent's may be.
    Agent,
    /// A name: other services have APIs of a third version.
    Other,
    /// None is in front: the path of a file or a cgroup may be one, too, where names of pods and containers have the shape of ids.
    None,
}

/// `bytes` from `start` on are a path, with a query or without one.
fn in_path(bytes: &[u8], start: usize, host: Host, spans: &mut Vec<(usize, usize)>) {
    let agent = host != Host::Other;
    let segments = segments(bytes, start);
    let text = |at: usize| {
        segments
            .get(at)
            .map(|&(start, end)| bytes[start..end].to_ascii_lowercase())
    };
    let is_one_of =
        |at: usize, names: &[&str]| text(at).is_some_and(|segment| names.iter().any(|name| name.as_bytes() == segment));
    let ec2_tree = is_one_of(0, &["latest", "1.0"]);
    let mut at = 0;
    while let Some(&(from, to)) = segments.get(at) {
        let versioned =
            at > 0 && text(at - 1).is_some_and(|segment| matches!(segment.as_slice(), [b'v', b'0'..=b'9', ..]));
        if versioned && is_one_of(at, ID_FOLLOWS) {
            // Not only the next segment: an odd path may have its id anywhere behind.
            let end = path_end(bytes, start);
            push(bytes, to + 1, end, spans);
            in_query(bytes, end + 1, spans);
            return;
        }
        let behind_root = at == 1 && agent && is_one_of(0, METADATA);
        let behind_api = at == 1 && is_one_of(0, &["api"]) && is_one_of(2, APIS);
        let item = at > 1 && agent && is_one_of(0, METADATA) && !is_one_of(at, ITEMS);
        if behind_root || behind_api || item || !ec2_tree && host != Host::None && has_id(&bytes[from..to]) {
            push(bytes, from, to, spans);
        }
        at += 1;
    }
}

fn push(bytes: &[u8], start: usize, end: usize, spans: &mut Vec<(usize, usize)>) {
    if start < end && bytes.get(start..end).is_some_and(|found| found != MARK.as_bytes()) {
        spans.push((start, end));
    }
}

/// Values of a query that may be an id: that of `id`, and those that the allow-list doesn't know.
fn in_query(bytes: &[u8], start: usize, spans: &mut Vec<(usize, usize)>) {
    let mut from = start;
    while from < bytes.len() {
        let end = memchr::memchr2(b'&', b';', &bytes[from..]).map_or(bytes.len(), |length| from + length);
        let joiner = memchr::memchr(b'=', &bytes[from..end]).map(|at| from + at);
        let value = joiner.map_or(from, |at| at + 1);
        let is_id = joiner.is_some_and(|at| bytes[from..at].eq_ignore_ascii_case(b"id"));
        let is_plain = std::str::from_utf8(&bytes[value..end]).is_ok_and(shape::is_plain);
        if is_id || !is_plain {
            push(bytes, value, end, spans);
        }
        from = end + 1;
    }
}

/// Whether the path of a request, percent-encoding undone, is one that an id follows or is part of.
pub(super) fn is_agents(plain: &[u8]) -> bool {
    let segments = segments(plain, 0);
    segments.iter().skip(1).any(|&(start, end)| {
        ID_FOLLOWS
            .iter()
            .any(|name| plain[start..end].eq_ignore_ascii_case(name.as_bytes()))
    })
}

fn path_end(bytes: &[u8], start: usize) -> usize {
    bytes[start..]
        .iter()
        .position(|byte| matches!(byte, b'?' | b'#'))
        .map_or(bytes.len(), |length| start + length)
}

/// Spans of the segments up to the query, without empty ones and `.`.
fn segments(bytes: &[u8], start: usize) -> Vec<(usize, usize)> {
    let end = path_end(bytes, start);
    let mut segments = Vec::new();
    let mut from = start;
    while from <= end {
        let to = memchr::memchr(b'/', &bytes[from..end]).map_or(end, |length| from + length);
        if !matches!(&bytes[from..to], b"" | b".") {
            segments.push((from, to));
        }
        from = to + 1;
    }
    segments
}

/// A UUID, or 32 hexadecimal digits and more as the ids of Fargate's tasks have them.
pub(super) fn has_id(bytes: &[u8]) -> bool {
    if bytes.len() < 32 {
        return false;
    }
    let mut run = 0_usize;
    let mut dashes = 0_usize;
    for byte in bytes {
        match byte {
            byte if byte.is_ascii_hexdigit() => run += 1,
            b'-' if run > 0 => dashes += 1,
            _ => (run, dashes) = (0, 0),
        }
        if run >= 32 && dashes <= 5 {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::super::text::{printable, request_path};
    use super::*;

    const ID: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

    #[rstest]
    #[case("/v2/credentials/ID", "/v2/credentials/[redacted]")]
    #[case("//v2/.//credentials//ID/", "//v2/.//credentials/[redacted]")]
    #[case("/%762/%63redentials/ID", "/%762/%63redentials/[redacted]")]
    #[case("/V2/Credentials/ID", "/V2/Credentials/[redacted]")]
    #[case("/%2576%2532/credentials/ID", "/%2576%2532/credentials/[redacted]")]
    #[case("/v2%2Fcredentials%2FID", "/v2%2Fcredentials%2F[redacted]")]
    #[case("/v2/credentials/a/../ID", "/v2/credentials/[redacted]")]
    #[case("/proxy/v2/credentials/ID", "/proxy/v2/credentials/[redacted]")]
    #[case("/v1/credentials", "/v1/credentials")]
    #[case("/v1/credentials?id=ID", "/v1/credentials?id=[redacted]")]
    #[case("/v1/credentials?id=17", "/v1/credentials?id=[redacted]")]
    #[case("/v1/credentials?%69d=json", "/v1/credentials?%69d=[redacted]")]
    #[case("/v1/credentials%3Fid=json", "/v1/credentials%3Fid=[redacted]")]
    #[case("/v2/credentials/app?secretly", "/v2/credentials/[redacted]?[redacted]")]
    #[case("/v1/credentials?x=y&id=app", "/v1/credentials?x=y&id=[redacted]")]
    #[case("/v1/credentials?app-17", "/v1/credentials?[redacted]")]
    #[case("/v2/splunk-token/ID", "/v2/splunk-token/[redacted]")]
    #[case("/v2/container-env/ID", "/v2/container-env/[redacted]")]
    #[case("/v3/ID/task", "/v3/[redacted]/task")]
    #[case("/v4/ID/task/stats", "/v4/[redacted]/task/stats")]
    #[case("/v4/ID/taskWithTags/x", "/v4/[redacted]/taskWithTags/[redacted]")]
    #[case("/v4/task", "/v4/[redacted]")]
    #[case("/api/ID/task-protection/v1/state", "/api/[redacted]/task-protection/v1/state")]
    #[case(
        "/api/name/fault/v1/network-latency/start",
        "/api/[redacted]/fault/v1/network-latency/start"
    )]
    #[case("/v2/metadata", "/v2/metadata")]
    #[case("/x/ID", "/x/[redacted]")]
    #[case(
        "/latest/meta-data/iam/security-credentials/role",
        "/latest/meta-data/iam/security-credentials/role"
    )]
    #[case("/latest/meta-data/tags/instance/ID", "/latest/meta-data/tags/instance/ID")]
    fn request_paths(#[case] path: &str, #[case] shown: &str) {
        let path = path.replace("ID", ID);
        let shown = shown.replace("ID", ID);
        assert_eq!(request_path(path.as_bytes(), 512), shown);
        assert_eq!(request_path(shown.as_bytes(), 512), shown, "once more");
    }

    #[rstest]
    #[case(
        "agent/1 (http://169.254.170.2/v4/app/task)",
        "agent/1 (http://169.254.170.2/v4/[redacted]/task)"
    )]
    #[case("agent/1 /v2/credentials/app x", "agent/1 /v2/credentials/[redacted] x")]
    #[case(
        "agent/1 169.254.170.2/v1/credentials?id=app",
        "agent/1 169.254.170.2/v1/credentials?id=[redacted]"
    )]
    #[case("agent/1 URI=/v4/app", "agent/1 URI=/v4/[redacted]")]
    #[case("https://api.example.com/v3/users", "https://api.example.com/v3/users")]
    #[case("https://api.example.com/v3/ID", "https://api.example.com/v3/[redacted]")]
    #[case("/kubepods/podID", "/kubepods/podID")]
    #[case("aws-sdk-go-v2/1.30.3 os/linux", "aws-sdk-go-v2/1.30.3 os/linux")]
    fn texts(#[case] text: &str, #[case] shown: &str) {
        let (text, shown) = (text.replace("ID", ID), shown.replace("ID", ID));
        assert_eq!(printable(text.as_bytes(), 512), shown);
    }

    #[test]
    fn ids_have_32_hexadecimal_digits() {
        assert!(has_id(ID.as_bytes()));
        assert!(has_id(b"x 0123456789abcdef0123456789abcdef-0123456789"));
        assert!(!has_id(b"0123456789abcdef0123456789abcde"));
        assert!(!has_id(b"a-b-c-d-e-f-a-b-c-d"));
    }
}
