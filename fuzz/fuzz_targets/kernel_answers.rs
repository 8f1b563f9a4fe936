//! Netlink messages and firewall rules.
#![no_main]

use imds_observer::host::fuzz_kernel_answers;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    fuzz_kernel_answers(bytes);
});
