//! pcap and pcapng: captured packets, as the events that the live source would emit.
//!
//! A capture is read block by block and never held. An unreadable part is reported with its file and byte; everything before it is used.

mod comment;
mod copies;
mod link;
mod packet;
mod quota;

use std::fmt;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::sync::Arc;

use pcap_parser::traits::{PcapNGPacketBlock as _, PcapReaderIterator};
use pcap_parser::{Block, LegacyPcapReader, OptionCode, PcapBlockOwned, PcapError, PcapNGReader};

use self::comment::Processes;
use self::copies::Copies;
use self::link::{Link, LinkPayload, Way};
use self::packet::{Frame, Reader as PacketReader};
use self::quota::Quota;
use super::input::{Buffered, Format, Input};
use super::{Event, Limits};
use crate::record::{LossCounts, SECOND, Time};

/// First buffer of a file, and the largest that one block may need: captures hold packets of at most 256 KiB.
const BUFFER_BYTES: usize = 128 * 1024;
const MAX_BLOCK_BYTES: usize = 4 << 20;
/// `epb_dropcount`, an option of packets.
const EPB_DROPCOUNT: u16 = 4;
/// Longest section header; those of known programs are below 1 KiB.
const MAX_HEADER_BYTES: usize = 64 * 1024;

/// Why a capture can't be read on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The last packet is incomplete: the capturing program was killed, or is still writing.
    CutOff,
    Header,
    Block,
    TooLong,
    LinkType(i32),
    /// Packets have this many bytes, which end in front of what is needed of their headers.
    Cut(usize),
    Unreadable(io::ErrorKind),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CutOff => f.write_str("the capture is truncated here; using the packets read so far"),
            Self::Header => f.write_str("invalid or truncated capture header (is it a pcap or pcapng file?)"),
            Self::Block => f.write_str("invalid block; using the packets read so far (pcapfix may repair the file)"),
            Self::TooLong => write!(
                f,
                "block longer than {MAX_BLOCK_BYTES} bytes; using the packets read so far"
            ),
            Self::LinkType(number) => write!(
                f,
                "link type {number} is not supported, skipping its packets (supported: Ethernet, Linux cooked, raw IP, loopback)"
            ),
            Self::Cut(bytes) => write!(
                f,
                "packets are cut to {bytes} bytes, within their headers, and can't be read (capture again with `tcpdump -s 0`)"
            ),
            Self::Unreadable(kind) => write!(f, "read error: {kind}; using the packets read so far"),
        }
    }
}

/// An interface as the capture describes it.
struct Interface {
    name: Option<Arc<str>>,
    /// `None`: an unsupported link layer, already reported.
    link: Option<Link>,
    units: Units,
    dropped: Dropped,
}

/// Packets that the capturing program lost, by its two ways to report them. Both count the same packets.
#[derive(Clone, Copy, Debug, Default)]
struct Dropped {
    /// The sum of `epb_dropcount`: packets lost in front of a packet.
    marked: u64,
    /// The largest sum of `isb_ifdrop` and `isb_osdrop`, which count from the start.
    counted: u64,
}

impl Dropped {
    fn total(self) -> u64 {
        self.marked.max(self.counted)
    }
}

/// How a time stamp counts.
#[derive(Clone, Copy)]
struct Units {
    /// Power of ten if positive or zero, else of two.
    resolution: u8,
    binary: bool,
    offset_s: i64,
}

impl Units {
    const MICROSECONDS: Self = Self {
        resolution: 6,
        binary: false,
        offset_s: 0,
    };

    fn time(self, stamp: u64) -> Time {
        let second = u128::from(SECOND);
        let ns = if self.binary {
            (u128::from(stamp) * second) >> self.resolution.min(127)
        } else {
            u128::from(stamp) * second / 10_u128.pow(u32::from(self.resolution.min(19)))
        };
        let offset = i128::from(self.offset_s) * i128::from(SECOND);
        let ns = i128::try_from(ns).unwrap_or(i128::MAX).saturating_add(offset);
        Time(u64::try_from(ns.max(0)).unwrap_or(u64::MAX))
    }
}

/// Reads one capture.
pub struct Capture {
    pub name: Arc<str>,
    blocks: Blocks,
    interfaces: Vec<Interface>,
    max_interfaces: usize,
    packets: PacketReader,
    processes: Processes,
    quota: Quota,
    copies: Copies,
    waiting: Vec<Event>,
    counted: u64,
    loss: LossCounts,
    reported_loss: LossCounts,
    last: Time,
    /// Byte order of the section.
    big_endian: bool,
    /// [`Broken::Cut`] was reported.
    cut_reported: bool,
    ended: bool,
}

