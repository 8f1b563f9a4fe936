//! Any history of segments, drops and socket states, in any order.
#![no_main]

use imds_observer::exchange::fuzz_flow_table;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    fuzz_flow_table(bytes);
});
