//! Log lines while the terminal shows the live view: kept, and written once it is given back.

use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes that are kept; what comes beyond is given up.
const MAX_BYTES: usize = 64 * 1024;

static HELD: Mutex<Option<Vec<u8>>> = Mutex::new(None);

fn held() -> MutexGuard<'static, Option<Vec<u8>>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on log lines are kept.
pub fn hold() {
    held().get_or_insert_default();
}

/// Writes what was kept; from now on log lines go to stderr again.
pub fn release() {
    if let Some(bytes) = held().take() {
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
                if kept.len() + bytes.len() <= MAX_BYTES {
                    kept.extend_from_slice(bytes);
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
