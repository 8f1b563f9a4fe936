//! A request head.

use super::head::{Headers, split_line};

/// Methods that we pass on by name. Anything else is no request to us: an unknown word at the start of a line may be anything, a secret too.
const METHODS: [&str; 15] = [
    "GET", "PUT", "HEAD", "POST", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "PROPFIND", "MKCOL", "COPY",
    "MOVE", "LOCK", "UNLOCK",
];

/// How the bytes behind the head are framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// This many bytes; 0: none.
    Length(u64),
    /// Chunked, or a length that makes no sense: the bytes don't show where the next head begins.
    Unknown,
}

/// A request head; what is absent was not there or made no sense. Not printable on purpose: it borrows the token.
pub struct Request<'a> {
    pub method: Option<&'static str>,
    /// As in the request line.
    pub target: Option<&'a [u8]>,
    /// The head goes on behind what we have.
    pub truncated: bool,
    rest: &'a [u8],
}

/// Whether `bytes` begin with a method that we know and a space.
pub fn starts_with_method(bytes: &[u8]) -> bool {
    METHODS.iter().any(|method| {
        bytes
            .strip_prefix(method.as_bytes())
            .is_some_and(|rest| rest.first() == Some(&b' '))
    })
}

/// Whether more bytes behind these could make a request line: false as soon as it is certain that they can't.
pub fn may_begin_request(bytes: &[u8]) -> bool {
    METHODS.iter().any(|method| {
        let method = method.as_bytes();
        let common = method.len().min(bytes.len());
        method[..common].eq_ignore_ascii_case(&bytes[..common])
            && bytes.get(method.len()).is_none_or(|byte| matches!(byte, b' ' | b'\t'))
    })
}

