//! From a request head to the record of it.

use std::net::IpAddr;

use super::dialect::{Hints, dialect};
use super::endpoint::endpoint_at;
use super::path::{is_token_path, normalise};
use super::secret::{Hasher, Secret};
use super::trace_context::TraceContext;
use crate::http;
use crate::record::{Dialect, ImdsVersion, Request};
use crate::redact::{MARK, printable, request_path};

/// Bytes of path and query that a record keeps.
pub const PATH_BYTES: usize = 512;
/// Bytes of the user agent that a record keeps.
pub const USER_AGENT_BYTES: usize = 256;
/// Bytes of a response's `Server` header that a record keeps.
const SERVER_BYTES: usize = 64;

const TOKEN: &str = "x-aws-ec2-metadata-token";
const TOKEN_TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";

/// Bytes that are no HTTP request (`known`), or an unreadable request (not `known`).
pub fn no_request(known: bool) -> Request {
    Request {
        method: None,
        path: None,
        dialect: Dialect::Unknown,
        imds_version: known.then_some(ImdsVersion::Other),
        token: None,
        token_ttl_s: None,
        user_agent: None,
        ttl: None,
        forwarded: false,
        ttl_on_wire: None,
        retransmits: 0,
        hops: None,
        endpoint: None,
        trace_id: None,
    }
}

/// The first values of headers that hold tokens and their lifetimes.
#[derive(Default)]
struct Tokens {
    hash: Option<String>,
    lifetime_s: Option<u32>,
    has_token: bool,
    has_lifetime: bool,
    /// `Authorization`, which is no token in every dialect.
    authorization: Option<String>,
}

impl Tokens {
    /// `false`: it is no such header.
    fn note(&mut self, header: &http::Header<'_>, hasher: &Hasher) -> bool {
        const HEADERS: [&str; 4] = [
            TOKEN,
            "x-metadata-token",
            "metadata-token",
            "x-aliyun-ecs-metadata-token",
        ];
        const LIFETIMES: [&str; 4] = [
            TOKEN_TTL,
            "x-metadata-token-ttl-seconds",
            "metadata-token-expiry-seconds",
            "x-aliyun-ecs-metadata-token-ttl-seconds",
        ];
        if HEADERS.iter().any(|name| header.is(name)) {
            self.has_token = true;
            if header.complete && self.hash.is_none() {
                self.hash = hasher.hash(&Secret::new(&header.value));
            }
        } else if LIFETIMES.iter().any(|name| header.is(name)) {
            self.has_lifetime = true;
            if header.complete && self.lifetime_s.is_none() {
                self.lifetime_s = std::str::from_utf8(&header.value)
                    .ok()
                    .and_then(|value| value.parse().ok());
            }
        } else if header.is("authorization") {
            if header.complete && self.authorization.is_none() {
                self.authorization = hasher.hash(&Secret::new(&header.value));
            }
        } else {
            return false;
        }
        true
    }
}

/// A request from its head. The caller sets `ttl` and `retransmits`.
pub fn read_request(head: &http::Request<'_>, hasher: &Hasher) -> Request {
    read_request_to(head, hasher, None)
}

/// The same, for a request to this address.
pub fn read_request_to(head: &http::Request<'_>, hasher: &Hasher, address: Option<IpAddr>) -> Request {
    let (Some(method), Some(path)) = (head.method, head.path()) else {
        let mut request = no_request(!head.truncated);
        request.method = head.method.map(str::to_owned);
        request.endpoint = address.map(endpoint_at);
        return request;
    };
    let (raw_path, path) = (path, request_path(path, PATH_BYTES));
    let mut forwarded = head.absolute();
    let mut user_agent = None;
    let mut trace = TraceContext::default();
    let mut tokens = Tokens::default();
    let mut hints = Hints::default();
    let mut aws_token = false;
    for header in head.headers() {
        if tokens.note(&header, hasher) {
            aws_token |= header.is(TOKEN) || header.is(TOKEN_TTL);
            hints.note(&header);
        } else if header.is("user-agent") {
            user_agent.get_or_insert_with(|| printable(&header.value, USER_AGENT_BYTES));
        } else if header.is("x-forwarded-for") || header.is("forwarded") || header.is("via") {
            forwarded = true;
        } else if !trace.note(&header) {
            hints.note(&header);
        }
    }
    let dialect = dialect(&path, hints, aws_token, address);
    let imds_version = version(dialect, method, &path, &tokens, head.truncated);
    let token = match dialect {
        Dialect::EksPodIdentity | Dialect::Ibm => tokens.authorization,
        Dialect::Ecs => task_id(raw_path, hasher).or(tokens.authorization),
        _ => tokens.hash,
    };
    let token_ttl_s = tokens.lifetime_s;
    Request {
        method: Some(method.to_owned()),
        path: Some(match memchr::memrchr(b'@', raw_path).filter(|_| head.absolute()) {
            // A password in front of the host may hold a slash, so that a part of it looks like the path.
            Some(at) => format!("/{MARK}{}", request_path(&raw_path[at..], PATH_BYTES - MARK.len() - 1)),
            None => path,
        }),
        dialect,
        imds_version,
        token,
        token_ttl_s,
        user_agent,
        ttl: None,
        forwarded,
        retransmits: 0,
        ttl_on_wire: None,
        hops: None,
        endpoint: address.map(endpoint_at),
        trace_id: trace.id(),
    }
}

