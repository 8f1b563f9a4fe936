//! Which cgroup: from `/proc/PID/cgroup` of any hierarchy, and from a cgroup id where no process is known.

use std::fs;
use std::os::unix::fs::{DirEntryExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::container;
use super::host::HostRoot;
use crate::event::CgroupPath;

/// Directories that one search looks at: a node has some thousand.
const MAX_DIRECTORIES: usize = 65_536;
/// Levels below the root.
const MAX_DEPTH: usize = 24;

/// The most specific path of `/proc/PID/cgroup`: one that names a container, else v2's, else that of systemd's hierarchy. `locate` gets
/// a hierarchy's controllers (none for v2) and the path in it.
///
/// On hybrid hosts runtimes put containers into the v1 hierarchies and may leave v2 at its root, or in the runtime's own service.
pub fn from_proc(text: &str, locate: &dyn Fn(&str, &str) -> CgroupPath) -> Option<CgroupPath> {
    let lines = || {
        text.lines().filter_map(|line| {
            let mut fields = line.splitn(3, ':');
            Some((fields.next()?, fields.next()?, fields.next()?))
        })
    };
    let cgroup = |controllers, path: &str| {
        // A cgroup that was removed under its last process.
        locate(controllers, path.strip_suffix(" (deleted)").unwrap_or(path))
    };
    let cgroups = |v2: bool| {
        lines()
            .filter(move |(id, ..)| (*id == "0") == v2)
            .map(move |(_, controllers, path)| cgroup(controllers, path))
    };
    let unified = cgroups(true).next();
    let is_container = |cgroup: &CgroupPath| container::of(cgroup).is_some();
    unified
        .clone()
        .filter(is_container)
        .or_else(|| cgroups(false).find(is_container))
        .or(unified.clone().filter(|cgroup| cgroup.path != "/"))
        .or_else(|| {
            lines()
                .find(|(_, controllers, _)| *controllers == "name=systemd")
                .map(|(_, controllers, path)| cgroup(controllers, path))
        })
        .or(unified)
        .or_else(|| cgroups(false).next())
}

/// Where the host's cgroup hierarchies are mounted.
#[derive(Debug, Default)]
pub struct Hierarchies {
    /// cgroup v2.
    pub unified: Option<PathBuf>,
    /// Our own cgroup in it, where we have a cgroup namespace: paths in `/proc` are relative to it.
    own: Option<String>,
    /// Roots of v1 hierarchies, with their controllers.
    v1: Vec<(Vec<String>, PathBuf)>,
}

impl Hierarchies {
    pub fn of(host: &HostRoot) -> Self {
        let Some(mounts) = mountinfo(host) else {
            return Self::default();
        };
        let unified = whole_tree(&mounts).map(|point| host.join(&point));
        let v1 = v1_trees(&mounts)
            .map(|(controllers, point)| (controllers, host.join(&point)))
            .collect();
        let own = unified.as_deref().and_then(own_path);
        Self { unified, own, v1 }
    }

    /// A path as `/proc/PID/cgroup` has it.
    pub fn locate(&self, controllers: &str, path: &str) -> CgroupPath {
        let shown = without_parents(path);
        let all = shown.split('/').filter(|component| !component.is_empty()).count();
        let (mount, path) = if controllers.is_empty() {
            (self.unified.as_deref(), self.absolute(path))
        } else {
            let first = controllers.split(',').next().unwrap_or_default();
            let named = |(names, _): &&(Vec<String>, PathBuf)| names.iter().any(|name| name == first);
            let mount = self.v1.iter().find(named).map(|(_, point)| point.as_path());
            (mount, (!path.starts_with("/..")).then(|| path.to_owned()))
        };
        match (mount, path) {
            (Some(mount), Some(path)) => CgroupPath {
                delegated: delegated(mount, &path),
                path,
            },
            // Who made the directories can't be seen, so their names identify nothing.
            _ => CgroupPath {
                path: shown,
                delegated: all,
            },
        }
    }

    /// `/../../kubepods/x` from within `/kubepods/pod1/ours` -> `/kubepods/x`.
    fn absolute(&self, path: &str) -> Option<String> {
        let own = self.own.as_deref().unwrap_or_default();
        let mut components: Vec<&str> = own.split('/').filter(|component| !component.is_empty()).collect();
        for component in path.split('/').filter(|component| !component.is_empty()) {
            if component == ".." {
                components.pop()?;
            } else {
                components.push(component);
            }
        }
        Some(format!("/{}", components.join("/")))
    }

    /// The cgroup v2 with this id.
    pub fn with_id(&self, id: u64) -> Option<CgroupPath> {
        let mount = self.unified.as_deref()?;
        let path = path_of(mount, id)?;
        Some(CgroupPath {
            delegated: delegated(mount, &path),
            path,
        })
    }
}

/// The root of our cgroup namespace in the host's tree. `None`: it is the tree's own root, or not known.
fn own_path(mount: &Path) -> Option<String> {
    let own = fs::metadata("/sys/fs/cgroup").ok()?;
    // Another kind of file system: no namespace of ours is mounted there.
    let unified = nix::sys::statfs::statfs("/sys/fs/cgroup")
        .is_ok_and(|found| found.filesystem_type() == nix::sys::statfs::CGROUP2_SUPER_MAGIC);
    let root = fs::metadata(mount).ok()?;
    (unified && own.ino() != root.ino()).then(|| path_of(mount, own.ino()))?
}

/// Components, from the leaf, below the first directory in which another user than root may make others.
fn delegated(mount: &Path, path: &str) -> usize {
    const WRITABLE_BY_OTHERS: u32 = 0o022;
    let components: Vec<&str> = path.split('/').filter(|component| !component.is_empty()).collect();
    let mut directory = mount.to_owned();
    for (level, component) in components.iter().enumerate() {
        directory.push(component);
        let roots = fs::symlink_metadata(&directory)
            .is_ok_and(|found| found.uid() == 0 && found.mode() & WRITABLE_BY_OTHERS == 0);
        if !roots {
            return components.len() - 1 - level;
        }
    }
    0
}

/// `/../../kubepods/x` -> `/kubepods/x`: relative to a cgroup namespace, which hides the path above the common part.
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

/// Mounts as the host's own first process (else we) see them.
fn mountinfo(host: &HostRoot) -> Option<String> {
    let mounts = host
        .proc("1/mountinfo", 1 << 20)
        .or_else(|| host.proc("self/mountinfo", 1 << 20))?;
    Some(String::from_utf8_lossy(&mounts).into_owned())
}

/// Controllers (or `name=systemd`) and mount point of each v1 hierarchy that is mounted from its root.
fn v1_trees(mountinfo: &str) -> impl Iterator<Item = (Vec<String>, String)> {
    mountinfo.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let (root, point) = (before.next()?, before.next()?);
        let mut after = after.split(' ');
        let kind = after.next()?;
        let options = after.nth(1)?;
        let controllers = options.split(',').map(str::to_owned).collect();
        (kind == "cgroup" && without_parents(root) == "/").then(|| (controllers, unescape(point)))
    })
}

