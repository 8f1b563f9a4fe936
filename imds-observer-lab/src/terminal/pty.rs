//! A pseudo-terminal with a program in it. It records every byte that the program writes, and the terminal settings that it leaves.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::{fd::AsFd as _, unix::process::CommandExt as _},
    process::{Child, Command, ExitStatus},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    pty::{Winsize, openpty},
    sys::{
        signal::{Signal, kill},
        termios::{Termios, tcgetattr},
    },
    unistd::{Pid, setsid},
};

use super::PATIENCE;

/// Interval, in ms, at which the reader checks whether the terminal is to be hung up.
const LOOK_MS: u16 = 20;

/// Whether the terminal is the program's controlling terminal. If so, the kernel sends SIGHUP on hang-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    Controlling,
    /// Not controlling, as with `nohup setsid`: the program notices a hang-up only in reads and writes.
    Plain,
}

/// A pseudo-terminal and its program, which is ended on drop.
pub struct Pty {
    child: Child,
    begun: Instant,
    /// The outer end. The settings of the inner end are read through it.
    outer: Option<Arc<File>>,
    reader: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    hang_up: AtomicBool,
    output: Mutex<Output>,
}

#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    /// Number of bytes received so far, with the time of each read.
    times: Vec<(usize, Duration)>,
}

impl Shared {
    fn output(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pty {
    /// Runs a command in a new terminal of this size.
    pub fn spawn(mut command: Command, (columns, rows): (u16, u16), control: Control) -> Result<Self> {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pair = openpty(Some(&size), None).context("open a pseudo-terminal")?;
        for end in [&pair.master, &pair.slave] {
            // A program that inherits the outer end would keep its own terminal alive.
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).context("keep a descriptor from children")?;
        }
        let inner = || pair.slave.try_clone().context("copy a descriptor");
        command.stdin(inner()?).stdout(inner()?).stderr(inner()?);
        let lead = move || {
            setsid()?;
            if control == Control::Controlling {
                // SAFETY: takes no pointer; descriptor 0 is the terminal.
                Errno::result(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) })?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec only system calls are made.
        unsafe { command.pre_exec(lead) };
        let begun = Instant::now();
        let child = command
            .spawn()
            .with_context(|| format!("start {} in a terminal", command.get_program().display()))?;
        // The command holds copies of the inner end. As long as a copy is open here, the terminal doesn't end with the program.
        drop(command);
        drop(pair.slave);
        let outer = Arc::new(File::from(pair.master));
        let shared = Arc::<Shared>::default();
        let reader = thread::spawn({
            let (outer, shared) = (outer.clone(), shared.clone());
            move || read(&outer, &shared, begun)
        });
        Ok(Self {
            child,
            begun,
            outer: Some(outer),
            reader: Some(reader),
            shared,
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All bytes that were written so far.
    pub fn bytes(&self) -> Vec<u8> {
        self.shared.output().bytes.clone()
    }

    /// Everything that was written so far, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.shared.output().bytes).into_owned()
    }

    /// Waits until this text was written, and returns the time since the start.
    pub fn wait_for(&self, wanted: &str) -> Result<Duration> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            {
                let output = self.shared.output();
                let found = output
                    .bytes
                    .windows(wanted.len().max(1))
                    .position(|window| window == wanted.as_bytes());
                if let Some(at) = found {
                    let end = at + wanted.len();
                    let when = output.times.iter().find(|(length, _)| *length >= end);
                    return Ok(when.map_or(self.begun.elapsed(), |(_, when)| *when));
                }
            }
            if Instant::now() >= deadline {
                bail!("no {wanted:?} in what was written: {:?}", self.text());
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Types the keys.
    pub fn press(&self, keys: &str) -> Result<()> {
        let outer = self.outer.as_deref().context("the terminal is hung up")?;
        let mut outer: &File = outer;
        outer.write_all(keys.as_bytes()).context("type")
    }

    /// Current settings, such as echo and line editing.
    pub fn settings(&self) -> Result<Termios> {
        let outer = self.outer.as_ref().context("the terminal is hung up")?;
        tcgetattr(outer.as_fd()).context("ask for the terminal's settings")
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).with_context(|| format!("send {signal}"))
    }

    /// Hangs up the terminal, as if its window were closed or its connection lost.
    pub fn hang_up(&mut self) {
        self.shared.hang_up.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        self.outer = None;
    }

    /// Waits for the program's end, and for its last bytes.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().context("wait for the program")? {
                break status;
            }
            if Instant::now() >= deadline {
                bail!("process {} doesn't end; it wrote {:?}", self.child.id(), self.text());
            }
            thread::sleep(Duration::from_millis(2));
        };
        // The inner end is closed now, so the reader reaches the end of the output.
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        Ok(status)
    }
}

fn read(outer: &File, shared: &Shared, begun: Instant) {
    let mut part = vec![0; 64 * 1024];
    let mut outer = outer;
    while !shared.hang_up.load(Ordering::Relaxed) {
        let mut fds = [PollFd::new(outer.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(LOOK_MS)) {
            Ok(0) | Err(Errno::EINTR) => continue,
            Ok(_) => {}
            Err(_) => return,
        }
        // EIO: the inner end is closed.
        let Ok(length @ 1..) = outer.read(&mut part) else {
            return;
        };
        let mut output = shared.output();
        output.bytes.extend_from_slice(&part[..length]);
        let now = (output.bytes.len(), begun.elapsed());
        output.times.push(now);
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.hang_up();
    }
}
