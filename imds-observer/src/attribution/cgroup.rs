//! Which cgroup: from `/proc/PID/cgroup` of any hierarchy, and from a cgroup id where no process is known.

use std::os::unix::fs::DirEntryExt as _;
use std::path::{Path, PathBuf};

use super::container;
use super::host::HostRoot;

/// Directories that one search looks at: a node has some thousand.
const MAX_DIRECTORIES: usize = 65_536;
/// Levels below the root.
const MAX_DEPTH: usize = 24;

/// The path that tells most, of `/proc/PID/cgroup`: one that names a container, else v2's, else that of systemd's hierarchy.
///
/// On hybrid hosts runtimes put containers into the v1 hierarchies and may leave v2 at its root.
pub fn from_proc(text: &str) -> Option<String> {
    let lines = || {
        text.lines().filter_map(|line| {
            let mut fields = line.splitn(3, ':');
            Some((fields.next()?, fields.next()?, fields.next()?))
        })
    };
    let paths = |v2: bool| lines().filter(move |(id, ..)| (*id == "0") == v2);
    let unified = paths(true).map(|(.., path)| path).next();
    let is_container = |path: &&str| container::from_cgroup(path).is_some();
    let chosen = unified
        .filter(is_container)
        .or_else(|| paths(false).map(|(.., path)| path).find(is_container))
        .or(unified.filter(|path| *path != "/"))
        .or_else(|| {
            paths(false)
                .find(|(_, controllers, _)| *controllers == "name=systemd")
                .map(|(.., path)| path)
        })
        .or(unified)
        .or_else(|| paths(false).map(|(.., path)| path).next())?;
    // A cgroup that was removed under its last process.
    let chosen = chosen.strip_suffix(" (deleted)").unwrap_or(chosen);
    Some(without_parents(chosen))
}

/// `/../../kubepods/x` -> `/kubepods/x`: relative to a cgroup namespace, where what lies above the common part is not told.
fn without_parents(path: &str) -> String {
    let mut rest = path;
    while let Some(below) = rest
        .strip_prefix("/..")
        .filter(|below| below.is_empty() || below.starts_with('/'))
    {
        rest = below;
    }
    if rest.is_empty() {
        "/".to_owned()
    } else {
        rest.to_owned()
    }
}

/// Where the host's cgroup v2 tree is mounted, as its own first process (else we) see it.
pub fn mount_point(host: &HostRoot) -> Option<PathBuf> {
    let mounts = host
        .proc("1/mountinfo", 1 << 20)
        .or_else(|| host.proc("self/mountinfo", 1 << 20))?;
    whole_tree(&String::from_utf8_lossy(&mounts)).map(|point| host.join(&point))
}

/// Where `mountinfo` has the whole cgroup v2 tree: id, parent, device, root, mount point, options, optional fields, `-`, type, source,
/// options.
///
/// Roots are told relative to the reader's cgroup namespace. A container's own mount shows its part as `/` then, and the host's tree,
/// bound into it, is `/../../..`: of several the one that lies highest.
pub fn whole_tree(mountinfo: &str) -> Option<String> {
    let trees = mountinfo.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let (root, point) = (before.next()?, before.next()?);
        // Something below a root is a part of the tree and doesn't show the host.
        let is_root = after.split(' ').next()? == "cgroup2" && without_parents(root) == "/";
        is_root.then(|| (root.matches("/..").count(), unescape(point)))
    });
    // The first of equals.
    trees
        .reduce(|highest, next| if next.0 > highest.0 { next } else { highest })
        .map(|(_, point)| point)
}

/// `\040` and the like.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        match after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(char::from(byte));
                rest = &after[3..];
            }
            None => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