/// `None`: the head is truncated before what decides it.
fn version(dialect: Dialect, method: &str, path: &str, tokens: &Tokens, truncated: bool) -> Option<ImdsVersion> {
    let with_token = match dialect {
        Dialect::Ibm => tokens.authorization.is_some(),
        _ => tokens.has_token || tokens.has_lifetime,
    };
    let is_token_request = || match dialect {
        Dialect::Aws => is_token_path(path),
        _ => dialect.protocol().is_token_path(&normalise(path)),
    };
    if dialect.protocol().token.is_none() {
        // A header behind the cut may still make an unknown path one of AWS; a known dialect stays.
        (dialect != Dialect::Unknown || !truncated).then_some(ImdsVersion::Other)
    } else if method == "PUT" && is_token_request() {
        Some(ImdsVersion::Token)
    } else if with_token {
        Some(ImdsVersion::V2)
    } else {
        (!truncated).then_some(ImdsVersion::V1)
    }
}

/// The hash of the id in a path of the ECS agent: it is the task's credential.
fn task_id(raw_path: &[u8], hasher: &Hasher) -> Option<String> {
    let path = std::str::from_utf8(raw_path).ok()?;
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let of_query = || query.split('&').find_map(|pair| pair.strip_prefix("id="));
    let mut segments = path.split('/').filter(|segment| !segment.is_empty());
    let id = match (segments.next()?, segments.next()?) {
        ("v1", "credentials") => of_query()?,
        ("v2", "credentials" | "splunk-token" | "container-env") => segments.next()?,
        ("v3" | "v4" | "api", id) => id,
        _ => return None,
    };
    hasher.hash(&Secret::new(id.as_bytes()))
}

