//! Synchronous netlink requests.
//!
//! Requests block on purpose: the kernel replies within `sendmsg()`, so an async runtime would only add a thread.

use std::io;
use std::os::fd::AsFd as _;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR};
use netlink_sys::Socket;
use nix::poll::{PollFd, PollFlags, poll};
use thiserror::Error;

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Limit on a table dump, bytes. A full Internet routing table needs about half of it.
const MAX_REPLY_BYTES: usize = 128 << 20;
/// Limit on restarts of a dump whose table changed while it was read.
const DUMP_TRIES: usize = 4;
/// The kernel replies within `sendmsg()`. The timeout matters only if a bug loses the reply.
const PATIENCE_MS: u16 = 5_000;

/// Why a netlink request failed.
#[derive(Debug, Error)]
pub enum NetlinkError {
    #[error("netlink: {0}")]
    Io(#[from] io::Error),
    /// Errno that the kernel returned in `NLMSG_ERROR`.
    #[error("netlink: {}", io::Error::from_raw_os_error(*.0))]
    Refused(i32),
    #[error("netlink: response truncated at byte {0}")]
    Truncated(usize),
    #[error("netlink: response larger than {} MiB", MAX_REPLY_BYTES >> 20)]
    TooLarge,
    #[error("netlink: the table changed during every read")]
    Unsettled,
}

impl NetlinkError {
    /// The kernel's errno, positive.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused(errno) => Some(*errno),
            Self::Io(error) => error.raw_os_error(),
            _ => None,
        }
    }
}

/// One message of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub kind: u16,
    pub payload: Vec<u8>,
}

/// A netlink socket in the network namespace of the thread that opened it.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// `protocol`: `NETLINK_ROUTE` or another of `netlink_sys::protocols`.
    pub fn open(protocol: isize) -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Lets the kernel filter dumps by the request's header (since 4.20). On older kernels the dump has additional entries, which
    /// callers ignore.
    pub fn strict(&self) {
        let _ = self.socket.set_netlink_get_strict_chk(true);
    }

    /// Sends one request and returns its reply.
    pub fn get(&mut self, kind: u16, payload: &[u8]) -> Result<Vec<Reply>, NetlinkError> {
        // Requests an acknowledgement, because some requests have no reply message.
        self.request(kind, NLM_F_REQUEST | NLM_F_ACK, payload)
    }

    /// Dumps a whole table.
    pub fn dump(&mut self, kind: u16, payload: &[u8]) -> Result<Vec<Reply>, NetlinkError> {
        for _ in 0..DUMP_TRIES {
            match self.request(kind, NLM_F_REQUEST | NLM_F_DUMP, payload) {
                Err(NetlinkError::Unsettled) => {}
                result => return result,
            }
        }
        Err(NetlinkError::Unsettled)
    }

    fn request(&mut self, kind: u16, flags: u16, payload: &[u8]) -> Result<Vec<Reply>, NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        self.socket
            .send(&message(kind, flags, self.sequence, payload), 0)
            .map_err(NetlinkError::Io)?;
        let mut replies = Vec::new();
        let (mut bytes, mut interrupted) = (0, false);
        loop {
            let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PATIENCE_MS) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::TimedOut).into()),
                Ok(_) => {}
                Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => return Err(io::Error::from(error).into()),
            }
            let (buffer, _) = self.socket.recv_from_full()?;
            bytes += buffer.len();
            // Messages of an abandoned request are skipped by their sequence number.
            let mut rest = buffer.as_slice();
            while !rest.is_empty() {
                let (header, body, next) = split(rest).ok_or(NetlinkError::Truncated(buffer.len() - rest.len()))?;
                rest = next;
                if header.sequence != self.sequence {
                    continue;
                }
                interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
                match header.kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        // DONE has no errno on old kernels.
                        let errno = body.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
                        return match errno {
                            0 if interrupted => Err(NetlinkError::Unsettled),
                            0 => Ok(replies),
                            errno => Err(NetlinkError::Refused(errno.saturating_neg())),
                        };
                    }
                    kind if bytes <= MAX_REPLY_BYTES => replies.push(Reply {
                        kind,
                        payload: body.to_vec(),
                    }),
                    // Reads to the end all the same, so that the socket is empty for the next request.
                    _ => replies.clear(),
                }
            }
            if bytes > 2 * MAX_REPLY_BYTES {
                return Err(NetlinkError::TooLarge);
            }
        }
    }
}

struct Header {
    kind: u16,
    flags: u16,
    sequence: u32,
}

/// The first message, its payload, and what follows it.
fn split(bytes: &[u8]) -> Option<(Header, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let header = Header {
        kind: u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?),
        flags: u16::from_ne_bytes(*bytes.get(6..)?.first_chunk()?),
        sequence: u32::from_ne_bytes(*bytes.get(8..)?.first_chunk()?),
    };
    let body = bytes.get(HEADER..length)?;
    let next = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((header, body, next))
}

/// Reads any bytes as messages, for the fuzz targets.
pub(super) fn read_any(bytes: &[u8]) {
    let mut rest = bytes;
    while let Some((_, _, next)) = split(rest) {
        assert!(next.len() < rest.len(), "a message without a length");
        rest = next;
    }
}

fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend_from_slice(&((HEADER + payload.len()) as u32).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    // Port 0: the kernel fills in ours.
    bytes.extend_from_slice(&0_u32.to_ne_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_are_split_at_their_padding() {
        let mut bytes = message(7, 1, 9, b"abc");
        bytes.push(0);
        bytes.extend(message(8, 2, 10, b""));
        let (first, body, rest) = split(&bytes).unwrap();
        assert_eq!((first.kind, first.flags, first.sequence, body), (7, 1, 9, &b"abc"[..]));
        let (second, body, rest) = split(rest).unwrap();
        assert_eq!((second.kind, body.len(), rest.len()), (8, 0, 0));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut rest = bytes.as_slice();
            while let Some((_, _, next)) = split(rest) {
                prop_assert!(next.len() < rest.len());
                rest = next;
            }
        }
    }
}
