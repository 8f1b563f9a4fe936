//! An input of `analyze`: NDJSON, pcap or pcapng, also compressed, and the events from its packets.
#![no_main]

use std::io::Cursor;
use std::time::Duration;

use imds_observer::bpf::DEFAULT_ENDPOINTS;
use imds_observer::exchange::{FlowTable, Limits};
use imds_observer::imds::Hasher;
use imds_observer::source::input::Input;
use imds_observer::source::ndjson::fuzz_lines;
use imds_observer::source::traces::Traces;
use imds_observer::source::{Source as _, SourceState};
use libfuzzer_sys::fuzz_target;

/// A small file can unpack to gigabytes; what is read of it is bounded, so this is for speed only.
const BATCHES: usize = 16;

fuzz_target!(|bytes: &[u8]| {
    fuzz_lines(bytes);
    let Ok(input) = Input::new("fuzz".into(), Box::new(Cursor::new(bytes.to_vec()))) else {
        return;
    };
    let mut traces = Traces::new(vec![input], &DEFAULT_ENDPOINTS);
    let mut table = FlowTable::new(Limits::default(), Hasher::with_salt(1, 2));
    let (mut events, mut facts) = (Vec::new(), Vec::new());
    for _ in 0..BATCHES {
        let state = traces.next_batch(Duration::ZERO, &mut events);
        for event in events.drain(..) {
            table.handle(&event, &mut facts);
            facts.clear();
        }
        if !matches!(state, Ok(SourceState::More)) {
            break;
        }
    }
});
