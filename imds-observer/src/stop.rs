//! Ends a run on request: the first SIGINT or SIGTERM asks for an orderly end, the second ends the program at once.
//!
//! SIGHUP, the terminal's going, asks for an orderly end too, unless the program is started to ignore it (`nohup`). It comes twice,
//! from the kernel and from the shell, and so never ends anything at once.
//!
//! Other systems than Unix end the program themselves, at once: it only reads recordings there.

use std::io;
#[cfg(unix)]
use std::os::fd::{AsFd, BorrowedFd};
#[cfg(unix)]
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[cfg(unix)]
mod signals;

#[cfg(unix)]
pub use signals::on_sudden_end;

/// Whether the end was asked for, and a descriptor that wakes a `poll` when it is.
#[derive(Debug)]
pub struct Stop {
    requested: Arc<AtomicBool>,
    #[cfg(unix)]
    wake: Option<UnixStream>,
    #[cfg(unix)]
    waker: Option<UnixStream>,
}

impl Stop {
    #[cfg(not(unix))]
    pub fn on_signals() -> anyhow::Result<Self> {
        Ok(Self::never())
    }

    /// Never asked for by a signal.
    pub fn never() -> Self {
        Self {
            requested: Arc::new(AtomicBool::new(false)),
            #[cfg(unix)]
            wake: None,
            #[cfg(unix)]
            waker: None,
        }
    }

    pub fn requested(&self) -> bool {
        self.requested.load(Ordering::Relaxed)
    }

    /// Asks for the end as the first signal does.
    pub fn request(&self) {
        self.requested.store(true, Ordering::Relaxed);
        #[cfg(unix)]
        if let Some(waker) = &self.waker {
            let _ = io::Write::write(&mut &*waker, &[0]);
        }
    }

    /// Becomes readable when the end is asked for, and stays so.
    #[cfg(unix)]
    pub fn wake(&self) -> Option<BorrowedFd<'_>> {
        self.wake.as_ref().map(AsFd::as_fd)
    }

    /// The same for a thread or a source of its own.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            requested: self.requested.clone(),
            #[cfg(unix)]
            wake: self.wake.as_ref().map(UnixStream::try_clone).transpose()?,
            #[cfg(unix)]
            waker: self.waker.as_ref().map(UnixStream::try_clone).transpose()?,
        })
    }
}
