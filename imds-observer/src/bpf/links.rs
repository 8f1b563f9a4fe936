//! Are the programs that were attached still attached? Another tool may detach a link (`bpftool link detach`), of which the kernel gives no
//! notice: the link stays open and refers to nothing.
//!
//! Links to cgroups and interfaces only: the kernel lets no tool detach those to its functions. A program that was attached without a link
//! (cgroups before 5.7, filters before 6.6) is not followed.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

/// Directory that describes the open files of this process.
const OPEN: &str = "/proc/self/fdinfo";
/// A link's object; 0 once it is detached.
const OBJECTS: [(&str, &str); 2] = [("cgroup", "cgroup_id"), ("tcx", "ifindex")];

/// Links of this process that were detached by others.
#[derive(Debug, Default)]
pub(crate) struct Links {
    /// The object to which each link was attached, by the link's ID.
    objects: HashMap<u64, u64>,
    /// Reported already.
    detached: HashSet<u64>,
}

/// A link, as its text describes it.
#[derive(Debug, PartialEq, Eq)]
struct Link {
    id: u64,
    /// 0: detached.
    object: u64,
}

impl Links {
    /// Returns links that were detached since the last call, such as `cgroup link 17`. Links of a removed interface don't count.
    pub(crate) fn look(&mut self) -> Vec<String> {
        self.look_at(Path::new(OPEN), |index| {
            u32::try_from(index).is_ok_and(|index| nix::net::if_::if_indextoname(index).is_ok())
        })
    }

    fn look_at(&mut self, directory: &Path, has_interface: impl Fn(u64) -> bool) -> Vec<String> {
        let Ok(open) = fs::read_dir(directory) else {
            return Vec::new();
        };
        let texts = open.flatten().filter_map(|file| fs::read_to_string(file.path()).ok());
        let links: Vec<_> = texts.filter_map(|text| link(&text)).collect();
        // Forgets links that this process has closed.
        self.objects
            .retain(|id, _| links.iter().any(|(_, link)| link.id == *id));
        self.detached.retain(|id| links.iter().any(|(_, link)| link.id == *id));
        let mut found = Vec::new();
        for (kind, Link { id, object }) in links {
            if object != 0 {
                self.objects.insert(id, object);
                continue;
            }
            let before = self.objects.get(&id).copied();
            let is_gone = kind == "tcx" && before.is_some_and(|index| !has_interface(index));
            if !is_gone && self.detached.insert(id) {
                found.push(format!("{kind} link {id}"));
            }
        }
        found
    }
}

/// `None`: no link, or one that can't be detached.
fn link(text: &str) -> Option<(&'static str, Link)> {
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
    };
    let kind = field("link_type")?;
    let (kind, object) = OBJECTS.iter().find(|(known, _)| *known == kind)?;
    let id = field("link_id")?.parse().ok()?;
    let object = field(object)?.parse().ok()?;
    Some((kind, Link { id, object }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(kind: &str, id: u32, object: &str) -> String {
        format!(
            "pos:\t0\nflags:\t02000000\nmnt_id:\t17\nlink_type:\t{kind}\nlink_id:\t{id}\nprog_tag:\tab\nprog_id:\t9\n{object}\nattach_type:\t1\n"
        )
    }

    #[test]
    fn a_link_without_an_object_is_detached_and_reported_once() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        write("3", "pos:\t0\nflags:\t02\n");
        write("4", &text("cgroup", 7, "cgroup_id:\t1"));
        write("5", &text("tcx", 8, "ifindex:\t2"));
        write("6", &text("tracing", 9, "target_obj_id:\t0"));
        let mut links = Links::default();
        assert!(links.look_at(directory.path(), |index| index == 2).is_empty());
        write("4", &text("cgroup", 7, "cgroup_id:\t0"));
        assert_eq!(links.look_at(directory.path(), |index| index == 2), ["cgroup link 7"]);
        assert!(links.look_at(directory.path(), |index| index == 2).is_empty());
        write("5", &text("tcx", 8, "ifindex:\t0 "));
        assert_eq!(links.look_at(directory.path(), |index| index == 2), ["tcx link 8"]);
    }

    #[test]
    fn an_interface_that_is_gone_has_detached_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let write = |object: &str| fs::write(directory.path().join("5"), text("tcx", 8, object)).unwrap();
        let mut links = Links::default();
        write("ifindex:\t3");
        assert!(links.look_at(directory.path(), |_| true).is_empty());
        write("ifindex:\t0");
        assert!(links.look_at(directory.path(), |_| false).is_empty());
    }

    #[test]
    fn other_texts_are_no_links() {
        for other in [
            "",
            "link_type:\tcgroup\n",
            "link_type:\tcgroup\nlink_id:\tx\ncgroup_id:\t0\n",
            "link_type:\tnetns\nlink_id:\t1\n",
        ] {
            assert_eq!(link(other), None, "{other}");
        }
    }
}
