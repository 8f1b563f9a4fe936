//! Standard output or a file, the file with rotation. Never leaves a torn line behind.
//!
//! With a size, the newest lines are always in `FILE`; when it is full it becomes `FILE.1`, that `FILE.2`, and so on up to the count.
//! If a file can't be written (disk full), the lines that don't fit are dropped and reported to the caller; writing resumes when possible.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
#[cfg(unix)]
use std::os::fd::AsFd;
#[cfg(target_os = "linux")]
use std::os::fd::{AsRawFd as _, BorrowedFd};
#[cfg(target_os = "linux")]
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
#[cfg(unix)]
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::open::{self, Fate};
use crate::quantity::Size;

/// Files kept when a size is given but no count.
pub const DEFAULT_FILES: u32 = 10;
/// Time between two looks whether the path still is this file.
const LOOK_GAP: Duration = Duration::from_secs(1);
/// Time between two complaints about a file that can't be written.
const COMPLAINT_GAP: Duration = Duration::from_mins(1);

/// Size and number of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    pub size: Size,
    /// At least 1, `FILE` itself included.
    pub files: u32,
}

/// Where lines go.
pub enum Destination {
    Stdout {
        stdout: io::Stdout,
        /// A second descriptor of the same pipe, in non-blocking mode; other descriptors of the pipe keep theirs.
        express: Option<File>,
    },
    File(RotatedFile),
}

impl Destination {
    pub fn stdout() -> Self {
        let stdout = io::stdout();
        #[cfg(target_os = "linux")]
        let express = reopen(stdout.as_fd());
        #[cfg(not(target_os = "linux"))]
        let express = None;
        Self::Stdout { stdout, express }
    }

    /// A file that takes bytes without ever waiting: writes beside [`Self::write_lines`], so one thread at a time.
    pub fn express(&mut self) -> Option<File> {
        match self {
            Self::Stdout { express, .. } => express.take(),
            Self::File(_) => None,
        }
    }

    /// Without rotation an existing file is truncated; with it, it is rotated.
    pub fn file(path: &Path, rotation: Option<Rotation>) -> anyhow::Result<Self> {
        RotatedFile::open(path, rotation)
            .map(Self::File)
            .with_context(|| format!("write {}", path.display()))
    }

    /// Takes whole lines; returns the bytes of those that were written. The rest can't be, for now.
    pub fn write_lines(&mut self, lines: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stdout { stdout, .. } => {
                let mut stdout = stdout.lock();
                write_patiently(&mut stdout, lines)?;
                Ok(lines.len())
            }
            Self::File(file) => Ok(file.write_lines(lines)),
        }
    }

    /// Lines that the last [`Self::write_lines`] could not write are not kept by anybody.
    pub fn gave_up(&mut self, lines: u64) {
        if let Self::File(file) = self {
            file.failing += lines;
        }
    }

    #[cfg(not(unix))]
    #[expect(clippy::unused_self, reason = "the next write notices it there")]
    pub fn check(&self) -> io::Result<()> {
        Ok(())
    }

    /// Notices that the reader of a pipe is gone, though nothing is to be written.
    #[cfg(unix)]
    pub fn check(&self) -> io::Result<()> {
        let Self::Stdout { stdout, .. } = self else {
            return Ok(());
        };
        let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
        poll(&mut fds, PollTimeout::ZERO)?;
        match fds[0].revents() {
            Some(events) if events.contains(PollFlags::POLLERR) => Err(io::ErrorKind::BrokenPipe.into()),
            _ => Ok(()),
        }
    }

    pub fn close(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout { stdout, .. } => stdout.flush(),
            Self::File(file) => file.sync(),
        }
    }
}

#[cfg(not(unix))]
fn write_patiently(stdout: &mut impl Write, lines: &[u8]) -> io::Result<()> {
    stdout.write_all(lines)?;
    stdout.flush()
}

/// Writes all, also to a terminal or pipe that another process has made non-blocking.
#[cfg(unix)]
fn write_patiently(stdout: &mut (impl Write + AsFd), lines: &[u8]) -> io::Result<()> {
    let wait = |stdout: &dyn AsFd| {
        let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::POLLOUT)];
        poll(&mut fds, PollTimeout::NONE).map(drop)
    };
    let mut rest = lines;
    while !rest.is_empty() {
        match stdout.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait(stdout)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    loop {
        match stdout.flush() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait(stdout)?,
            result => return result,
        }
    }
}

/// A pipe opened again in non-blocking mode. `None`: not a pipe, or not permitted.
#[cfg(target_os = "linux")]
pub(super) fn reopen(pipe: BorrowedFd<'_>) -> Option<File> {
    let path = format!("/proc/self/fd/{}", pipe.as_raw_fd());
    if !std::fs::metadata(&path).ok()?.file_type().is_fifo() {
        return None;
    }
    OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .ok()
}

