//! Parse, run, exit code.

use std::io::{self, Write as _};
use std::process::ExitCode;

use imds_observer::cli;

#[cfg(live)]
#[global_allocator]
static ALLOCATOR: imds_observer::wipe::Wiping = imds_observer::wipe::Wiping;

fn main() -> ExitCode {
    match cli::run() {
        Ok(status) => status.into(),
        Err(error) => {
            // If stderr is closed, `eprintln!` would panic.
            let _ = writeln!(io::stderr(), "imds-observer: {error:#}");
            ExitCode::FAILURE
        }
    }
}
