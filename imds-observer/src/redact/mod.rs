//! Decides which parts of an untrusted text may be shown. All texts in records pass through this module.
//!
//! Two rules. Command lines go by an allow-list ([`arguments`]): known flags and shapes are kept, everything else is replaced. Other texts
//! (paths, user agents, names) are shown except for what is named like a secret or looks like one ([`text`]). Queries of request paths are
//! between the two: keys are shown, values by the allow-list.

mod arguments;
mod fuzz;
mod interpreter;
mod shape;
mod task_ids;
mod text;
mod words;

use std::fmt::Write as _;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::OnceLock;

use serde::Deserialize;
use siphasher::sip::SipHasher24;

pub use arguments::command_line;
#[doc(hidden)]
pub use fuzz::fuzz_redaction;
pub use interpreter::{Role, roles};
pub use shape::{is_file_name, is_script};
pub use text::{is_secret_name, printable, request_path};

/// The path of a record that was read, with a mark for each id of a task: earlier versions wrote them. `None`: it holds none.
pub fn recorded_path(path: &str) -> Option<String> {
    text::without_task_ids(path, task_ids::PathContext::Request)
}

/// Replaces what is not shown.
pub const MARK: &str = "[redacted]";

/// How much of command lines is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cmdline {
    /// All arguments; only tokens and values that are named like secrets are replaced.
    Full,
    /// Arguments that the allow-list knows; the others are replaced.
    #[default]
    Redacted,
    /// No argument at all.
    None,
}

impl Cmdline {
    pub const ALL: [Self; 3] = [Self::Full, Self::Redacted, Self::None];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Redacted => "redacted",
            Self::None => "none",
        }
    }
}

/// One setting for the whole process, not an argument of each reader: a reader that forgot it would leak.
static MODE: OnceLock<Cmdline> = OnceLock::new();

/// Decides how much of command lines is kept, before the first is read. The first call counts.
///
/// Reads the key of the fingerprints, too: later the sandbox forbids it.
pub fn configure(mode: Cmdline) {
    let _ = MODE.set(mode);
    key();
}

fn mode() -> Cmdline {
    MODE.get().copied().unwrap_or_default()
}

/// The key of fingerprints is this boot's id: the same text has the same fingerprint until the host restarts, and readers of records on
/// other machines can't try guesses against it.
fn key() -> &'static SipHasher24 {
    static KEY: OnceLock<SipHasher24> = OnceLock::new();
    KEY.get_or_init(|| {
        let digits: String = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .unwrap_or_default()
            .chars()
            .filter(char::is_ascii_hexdigit)
            .collect();
        let word = |at: usize| {
            digits
                .get(at..at + 16)
                .and_then(|hex| u64::from_str_radix(hex, 16).ok())
        };
        let random = || RandomState::new().build_hasher().finish();
        SipHasher24::new_with_keys(word(0).unwrap_or_else(random), word(16).unwrap_or_else(random))
    })
}

/// Eight hexadecimal digits that distinguish two texts and disclose neither. That of a mark is the one inside it.
pub fn fingerprint(text: &str) -> String {
    if let Some(digits) = marked(text) {
        return digits.to_owned();
    }
    let mut hasher = *key();
    hasher.write(text.as_bytes());
    let mut digits = String::with_capacity(8);
    let _ = write!(digits, "{:08x}", hasher.finish() >> 32);
    digits
}

/// A mark with the fingerprint of what it replaces.
fn mark_of(text: &str) -> String {
    format!("[redacted #{}]", fingerprint(text))
}

/// The fingerprint in a mark.
fn marked(text: &str) -> Option<&str> {
    let digits = text.strip_prefix("[redacted #")?.strip_suffix(']')?;
    (digits.len() == 8 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))).then_some(digits)
}

fn is_mark(text: &str) -> bool {
    text == MARK || marked(text).is_some()
}
