//! What a network card's driver counts, read through the interface that `ethtool -S` uses.
//!
//! The ENA driver has the card's own count of packets that went over the link-local allowance. No other driver has it.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use rustc_hash::FxHashMap;
use thiserror::Error;

/// Packets to link-local services dropped because the interface sent more than it may.
const ALLOWANCE: &str = "linklocal_allowance_exceeded";

/// `SIOCETHTOOL` in `linux/sockios.h`.
const REQUEST: libc::c_ulong = 0x8946;
/// `ETHTOOL_GDRVINFO`, `_GSTRINGS`, `_GSTATS`, `_GSSET_INFO`, and the set of statistics, in `linux/ethtool.h`.
const GET_DRIVER: u32 = 0x3;
const GET_STRINGS: u32 = 0x1b;
const GET_STATS: u32 = 0x1d;
const GET_SET_INFO: u32 = 0x37;
const STATISTICS: u32 = 1;
const STRING_BYTES: usize = 32;
const DRIVER_INFO_BYTES: usize = 196;
const STATS_HEADER: usize = 8;
const STRINGS_HEADER: usize = 12;

/// Drivers count per queue; 32 queues make some hundreds.
///
/// Also the size of the buffers, whatever number the driver reports: the kernel writes as many values as the driver has at that
/// moment and doesn't ask how many were expected, and the number changes when queues are added.
const MAX_STATISTICS: usize = 16_384;
/// Interfaces whose first reading is remembered.
const MAX_INTERFACES: usize = 256;

/// Why nothing could be read.
#[derive(Debug, Error)]
pub enum EthtoolError {
    #[error("open a socket for ethtool queries: {0}")]
    Socket(io::Error),
    #[error("interface name {0:?} is too long")]
    Name(String),
    #[error("query the driver of {interface}: {source}")]
    Ask { interface: String, source: io::Error },
    #[error("the driver of {interface} has {count} statistics, more than {MAX_STATISTICS}")]
    TooMany { interface: String, count: usize },
}

/// Asks drivers of the network namespace it was opened in.
pub struct Ethtool {
    socket: OwnedFd,
    /// In words, so that it is aligned for what the kernel writes.
    buffer: Vec<u64>,
}

impl Ethtool {
    pub fn open() -> Result<Self, EthtoolError> {
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
            .map_err(|error| EthtoolError::Socket(error.into()))?;
        Ok(Self {
            socket,
            buffer: Vec::new(),
        })
    }

    /// Name of the driver, such as `ena` or `veth`.
    pub fn driver(&mut self, interface: &str) -> Result<String, EthtoolError> {
        self.ask(interface, &GET_DRIVER.to_ne_bytes(), DRIVER_INFO_BYTES)?;
        Ok(string(self.bytes().get(4..4 + STRING_BYTES).unwrap_or_default()))
    }

    /// How many packets the card dropped over its link-local allowance since it was started. `None`: the driver doesn't count them.
    pub fn allowance_exceeded(&mut self, interface: &str) -> Result<Option<u64>, EthtoolError> {
        self.statistic(interface, ALLOWANCE)
    }

    fn statistic(&mut self, interface: &str, wanted: &str) -> Result<Option<u64>, EthtoolError> {
        let Some(count) = self.count(interface)? else {
            return Ok(None);
        };
        let mut request = [0; STRINGS_HEADER];
        request[..4].copy_from_slice(&GET_STRINGS.to_ne_bytes());
        request[4..8].copy_from_slice(&STATISTICS.to_ne_bytes());
        request[8..].copy_from_slice(&(count as u32).to_ne_bytes());
        self.ask(interface, &request, STRINGS_HEADER + MAX_STATISTICS * STRING_BYTES)?;
        let Some(index) = position(self.bytes(), wanted) else {
            return Ok(None);
        };
        let mut request = [0; STATS_HEADER];
        request[..4].copy_from_slice(&GET_STATS.to_ne_bytes());
        request[4..].copy_from_slice(&(count as u32).to_ne_bytes());
        self.ask(interface, &request, STATS_HEADER + MAX_STATISTICS * 8)?;
        Ok(value(self.bytes(), index))
    }

