//! `ebpf`: compiles the kernel programs and writes the object that is kept in the tree, so that building the program requires neither their
//! compiler nor their linker.

mod strip;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, ensure};
use clap::Args as ClapArgs;
use xshell::{Shell, cmd};

use crate::object_build;
use crate::run::{root, shell, step};
use crate::setup::{self, Group};
use crate::toolchain::Compiler;

/// Compile the kernel programs and write imds-observer/ebpf; run it after every change to them.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Only compare with the object in the tree; a difference is an error.
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    setup::ensure(&[Group::Ebpf])?;
    let built = step("eBPF object", || Built::make(&shell()?))?;
    if args.check {
        return built.compare().map(drop);
    }
    built.keep()
}

/// Directory of the object and of the record of its tools.
fn kept() -> PathBuf {
    root().join("imds-observer/ebpf")
}

/// A compiled object, and the tools and sources that it was made with.
pub(crate) struct Built {
    object: Vec<u8>,
    record: Record,
}

/// Inputs on which the bytes of the object depend, apart from the sources.
#[derive(Debug, PartialEq, Eq)]
struct Record {
    compiler: String,
    llvm: String,
    linker: String,
    sources: String,
}

/// How a new object relates to the one in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    /// The same tools produced the same bytes.
    Same,
    /// Other tools were used, so the bytes are not comparable.
    OtherTools,
}

impl Built {
    /// Compiles and strips.
    pub(crate) fn make(sh: &Shell) -> anyhow::Result<Self> {
        let root = root();
        let path = object_build::compile(&root, &[], &root.join("target/ebpf")).map_err(|error| anyhow!("{error}"))?;
        let whole = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let object = strip::strip(&whole).context("strip the eBPF object")?;
        Ok(Self {
            object,
            record: Record::of_tools(sh)?,
        })
    }

    /// Writes both files, if they differ from those in the tree.
    fn keep(&self) -> anyhow::Result<()> {
        let directory = kept();
        fs::create_dir_all(&directory)?;
        for (name, bytes) in [
            ("imds-observer.bpf.o", &self.object[..]),
            ("built-with.toml", self.record.to_text().as_bytes()),
        ] {
            let path = directory.join(name);
            // An unchanged file keeps its time, because cargo compiles the program again when the file is newer.
            if fs::read(&path).is_ok_and(|have| have == bytes) {
                eprintln!("ebpf: {} is up to date", path.display());
                continue;
            }
            fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))?;
            eprintln!("ebpf: wrote {} ({} bytes)", path.display(), bytes.len());
        }
        Ok(())
    }

    /// Compares with the object in the tree. An error names the part of the object that differs.
    pub(crate) fn compare(&self) -> anyhow::Result<Comparison> {
        let directory = kept();
        let text =
            fs::read_to_string(directory.join("built-with.toml")).context("read imds-observer/ebpf/built-with.toml")?;
        let kept = Record::parse(&text).context("read imds-observer/ebpf/built-with.toml")?;
        ensure!(
            kept.sources == self.record.sources,
            "the object in imds-observer/ebpf is older than its sources: run `cargo xtask ebpf`, and commit what it writes"
        );
        if kept != self.record {
            eprintln!(
                "ebpf: bytes not compared: the object in the tree was made by {}, and this machine has {}",
                kept.tools(),
                self.record.tools()
            );
            return Ok(Comparison::OtherTools);
        }
        let bytes = fs::read(directory.join("imds-observer.bpf.o")).context("read the object in the tree")?;
        if bytes != self.object {
            let found = strip::differences(&bytes, &self.object)?;
            return Err(anyhow!(
                "the object in imds-observer/ebpf is not what its sources give ({}): run `cargo xtask ebpf`, and commit what it writes",
                found.join(", ")
            ));
        }
        eprintln!("ebpf: {} bytes, the same as in the tree", bytes.len());
        Ok(Comparison::Same)
    }

    /// Writes the object to a path from which another build can use it.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        if fs::read(path).is_ok_and(|have| have == self.object) {
            return Ok(());
        }
        fs::write(path, &self.object).with_context(|| format!("write {}", path.display()))
    }
}

impl Record {
    fn of_tools(sh: &Shell) -> anyhow::Result<Self> {
        let compiler = Compiler::find().context("find the compiler of the eBPF object")?;
        let toolchain = compiler.toolchain();
        let said = cmd!(sh, "rustup run {toolchain} rustc --version --verbose")
            .quiet()
            .read()?;
        let mut lines = said.lines();
        let compiler = lines.next().context("`rustc --version` printed nothing")?;
        let llvm = lines
            .find_map(|line| line.strip_prefix("LLVM version: "))
            .context("read the LLVM version from `rustc --version --verbose`")?;
        Ok(Self {
            compiler: compiler.to_owned(),
            llvm: llvm.to_owned(),
            linker: cmd!(sh, "bpf-linker --version").quiet().read()?,
            sources: object_build::digest(&root()).context("read the sources of the eBPF object")?,
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let value = |key| Some(object_build::recorded(text, key)?.to_owned());
        Some(Self {
            compiler: value("compiler")?,
            llvm: value("llvm")?,
            linker: value("linker")?,
            sources: value(object_build::DIGEST_KEY)?,
        })
    }

    fn to_text(&self) -> String {
        let Self {
            compiler,
            llvm,
            linker,
            sources,
        } = self;
        format!(
            "# What imds-observer.bpf.o was made with. `cargo xtask ebpf` writes both files.\n\
             compiler = \"{compiler}\"\nllvm = \"{llvm}\"\nlinker = \"{linker}\"\n{} = \"{sources}\"\n",
            object_build::DIGEST_KEY
        )
    }

    fn tools(&self) -> String {
        format!("{} with LLVM {} and {}", self.compiler, self.llvm, self.linker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            compiler: "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)".into(),
            llvm: "22.1.8".into(),
            linker: "bpf-linker 0.13.0".into(),
            sources: "0123456789abcdef".into(),
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        assert_eq!(Record::parse(&record().to_text()), Some(record()));
        assert_eq!(Record::parse("compiler = \"rustc\"\n"), None);
    }

    #[test]
    fn the_record_in_the_tree_is_complete() {
        let text = fs::read_to_string(kept().join("built-with.toml")).unwrap();
        assert!(Record::parse(&text).is_some(), "{text}");
    }

    #[test]
    fn the_object_in_the_tree_names_no_directory_of_a_machine() {
        let object = fs::read(kept().join("imds-observer.bpf.o")).unwrap();
        let text = String::from_utf8_lossy(&object);
        for directory in ["/root/", "/home/", "/usr/", "/tmp/", "/work/"] {
            assert!(!text.contains(directory), "{directory}");
        }
    }
}
