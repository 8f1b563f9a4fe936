//! The tarballs, one per processor, and the chart.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use xshell::Shell;

use super::archive::{Archive, gzip};
use super::{Release, inventory, pages, program};
use crate::kernels::Arch;

/// Files besides the program in every tarball, with their sources.
const FILES: &[(&str, &str)] = &[
    ("README.md", "README.md"),
    ("CHANGELOG.md", "CHANGELOG.md"),
    ("SECURITY.md", "SECURITY.md"),
    ("LICENSE-APACHE", "LICENSE-APACHE"),
    ("LICENSE-MIT", "LICENSE-MIT"),
    ("docs/install.md", "docs/install.md"),
    ("docs/quick-start.md", "docs/quick-start.md"),
    ("docs/incident.md", "docs/incident.md"),
    ("docs/service.md", "docs/service.md"),
    ("docs/troubleshooting.md", "docs/troubleshooting.md"),
    ("etc/imds-observer.toml", "deploy/imds-observer.toml"),
    ("systemd/imds-observer.service", "deploy/systemd/imds-observer.service"),
    ("prometheus/alerts.yml", "deploy/prometheus/alerts.yml"),
    ("grafana/imds-observer.json", "deploy/grafana/imds-observer.json"),
];

pub(super) fn make(sh: &Shell, release: &Release, source: &Path) -> anyhow::Result<()> {
    let pages = pages::make(sh, release)?;
    for arch in &release.arches {
        tarball(release, source, *arch, &pages)?;
    }
    chart(release, source)
}

fn tarball(release: &Release, source: &Path, arch: Arch, pages: &[(String, Vec<u8>)]) -> anyhow::Result<()> {
    let top = format!("imds-observer-{}-{}-linux", release.version, arch.name());
    let mut archive = Archive::new(release.epoch);
    archive.directory(&top)?;
    archive.program(
        &format!("{top}/imds-observer"),
        &fs::read(program::path(release, arch))?,
    )?;
    for (to, from) in FILES {
        let contents = fs::read(source.join(from)).with_context(|| format!("read {from}"))?;
        archive.file(&format!("{top}/{to}"), &contents)?;
    }
    archive.file(
        &format!("{top}/{}", inventory::LICENCES),
        &fs::read(release.directory.join("programs").join(inventory::LICENCES))?,
    )?;
    for (name, contents) in pages {
        archive.file(&format!("{top}/{name}"), contents)?;
    }
    fs::write(
        release.file(&format!("-{}-linux.tar.gz", arch.name())),
        gzip(&archive.finish()?)?,
    )?;
    Ok(())
}

/// Packs the chart as `helm package` does, but reproducibly.
fn chart(release: &Release, source: &Path) -> anyhow::Result<()> {
    let directory = source.join("deploy/helm/imds-observer");
    let mut archive = Archive::new(release.epoch);
    for path in files_below(&directory)? {
        let name = path.strip_prefix(&directory)?.display().to_string();
        archive.file(&format!("imds-observer/{name}"), &fs::read(&path)?)?;
    }
    fs::write(release.file("-chart.tgz"), gzip(&archive.finish()?)?)?;
    Ok(())
}

fn files_below(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut entries: Vec<PathBuf> = fs::read_dir(directory)?
        .map(|entry| Ok(entry?.path()))
        .collect::<anyhow::Result<_>>()?;
    entries.sort();
    for path in entries {
        if path.is_dir() {
            found.extend(files_below(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}
