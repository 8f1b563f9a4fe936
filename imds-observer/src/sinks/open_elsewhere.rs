//! Opens a file to write records to, where there are no owners, links and locks as Unix has them.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

/// Opens and begins with nothing.
pub(super) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).open(path)
}

/// Change of a path while its file was open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Same,
    #[expect(dead_code, reason = "only Unix reports it")]
    Cut(u64),
    #[expect(dead_code, reason = "only Unix reports it")]
    Gone,
}

pub(super) fn fate(_: &File, _: &Path, _: u64) -> io::Result<Fate> {
    Ok(Fate::Same)
}
