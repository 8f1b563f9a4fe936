//! Request heads out of the client's byte stream.

use bytes::{Buf, Bytes};

use super::reader::{Meta, StreamLimits, piece};
use super::{Piece, Pushed, Refused, Seq, Stream};
use crate::event::{Packet, Vantage};
use crate::http::{Body, Request, Scan, Scanner, may_begin_request, starts_with_method};

/// A request head in the stream.
pub struct FoundRequest<'a> {
    pub start: Seq,
    /// Behind the last byte of the head.
    pub end: Seq,
    /// Metadata of the packet that carried the first byte.
    pub meta: Meta,
    pub head: Request<'a>,
    /// A hidden request may be right before it, so that its answer can't be distinguished from that one's.
    pub doubtful: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    /// At or in a head.
    Head,
    /// Within a body, with the number of bytes left.
    Body(u64),
    /// Where the next head begins is not known.
    Lost,
}

/// Reads one connection's requests.
#[derive(Debug)]
pub struct RequestReader {
    stream: Stream<Meta>,
    state: Position,
    /// The first bytes of a head whose end has not come.
    head: Vec<u8>,
    scanner: Scanner,
    begun: Option<(Seq, Meta)>,
    /// The connection's beginning was seen, so its first byte begins a head.
    from_start: bool,
    /// The server has spoken since the state was lost: what the client sends next is a new request.
    turned: bool,
    last_ack: Option<Seq>,
    /// Acknowledgement number of the client when bytes went missing.
    ack_at_gap: Option<Seq>,
    max_head_bytes: u32,
}

impl RequestReader {
    pub fn new(limits: StreamLimits) -> Self {
        Self {
            stream: Stream::new(limits.pieces),
            state: Position::Head,
            head: Vec::new(),
            scanner: Scanner::default(),
            begun: None,
            from_start: false,
            turned: false,
            last_ack: None,
            ack_at_gap: None,
            max_head_bytes: u32::try_from(limits.head_bytes).unwrap_or(u32::MAX),
        }
    }

    /// The client's SYN has this sequence number.
    pub fn start(&mut self, isn: Seq) {
        self.stream.start(isn.plus(1));
        self.from_start = true;
    }

    /// The server's first byte will have this number.
    pub fn server_starts(&mut self, seq: Seq) {
        self.last_ack.get_or_insert(seq);
    }

    /// The server has sent payload.
    pub fn turn(&mut self) {
        self.turned = true;
    }

    pub fn next_seq(&self) -> Option<Seq> {
        self.stream.next_seq()
    }

    /// The first byte of a head whose end has not come.
    pub fn partial(&self) -> Option<Seq> {
        self.begun.map(|(seq, _)| seq)
    }

    /// Bytes that are kept of a head, and of pieces that wait.
    pub fn held_bytes(&self) -> usize {
        self.head.capacity() + self.stream.held_bytes()
    }

    pub fn has_gap(&self) -> bool {
        self.stream.has_gap()
    }