/// Next item of a capture.
#[expect(clippy::large_enum_variant, reason = "it is taken apart at once and never stored")]
pub enum Next {
    Event(Event),
    /// The rest is lost, or with a link type, the interface's packets are. `at`: byte of the capture, after decompression.
    Broken {
        at: u64,
        why: Broken,
    },
    End,
}

/// Result of a read.
pub enum Read {
    /// Some wait.
    Events,
    /// As [`Next::Broken`].
    Broken {
        at: u64,
        why: Broken,
    },
    End,
}

enum Blocks {
    Read(Box<dyn PcapReaderIterator + Send>, Format),
    Failed(Broken),
}

impl Capture {
    pub fn new(input: Input, endpoints: &[IpAddr], limits: &Limits) -> Self {
        let Input {
            name, format, reader, ..
        } = input;
        Self {
            name,
            blocks: open(format, reader),
            interfaces: Vec::new(),
            max_interfaces: limits.interfaces,
            packets: PacketReader::new(endpoints, limits.unfinished),
            processes: Processes::new(limits.processes),
            quota: Quota::new(limits.counted_interfaces),
            copies: Copies::new(),
            waiting: Vec::new(),
            counted: 0,
            loss: LossCounts::default(),
            reported_loss: LossCounts::default(),
            last: Time::default(),
            big_endian: false,
            cut_reported: false,
            ended: false,
        }
    }

    /// Packets read so far, of whatever kind.
    pub fn packets(&self) -> u64 {
        self.counted
    }

    /// Whether the next packet is there already; a pipe may take its time.
    pub fn is_ready(&self) -> bool {
        if self.ended || !self.waiting.is_empty() {
            return true;
        }
        let Blocks::Read(blocks, _) = &self.blocks else {
            return true;
        };
        // The longest header of a block is below that; a longer packet costs a wait at most.
        blocks.data().len() >= 4096
    }

    /// The next event. Reads on until there is one.
    pub fn next_event(&mut self) -> Next {
        match self.read_on() {
            // Mostly the only one.
            Read::Events => Next::Event(self.waiting.remove(0)),
            Read::Broken { at, why } => Next::Broken { at, why },
            Read::End => Next::End,
        }
    }

    /// All events that wait. Reads on until there is one.
    pub fn next_events(&mut self, out: &mut Vec<Event>) -> Read {
        let read = self.read_on();
        out.append(&mut self.waiting);
        read
    }

    fn read_on(&mut self) -> Read {
        loop {
            if !self.waiting.is_empty() {
                return Read::Events;
            }
            if self.ended {
                return Read::End;
            }
            let at = match &self.blocks {
                Blocks::Read(blocks, _) => blocks.consumed() as u64,
                Blocks::Failed(why) => {
                    let why = why.clone();
                    self.ended = true;
                    return Read::Broken { at: 0, why };
                }
            };
            match self.step() {
                Ok(true) => {}
                Ok(false) => self.end(),
                Err(why) => {
                    if !matches!(why, Broken::LinkType(_) | Broken::Cut(_)) {
                        self.end();
                    }
                    return Read::Broken { at, why };
                }
            }
        }
    }

    fn end(&mut self) {
        self.ended = true;
        let waiting = &mut self.waiting;
        self.quota.finish(|sample| waiting.push(Event::Interface(sample)));
        self.report_loss();
    }

    fn report_loss(&mut self) {
        let mut loss = self.loss;
        loss.evicted += self.quota.evicted();
        if loss != self.reported_loss {
            self.reported_loss = loss;
            self.waiting.push(Event::Loss(loss));
        }
    }

