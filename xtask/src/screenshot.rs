//! `screenshot`: draws the live view over the tests' traces into `docs/watch.svg`.

use clap::Args as ClapArgs;
use xshell::cmd;

use crate::run::shell;

/// Draw docs/watch.svg anew from recorded traces.
#[derive(ClapArgs)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args) -> anyhow::Result<()> {
    let sh = shell()?;
    // Drawing needs no eBPF object.
    sh.set_var("AYA_BUILD_SKIP", "1");
    let traces = ["lost-token-pod", "tight-loop", "healthy-botocore"]
        .map(|name| format!("imds-observer/tests/traces/{name}.ndjson"));
    let records = cmd!(
        sh,
        "cargo run --quiet --package imds-observer --bin imds-observer -- analyze -o ndjson {traces...}"
    )
    .read()?;
    let svg = cmd!(sh, "cargo run --quiet --package imds-observer --example screenshot")
        .stdin(records)
        .read()?;
    sh.write_file("docs/watch.svg", format!("{svg}\n"))?;
    eprintln!("screenshot: docs/watch.svg");
    Ok(())
}
