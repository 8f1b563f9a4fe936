//! Locations of the clients' programs.

use std::path::PathBuf;

/// Paths from which the clients' commands are built.
#[derive(Clone, Debug)]
pub struct Tools {
    /// Directory that `cargo xtask setup --for scenarios` created.
    pub tools: PathBuf,
    /// Directory of our small client programs around libraries: `imds-observer-lab/clients`.
    pub clients: PathBuf,
    /// The lab's own program, which plays scripts.
    pub lab: PathBuf,
    /// The observer.
    pub observer: PathBuf,
}

impl Tools {
    /// Replaces the placeholders in a word of a command. `scratch`: directory of this run.
    pub(super) fn fill(&self, word: &str, scratch: &std::path::Path) -> String {
        [
            ("{tools}", &self.tools),
            ("{clients}", &self.clients),
            ("{lab}", &self.lab),
        ]
        .iter()
        .fold(
            word.replace("{scratch}", &scratch.to_string_lossy()),
            |word, (place, path)| word.replace(place, &path.to_string_lossy()),
        )
    }
}
