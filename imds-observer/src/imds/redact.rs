//! Makes text of untrusted bytes, without anything in it that looks like a token.

use std::sync::LazyLock;

use memchr::memmem::Finder;

/// Stands where something was taken out.
const MARK: &[u8] = b"[redacted]";

/// Real tokens begin so, and are about 56 characters of base64.
static TOKEN_START: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"AQAE"));
const TOKEN_MIN: usize = 8;

/// In the names of parameters and headers that carry tokens.
const NAME: &[u8] = b"token";

/// Where the first [`NAME`] is, however it is spelt: looked for by its rarest letter.
fn find_name(bytes: &[u8]) -> Option<usize> {
    memchr::memchr2_iter(b'k', b'K', bytes).find_map(|at| {
        let start = at.checked_sub(2)?;
        let there = bytes.get(start..start + NAME.len())?;
        there.eq_ignore_ascii_case(NAME).then_some(start)
    })
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=' | b'_' | b'-' | b'%')
}

/// Undoes percent-encoding of ASCII, so that an encoded name is known for what it is. The result is only looked at, never shown.
fn decoded(bytes: &[u8]) -> Vec<(u8, usize)> {
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let hex = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        let code = hex
            .filter(|_| byte == b'%')
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        decoded.push((code.unwrap_or(byte), at));
        at += if code.is_some() { 3 } else { 1 };
    }
    decoded
}

/// Where the value of a parameter or header with `token` in its name begins and ends.
fn named_token(bytes: &[u8]) -> Option<(usize, usize)> {
    // Most text has neither the name nor anything encoded that could be it.
    if memchr::memchr(b'%', bytes).is_none() && find_name(bytes).is_none() {
        return None;
    }
    let map = decoded(bytes);
    let plain: Vec<u8> = map.iter().map(|&(byte, _)| byte).collect();
    let place = |at: usize| map.get(at).map_or(bytes.len(), |&(_, place)| place);
    let mut from = 0;
    while let Some(found) = find_name(&plain[from..]) {
        let mut at = from + found + NAME.len();
        while plain
            .get(at)
            .is_some_and(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'[' | b']'))
        {
            at += 1;
        }
        while plain.get(at).is_some_and(u8::is_ascii_whitespace) {
            at += 1;
        }
        match plain.get(at) {
            // A parameter ends where the next begins.
            Some(b'=') => {
                let end = plain[at..]
                    .iter()
                    .position(|byte| matches!(byte, b'&' | b';'))
                    .map_or(plain.len(), |end| at + end);
                return Some((place(at + 1), place(end)));
            }
            Some(b':') => return Some((place(at + 1), bytes.len())),
            _ => from = at,
        }
    }
    None
}

/// A run of base64 that begins as tokens do.
fn bare_token(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut from = 0;
    while let Some(found) = TOKEN_START.find(&bytes[from..]) {
        let start = from + found;
        let length = bytes[start..]
            .iter()
            .position(|&byte| !is_base64(byte))
            .unwrap_or(bytes.len() - start);
        if length >= TOKEN_MIN {
            return Some((start, start + length));
        }
        from = start + length;
    }
    None
}

/// Text of `bytes`, at most `limit` bytes long, with replacement characters for what isn't UTF-8 and a mark for what looks like a token.
pub fn printable(bytes: &[u8], limit: usize) -> String {
    // Looks further than the limit: a token must not slip through because the cut made it short.
    let bytes = &bytes[..bytes.len().min(limit.saturating_mul(2))];
    let mut clean = Vec::new();
    let mut rest = bytes;
    loop {
        let span = [named_token(rest), bare_token(rest)]
            .into_iter()
            .flatten()
            .filter(|(start, end)| start < end)
            .min();
        let Some((start, end)) = span else { break };
        clean.extend_from_slice(&rest[..start]);
        clean.extend_from_slice(MARK);
        rest = &rest[end..];
    }
    // Most text has nothing to be taken out.
    let clean = if clean.is_empty() {
        rest
    } else {
        clean.extend_from_slice(rest);
        &clean
    };
    // Most text is UTF-8, and to see that takes a part of what looking for replacements does.
    let mut text = match std::str::from_utf8(clean) {
        Ok(text) => text.to_owned(),
        Err(_) => String::from_utf8_lossy(clean).into_owned(),
    };
    if text.len() > limit {
        let end = (0..=limit).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

/// The arguments of a command line, each ended by a zero byte. `curl -H 'X-aws-ec2-metadata-token: ...'` carries a token too.
pub fn arguments(bytes: &[u8]) -> Vec<String> {
    bytes
        .strip_suffix(b"\0")
        .unwrap_or(bytes)
        .split(|byte| *byte == 0)
        .map(|argument| printable(argument, usize::MAX))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(bytes: &str) -> String {
        printable(bytes.as_bytes(), 512)
    }

    #[test]
    fn a_command_line_loses_its_token() {
        let line =
            b"curl\0-H\0X-aws-ec2-metadata-token:AQAEmadeup==\0-H\0X-aws-ec2-metadata-token: made up\0http://h/x\0";
        let header = "X-aws-ec2-metadata-token:[redacted]";
        assert_eq!(arguments(line), ["curl", "-H", header, "-H", header, "http://h/x"]);
        assert_eq!(arguments(b"sh\0\0"), ["sh", ""]);
    }

    #[test]
    fn plain_text_stays() {
        for plain in [
            "/latest/api/token",
            "/latest/meta-data/iam/",
            "Botocore/1.2 md/Botocore#1 ua/2.0",
            "/a?token",
            "/AQAE",
        ] {
            assert_eq!(text(plain), plain);
        }
    }

    #[test]
    fn tokens_go() {
        assert_eq!(
            text("/latest?X-aws-ec2-metadata-token=abc&b=c"),
            "/latest?X-aws-ec2-metadata-token=[redacted]&b=c"
        );
        assert_eq!(
            text("/?a=b&x-aws-ec2-metadata-TOKEN%3Dabc"),
            "/?a=b&x-aws-ec2-metadata-TOKEN%3D[redacted]"
        );
        assert_eq!(text("/?X%2Daws%2Dtok%65n=abc"), "/?X%2Daws%2Dtok%65n=[redacted]");
        assert_eq!(
            text("curl X-aws-ec2-metadata-token : abc def"),
            "curl X-aws-ec2-metadata-token :[redacted]"
        );
        assert_eq!(text("/x/AQAEAAbcdefghijklmnop==?b"), "/x/[redacted]?b");
        assert_eq!(
            text("/?token=a&token=b&token=c"),
            "/?token=[redacted]&token=[redacted]&token=[redacted]"
        );
    }

    proptest! {
        #[test]
        fn bounded_and_total(bytes in proptest::collection::vec(any::<u8>(), 0..1500)) {
            prop_assert!(printable(&bytes, 512).len() <= 512);
        }

        #[test]
        fn no_real_looking_token_survives(before in "[a-z/? ]{0,600}", token in "AQAE[A-Za-z0-9+/]{30,52}==", after in "[a-z&]{0,20}") {
            let shown = printable(format!("{before}{token}{after}").as_bytes(), 512);
            prop_assert!(!shown.contains(&token[..20]));
        }
    }
}
