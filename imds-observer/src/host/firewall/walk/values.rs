//! Known bytes of a packet in the registers of a rule.

use super::super::nft::WORDS;
use super::super::packet::{Byte, Open, Packet};
use super::super::{Loaded, Word};
use super::{Truth, Walker};

/// Four bytes, known or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cell {
    Known([u8; 4]),
    Open {
        open: Open,
        /// Bits that are left of the value.
        mask: [u8; 4],
        /// In network order though the value isn't by nature.
        swapped: bool,
    },
}

impl Walker<'_> {
    pub(super) fn put(&mut self, to: Word, bytes: impl IntoIterator<Item = Byte>) {
        let bytes: Vec<Byte> = bytes.into_iter().collect();
        for (word, chunk) in bytes.chunks(4).enumerate() {
            let mut cell = [0; 4];
            let mut open = None;
            for (at, byte) in chunk.iter().enumerate() {
                match byte {
                    Ok(byte) => cell[at] = *byte,
                    Err(why) => open = Some(*why),
                }
            }
            if let Some(slot) = self.words.get_mut(to + word) {
                *slot = open.map_or(Cell::Known(cell), open_cell);
            }
        }
    }

    pub(super) fn load(&mut self, what: Loaded, to: Word, bytes: usize) -> Truth {
        let bytes = bytes.clamp(1, WORDS * 4);
        let number = |number: u32| number.to_ne_bytes().map(Ok).to_vec();
        let name = |interface: &Option<(String, u32)>, open| match interface {
            Some((name, _)) => {
                let mut bytes: Vec<Byte> = name.bytes().take(16).map(Ok).collect();
                bytes.resize(16, Ok(0));
                bytes
            }
            None => vec![Err(open); 16],
        };
        let index = |interface: &Option<(String, u32)>, open| match interface {
            Some((_, index)) => number(*index),
            None => vec![Err(open); 4],
        };
        let v6 = self.packet.v6();
        let value: Vec<Byte> = match what {
            Loaded::Network { offset } | Loaded::Transport { offset } => {
                let header = if matches!(what, Loaded::Network { .. }) {
                    &self.network
                } else {
                    &self.transport
                };
                let beyond = Err(Open::Other("payload"));
                (offset..offset.saturating_add(bytes))
                    .map(|at| header.get(at).copied().unwrap_or(beyond))
                    .collect()
            }
            // Whose packet isn't this host's has no socket: the rule breaks off.
            Loaded::Uid | Loaded::Gid | Loaded::Cgroup if !self.packet.local => return Truth::No,
            Loaded::Uid => vec![Err(Open::Uid); 4],
            Loaded::Gid => vec![Err(Open::Gid); 4],
            Loaded::Cgroup => vec![Err(Open::Cgroup); 8],
            Loaded::InName => name(&self.packet.iif, Open::InName),
            Loaded::OutName => name(&self.packet.oif, Open::OutName),
            Loaded::InIndex => index(&self.packet.iif, Open::InIndex),
            Loaded::OutIndex => index(&self.packet.oif, Open::OutIndex),
            Loaded::Mark => match self.mark {
                Cell::Known(bytes) => bytes.map(Ok).to_vec(),
                Cell::Open { open, .. } => vec![Err(open); 4],
            },
            // Connections are marked by rules like these, before or after.
            Loaded::ConnectionMark if self.packet.response => vec![Err(Open::Other("connection mark")); 4],
            Loaded::ConnectionMark => number(0),
            Loaded::State => match self.state {
                Ok(state) => number(state),
                Err(open) => vec![Err(open); 4],
            },
            Loaded::Direction => vec![Ok(u8::from(self.packet.response))],
            // RTN_UNICAST: an endpoint is another host's. The client's kind isn't known here.
            Loaded::DestinationType if !self.packet.response => number(1),
            Loaded::DestinationType => vec![Err(Open::Other("address type")); 4],
            Loaded::Family => vec![Ok(if v6 { 10 } else { 2 })],
            Loaded::EtherType => {
                let kind: u16 = if v6 { 0x86dd } else { 0x0800 };
                kind.to_be_bytes().map(Ok).to_vec()
            }
            Loaded::Protocol => vec![Ok(Packet::protocol())],
            Loaded::Other(name) => vec![Err(Open::Other(name)); bytes],
        };
        self.put(to, value);
        Truth::Yes
    }

    pub(super) fn bits(&mut self, from: Word, to: Word, mask: &[u8], xor: &[u8]) {
        for (word, masks) in mask.chunks(4).enumerate() {
            let bit = |bytes: &[u8], at: usize| bytes.get(at).copied().unwrap_or(0);
            let Some(cell) = self.words.get(from + word).copied() else {
                return;
            };
            let cell = match cell {
                Cell::Known(bytes) => Cell::Known(std::array::from_fn(|at| {
                    bytes[at] & bit(masks, at) ^ bit(xor, word * 4 + at)
                })),
                Cell::Open {
                    open,
                    mask: old,
                    swapped,
                } => Cell::Open {
                    open,
                    mask: std::array::from_fn(|at| old[at] & bit(masks, at)),
                    swapped,
                },
            };
            if let Some(slot) = self.words.get_mut(to + word) {
                *slot = cell;
            }
        }
    }

    pub(super) fn swap(&mut self, from: Word, to: Word, bytes: usize, unit: usize) {
        for word in 0..bytes.min(WORDS * 4).div_ceil(4) {
            let cell = match self.words.get(from + word).copied() {
                Some(Cell::Known([a, b, c, d])) if cfg!(target_endian = "little") => match unit {
                    2 => Cell::Known([b, a, d, c]),
                    4 => Cell::Known([d, c, b, a]),
                    _ => open_cell(Open::Other("swapped value")),
                },
                Some(Cell::Known(bytes)) => Cell::Known(bytes),
                Some(Cell::Open { open, mask, swapped }) => Cell::Open {
                    open,
                    mask,
                    swapped: !swapped,
                },
                None => return,
            };
            if let Some(slot) = self.words.get_mut(to + word) {
                *slot = cell;
            }
        }
    }

    /// The value of so many bytes, or what is open of it.
    pub(super) fn known(&self, word: Word, bytes: usize) -> Result<Vec<u8>, Open> {
        let mut value = Vec::with_capacity(bytes);
        for at in word..word + bytes.div_ceil(4).min(WORDS) {
            match self.words.get(at) {
                Some(Cell::Known(bytes)) => value.extend(bytes),
                Some(Cell::Open { open, .. }) => return Err(*open),
                None => return Err(Open::Other("value")),
            }
        }
        value.truncate(bytes);
        Ok(value)
    }

    pub(super) fn open_mask(&self, word: Word, bytes: usize) -> (Vec<u8>, bool) {
        let mut mask = Vec::with_capacity(bytes);
        let mut swapped = false;
        for at in word..word + bytes.div_ceil(4).min(WORDS) {
            match self.words.get(at) {
                Some(Cell::Open {
                    mask: cell,
                    swapped: turned,
                    ..
                }) => {
                    mask.extend(cell);
                    swapped |= turned;
                }
                _ => mask.extend([0xff; 4]),
            }
        }
        mask.truncate(bytes);
        (mask, swapped)
    }
}

pub(super) fn open_cell(open: Open) -> Cell {
    Cell::Open {
        open,
        mask: [0xff; 4],
        swapped: false,
    }
}
