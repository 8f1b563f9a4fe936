//! An input of `analyze`: NDJSON, pcap or pcapng, also compressed, and the events from its packets.
#![no_main]

use std::io::Cursor;
use std::time::Duration;

use imds_observer::bpf::DEFAULT_ENDPOINTS;
use imds_observer::exchange::{self, FlowTable};
use imds_observer::imds::Hasher;
use imds_observer::source::input::Input;
use imds_observer::source::ndjson::fuzz_lines;
use imds_observer::source::traces::Traces;
use imds_observer::source::{self, Source as _, SourceState};
use libfuzzer_sys::fuzz_target;

/// A small file can unpack to gigabytes. The reader is bounded in any case, so this limit only saves time.
const BATCHES: usize = 16;

/// Small limits: allocating tables of the default size takes longer than reading an input, and inputs never fill them.
fn limits() -> (source::Limits, exchange::Limits) {
    let source = source::Limits {
        read_ahead_bytes: 64 << 10,
        callers: 4,
        processes: 4,
        unfinished: 4,
        interfaces: 4,
        counted_interfaces: 2,
    };
    let flows = exchange::Limits {
        flows: 8,
        budget_bytes: 64 << 10,
        translated: 8,
        ..exchange::Limits::default()
    };
    (source, flows)
}

fuzz_target!(|bytes: &[u8]| {
    fuzz_lines(bytes);
    let Ok(input) = Input::new("fuzz".into(), Box::new(Cursor::new(bytes.to_vec()))) else {
        return;
    };
    let (of_source, of_flows) = limits();
    let mut traces = Traces::with_limits(vec![input], &DEFAULT_ENDPOINTS, &of_source);
    let mut table = FlowTable::new(of_flows, Hasher::with_salt(1, 2));
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
