//! The terminal, taken over and given back: at the end, on a panic, on a second signal, and when it no longer takes what we write.

#[cfg(unix)]
use std::fs::File;
#[cfg(unix)]
use std::io::IsTerminal as _;
use std::io::{self, Stdout, Write as _};
use std::mem::ManuallyDrop;
#[cfg(unix)]
use std::os::fd::AsFd as _;
use std::sync::Once;
#[cfg(unix)]
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
#[cfg(unix)]
use nix::errno::Errno;
#[cfg(unix)]
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
#[cfg(unix)]
use nix::sys::termios::tcgetattr;
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, Event};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode};

use crate::report::escape::Escaped;
use crate::stop::Stop;

/// Whether the terminal is ours now. One process has one.
static TAKEN: AtomicBool = AtomicBool::new(false);
static HOOK: Once = Once::new();
/// The settings that we found, for an end that comes in a signal handler.
#[cfg(unix)]
static FOUND: OnceLock<libc::termios> = OnceLock::new();
/// Leaves the alternate screen and shows the cursor.
#[cfg(unix)]
const LEAVE: &[u8] = b"\x1b[?1049l\x1b[?25h";

/// Raw mode and the alternate screen, until it is dropped.
pub struct Screen {
    /// Never dropped: ratatui would show the cursor once more, and panic where neither that nor reporting it succeeds.
    pub terminal: ManuallyDrop<Terminal<CrosstermBackend<Stdout>>>,
    /// Where keys come from; `None`: stdin.
    #[cfg(unix)]
    keys: Option<File>,
    /// The last look found something: more may have been read along with it, which `poll` can't see.
    #[cfg(unix)]
    more: bool,
}

/// Result of waiting for input.
#[derive(Debug)]
pub enum Waited {
    Nothing,
    Event(Event),
    /// The terminal was hung up.
    Gone,
}

impl Screen {
    pub fn take() -> anyhow::Result<Self> {
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                give_back();
                before(panic);
            }));
            #[cfg(unix)]
            // SAFETY: an atomic swap, tcsetattr, poll and write.
            unsafe {
                crate::stop::on_sudden_end(give_back_at_once);
            };
        });
        // As crossterm chooses.
        #[cfg(unix)]
        let keys = if io::stdin().is_terminal() {
            None
        } else {
            Some(File::open("/dev/tty").context("open /dev/tty for keys (--plain works without it)")?)
        };
        #[cfg(unix)]
        if let Ok(found) = tcgetattr(io::stdout()) {
            FOUND.get_or_init(|| found.into());
        }
        enable_raw_mode().context("put the terminal into raw mode (--plain works without it)")?;
        TAKEN.store(true, Ordering::SeqCst);
        let screen = execute!(io::stdout(), EnterAlternateScreen)
            .and_then(|()| Terminal::new(CrosstermBackend::new(io::stdout())));
        match screen {
            Ok(terminal) => Ok(Self {
                terminal: ManuallyDrop::new(terminal),
                #[cfg(unix)]
                keys,
                #[cfg(unix)]
                more: false,
            }),
            Err(error) => {
                give_back();
                Err(error).context("set up the terminal")
            }
        }
    }

    /// After a panic in another thread it is no longer ours to draw on.
    pub fn is_ours(&self) -> bool {
        TAKEN.load(Ordering::SeqCst)
    }

    /// Waits for a key or a resize.
    #[cfg(not(unix))]
    #[expect(clippy::unused_self, reason = "as on Unix")]
    pub fn wait(&mut self, _: &Stop, wait: Duration) -> io::Result<Waited> {
        Ok(if event::poll(wait)? {
            Waited::Event(event::read()?)
        } else {
            Waited::Nothing
        })
    }

    /// Waits for a key or a resize, or until the stop is asked for.
    ///
    /// Does its own waiting, and looks for a hang-up before each reading: crossterm 0.29 reads a terminal that was hung up over and
    /// over and never returns.
    #[cfg(unix)]
    pub fn wait(&mut self, stop: &Stop, wait: Duration) -> io::Result<Waited> {
        let stdin = io::stdin();
        let keys = self.keys.as_ref().map_or(stdin.as_fd(), File::as_fd);
        let mut fds = vec![PollFd::new(keys, PollFlags::POLLIN)];
        fds.extend(stop.wake().map(|wake| PollFd::new(wake, PollFlags::POLLIN)));
        let wait = if self.more { Duration::ZERO } else { wait };
        match poll(&mut fds, PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)) {
            // A resize arrives as a signal.
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let keys = fds.first().and_then(PollFd::revents).unwrap_or(PollFlags::empty());
        if keys.intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL) {
            return Ok(Waited::Gone);
        }
        self.more = event::poll(Duration::ZERO)?;
        Ok(if self.more {
            Waited::Event(event::read()?)
        } else {
            Waited::Nothing
        })
    }

    /// Copies to the terminal user's clipboard (OSC 52), without characters that would run or rewrite a pasted line.
    pub fn copy(&mut self, text: &str) -> io::Result<()> {
        let mut stdout = io::stdout();
        stdout.write_all(copying(text).as_bytes())?;
        stdout.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// Does nothing the second time. Errors mean that the terminal is closed.
fn give_back() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        let _ = execute!(io::stdout(), LeaveAlternateScreen, Show);
        let _ = disable_raw_mode();
    }
}

