//! The process between the observer and the command. It outlives the observer for as long as it takes to end what the command left.
//!
//! ```text
//! observer ── supervisor ── command ── its children
//! ```
//!
//! Orphans of the command become children of the supervisor (`PR_SET_CHILD_SUBREAPER`). When the observer ends, in whatever way, its
//! end of the socket closes: the supervisor kills the command and all that it left, removes the cgroup, and ends.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::{set_child_subreaper, set_name, set_pdeathsig};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use super::cgroup::Cgroup;
use crate::story::Exit;

/// The command and its surroundings.
pub struct Launch<'a> {
    pub command: &'a [OsString],
    pub environment: &'a [(&'static str, String)],
    /// The network namespace, else the observer's.
    pub netns: Option<BorrowedFd<'a>>,
    pub cgroup: Option<&'a Cgroup>,
    /// The signal mask for the command.
    pub mask: SigSet,
    /// Discards what the command writes.
    pub quiet: bool,
}

/// The observer's handle of a supervisor.
#[derive(Debug)]
pub struct Supervisor {
    socket: UnixStream,
    pid: Pid,
}

/// Report of a supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    Started,
    /// The command can't be executed.
    NotStarted(Errno),
    /// The supervisor could not prepare it.
    NotPrepared(Errno),
    Ended(Exit),
    /// The supervisor is gone.
    Gone,
}

/// Requests are one byte: to start, to kill, else the number of a signal for the command.
const START: u8 = 0;
const KILL: u8 = 255;
/// A preparation before `exec` failed. No system call there returns this error itself.
const SETUP_FAILED: i32 = libc::ENOTRECOVERABLE;
/// How long processes may take to end after SIGKILL.
const ROUNDS: u32 = 2_000;
const ROUND: Duration = Duration::from_millis(2);

impl Supervisor {
    /// Forks the supervisor. The calling process must have one thread only.
    pub fn fork(launch: &Launch<'_>) -> anyhow::Result<Self> {
        let threads = fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
        if threads != 1 {
            bail!("fork the supervisor: this process has {threads} threads already");
        }
        let (ours, theirs) = UnixStream::pair().context("create a socket for the supervisor")?;
        // SAFETY: the process has one thread, so the child may do all that the parent may.
        match unsafe { fork() }.context("fork the supervisor")? {
            ForkResult::Parent { child } => Ok(Self {
                socket: ours,
                pid: child,
            }),
            ForkResult::Child => {
                drop(ours);
                supervise(launch, &theirs);
                // SAFETY: ends this process. Handlers of `exit` belong to the parent.
                unsafe { libc::_exit(0) }
            }
        }
    }

    pub fn start(&self) -> io::Result<()> {
        self.request(START)
    }

    /// Passes a signal to the command.
    pub fn signal(&self, signal: i32) {
        if let Ok(signal @ 1..=64) = u8::try_from(signal) {
            let _ = self.request(signal);
        }
    }

    /// Kills the command and all its children.
    pub fn kill(&self) {
        let _ = self.request(KILL);
    }

