//! Benches that need real packets: they run `imds-observer-bench` in a lab, and write its tables into docs/benchmarks.md.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, bail};
use clap::Args as ClapArgs;
use xshell::cmd;

use crate::build;
use crate::run::{is_root, root, shell, step};
use crate::setup::{self, Group};

/// Options of all benches.
#[derive(ClapArgs, Clone, Default)]
pub(crate) struct Args {
    /// Test the benches themselves: a few seconds each, with debug builds
    #[arg(long)]
    pub(crate) short: bool,
    /// Print only; leave docs/benchmarks.md as it is
    #[arg(long)]
    pub(crate) no_write: bool,
    /// Measure this program instead of building one
    #[arg(long)]
    pub(crate) program: Option<String>,
}

impl Args {
    pub(crate) fn short() -> Self {
        Self {
            short: true,
            ..Self::default()
        }
    }
}

/// A bench of `imds-observer-bench`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bench {
    Kernel,
    Traffic,
    Flood,
    Idle,
    Latency,
    Memory,
}

impl Bench {
    /// Benches that each have a section in docs/benchmarks.md.
    pub(crate) const ALL: [Self; 5] = [Self::Kernel, Self::Traffic, Self::Flood, Self::Idle, Self::Latency];

    fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Traffic => "traffic",
            Self::Flood => "flood",
            Self::Idle => "idle",
            Self::Latency => "latency",
            Self::Memory => "memory",
        }
    }
}

/// The programs that benches run, built once for any number of benches.
pub(crate) struct Programs {
    observer: String,
    bench: String,
}

impl Programs {
    pub(crate) fn build(args: &Args) -> anyhow::Result<Self> {
        if !is_root() {
            bail!("needs root: it makes network namespaces and attaches eBPF programs in them");
        }
        setup::ensure(&[Group::Lab, Group::Traffic])?;
        let sh = shell()?;
        let profile = if args.short { "debug" } else { "release" };
        let built = |name: &str| {
            root()
                .join("target")
                .join(profile)
                .join(name)
                .to_string_lossy()
                .into_owned()
        };
        let observer = if let Some(program) = &args.program {
            program.clone()
        } else if args.short {
            step("build", || {
                Ok(cmd!(sh, "cargo build --locked --package imds-observer --target-dir target").run()?)
            })?;
            built("imds-observer")
        } else {
            step("build", build::release)?;
            built("imds-observer")
        };
        step("build the lab", || {
            if args.short {
                return build::lab(&sh);
            }
            Ok(cmd!(
                sh,
                "cargo build --release --locked --package imds-observer-lab --bin imds-observer-bench --target-dir target"
            )
            .run()?)
        })?;
        Ok(Self {
            observer,
            bench: built("imds-observer-bench"),
        })
    }

    /// Runs a bench and returns its output.
    pub(crate) fn measure(&self, bench: Bench, args: &Args, more: &[String]) -> anyhow::Result<String> {
        let name = bench.name();
        let begin = Instant::now();
        let mut command = Command::new(&self.bench);
        command.arg(name).arg("--observer").arg(&self.observer).args(more);
        if args.short {
            command.arg("--short");
        }
        let output = command
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("start {}", self.bench))?;
        let text = String::from_utf8(output.stdout).context("read what the bench printed")?;
        println!("{text}");
        if !output.status.success() {
            bail!("bench {name}: {}", output.status);
        }
        eprintln!("bench {name}: {:.0} s", begin.elapsed().as_secs_f64());
        Ok(text)
    }

    /// Runs a bench and writes its output into docs/benchmarks.md.
    pub(crate) fn run(&self, bench: Bench, args: &Args, more: &[String]) -> anyhow::Result<()> {
        let (name, text) = (bench.name(), self.measure(bench, args, more)?);
        if !args.short && !args.no_write {
            let arguments: String = more.iter().flat_map(|argument| [" ", argument.as_str()]).collect();
            write(
                name,
                &format!(
                    "`cargo xtask bench {name}{arguments}`, {}.\n\n{}",
                    machine()?,
                    text.trim_end()
                ),
            )?;
        }
        Ok(())
    }
}

pub(crate) fn run(bench: Bench, args: &Args, more: &[String]) -> anyhow::Result<()> {
    Programs::build(args)?.run(bench, args, more)
}

/// Kernel release and processor of this machine.
pub(crate) fn machine() -> anyhow::Result<String> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's release")?;
    let processors = fs::read_to_string("/proc/cpuinfo").context("read the processor's name")?;
    let names: Vec<&str> = processors
        .lines()
        .filter_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name))
        .collect();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    Ok(format!(
        "kernel {}, {} x {}, load before: {}",
        kernel.trim(),
        names.len(),
        names.first().copied().unwrap_or("a processor without name"),
        load.split(' ').next().unwrap_or("?")
    ))
}

/// Replaces the text between the markers of this name.
pub(crate) fn write(name: &str, text: &str) -> anyhow::Result<()> {
    let path = root().join("docs/benchmarks.md");
    let document = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let replaced = replace(&document, name, text).with_context(|| format!("write into {}", path.display()))?;
    fs::write(&path, replaced).with_context(|| format!("write {}", path.display()))
}

fn replace(document: &str, name: &str, text: &str) -> anyhow::Result<String> {
    let (begin, end) = (
        format!("<!-- bench {name} -->\n"),
        format!("<!-- end of bench {name} -->\n"),
    );
    let parts = document
        .split_once(&begin)
        .and_then(|(before, rest)| Some((before, rest.split_once(&end)?.1)));
    let (before, after) = parts.with_context(|| format!("no place is marked for bench {name}"))?;
    Ok(format!("{before}{begin}\n{text}\n\n{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::replace;

    #[test]
    fn a_table_takes_the_place_of_the_one_before() {
        let document = "a\n<!-- bench idle -->\nold\n<!-- end of bench idle -->\nb\n";
        let once = replace(document, "idle", "new").unwrap();
        assert_eq!(once, "a\n<!-- bench idle -->\n\nnew\n\n<!-- end of bench idle -->\nb\n");
        assert_eq!(replace(&once, "idle", "new").unwrap(), once);
        assert!(replace(document, "flood", "new").is_err());
    }
}
