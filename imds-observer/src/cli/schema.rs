//! `schema`: the JSON Schema of the records.

use clap::Args;

use super::{Status, help, print};
use crate::record::schema;

/// Print the JSON Schema of the records
#[derive(Debug, Args)]
#[command(after_long_help = help::SCHEMA)]
pub(super) struct SchemaArgs {}

impl SchemaArgs {
    #[expect(clippy::unused_self, reason = "every command runs the same way")]
    pub(super) fn run(&self) -> anyhow::Result<Status> {
        let mut text = serde_json::to_string_pretty(&schema())?;
        text.push('\n');
        print(&text)?;
        Ok(Status::Done)
    }
}
