//! Describes the content of the programs: bills of materials (CycloneDX), and the license texts, which must be included with copies.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use xshell::{Shell, cmd};

use super::{Release, program};

/// Name of the file with the licenses of everything that is linked in.
pub(super) const LICENCES: &str = "THIRD-PARTY-LICENSES.txt";

/// The program, and the object that it loads into the kernel.
const PACKAGES: [&str; 2] = ["imds-observer", "imds-observer-ebpf"];

pub(super) fn make(sh: &Shell, release: &Release, source: &Path) -> anyhow::Result<()> {
    bills(sh, release, source)?;
    let texts = licences(sh, release)?;
    sh.write_file(release.directory.join("programs").join(LICENCES), texts)?;
    Ok(())
}

fn bills(sh: &Shell, release: &Release, source: &Path) -> anyhow::Result<()> {
    // The bill for other processors is the same.
    let target = release.arches.first().context("no processor was named")?.target();
    for package in PACKAGES {
        let manifest = source.join(package).join("Cargo.toml");
        let features: &[&str] = if package == PACKAGES[0] {
            &["--features", program::FEATURES]
        } else {
            &[]
        };
        cmd!(
            sh,
            "cargo cyclonedx --quiet --manifest-path {manifest} {features...} --format json --no-build-deps --target {target} --spec-version 1.5 --override-filename dist"
        )
        .run()?;
        // cargo-cyclonedx writes a file beside each package of the workspace.
        let written = source.join(package).join("dist.json");
        let bill: Value = serde_json::from_str(&sh.read_file(&written)?).context("read what cargo-cyclonedx wrote")?;
        for other in sh.read_dir(source)?.iter().map(|package| package.join("dist.json")) {
            if other.is_file() {
                sh.remove_path(other)?;
            }
        }
        let text = serde_json::to_string_pretty(&bill)?.replace(&source.display().to_string(), "");
        ensure!(
            bill["components"].as_array().is_some_and(|all| !all.is_empty()),
            "the bill of materials of {package} names nothing"
        );
        let name = package.trim_start_matches("imds-observer");
        sh.write_file(release.file(&format!("{name}.cdx.json")), text + "\n")?;
    }
    Ok(())
}

/// A package that is linked in.
struct Linked {
    title: String,
    texts: BTreeSet<String>,
}

fn licences(sh: &Shell, release: &Release) -> anyhow::Result<String> {
    let mut linked = BTreeMap::new();
    for arch in &release.arches {
        let (target, features) = (arch.target(), format!("imds-observer/{}", program::FEATURES));
        let metadata = cmd!(
            sh,
            "cargo metadata --locked --format-version 1 --filter-platform {target} --features {features}"
        )
        .quiet()
        .read()?;
        let metadata: Value = serde_json::from_str(&metadata).context("read cargo's metadata")?;
        collect(&metadata, &mut linked)?;
    }
    let mut by_text: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut bare = Vec::new();
    for package in linked.values() {
        if package.texts.is_empty() {
            bare.push(package.title.as_str());
        }
        for text in &package.texts {
            by_text.entry(text).or_default().push(&package.title);
        }
    }
    let mut groups: Vec<(Vec<&str>, &str)> = by_text.into_iter().map(|(text, titles)| (titles, text)).collect();
    groups.sort();
    let mut out = format!(
        "What imds-observer {} is linked with, and on what terms.\n\n\
         The GNU C library (LGPL-2.1-or-later) and Rust's standard library (MIT OR Apache-2.0) are linked in too; imds-observer's\n\
         sources and `cargo xtask dist` link it again with another version of either.\n",
        release.version
    );
    for (titles, text) in groups {
        out.push_str(&format!(
            "\n{}\n{}\n\n{}\n",
            "=".repeat(80),
            titles.join("\n"),
            text.trim()
        ));
    }
    out.push_str(&format!(
        "\n{}\nWithout a text of their own; the expression names the terms:\n{}\n",
        "=".repeat(80),
        bare.join("\n")
    ));
    Ok(out)
}

/// Collects all packages that are linked into ours, directly or indirectly, without build and test dependencies.
fn collect(metadata: &Value, linked: &mut BTreeMap<String, Linked>) -> anyhow::Result<()> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let id = |value: &Value| value["id"].as_str().unwrap_or_default().to_owned();
    let packages: HashMap<String, Value> = list(&metadata["packages"])
        .into_iter()
        .map(|package| (id(&package), package))
        .collect();
    let nodes: HashMap<String, Value> = list(&metadata["resolve"]["nodes"])
        .into_iter()
        .map(|node| (id(&node), node))
        .collect();
    let mut waiting: Vec<String> = packages
        .values()
        .filter(|package| PACKAGES.iter().any(|name| package["name"] == *name))
        .map(id)
        .collect();
    ensure!(
        waiting.len() == PACKAGES.len(),
        "cargo's metadata lacks one of {PACKAGES:?}"
    );
    let mut seen = BTreeSet::new();
    while let Some(next) = waiting.pop() {
        if !seen.insert(next.clone()) {
            continue;
        }
        for dependency in list(&nodes[&next]["deps"]) {
            let is_linked = list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
            if let (true, Some(id)) = (is_linked, dependency["pkg"].as_str()) {
                waiting.push(id.to_owned());
            }
        }
        let package = &packages[&next];
        // Licenses of our own packages are included separately.
        if package["source"].is_null() {
            continue;
        }
        let text = |key: &str| package[key].as_str().unwrap_or("unknown").to_owned();
        let title = format!("{} {} ({})", text("name"), text("version"), text("license"));
        let directory = Path::new(package["manifest_path"].as_str().unwrap_or_default())
            .parent()
            .context("a package has a directory")?
            .to_owned();
        let mut texts = BTreeSet::new();
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
            let is_licence = ["LICENSE", "LICENCE", "COPYING", "NOTICE", "COPYRIGHT"]
                .iter()
                .any(|start| name.starts_with(start));
            if is_licence && path.is_file() {
                texts.insert(String::from_utf8_lossy(&fs::read(&path)?).replace("\r\n", "\n"));
            }
        }
        linked.insert(title.clone(), Linked { title, texts });
    }
    Ok(())
}
