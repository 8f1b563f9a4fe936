//! Any bytes as texts and command lines: for the fuzz targets.

use super::{command_line, fingerprint, printable, request_path, roles};

/// Panics if a bound is broken, or if a second look shows what the first did not.
pub fn fuzz_redaction(bytes: &[u8]) {
    assert!(printable(bytes, 256).len() <= 256);
    assert!(request_path(bytes, 256).len() <= 256);
    let arguments: Vec<String> = bytes
        .split(|byte| *byte == 0)
        .map(|argument| String::from_utf8_lossy(argument).into_owned())
        .collect();
    for executable in [
        "/usr/bin/python3.11",
        "/usr/bin/bash",
        "/usr/bin/node",
        "/usr/bin/perl",
        "/opt/app",
    ] {
        let roles = roles(executable, arguments.iter().skip(1).map(String::as_str));
        assert!(roles.is_none_or(|roles| roles.len() + 1 >= arguments.len()));
        let once = command_line(Some(executable), arguments.clone()).unwrap_or_default();
        assert_eq!(once.len(), arguments.len());
        let twice = command_line(Some(executable), once.clone()).unwrap_or_default();
        let shows_no_more = |(once, twice): (&String, &String)| once == twice || twice.contains("[redacted");
        assert!(once.iter().zip(&twice).all(shows_no_more), "{once:?} {twice:?}");
    }
    assert_eq!(fingerprint(&arguments[0]).len(), 8);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(0), Just(b'-'), Just(b'='), Just(b'c'), Just(b':'), Just(b'/')], 0..200)) {
            super::fuzz_redaction(&bytes);
        }
    }
}
