//! Bytes from the ring buffer. The kernel programs are ours, but not always of the same version.
#![no_main]

use imds_observer::bpf::{Decoder, Symbols};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut decoder = Decoder::new(Vec::new(), Symbols::default());
    let _ = decoder.decode(bytes);
});
