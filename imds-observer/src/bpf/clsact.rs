//! Filters at an uplink where the kernel has no tcx (before 6.6), without leaving any behind.
//!
//! A filter belongs to the interface, not to us: it stays until a program removes it over netlink in the interface's own
//! network namespace. So each one has a thread that was started in that namespace, made the filter, and removes it. A
//! process that was killed can't; its filters are found by the next one through their handles, of which each is guarded
//! by a lock that dies with its holder.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use aya::programs::links::Link;
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType};

/// Before all others: another tool's program may consume the packet.
const PRIORITY: u16 = 1;
/// Upper half of our handles; other tools count from 1 or let the kernel count.
pub const HANDLES: u16 = 0x1bd5;
/// Observers of one interface at a time.
const SLOTS: u16 = 8;

/// A slot among the handles of an interface. The lock is an abstract socket address: its scope is the network namespace,
/// as that of the interface, and the kernel frees it when the holder is gone.
pub(super) struct Slot {
    handle: TcHandle,
    _lock: UnixDatagram,
}

/// By index: an interface may be renamed while its filters are there.
fn lock(interface: &str, slot: u16) -> io::Result<UnixDatagram> {
    let index = nix::net::if_::if_nametoindex(interface)?;
    let name = format!("imds-observer/clsact/{index}/{slot}");
    UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name)?)
}

impl Slot {
    /// Acquires a slot at `interface`, and removes the filters of slots without a live owner.
    pub(super) fn take(interface: &str) -> io::Result<Self> {
        let mut taken = None;
        for number in 1..=SLOTS {
            let Ok(lock) = lock(interface, number) else { continue };
            let handle = TcHandle::new(HANDLES, number);
            for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
                // Fails where there is none.
                if let Ok(link) = SchedClassifierLink::attached(interface, direction, PRIORITY, handle, None)
                    && Link::detach(link).is_ok()
                {
                    tracing::info!("removed a filter that a killed observer left on {interface}");
                }
            }
            taken.get_or_insert(Self { handle, _lock: lock });
        }
        taken.ok_or_else(|| io::Error::other(format!("{SLOTS} observers are already attached to {interface}")))
    }
}

/// Filters at one interface; dropping it removes them.
pub(super) struct Filters {
    /// Closed to end the thread.
    end: Option<Sender<(SchedClassifierLink, &'static str)>>,
    thread: Option<JoinHandle<()>>,
    slot: TcHandle,
    interface: String,
}

impl Filters {
    /// Must be called in the interface's network namespace, as [`Self::attach`].
    pub(super) fn at(interface: &str) -> io::Result<Self> {
        let slot = Slot::take(interface)?;
        // Exists: fine, it is shared.
        let _ = qdisc_add_clsact(interface);
        let (end, links) = channel::<(SchedClassifierLink, &'static str)>();
        let handle = slot.handle;
        // It starts in the namespace of the calling thread and stays there.
        let thread = std::thread::Builder::new().name("clsact".into()).spawn(move || {
            crate::sandbox::keep_only(&[caps::Capability::CAP_NET_ADMIN]);
            let held: Vec<_> = links.iter().collect();
            for (link, hook) in held {
                // An interface that is gone took its filters along.
                if let Err(error) = Link::detach(link) {
                    tracing::debug!("detach {hook}: {error}");
                }
            }
            drop(slot);
        })?;
        Ok(Self {
            end: Some(end),
            thread: Some(thread),
            slot: handle,
            interface: interface.to_owned(),
        })
    }

    pub(super) fn attach(
        &self,
        program: &mut SchedClassifier,
        direction: TcAttachType,
        hook: &'static str,
    ) -> Result<(), ProgramError> {
        let options = TcAttachOptions::Netlink(NlOptions {
            priority: PRIORITY,
            handle: self.slot,
            ..NlOptions::default()
        });
        let id = program.attach_with_options(&self.interface, direction, options)?;
        let link = program.take_link(id)?;
        if let Some(end) = &self.end {
            // The thread reads until we close.
            let _ = end.send((link, hook));
        }
        Ok(())
    }
}

impl Drop for Filters {
    fn drop(&mut self) {
        self.end = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