    /// Takes a packet's payload in and gives every head that it completes.
    pub fn push(&mut self, packet: &Packet, mut found: impl FnMut(FoundRequest<'_>)) -> Result<(), Refused> {
        if self.stream.next_seq().is_none() && !may_begin_request(&packet.data) {
            self.state = Position::Lost;
        }
        if let Pushed::Next(piece) = self.stream.push(piece(packet, packet.vantage == Vantage::Capture))? {
            self.take(piece, &mut found);
            self.read(&mut found);
        }
        Ok(())
    }

    /// Skips the missing bytes and the head that they belong to, and continues with the waiting pieces.
    pub fn skip_gap(&mut self, mut found: impl FnMut(FoundRequest<'_>)) {
        self.stream.skip_gap();
        self.forget_head();
        self.ack_at_gap = self.last_ack;
        self.state = Position::Lost;
        self.turned = false;
        self.read(&mut found);
    }

    fn forget_head(&mut self) {
        self.head.clear();
        self.scanner = Scanner::default();
        self.begun = None;
    }

    fn lose(&mut self) {
        self.state = Position::Lost;
        self.turned = false;
    }

    fn read(&mut self, found: &mut impl FnMut(FoundRequest<'_>)) {
        while let Some(piece) = self.stream.pop() {
            self.take(piece, found);
        }
    }

    /// Gives the head whose end has not come, as it is.
    pub fn flush(&mut self, mut found: impl FnMut(FoundRequest<'_>)) {
        if let Some((start, meta)) = self.begun {
            let head = std::mem::take(&mut self.head);
            self.give(start, meta, &head, true, &mut found);
            self.forget_head();
            self.lose();
        }
    }

    fn give(
        &mut self,
        start: Seq,
        meta: Meta,
        bytes: &[u8],
        cut: bool,
        found: &mut impl FnMut(FoundRequest<'_>),
    ) -> Body {
        let doubtful = self.ack_at_gap.take().is_some_and(|ack| ack == meta.ack);
        let head = Request::parse(bytes, cut);
        let body = head.body();
        let end = start.plus(bytes.len() as u32);
        found(FoundRequest {
            start,
            end,
            meta,
            head,
            doubtful,
        });
        body
    }

    fn complete(&mut self, body: Body) {
        match body {
            Body::Length(0) => self.state = Position::Head,
            Body::Length(length) => self.state = Position::Body(length),
            Body::Unknown => self.lose(),
        }
    }

    fn take(&mut self, piece: Piece<Meta>, found: &mut impl FnMut(FoundRequest<'_>)) {
        let Piece {
            seq,
            mut data,
            hole,
            meta,
        } = piece;
        let end = seq.plus(data.len() as u32);
        self.last_ack = Some(meta.ack);
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
                Position::Lost if self.turned || starts_with_method(&data) => self.state = Position::Head,
                Position::Lost => data.clear(),
                Position::Head => {
                    let at = Seq(end.0.wrapping_sub(data.len() as u32));
                    self.take_head(at, &mut data, meta, found);
                }
            }
        }
        if hole == 0 {
            return;
        }
        match self.state {
            Position::Body(left) if left > u64::from(hole) => self.state = Position::Body(left - u64::from(hole)),
            Position::Body(left) if left == u64::from(hole) => self.state = Position::Head,
            Position::Head if self.begun.is_some() => self.flush(found),
            _ => self.lose(),
        }
    }

    /// Takes from `data` what belongs to the head: at least one byte.
    fn take_head(&mut self, at: Seq, data: &mut Bytes, meta: Meta, found: &mut impl FnMut(FoundRequest<'_>)) {
        if self.begun.is_none() {
            // Empty lines before a request line are allowed, and no part of it.
            let blank = data.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            if blank > 0 {
                data.advance(blank);
                return;
            }
            self.begun = Some((at, meta));
        }
        let Some((start, begun)) = self.begun else { return };
        let room = (self.max_head_bytes as usize).saturating_sub(self.head.len());
        if self.head.is_empty() {
            // The usual case: a head in one piece, read where it lies.
            let shown = &data[..data.len().min(room)];
            if may_begin_request(shown)
                && let Scan::Complete(len) = Scanner::default().scan(shown)
            {
                let body = self.give(start, begun, &shown[..len], false, found);
                data.advance(len);
                self.forget_head();
                self.complete(body);
                return;
            }
        }
        let known = self.head.len();
        let taken = data.len().min(room);
        self.head.extend_from_slice(&data[..taken]);
        if !may_begin_request(&self.head) {
            data.clear();
            let bytes = std::mem::take(&mut self.head);
            self.give(start, begun, &bytes, false, found);
            self.forget_head();
            self.lose();
            return;
        }
        match self.scanner.scan(&self.head) {
            Scan::Complete(len) => {
                data.advance(len - known);
                let mut bytes = std::mem::take(&mut self.head);
                bytes.truncate(len);
                let body = self.give(start, begun, &bytes, false, found);
                self.forget_head();
                self.complete(body);
            }
            Scan::Incomplete => {
                data.advance(taken);
                if self.head.len() >= self.max_head_bytes as usize {
                    self.flush(found);
                }
            }
        }
    }
}
