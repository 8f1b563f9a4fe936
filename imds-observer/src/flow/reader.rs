//! Code that the readers of both directions share.

use serde::{Deserialize, Serialize};

use crate::event::{Packet, Sender};
use crate::record::Time;

use super::{Piece, Seq};

/// Facts about the packet that carried a piece.
#[derive(Clone, Copy, Debug)]
pub struct Meta {
    pub time: Time,
    /// Acknowledgement number: bytes of the other direction that the sender had received by then.
    pub ack: Seq,
    pub ttl: u8,
    pub sender: Option<Sender>,
}

/// Bounds of one direction of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StreamLimits {
    /// Pieces that wait for an earlier one.
    pub pieces: usize,
    /// Bytes of a head; what is longer is cut.
    pub head_bytes: usize,
}

impl Default for StreamLimits {
    fn default() -> Self {
        Self {
            pieces: 64,
            head_bytes: 8 << 10,
        }
    }
}

impl Meta {
    pub fn of(packet: &Packet) -> Self {
        Self {
            time: packet.time,
            ack: Seq(packet.ack),
            ttl: packet.ttl,
            sender: packet.sender,
        }
    }
}

/// The bytes of a packet. With `whole`, what is not in `data` will not come; without, only if the packet is marked as cut.
pub(super) fn piece(packet: &Packet, whole: bool) -> Piece<Meta> {
    let seq = Seq(packet.seq).plus(u32::from(packet.tcp_flags & Packet::SYN != 0));
    let len = packet.payload_len.max(packet.data.len() as u32);
    let hole = if whole || packet.cut {
        len - packet.data.len() as u32
    } else {
        0
    };
    Piece {
        seq,
        data: packet.data.clone(),
        hole,
        meta: Meta::of(packet),
    }
}
