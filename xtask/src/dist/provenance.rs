//! A statement of the files' origin: an in-toto Statement with SLSA provenance as predicate.
//!
//! It contains no time, so that the same commit results in the same bytes. The release workflow signs the list of checksums, which includes
//! this file.

use std::env;
use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::{Value, json};
use xshell::{Shell, cmd};

use super::Release;
use super::archive::sha256;

pub(super) fn make(sh: &Shell, release: &Release, outputs: &[PathBuf]) -> anyhow::Result<()> {
    let subjects: Vec<Value> = outputs
        .iter()
        .map(|path| {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .context("a file has a name")?;
            Ok(json!({"name": name, "digest": {"sha256": sha256(&fs::read(path)?)}}))
        })
        .collect::<anyhow::Result<_>>()?;
    let rustc = cmd!(sh, "rustc --version").quiet().read()?;
    let source = env!("CARGO_PKG_REPOSITORY");
    let mut dependencies = vec![json!({"name": "rustc", "annotations": {"version": rustc}})];
    if let Some(commit) = &release.commit {
        dependencies.insert(
            0,
            json!({"uri": format!("git+{source}"), "digest": {"gitCommit": commit}}),
        );
    }
    // GitHub's runner has a name. Any other build machine is unknown to readers of the statement.
    let builder = env::var("GITHUB_WORKFLOW_REF").map_or_else(
        |_| "urn:imds-observer:local".to_owned(),
        |workflow| format!("https://github.com/{workflow}"),
    );
    let statement = json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": subjects,
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": format!("{source}/blob/main/docs/releases.md#xtask-dist-v1"),
                "externalParameters": {
                    "repository": source,
                    "command": "cargo xtask dist",
                    "processors": release.arches.iter().map(|arch| arch.name()).collect::<Vec<_>>(),
                },
                "internalParameters": {"sourceDateEpoch": release.epoch},
                "resolvedDependencies": dependencies,
            },
            "runDetails": {"builder": {"id": builder}},
        },
    });
    fs::write(release.file(".intoto.jsonl"), format!("{statement}\n"))?;
    Ok(())
}
