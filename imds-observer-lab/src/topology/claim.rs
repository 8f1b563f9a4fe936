//! Ownership of a lab, and whether its owner is still running.
//!
//! Names contain the owner's PID, but PIDs are reused. Ownership is therefore a file lock, which the kernel releases when the owner dies
//! for any reason.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result};
use nix::fcntl::{Flock, FlockArg};

use super::{cgroup, netns};

/// Lock files and control sockets of running labs.
pub const DIRECTORY: &str = "/run/imds-observer-lab";
/// Prefix of the names of all namespaces and cgroups of the lab.
pub(super) const PREFIX: &str = "imdslab-";

/// One lab's claim on its names. Dropping it releases them.
pub(super) struct Claim {
    id: String,
    lock_path: PathBuf,
    _lock: Flock<File>,
}

impl Claim {
    pub(super) fn new() -> Result<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        fs::create_dir_all(DIRECTORY).with_context(|| format!("make {DIRECTORY} (needs root)"))?;
        loop {
            let id = format!("{}-{}", process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
            let lock_path = lock_path(&id);
            // The lock is held if a process in another PID namespace has our PID. The next number is tried then.
            if let Some(lock) = try_lock(&lock_path)? {
                remove_remains(&id)?;
                return Ok(Self {
                    id,
                    lock_path,
                    _lock: lock,
                });
            }
        }
    }

    /// ID of the lab, as `<pid>-<n>`.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn control_socket(&self) -> PathBuf {
        control_socket(&self.id)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.lock_path);
    }
}

/// Takes the lock that makes the live tests of several processes run one after the other.
pub fn take_turn() -> Result<Flock<File>> {
    fs::create_dir_all(DIRECTORY).with_context(|| format!("make {DIRECTORY} (needs root)"))?;
    let path = Path::new(DIRECTORY).join("exclusive.lock");
    let file = open(&path)?;
    let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => return Ok(lock),
        Err((file, _)) => file,
    };
    eprintln!("imds-observer-lab: waiting for another lab to end ({})", path.display());
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .with_context(|| format!("lock {}", path.display()))
}

/// Removes the remains of labs whose owner has died, and returns the IDs of these labs.
pub fn clean() -> Result<Vec<String>> {
    let mut cleaned = Vec::new();
    for id in ids_in_use()? {
        let path = lock_path(&id);
        // A lab's lock is created before everything else, so names without a lock have no owner. Creating the lock claims them.
        let Some(lock) = try_lock(&path)? else { continue };
        remove_remains(&id).with_context(|| format!("remove what lab {id} left"))?;
        let _ = fs::remove_file(&path);
        drop(lock);
        cleaned.push(id);
    }
    Ok(cleaned)
}

fn ids_in_use() -> Result<BTreeSet<String>> {
    let mut ids = BTreeSet::new();
    fs::create_dir_all(DIRECTORY).with_context(|| format!("make {DIRECTORY} (needs root)"))?;
    for name in names_in(Path::new(DIRECTORY))? {
        ids.extend(name.strip_suffix(".lock").and_then(id_of));
    }
    for name in names_in(Path::new(netns::DIRECTORY))? {
        ids.extend(name.strip_prefix(PREFIX).and_then(id_of));
    }
    if let Ok(mount_point) = cgroup::mount_point() {
        for name in names_in(&mount_point)? {
            ids.extend(name.strip_prefix(PREFIX).and_then(id_of));
        }
    }
    Ok(ids)
}

/// ID of the lab with this name: `12-0` for `12-0` and for `12-0-pod1`.
fn id_of(name: &str) -> Option<String> {
    let mut parts = name.split('-');
    let pid: u32 = parts.next()?.parse().ok()?;
    let number: u32 = parts.next()?.parse().ok()?;
    Some(format!("{pid}-{number}"))
}

fn remove_remains(id: &str) -> Result<()> {
    if let Ok(mount_point) = cgroup::mount_point() {
        cgroup::remove_tree(&mount_point.join(format!("{PREFIX}{id}")))?;
    }
    for name in names_in(Path::new(netns::DIRECTORY))? {
        if name.strip_prefix(PREFIX).and_then(id_of).as_deref() == Some(id) {
            netns::remove(&Path::new(netns::DIRECTORY).join(name));
        }
    }
    let _ = fs::remove_file(control_socket(id));
    Ok(())
}

fn names_in(directory: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("list {}", directory.display())),
    };
    Ok(entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect())
}

fn lock_path(id: &str) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{id}.lock"))
}

fn control_socket(id: &str) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{id}.sock"))
}

fn open(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.open(path).with_context(|| format!("open {}", path.display()))
}

/// Takes the lock, or returns `None` if a running process holds it.
fn try_lock(path: &Path) -> Result<Option<Flock<File>>> {
    let Ok(lock) = Flock::lock(open(path)?, FlockArg::LockExclusiveNonblock) else {
        return Ok(None);
    };
    // The owner may have removed the file between opening and locking it. The lock is then on an unlinked file.
    let same = fs::metadata(path).is_ok_and(|named| lock.metadata().is_ok_and(|held| held.ino() == named.ino()));
    Ok(same.then_some(lock))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_from_names() {
        assert_eq!(id_of("12-0").as_deref(), Some("12-0"));
        assert_eq!(id_of("12-0-pod1-outer").as_deref(), Some("12-0"));
        for other in ["", "exclusive", "12", "12-x", "-1-2"] {
            assert_eq!(id_of(other), None, "{other}");
        }
    }
}
