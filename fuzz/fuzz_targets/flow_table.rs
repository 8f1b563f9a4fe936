//! Any sequence of segments, drops and socket states.
#![no_main]

use imds_observer::exchange::fuzz_flow_table;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    fuzz_flow_table(bytes);
});
