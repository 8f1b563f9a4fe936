//! Response heads: out of the server's byte stream in a capture, or out of single segments as the kernel programs show them.

use bytes::Buf;

use super::reader::{Meta, StreamLimits, piece};
use super::{Piece, Pushed, Refused, Seq, Stream};
use crate::event::Packet;
use crate::http::{Response, Scan, Scanner, status_of};
use crate::imds::response_headers;

/// A response head.
#[derive(Clone, Debug)]
pub struct FoundResponse {
    pub start: Seq,
    /// Metadata of the packet that carried the first byte.
    pub meta: Meta,
    /// `None`: what came doesn't begin as HTTP.
    pub status: Option<u16>,
    pub server: Option<String>,
    pub via_proxy: Option<bool>,
    /// Bytes of the head, where its end was seen.
    pub head_bytes: Option<u64>,
    /// Bytes of the body, if the head has the length.
    pub body_bytes: Option<u64>,
}

impl FoundResponse {
    /// The head that a live segment begins with; `None` if it begins with none.
    pub fn in_segment(packet: &Packet) -> Option<Self> {
        packet.data.starts_with(b"HTTP/").then(|| Self {
            start: Seq(packet.seq),
            meta: Meta::of(packet),
            status: status_of(&packet.data),
            server: None,
            via_proxy: None,
            head_bytes: None,
            body_bytes: None,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    Head,
    Body(u64),
    /// In a body without a length, or behind a gap: a piece that begins as HTTP begins the next head.
    Lost,
}

/// Reads one captured connection's responses.
#[derive(Debug)]
pub struct ResponseReader {
    stream: Stream<Meta>,
    state: Position,
    head: Vec<u8>,
    scanner: Scanner,
    begun: Option<(Seq, Meta)>,
    max_head_bytes: u32,
}

fn may_begin_response(bytes: &[u8]) -> bool {
    let start = b"HTTP/";
    let common = start.len().min(bytes.len());
    start[..common] == bytes[..common]
}

impl ResponseReader {
    pub fn new(limits: StreamLimits) -> Self {
        Self {
            stream: Stream::new(limits.pieces),
            state: Position::Lost,
            head: Vec::new(),
            scanner: Scanner::default(),
            begun: None,
            max_head_bytes: u32::try_from(limits.head_bytes).unwrap_or(u32::MAX),
        }
    }

    /// The server's first byte will have this number, and begin a head.
    pub fn start(&mut self, seq: Seq) {
        if self.stream.next_seq().is_none() {
            self.stream.start(seq);
            self.state = Position::Head;
        }
    }

    /// Bytes that are kept of a head, and of pieces that wait.
    pub fn held_bytes(&self) -> usize {
        self.head.capacity() + self.stream.held_bytes()
    }

    pub fn has_gap(&self) -> bool {
        self.stream.has_gap()
    }

    /// Takes a packet's payload in and gives every head that it completes.
    pub fn push(&mut self, packet: &Packet, mut found: impl FnMut(FoundResponse)) -> Result<(), Refused> {
        if let Pushed::Next(piece) = self.stream.push(piece(packet, true))? {
            self.take(piece, &mut found);
            self.read(&mut found);
        }
        Ok(())
    }

    /// Skips the missing bytes: their head ends there, and the waiting pieces continue.
    pub fn skip_gap(&mut self, mut found: impl FnMut(FoundResponse)) {
        self.stream.skip_gap();
        self.flush(&mut found);
        self.state = Position::Lost;
        self.read(&mut found);
    }

    fn read(&mut self, found: &mut impl FnMut(FoundResponse)) {
        while let Some(piece) = self.stream.pop() {
            self.take(piece, found);
        }
    }

    /// The head whose end has not come, as it is.
    pub fn flush(&mut self, mut found: impl FnMut(FoundResponse)) {
        if !self.head.is_empty() {
            self.give(true, &mut found);
            self.state = Position::Lost;
        }
    }

    /// Gives the head that was gathered.
    fn give(&mut self, cut: bool, found: &mut impl FnMut(FoundResponse)) {
        let bytes = std::mem::take(&mut self.head);
        self.scanner = Scanner::default();
        self.give_head(&bytes, cut, found);
    }

    fn give_head(&mut self, bytes: &[u8], cut: bool, found: &mut impl FnMut(FoundResponse)) {
        let Some((start, meta)) = self.begun.take() else { return };
        let response = Response::parse(bytes, cut);
        let (server, via_proxy) = if response.status.is_some() {
            response_headers(&response, cut)
        } else {
            (None, None)
        };
        let body_bytes = response.body_length();
        found(FoundResponse {
            start,
            meta,
            status: response.status,
            server,
            via_proxy,
            head_bytes: (!cut).then_some(bytes.len() as u64),
            body_bytes,
        });
        self.state = match body_bytes {
            _ if response.status.is_none() || cut => Position::Lost,
            Some(0) => Position::Head,
            Some(length) => Position::Body(length),
            None => Position::Lost,
        };
    }

    fn take(&mut self, piece: Piece<Meta>, found: &mut impl FnMut(FoundResponse)) {
        let Piece {
            seq,
            mut data,
            hole,
            meta,
        } = piece;
        // The answer to a HEAD gives a length and no body: the next head is then where the body should be.
        if self.state != Position::Head && data.starts_with(b"HTTP/1.") {
            self.state = Position::Head;
        }
        let end = seq.plus(data.len() as u32);
        while !data.is_empty() {
            match self.state {
                Position::Body(left) => {
                    let skipped = left.min(data.len() as u64);
                    data.advance(skipped as usize);
                    self.state = if left == skipped {
                        Position::Head
                    } else {
                        Position::Body(left - skipped)
                    };
                }
                Position::Lost => data.clear(),
                Position::Head => {
                    let at = Seq(end.0.wrapping_sub(data.len() as u32));
                    self.begun.get_or_insert((at, meta));
                    let known = self.head.len();
                    if known == 0 {
                        // The usual case: a head in one piece, read where it lies.
                        let shown = &data[..data.len().min(self.max_head_bytes as usize)];
                        if may_begin_response(shown)
                            && let Scan::Complete(len) = Scanner::default().scan(shown)
                        {
                            self.give_head(&shown[..len], false, found);
                            data.advance(len);
                            continue;
                        }
                    }
                    let taken = data.len().min((self.max_head_bytes as usize).saturating_sub(known));
                    self.head.extend_from_slice(&data[..taken]);
                    if !may_begin_response(&self.head) {
                        data.clear();
                        self.give(false, found);
                    } else if let Scan::Complete(len) = self.scanner.scan(&self.head) {
                        data.advance(len - known);
                        self.head.truncate(len);
                        self.give(false, found);
                    } else {
                        data.advance(taken);
                        if self.head.len() >= self.max_head_bytes as usize {
                            self.give(true, found);
                        }
                    }
                }
            }
        }
        if hole == 0 {
            return;
        }
        match self.state {
            Position::Body(left) if left > u64::from(hole) => self.state = Position::Body(left - u64::from(hole)),
            Position::Body(left) if left == u64::from(hole) => self.state = Position::Head,
            Position::Head if !self.head.is_empty() => self.give(true, found),
            Position::Head => {
                // Bytes that were not captured, where a head should begin.
                self.begun = Some((end, meta));
                self.give(true, found);
            }
            _ => self.state = Position::Lost,
        }
    }
}
