//! Where a head ends, and the header lines in it.

use std::borrow::Cow;

use memchr::memchr;

/// Result of [`Scanner::scan`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scan {
    /// No empty line yet.
    Incomplete,
    /// The head takes this many bytes, its empty line included.
    Complete(usize),
}

/// Finds the empty line that ends a head, over a buffer that grows. Looks at each byte once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scanner {
    /// Bytes of the buffer that were looked at.
    scanned: usize,
    /// The current line holds something besides CR.
    text: bool,
}

impl Scanner {
    /// `bytes` is the whole buffer from the head's first byte on, and never shrinks between calls.
    pub fn scan(&mut self, bytes: &[u8]) -> Scan {
        let has_text = |line: &[u8]| line.iter().any(|&byte| byte != b'\r');
        let mut rest = bytes.get(self.scanned..).unwrap_or_default();
        while let Some(at) = memchr(b'\n', rest) {
            self.scanned += at + 1;
            let text = std::mem::take(&mut self.text) || has_text(&rest[..at]);
            if !text {
                return Scan::Complete(self.scanned);
            }
            rest = &rest[at + 1..];
        }
        self.scanned += rest.len();
        self.text |= has_text(rest);
        Scan::Incomplete
    }
}

/// A header line, with its folded continuations. Neither printable nor comparable on purpose: the value may be a secret.
pub struct Header<'a> {
    /// Without white space around it.
    pub name: &'a [u8],
    /// Without white space around it; folds are single spaces.
    pub value: Cow<'a, [u8]>,
    /// The head was not cut inside this header.
    pub complete: bool,
}

impl Header<'_> {
    pub fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name.as_bytes())
    }
}

/// Iterates over the header lines behind a first line. Lines without a colon are passed over.
#[derive(Clone)]
pub struct Headers<'a> {
    rest: &'a [u8],
    truncated: bool,
}

impl<'a> Headers<'a> {
    /// `rest`: the bytes behind the first line.
    pub(super) fn new(rest: &'a [u8], truncated: bool) -> Self {
        Self { rest, truncated }
    }
}

/// Splits off one line: the line without its end, the rest, and whether the end was there.
pub(super) fn split_line(bytes: &[u8]) -> (&[u8], &[u8], bool) {
    let (line, rest, ended) = match memchr(b'\n', bytes) {
        Some(at) => (&bytes[..at], &bytes[at + 1..], true),
        None => (bytes, &bytes[bytes.len()..], false),
    };
    let end = line.iter().rposition(|&byte| byte != b'\r').map_or(0, |at| at + 1);
    (&line[..end], rest, ended)
}

impl<'a> Iterator for Headers<'a> {
    type Item = Header<'a>;

    fn next(&mut self) -> Option<Header<'a>> {
        loop {
            if self.rest.is_empty() {
                return None;
            }
            let (line, rest, mut ended) = split_line(self.rest);
            self.rest = rest;
            if line.is_empty() {
                self.rest = &[];
                return None;
            }
            let colon = memchr(b':', line);
            let (name, first) = match colon {
                Some(at) => (line[..at].trim_ascii(), line[at + 1..].trim_ascii()),
                None => (&line[..0], &line[..0]),
            };
            let mut value = Cow::Borrowed(first);
            while let Some(b' ' | b'\t') = self.rest.first() {
                let (fold, rest, fold_ended) = split_line(self.rest);
                self.rest = rest;
                ended = fold_ended;
                let fold = fold.trim_ascii();
                if colon.is_some() && !fold.is_empty() {
                    if !value.is_empty() {
                        value.to_mut().push(b' ');
                    }
                    value.to_mut().extend_from_slice(fold);
                }
            }
            if name.is_empty() {
                continue;
            }
            // Behind the last line a continuation may have been cut off: whether it was is unknown.
            let complete = !self.truncated || (ended && !self.rest.is_empty());
            return Some(Header { name, value, complete });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Vec<(String, String, bool)> {
        Headers::new(bytes, true)
            .map(|header| {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                (text(header.name), text(&header.value), header.complete)
            })
            .collect()
    }

    #[test]
    fn odd_spellings() {
        let headers = read(b"A: 1\r\nB : 2\nC:3\r\nD:\r\n 4\r\n\t5\r\nno colon\r\n : 6\r\nA:7\r\n\r\nE: body");
        let expected = [("A", "1"), ("B", "2"), ("C", "3"), ("D", "4 5"), ("A", "7")];
        assert_eq!(headers.len(), expected.len());
        for (header, (name, value)) in headers.iter().zip(expected) {
            assert_eq!((header.0.as_str(), header.1.as_str()), (name, value));
        }
    }

    #[test]
    fn the_cut_header_is_not_complete() {
        let headers = read(b"A: 1\r\nB: 2");
        assert!(headers[0].2);
        assert!(!headers[1].2);
        assert!(!read(b"A: 1\r\n")[0].2, "a fold might have followed");
    }

    #[test]
    fn the_empty_line_is_found_however_the_bytes_come() {
        let bytes = b"GET / HTTP/1.1\r\nA: b\r\n\r\nGET";
        for first in 0..bytes.len() {
            let mut scanner = Scanner::default();
            let found = match scanner.scan(&bytes[..first]) {
                Scan::Incomplete => scanner.scan(bytes),
                complete @ Scan::Complete(_) => complete,
            };
            assert_eq!(found, Scan::Complete(24));
        }
    }
}
