//! The running programs and their maps: loads the object, attaches its hooks, and reads events and counters.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use aya::maps::{Array, MapData, PerCpuArray, PerCpuHashMap, RingBuf};
use aya::util::KernelVersion;
use aya::{Ebpf, EbpfLoader};
use caps::Capability;
use imds_observer_common::{InterfaceCounters, KernelOffsets, LossCounters};
use zerocopy::IntoBytes as _;

use super::LiveOptions;
use super::attach::find_cgroup2_mount;
use super::btf::Btf;
use super::decode::Decoder;
use super::endpoints::endpoints;
use super::error::{KernelError, load_error};
use super::hooks::wire::AttachedUplink;
use super::load::{give_back_memory, load_ahead, raise_locked_memory};
use super::occupied::Occupant;
use super::offsets::{drop_reasons, kernel_offsets};
use super::preempting::PreemptingWatch;
use super::symbols::Symbols;
use crate::host::capabilities::{self, Held, Needed};
use crate::record::{Attached, Missing};

/// The object that build.rs chose. Aligned: aya reads ELF structs in place.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/imds-observer.bpf.o"));

/// From here on `kernel.unprivileged_bpf_disabled` is about loading programs and making maps alone.
const MAPS_FOR_ALL: KernelVersion = KernelVersion::new(5, 19, 0);

/// Running programs. Dropping it detaches all of them.
pub struct Kernel {
    pub(super) ebpf: Ebpf,
    ring: RingBuf<MapData>,
    sleeping: Array<MapData, u32>,
    loss: PerCpuArray<MapData, [u64; size_of::<LossCounters>() / 8]>,
    interfaces: PerCpuHashMap<MapData, u32, [u64; size_of::<InterfaceCounters>() / 8]>,
    pub(super) attached: Vec<Attached>,
    pub(super) missing: Vec<Missing>,
    pub(super) uplinks: HashMap<u32, AttachedUplink>,
    /// Links of programs that run before those of other tools.
    pub(super) first: Vec<OwnedFd>,
    /// Until the thread that looks is started. `None`: our programs run first.
    pub(super) preempting: Option<PreemptingWatch>,
    #[cfg(feature = "kernel-log")]
    log: Option<aya_log::EbpfLogger<&'static dyn log::Log>>,
}

