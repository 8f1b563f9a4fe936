//! Completions and manual pages, which the program for this machine's processor writes.

use anyhow::Context as _;
use xshell::{Shell, cmd};

use super::{Release, program};

/// Shells, and the file names that they look for.
const SHELLS: &[(&str, &str)] = &[
    ("bash", "imds-observer"),
    ("zsh", "_imds-observer"),
    ("fish", "imds-observer.fish"),
];

/// Names below the tarball's top directory, and contents. Empty if no program is built for this machine's processor.
pub(super) fn make(sh: &Shell, release: &Release) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let Some(native) = release.arches.iter().find(|arch| arch.is_native()) else {
        return Ok(Vec::new());
    };
    let program = program::path(release, *native);
    let mut pages = Vec::new();
    for (shell, name) in SHELLS {
        let text = cmd!(sh, "{program} completions {shell}").quiet().output()?.stdout;
        pages.push((format!("completions/{shell}/{name}"), text));
    }
    let names = cmd!(sh, "{program} man --list").quiet().read()?;
    for name in names.lines() {
        let command = name.strip_prefix("imds-observer-");
        let text = cmd!(sh, "{program} man {command...}").quiet().output()?.stdout;
        pages.push((format!("man/{name}.1"), text));
    }
    pages.last().context("the program lists no manual page")?;
    Ok(pages)
}
