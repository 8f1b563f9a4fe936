//! Paths as detectors compare them: what clients write differently and mean alike is one path.

use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroUsize;
use std::sync::Arc;

use rustc_hash::FxBuildHasher;

use super::Limits;
use crate::imds::{below_version, normalise};

/// Paths whose form is remembered; a new one takes the place of another, and of longer ones nothing is remembered.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(256).unwrap();
const MAX_REMEMBERED_BYTES: usize = 512;

/// In the paths of a role's name and of its credentials.
const CREDENTIALS: &str = "security-credentials";

/// Facts derived from a path. The default is the absence of a path.
#[derive(Debug, Default)]
pub struct Path {
    asked: Box<str>,
    /// Without query, doubled and trailing slashes.
    pub normal: Box<str>,
    /// Where in `normal` begins what is below the version.
    below_at: usize,
    /// Salted hash of `normal`.
    pub(super) id: u64,
    /// The same of what is below the version.
    pub(super) below_id: u64,
    /// Whether it leads to a role's name or its credentials.
    pub(super) credentials: bool,
}

impl Path {
    /// `/latest/meta-data/x` and `/2021-03-23/meta-data/x` are one thing.
    pub fn below(&self) -> &str {
        self.normal.get(self.below_at..).unwrap_or_default()
    }
}

/// Works out of each path once what all detectors want to know of it.
#[derive(Debug)]
pub(super) struct Paths {
    salt: RandomState,
    remembered: Vec<Option<Arc<Path>>>,
    slots: NonZeroUsize,
    other: Option<Arc<Path>>,
    none: Arc<Path>,
}

impl Paths {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            salt: RandomState::new(),
            remembered: Vec::new(),
            slots: limits.paths(REMEMBERED),
            other: None,
            none: Arc::default(),
        }
    }

    /// The path of observations without a request.
    pub(super) fn none(&self) -> &Arc<Path> {
        &self.none
    }

    pub(super) fn get(&mut self, asked: &str) -> &Arc<Path> {
        let slot = if asked.len() > MAX_REMEMBERED_BYTES {
            &mut self.other
        } else {
            if self.remembered.is_empty() {
                self.remembered.resize_with(self.slots.get(), || None);
            }
            &mut self.remembered[FxBuildHasher.hash_one(asked) as usize % self.slots]
        };
        let known = slot.take().filter(|path| *path.asked == *asked);
        slot.insert(known.unwrap_or_else(|| {
            let normal = normalise(asked);
            let below = below_version(&normal);
            Arc::new(Path {
                asked: asked.into(),
                below_at: normal.len() - below.len(),
                id: self.salt.hash_one(&*normal),
                below_id: self.salt.hash_one(below),
                credentials: below.contains(CREDENTIALS),
                normal: normal.into(),
            })
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_meant_alike_is_alike() {
        let mut paths = Paths::new(&Limits::DEFAULT);
        let mut ids = |asked: &str| {
            let path = paths.get(asked);
            (path.id, path.below_id)
        };
        let plain = ids("/latest/meta-data/x");
        for _ in 0..2 {
            assert_eq!(ids("/latest//meta-data/x/?q=1"), plain);
            assert_eq!(ids("/latest/meta-data/x"), plain);
        }
        let dated = ids("/2021-03-23/meta-data/x");
        assert_eq!(dated.1, plain.1);
        assert_ne!(dated.0, plain.0);
        assert_ne!(ids("/latest/meta-data/y").1, plain.1);
        let long = format!("/latest/{}", "x".repeat(MAX_REMEMBERED_BYTES));
        assert_eq!(ids(&long), ids(&format!("{long}/")));
    }
}
