//! Terminals to run a program in: one of our own, for its raw bytes and their times, and tmux, for what a person would see.

mod pty;
mod tmux;

pub use pty::{Control, Pty};
pub use tmux::Tmux;

use std::time::Duration;

/// Longer than anything that is waited for takes.
const PATIENCE: Duration = Duration::from_secs(30);
