//! Opens an input of the command line: a file or `-`, plain, gzip or zstd, detected by the first bytes and not by the name.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
#[cfg(unix)]
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use flate2::bufread::MultiGzDecoder;
#[cfg(unix)]
use nix::errno::Errno;
#[cfg(unix)]
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

use crate::stop::Stop;

/// Bytes of a file that are held in memory at once.
const BUFFER_BYTES: usize = 64 * 1024;

/// Content type of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Ndjson,
    Pcap,
    Pcapng,
}

/// An open input, decompressed, with its first bytes still to be read.
pub struct Input {
    /// As messages name it: the path, or `-`.
    pub name: Arc<str>,
    pub format: Format,
    /// Not a file: reading may wait for the writer.
    pub waits: bool,
    pub reader: Box<dyn Buffered + Send>,
}

/// A reader that knows how many bytes are available without waiting.
pub trait Buffered: BufRead {
    fn buffered(&self) -> &[u8];
}

impl<R: Read> Buffered for BufReader<R> {
    fn buffered(&self) -> &[u8] {
        self.buffer()
    }
}

impl Input {
    /// `stop` ends a pipe whose writer doesn't.
    pub fn open(path: &Path, stop: &Stop) -> anyhow::Result<Self> {
        let name: Arc<str> = path.to_string_lossy().into();
        let (raw, waits): (Box<dyn Read + Send>, bool) = if path.as_os_str() == "-" {
            let stop = stop.try_clone().context("read -")?;
            let source = io::stdin();
            (Box::new(Waiting { source, stop }), true)
        } else {
            let file = open(path).with_context(|| format!("open {name}"))?;
            let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
            if is_file {
                (Box::new(file), false)
            } else {
                let stop = stop.try_clone().with_context(|| format!("read {name}"))?;
                (Box::new(Waiting { source: file, stop }), true)
            }
        };
        let input = Self::new(name.clone(), raw).with_context(|| format!("read {name}"))?;
        Ok(Self { waits, ..input })
    }

    /// Creates an input from a reader whose bytes are available without waiting.
    pub fn new(name: Arc<str>, raw: Box<dyn Read + Send>) -> io::Result<Self> {
        let mut raw = BufReader::with_capacity(BUFFER_BYTES, Peeked::new(raw)?);
        let magic = raw.get_ref().magic();
        let mut reader: Box<dyn Buffered + Send> = match magic {
            [0x1f, 0x8b, ..] => decompressed(MultiGzDecoder::new(raw))?,
            [0x28, 0xb5, 0x2f, 0xfd] => decompressed(Zstd::new(raw))?,
            _ => {
                raw.fill_buf()?;
                Box::new(raw)
            }
        };
        let head = reader.fill_buf()?;
        let format = match head {
            [0xd4, 0xc3, 0xb2, 0xa1, ..]
            | [0xa1, 0xb2, 0xc3, 0xd4, ..]
            | [0x4d, 0x3c, 0xb2, 0xa1, ..]
            | [0xa1, 0xb2, 0x3c, 0x4d, ..] => Format::Pcap,
            [0x0a, 0x0d, 0x0d, 0x0a, ..] => Format::Pcapng,
            _ => Format::Ndjson,
        };
        Ok(Self {
            name,
            format,
            waits: false,
            reader,
        })
    }
}

/// A named pipe is opened without waiting for a writer: the first read waits for one, and a signal ends that wait.
fn open(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    options.read(true).open(path)
}

fn decompressed<R: Read + Send + 'static>(decoder: R) -> io::Result<Box<dyn Buffered + Send>> {
    Ok(Box::new(BufReader::with_capacity(BUFFER_BYTES, Peeked::new(decoder)?)))
}

/// Standard input, a device or a named pipe, until its end, or until the run is to stop: what was read until then is still used.
struct Waiting<R> {
    source: R,
    stop: Stop,
}

/// Without signals that ask for the end: see [`Stop`].
#[cfg(not(unix))]
impl<R: Read> Read for Waiting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.requested() {
            return Ok(0);
        }
        self.source.read(buffer)
    }
}

#[cfg(unix)]
impl<R: AsFd> Read for Waiting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
            let source = readable(self.source.as_fd());
            let waited = match self.stop.wake() {
                Some(wake) => poll(&mut [source, readable(wake)], PollTimeout::NONE),
                None => poll(&mut [source], PollTimeout::NONE),
            };
            match waited {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            if self.stop.requested() {
                return Ok(0);
            }
            // Not through std's own buffer, which poll can't see.
            match nix::unistd::read(&self.source, buffer) {
                Err(Errno::EAGAIN) => {}
                Err(error) => return Err(error.into()),
                Ok(read) => return Ok(read),
            }
        }
    }
}

/// A reader whose first four bytes have been looked at: a pipe may hand them out one by one.
struct Peeked<R> {
    head: [u8; 4],
    len: usize,
    given: usize,
    rest: R,
}

impl<R: Read> Peeked<R> {
    fn new(mut rest: R) -> io::Result<Self> {
        let mut head = [0; 4];
        let mut len = 0;
        while len < head.len() {
            match rest.read(&mut head[len..]) {
                Ok(0) => break,
                Ok(read) => len += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self {
            head,
            len,
            given: 0,
            rest,
        })
    }

    fn magic(&self) -> [u8; 4] {
        if self.len == self.head.len() { self.head } else { [0; 4] }
    }
}

impl<R: Read> Read for Peeked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = &self.head[self.given..self.len];
        if left.is_empty() {
            return self.rest.read(buffer);
        }
        let count = left.len().min(buffer.len());
        buffer[..count].copy_from_slice(&left[..count]);
        self.given += count;
        Ok(count)
    }
}