/// Where `mountinfo` has the whole cgroup v2 tree: id, parent, device, root, mount point, options, optional fields, `-`, type, source,
/// options.
///
/// The kernel reports roots relative to the reader's cgroup namespace. A container's own mount shows its part as `/` then, and the host's tree,
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
    use super::*;

    /// As if root had made everything.
    fn chosen(text: &str) -> Option<String> {
        let roots = |_: &str, path: &str| CgroupPath {
            path: without_parents(path),
            delegated: 0,
        };
        from_proc(text, &roots).map(|cgroup| cgroup.path)
    }

    #[test]
    fn the_line_that_reports_most() {
        let id = "0a".repeat(32);
        let hybrid =
            format!("12:cpu,cpuacct:/docker/{id}\n1:name=systemd:/docker/{id}\n0::/system.slice/containerd.service\n");
        assert_eq!(chosen(&hybrid).unwrap(), format!("/docker/{id}"));
        assert_eq!(
            chosen("12:cpu:/\n1:name=systemd:/system.slice/app.service\n0::/\n").unwrap(),
            "/system.slice/app.service"
        );
        assert_eq!(chosen("0::/user.slice/a:b\n").unwrap(), "/user.slice/a:b");
        assert_eq!(chosen("0::/../../pod1/x\n").unwrap(), "/pod1/x");
        assert_eq!(chosen("0::/..\n").unwrap(), "/");
        assert_eq!(chosen("0::/..hidden\n").unwrap(), "/..hidden");
        assert_eq!(chosen("0::/gone.scope (deleted)\n").unwrap(), "/gone.scope");
        assert_eq!(chosen("3:cpu:/a\n").unwrap(), "/a");
        for broken in ["", "\n", "nonsense", "0:", "::"] {
            let _ = chosen(broken);
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
        let found = Hierarchies::of(&HostRoot::new(directory.path()));
        assert_eq!(found.unified, Some(directory.path().join("sys/fs/cgroup/unified")));
        assert_eq!(found.v1.len(), 1);
        assert_eq!(found.v1[0].1, directory.path().join("sys/fs/cgroup/cpu"));
        assert!(found.v1[0].0.iter().any(|name| name == "cpu"));
    }

    /// A tree with a user's directory in it. Directories made here belong to this test's user: root, as in CI and in containers.
    fn tree() -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir_all(tree.path().join("kubepods/pod1/ctr/inner")).unwrap();
        fs::create_dir_all(tree.path().join("user/session/kubepods/pod1")).unwrap();
        fs::create_dir_all(tree.path().join("open/child")).unwrap();
        let mode = |path: &str, mode| {
            use std::os::unix::fs::PermissionsExt as _;
            fs::set_permissions(tree.path().join(path), fs::Permissions::from_mode(mode)).unwrap();
        };
        for path in [
            "kubepods",
            "kubepods/pod1",
            "kubepods/pod1/ctr",
            "user",
            "user/session",
            "open/child",
        ] {
            mode(path, 0o755);
        }
        mode("open", 0o777);
        tree
    }

    #[test]
    fn below_a_users_directory_names_are_the_users() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("left out: only root can give a directory to another user");
            return;
        }
        let tree = tree();
        let count = |path: &str| delegated(tree.path(), path);
        assert_eq!(count("/"), 0);
        assert_eq!(count("/kubepods/pod1/ctr"), 0);
        std::os::unix::fs::chown(tree.path().join("user/session"), Some(1000), None).unwrap();
        assert_eq!(count("/user/session"), 0, "its own name is root's choice");
        assert_eq!(count("/user/session/kubepods/pod1"), 2);
        assert_eq!(count("/open/child"), 1, "anybody may make a directory there");
        // As runc gives a container its own directory.
        std::os::unix::fs::chown(tree.path().join("kubepods/pod1/ctr"), Some(100_000), None).unwrap();
        assert_eq!(count("/kubepods/pod1/ctr"), 0);
        assert_eq!(count("/kubepods/pod1/ctr/inner"), 1);
        assert_eq!(count("/gone/away"), 1, "not there: its maker isn't known");
    }

    #[test]
    fn paths_relative_to_a_cgroup_namespace_are_resolved() {
        let at = |own: &str| Hierarchies {
            own: Some(own.to_owned()),
            ..Hierarchies::default()
        };
        let own = at("/kubepods/pod1/ours");
        assert_eq!(own.absolute("/../../pod2/x").as_deref(), Some("/kubepods/pod2/x"));
        assert_eq!(own.absolute("/").as_deref(), Some("/kubepods/pod1/ours"));
        assert_eq!(own.absolute("/../../../../x"), None);
        assert_eq!(Hierarchies::default().absolute("/a/b").as_deref(), Some("/a/b"));
        // Nothing is mounted: a path, and no identity.
        let unknown = Hierarchies::default().locate("pids", "/docker/x");
        assert_eq!((unknown.path.as_str(), unknown.delegated), ("/docker/x", 2));
    }
}
