//! The kubectl plugin and its manifest for krew.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};

use super::Release;
use super::archive::{Archive, gzip, sha256};

pub(super) fn make(release: &Release, source: &Path) -> anyhow::Result<()> {
    let read = |name: &str| {
        let text = fs::read_to_string(source.join("deploy/krew").join(name)).with_context(|| format!("read {name}"))?;
        ensure!(
            text.contains("@VERSION@"),
            "deploy/krew/{name} has no place for the version"
        );
        anyhow::Ok(text.replace("@VERSION@", &release.version))
    };
    let mut archive = Archive::new(release.epoch);
    archive.program("kubectl-imds", read("kubectl-imds")?.as_bytes())?;
    archive.file("LICENSE-APACHE", &fs::read(source.join("LICENSE-APACHE"))?)?;
    let archive = gzip(&archive.finish()?)?;
    let manifest = read("imds.yaml")?.replace("@SHA256@", &sha256(&archive));
    fs::write(release.file("-kubectl-imds.tar.gz"), archive)?;
    fs::write(release.file("-krew.yaml"), manifest)?;
    Ok(())
}
