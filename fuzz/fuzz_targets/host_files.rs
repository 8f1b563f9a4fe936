//! What `/proc` and the container runtimes' state say of untrusted processes.
#![no_main]

use imds_observer::attribution::fuzz_host_files;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    fuzz_host_files(bytes);
});