    /// `None`: the driver has no statistics.
    fn count(&mut self, interface: &str) -> Result<Option<usize>, EthtoolError> {
        let mut request = [0; 16];
        request[..4].copy_from_slice(&GET_SET_INFO.to_ne_bytes());
        request[8..].copy_from_slice(&(1_u64 << STATISTICS).to_ne_bytes());
        match self.ask(interface, &request, request.len() + 4) {
            Err(EthtoolError::Ask { source, .. }) if source.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                return Ok(None);
            }
            result => result?,
        }
        let bytes = self.bytes();
        let mask = word(bytes, 8);
        let count = bytes
            .get(16..)
            .and_then(<[u8]>::first_chunk)
            .copied()
            .map_or(0, u32::from_ne_bytes) as usize;
        match (mask, count) {
            (0, _) | (_, 0) => Ok(None),
            (_, count) if count > MAX_STATISTICS => Err(EthtoolError::TooMany {
                interface: interface.to_owned(),
                count,
            }),
            (_, count) => Ok(Some(count)),
        }
    }

    fn bytes(&self) -> &[u8] {
        zerocopy::IntoBytes::as_bytes(self.buffer.as_slice())
    }

    /// `capacity`: the most that the kernel may write for this command.
    fn ask(&mut self, interface: &str, request: &[u8], capacity: usize) -> Result<(), EthtoolError> {
        let words = capacity.max(request.len()).div_ceil(8);
        self.buffer.clear();
        self.buffer.resize(words, 0);
        zerocopy::IntoBytes::as_mut_bytes(self.buffer.as_mut_slice())[..request.len()].copy_from_slice(request);
        let mut name = [0; libc::IFNAMSIZ];
        // One byte stays for the end.
        if interface.len() >= name.len() {
            return Err(EthtoolError::Name(interface.to_owned()));
        }
        for (to, from) in name.iter_mut().zip(interface.bytes()) {
            *to = from as libc::c_char;
        }
        let ask = libc::ifreq {
            ifr_name: name,
            ifr_ifru: libc::__c_anonymous_ifr_ifru {
                ifru_data: self.buffer.as_mut_ptr().cast(),
            },
        };
        // SAFETY: the name ends in a zero; the data holds the command and is as large as what the kernel may write for it.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), REQUEST as _, &raw const ask) };
        nix::errno::Errno::result(result)
            .map(drop)
            .map_err(|error| EthtoolError::Ask {
                interface: interface.to_owned(),
                source: error.into(),
            })
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let word = bytes.get(at..).and_then(<[u8]>::first_chunk).copied();
    word.map_or(0, u64::from_ne_bytes)
}

fn string(bytes: &[u8]) -> String {
    let text = CStr::from_bytes_until_nul(bytes).map_or(bytes, CStr::to_bytes);
    String::from_utf8_lossy(text).into_owned()
}

/// Index of a name in a `struct ethtool_gstrings`.
fn position(strings: &[u8], wanted: &str) -> Option<usize> {
    let count = u32::from_ne_bytes(*strings.get(8..)?.first_chunk()?) as usize;
    strings
        .get(STRINGS_HEADER..)?
        .chunks_exact(STRING_BYTES)
        .take(count.min(MAX_STATISTICS))
        .position(|name| string(name) == wanted)
}

/// A value of a `struct ethtool_stats`.
fn value(stats: &[u8], index: usize) -> Option<u64> {
    let count = u32::from_ne_bytes(*stats.get(4..)?.first_chunk()?) as usize;
    (index < count).then(|| word(stats, STATS_HEADER + index * 8))
}

/// Growth of the allowance counter from reading to reading.
///
/// Drivers are asked under the kernel's RTNL lock, which is held for long where interfaces come and go. So a thread of its own asks, and
/// what it has read by then is taken: a reading is as old as the time between two calls of [`Self::ask`].
pub struct AllowanceMeter {
    asking: Asking,
    last: FxHashMap<u32, u64>,
    /// Growth that was read and not taken yet.
    grown: FxHashMap<u32, u64>,
}

/// An interface's index and name.
type Named = (u32, Arc<str>);

enum Asking {
    /// No driver can be asked.
    Never,
    /// Threads are started once privileges are dropped, so that they inherit what is left.
    NotYet(Ethtool),
    Aside {
        questions: SyncSender<Vec<Named>>,
        answers: Receiver<Vec<(u32, u64)>>,
    },
}

impl AllowanceMeter {
    /// For the interfaces of the network namespace that the calling thread is in.
    pub fn open() -> Self {
        Self {
            asking: Ethtool::open()
                .inspect_err(|error| tracing::debug!("{error}"))
                .map_or(Asking::Never, Asking::NotYet),
            last: FxHashMap::default(),
            grown: FxHashMap::default(),
        }
    }

    /// Has the drivers of these interfaces asked. While the answer to the last question isn't there, none is added.
    pub fn ask(&mut self, interfaces: Vec<Named>) {
        if let Asking::NotYet(ethtool) = std::mem::replace(&mut self.asking, Asking::Never) {
            self.asking = aside(ethtool).unwrap_or_else(|error| {
                tracing::warn!("start the ethtool thread: {error}; allowance counters are unavailable");
                Asking::Never
            });
        }
        if let Asking::Aside { questions, .. } = &self.asking {
            // Full: it is still at the last one.
            let _ = questions.try_send(interfaces);
        }
    }

