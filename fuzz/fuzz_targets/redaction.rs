//! Command lines, paths and user agents of untrusted processes: what was shown once is shown alike.
#![no_main]

use imds_observer::redact::fuzz_redaction;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    fuzz_redaction(bytes);
});
