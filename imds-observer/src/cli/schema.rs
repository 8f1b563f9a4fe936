//! `schema`: what a record may look like, for those who read them.

use clap::Args;

use super::{Status, print};
use crate::record::schema;

/// Print the JSON Schema of the records
#[derive(Debug, Args)]
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
