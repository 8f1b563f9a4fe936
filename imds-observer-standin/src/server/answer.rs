//! Chooses the response to a request by IMDS's rules, without any I/O.

use jiff::Timestamp;

use super::{
    agents,
    behaviour::{Behaviour, Endpoint, Serves, Tokens},
    clouds, paths,
    token::Mint,
};

const TOKEN_HEADER: &str = "x-aws-ec2-metadata-token";
const TTL_HEADER: &str = "x-aws-ec2-metadata-token-ttl-seconds";
const TTL_RANGE: std::ops::RangeInclusive<u32> = 1..=21_600;
/// More headers than any client sends; beyond it the request is answered 400.
const MAX_HEADERS: usize = 128;

/// The parts of a request that the rules need. No `Debug`: it holds a token.
pub(super) struct Request {
    pub(super) method: String,
    /// As written, only the scheme and authority of an absolute form and the query are cut off.
    pub(super) path: String,
    pub(super) http_1_1: bool,
    pub(super) wants_keep_alive: bool,
    pub(super) body_length: usize,
    pub(super) forwarded: bool,
    pub(super) user_agent: Option<String>,
    token: Option<String>,
    token_ttl: Option<String>,
    pub(super) authorization: Option<String>,
    pub(super) host: Option<String>,
    pub(super) query: Option<String>,
    /// `Metadata-Flavor`, of GCP and IBM.
    pub(super) flavor: Option<String>,
    /// `Metadata`, of Azure.
    pub(super) metadata: Option<String>,
}

pub(super) enum Parsed {
    Complete { head_length: usize, request: Box<Request> },
    Partial,
    Malformed,
}

impl Request {
    pub(super) fn parse(bytes: &[u8]) -> Parsed {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut head = httparse::Request::new(&mut headers);
        let head_length = match head.parse(bytes) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Parsed::Partial,
            Err(_) => return Parsed::Malformed,
        };
        let (Some(method), Some(target), Some(minor)) = (head.method, head.path, head.version) else {
            return Parsed::Malformed;
        };
        let value = |name: &str| {
            head.headers
                .iter()
                .find(|header| header.name.eq_ignore_ascii_case(name))
                .map(|header| String::from_utf8_lossy(header.value).trim().to_owned())
        };
        let connection = value("connection").unwrap_or_default().to_ascii_lowercase();
        let Ok(body_length) = value("content-length").map_or(Ok(0), |length| length.parse()) else {
            return Parsed::Malformed;
        };
        let request = Box::new(Self {
            method: method.to_owned(),
            path: path_of(target).to_owned(),
            http_1_1: minor == 1,
            wants_keep_alive: if minor == 1 {
                !connection.contains("close")
            } else {
                connection.contains("keep-alive")
            },
            body_length,
            forwarded: value("x-forwarded-for").is_some(),
            user_agent: value("user-agent"),
            token: value(TOKEN_HEADER),
            token_ttl: value(TTL_HEADER),
            authorization: value("authorization"),
            host: value("host"),
            query: target.split_once('?').map(|(_, query)| query.to_owned()),
            flavor: value("metadata-flavor"),
            metadata: value("metadata"),
        });
        Parsed::Complete { head_length, request }
    }

    pub(super) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    pub(super) fn token_ttl_s(&self) -> Option<u32> {
        self.token_ttl.as_ref()?.parse().ok()
    }

    fn is_token_path(&self) -> bool {
        paths::split_version(&self.path).is_some_and(|(version, rest)| version == "latest" && rest == "api/token")
    }
}

fn path_of(target: &str) -> &str {
    let path = match target.split_once("://") {
        Some((scheme, rest)) if !scheme.contains('/') => rest.find('/').map_or("/", |at| &rest[at..]),
        _ => target,
    };
    path.split(['?', '#']).next().unwrap_or(path)
}

/// A status with its headers and body. No `Debug`: the body may be a token or a credential.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: String,
    pub(super) content_type: &'static str,
    /// Carries the instance's hop limit instead of the large TTL.
    pub(super) hop_limited: bool,
}

impl Answer {
    /// An error with the small HTML page that EC2 sends.
    pub(super) fn error(status: u16) -> Self {
        let reason = reason(status);
        Self {
            status,
            headers: Vec::new(),
            body: format!("<html><head><title>{status} - {reason}</title></head><body>{reason}</body></html>\n"),
            content_type: "text/html",
            hop_limited: false,
        }
    }

    fn empty(status: u16) -> Self {
        Self {
            body: String::new(),
            content_type: "text/plain",
            ..Self::error(status)
        }
    }

