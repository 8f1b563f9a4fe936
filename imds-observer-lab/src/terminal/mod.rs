//! Terminals for tests: a pseudo-terminal, which records the program's raw output with timestamps, and tmux, which renders the screen.

mod pty;
mod tmux;

pub use pty::{Control, Pty};
pub use tmux::Tmux;

use std::time::Duration;

/// Timeout of all waits.
const PATIENCE: Duration = Duration::from_secs(30);
