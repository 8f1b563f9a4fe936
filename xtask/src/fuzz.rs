//! `fuzz`: runs libFuzzer on the parsers of untrusted bytes, with the stable compiler.
//!
//! cargo-fuzz requires nightly for its address sanitizer. These parsers are safe code, so coverage alone suffices, and the compiler flags
//! for coverage are stable.

use std::path::Path;

use anyhow::{Context as _, bail};
use clap::Args as ClapArgs;
use xshell::{Shell, cmd};

use crate::run::{root, shell, step};
use crate::setup::{self, Group};

/// Fuzz the parsers; without a target, all targets one after the other.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Name of a file in fuzz/fuzz_targets.
    target: Option<String>,
    /// Stop each target after this many seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

/// Limits for each target in `cargo xtask test`: number of inputs, and seconds.
const SMOKE_RUNS: u32 = 20_000;
const SMOKE_SECONDS: u32 = 20;

/// Flags of cargo-fuzz, without the sanitizer.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions";

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    setup::ensure(&[Group::Test])?;
    let sh = shell()?;
    let all = targets(&sh)?;
    let chosen = match &args.target {
        None => all,
        Some(target) if all.contains(target) => vec![target.clone()],
        Some(target) => bail!("no fuzz target `{target}`: there are {}", all.join(", ")),
    };
    build(&sh, "release")?;
    for target in &chosen {
        let seconds = args.seconds;
        fuzz(&sh, "release", target, &[format!("-max_total_time={seconds}")])?;
    }
    Ok(())
}

/// Builds all targets and runs each for a limited time.
pub(crate) fn smoke(sh: &Shell) -> anyhow::Result<()> {
    // A profile that compiles faster and runs slower, because compiling is nearly all of the time.
    let profile = "smoke";
    build(sh, profile)?;
    for target in targets(sh)? {
        fuzz(
            sh,
            profile,
            &target,
            &[
                format!("-runs={SMOKE_RUNS}"),
                format!("-max_total_time={SMOKE_SECONDS}"),
            ],
        )?;
    }
    Ok(())
}

fn targets(sh: &Shell) -> anyhow::Result<Vec<String>> {
    let directory = root().join("fuzz/fuzz_targets");
    let mut targets: Vec<String> = sh
        .read_dir(&directory)
        .context("list the fuzz targets")?
        .iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    targets.sort();
    Ok(targets)
}

/// Builds with `--target`, so that the flags apply to the parsers and not to build scripts.
fn build(sh: &Shell, profile: &str) -> anyhow::Result<()> {
    let host = host(sh)?;
    follow_lock(sh)?;
    cmd!(
        sh,
        "cargo build --profile {profile} --manifest-path fuzz/Cargo.toml --target {host} --target-dir target/fuzz"
    )
    .env("RUSTFLAGS", FLAGS)
    .run()?;
    Ok(())
}

/// Keeps the fuzz targets on the program's versions of dependencies, by copying its lock file.
fn follow_lock(sh: &Shell) -> anyhow::Result<()> {
    let changed = |path: &Path| path.metadata().and_then(|file| file.modified()).ok();
    let (program, ours) = (root().join("Cargo.lock"), root().join("fuzz/Cargo.lock"));
    if changed(&ours) < changed(&program) {
        sh.copy_file(&program, &ours)?;
    }
    Ok(())
}

fn fuzz(sh: &Shell, profile: &str, target: &str, limits: &[String]) -> anyhow::Result<()> {
    let host = host(sh)?;
    let program = root().join("target/fuzz").join(host).join(profile).join(target);
    // Inputs that libFuzzer finds stay outside the tree. A target's seeds, if any, are in the tree.
    let corpus = root().join("target/fuzz/corpus").join(target);
    let found = format!("-artifact_prefix={}/", root().join("target/fuzz").display());
    sh.create_dir(&corpus)?;
    let mut seeds = vec![root().join("fuzz/seeds").join(target)];
    if target == "trace" {
        seeds.push(root().join("imds-observer/tests/traces"));
    }
    seeds.retain(|seeds| seeds.is_dir());
    step(&format!("fuzz {target}"), || {
        Ok(cmd!(
            sh,
            "{program} {limits...} {found} -timeout=10 -verbosity=0 -print_final_stats=1 {corpus} {seeds...}"
        )
        .run()?)
    })
}

fn host(sh: &Shell) -> anyhow::Result<String> {
    cmd!(sh, "rustc --version --verbose")
        .quiet()
        .read()?
        .lines()
        .find_map(|line| line.strip_prefix("host: ").map(str::to_owned))
        .context("read the host from `rustc --version --verbose`")
}
