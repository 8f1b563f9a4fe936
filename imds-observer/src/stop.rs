//! Ends a run on request: the first SIGINT or SIGTERM asks for an orderly end, the second ends the program at once.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level};

/// Whether the end was asked for, and a descriptor that wakes a `poll` when it is.
#[derive(Debug)]
pub struct Stop {
    requested: Arc<AtomicBool>,
    wake: Option<UnixStream>,
    waker: Option<UnixStream>,
}

impl Stop {
    /// Takes over the signals, for the rest of the program's life.
    pub fn on_signals() -> anyhow::Result<Self> {
        let requested = Arc::new(AtomicBool::new(false));
        let (wake, write) = UnixStream::pair().context("make a pipe for signals")?;
        for signal in [SIGINT, SIGTERM] {
            // In this order: the shutdown looks at the flag before the next line sets it.
            let registered = flag::register_conditional_shutdown(signal, 128 + signal, requested.clone())
                .and_then(|_| flag::register(signal, requested.clone()))
                .and_then(|_| low_level::pipe::register(signal, write.try_clone()?));
            registered.context("take over SIGINT and SIGTERM")?;
        }
        Ok(Self {
            requested,
            wake: Some(wake),
            waker: Some(write),
        })
    }

    /// Never asked for by a signal.
    pub fn never() -> Self {
        Self {
            requested: Arc::new(AtomicBool::new(false)),
            wake: None,
            waker: None,
        }
    }

    pub fn requested(&self) -> bool {
        self.requested.load(Ordering::Relaxed)
    }

    /// Asks for the end as the first signal does.
    pub fn request(&self) {
        self.requested.store(true, Ordering::Relaxed);
        if let Some(waker) = &self.waker {
            let _ = io::Write::write(&mut &*waker, &[0]);
        }
    }

    /// Becomes readable when the end is asked for, and stays so.
    pub fn wake(&self) -> Option<BorrowedFd<'_>> {
        self.wake.as_ref().map(AsFd::as_fd)
    }

    /// The same for a thread or a source of its own.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            requested: self.requested.clone(),
            wake: self.wake.as_ref().map(UnixStream::try_clone).transpose()?,
            waker: self.waker.as_ref().map(UnixStream::try_clone).transpose()?,
        })
    }
}
