//! Captures from other projects: the test captures of wireshark, tcpdump and nDPI, from Debian's source packages.
//!
//! None contains traffic to IMDS, and many are malformed on purpose. `analyze` must read each without a finding and without a panic, and
//! its exit status must show whether it could read everything.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use xshell::{Shell, cmd};

use crate::kernels::mirror;
use crate::run::{root, shell, step};
use crate::setup::{self, Group};

const PACKAGES: [&str; 3] = ["tcpdump", "wireshark", "ndpi"];
/// First bytes of pcap (both byte orders, micro- and nanoseconds), pcapng and gzip.
const MAGICS: [[u8; 4]; 5] = [
    [0xd4, 0xc3, 0xb2, 0xa1],
    [0xa1, 0xb2, 0xc3, 0xd4],
    [0x4d, 0x3c, 0xb2, 0xa1],
    [0xa1, 0xb2, 0x3c, 0x4d],
    [0x0a, 0x0d, 0x0d, 0x0a],
];
/// Exit statuses of `analyze`: everything was read, or a part could not be read.
const DONE: i32 = 0;
const PARTIAL: i32 = 1;

#[derive(Default)]
struct Seen {
    files: u64,
    packets: u64,
    exchanges: u64,
    /// Captures of which a part could not be read.
    partial: u64,
}

pub(crate) fn run() -> anyhow::Result<()> {
    step("setup", || setup::ensure(&[Group::Foreign]))?;
    let sh = shell()?;
    let home = root().join("target/foreign");
    step("download", || download(&sh, &home))?;
    step("build", || {
        // Not optimized, so that overflow checks are enabled.
        Ok(cmd!(sh, "cargo build --locked --package imds-observer").run()?)
    })?;
    let mut captures = Vec::new();
    collect(&home.join("sources"), &mut captures)?;
    captures.sort();
    ensure!(!captures.is_empty(), "no capture in {}", home.display());
    let seen = step("analyze each", || {
        let mut seen = Seen::default();
        let wrong: Vec<String> = captures
            .iter()
            .filter_map(|capture| analyze(capture, &mut seen).err().map(|error| format!("{error:#}")))
            .collect();
        ensure!(wrong.is_empty(), "{} capture(s): {}", wrong.len(), wrong.join("\n"));
        Ok(seen)
    })?;
    println!(
        "{} captures, {} packets, {} exchanges, {} captures with parts that can't be read, no finding",
        seen.files, seen.packets, seen.exchanges, seen.partial
    );
    Ok(())
}

/// Downloads and unpacks the captures. Files that exist from an earlier run are reused.
fn download(sh: &Shell, home: &Path) -> anyhow::Result<()> {
    let list = home.join("sources.list");
    sh.create_dir(home.join("lists/partial"))?;
    sh.create_dir(home.join("cache/archives/partial"))?;
    let release = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    let suite = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .context("find the release's name in /etc/os-release (the captures are taken from Debian)")?;
    sh.write_file(&list, format!("deb-src {} {suite} main\n", mirror(sh, "Debian")?))?;
    let options: Vec<String> = [
        format!("Dir::Etc::sourcelist={}", list.display()),
        "Dir::Etc::sourceparts=/dev/null".to_owned(),
        format!("Dir::State::lists={}", home.join("lists").display()),
        format!("Dir::Cache={}", home.join("cache").display()),
        // The download user can't write to our directories.
        "APT::Sandbox::User=root".to_owned(),
    ]
    .into_iter()
    .flat_map(|setting| ["-o".to_owned(), setting])
    .collect();
    let options = &options;
    let unpacked = |package: &str| home.join("sources").join(package);
    let missing = PACKAGES.iter().filter(|package| !unpacked(package).exists());
    for (number, package) in missing.enumerate() {
        let unpacked = unpacked(package);
        let packed = home.join("packed").join(package);
        sh.create_dir(&packed)?;
        let _inside = sh.push_dir(&packed);
        if number == 0 {
            cmd!(sh, "apt-get --quiet=2 {options...} update").run()?;
        }
        // A mirror may lack the small part with Debian's own changes. Missing captures are detected below.
        let fetched = cmd!(
            sh,
            "apt-get --quiet=2 {options...} source --download-only --tar-only {package}"
        )
        .run();
        let partial = home.join("unpacking");
        sh.remove_path(&partial)?;
        sh.create_dir(&partial)?;
        let is_tar = |file: &PathBuf| {
            file.to_string_lossy().contains(".orig.tar.") && file.extension().is_none_or(|end| end != "asc")
        };
        let tars: Vec<PathBuf> = sh.read_dir(&packed)?.into_iter().filter(is_tar).collect();
        if tars.is_empty() {
            fetched?;
            bail!("apt-get brought no source archive of {package}");
        }
        for file in tars {
            cmd!(sh, "tar --extract --file {file} --directory {partial}").run()?;
        }
        sh.create_dir(home.join("sources"))?;
        fs::rename(&partial, &unpacked).with_context(|| format!("name {}", unpacked.display()))?;
        sh.remove_path(&packed)?;
    }
    Ok(())
}

fn collect(directory: &Path, captures: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            collect(&entry.path(), captures)?;
        } else if kind.is_file() && is_capture(&entry.path()) {
            captures.push(entry.path());
        }
    }
    Ok(())
}

fn is_capture(path: &Path) -> bool {
    let mut magic = [0; 4];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    let packed = magic[..2] == [0x1f, 0x8b] && path.to_string_lossy().contains(".pcap");
    read.is_ok() && (packed || MAGICS.contains(&magic))
}

fn analyze(capture: &Path, seen: &mut Seen) -> anyhow::Result<()> {
    let name = capture.display();
    let output = Command::new(root().join("target/debug/imds-observer"))
        .args(["analyze", "-o", "json"])
        .arg(capture)
        .output()
        .with_context(|| format!("run analyze on {name}"))?;
    let reported = String::from_utf8_lossy(&output.stderr);
    let status = output.status.code();
    if reported.contains("panicked") || !matches!(status, Some(DONE | PARTIAL)) {
        bail!("{name}: {}, {}", output.status, reported.trim());
    }
    let Ok(analysis) = serde_json::from_slice::<Value>(&output.stdout) else {
        // If not even the first bytes could be read, one line reports it.
        ensure!(
            status == Some(PARTIAL) && reported.lines().count() == 1,
            "{name}: no analysis: {}",
            reported.trim()
        );
        seen.files += 1;
        seen.partial += 1;
        return Ok(());
    };
    let skipped = analysis["input"]["skipped"].as_u64().unwrap_or(0);
    ensure!(
        analysis["findings"] == Value::Array(Vec::new()),
        "{name}: {}",
        analysis["findings"]
    );
    ensure!(
        (status == Some(PARTIAL)) == (skipped > 0),
        "{name}: {skipped} part(s) skipped, and {}",
        output.status
    );
    seen.files += 1;
    seen.packets += analysis["input"]["records"].as_u64().unwrap_or(0);
    seen.partial += u64::from(skipped > 0);
    let processes = analysis["summary"]["processes"].as_array();
    seen.exchanges += processes
        .into_iter()
        .flatten()
        .filter_map(|row| row["requests"].as_u64())
        .sum::<u64>();
    Ok(())
}
