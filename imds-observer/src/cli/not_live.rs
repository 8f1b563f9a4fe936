//! What a build without the feature `live` answers to commands that observe a host.

use std::ffi::OsString;

use clap::Args;

use super::Status;

/// Takes any arguments, so that the answer is the reason and no complaint about an option.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(super) struct NotLiveArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    ignored: Vec<OsString>,
}

impl NotLiveArgs {
    pub(super) fn run(&self) -> anyhow::Result<Status> {
        tracing::debug!(ignored = ?self.ignored, "arguments");
        Err(not_live())
    }
}

/// The error of `watch` and `preflight` without a recording, too.
pub(super) fn not_live() -> anyhow::Error {
    anyhow::anyhow!(
        "this build has no live commands: it can't observe a host (read a recording instead: `analyze FILE`, `preflight FILE ...`, \
         `watch --from FILE`; live commands need Linux and a build with the feature `live`, the default)"
    )
}