/// A file that grows by whole lines only.
pub struct RotatedFile {
    path: PathBuf,
    rotation: Option<Rotation>,
    file: File,
    /// Bytes of whole lines in it.
    size: u64,
    /// Not a regular file (a FIFO, `/dev/null`): neither cut nor rotated.
    special: bool,
    complained: Option<Instant>,
    /// When the path was last compared with the file.
    looked: Instant,
    /// The last write failed.
    stuck: bool,
    /// Lines dropped since.
    failing: u64,
}

impl RotatedFile {
    fn open(path: &Path, rotation: Option<Rotation>) -> io::Result<Self> {
        let special = path.metadata().is_ok_and(|metadata| !metadata.is_file());
        if rotation.is_some() && !special {
            repair(path)?;
            if path.metadata().is_ok_and(|metadata| metadata.len() > 0) {
                shift(path, rotation)?;
            }
        }
        Ok(Self {
            file: open::create(path)?,
            looked: Instant::now(),
            path: path.to_owned(),
            rotation,
            size: 0,
            special,
            complained: None,
            stuck: false,
            failing: 0,
        })
    }

    fn write_lines(&mut self, lines: &[u8]) -> usize {
        self.look();
        let mut written = 0;
        while written < lines.len() {
            let rest = &lines[written..];
            let mut fits = self.fitting(rest);
            if fits == 0 {
                let Err(error) = self.rotate() else { continue };
                // Better a file that is too large than lines that are lost.
                self.complain("rotate", &error);
                fits = rest.len();
            }
            if !self.append(&rest[..fits]) {
                break;
            }
            written += fits;
        }
        written
    }

    /// Bytes of whole lines that may still go into this file; at least one line goes into an empty one.
    fn fitting(&self, lines: &[u8]) -> usize {
        let Some(Rotation { size: Size(limit), .. }) = self.rotation.filter(|_| !self.special) else {
            return lines.len();
        };
        let room = usize::try_from(limit.saturating_sub(self.size)).unwrap_or(usize::MAX);
        if lines.len() <= room {
            return lines.len();
        }
        match memchr::memrchr(b'\n', &lines[..room]) {
            Some(end) => end + 1,
            None if self.size == 0 => memchr::memchr(b'\n', lines).map_or(lines.len(), |end| end + 1),
            None => 0,
        }
    }

    /// Notices that the file was moved, deleted or cut, and goes on with what is there now.
    fn look(&mut self) {
        if self.special || self.looked.elapsed() < LOOK_GAP {
            return;
        }
        self.looked = Instant::now();
        match open::fate(&self.file, &self.path, self.size) {
            Ok(Fate::Same) => {}
            Ok(Fate::Cut(size)) => {
                tracing::warn!("{}: truncated to {size} bytes by another process", self.path.display());
                self.size = size;
            }
            Ok(Fate::Gone) => match open::create(&self.path) {
                Ok(file) => {
                    tracing::warn!(
                        "{}: moved or deleted by another process; started a new file",
                        self.path.display()
                    );
                    self.file = file;
                    self.size = 0;
                }
                Err(error) => self.complain("reopen", &error),
            },
            Err(error) => self.complain("look at", &error),
        }
    }

