//! A named network namespace: creating, entering and removing it.
//!
//! All changes in a namespace go through `Netns::run`, which refuses to run in a namespace that this process did not create. So no code
//! here can change the machine's own interfaces or reach a real metadata service.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};
use rtnetlink::Handle;

/// Directory of namespace names. `ip netns` uses the same directory, so it lists the lab's namespaces.
pub(super) const DIRECTORY: &str = "/run/netns";

/// A network namespace of the lab; dropping it removes its name.
pub struct Netns {
    name: String,
    path: PathBuf,
    file: File,
    inode: u64,
}

impl Netns {
    /// Creates a namespace in which only the loopback interface exists, and is up.
    pub(super) fn create(name: &str) -> Result<Self> {
        prepare_directory()?;
        let path = Path::new(DIRECTORY).join(name);
        let file = thread::scope(|scope| scope.spawn(|| make(&path)).join())
            .unwrap_or_else(|_| bail!("the thread that made it panicked"))
            .inspect_err(|_| remove(&path))
            .with_context(|| format!("make network namespace {name} (needs root)"))?;
        let inode = file.metadata()?.ino();
        Ok(Self {
            name: name.to_owned(),
            path,
            file,
            inode,
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Path for `nsenter --net=PATH`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Inode number, which the observer reports as `netns`.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    pub(crate) fn descriptor(&self) -> io::Result<std::os::fd::OwnedFd> {
        self.file.as_fd().try_clone_to_owned()
    }

    /// Runs `work` on a thread in the namespace. The thread's cgroup is that of the calling process: cgroup2 moves whole processes.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter()?;
                Ok(work())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread into the namespace permanently.
    pub(crate) fn enter(&self) -> Result<()> {
        setns(&self.file, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("enter network namespace {}", self.name))?;
        let here = current()?;
        if here != self.inode || machines_own().contains(&here) {
            bail!(
                "refuse to work in network namespace {here}: it is not the lab's {}",
                self.name
            );
        }
        Ok(())
    }

    /// Runs `work` in the namespace with a netlink handle.
    pub(crate) fn netlink<T: Send>(&self, work: impl AsyncFnOnce(Handle) -> Result<T> + Send) -> Result<T> {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection().context("open a netlink socket")?;
                tokio::spawn(connection);
                work(handle).await
            })
        })?
        .with_context(|| format!("in network namespace {}", self.name))
    }

    /// Sets sysctls below `/proc/sys/net`, which shows the settings of the reader's namespace.
    pub(crate) fn sysctls(&self, values: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (name, value) in values {
                let path = format!("/proc/sys/net/{name}");
                fs::write(&path, value).with_context(|| format!("write {value} to {path} in {}", self.name))?;
            }
            Ok(())
        })?
    }

    /// Runs a program to its end in the namespace, but not in a cgroup of the lab. An error contains the program's output.
    pub(crate) fn run_program(&self, command: &mut Command) -> Result<()> {
        let output = self
            .run(|| command.output())?
            .with_context(|| format!("run {} (is it installed?)", command.get_program().display()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!(
                "{command:?} in {} failed with {}: {}",
                self.name,
                output.status,
                said.trim()
            );
        }
        Ok(())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Removes a name. The kernel removes the namespace when it is no longer used.
pub(super) fn remove(path: &Path) {
    let _ = umount2(path, MntFlags::MNT_DETACH);
    let _ = fs::remove_file(path);
}

fn make(path: &Path) -> Result<File> {
    let origin = current()?;
    File::create_new(path)?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    if current()? == origin {
        bail!("unshare left the thread where it was");
    }
    mount(
        Some("/proc/thread-self/ns/net"),
        path,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )?;
    Ok(File::open(path)?)
}

/// Makes the directory a shared mount, as iproute2 does, so that removed names also vanish from other mount namespaces.
fn prepare_directory() -> Result<()> {
    fs::create_dir_all(DIRECTORY)?;
    let share = || {
        mount(
            None::<&str>,
            DIRECTORY,
            None::<&str>,
            MsFlags::MS_SHARED | MsFlags::MS_REC,
            None::<&str>,
        )
    };
    if share().is_err() {
        let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(DIRECTORY), DIRECTORY, None::<&str>, bind, None::<&str>)
            .with_context(|| format!("make {DIRECTORY} a mount point (needs root)"))?;
        share()?;
    }
    Ok(())
}

fn current() -> io::Result<u64> {
    Ok(fs::metadata("/proc/thread-self/ns/net")?.ino())
}

/// The namespace in which the process was started and, if accessible, init's.
fn machines_own() -> Vec<u64> {
    // A process's main thread never enters a lab: only `run` does, on threads of its own.
    ["/proc/self/ns/net", "/proc/1/ns/net"]
        .iter()
        .filter_map(|path| Some(fs::metadata(path).ok()?.ino()))
        .collect()
}
