//! Stand-ins for live commands in a build without the feature `live`.

use std::ffi::OsString;

use clap::Args;

use super::Status;

/// Accepts any arguments, so that the error is the missing feature, not an unknown option.
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

/// Also the error of `watch` and `preflight` without a recording.
pub(super) fn not_live() -> anyhow::Error {
    anyhow::anyhow!(
        "this build can't observe a host (read a recording instead: `analyze FILE`, `preflight FILE ...`, \
         `watch --from FILE`; live commands need Linux and a build with the feature `live`, which is the default)"
    )
}
