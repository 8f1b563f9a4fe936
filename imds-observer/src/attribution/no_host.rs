//! Without the feature `live` there is no host whose files could be read: nothing is found.

/// The root directory of no host.
#[derive(Debug)]
pub enum HostRoot {}

impl HostRoot {
    pub fn read(&self, _: &str, _: u64) -> Option<Vec<u8>> {
        match *self {}
    }

    pub fn find<T>(&self, _: &str, _: impl FnMut(&str) -> Option<T>) -> Option<T> {
        match *self {}
    }

    pub fn names(&self, _: &str, _: usize) -> Vec<String> {
        match *self {}
    }

    pub fn proc(&self, _: &str, _: u64) -> Option<Vec<u8>> {
        match *self {}
    }

    pub fn proc_link(&self, _: &str) -> Option<String> {
        match *self {}
    }

    pub fn join(&self, _: &str) -> std::path::PathBuf {
        match *self {}
    }
}
