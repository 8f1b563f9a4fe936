//! Any bytes as what processes and container runtimes keep in files: for the fuzz targets.

use super::{cgroup, container, names, process};
use crate::event::CgroupPath;
use crate::record::arguments;

/// `/proc/PID/{stat,status,cgroup,mountinfo,cmdline}`, cgroup paths, and the runtimes' state.
pub fn fuzz_host_files(bytes: &[u8]) {
    let _ = (process::stat(bytes), process::status(bytes), arguments(bytes));
    let text = String::from_utf8_lossy(bytes);
    let _ = process::namespace_inode(&text);
    #[cfg(live)]
    let _ = cgroup::whole_tree(&text);
    let cgroup = |_: &str, path: &str| CgroupPath {
        path: path.to_owned(),
        delegated: 0,
    };
    if let Some(found) = cgroup::from_proc(&text, &cgroup) {
        let _ = container::from_cgroup(&found.path);
    }
    let _ = container::from_cgroup(&text);
    names::read_any(bytes);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            super::fuzz_host_files(&bytes);
        }
    }
}