/// The path of the cgroup with this id, which is its directory's inode. `None`: gone, or never seen within the bound.
pub fn path_of(mount_point: &Path, id: u64) -> Option<String> {
    let mut waiting = vec![(mount_point.to_owned(), 0)];
    let mut seen = 0;
    while let Some((directory, depth)) = waiting.pop() {
        for entry in directory.read_dir().ok().into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.ino() == id {
                let path = entry.path();
                return Some(format!("/{}", path.strip_prefix(mount_point).ok()?.display()));
            }
            seen += 1;
            if seen >= MAX_DIRECTORIES {
                return None;
            }
            if depth < MAX_DEPTH {
                waiting.push((entry.path(), depth + 1));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn the_line_that_tells_most() {
        let id = "0a".repeat(32);
        let hybrid =
            format!("12:cpu,cpuacct:/docker/{id}\n1:name=systemd:/docker/{id}\n0::/system.slice/containerd.service\n");
        assert_eq!(from_proc(&hybrid).unwrap(), format!("/docker/{id}"));
        assert_eq!(
            from_proc("12:cpu:/\n1:name=systemd:/system.slice/app.service\n0::/\n").unwrap(),
            "/system.slice/app.service"
        );
        assert_eq!(from_proc("0::/user.slice/a:b\n").unwrap(), "/user.slice/a:b");
        assert_eq!(from_proc("0::/../../pod1/x\n").unwrap(), "/pod1/x");
        assert_eq!(from_proc("0::/..\n").unwrap(), "/");
        assert_eq!(from_proc("0::/..hidden\n").unwrap(), "/..hidden");
        assert_eq!(from_proc("0::/gone.scope (deleted)\n").unwrap(), "/gone.scope");
        assert_eq!(from_proc("3:cpu:/a\n").unwrap(), "/a");
        for broken in ["", "\n", "nonsense", "0:", "::"] {
            let _ = from_proc(broken);
        }
    }

    #[test]
    fn the_hierarchy_is_found_on_hosts_and_in_containers() {
        let v2 = "24 1 0:21 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(whole_tree(v2).unwrap(), "/sys/fs/cgroup");
        let hybrid = "30 24 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      31 24 0:27 / /sys/fs/cgroup/uni\\040fied rw - cgroup2 cgroup2 rw\n";
        assert_eq!(whole_tree(hybrid).unwrap(), "/sys/fs/cgroup/uni fied");
        // A pod with a cgroup namespace of its own, into which the host's tree is mounted.
        let pod = "30 24 0:27 / /sys/fs/cgroup ro - cgroup2 cgroup rw\n\
                   31 24 0:27 /../../.. /host/sys/fs/cgroup ro - cgroup2 cgroup2 rw\n";
        assert_eq!(whole_tree(pod).unwrap(), "/host/sys/fs/cgroup");
        for part in ["/pod", "/../pod", "/..pod"] {
            let line = format!("31 24 0:27 {part} /sys/fs/cgroup rw - cgroup2 cgroup2 rw\nbroken\n");
            assert_eq!(whole_tree(&line), None, "{part}");
        }
    }

    #[test]
    fn a_cgroup_is_found_by_its_inode() {
        let directory = tempfile::tempdir().unwrap();
        let leaf = directory.path().join("kubepods/besteffort/pod1");
        fs::create_dir_all(&leaf).unwrap();
        fs::create_dir_all(directory.path().join("system.slice/app.service")).unwrap();
        let id = fs::metadata(&leaf).unwrap().ino();
        assert_eq!(
            path_of(directory.path(), id).as_deref(),
            Some("/kubepods/besteffort/pod1")
        );
        assert_eq!(path_of(directory.path(), u64::MAX), None);
    }

    #[test]
    fn the_hosts_mount_is_below_its_root() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("proc/1")).unwrap();
        fs::write(
            directory.path().join("proc/1/mountinfo"),
            "30 24 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n31 24 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
        )
        .unwrap();
        assert_eq!(
            mount_point(&HostRoot::new(directory.path())),
            Some(directory.path().join("sys/fs/cgroup/unified"))
        );
    }
}
