//! Files of untrusted processes in `/proc` and in the state of container runtimes.
#![no_main]

use imds_observer::attribution::fuzz_host_files;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    fuzz_host_files(bytes);
});