    fn append(&mut self, lines: &[u8]) -> bool {
        match self.file.write_all(lines) {
            Ok(()) => {
                self.size += lines.len() as u64;
                if std::mem::take(&mut self.stuck) {
                    tracing::warn!(
                        "{}: write recovered; {} lines dropped",
                        self.path.display(),
                        self.failing
                    );
                    self.failing = 0;
                    self.complained = None;
                }
                true
            }
            Err(error) => {
                // A part may have been written: cut it off, so that the next line begins a line.
                if !self.special {
                    let cut = self.file.set_len(self.size);
                    if let Err(error) = cut {
                        self.complain("cut", &error);
                    }
                }
                self.complain("write", &error);
                self.stuck = true;
                false
            }
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        shift(&self.path, self.rotation)?;
        self.file = open::create(&self.path)?;
        self.size = 0;
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.special { Ok(()) } else { self.file.sync_data() }
    }

    fn complain(&mut self, verb: &str, error: &io::Error) {
        if self.complained.is_none_or(|last| last.elapsed() >= COMPLAINT_GAP) {
            self.complained = Some(Instant::now());
            tracing::warn!(
                "{verb} {}: {error}; dropping records until writing succeeds",
                self.path.display()
            );
        }
    }
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// `FILE` -> `FILE.1` -> `FILE.2`, the last one goes. Each step is one rename, so a kill in between loses nothing.
fn shift(path: &Path, rotation: Option<Rotation>) -> io::Result<()> {
    // The file was removed, or a previous rotation stopped here on ENOSPC; nothing left to rename.
    if !path.exists() {
        return Ok(());
    }
    let older = rotation.map_or(1, |rotation| rotation.files).saturating_sub(1);
    if older == 0 {
        return std::fs::remove_file(path);
    }
    // A gap in the numbers ends the chain: what lies behind it needs no move.
    let last = (1..older)
        .find(|number| !numbered(path, *number).exists())
        .unwrap_or(older);
    for number in (1..last).rev() {
        std::fs::rename(numbered(path, number), numbered(path, number + 1))?;
    }
    std::fs::rename(path, numbered(path, 1))
}

/// Cuts off a last line that a killed writer left without its end.
fn repair(path: &Path) -> io::Result<()> {
    let mut file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let size = file.metadata()?.len();
    let mut whole = size;
    let mut block = vec![0; 64 * 1024];
    while whole > 0 {
        let from = whole.saturating_sub(block.len() as u64);
        let part = &mut block[..(whole - from) as usize];
        file.seek(SeekFrom::Start(from))?;
        file.read_exact(part)?;
        if let Some(end) = memchr::memrchr(b'\n', part) {
            whole = from + end as u64 + 1;
            break;
        }
        whole = from;
    }
    if whole < size {
        tracing::warn!(
            "{}: removed {} bytes of an incomplete last line",
            path.display(),
            size - whole
        );
        file.set_len(whole)?;
        file.sync_data()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rotation(size: u64, files: u32) -> Rotation {
        Rotation {
            size: Size(size),
            files,
        }
    }

    #[test]
    fn files_hold_whole_lines_and_the_oldest_goes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trace");
        let mut file = RotatedFile::open(&path, Some(rotation(20, 3))).unwrap();
        for number in 10..20 {
            // Several lines at once, and one that is longer than a file.
            let long = "x".repeat(if number == 15 { 40 } else { 3 });
            let lines = format!("{number} a\n{number} {long}\n");
            assert_eq!(file.write_lines(lines.as_bytes()), lines.len());
        }
        let read = |number| std::fs::read_to_string(numbered(&path, number)).unwrap();
        let newest = std::fs::read_to_string(&path).unwrap();
        assert!(newest.ends_with("19 xxx\n") && newest.len() <= 20, "{newest:?}");
        for text in [read(1), read(2)] {
            assert!(
                text.ends_with('\n') && text.lines().all(|line| line.len() >= 4),
                "{text:?}"
            );
        }
        assert!(!numbered(&path, 3).exists());
    }

    #[test]
    fn the_next_run_cuts_the_torn_line_and_keeps_the_rest() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trace");
        std::fs::write(&path, "one\ntwo\nthr").unwrap();
        let mut file = RotatedFile::open(&path, Some(rotation(1000, 2))).unwrap();
        file.write_lines(b"new\n");
        assert_eq!(std::fs::read_to_string(numbered(&path, 1)).unwrap(), "one\ntwo\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new\n");
    }

    #[test]
    fn a_file_that_was_removed_is_created_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trace");
        let mut file = RotatedFile::open(&path, Some(rotation(8, 3))).unwrap();
        file.write_lines(b"one-one\n");
        std::fs::remove_file(&path).unwrap();
        file.looked -= LOOK_GAP;
        assert_eq!(file.write_lines(b"two-two\n"), 8);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two-two\n");
    }

    #[cfg(target_os = "linux")]
    #[cfg(unix)]
    #[test]
    fn a_file_that_is_cut_or_moved_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trace");
        let mut file = RotatedFile::open(&path, None).unwrap();
        file.write_lines(b"one\n");
        // `copytruncate`: the next write starts at offset 0, without a hole before it.
        std::fs::write(&path, "").unwrap();
        file.looked -= LOOK_GAP;
        file.write_lines(b"two\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two\n");
        std::fs::rename(&path, directory.path().join("moved")).unwrap();
        file.looked -= LOOK_GAP;
        file.write_lines(b"three\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three\n");
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_that_is_non_blocking_and_full_is_waited_for() {
        let (mut reader, mut writer) = io::pipe().unwrap();
        let flags = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
        nix::fcntl::fcntl(&writer, flags).unwrap();
        let lines = vec![b'x'; 1 << 20];
        let all = std::thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).unwrap();
            all.len()
        });
        write_patiently(&mut writer, &lines).unwrap();
        drop(writer);
        assert_eq!(all.join().unwrap(), lines.len());
    }

    #[test]
    fn a_full_disk_takes_nothing() {
        let mut file = RotatedFile::open(Path::new("/dev/full"), None).unwrap();
        assert_eq!(file.write_lines(b"one\ntwo\n"), 0);
        assert!(file.stuck);
    }
}