/// zstd frames one after another, as `zstd` and `cat` write them.
struct Zstd<R: BufRead> {
    state: ZstdState<R>,
}

enum ZstdState<R: BufRead> {
    Between(R),
    Frame(Box<StreamingDecoder<R, FrameDecoder>>),
    Failed,
}

impl<R: BufRead> Zstd<R> {
    fn new(reader: R) -> Self {
        Self {
            state: ZstdState::Between(reader),
        }
    }
}

/// ruzstd limits the window, which it allocates at once, only in frames after a decoder's first.
fn bounded_decoder() -> FrameDecoder {
    // Magic number, a header for no content, a last block of no bytes.
    const EMPTY: [u8; 9] = [0x28, 0xb5, 0x2f, 0xfd, 0x20, 0, 1, 0, 0];
    let mut decoder = FrameDecoder::new();
    let first = decoder.init(&EMPTY[..]);
    debug_assert!(first.is_ok(), "an empty frame");
    decoder
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match std::mem::replace(&mut self.state, ZstdState::Failed) {
                ZstdState::Failed => return Err(io::ErrorKind::InvalidData.into()),
                ZstdState::Frame(mut frame) => {
                    let read = frame.read(buffer)?;
                    if read > 0 || buffer.is_empty() {
                        self.state = ZstdState::Frame(frame);
                        return Ok(read);
                    }
                    self.state = ZstdState::Between(frame.into_inner());
                }
                ZstdState::Between(mut reader) => {
                    if reader.fill_buf()?.is_empty() {
                        self.state = ZstdState::Between(reader);
                        return Ok(0);
                    }
                    self.state = match StreamingDecoder::new_with_decoder(reader, bounded_decoder()) {
                        Ok(frame) => ZstdState::Frame(Box::new(frame)),
                        Err(FrameDecoderError::WindowSizeTooBig { .. }) => {
                            return Err(io::Error::new(
                                io::ErrorKind::Unsupported,
                                "zstd window larger than 100 MiB (decompress with zstd -dc --long=31 and pipe it in)",
                            ));
                        }
                        Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { .. })) => {
                            return Err(io::Error::new(
                                io::ErrorKind::Unsupported,
                                "zstd skippable frames aren't supported (decompress with zstd -dc and pipe it in)",
                            ));
                        }
                        Err(error) => {
                            let text = format!("invalid zstd frame: {error}");
                            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                        }
                    };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn text(raw: Vec<u8>) -> (Format, String) {
        let mut input = Input::new("test".into(), Box::new(io::Cursor::new(raw))).unwrap();
        let mut text = String::new();
        input.reader.read_to_string(&mut text).unwrap();
        (input.format, text)
    }

    #[test]
    fn a_zstd_frame_with_a_window_of_gigabytes_is_refused_before_it_is_allocated() {
        // 2 GiB, and more than any memory.
        for window in [0xa8, 0xff] {
            let frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, window, 1, 0, 0];
            let refused = match Input::new("test".into(), Box::new(io::Cursor::new(frame))) {
                Ok(mut input) => input
                    .reader
                    .read_to_end(&mut Vec::new())
                    .map(|_| ())
                    .map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            let error = refused.unwrap_err();
            assert!(error.to_lowercase().contains("window"), "{error}");
        }
    }

    #[test]
    fn plain_gzip_and_zstd_read_the_same() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"one\ntwo\n").unwrap();
        let mut twice = gzip.finish().unwrap();
        twice.extend(twice.clone());
        let mut zstd =
            ruzstd::encoding::compress_to_vec(&b"one\ntwo\n"[..], ruzstd::encoding::CompressionLevel::Fastest);
        zstd.extend(zstd.clone());

        let wanted = (Format::Ndjson, "one\ntwo\none\ntwo\n".to_owned());
        assert_eq!(text(b"one\ntwo\none\ntwo\n".to_vec()), wanted);
        assert_eq!(text(twice), wanted);
        assert_eq!(text(zstd), wanted);
    }

    #[test]
    fn short_files_are_no_error() {
        assert_eq!(text(Vec::new()), (Format::Ndjson, String::new()));
        assert_eq!(text(b"{".to_vec()), (Format::Ndjson, "{".to_owned()));
    }

    /// Only then may a thread wait for it while another ends the run.
    #[test]
    fn a_pipe_by_name_is_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let (file, pipe) = (directory.path().join("file"), directory.path().join("pipe"));
        std::fs::write(&file, "{}\n").unwrap();
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let writer = std::thread::spawn({
            let pipe = pipe.clone();
            move || std::fs::write(pipe, "{}\n").unwrap()
        });
        assert!(!Input::open(&file, &Stop::never()).unwrap().waits);
        let mut input = Input::open(&pipe, &Stop::never()).unwrap();
        assert!(input.waits);
        let mut text = String::new();
        input.reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "{}\n");
        writer.join().unwrap();
    }

    #[test]
    fn captures_are_reported_by_their_magic() {
        assert_eq!(
            Input::new("a".into(), Box::new(&[0xd4, 0xc3, 0xb2, 0xa1][..]))
                .unwrap()
                .format,
            Format::Pcap
        );
        assert_eq!(
            Input::new("a".into(), Box::new(&[0x0a, 0x0d, 0x0d, 0x0a][..]))
                .unwrap()
                .format,
            Format::Pcapng
        );
    }
}