    /// Waits for the next report.
    pub fn report(&self) -> Report {
        let mut bytes = [0; 5];
        if (&self.socket).read_exact(&mut bytes).is_err() {
            return Report::Gone;
        }
        let [kind, number @ ..] = bytes;
        let number = i32::from_ne_bytes(number);
        match kind {
            b's' => Report::Started,
            b'n' => Report::NotStarted(Errno::from_raw(number)),
            b'p' => Report::NotPrepared(Errno::from_raw(number)),
            b'x' => Report::Ended(Exit::Status(number)),
            b'k' => Report::Ended(Exit::Signal(number)),
            _ => Report::Gone,
        }
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Ends what the command left, and the supervisor.
    pub fn finish(self) {
        let Self { socket, pid } = self;
        drop(socket);
        while waitpid(pid, None) == Err(Errno::EINTR) {}
    }

    fn request(&self, byte: u8) -> io::Result<()> {
        (&self.socket).write_all(&[byte])
    }
}

/// All of the supervisor's life.
fn supervise(launch: &Launch<'_>, socket: &UnixStream) {
    // Ctrl-C in a terminal reaches all three processes.
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
    let _ = set_child_subreaper(true);
    let _ = set_name(c"imds-exec");
    let mut request = [0];
    if (&*socket).read_exact(&mut request).is_ok() && request == [START] {
        match run(launch, socket) {
            Ok(()) => {}
            Err(Failure::Setup(error)) => report(socket, b'p', error as i32),
            Err(Failure::Command(error)) => report(socket, b'n', error as i32),
        }
        // The observer may still send signals; it is done when its end of the socket is closed.
        let mut rest = Vec::new();
        let _ = (&*socket).read_to_end(&mut rest);
    }
    clear(launch.cgroup);
}

enum Failure {
    Setup(Errno),
    Command(Errno),
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Self {
        Self::Setup(error)
    }
}

/// Runs the command until it or the observer has ended.
fn run(launch: &Launch<'_>, socket: &UnixStream) -> Result<(), Failure> {
    let children = SignalFd::with_flags(
        &SigSet::from(Signal::SIGCHLD),
        SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK,
    )?;
    let command = spawn(launch)?;
    report(socket, b's', 0);
    loop {
        let mut ready = [
            PollFd::new(socket.as_fd(), PollFlags::POLLIN),
            PollFd::new(children.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut ready, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            other => _ = other?,
        }
        let [asked, died] = ready.map(|fd| fd.any().unwrap_or(true));
        if died {
            while let Ok(Some(_)) = children.read_signal() {}
            if let Some(end) = reap(command) {
                let (kind, number) = match end {
                    Exit::Status(status) => (b'x', status),
                    Exit::Signal(signal) => (b'k', signal),
                };
                report(socket, kind, number);
                return Ok(());
            }
        }
        if asked {
            let mut request = [0];
            match (&*socket).read(&mut request) {
                // The observer has ended.
                Ok(0) | Err(_) => return Ok(()),
                Ok(_) if request == [KILL] => clear_processes(launch.cgroup),
                Ok(_) => {
                    if let Ok(signal) = Signal::try_from(i32::from(request[0])) {
                        // It isn't reaped yet, so the PID is still its own.
                        let _ = kill(command, signal);
                    }
                }
            }
        }
    }
}

fn spawn(launch: &Launch<'_>) -> Result<Pid, Failure> {
    let Some((program, arguments)) = launch.command.split_first() else {
        return Err(Failure::Setup(Errno::EINVAL));
    };
    if let Some(netns) = launch.netns {
        setns(netns, CloneFlags::CLONE_NEWNET)?;
    }
    let entrance = launch.cgroup.map(Cgroup::entrance).transpose();
    let entrance: Option<OwnedFd> = entrance.map_err(|error| Failure::Setup(errno(&error)))?;
    let mask = launch.mask;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .envs(launch.environment.iter().map(|(name, value)| (name, value)));
    if launch.quiet {
        command.stdout(Stdio::null()).stderr(Stdio::null());
    }
    let prepare = move || {
        let setup_failed = |_| io::Error::from_raw_os_error(SETUP_FAILED);
        if let Some(entrance) = &entrance {
            // SAFETY: writes one byte of static memory to a descriptor that the closure owns.
            let written = unsafe { libc::write(entrance.as_raw_fd(), c"0".as_ptr().cast(), 1) };
            Errno::result(written).map_err(setup_failed)?;
        }
        // Should the supervisor be killed, the command must not go on without the world around it.
        set_pdeathsig(Signal::SIGKILL).map_err(setup_failed)?;
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None).map_err(setup_failed)?;
        Ok(())
    };
    // SAFETY: between fork and exec only system calls are made; the descriptor was opened before.
    unsafe { command.pre_exec(prepare) };
    match command.spawn() {
        Ok(child) => Ok(Pid::from_raw(child.id() as i32)),
        Err(error) if error.raw_os_error() == Some(SETUP_FAILED) => Err(Failure::Setup(Errno::EACCES)),
        Err(error) => Err(Failure::Command(errno(&error))),
    }
}

fn errno(error: &io::Error) -> Errno {
    // `Command` finds a NUL byte in an argument by itself.
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EINVAL))
}

/// Collects ended children; how the command ended, if it has.
fn reap(command: Pid) -> Option<Exit> {
    let mut end = None;
    loop {
        match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid == command => end = Some(Exit::Status(status)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == command => end = Some(Exit::Signal(signal as i32)),
            Ok(WaitStatus::StillAlive) | Err(_) => return end,
            Ok(_) => {}
        }
    }
}

fn report(socket: &UnixStream, kind: u8, number: i32) {
    let mut bytes = [kind; 5];
    bytes[1..].copy_from_slice(&number.to_ne_bytes());
    let _ = (&*socket).write_all(&bytes);
}

/// Nothing of the command is left.
fn clear(cgroup: Option<&Cgroup>) {
    clear_processes(cgroup);
    for _ in 0..ROUNDS {
        reap(Pid::from_raw(0));
        if kill_descendants() == 0 {
            break;
        }
        std::thread::sleep(ROUND);
    }
    if let Some(cgroup) = cgroup {
        let _ = cgroup.remove();
    }
}

/// Kills without reaping: `run` waits for the command.
fn clear_processes(cgroup: Option<&Cgroup>) {
    let killed = cgroup.is_some_and(|cgroup| fs::write(cgroup.directory().join("cgroup.kill"), "1").is_ok());
    if !killed {
        kill_descendants();
    }
}

/// Sends SIGKILL to all descendants. Those whose parent dies become children of this process, and the next call finds them.
fn kill_descendants() -> usize {
    let mut found = BTreeSet::new();
    let mut parents = vec![std::process::id()];
    while let Some(parent) = parents.pop() {
        for child in children(parent) {
            if found.insert(child) {
                parents.push(child);
            }
        }
    }
    for pid in &found {
        let _ = kill(Pid::from_raw(*pid as i32), Signal::SIGKILL);
    }
    found.len()
}

fn children(parent: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{parent}/task")) else {
        return Vec::new();
    };
    let mut children = Vec::new();
    for task in tasks.filter_map(Result::ok) {
        let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        children.extend(text.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    children
}
