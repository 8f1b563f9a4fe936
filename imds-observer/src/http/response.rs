//! A status line, and the headers of a captured response head that identify the server.

use super::head::{Headers, split_line};

/// A response head, whole or cut.
pub struct Response<'a> {
    /// `None`: not HTTP, or cut before the number.
    pub status: Option<u16>,
    truncated: bool,
    rest: &'a [u8],
}

/// The status of `HTTP/1.1 200 OK`, from as few bytes as hold it.
pub fn status_of(bytes: &[u8]) -> Option<u16> {
    let rest = bytes.strip_prefix(b"HTTP/")?;
    let space = rest.iter().take(4).position(|&byte| byte == b' ')?;
    let rest = rest[space..].trim_ascii_start();
    let digits = rest.get(..3)?;
    if !digits.iter().all(u8::is_ascii_digit) || rest.get(3).is_some_and(u8::is_ascii_digit) {
        return None;
    }
    let status = digits
        .iter()
        .fold(0, |status, digit| status * 10 + u16::from(digit - b'0'));
    (100..=999).contains(&status).then_some(status)
}

impl<'a> Response<'a> {
    pub fn parse(bytes: &'a [u8], truncated: bool) -> Self {
        let (line, rest, _) = split_line(bytes);
        Self {
            status: status_of(line),
            truncated,
            rest,
        }
    }

    pub fn headers(&self) -> Headers<'a> {
        Headers::new(self.rest, self.truncated)
    }

    /// Bytes of the body, if the head has the length.
    pub fn body_length(&self) -> Option<u64> {
        if matches!(self.status, Some(100..=199 | 204 | 304)) {
            return Some(0);
        }
        let mut length = None;
        for header in self.headers() {
            if header.is("transfer-encoding") {
                return None;
            }
            if header.is("content-length") && header.complete {
                length = std::str::from_utf8(&header.value)
                    .ok()
                    .and_then(|value| value.parse().ok());
            }
        }
        length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines() {
        assert_eq!(status_of(b"HTTP/1.1 200 OK\r"), Some(200));
        assert_eq!(status_of(b"HTTP/1.0 404"), Some(404));
        assert_eq!(status_of(b"HTTP/1.1  503 x"), Some(503));
        for none in [
            &b""[..],
            b"HTTP/1.1",
            b"HTTP/1.1 20",
            b"HTTP/1.1 2000",
            b"HTTP/1.1 099 x",
            b"\xff\xfe",
            b"http/1.1 200 ",
        ] {
            assert_eq!(status_of(none), None);
        }
    }

    #[test]
    fn bodies() {
        let length = |text: &str| Response::parse(text.as_bytes(), false).body_length();
        assert_eq!(length("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"), Some(5));
        assert_eq!(length("HTTP/1.1 204 x\r\nContent-Length: 5\r\n\r\n"), Some(0));
        assert_eq!(length("HTTP/1.1 200 OK\r\n\r\n"), None);
    }
}
