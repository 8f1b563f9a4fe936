//! Unix signals ask for the end.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::Context as _;
use libc::c_int;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::{flag, low_level};

use super::Stop;

static LAST_ACT: OnceLock<fn()> = OnceLock::new();

/// Sets the action for a second signal, which ends the program. It can be set once, and is called in the signal handler.
///
/// # Safety
///
/// `act` does only what is safe in a signal handler: no lock, no allocation.
pub unsafe fn on_sudden_end(act: fn()) {
    LAST_ACT.get_or_init(|| act);
}

impl Stop {
    /// Takes over the signals, for the rest of the program's life.
    pub fn on_signals() -> anyhow::Result<Self> {
        let stop = Self::but_on_hangup()?;
        if !is_ignored(SIGHUP)
            && let Some(waker) = &stop.waker
        {
            ask(SIGHUP, &stop.requested, waker).context("handle SIGHUP")?;
        }
        Ok(stop)
    }

    /// The same without SIGHUP, which means something else to a service.
    pub fn but_on_hangup() -> anyhow::Result<Self> {
        let requested = Arc::new(AtomicBool::new(false));
        let (wake, write) = UnixStream::pair().context("create a pipe for signals")?;
        for signal in [SIGINT, SIGTERM] {
            let earlier = requested.clone();
            let at_once = move || {
                if earlier.load(Ordering::SeqCst) {
                    if let Some(act) = LAST_ACT.get() {
                        act();
                    }
                    low_level::exit(128 + signal);
                }
            };
            // In this order: `at_once` looks at the flag before the next line sets it.
            // SAFETY: two atomic loads, an act whose author promised that it is safe here, and `_exit`.
            let registered = unsafe { low_level::register(signal, at_once) };
            registered.context("handle SIGINT and SIGTERM")?;
            ask(signal, &requested, &write).context("handle SIGINT and SIGTERM")?;
        }
        Ok(Self {
            requested,
            wake: Some(wake),
            waker: Some(write),
        })
    }
}

/// From now on this signal asks for the end.
fn ask(signal: c_int, requested: &Arc<AtomicBool>, waker: &UnixStream) -> io::Result<()> {
    flag::register(signal, requested.clone())?;
    low_level::pipe::register(signal, waker.try_clone()?)?;
    Ok(())
}

fn is_ignored(signal: c_int) -> bool {
    // SAFETY: all zeroes is a valid sigaction, and the call only reads into it.
    let (asked, action) = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        (libc::sigaction(signal, std::ptr::null(), &raw mut action), action)
    };
    asked == 0 && action.sa_sigaction == libc::SIG_IGN
}
