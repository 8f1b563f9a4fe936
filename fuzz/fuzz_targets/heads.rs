//! Bytes that an untrusted process wrote to its socket, as request and response heads.
#![no_main]

use imds_observer::imds::fuzz_heads;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    fuzz_heads(bytes);
});
