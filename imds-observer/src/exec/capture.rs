//! Where no eBPF program can be attached: a capture of one interface, to be read as any other.

use std::fs::File;
use std::io::{self, BufWriter, IoSliceMut, Seek as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use nix::sys::time::TimeSpec;

use crate::record::Time;

/// Size of the buffer for packets that have not been read yet.
const BUFFER_BYTES: usize = 8 * 1024 * 1024;
const SNAPLEN: usize = 65_536;
/// Nanoseconds, in this machine's byte order.
const MAGIC: u32 = 0xa1b2_3c4d;
const ETHERNET: u32 = 1;
/// How often the reader looks whether it is to stop.
const WAIT: Duration = Duration::from_millis(20);

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<File>>,
}

impl Capture {
    /// Captures an interface of the calling thread's network namespace into memory, as a pcap file. Needs CAP_NET_RAW there.
    pub fn start(interface: &str) -> anyhow::Result<Self> {
        let socket = open(interface).with_context(|| format!("capture {interface}"))?;
        let file = memfd_create(c"imds-observer", MFdFlags::MFD_CLOEXEC).context("create a file in memory")?;
        let mut out = BufWriter::new(File::from(file));
        header(&mut out)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("capture".to_owned())
            .spawn(move || {
                run(&socket, &mut out, &stopped)?;
                let mut file = out.into_inner()?;
                file.rewind()?;
                Ok(file)
            })
            .context("start the capture's thread")?;
        Ok(Self { stop, thread })
    }

    /// Stops it; the file has all packets so far.
    pub fn finish(self) -> anyhow::Result<File> {
        self.stop.store(true, Ordering::Release);
        let file = self
            .thread
            .join()
            .map_err(|_| anyhow!("the capture's thread panicked"))?;
        file.context("write the capture")
    }
}

fn open(interface: &str) -> anyhow::Result<OwnedFd> {
    let all = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: `socket` takes numbers only.
    let socket = unsafe {
        libc::socket(
            libc::AF_PACKET,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            i32::from(all),
        )
    };
    // SAFETY: a new descriptor that nothing else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(Errno::result(socket)?) };
    setsockopt(&socket, sockopt::RcvBuf, &BUFFER_BYTES)?;
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
    // SAFETY: all zeroes is a valid address of this kind.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = all;
    address.sll_ifindex = if_nametoindex(interface)? as i32;
    // SAFETY: the address and its length belong together.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    Errno::result(bound)?;
    Ok(socket)
}

fn run(socket: &OwnedFd, out: &mut BufWriter<File>, stop: &AtomicBool) -> io::Result<()> {
    let mut bytes = vec![0; SNAPLEN];
    loop {
        // Looked at before reading: what had arrived by then is read.
        let last = stop.load(Ordering::Acquire);
        loop {
            match receive(socket, &mut bytes) {
                Ok((length, time)) => packet(out, time, &bytes[..length.min(SNAPLEN)])?,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        if last {
            return out.flush();
        }
        let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut ready, PollTimeout::try_from(WAIT).unwrap_or(PollTimeout::ZERO));
    }
}

/// A packet, and when the kernel received or sent it: several may be read at once.
fn receive(socket: &OwnedFd, bytes: &mut [u8]) -> nix::Result<(usize, Time)> {
    let mut control = cmsg_space!(TimeSpec);
    let mut parts = [IoSliceMut::new(bytes)];
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty())?;
    let time = received.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::ScmTimestampns(time) => Some(Duration::from(time)),
        _ => None,
    });
    let time = time.map_or_else(Time::now, |time| Time(time.as_nanos() as u64));
    Ok((received.bytes, time))
}

fn header(out: &mut impl io::Write) -> io::Result<()> {
    out.write_all(&MAGIC.to_ne_bytes())?;
    out.write_all(&2u16.to_ne_bytes())?;
    out.write_all(&4u16.to_ne_bytes())?;
    out.write_all(&[0; 8])?;
    out.write_all(&(SNAPLEN as u32).to_ne_bytes())?;
    out.write_all(&ETHERNET.to_ne_bytes())
}

fn packet(out: &mut impl io::Write, time: Time, bytes: &[u8]) -> io::Result<()> {
    let ns = time.unix_ns();
    for number in [
        (ns / 1_000_000_000) as u32,
        (ns % 1_000_000_000) as u32,
        bytes.len() as u32,
        bytes.len() as u32,
    ] {
        out.write_all(&number.to_ne_bytes())?;
    }
    out.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::input::{Format, Input};

    #[test]
    fn the_file_is_a_capture() {
        let mut bytes = Vec::new();
        header(&mut bytes).unwrap();
        packet(&mut bytes, Time(1_772_366_400_000_000_007), &[0; 60]).unwrap();
        assert_eq!(bytes.len(), 24 + 16 + 60);
        assert_eq!(bytes[24 + 4..24 + 8], 7u32.to_ne_bytes());
        let input = Input::new("t".into(), Box::new(io::Cursor::new(bytes))).unwrap();
        assert_eq!(input.format, Format::Pcap);
    }
}