    /// Growth that was read since the last call for this interface. `None`: its driver has not been seen to count.
    pub fn growth(&mut self, ifindex: u32) -> Option<u64> {
        if let Asking::Aside { answers, .. } = &self.asking {
            for (ifindex, now) in answers.try_iter().flatten() {
                let growth = grow(&mut self.last, ifindex, now);
                *self.grown.entry(ifindex).or_default() += growth;
            }
        }
        self.last
            .contains_key(&ifindex)
            .then(|| self.grown.remove(&ifindex).unwrap_or(0))
    }

    /// The interface is no more.
    pub fn forget(&mut self, ifindex: u32) {
        self.last.remove(&ifindex);
        self.grown.remove(&ifindex);
    }
}

fn aside(mut ethtool: Ethtool) -> io::Result<Asking> {
    let (questions, asked) = sync_channel::<Vec<Named>>(1);
    let (given, answers) = channel();
    thread::Builder::new().name("ethtool".to_owned()).spawn(move || {
        for interfaces in asked {
            let read = |(ifindex, name): &Named| {
                let counted = ethtool.allowance_exceeded(name);
                let counted = counted.inspect_err(|error| tracing::debug!("{error}"));
                Some((*ifindex, counted.ok()??))
            };
            if given.send(interfaces.iter().filter_map(read).collect()).is_err() {
                break;
            }
        }
    })?;
    Ok(Asking::Aside { questions, answers })
}

fn grow(last: &mut FxHashMap<u32, u64>, ifindex: u32, now: u64) -> u64 {
    if last.len() >= MAX_INTERFACES && !last.contains_key(&ifindex) {
        last.clear();
    }
    match last.insert(ifindex, now) {
        None => 0,
        // The card was reset and counts from zero again.
        Some(before) if now < before => now,
        Some(before) => now - before,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn strings(names: &[&str]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [GET_STRINGS, STATISTICS, names.len() as u32] {
            bytes.extend(word.to_ne_bytes());
        }
        for name in names {
            let mut field = [0; STRING_BYTES];
            field[..name.len()].copy_from_slice(name.as_bytes());
            bytes.extend(field);
        }
        bytes
    }

    fn stats(values: &[u64]) -> Vec<u8> {
        let mut bytes = [GET_STATS, values.len() as u32].map(u32::to_ne_bytes).concat();
        bytes.extend(values.iter().flat_map(|value| value.to_ne_bytes()));
        bytes
    }

    #[test]
    fn the_allowance_is_found_among_an_ena_driver_s_names() {
        let names = [
            "tx_timeout",
            "suspend",
            "conntrack_allowance_exceeded",
            ALLOWANCE,
            "queue_0_tx_cnt",
        ];
        let index = position(&strings(&names), ALLOWANCE);
        assert_eq!(index, Some(3));
        assert_eq!(value(&stats(&[1, 2, 3, 44, 5]), 3), Some(44));
        assert_eq!(value(&stats(&[1, 2]), 3), None, "fewer values than names");
        assert_eq!(position(&strings(&["peer_ifindex"]), ALLOWANCE), None);
        let long = "x".repeat(STRING_BYTES);
        assert_eq!(
            position(&strings(&[&long]), &long),
            Some(0),
            "a name that fills its field"
        );
    }

    #[test]
    fn growth_starts_at_the_first_reading_and_survives_a_reset() {
        let mut last = FxHashMap::default();
        assert_eq!([7, 7, 10, 4].map(|now| grow(&mut last, 2, now)), [0, 0, 3, 4]);
        assert_eq!(grow(&mut last, 3, 99), 0);
        for ifindex in 0..10_000 {
            grow(&mut last, ifindex, 1);
            assert!(last.len() <= MAX_INTERFACES);
        }
    }

    /// Reading is another thread's, and its result is taken when it is there.
    #[test]
    fn a_driver_that_does_not_count_gives_nothing() {
        let mut meter = AllowanceMeter::open();
        for _ in 0..100 {
            meter.ask(vec![(1, Arc::from("lo")), (9_999, Arc::from("no-such-if"))]);
            assert_eq!((meter.growth(1), meter.growth(9_999)), (None, None));
        }
    }

    #[test]
    fn a_driver_without_it_says_none() {
        let mut ethtool = Ethtool::open().unwrap();
        assert_eq!(ethtool.allowance_exceeded("lo").unwrap(), None);
        assert!(ethtool.allowance_exceeded("no-such-if").is_err());
        assert!(matches!(ethtool.driver(&"x".repeat(99)), Err(EthtoolError::Name(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200), index in any::<u16>()) {
            let _ = position(&bytes, ALLOWANCE);
            let _ = value(&bytes, index.into());
        }
    }
}
