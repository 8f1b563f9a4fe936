//! Completions and manual pages, as the program of this machine's processor writes them.

use anyhow::Context as _;
use xshell::{Shell, cmd};

use super::{Release, program};

/// Shells, and the files' names that they look for.
const SHELLS: &[(&str, &str)] = &[
    ("bash", "imds-observer"),
    ("zsh", "_imds-observer"),
    ("fish", "imds-observer.fish"),
];

/// Names below the tarball's top, and contents. None, if no program for this processor is made.
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