fn is_target(target: &[u8]) -> bool {
    let absolute = |scheme: &[u8]| {
        target
            .get(..scheme.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    };
    target.first() == Some(&b'/') || target == b"*" || absolute(b"http://") || absolute(b"https://")
}

impl<'a> Request<'a> {
    /// Reads a head, complete or truncated. `truncated`: more of it exists.
    pub fn parse(bytes: &'a [u8], truncated: bool) -> Self {
        let start = bytes
            .iter()
            .position(|byte| !matches!(byte, b'\r' | b'\n'))
            .unwrap_or(bytes.len());
        let (line, rest, ended) = split_line(&bytes[start..]);
        let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        let method = words.next().and_then(|word| {
            METHODS
                .iter()
                .copied()
                .find(|method| method.as_bytes().eq_ignore_ascii_case(word))
        });
        // A target that runs up to the cut may be any longer target's beginning.
        let target = words.next().filter(|target| is_target(target));
        let method = method.filter(|_| target.is_some() || (truncated && !ended));
        Self {
            method,
            target: target.filter(|_| method.is_some()),
            truncated,
            rest,
        }
    }

    pub fn headers(&self) -> Headers<'a> {
        Headers::new(self.rest, self.truncated)
    }

    /// The target is a whole URL, as proxies are sent.
    pub fn absolute(&self) -> bool {
        self.target
            .is_some_and(|target| target.first().is_some_and(|byte| !matches!(byte, b'/' | b'*')))
    }

    /// Path and query of the target.
    pub fn path(&self) -> Option<&'a [u8]> {
        let target = self.target?;
        if !self.absolute() {
            return Some(target);
        }
        let behind_scheme = target
            .windows(3)
            .position(|window| window == b"://")
            .map_or(0, |at| at + 3);
        let authority = target.get(behind_scheme..).unwrap_or_default();
        let at = authority.iter().position(|byte| matches!(byte, b'/' | b'?'));
        Some(at.map_or(b"/", |at| &authority[at..]))
    }

    pub fn body(&self) -> Body {
        let mut body = Body::Length(0);
        for header in self.headers() {
            if header.is("transfer-encoding") {
                return Body::Unknown;
            }
            if header.is("content-length") {
                let length = std::str::from_utf8(&header.value)
                    .ok()
                    .and_then(|value| value.parse().ok());
                body = match (length, body) {
                    (Some(length), Body::Length(before)) if before == 0 || before == length => Body::Length(length),
                    _ => return Body::Unknown,
                };
            }
        }
        body
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line(bytes: &[u8]) -> (Option<&'static str>, Option<String>) {
        let request = Request::parse(bytes, false);
        (
            request.method,
            request.path().map(|path| String::from_utf8_lossy(path).into_owned()),
        )
    }

    #[test]
    fn request_lines() {
        assert_eq!(line(b"GET /a?b HTTP/1.1\r\n\r\n"), (Some("GET"), Some("/a?b".into())));
        assert_eq!(line(b"\r\nput  /a\tHTTP/1.1\n\n"), (Some("PUT"), Some("/a".into())));
        assert_eq!(line(b"GET /\n"), (Some("GET"), Some("/".into())));
        assert_eq!(
            line(b"GET http://u:p@169.254.169.254:80/latest/ HTTP/1.1\r\n"),
            (Some("GET"), Some("/latest/".into()))
        );
        assert_eq!(
            line(b"GET HTTP://169.254.169.254 HTTP/1.1\r\n"),
            (Some("GET"), Some("/".into()))
        );
        assert_eq!(line(b"\x16\x03\x01\x02\x00"), (None, None));
        assert_eq!(line(b"SSH-2.0-x\r\n"), (None, None));
        assert_eq!(line(b"GET secret HTTP/1.1\r\n"), (None, None));
        assert_eq!(line(b""), (None, None));
    }

    #[test]
    fn beginnings() {
        for yes in ["", "G", "GET", "GET /", "get /", "PUT\t"] {
            assert!(may_begin_request(yes.as_bytes()), "{yes:?}");
        }
        for no in ["X", "GETX", "\x16\x03", "HTTP/1.1", "GET\r\n"] {
            assert!(!may_begin_request(no.as_bytes()), "{no:?}");
        }
    }

    #[test]
    fn bodies() {
        let body = |headers: &str| Request::parse(format!("PUT / HTTP/1.1\r\n{headers}\r\n").as_bytes(), false).body();
        assert_eq!(body(""), Body::Length(0));
        assert_eq!(body("content-length : 12\r\n"), Body::Length(12));
        assert_eq!(body("Content-Length: 12\r\nContent-Length: 13\r\n"), Body::Unknown);
        assert_eq!(body("Content-Length: -1\r\n"), Body::Unknown);
        assert_eq!(body("Transfer-Encoding: chunked\r\n"), Body::Unknown);
    }

    proptest! {
        #[test]
        fn any_bytes_give_something(bytes in proptest::collection::vec(any::<u8>(), 0..600), truncated: bool) {
            let request = Request::parse(&bytes, truncated);
            let _ = (request.path(), request.body(), request.headers().count());
        }

        /// Heads that httparse accepts are read the same here.
        #[test]
        fn agrees_with_httparse(
            path in "/[a-z0-9/?=&.-]{0,40}",
            headers in proptest::collection::vec(("[A-Za-z][A-Za-z0-9-]{0,12}", "[ -~]{0,30}"), 0..6),
        ) {
            let headers: String = headers.iter().flat_map(|(name, value)| [name, ": ", value, "\r\n"]).collect();
            let text = format!("GET {path} HTTP/1.1\r\n{headers}\r\n");
            let mut theirs = [httparse::EMPTY_HEADER; 16];
            let mut parsed = httparse::Request::new(&mut theirs);
            prop_assert!(parsed.parse(text.as_bytes()).unwrap().is_complete());
            let ours = Request::parse(text.as_bytes(), false);
            prop_assert_eq!(ours.method, parsed.method);
            prop_assert_eq!(ours.path(), parsed.path.map(str::as_bytes));
            let ours: Vec<_> = ours.headers().map(|header| (header.name, header.value.into_owned())).collect();
            let theirs: Vec<_> =
                parsed.headers.iter().map(|header| (header.name.as_bytes(), header.value.trim_ascii().to_vec())).collect();
            prop_assert_eq!(ours, theirs);
        }
    }
}
