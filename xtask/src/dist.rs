//! `dist`: builds the release artifacts at `target/dist`: static programs, an image, the chart, bills of materials, checksums.
//!
//! The same inputs result in the same bytes: paths of this machine are replaced in programs, and every time stamp is `SOURCE_DATE_EPOCH`,
//! or the time of the last commit if that is unset. `--twice` verifies this.

mod archive;
mod bundle;
mod image;
mod inventory;
mod krew;
mod packages;
mod pages;
mod program;
mod provenance;
mod trial;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use clap::Args as ClapArgs;
use xshell::{Shell, cmd};

use crate::kernels::Arch;
use crate::run::{root, shell, step};
use crate::setup::{self, Group};
use archive::sha256;

/// Make tarballs, packages, the OCI image, the chart, checksums and bills of materials at target/dist.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Processors to build for.
    #[arg(long, value_delimiter = ',', default_value = "x86_64,aarch64")]
    arch: Vec<Arch>,
    /// Build everything again from a copy in another directory, and compare.
    #[arg(long)]
    twice: bool,
    /// Also make the .deb and the .rpm, which requires cargo-deb and cargo-generate-rpm.
    #[arg(long)]
    packages: bool,
    /// Also make the packages, check them with lintian, rpmlint and rpm, and install the .deb in a guest with systemd.
    #[arg(long)]
    check: bool,
    /// Don't run the built programs.
    #[arg(long)]
    untried: bool,
}

/// Properties of a release.
struct Release {
    version: String,
    /// Time stamp of everything, in seconds since 1970.
    epoch: u64,
    arches: Vec<Arch>,
    directory: PathBuf,
    /// `None` if the sources are not a git clone.
    commit: Option<String>,
    packages: bool,
}

