//! Memory of the rows of summaries and of the live view under the worst possible load from local processes.

#[path = "../benches/allocator/mod.rs"]
mod allocator;
#[path = "../benches/hostile/mod.rs"]
mod hostile;

use std::sync::Arc;

use imds_observer::record::{Exchange, Host, Process, Record, Time};
use imds_observer::summary::{self, Summarizer};
use imds_observer::watch::state::{self, State};

use allocator::held;

/// Number of process groups, enough to reach the limit that all rows share.
const GROUPS: u64 = 32;
/// Limit on a row with all its paths and latencies, without the shared part, in bytes.
const ROW_BYTES: usize = 84 << 10;
/// Limit on a row of the live view, which also contains the last exchanges, in bytes.
const WATCH_ROW_BYTES: usize = 140 << 10;
/// Limit on the part that all rows share, in bytes.
const SHARED_BYTES: usize = 4 << 20;

/// An exchange of one group, each time with another process and another token.
fn exchange(group: u64, turn: u64) -> Record<Exchange> {
    let member = Process {
        exe: Some(format!("/opt/{group}")),
        start_time: Some(Time(turn)),
        ..Process::clone(&hostile::hostile(group))
    };
    hostile::exchange(group * 10_000 + turn, &Arc::new(member), &Host::from("node"))
}

fn exchanges(distinct: usize) -> impl Iterator<Item = Record<Exchange>> {
    (0..GROUPS).flat_map(move |group| (0..distinct as u64).map(move |turn| exchange(group, turn)))
}

// A single test, because memory is counted for the whole process.
#[test]
fn rows_together_hold_less_than_each_may_hold_alone() {
    // The cache of callers has its own limit.
    let limits = summary::Limits {
        callers: 1,
        ..summary::Limits::default()
    };
    let before = held();
    let mut summarizer = Summarizer::new(limits);
    for exchange in exchanges(limits.distinct) {
        summarizer.exchange(exchange.by_ref());
    }
    let bytes = held() - before;
    println!("{GROUPS} rows of a summary: {} KiB", bytes >> 10);
    assert!(bytes < GROUPS as usize * ROW_BYTES + SHARED_BYTES, "{bytes} bytes");
    // The memory that an interval has used is released at its end.
    summarizer.interval(Time(2_000_000_000_000_000_000));
    let ended = held() - before;
    assert!(ended < bytes, "{ended} bytes after the interval, {bytes} before");
    for exchange in exchanges(limits.distinct) {
        summarizer.exchange(exchange.by_ref());
    }
    let again = held() - before;
    assert!(
        again <= bytes + bytes / 8,
        "{again} bytes after another interval, {bytes} before"
    );
    let summary = summarizer.total(Time(2_000_000_000_000_000_000));
    for row in &summary.processes {
        assert!(
            row.tokens >= 128,
            "each row distinguishes some whatever others do: {}",
            row.tokens
        );
    }
    drop(summary);
    drop(summarizer);

    let limits = state::Limits::default();
    let before = held();
    let mut state = State::new(limits);
    for exchange in exchanges(limits.distinct) {
        state.apply(&Arc::new(exchange.into()));
    }
    let bytes = held() - before;
    println!("{GROUPS} rows of the live view: {} KiB", bytes >> 10);
    assert!(
        bytes < GROUPS as usize * WATCH_ROW_BYTES + SHARED_BYTES,
        "{bytes} bytes"
    );
}
