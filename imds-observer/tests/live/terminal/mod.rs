//! Tests the interactive view in a real terminal.
//!
//! tmux renders the screen and types keys. A pseudo-terminal records every byte that is written.

mod escapes;
mod incident;
mod looks;
mod recorded;
mod restore;

use std::path::{Path, PathBuf};
use std::process::Command;

use imds_observer_lab::topology::Lab;

const PROGRAM: &str = env!("CARGO_BIN_EXE_imds-observer");
const ENTER: &str = "\r";

fn trace(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/traces").join(name)
}

/// `watch` on a recorded trace, at maximum speed.
fn watch_trace(name: &str) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(["watch", "--speed", "max", "--from"]).arg(trace(name));
    command.env("TERM", "xterm-256color").env_remove("NO_COLOR");
    command
}

/// A shell command that watches a lab from its node.
fn watch_lab(lab: &Lab) -> String {
    format!(
        "nsenter --net={} {PROGRAM} watch -i {} --cgroup {}",
        lab.node().netns().path().display(),
        crate::support::UPLINK,
        lab.cgroup_directory().display()
    )
}
