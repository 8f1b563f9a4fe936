//! Archives whose bytes depend only on their contents: no owner, a single time stamp, entries in the given order.

use std::io::Write as _;

use anyhow::Context as _;
use flate2::{Compression, GzBuilder};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

pub(super) struct Archive {
    builder: Builder<Vec<u8>>,
    epoch: u64,
}

impl Archive {
    pub(super) fn new(epoch: u64) -> Self {
        Self {
            builder: Builder::new(Vec::new()),
            epoch,
        }
    }

    pub(super) fn directory(&mut self, path: &str) -> anyhow::Result<()> {
        self.entry(&format!("{path}/"), EntryType::Directory, 0o755, &[])
    }

    pub(super) fn file(&mut self, path: &str, contents: &[u8]) -> anyhow::Result<()> {
        self.entry(path, EntryType::Regular, 0o644, contents)
    }

    pub(super) fn program(&mut self, path: &str, contents: &[u8]) -> anyhow::Result<()> {
        self.entry(path, EntryType::Regular, 0o755, contents)
    }

    fn entry(&mut self, path: &str, kind: EntryType, mode: u32, contents: &[u8]) -> anyhow::Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(self.epoch);
        header.set_size(contents.len() as u64);
        self.builder
            .append_data(&mut header, path, contents)
            .with_context(|| format!("put {path} into an archive"))
    }

    pub(super) fn finish(self) -> anyhow::Result<Vec<u8>> {
        self.builder.into_inner().context("end an archive")
    }
}

pub(super) fn gzip(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    // The gzip header contains neither time nor name.
    let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    gzip.write_all(bytes)?;
    Ok(gzip.finish()?)
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(64);
    for byte in Sha256::digest(bytes) {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}
