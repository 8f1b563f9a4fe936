//! Cuts an input into whole lines, many at once, without looking at what they hold.

use std::io::{self, Read as _};

use super::super::input::{Buffered, Input};
use super::MAX_LINE_BYTES;

/// Lines that were read at once.
#[derive(Debug)]
pub(super) struct Chunk {
    /// Longer than what was read.
    buffer: Vec<u8>,
    filled: usize,
    /// Byte at which it begins, after decompression.
    pub(super) offset: u64,
    /// Reading failed behind it, and nothing follows.
    pub(super) failed: Option<io::ErrorKind>,
}

impl Chunk {
    /// Whole lines. The last may lack its end where the input ends, and the rest of one that is too long is cut off.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[..self.filled]
    }

    pub(super) fn into_buffer(self) -> Vec<u8> {
        self.buffer
    }
}

/// See the module.
pub(super) struct Chunks {
    input: Box<dyn Buffered + Send>,
    chunk_bytes: usize,
    /// Begins with the part of a line that came with the chunk before.
    buffer: Vec<u8>,
    filled: usize,
    /// Offset of `buffer`'s first byte in the input.
    offset: u64,
    ended: bool,
    spare: Vec<Vec<u8>>,
}

impl Chunks {
    pub(super) fn new(input: Input, chunk_bytes: usize) -> Self {
        Self {
            input: input.reader,
            chunk_bytes,
            buffer: Vec::new(),
            filled: 0,
            offset: 0,
            ended: false,
            spare: Vec::new(),
        }
    }

    /// Returns the available bytes up to the end of a line; from a pipe they may be few. `None`: the input has ended.
    pub(super) fn next_chunk(&mut self) -> Option<Chunk> {
        // Bytes that were left out of a line that is too long.
        let mut left_out = None;
        while !self.ended {
            if self.buffer.len() < self.chunk_bytes.max(self.filled + self.chunk_bytes / 2) {
                self.buffer.resize(self.filled + self.chunk_bytes, 0);
            }
            let read = match self.input.read(&mut self.buffer[self.filled..]) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    self.ended = true;
                    self.filled = 0;
                    return Some(self.cut(0, 0, Some(error.kind())));
                }
            };
            if read == 0 {
                self.ended = true;
                return (self.filled > 0).then(|| self.cut(self.filled, 0, None));
            }
            let new = self.filled..self.filled + read;
            if let Some(left_out) = &mut left_out {
                // Looking for its end only.
                let end = memchr::memchr(b'\n', &self.buffer[new.clone()]);
                let Some(end) = end else {
                    *left_out += read as u64;
                    continue;
                };
                let left_out = *left_out + end as u64;
                let kept = self.filled;
                self.buffer.copy_within(kept + end..new.end, kept);
                self.filled = new.end - end;
                return Some(self.cut(kept + 1, left_out, None));
            }
            self.filled = new.end;
            if let Some(end) = memchr::memrchr(b'\n', &self.buffer[new]) {
                return Some(self.cut(self.filled - read + end + 1, 0, None));
            }
            if self.filled > MAX_LINE_BYTES {
                left_out = Some((self.filled - MAX_LINE_BYTES - 1) as u64);
                self.filled = MAX_LINE_BYTES + 1;
            }
        }
        None
    }

    /// Makes a chunk of the first bytes; what is behind them begins the next.
    fn cut(&mut self, end: usize, left_out: u64, failed: Option<io::ErrorKind>) -> Chunk {
        let mut next = self.spare.pop().unwrap_or_default();
        let rest = &self.buffer[end..self.filled];
        if next.len() < rest.len() {
            next.resize(rest.len().max(self.chunk_bytes), 0);
        }
        next[..rest.len()].copy_from_slice(rest);
        let chunk = Chunk {
            filled: end,
            offset: self.offset,
            failed,
            buffer: Vec::new(),
        };
        self.filled = rest.len();
        self.offset += end as u64 + left_out;
        Chunk {
            buffer: std::mem::replace(&mut self.buffer, next),
            ..chunk
        }
    }

    /// Reuses a chunk's memory, unless a long line has enlarged it.
    pub(super) fn take_back(&mut self, buffer: Vec<u8>) {
        if buffer.len() <= 2 * self.chunk_bytes && self.spare.len() < 2 {
            self.spare.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives `step` bytes at a time, then fails or ends.
    struct Slow {
        bytes: Vec<u8>,
        at: usize,
        step: usize,
        fails: bool,
    }

    impl io::Read for Slow {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.step.min(buffer.len()).min(self.bytes.len() - self.at);
            if count == 0 && self.fails {
                return Err(io::ErrorKind::InvalidData.into());
            }
            buffer[..count].copy_from_slice(&self.bytes[self.at..self.at + count]);
            self.at += count;
            Ok(count)
        }
    }

    /// Each line with its reported offset, and whether reading failed.
    fn lines(text: &[u8], step: usize, fails: bool) -> (Vec<(u64, usize)>, bool) {
        let slow = Slow {
            bytes: text.to_vec(),
            at: 0,
            step,
            fails,
        };
        let mut chunks = Chunks::new(Input::new("t".into(), Box::new(slow)).unwrap(), 64);
        let (mut lines, mut failed) = (Vec::new(), false);
        while let Some(chunk) = chunks.next_chunk() {
            let mut offset = chunk.offset;
            for line in chunk.bytes().split_inclusive(|byte| *byte == b'\n') {
                let shown = line.len().min(MAX_LINE_BYTES + 1);
                assert!(line.len() > MAX_LINE_BYTES || *line == text[offset as usize..][..shown]);
                lines.push((offset, shown));
                offset += line.len() as u64;
            }
            failed |= chunk.failed.is_some();
            let buffer = chunk.into_buffer();
            chunks.take_back(buffer);
        }
        (lines, failed)
    }

    #[test]
    fn any_way_of_reading_gives_the_same_lines() {
        let long = vec![b'x'; MAX_LINE_BYTES + 100];
        let text = [
            b"a\n\nbc\n".to_vec(),
            vec![b'y'; 500],
            b"\n".to_vec(),
            long.clone(),
            b"\nend\n".to_vec(),
            vec![b'z'; 70],
        ]
        .concat();
        let behind = (506 + long.len() + 1) as u64;
        let wanted = vec![
            (0, 2),
            (2, 1),
            (3, 3),
            (6, 501),
            (507, MAX_LINE_BYTES + 1),
            (behind + 1, 4),
            (behind + 5, 70),
        ];
        for step in [1, 7, 63, 64, 1000, 70_000, usize::MAX] {
            assert_eq!(lines(&text, step, false), (wanted.clone(), false), "{step}");
        }
    }

    #[test]
    fn a_failure_leaves_what_came_before() {
        let (lines, failed) = lines(b"one\ntwo\nthr", 5, true);
        assert_eq!(lines, [(0, 4), (4, 4)]);
        assert!(failed);
    }
}