impl Release {
    fn file(&self, rest: &str) -> PathBuf {
        self.directory.join(format!("imds-observer-{}{rest}", self.version))
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let groups: &[Group] = if args.arch.iter().all(|arch| arch.is_native()) {
        &[Group::Dist]
    } else {
        &[Group::Dist, Group::CrossKernels]
    };
    let mut groups = groups.to_vec();
    let packages = args.packages || args.check;
    if packages {
        groups.push(Group::Packages);
    }
    if args.check {
        groups.push(Group::Kernels);
    }
    step("setup", || setup::ensure(&groups))?;
    let sh = shell()?;
    let release = Release {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        epoch: epoch(&sh)?,
        arches: args.arch.clone(),
        directory: root().join("target/dist"),
        commit: cmd!(sh, "git rev-parse HEAD").quiet().ignore_stderr().read().ok(),
        packages,
    };
    make(&sh, &release, &root())?;
    if !args.untried {
        for arch in &release.arches {
            step(&format!("try the program for {}", arch.name()), || {
                trial::program(&sh, *arch, &program::path(&release, *arch))
            })?;
        }
        step("try the image", || trial::image(&sh, &release))?;
    }
    if args.check {
        let pages = sh.read_file(root().join("README.md"))? + &sh.read_file(root().join("docs/install.md"))?;
        downloads(&pages, &release)?;
        step("look at the packages", || packages::check(&sh, &release))?;
        for arch in release.arches.iter().filter(|arch| arch.is_native()) {
            let deb = packages::deb(&release, *arch);
            step("the .deb under a real systemd", || crate::kernels::package(&deb))?;
        }
    }
    if args.twice {
        step("all of it again, from another directory", || again(&sh, &release))?;
    }
    let sums = sh.read_file(release.directory.join("SHA256SUMS"))?;
    println!("{sums}");
    Ok(())
}

/// Checks that README.md and docs/install.md download only files that are made here.
fn downloads(pages: &str, release: &Release) -> anyhow::Result<()> {
    let version = format!("/releases/download/v{}/", release.version);
    let mut names = 0;
    for line in pages.lines().filter(|line| line.contains("/releases/download/")) {
        let (_, name) = line
            .split_once(&version)
            .with_context(|| format!("README.md or docs/install.md downloads another version: {line}"))?;
        for arch in &release.arches {
            let name = name
                .replace("$(uname -m)", arch.name())
                .replace("$(dpkg --print-architecture)", arch.debian());
            let name = name.split_whitespace().next().unwrap_or_default();
            ensure!(
                release.directory.join(name).is_file(),
                "README.md or docs/install.md downloads {name}, which isn't made"
            );
            names += 1;
        }
    }
    ensure!(names > 0, "README.md and docs/install.md download nothing");
    eprintln!("dist: README.md and docs/install.md download {names} files, all made");
    Ok(())
}

/// Time stamp of all artifacts, which is the time of the sources.
fn epoch(sh: &Shell) -> anyhow::Result<u64> {
    let text = match sh.var("SOURCE_DATE_EPOCH") {
        Ok(text) => text,
        Err(_) => cmd!(sh, "git log -1 --format=%ct")
            .quiet()
            .read()
            .context("ask git for the last commit's time (or set SOURCE_DATE_EPOCH)")?,
    };
    text.trim()
        .parse()
        .with_context(|| format!("SOURCE_DATE_EPOCH={text}: not a number of seconds"))
}

/// Makes all artifacts from the sources at `source`.
fn make(sh: &Shell, release: &Release, source: &Path) -> anyhow::Result<()> {
    let _there = sh.push_dir(source);
    sh.set_var("SOURCE_DATE_EPOCH", release.epoch.to_string());
    sh.remove_path(&release.directory)?;
    sh.create_dir(&release.directory)?;
    for arch in &release.arches {
        step(&format!("program for {}", arch.name()), || {
            program::build(sh, release, source, *arch)
        })?;
    }
    step("bills of materials and licenses", || {
        inventory::make(sh, release, source)
    })?;
    step("tarballs and chart", || bundle::make(sh, release, source))?;
    if release.packages {
        step("packages", || packages::make(sh, release, source))?;
    }
    step("kubectl plugin", || krew::make(release, source))?;
    step("image", || image::make(release, source))?;
    provenance::make(sh, release, &outputs(sh, &release.directory)?)?;
    checksums(sh, release)
}

fn checksums(sh: &Shell, release: &Release) -> anyhow::Result<()> {
    let mut lines = String::new();
    for path in outputs(sh, &release.directory)? {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .context("a file has a name")?;
        lines.push_str(&format!("{}  {name}\n", sha256(&std::fs::read(&path)?)));
    }
    sh.write_file(release.directory.join("SHA256SUMS"), lines)?;
    Ok(())
}

/// Release artifacts, sorted.
fn outputs(sh: &Shell, directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = sh
        .read_dir(directory)?
        .into_iter()
        .filter(|path| path.is_file() && !path.ends_with("SHA256SUMS"))
        .collect();
    files.sort();
    Ok(files)
}

/// Builds from a copy of the last commit in a directory of another name and length, and compares the checksums.
fn again(sh: &Shell, release: &Release) -> anyhow::Result<()> {
    let dirty = cmd!(sh, "git status --porcelain").quiet().read()?;
    ensure!(
        dirty.is_empty(),
        "the copy is of the last commit, and there are changes since: commit or stash them"
    );
    // Beside the sources, because a /tmp in memory may be too small.
    let elsewhere = root().join("target/dist-again");
    sh.remove_path(&elsewhere)?;
    let source = elsewhere.join("a-copy-of-the-sources");
    sh.create_dir(&source)?;
    let tarball = elsewhere.join("sources.tar");
    cmd!(sh, "git archive --output {tarball} HEAD").run()?;
    cmd!(sh, "tar --extract --file {tarball} --directory {source}").run()?;
    let copy = Release {
        version: release.version.clone(),
        directory: source.join("target/dist"),
        arches: release.arches.clone(),
        epoch: release.epoch,
        commit: release.commit.clone(),
        packages: release.packages,
    };
    make(sh, &copy, &source)?;
    let [first, second] = [release, &copy].map(|release| sh.read_file(release.directory.join("SHA256SUMS")));
    let (first, second) = (first?, second?);
    if first != second {
        bail!(
            "not the same: here\n{first}there\n{second}compare with {}",
            source.display()
        );
    }
    sh.remove_path(&elsewhere)?;
    eprintln!("dist: every file is the same, byte for byte");
    Ok(())
}