/// The same without locks and without waiting: for a signal handler, and for a terminal that takes nothing any more (Ctrl-S).
pub fn give_back_at_once() {
    if !TAKEN.swap(false, Ordering::SeqCst) {
        return;
    }
    #[cfg(not(unix))]
    {
        let _ = disable_raw_mode();
    }
    #[cfg(unix)]
    at_once();
}

#[cfg(unix)]
fn at_once() {
    if let Some(found) = FOUND.get() {
        // SAFETY: reads a whole termios; safe in a signal handler.
        unsafe { libc::tcsetattr(libc::STDOUT_FILENO, libc::TCSANOW, found) };
    }
    let mut stdout = libc::pollfd {
        fd: libc::STDOUT_FILENO,
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one pollfd that lives here, and a constant's bytes; both are safe in a signal handler.
    unsafe {
        if libc::poll(&raw mut stdout, 1, 0) == 1 && stdout.revents & libc::POLLOUT != 0 {
            libc::write(libc::STDOUT_FILENO, LEAVE.as_ptr().cast(), LEAVE.len());
        }
    }
}

/// Whether there is no terminal any more, which is a normal end. Errors don't show it: an unknown size has many causes.
#[cfg(unix)]
pub fn is_gone() -> bool {
    looked_at().intersects(GONE)
}

/// Whether it takes what is written to it: not after Ctrl-S, nor if it is gone.
#[cfg(unix)]
pub fn takes_more() -> bool {
    looked_at() & (PollFlags::POLLOUT | GONE) == PollFlags::POLLOUT
}

/// A console window ends its programs.
#[cfg(not(unix))]
pub fn is_gone() -> bool {
    false
}

#[cfg(not(unix))]
pub fn takes_more() -> bool {
    true
}

#[cfg(unix)]
const GONE: PollFlags = PollFlags::POLLHUP.union(PollFlags::POLLERR).union(PollFlags::POLLNVAL);

#[cfg(unix)]
fn looked_at() -> PollFlags {
    let stdout = io::stdout();
    let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::POLLOUT)];
    let looked = poll(&mut fds, PollTimeout::ZERO);
    let seen = fds.first().and_then(PollFd::revents);
    seen.filter(|_| looked.is_ok()).unwrap_or(PollFlags::empty())
}

/// The bytes that have a terminal take a text to the clipboard.
fn copying(text: &str) -> String {
    use base64::Engine as _;
    let lines: Vec<String> = text.lines().map(|line| Escaped(line).to_string()).collect();
    let encoded = base64::engine::general_purpose::STANDARD.encode(lines.join("\n"));
    format!("\x1b]52;c;{encoded}\x07")
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;

    use super::*;

    #[test]
    fn copying_is_one_sequence_of_harmless_text() {
        assert_eq!(copying("aws\nec2"), "\x1b]52;c;YXdzCmVjMg==\x07");
        assert_eq!(copying(""), "\x1b]52;c;\x07");
        // Neither ends the sequence early nor runs a line when it is pasted.
        let hostile = copying("a\x07\x1b\\\u{9c}b\rrm\u{202e}");
        let inside = &hostile["\x1b]52;c;".len()..hostile.len() - 1];
        assert!(
            inside
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte))
        );
        let pasted = base64::engine::general_purpose::STANDARD.decode(inside).unwrap();
        assert_eq!(pasted, br"a\u{7}\u{1b}\\u{9c}b\rrm\u{202e}");
    }
}
