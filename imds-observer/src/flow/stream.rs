//! One direction of a connection: pieces in any order go in, pieces in order come out, each byte once. Nearly all come in order and go
//! through without being stored.
//!
//! If a byte arrives twice, the first copy is used. Bytes that a source never captures are holes. Their length is known, so the stream
//! continues behind them.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

use super::Seq;

/// Bytes of the stream from `seq` on: what was captured, then `hole` bytes that were not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece<M> {
    pub seq: Seq,
    pub data: Bytes,
    pub hole: u32,
    pub meta: M,
}

impl<M> Piece<M> {
    fn len(&self) -> u32 {
        (self.data.len() as u32).saturating_add(self.hole)
    }

    fn skip(&mut self, bytes: u32) {
        let of_data = (self.data.len() as u32).min(bytes);
        self.data.advance(of_data as usize);
        self.hole = self.hole.saturating_sub(bytes - of_data);
        self.seq = self.seq.plus(bytes);
    }
}

/// Result of pushing a piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pushed<P> {
    /// The piece is next in order. Use it, then drain [`Stream::pop`].
    Next(P),
    /// The piece waits for an earlier one.
    Waits,
    /// All of its bytes were already received.
    Old,
}

/// Why a piece was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It doesn't fit: skip the gap before the waiting pieces.
    Full,
    /// The piece is so far from the stream that it can't belong to it.
    Far,
}

/// Further ahead than any window that a client and IMDS negotiate.
const WINDOW: i32 = 1 << 24;

/// One direction of a connection. Holds at most `max` pieces that wait for an earlier one.
#[derive(Debug)]
pub struct Stream<M> {
    next: Option<Seq>,
    waiting: VecDeque<Piece<M>>,
    max: u32,
}

impl<M> Stream<M> {
    pub fn new(max: usize) -> Self {
        Self {
            next: None,
            waiting: VecDeque::new(),
            max: u32::try_from(max).unwrap_or(u32::MAX),
        }
    }

    /// Sets the start of the stream, if unknown.
    pub fn start(&mut self, seq: Seq) {
        self.next.get_or_insert(seq);
    }

    /// The first byte that has not come out yet.
    pub fn next_seq(&self) -> Option<Seq> {
        self.next
    }

    pub fn push(&mut self, mut piece: Piece<M>) -> Result<Pushed<Piece<M>>, Refused> {
        let next = *self.next.get_or_insert(piece.seq);
        let distance = piece.seq.from(next);
        let len = piece.len();
        if !(-WINDOW..WINDOW).contains(&distance) || len > WINDOW as u32 {
            return Err(Refused::Far);
        }
        if distance + len as i32 <= 0 {
            return Ok(Pushed::Old);
        }
        let first = self.waiting.front().map(|first| first.seq.from(next));
        if distance <= 0 && first.is_none_or(|first| first > 0) {
            piece.skip(distance.unsigned_abs());
            self.next = Some(piece.seq.plus(piece.len()));
            return Ok(Pushed::Next(piece));
        }
        let at = self.waiting.partition_point(|other| other.seq.from(next) < distance);
        let same = self
            .waiting
            .get(at)
            .is_some_and(|other| other.seq == piece.seq && other.len() >= len);
        if same {
            return Ok(Pushed::Old);
        }
        if self.waiting.len() >= self.max as usize {
            return Err(Refused::Full);
        }
        self.waiting.insert(at, piece);
        Ok(Pushed::Waits)
    }

    /// The waiting piece that comes next, if there is one.
    pub fn pop(&mut self) -> Option<Piece<M>> {
        loop {
            let next = self.next?;
            let distance = self.waiting.front()?.seq.from(next);
            if distance > 0 {
                return None;
            }
            let mut piece = self.waiting.pop_front()?;
            let known = distance.unsigned_abs();
            if known >= piece.len() {
                continue;
            }
            piece.skip(known);
            self.next = Some(piece.seq.plus(piece.len()));
            return Some(piece);
        }
    }

    /// Bytes of the pieces that wait.
    pub fn held_bytes(&self) -> usize {
        let pieces: usize = self.waiting.iter().map(|piece| piece.data.len()).sum();
        pieces + self.waiting.capacity() * size_of::<Piece<M>>()
    }

    /// Pieces wait for one that is missing.
    pub fn has_gap(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Skips the missing bytes: the stream continues at the first waiting piece.
    pub fn skip_gap(&mut self) {
        if let Some(first) = self.waiting.front() {
            self.next = Some(first.seq);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn piece(seq: u32, data: &[u8]) -> Piece<()> {
        Piece {
            seq: Seq(seq),
            data: Bytes::copy_from_slice(data),
            hole: 0,
            meta: (),
        }
    }

    fn drain(stream: &mut Stream<()>) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Some(piece) = stream.pop() {
            show(&piece, &mut bytes);
        }
        bytes
    }

    fn show(piece: &Piece<()>, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&piece.data);
        bytes.extend(std::iter::repeat_n(b'.', piece.hole as usize));
    }

    /// Returns the bytes that become available when a piece is pushed.
    fn pass(stream: &mut Stream<()>, piece: Piece<()>) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Ok(Pushed::Next(piece)) = stream.push(piece) {
            show(&piece, &mut bytes);
        }
        bytes.extend(drain(stream));
        bytes
    }

    #[test]
    fn holes_have_a_length() {
        let mut stream = Stream::new(4);
        let holed = Piece {
            hole: 3,
            ..piece(10, b"ab")
        };
        assert_eq!(pass(&mut stream, holed), b"ab...");
        assert_eq!(pass(&mut stream, piece(12, b"xyzcd")), b"cd");
    }

    #[test]
    fn bounded() {
        let mut stream = Stream::new(2);
        stream.start(Seq(0));
        assert_eq!(stream.push(piece(10, b"a")), Ok(Pushed::Waits));
        assert_eq!(stream.push(piece(20, b"a")), Ok(Pushed::Waits));
        assert_eq!(stream.push(piece(20, b"a")), Ok(Pushed::Old));
        assert_eq!(stream.push(piece(30, b"a")), Err(Refused::Full));
        assert_eq!(stream.push(piece(1 << 30, b"a")), Err(Refused::Far));
        assert!(stream.pop().is_none() && stream.has_gap());
        stream.skip_gap();
        assert_eq!(stream.pop().unwrap().seq, Seq(10));
    }

    proptest! {
        #[test]
        fn any_order_and_overlap_gives_each_byte_once(
            base: u32,
            cuts in proptest::collection::vec((0..200_usize, 1..60_usize), 0..40),
        ) {
            let bytes: Vec<u8> = (0..200_u8).collect();
            let mut stream = Stream::new(usize::MAX);
            stream.start(Seq(base));
            let mut got = Vec::new();
            let whole = bytes.chunks(50).enumerate().map(|(at, _)| (at * 50, 50));
            for (from, len) in cuts.into_iter().chain(whole) {
                let to = (from + len).min(bytes.len());
                got.extend(pass(&mut stream, piece(base.wrapping_add(from as u32), &bytes[from..to])));
            }
            prop_assert_eq!(got, bytes);
        }
    }
}
