//! Log lines while the terminal shows the live view: kept, and written once it is given back.

use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

struct Held {
    bytes: Vec<u8>,
    /// Further lines are dropped.
    limit: usize,
}

static HELD: Mutex<Option<Held>> = Mutex::new(None);

fn held() -> MutexGuard<'static, Option<Held>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on log lines are kept, up to so many bytes.
pub fn hold(limit: usize) {
    held().get_or_insert(Held {
        bytes: Vec::new(),
        limit,
    });
}

/// Writes what was kept; from now on log lines go to stderr again.
pub fn release() {
    if let Some(Held { bytes, .. }) = held().take() {
        let _ = io::stderr().write_all(&bytes);
    }
}

/// Where log lines go.
#[derive(Debug)]
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match held().as_mut() {
            Some(kept) => {
                if kept.bytes.len() + bytes.len() <= kept.limit {
                    kept.bytes.extend_from_slice(bytes);
                }
                Ok(bytes.len())
            }
            None => io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
