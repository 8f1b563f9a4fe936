//! Parse, run, exit code.

use std::process::ExitCode;

use imds_observer::cli;

fn main() -> ExitCode {
    match cli::run() {
        Ok(status) => status.into(),
        Err(error) => {
            eprintln!("imds-observer: {error:#}");
            ExitCode::FAILURE
        }
    }
}
