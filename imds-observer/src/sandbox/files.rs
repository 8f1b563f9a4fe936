//! Landlock: what may be read, and the directories that may be written to.
//!
//! Its rules are the kernel's own and hold for root. They come on top of everything else and are gone with the process.

use std::path::Path;

use landlock::{
    ABI, AccessFs, PathBeneath, PathFd, PathFdError, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetError,
    RulesetStatus, Scope,
};

use super::Needs;
use super::capabilities::directory_of;

/// The newest rules that were tried with this program; older kernels take what they know of them.
const KNOWN: ABI = ABI::V5;

/// Files that the process reads while it runs: the kernel's, and those that the C library needs for names and time zones.
const READ: &[&str] = &[
    "/proc",
    "/sys",
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

/// Terminals, and devices that hold nothing. Disks, memory and the kernel's log are below /dev, too.
const DEVICES: &[&str] = &[
    "/dev/full",
    "/dev/null",
    "/dev/pts",
    "/dev/random",
    "/dev/tty",
    "/dev/urandom",
    "/dev/zero",
];

/// `None`: this kernel has no Landlock, or it is switched off.
pub(super) fn confine(needs: &Needs) -> Result<Option<&'static str>, RulesetError> {
    let (read, write) = (AccessFs::from_read(KNOWN), AccessFs::from_write(KNOWN));
    // Programs are not started at all.
    let look = read & !AccessFs::Execute;
    let make = look | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::MakeReg | AccessFs::RemoveFile;
    let mut rules = Ruleset::default().handle_access(read | write)?;
    // A service manager may listen on an abstract name, which its first character shows.
    if !std::env::var_os("NOTIFY_SOCKET").is_some_and(|name| name.as_encoded_bytes().starts_with(b"@")) {
        rules = rules.scope(Scope::AbstractUnixSocket)?;
    }
    let mut rules = rules.create()?;
    let mut allow = |path: &Path, access| -> Result<(), RulesetError> {
        match PathFd::new(path) {
            Ok(opened) => {
                // Privileges to directories mean nothing for a file, and are refused.
                let access = if path.is_dir() {
                    access
                } else {
                    access & AccessFs::from_file(KNOWN)
                };
                (&mut rules).add_rule(PathBeneath::new(opened, access)).map(drop)
            }
            Err(PathFdError::OpenCall { source, .. }) => {
                tracing::debug!("no access to {} after dropping privileges: {source}", path.display());
                Ok(())
            }
            Err(error) => {
                tracing::debug!("no access to {} after dropping privileges: {error}", path.display());
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
    for device in DEVICES {
        allow(Path::new(device), look | AccessFs::WriteFile | AccessFs::IoctlDev)?;
    }
    Ok(match rules.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => Some("full"),
        RulesetStatus::PartiallyEnforced => Some("partial"),
        RulesetStatus::NotEnforced => None,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

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
        let name = format!("imds-observer-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let _listener = UnixListener::bind_addr(&address).unwrap();
        assert!(UnixStream::connect_addr(&address).is_ok());
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
                assert!(fs::read_dir("/dev").is_err());
                for device in fs::read_dir("/sys/class/block").unwrap().flatten() {
                    let device = Path::new("/dev").join(device.file_name());
                    assert!(
                        !device.exists() || fs::File::open(&device).is_err(),
                        "{}",
                        device.display()
                    );
                }
                assert!(fs::File::open("/dev/kmsg").is_err() && fs::File::open("/dev/mem").is_err());
                if enforced == "full" {
                    assert!(UnixStream::connect_addr(&address).is_err(), "a server outside");
                }
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
