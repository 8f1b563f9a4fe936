//! Facts that no observer on this kernel can record. docs/limitations.md explains each.

use super::check::{Check, CheckState};

/// Facts that are not visible, and the first kernel that shows them. `None`: no kernel does.
const LIMITS: &[(&str, Option<(u32, u32)>)] = &[
    ("response headers", None),
    ("drops that interrupt the tracing of another drop on the same CPU", None),
    (
        "errors of connections that io_uring or TCP fast open make, unless a packet shows them",
        None,
    ),
    (
        "the relation between the two connections of a proxy that rewrites TCP sequence numbers",
        None,
    ),
    (
        "which process sent data that the kernel delayed (Nagle's algorithm, TCP_CORK, a small window)",
        Some((5, 15)),
    ),
];

pub(super) fn checks(version: Option<(u32, u32)>) -> Vec<Check> {
    let hidden: Vec<&str> = LIMITS
        .iter()
        .filter(|(_, since)| since.is_none_or(|since| version.is_none_or(|version| version < since)))
        .map(|(what, _)| *what)
        .collect();
    let found = format!("{} kinds of events are never visible on this kernel", hidden.len());
    vec![Check::new("limits", CheckState::Note, found).blinding(hidden.join("; "))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_ends_with_the_kernel_that_shows_it() {
        let blinds = |version| checks(version)[0].blinds.clone().unwrap();
        assert!(blinds(Some((5, 10))).contains("Nagle"));
        assert!(!blinds(Some((5, 15))).contains("Nagle"));
        assert!(
            blinds(None).contains("Nagle"),
            "an unknown kernel shows nothing for certain"
        );
        assert!(blinds(Some((7, 0))).contains("io_uring"));
    }
}