impl Kernel {
    /// Loads and attaches all but the uplinks' programs, which [`Self::attach_uplink`] adds.
    pub fn load(options: &LiveOptions) -> Result<(Self, Decoder), KernelError> {
        raise_locked_memory();
        let mut missing = Vec::new();
        let vmlinux = std::fs::read("/sys/kernel/btf/vmlinux");
        let parsed = vmlinux
            .as_ref()
            .map_err(ToString::to_string)
            .and_then(|bytes| Btf::parse(bytes).map_err(|error| error.to_string()));
        let reads_memory = capabilities::PERFMON.held() != Some(Held::No);
        for right in [capabilities::PERFMON, capabilities::SYS_PTRACE] {
            if right.held() == Some(Held::No) {
                missing.push(Missing {
                    capability: right.capability.to_string(),
                    why: "not held by this process".into(),
                    blinds: right.blinds.into(),
                });
            }
        }
        let (offsets, reasons) = match &parsed {
            // Without offsets no program asks for what it may not have, and the rest of it loads.
            Ok(btf) if !reads_memory => (KernelOffsets::NONE, drop_reasons(btf)),
            Ok(btf) => (kernel_offsets(btf), drop_reasons(btf)),
            Err(why) => {
                missing.push(Missing {
                    capability: "btf".into(),
                    why: format!("/sys/kernel/btf/vmlinux: {why}"),
                    blinds: "executable, command line, ancestors and cgroup of short-lived processes; dropped packets; socket outcomes".into(),
                });
                (KernelOffsets::NONE, Vec::new())
            }
        };
        if parsed.is_ok() && reasons.is_empty() {
            missing.push(Missing {
                capability: "drop-reasons".into(),
                why: "this kernel is older than 5.17".into(),
                blinds: "drop reasons; drop locations are still recorded".into(),
            });
        }
        let symbols = Symbols::open();
        if symbols.is_empty() {
            missing.push(Missing {
                capability: "kallsyms".into(),
                why: "/proc/kallsyms shows no addresses (needs CAP_SYSLOG, or kptr_restrict 0)".into(),
                blinds: "the kernel function that dropped a packet".into(),
            });
        }

        let endpoints = endpoints(&options.endpoints)?;
        // Parsed once for all that asks for it, and on this thread: what another leaves behind in the allocator is a MiB that stays.
        let types = aya::Btf::from_sys_fs().ok();
        let wake_at = options.limits.ring_bytes / 4;
        let resolver = options
            .resolver
            .as_ref()
            .map_or([0; 4], |(address, _)| address.octets());
        let mut loader = EbpfLoader::new();
        loader
            .btf(types.as_ref())
            .override_global("ENDPOINTS", endpoints.as_bytes(), true)
            .override_global("RESOLVER", &resolver, true)
            .override_global("OFFSETS", offsets.as_bytes(), true)
            .override_global("WAKE_AT", &wake_at, true)
            .override_global("CONNECTING_SLOTS", &options.limits.connecting, true);
        for (name, size) in options.limits.maps() {
            loader.map_max_entries(name, size);
        }
        let mut ebpf = loader.load(OBJECT).map_err(load_error)?;
        let ring = RingBuf::try_from(take_map(&mut ebpf, "EVENTS")?)
            .map_err(|source| KernelError::Map { name: "EVENTS", source })?;
        let sleeping = Array::try_from(take_map(&mut ebpf, "SLEEPING")?).map_err(|source| KernelError::Map {
            name: "SLEEPING",
            source,
        })?;
        let loss = PerCpuArray::try_from(take_map(&mut ebpf, "LOSS")?)
            .map_err(|source| KernelError::Map { name: "LOSS", source })?;
        let interfaces =
            PerCpuHashMap::try_from(take_map(&mut ebpf, "INTERFACES")?).map_err(|source| KernelError::Map {
                name: "INTERFACES",
                source,
            })?;
        #[cfg(feature = "kernel-log")]
        let log = aya_log::EbpfLogger::init(&mut ebpf)
            .inspect_err(|error| tracing::warn!("kernel log: {error}"))
            .ok();
        let mut kernel = Self {
            ebpf,
            ring,
            sleeping,
            loss,
            interfaces,
            attached: Vec::new(),
            missing,
            uplinks: HashMap::new(),
            first: Vec::new(),
            preempting: None,
            #[cfg(feature = "kernel-log")]
            log,
        };
        let traced = types.as_ref().filter(|_| parsed.is_ok() && reads_memory);
        load_ahead(&mut kernel.ebpf, traced);
        let behind = kernel.attach_cgroup(options.cgroup.as_deref())?;
        kernel.attach_connect_returned(traced);
        if let Some(types) = traced {
            kernel.attach_drop(types);
            kernel.attach_socket(types);
        }
        kernel.miss_rewritten(&behind);
        drop((parsed, types));
        drop(vmlinux);
        give_back_memory();
        Ok((kernel, Decoder::new(reasons, symbols)))
    }

    /// To be started once privileges are dropped.
    pub(crate) fn take_preempting(&mut self) -> Option<PreemptingWatch> {
        self.preempting.take()
    }

    pub fn attached(&self) -> &[Attached] {
        &self.attached
    }

    pub fn missing(&self) -> &[Missing] {
        &self.missing
    }

    /// What is needed from here on by the thread that has it, if uplinks that come are to be attached (`follows`), and what
    /// threads of its own keep.
    pub fn capabilities(&self, follows: bool) -> (Vec<Capability>, Vec<Capability>) {
        let itself = |right: &Needed| match right.held() {
            Some(Held::ThroughAdmin) => Capability::CAP_SYS_ADMIN,
            _ => right.capability,
        };
        let mut own = Vec::new();
        if follows {
            own.push(itself(&capabilities::NET_ADMIN));
        }
        // Where BPF is switched off for users, older kernels refuse them to read maps as well.
        if KernelVersion::current().is_ok_and(|running| running < MAPS_FOR_ALL) {
            own.push(itself(&capabilities::BPF));
        }
        let clsact = self.uplinks.values().any(|uplink| uplink.filters.is_some());
        let elsewhere = if clsact {
            vec![Capability::CAP_NET_ADMIN]
        } else {
            Vec::new()
        };
        (own, elsewhere)
    }