    /// Reads a block. `false`: there is none left.
    fn step(&mut self) -> Result<bool, Broken> {
        let Blocks::Read(blocks, format) = &mut self.blocks else {
            return Ok(false);
        };
        let nanoseconds = *format == Format::Pcap && blocks.consumed() == 0 && is_nanosecond(blocks.data());
        let mut result = Ok(true);
        let used = match blocks.next() {
            Ok((used, block)) => {
                let work = Work {
                    interfaces: &mut self.interfaces,
                    max_interfaces: self.max_interfaces,
                    packets: &mut self.packets,
                    processes: &mut self.processes,
                    quota: &mut self.quota,
                    copies: &mut self.copies,
                    waiting: &mut self.waiting,
                    counted: &mut self.counted,
                    loss: &mut self.loss,
                    last: &mut self.last,
                    big_endian: &mut self.big_endian,
                    cut_reported: &mut self.cut_reported,
                };
                if let Err(why) = work.block(block, nanoseconds) {
                    result = Err(why);
                }
                used
            }
            Err(PcapError::Eof) => return Ok(false),
            Err(PcapError::Incomplete(_)) => {
                let before = blocks.data().len();
                match blocks.refill() {
                    Ok(()) => {}
                    Err(_) => return Err(Broken::Unreadable(io::ErrorKind::InvalidData)),
                }
                // A full buffer can't take more.
                if blocks.data().len() == before && !blocks.reader_exhausted() {
                    return self.widen();
                }
                return Ok(true);
            }
            Err(PcapError::BufferTooSmall) => return self.widen(),
            Err(PcapError::UnexpectedEof) => {
                return if blocks.data().is_empty() {
                    Ok(false)
                } else {
                    Err(Broken::CutOff)
                };
            }
            Err(PcapError::ReadError) => return Err(Broken::Unreadable(io::ErrorKind::InvalidData)),
            Err(_) => return Err(Broken::Block),
        };
        // An empty block would be read forever.
        if used == 0 {
            return Err(Broken::Block);
        }
        blocks.consume(used);
        if self.loss != self.reported_loss && self.counted.is_multiple_of(4096) {
            self.report_loss();
        }
        result
    }

    fn widen(&mut self) -> Result<bool, Broken> {
        let Blocks::Read(blocks, _) = &mut self.blocks else {
            return Ok(false);
        };
        let wanted = (blocks.data().len() * 2).max(BUFFER_BYTES * 2);
        if wanted > 2 * MAX_BLOCK_BYTES || !blocks.grow(wanted) {
            return Err(Broken::TooLong);
        }
        blocks
            .refill()
            .map(|()| true)
            .map_err(|_| Broken::Unreadable(io::ErrorKind::InvalidData))
    }
}

fn is_nanosecond(header: &[u8]) -> bool {
    matches!(header, [0x4d, 0x3c, 0xb2, 0xa1, ..] | [0xa1, 0xb2, 0x3c, 0x4d, ..])
}

/// The reader takes its header from one read, which a pipe or a decompressor may cut short: so it is read whole before.
fn open(format: Format, mut reader: Box<dyn Buffered + Send>) -> Blocks {
    let head = match header(format, &mut reader) {
        Ok(head) => head,
        Err(why) => return Blocks::Failed(why),
    };
    let whole = io::Cursor::new(head).chain(reader);
    let blocks: Result<Box<dyn PcapReaderIterator + Send>, _> = if format == Format::Pcapng {
        PcapNGReader::new(BUFFER_BYTES, whole).map(|reader| Box::new(reader) as _)
    } else {
        LegacyPcapReader::new(BUFFER_BYTES, whole).map(|reader| Box::new(reader) as _)
    };
    match blocks {
        Ok(blocks) => Blocks::Read(blocks, format),
        Err(_) => Blocks::Failed(Broken::Header),
    }
}

fn header(format: Format, reader: &mut dyn io::Read) -> Result<Vec<u8>, Broken> {
    let mut take = |head: &mut Vec<u8>, count: usize| {
        let wanted = (count - head.len()) as u64;
        match (&mut *reader).take(wanted).read_to_end(head) {
            Ok(read) if read as u64 == wanted => Ok(()),
            Ok(_) => Err(Broken::Header),
            Err(error) => Err(Broken::Unreadable(error.kind())),
        }
    };
    let mut head = Vec::new();
    if format != Format::Pcapng {
        take(&mut head, 24)?;
        return Ok(head);
    }
    take(&mut head, 12)?;
    let length = [head[4], head[5], head[6], head[7]];
    let length = if head[8..12] == [0x1a, 0x2b, 0x3c, 0x4d] {
        u32::from_be_bytes(length)
    } else {
        u32::from_le_bytes(length)
    } as usize;
    if !(28..=MAX_HEADER_BYTES).contains(&length) {
        return Err(Broken::Header);
    }
    take(&mut head, length)?;
    Ok(head)
}

