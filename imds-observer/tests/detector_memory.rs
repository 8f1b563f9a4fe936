//! Memory of the detectors under the worst possible load from a local process. The documented limit is measured, not computed.

#[path = "../benches/allocator/mod.rs"]
mod allocator;
#[path = "../benches/hostile/mod.rs"]
mod hostile;

use imds_observer::detectors::{CATALOGUE, DetectorConfig, Detectors, MEMORY_LIMIT_BYTES, Observation};
use imds_observer::host_facts::HostFacts;
use imds_observer::record::{FindingState, Host};

use allocator::held;
use hostile::{connect, drop_of, exchange, hostile};

const PROCESSES: u64 = 100_000;
const PATHS: u64 = 1_000_000;

#[test]
fn a_hostile_process_cannot_make_the_detectors_grow() {
    let host = Host::from("node");
    let facts = HostFacts {
        name: host.clone(),
        netns: Some(1),
        ..HostFacts::default()
    };
    let before = held();
    let mut detectors = Detectors::new(&DetectorConfig::default(), facts);
    let empty = held() - before;
    assert!(empty < 1 << 20, "{empty} bytes before anything was seen");

    let mut findings = Vec::new();
    let (mut opened, mut written, mut worst) = (0_u64, 0_u64, 0);
    for n in 0..PATHS {
        // Ten requests per process, all at different times.
        let process = hostile(n % PROCESSES);
        let exchange = exchange(n, &process, &host);
        drop(process);
        detectors.observe(&Observation::Exchange(exchange.by_ref()), &mut findings);
        if n.is_multiple_of(10) {
            detectors.observe(&Observation::Connect(connect(n, &exchange).by_ref()), &mut findings);
            detectors.observe(&Observation::Drop(drop_of(n, &exchange).by_ref()), &mut findings);
        }
        opened += findings
            .iter()
            .filter(|finding| finding.state == FindingState::Open)
            .count() as u64;
        written += findings.len() as u64;
        findings.clear();
        if n % 10_000 == 0 {
            drop(exchange);
            worst = worst.max(held() - before);
        }
    }
    worst = worst.max(held() - before);
    println!(
        "at most {:.1} MiB held (limit {} MiB), {opened} findings opened, {written} lines, {} entries evicted",
        worst as f64 / f64::from(1 << 20),
        MEMORY_LIMIT_BYTES >> 20,
        detectors.evicted()
    );
    assert!(worst < MEMORY_LIMIT_BYTES, "{worst} bytes");
    assert!(worst > 1 << 20, "nothing was held: the test tests nothing");
    assert!(detectors.evicted() > PROCESSES, "what is given up is counted");
    // Output is limited too: to the number of findings that each code may have open, and one more for all others.
    assert!(opened <= CATALOGUE.len() as u64 * 257, "{opened} findings");
}