/// `Server`, and whether a `Via` or `X-Cache` header reveals a proxy (`None` if the head is truncated before one).
pub fn response_headers(head: &http::Response<'_>, truncated: bool) -> (Option<String>, Option<bool>) {
    let (mut server, mut proxy) = (None, false);
    for header in head.headers() {
        if header.is("server") {
            server.get_or_insert_with(|| printable(&header.value, SERVER_BYTES));
        } else if header.is("via") || header.is("x-cache") {
            proxy = true;
        }
    }
    (server, (proxy || !truncated).then_some(proxy))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;
    use crate::record::Endpoint;

    fn read_to(address: &str, text: &str) -> Request {
        let head = http::Request::parse(text.as_bytes(), false);
        read_request_to(&head, &Hasher::with_salt(1, 2), Some(address.parse().unwrap()))
    }

    fn read(text: &str) -> Request {
        read_request(&http::Request::parse(text.as_bytes(), false), &Hasher::with_salt(1, 2))
    }

    #[test]
    fn a_request_carries_the_id_of_its_trace_and_no_other_text() {
        let of = |headers: &str| read(&format!("GET /latest/meta-data/ HTTP/1.1\r\n{headers}\r\n")).trace_id;
        let w3c = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n";
        assert_eq!(of(w3c).as_deref(), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
        assert_eq!(of("X-Datadog-Trace-Id: 77\r\n").as_deref(), Some("77"));
        assert_eq!(
            of(&format!("x-datadog-trace-id: 77\r\n{w3c}")).as_deref(),
            Some("4bf92f3577b34da6a3ce929d0e0e4736")
        );
        assert_eq!(of("traceparent: AQAEAmadeuptoken==\r\nsentry-trace: secret\r\n"), None);
    }

    #[rstest]
    #[case("X-aws-ec2-metadata-token: S3CRETS3CRET")]
    #[case("x-AWS-ec2-METADATA-token: S3CRETS3CRET")]
    #[case("X-AWS-EC2-Metadata-Token : S3CRETS3CRET")]
    #[case("X-aws-ec2-metadata-token:S3CRETS3CRET")]
    #[case("X-aws-ec2-metadata-token:\r\n S3CRETS3CRET")]
    #[case("X-aws-ec2-metadata-token: S3CRETS3CRET\r\nX-aws-ec2-metadata-token: S3CRETS3CRET")]
    fn odd_token_headers_are_v2_with_one_hash(#[case] header: &str) {
        let request = read(&format!(
            "GET /latest/meta-data/ HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n"
        ));
        assert_eq!(request.imds_version, Some(ImdsVersion::V2));
        let plain = read("GET / HTTP/1.1\r\nX-aws-ec2-metadata-token: S3CRETS3CRET\r\n\r\n");
        assert_eq!(request.token, plain.token);
        assert!(request.token.is_some());
    }

    #[rstest]
    #[case("PUT /latest/api/token", "", Dialect::Aws, ImdsVersion::Token)]
    #[case(
        "PUT //latest/api/token/",
        "X-aws-ec2-metadata-token-ttl-seconds: 60\r\n",
        Dialect::Aws,
        ImdsVersion::Token
    )]
    #[case("GET /latest/api/token", "", Dialect::Aws, ImdsVersion::V1)]
    #[case("GET /", "", Dialect::Aws, ImdsVersion::V1)]
    #[case("GET /latest/meta-data/X-aws-ec2-metadata-token", "", Dialect::Aws, ImdsVersion::V1)]
    #[case(
        "GET /latest/meta-data/",
        "User-Agent: X-aws-ec2-metadata-token: x\r\n",
        Dialect::Aws,
        ImdsVersion::V1
    )]
    #[case(
        "GET /2021-03-23/meta-data/",
        "X-aws-ec2-metadata-token: a\r\n",
        Dialect::Aws,
        ImdsVersion::V2
    )]
    #[case("GET /favicon.ico", "", Dialect::Unknown, ImdsVersion::Other)]
    #[case(
        "GET /latest/meta-data/",
        "Metadata-Flavor: Google\r\n",
        Dialect::Aws,
        ImdsVersion::V1
    )]
    #[case("GET /latest/meta-data/", "Metadata: true\r\n", Dialect::Aws, ImdsVersion::V1)]
    #[case("GET /%6catest/meta-data/", "", Dialect::Aws, ImdsVersion::V1)]
    #[case(
        "GET /latest/meta-data/",
        "Metadata: true\r\nX-aws-ec2-metadata-token: a\r\n",
        Dialect::Aws,
        ImdsVersion::V2
    )]
    #[case("PUT /latest/api/%74oken", "", Dialect::Aws, ImdsVersion::Token)]
    #[case("GET /", "Metadata-Flavor: Google\r\n", Dialect::Gcp, ImdsVersion::Other)]
    #[case("GET /computeMetadata/v1/instance", "", Dialect::Gcp, ImdsVersion::Other)]
    #[case(
        "GET /metadata/instance?api-version=2021-02-01",
        "Metadata: true\r\n",
        Dialect::Azure,
        ImdsVersion::Other
    )]
    #[case("GET /opc/v2/instance/", "", Dialect::Oracle, ImdsVersion::Other)]
    #[case("GET /openstack/latest/meta_data.json", "", Dialect::Openstack, ImdsVersion::Other)]
    #[case("GET /metadata/v1.json", "", Dialect::Digitalocean, ImdsVersion::Other)]
    #[case("GET /hetzner/v1/metadata", "", Dialect::Hetzner, ImdsVersion::Other)]
    #[case(
        "PUT /latest/api/token",
        "X-aliyun-ecs-metadata-token-ttl-seconds: 6\r\n",
        Dialect::Alibaba,
        ImdsVersion::Token
    )]
    #[case(
        "GET /latest/meta-data/",
        "X-aliyun-ecs-metadata-token: a\r\n",
        Dialect::Alibaba,
        ImdsVersion::V2
    )]
    #[case(
        "PUT /meta-data/latest/api/token",
        "X-Metadata-Token-Ttl-Seconds: 21600\r\n",
        Dialect::Huawei,
        ImdsVersion::Token
    )]
    #[case(
        "GET /openstack/latest/meta_data.json",
        "X-Metadata-Token: a\r\n",
        Dialect::Huawei,
        ImdsVersion::V2
    )]
    #[case("GET /openstack/latest/securitykey", "", Dialect::Huawei, ImdsVersion::V1)]
    #[case(
        "PUT /latest/api/token",
        "X-metadata-token-ttl-seconds: 60\r\n",
        Dialect::Mmds,
        ImdsVersion::Token
    )]
    #[case("GET /latest/meta-data/", "X-metadata-token: a\r\n", Dialect::Mmds, ImdsVersion::V2)]
    #[case(
        "PUT /v1/token",
        "Metadata-Token-Expiry-Seconds: 60\r\n",
        Dialect::Linode,
        ImdsVersion::Token
    )]
    #[case("GET /v1/instance", "Metadata-Token: a\r\n", Dialect::Linode, ImdsVersion::V2)]
    #[case(
        "PUT /instance_identity/v1/token?version=2022-03-29",
        "Metadata-Flavor: ibm\r\n",
        Dialect::Ibm,
        ImdsVersion::Token
    )]
    #[case(
        "GET /metadata/v1/instance?version=2022-03-29",
        "Authorization: Bearer a\r\n",
        Dialect::Ibm,
        ImdsVersion::V2
    )]
    #[case(
        "GET /metadata/instance?api-version=2021-02-01",
        "",
        Dialect::Azure,
        ImdsVersion::Other
    )]
    fn versions(#[case] line: &str, #[case] headers: &str, #[case] dialect: Dialect, #[case] version: ImdsVersion) {
        let request = read(&format!("{line} HTTP/1.1\r\n{headers}\r\n"));
        assert_eq!((request.dialect, request.imds_version), (dialect, Some(version)));
    }

    #[rstest]
    #[case(
        "169.254.170.23",
        "GET /v1/credentials",
        Dialect::EksPodIdentity,
        Endpoint::EksPodIdentity
    )]
    #[case("fd00:ec2::23", "GET /", Dialect::EksPodIdentity, Endpoint::EksPodIdentity)]
    #[case("169.254.170.2", "GET /latest/meta-data/", Dialect::Ecs, Endpoint::Ecs)]
    #[case("169.254.169.254", "GET /v1/credentials", Dialect::Unknown, Endpoint::Imds)]
    #[case("100.100.100.200", "GET /latest/meta-data/", Dialect::Alibaba, Endpoint::Other)]
    #[case("127.0.0.1", "GET /latest/meta-data/", Dialect::Aws, Endpoint::Other)]
    fn an_endpoint_of_one_service_decides(
        #[case] address: &str,
        #[case] line: &str,
        #[case] dialect: Dialect,
        #[case] endpoint: Endpoint,
    ) {
        let request = read_to(address, &format!("{line} HTTP/1.1\r\n\r\n"));
        assert_eq!((request.dialect, request.endpoint), (dialect, Some(endpoint)));
    }

    #[test]
    fn secrets_of_agents_only_distinguish_their_owners() {
        let pod = |jwt: &str| {
            read_to(
                "169.254.170.23",
                &format!("GET /v1/credentials HTTP/1.1\r\nAuthorization: {jwt}\r\n\r\n"),
            )
        };
        assert!(pod("S3CRET.a.b").token.is_some());
        assert_eq!(pod("S3CRET.a.b").token, pod("S3CRET.a.b").token);
        assert_ne!(pod("S3CRET.a.b").token, pod("S3CRET.a.c").token);
        let task = |path: &str| read_to("169.254.170.2", &format!("GET {path} HTTP/1.1\r\n\r\n"));
        let id = "S3CRET00-1111-4222-8333-444444444444";
        let one = task(&format!("/v2/credentials/{id}"));
        assert_eq!(one.token, task(&format!("/v1/credentials?id={id}")).token);
        assert_eq!(one.token, task(&format!("/v4/{id}/task")).token);
        assert!(one.token.is_some() && !format!("{one:?}").contains("S3CRET"), "{one:?}");
        assert_eq!(task("/").token, None);
    }

    #[test]
    fn a_cut_head_decides_only_what_it_shows() {
        let cut = |text: &str| read_request(&http::Request::parse(text.as_bytes(), true), &Hasher::with_salt(1, 2));
        assert_eq!(
            cut("GET /latest/meta-data/ HTTP/1.1\r\nHost: x\r\nX-aws").imds_version,
            None
        );
        let request = cut("GET /latest/meta-data/ HTTP/1.1\r\nX-aws-ec2-metadata-token: abc");
        assert_eq!((request.imds_version, request.token), (Some(ImdsVersion::V2), None));
        assert_eq!(
            cut("PUT /latest/api/token HTTP/1.1\r\nHo").imds_version,
            Some(ImdsVersion::Token)
        );
    }

    #[test]
    fn the_rest_of_the_record() {
        let request = read(
            "PUT http://169.254.169.254/latest/api/token HTTP/1.1\r\nUser-Agent: a/1\r\nX-aws-ec2-metadata-token-ttl-seconds: 21600\r\n\r\n",
        );
        assert_eq!(request.path.as_deref(), Some("/latest/api/token"));
        assert_eq!(request.token_ttl_s, Some(21600));
        assert_eq!(request.user_agent.as_deref(), Some("a/1"));
        assert!(request.forwarded);
        assert!(read("GET / HTTP/1.1\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n").forwarded);
        assert!(!read("GET / HTTP/1.1\r\n\r\n").forwarded);
    }

    #[test]
    fn userinfo_of_an_absolute_target_is_not_shown() {
        for target in [
            "http://user:S3/CRET@169.254.169.254/latest/",
            "http://u:S3?CRET@169.254.169.254/",
            "//u:S3CRET@h/",
        ] {
            let path = read(&format!("GET {target} HTTP/1.1\r\n\r\n")).path.unwrap();
            assert!(!path.contains("S3") && !path.contains("CRET"), "{path}");
        }
        let plain = read("GET http://169.254.169.254/latest/?a=@ HTTP/1.1\r\n\r\n");
        assert_eq!(plain.imds_version, Some(ImdsVersion::V1), "judged as it was sent");
    }

    proptest! {
        #[test]
        fn no_token_in_a_record(token in "[A-Za-z0-9]{16,56}", spelling in 0..12_usize, cut in 0..400_usize, truncated: bool) {
            let name = "X-aws-ec2-metadata-token";
            let head = match spelling {
                0 => format!("GET / HTTP/1.1\r\n{name}: {token}\r\n\r\n"),
                1 => format!("GET / HTTP/1.1\r\n{name} : {token}\r\n\r\n"),
                2 => format!("GET / HTTP/1.1\r\n{name}:{token}\r\n\r\n"),
                3 => format!("GET / HTTP/1.1\r\nUser-Agent: a\r\n {name}: {token}\r\n\r\n"),
                4 => format!("GET / HTTP/1.1\r\nUser-Agent: a\r{name}: {token}\r\n\r\n"),
                5 => format!("GET /?{name}={token} HTTP/1.1\r\n\r\n"),
                6 => format!("GET /?{name}%3d{token} HTTP/1.1\r\n\r\n"),
                7 => format!("GET /\r\n {name}: {token}\r\n\r\n"),
                8 => format!("GET / HTTP/1.1\r{name}: {token}\r\r"),
                9 => format!("{name}: {token}\r\nGET / HTTP/1.1\r\n\r\n"),
                10 => format!("GET / HTTP/1.1\r\n{name}\0: {token}\r\n{name}: {token}\r\n{name}:\r\n\t{token}\r\n\r\n"),
                _ => format!("GET / {name}: {token} HTTP/1.1\r\nUser-Agent: x-aws-ec2-metadata-\r\n token:{token}\r\n\r\n"),
            };
            let bytes = &head.as_bytes()[..if truncated { cut.min(head.len()) } else { head.len() }];
            let request = read_request(&http::Request::parse(bytes, truncated), &Hasher::with_salt(1, 2));
            let shown = format!("{request:?} {}", serde_json::to_string(&request).unwrap());
            prop_assert!(!shown.contains(&token), "{shown}");
            prop_assert!(!shown.contains(&token[..12]), "{shown}");
        }
    }
}
