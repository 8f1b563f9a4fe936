//! Which paths are asked most, in bounded memory (the space-saving algorithm of Metwally, Agrawal and El Abbadi, 2005).

use crate::record::PathCount;

/// Paths that a summary names.
const SHOWN: usize = 10;

/// The most frequent paths. A count is never too low; beyond `limit` distinct paths it may be too high by the count that was taken over.
#[derive(Clone, Debug)]
pub(super) struct TopPaths {
    counts: Vec<PathCount>,
    limit: usize,
}

impl TopPaths {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            counts: Vec::new(),
            limit: limit.max(1),
        }
    }

    /// Counts a request target without its query.
    pub(super) fn add(&mut self, target: &str) {
        let path = memchr::memchr(b'?', target.as_bytes()).map_or(target, |query| &target[..query]);
        if let Some(known) = self.counts.iter_mut().find(|known| known.path == path) {
            known.requests += 1;
            return;
        }
        if self.counts.len() < self.limit {
            self.counts.push(PathCount {
                path: path.to_owned(),
                requests: 1,
            });
            return;
        }
        if let Some(rarest) = self.counts.iter_mut().min_by_key(|known| known.requests) {
            rarest.requests += 1;
            path.clone_into(&mut rarest.path);
        }
    }

    pub(super) fn clear(&mut self) {
        self.counts.clear();
    }

    /// Most frequent first.
    pub(super) fn top(&self) -> Vec<PathCount> {
        let mut top = self.counts.clone();
        top.sort_by(|a, b| b.requests.cmp(&a.requests).then_with(|| a.path.cmp(&b.path)));
        top.truncate(SHOWN);
        top
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frequent_path_survives_any_number_of_rare_ones() {
        let mut paths = TopPaths::new(4);
        for index in 0..1000 {
            paths.add(&format!("/rare/{index}"));
            paths.add("/hot?x=1");
            paths.add("/hot");
        }
        let top = paths.top();
        assert_eq!((top[0].path.as_str(), top[0].requests), ("/hot", 2000));
        assert!(paths.counts.len() <= 4);
    }
}
