//! Opens a file to write records to, where other users may have put something in its place.
//!
//! In a directory that others may write to, a name can be theirs: a link to a file that this user may overwrite, or a file that they read along.
//! So the last component is followed only if it is this user's or root's, and what is opened is looked at before it is cut.

use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// Mode of new files: records hold names, paths and arguments of all users.
const MODE: u32 = 0o640;

fn refuse(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}

/// Whether its owner could not have meant harm.
fn is_trusted(metadata: &Metadata) -> bool {
    // SAFETY: takes nothing and never fails.
    let own = unsafe { libc::geteuid() };
    [0, own].contains(&metadata.uid())
}

/// The file that a link in front of the last component leads to.
fn resolved(path: &Path) -> io::Result<PathBuf> {
    match path.symlink_metadata() {
        Ok(link) if link.is_symlink() => {
            if !is_trusted(&link) {
                return Err(refuse(format!("a symbolic link of another user (uid {})", link.uid())));
            }
            match path.canonicalize() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    Err(refuse("a dangling symbolic link".to_owned()))
                }
                target => target,
            }
        }
        _ => Ok(path.to_owned()),
    }
}

/// Opens for appending, and makes the file if it isn't there. Nothing is cut.
pub(super) fn to_append(path: &Path) -> io::Result<File> {
    let path = resolved(path)?;
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(MODE)
        // Opening a FIFO without a reader would block forever.
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(&path)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::ENXIO) => io::Error::new(error.kind(), "no process reads this FIFO"),
            Some(libc::ELOOP) => refuse("it was replaced by a symbolic link".to_owned()),
            _ => error,
        })?;
    let metadata = file.metadata()?;
    if metadata.file_type().is_block_device() {
        return Err(refuse("a block device".to_owned()));
    }
    if metadata.is_file() && !is_trusted(&metadata) && others_write_to(&path) {
        return Err(refuse(format!("a file of another user (uid {})", metadata.uid())));
    }
    let flags = OFlag::from_bits_truncate(fcntl(&file, FcntlArg::F_GETFL)?) - OFlag::O_NONBLOCK;
    fcntl(&file, FcntlArg::F_SETFL(flags))?;
    Ok(file)
}

/// Whether others could have put the file there.
fn others_write_to(path: &Path) -> bool {
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    directory
        .metadata()
        .is_ok_and(|metadata| metadata.mode() & 0o022 != 0 || !is_trusted(&metadata))
}

/// Opens, keeps other observers out, and begins with nothing.
pub(super) fn create(path: &Path) -> io::Result<File> {
    let file = to_append(path)?;
    if file.metadata()?.is_file() {
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    "another process is writing to it",
                ));
            }
            // Some file systems have no locks.
            Err(TryLockError::Error(error)) => tracing::debug!("lock {}: {error}", path.display()),
        }
        file.set_len(0)?;
    }
    Ok(file)
}

/// Change of a path while its file was open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Same,
    /// Cut by another process (`copytruncate`), to this many bytes.
    Cut(u64),
    /// Moved or deleted: the path has no file, or another one.
    Gone,
}

/// `size`: what has been written to it.
pub(super) fn fate(file: &File, path: &Path, size: u64) -> io::Result<Fate> {
    let open = file.metadata()?;
    Ok(match path.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Fate::Gone,
        Ok(there) if (there.dev(), there.ino()) != (open.dev(), open.ino()) => Fate::Gone,
        _ if open.len() < size => Fate::Cut(open.len()),
        _ => Fate::Same,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn new_files_are_no_business_of_others() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trace");
        let file = create(&path).unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o027, 0, "umask or not");
        assert_eq!(
            create(&path).unwrap_err().to_string(),
            "another process is writing to it"
        );
        drop(file);
        create(&path).unwrap();
    }

    #[test]
    fn links_and_files_of_others_are_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (victim, link) = (directory.path().join("victim"), directory.path().join("link"));
        std::fs::write(&victim, "precious\n").unwrap();
        symlink(&victim, &link).unwrap();
        // Our own: as it was meant.
        assert!(to_append(&link).is_ok());
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::lchown(&link, Some(65_534), None).unwrap();
            assert!(
                create(&link)
                    .unwrap_err()
                    .to_string()
                    .contains("another user (uid 65534)")
            );
            std::os::unix::fs::lchown(&victim, Some(65_534), None).unwrap();
            std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o1777)).unwrap();
            assert!(create(&victim).unwrap_err().to_string().contains("another user"));
        }
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious\n");
        let nowhere = directory.path().join("nowhere");
        symlink(directory.path().join("nothing"), &nowhere).unwrap();
        assert!(create(&nowhere).is_err() && !directory.path().join("nothing").exists());
    }

    #[test]
    fn a_fifo_without_a_reader_is_an_error_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        assert_eq!(create(&path).unwrap_err().to_string(), "no process reads this FIFO");
    }

    #[test]
    fn what_others_do_to_a_file_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trace");
        let file = create(&path).unwrap();
        std::fs::write(&path, "12345678\n").unwrap();
        assert_eq!(fate(&file, &path, 9).unwrap(), Fate::Same);
        std::fs::write(&path, "12\n").unwrap();
        assert_eq!(fate(&file, &path, 9).unwrap(), Fate::Cut(3));
        std::fs::rename(&path, directory.path().join("moved")).unwrap();
        assert_eq!(fate(&file, &path, 3).unwrap(), Fate::Gone);
        std::fs::write(&path, "another\n").unwrap();
        assert_eq!(fate(&file, &path, 3).unwrap(), Fate::Gone);
    }
}