    /// Returns other tools' programs at `connect4` and `connect6`, each with whether ours runs before it.
    fn attach_cgroup(&mut self, wanted: Option<&Path>) -> Result<Vec<(Occupant, bool)>, KernelError> {
        let path = match wanted {
            Some(path) => path.to_path_buf(),
            None => find_cgroup2_mount()
                .map_err(KernelError::Mounts)?
                .ok_or(KernelError::NoCgroup2)?,
        };
        let cgroup = File::open(&path).map_err(|source| KernelError::Cgroup {
            path: path.display().to_string(),
            source,
        })?;
        self.attach_segment(&cgroup, &path)?;
        Ok(self.attach_connect(&cgroup, &path))
    }

    /// The next event wakes who waits for [`Self::ring_fd`]. Without this only one by which the ring is a quarter full does: who reads
    /// again soon need not be woken, and waking costs those who are observed. What came before the call must be looked for after it.
    pub fn ask_to_be_woken(&mut self) -> Result<(), KernelError> {
        self.sleeping.set(0, 1, 0).map_err(|source| KernelError::Map {
            name: "SLEEPING",
            source,
        })
    }

    /// For epoll(7), edge-triggered: it is readable whenever events wait, and only its edges mean a wake-up.
    pub fn ring_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor lives as long as the ring, which lives as long as self.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }

    /// Passes the kernel programs' debug log on to ours.
    #[cfg(feature = "kernel-log")]
    pub fn flush_log(&mut self) {
        if let Some(log) = &mut self.log {
            log.flush();
        }
    }

    /// Hands up to `most` waiting events to `take`; how many there were.
    pub fn drain(&mut self, most: usize, mut take: impl FnMut(&[u8])) -> usize {
        for count in 0..most {
            match self.ring.next() {
                Some(event) => take(&event),
                None => return count,
            }
        }
        most
    }

    /// Sum over all CPUs since loading.
    pub fn loss(&self) -> LossCounters {
        let mut sum = LossCounters::default();
        if let Ok(values) = self.loss.get(&0, 0) {
            for [ring_buffer, map_full, unparsed, truncated] in values.iter() {
                sum.ring_buffer += ring_buffer;
                sum.map_full += map_full;
                sum.unparsed += unparsed;
                sum.truncated += truncated;
            }
        }
        sum
    }

    /// Packets by interface index since loading, summed over all CPUs.
    pub fn interfaces(&self) -> Vec<(u32, InterfaceCounters)> {
        self.interfaces
            .iter()
            .filter_map(Result::ok)
            .map(|(ifindex, values)| {
                let mut sum = InterfaceCounters::default();
                for value in values.iter() {
                    let (egress, ingress) = value.split_at(sum.egress.len());
                    sum.egress.iter_mut().zip(egress).for_each(|(sum, value)| *sum += value);
                    sum.ingress
                        .iter_mut()
                        .zip(ingress)
                        .for_each(|(sum, value)| *sum += value);
                }
                (ifindex, sum)
            })
            .collect()
    }
}

fn take_map(ebpf: &mut Ebpf, name: &'static str) -> Result<aya::maps::Map, KernelError> {
    ebpf.take_map(name).ok_or(KernelError::NoMap(name))
}

#[cfg(test)]
mod tests {
    use object::{Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget};

    use super::OBJECT;

    #[test]
    fn the_object_in_the_tree_is_as_new_as_its_sources() {
        assert!(
            option_env!("IMDS_OBSERVER_EBPF_STALE").is_none(),
            "imds-observer-ebpf or imds-observer-common has changed since imds-observer/ebpf was written: run `cargo xtask ebpf`, and commit both"
        );
    }

    /// Loops over bytes cost more than they move, and without CAP_PERFMON the verifier refuses them.
    #[test]
    fn no_kernel_program_calls_a_loop_over_bytes() {
        let object = object::File::parse(OBJECT).unwrap();
        let (mut calls, mut relocations) = (Vec::new(), 0);
        for section in object.sections() {
            for (_, relocation) in section.relocations() {
                let RelocationTarget::Symbol(index) = relocation.target() else {
                    continue;
                };
                relocations += 1;
                let symbol = object.symbol_by_index(index).unwrap();
                let name = symbol.name().unwrap_or_default();
                if ["memset", "memcpy", "memmove", "memcmp", "bcmp"].contains(&name) {
                    calls.push(format!("{} calls {name}", section.name().unwrap_or_default()));
                }
            }
        }
        assert!(relocations > 0, "the object's maps are found by relocations");
        assert_eq!(calls, <Vec<String>>::new());
    }
}
