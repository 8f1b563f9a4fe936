//! From a request head to the record of it.

use super::dialect::{Hints, dialect};
use super::path::is_token_path;
use super::secret::{Hasher, Secret};
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
    }
}

/// A request from its head. The caller sets `ttl` and `retransmits`.
pub fn read_request(head: &http::Request<'_>, hasher: &Hasher) -> Request {
    let (Some(method), Some(path)) = (head.method, head.path()) else {
        let mut request = no_request(!head.truncated);
        request.method = head.method.map(str::to_owned);
        return request;
    };
    let (raw_path, path) = (path, request_path(path, PATH_BYTES));
    let mut forwarded = head.absolute();
    let mut user_agent = None;
    let (mut has_token, mut has_ttl) = (false, false);
    let (mut token, mut token_ttl_s) = (None, None);
    let mut hints = Hints::default();
    for header in head.headers() {
        if header.is(TOKEN) {
            has_token = true;
            if header.complete && token.is_none() {
                token = hasher.hash(&Secret::new(&header.value));
            }
        } else if header.is(TOKEN_TTL) {
            has_ttl = true;
            if header.complete && token_ttl_s.is_none() {
                token_ttl_s = std::str::from_utf8(&header.value)
                    .ok()
                    .and_then(|value| value.parse().ok());
            }
        } else if header.is("user-agent") {
            user_agent.get_or_insert_with(|| printable(&header.value, USER_AGENT_BYTES));
        } else if header.is("x-forwarded-for") || header.is("forwarded") || header.is("via") {
            forwarded = true;
        } else {
            hints.note(&header);
        }
    }
    let dialect = dialect(&path, hints, has_token || has_ttl);
    let imds_version = if dialect != Dialect::Aws {
        // A header behind the cut may still make an unknown path one of AWS; a known dialect stays.
        (dialect != Dialect::Unknown || !head.truncated).then_some(ImdsVersion::Other)
    } else if method == "PUT" && is_token_path(&path) {
        Some(ImdsVersion::Token)
    } else if has_token || has_ttl {
        Some(ImdsVersion::V2)
    } else {
        (!head.truncated).then_some(ImdsVersion::V1)
    };
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
    }
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

    fn read(text: &str) -> Request {
        read_request(&http::Request::parse(text.as_bytes(), false), &Hasher::with_salt(1, 2))
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
        ImdsVersion::Other
    )]
    fn versions(#[case] line: &str, #[case] headers: &str, #[case] dialect: Dialect, #[case] version: ImdsVersion) {
        let request = read(&format!("{line} HTTP/1.1\r\n{headers}\r\n"));
        assert_eq!((request.dialect, request.imds_version), (dialect, Some(version)));
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
