//! Command lines, paths and user agents of untrusted processes. Redacting twice must not show more than redacting once.
#![no_main]

use imds_observer::redact::fuzz_redaction;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    fuzz_redaction(bytes);
});
