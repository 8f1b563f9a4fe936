//! Which capabilities stay, and dropping the others for good.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use caps::{CapSet, Capability, CapsHashSet};
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, faccessat};

use super::Needs;

pub(super) fn held() -> Vec<Capability> {
    caps::read(None, CapSet::Permitted)
        .unwrap_or_default()
        .into_iter()
        .collect()
}

/// Capabilities in `needs`, and those that its files require: without any capability, root can't access other users' files.
pub(super) fn needed(needs: &Needs) -> CapsHashSet {
    let mut keep: CapsHashSet = needs.capabilities.iter().copied().collect();
    let refused = without_any(|| {
        let writes = needs
            .writes
            .iter()
            .any(|path| !may(path, AccessFlags::W_OK | AccessFlags::X_OK));
        let reads = needs.reads.iter().any(|path| !may(path, AccessFlags::R_OK));
        (writes, reads)
    });
    match refused {
        Ok((writes, reads)) => {
            if writes {
                keep.insert(Capability::CAP_DAC_OVERRIDE);
            }
            if reads {
                keep.insert(Capability::CAP_DAC_READ_SEARCH);
                keep.insert(Capability::CAP_DAC_OVERRIDE);
            }
        }
        Err(error) => {
            tracing::debug!("test file access without capabilities: {error:#}");
            keep.extend([Capability::CAP_DAC_OVERRIDE, Capability::CAP_DAC_READ_SEARCH]);
        }
    }
    keep
}

/// `false` where it isn't there, too: then nothing is lost by keeping more.
fn may(path: &Path, mode: AccessFlags) -> bool {
    faccessat(AT_FDCWD, path, mode, AtFlags::AT_EACCESS).is_ok()
}

/// Runs `act` while this thread's capabilities are switched off.
fn without_any<T>(act: impl FnOnce() -> T) -> anyhow::Result<T> {
    let before = caps::read(None, CapSet::Effective).context("read the effective capabilities")?;
    caps::clear(None, CapSet::Effective).context("clear the effective capabilities")?;
    let result = act();
    caps::set(None, CapSet::Effective, &before).context("restore the effective capabilities")?;
    Ok(result)
}

/// Drops all others on this thread.
pub(super) fn keep(wanted: &CapsHashSet) -> anyhow::Result<()> {
    let permitted = caps::read(None, CapSet::Permitted).context("read the capabilities")?;
    let keep: CapsHashSet = permitted.intersection(wanted).copied().collect();
    // Before the others, because it takes one of them. Without it the set only matters at `execve`, which is refused as well.
    if permitted.contains(&Capability::CAP_SETPCAP) {
        for capability in caps::runtime::thread_all_supported().difference(&keep) {
            caps::drop(None, CapSet::Bounding, *capability)
                .with_context(|| format!("drop {capability} from the bounding set"))?;
        }
    }
    // Ambient capabilities go with those.
    caps::clear(None, CapSet::Inheritable).context("clear the inheritable capabilities")?;
    caps::set(None, CapSet::Effective, &keep).context("reduce the effective capabilities")?;
    caps::set(None, CapSet::Permitted, &keep).context("reduce the permitted capabilities")
}

/// The directory that a file is in.
pub fn directory_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// Each on a thread of its own: a dropped capability can't be regained.
    fn on_a_thread<T: Send>(act: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| scope.spawn(act).join().unwrap())
    }

    #[test]
    fn what_is_not_wanted_is_gone_for_good() {
        let before = held();
        let left = on_a_thread(|| {
            keep(&[Capability::CAP_NET_ADMIN].into()).unwrap();
            let again = caps::set(None, CapSet::Permitted, &[Capability::CAP_SYS_ADMIN].into());
            assert!(again.is_err() || !before.contains(&Capability::CAP_SYS_ADMIN));
            held()
        });
        let wanted: Vec<_> = before
            .iter()
            .filter(|held| **held == Capability::CAP_NET_ADMIN)
            .copied()
            .collect();
        assert_eq!(left, wanted);
        assert_eq!(held().len(), before.len(), "other threads keep theirs");
    }

    #[test]
    fn a_directory_of_somebody_else_takes_a_capability() {
        let own = tempfile::tempdir().unwrap();
        let needs = |directory: &Path| Needs {
            writes: vec![directory.to_owned()],
            ..Needs::default()
        };
        assert!(needed(&needs(own.path())).is_empty(), "one's own takes none");
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        nix::unistd::chown(own.path(), Some(65_534.into()), None).unwrap();
        std::fs::set_permissions(own.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(needed(&needs(own.path())), [Capability::CAP_DAC_OVERRIDE].into());
    }

    #[test]
    fn a_bare_name_is_in_this_directory() {
        assert_eq!(directory_of(Path::new("trace")), Path::new("."));
        assert_eq!(directory_of(Path::new("/var/log/trace")), Path::new("/var/log"));
        assert_eq!(directory_of(Path::new("/trace")), Path::new("/"));
    }
}
