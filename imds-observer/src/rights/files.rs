//! Landlock: what may be read, and the directories that may be written to.
//!
//! Its rules are the kernel's own and hold for root. They come on top of everything else and are gone with the process.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, AccessFs, PathBeneath, PathFd, PathFdError, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetError,
    RulesetStatus,
};

use super::Needs;
use super::capabilities::directory_of;

/// The newest rules that were tried with this program; older kernels take what they know of them.
const KNOWN: ABI = ABI::V5;

/// What the process reads of the system while it runs: the kernel's files, and what the C library wants for names and zones.
const READ: &[&str] = &[
    "/proc",
    "/sys",
    "/dev",
    "/usr",
    "/lib",
    "/lib64",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/resolv.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/ssl",
    "/etc/pki",
];

/// `None`: this kernel has no Landlock, or it is switched off.
pub(super) fn confine(needs: &Needs) -> Result<Option<&'static str>, RulesetError> {
    let (read, write) = (AccessFs::from_read(KNOWN), AccessFs::from_write(KNOWN));
    // Programs are not started at all.
    let look = read & !AccessFs::Execute;
    let make = look | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::MakeReg | AccessFs::RemoveFile;
    let mut rules = Ruleset::default().handle_access(read | write)?.create()?;
    let mut allow = |path: &Path, access| -> Result<(), RulesetError> {
        match PathFd::new(path) {
            Ok(opened) => {
                // Rights to directories mean nothing for a file, and are refused.
                let access = if path.is_dir() {
                    access
                } else {
                    access & AccessFs::from_file(KNOWN)
                };
                (&mut rules).add_rule(PathBeneath::new(opened, access)).map(drop)
            }
            Err(PathFdError::OpenCall { source, .. }) => {
                tracing::debug!("{} stays closed: {source}", path.display());
                Ok(())
            }
            Err(error) => {
                tracing::debug!("{} stays closed: {error}", path.display());
                Ok(())
            }
        }
    };
    for path in READ {
        allow(Path::new(path), look)?;
    }
    for directory in needs.reads.iter().map(|file| directory_of(file)) {
        // The directory: a file that is replaced is another file.
        allow(&directory, look)?;
    }
    for directory in &needs.writes {
        allow(directory, make)?;
    }
    // Terminals, and /dev/null.
    allow(&PathBuf::from("/dev"), look | AccessFs::WriteFile | AccessFs::IoctlDev)?;
    Ok(match rules.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => Some("full"),
        RulesetStatus::PartiallyEnforced => Some("partial"),
        RulesetStatus::NotEnforced => None,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_what_is_needed_is_written_and_read() {
        let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let config = tempfile::tempdir().unwrap();
        let file = config.path().join("config.toml");
        for path in [&file, &outside.path().join("secret"), &inside.path().join("old")] {
            fs::write(path, "text").unwrap();
        }
        let needs = Needs {
            writes: vec![inside.path().to_owned()],
            reads: vec![file.clone()],
            ..Needs::default()
        };
        std::thread::scope(|scope| {
            let confined = scope.spawn(|| {
                let Some(enforced) = confine(&needs).unwrap() else {
                    assert!(std::env::var_os("CI").is_none(), "this kernel has no Landlock");
                    eprintln!("left out: this kernel has no Landlock");
                    return;
                };
                println!("{enforced}");
                fs::rename(inside.path().join("old"), inside.path().join("old.1")).unwrap();
                fs::write(inside.path().join("old"), "more").unwrap();
                fs::remove_file(inside.path().join("old.1")).unwrap();
                assert!(fs::read("/proc/self/status").is_ok() && fs::read_dir("/sys/class/net").is_ok());
                fs::write("/dev/null", "x").unwrap();
                // Replaced, as an editor or kubelet does.
                assert_eq!(fs::read(&file).unwrap(), b"text");
                assert!(fs::write(&file, "x").is_err(), "and not written");
                let secret = outside.path().join("secret");
                assert!(fs::read(&secret).is_err() && fs::write(&secret, "x").is_err());
                assert!(fs::write(outside.path().join("new"), "x").is_err());
                assert!(fs::create_dir(inside.path().join("directory")).is_err());
            });
            confined.join().unwrap();
        });
        assert!(
            fs::read(outside.path().join("secret")).is_ok(),
            "other threads are free"
        );
    }
}