    /// The bytes to send.
    pub(super) fn encode(&self, request: Option<&Request>, keep_alive: bool, b: &Behaviour, now: Timestamp) -> Vec<u8> {
        use std::fmt::Write as _;
        let minor = u8::from(request.is_none_or(|request| request.http_1_1));
        let date = now.strftime("%a, %d %b %Y %H:%M:%S GMT");
        let mut out = format!("HTTP/1.{minor} {} {}\r\n", self.status, reason(self.status));
        for (name, value) in &self.headers {
            let _ = write!(out, "{name}: {value}\r\n");
        }
        if let Some(via) = &b.via {
            let _ = write!(out, "Via: {via}\r\n");
        }
        let _ = write!(out, "Content-Type: {}\r\nAccept-Ranges: none\r\n", self.content_type);
        let _ = write!(out, "Last-Modified: {date}\r\nContent-Length: {}\r\n", self.body.len());
        let _ = write!(out, "Date: {date}\r\nServer: {}\r\n", b.server);
        let _ = write!(
            out,
            "Connection: {}\r\n\r\n",
            if keep_alive { "keep-alive" } else { "close" }
        );
        if request.is_none_or(|request| request.method != "HEAD") {
            out.push_str(&self.body);
        }
        out.into_bytes()
    }
}

/// Applies the rules in the order EC2 is known to apply them.
pub(super) fn decide(request: &Request, behaviour: &Behaviour, mint: &Mint, now: Timestamp) -> Answer {
    if behaviour.endpoint == Endpoint::Disabled {
        return Answer::error(403);
    }
    match behaviour.serves {
        Serves::Imds => {}
        Serves::PodIdentity | Serves::Ecs => return agents::decide(request, behaviour, now),
        _ => return clouds::decide(request, behaviour),
    }
    let now_ms = u64::try_from(now.as_millisecond()).unwrap_or(0);
    match request.method.as_str() {
        "PUT" => put(request, behaviour, mint, now_ms),
        "GET" | "HEAD" if request.is_token_path() => Answer {
            headers: vec![("Allow", "OPTIONS, PUT".to_owned())],
            ..Answer::error(405)
        },
        "GET" | "HEAD" => get(request, behaviour, mint, now_ms, now),
        _ => {
            let allow = if request.is_token_path() {
                "OPTIONS, PUT"
            } else {
                "OPTIONS, GET, HEAD"
            };
            let status = if request.method == "OPTIONS" { 200 } else { 405 };
            Answer {
                headers: vec![("Allow", allow.to_owned())],
                ..Answer::empty(status)
            }
        }
    }
}

fn put(request: &Request, behaviour: &Behaviour, mint: &Mint, now_ms: u64) -> Answer {
    if request.forwarded || behaviour.forbid_put {
        return Answer::empty(403);
    }
    if let Some(status) = behaviour.put_status.filter(|_| request.is_token_path()) {
        return Answer::empty(status);
    }
    if !request.is_token_path() {
        return Answer {
            headers: vec![("Allow", "OPTIONS, GET, HEAD".to_owned())],
            ..Answer::error(405)
        };
    }
    let Some(ttl_s) = request.token_ttl_s().filter(|ttl| TTL_RANGE.contains(ttl)) else {
        return Answer::error(400);
    };
    Answer {
        status: 200,
        headers: vec![("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", ttl_s.to_string())],
        body: mint.issue(now_ms.saturating_add(u64::from(ttl_s) * 1000)),
        content_type: "text/plain",
        hop_limited: true,
    }
}