/// A capture without its reader, while the reader's buffer lends a block.
struct Work<'a> {
    interfaces: &'a mut Vec<Interface>,
    max_interfaces: usize,
    packets: &'a mut PacketReader,
    processes: &'a mut Processes,
    quota: &'a mut Quota,
    copies: &'a mut Copies,
    waiting: &'a mut Vec<Event>,
    counted: &'a mut u64,
    loss: &'a mut LossCounts,
    last: &'a mut Time,
    big_endian: &'a mut bool,
    cut_reported: &'a mut bool,
}

impl Work<'_> {
    fn block(mut self, block: PcapBlockOwned<'_>, nanoseconds: bool) -> Result<(), Broken> {
        match block {
            PcapBlockOwned::LegacyHeader(header) => {
                let link = Link::of(header.network.0);
                self.interfaces.push(Interface {
                    name: None,
                    link,
                    units: Units {
                        resolution: if nanoseconds { 9 } else { 6 },
                        ..Units::MICROSECONDS
                    },
                    dropped: Dropped::default(),
                });
                link.map(|_| ()).ok_or(Broken::LinkType(header.network.0))
            }
            PcapBlockOwned::Legacy(block) => {
                // One interface, whose unit is that of the fraction.
                let fraction_ns = match self.interfaces.first().map(|interface| interface.units.resolution) {
                    Some(9) => u64::from(block.ts_usec),
                    _ => u64::from(block.ts_usec) * 1000,
                };
                let time = Time((u64::from(block.ts_sec) * SECOND).saturating_add(fraction_ns));
                self.packet(0, time, (block.data, block.origlen), &[], None)
            }
            PcapBlockOwned::NG(block) => self.next_generation(&block),
        }
    }

    fn next_generation(&mut self, block: &Block<'_>) -> Result<(), Broken> {
        match block {
            Block::SectionHeader(section) => {
                self.interfaces.clear();
                *self.big_endian = section.big_endian();
            }
            Block::InterfaceStatistics(statistics) => {
                let mut counted = 0_u64;
                for option in &statistics.options {
                    if matches!(option.code, OptionCode::IsbIfDrop | OptionCode::IsbOsDrop) {
                        counted = counted.saturating_add(self.count(option.as_bytes().unwrap_or_default()));
                    }
                }
                self.dropped(statistics.if_id as usize, |dropped| {
                    dropped.counted = dropped.counted.max(counted);
                });
            }
            Block::InterfaceDescription(description) => {
                let link = Link::of(description.linktype.0);
                let name = description.if_name().and_then(Result::ok);
                if self.interfaces.len() >= self.max_interfaces {
                    self.loss.evicted += 1;
                    return Ok(());
                }
                self.interfaces.push(Interface {
                    name: name.map(|name| Arc::from(name.trim_end_matches('\0'))),
                    link,
                    units: Units {
                        resolution: description.if_tsresol & 0x7f,
                        binary: description.if_tsresol & 0x80 != 0,
                        offset_s: description.if_tsoffset,
                    },
                    dropped: Dropped::default(),
                });
                return link.map(|_| ()).ok_or(Broken::LinkType(description.linktype.0));
            }
            Block::EnhancedPacket(packet) => {
                let stamp = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
                let index = packet.if_id as usize;
                let time = self.time(index, stamp);
                let mut comments: [&[u8]; 8] = [&[]; 8];
                let mut count = 0;
                let (mut way, mut lost) = (None, 0);
                for option in &packet.options {
                    let Ok(value) = option.as_bytes() else { continue };
                    if option.code == OptionCode::Comment && count < comments.len() {
                        comments[count] = value;
                        count += 1;
                    } else if option.code.0 == EPB_DROPCOUNT {
                        lost = self.count(value);
                    } else if option.code.0 == 2 && value.len() == 4 {
                        // epb_flags: the two lowest bits are the packet's direction.
                        let low = if packet.big_endian() { value[3] } else { value[0] };
                        way = match low & 3 {
                            1 => Some(Way::In),
                            2 => Some(Way::Out),
                            _ => None,
                        };
                    }
                }
                if lost > 0 {
                    self.dropped(index, |dropped| dropped.marked = dropped.marked.saturating_add(lost));
                }
                let data = (packet.packet_data(), packet.origlen);
                return self.packet(index, time, data, &comments[..count], way);
            }
            Block::SimplePacket(packet) => {
                // Has no time of its own: that of the packet before.
                let time = *self.last;
                return self.packet(0, time, (packet.packet_data(), packet.origlen), &[], None);
            }
            _ => {}
        }
        Ok(())
    }

    /// A counter in the byte order of the section.
    fn count(&self, value: &[u8]) -> u64 {
        let Ok(bytes) = <[u8; 8]>::try_from(value) else {
            return 0;
        };
        if *self.big_endian {
            u64::from_be_bytes(bytes)
        } else {
            u64::from_le_bytes(bytes)
        }
    }

    /// Adds what an interface's counters have grown by to the loss: packets that were never captured may have been requests.
    fn dropped(&mut self, interface: usize, change: impl FnOnce(&mut Dropped)) {
        let Some(interface) = self.interfaces.get_mut(interface) else {
            return;
        };
        let before = interface.dropped.total();
        change(&mut interface.dropped);
        let lost = interface.dropped.total() - before;
        self.loss.ring_buffer = self.loss.ring_buffer.saturating_add(lost);
    }

    fn time(&self, interface: usize, stamp: u64) -> Time {
        let units = self.interfaces.get(interface).map(|interface| interface.units);
        units.unwrap_or(Units::MICROSECONDS).time(stamp)
    }

    /// `data`: the bytes that were captured, and how many the packet had.
    fn packet(
        &mut self,
        index: usize,
        time: Time,
        data: (&[u8], u32),
        comments: &[&[u8]],
        way: Option<Way>,
    ) -> Result<(), Broken> {
        let (data, length) = data;
        let unparsed = self.loss.unparsed;
        self.captured(index, time, data, comments, way, data.len() < length as usize);
        if self.loss.unparsed > unparsed && data.len() < length as usize && !std::mem::replace(self.cut_reported, true)
        {
            return Err(Broken::Cut(data.len()));
        }
        Ok(())
    }

    /// `cut`: the packet had more bytes.
    fn captured(&mut self, index: usize, time: Time, data: &[u8], comments: &[&[u8]], way: Option<Way>, cut: bool) {
        *self.counted += 1;
        *self.last = time;
        let Some(interface) = self.interfaces.get(index) else {
            self.loss.unparsed += 1;
            return;
        };
        let Some(link) = interface.link else { return };
        let Some(LinkPayload { ip, way: seen, ifindex }) = link.place(data) else {
            // Whether it was one to IMDS is behind the cut.
            self.loss.unparsed += u64::from(cut && data.len() < link.header_bytes());
            return;
        };
        let frame = Frame {
            time,
            ip,
            cut,
            ifindex: ifindex.unwrap_or(index as u32 + 1),
        };
        let packets = &mut *self.packets;
        let before = self.waiting.len();
        let Some(found) = packets.read(&frame, self.loss, self.waiting) else {
            return;
        };
        // Only programs that write directions log a packet at several components; elsewhere two packets are two.
        let logged = way.is_some();
        let way = way.or(seen);
        if let Some(counted) = found.counted
            && way.is_none_or(|way| (way == Way::Out) == counted.egress)
            && !(logged
                && self
                    .copies
                    .has(time, ip, (index as u64) << 1 | u64::from(counted.egress)))
        {
            let name = || match (&interface.name, ifindex) {
                (_, Some(ifindex)) => Arc::from(format!("if{ifindex}")),
                (Some(name), None) => name.clone(),
                (None, None) => Arc::from("capture"),
            };
            // A second that is over was so before this packet.
            let waiting = &mut *self.waiting;
            self.quota
                .count((index as u32, ifindex.unwrap_or(0)), time, counted, name, |sample| {
                    waiting.insert(before, Event::Interface(sample));
                });
        }
        if comments.iter().any(|comment| !comment.is_empty()) {
            self.report_sender(before, comments);
        }
    }

    /// Sets the sender from comments on the waiting packets from `first` on, and emits the event that describes it before them.
    fn report_sender(&mut self, first: usize, comments: &[&[u8]]) {
        let mut at = first;
        while at < self.waiting.len() {
            if let Some(Event::Packet(packet)) = self.waiting.get_mut(at)
                && packet.icmp.is_none()
            {
                let (sender, news) = self.processes.sender(comments);
                packet.sender = sender;
                if let Some(event) = news {
                    self.waiting.insert(at, event);
                    at += 1;
                }
            }
            at += 1;
        }
    }
}

#[cfg(test)]
mod tests;
