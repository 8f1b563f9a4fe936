//! Any bytes as lines of records: for the fuzz targets.

use std::sync::Arc;

use super::parse;
use super::written::Written;

/// Panics if the fast path differs from serde.
pub fn fuzz_lines(bytes: &[u8]) {
    let (mut written, mut spares) = (Written::default(), Vec::new());
    for line in bytes.split(|byte| *byte == b'\n').take(64) {
        let line = line.trim_ascii();
        if let Some(record) = written.exchange(line, &mut spares) {
            assert_eq!(parse(line).map(Arc::new).as_ref(), Ok(&record));
            spares.push(record);
        }
    }
}