fn get(request: &Request, behaviour: &Behaviour, mint: &Mint, now_ms: u64, now: Timestamp) -> Answer {
    if let Some(status) = behaviour.get_status {
        return Answer::error(status);
    }
    if let Some(status) = behaviour.redirect {
        return Answer {
            headers: vec![("Location", "https://login.example/".to_owned())],
            ..Answer::empty(status)
        };
    }
    match &request.token {
        Some(_) if request.forwarded => return Answer::empty(403),
        Some(token) if behaviour.reject_tokens || !mint.is_good(token, now_ms) => return Answer::error(401),
        None if behaviour.tokens == Tokens::Required => return Answer::error(401),
        _ => {}
    }
    let document = if request.path.trim_matches('/').is_empty() {
        Some(paths::Document {
            body: paths::VERSIONS.join("\n"),
            content_type: "text/plain",
        })
    } else {
        paths::split_version(&request.path).and_then(|(_, rest)| paths::lookup(&rest, behaviour, now))
    };
    match document {
        Some(paths::Document { body, content_type }) => Answer {
            status: 200,
            headers: Vec::new(),
            body,
            content_type,
            hop_limited: false,
        },
        None => Answer::error(404),
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        302 => "Found",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn ask_with(behaviour: &Behaviour, mint: &Mint, text: &str) -> Answer {
        match Request::parse(text.as_bytes()) {
            Parsed::Complete { request, .. } => decide(&request, behaviour, mint, Timestamp::UNIX_EPOCH),
            _ => panic!("not a request: {text:?}"),
        }
    }

    fn ask(text: &str) -> Answer {
        ask_with(&Behaviour::default(), &Mint::new(), text)
    }

    #[rstest]
    #[case("PUT /latest/api/token HTTP/1.1\r\n\r\n", 400)]
    #[case(
        "PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 0\r\n\r\n",
        400
    )]
    #[case(
        "PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 1\r\n\r\n",
        200
    )]
    #[case(
        "PUT /latest/api/token HTTP/1.1\r\nx-aws-ec2-metadata-token-ttl-seconds:21600\r\n\r\n",
        200
    )]
    #[case(
        "PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 21601\r\n\r\n",
        400
    )]
    #[case(
        "PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: soon\r\n\r\n",
        400
    )]
    #[case(
        "PUT //latest/api/token HTTP/1.0\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n",
        200
    )]
    #[case(
        "PUT /latest/meta-data/ HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n",
        405
    )]
    #[case("GET /latest/api/token HTTP/1.1\r\n\r\n", 405)]
    #[case("POST /latest/meta-data/ HTTP/1.1\r\n\r\n", 405)]
    #[case("GET / HTTP/1.1\r\n\r\n", 200)]
    #[case("GET / HTTP/1.1\r\nX-aws-ec2-metadata-token: INVALID\r\n\r\n", 401)]
    #[case("GET /latest/meta-data/spot/instance-action HTTP/1.1\r\n\r\n", 404)]
    #[case("GET /computeMetadata/v1/ HTTP/1.1\r\n\r\n", 404)]
    #[case("GET http://169.254.169.254/latest/meta-data/?x=http://y HTTP/1.1\r\n\r\n", 200)]
    fn statuses(#[case] text: &str, #[case] status: u16) {
        assert_eq!(ask(text).status, status);
    }

    #[test]
    fn only_a_token_carries_the_hop_limit() {
        let token = ask("PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n");
        assert!(token.hop_limited);
        assert!(!ask("PUT /latest/api/token HTTP/1.1\r\n\r\n").hop_limited);
        assert!(!ask("GET /latest/meta-data/ HTTP/1.1\r\n\r\n").hop_limited);
    }

    #[test]
    fn a_forwarded_put_is_refused_with_an_empty_body() {
        let answer = ask(
            "PUT /latest/api/token HTTP/1.1\r\nx-forwarded-for: 10.0.0.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n",
        );
        assert_eq!((answer.status, answer.body.as_str()), (403, ""));
    }

    #[test]
    fn tokens_required_expired_and_switched_off() {
        let mint = Mint::new();
        let with =
            |token: &str| format!("GET /latest/meta-data/mac HTTP/1.1\r\nX-AWS-EC2-Metadata-Token: {token}\r\n\r\n");
        let required = Behaviour {
            tokens: Tokens::Required,
            ..Behaviour::default()
        };
        assert_eq!(
            ask_with(&required, &mint, "GET /latest/meta-data/mac HTTP/1.1\r\n\r\n").status,
            401
        );
        assert_eq!(ask_with(&required, &mint, &with(&mint.issue(1))).status, 200);
        assert_eq!(ask_with(&required, &mint, &with(&mint.issue(0))).status, 401);
        let rejecting = Behaviour {
            reject_tokens: true,
            ..Behaviour::default()
        };
        assert_eq!(ask_with(&rejecting, &mint, &with(&mint.issue(1))).status, 401);
        let off = Behaviour {
            endpoint: Endpoint::Disabled,
            ..Behaviour::default()
        };
        assert_eq!(ask_with(&off, &mint, &with(&mint.issue(1))).status, 403);
    }

    #[test]
    fn a_head_has_no_body_and_get_on_the_token_path_says_what_is_allowed() {
        let Parsed::Complete { request, .. } = Request::parse(b"HEAD /latest/meta-data/mac HTTP/1.0\r\n\r\n") else {
            panic!("not a request");
        };
        let behaviour = Behaviour::default();
        let answer = decide(&request, &behaviour, &Mint::new(), Timestamp::UNIX_EPOCH);
        let bytes = answer.encode(Some(&request), false, &behaviour, Timestamp::UNIX_EPOCH);
        let text = String::from_utf8(bytes).unwrap();
        assert!(
            text.starts_with("HTTP/1.0 200 OK\r\n") && text.ends_with("\r\n\r\n"),
            "{text}"
        );
        assert!(
            text.contains("Content-Length: 17\r\n") && text.contains("Server: EC2ws\r\n"),
            "{text}"
        );
        assert!(text.contains("Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n") && text.contains("Connection: close\r\n"));
        let answer = ask("GET /latest/api/token HTTP/1.1\r\n\r\n");
        assert_eq!(answer.headers, [("Allow", "OPTIONS, PUT".to_owned())]);
    }
}
