//! Loads and attaches the programs, and records what is missing and what is not visible without it.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use aya::maps::{Array, MapData, PerCpuArray, PerCpuHashMap, RingBuf};
use aya::programs::links::LinkOrder;
use aya::programs::tc::{SchedClassifierLinkId, TcAttachOptions};
use aya::programs::{
    BtfTracePoint, CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSockAddr, FExit, Program, ProgramError,
    RawTracePoint, SchedClassifier, SockOps, TcAttachType, TracePoint,
};
use aya::util::KernelVersion;
use aya::{Ebpf, EbpfLoader};
use caps::Capability;
use imds_observer_common::{Endpoints, InterfaceCounters, KernelOffsets, LossCounters, MAX_ENDPOINTS};
use thiserror::Error;
use zerocopy::IntoBytes as _;

use super::LiveOptions;
use super::attach::cgroup2_mount;
use super::btf::Btf;
use super::clsact::Filters;
use super::decode::Decoder;
use super::first::attach_first;
use super::occupied::{CgroupHook, Occupant, exclusive_holder, listed, others_at_connect};
use super::offsets::{drop_reasons, kernel_offsets};
use super::symbols::Symbols;
use crate::host::rights::{self, Held, Right};
use crate::record::{Attached, Missing};

/// The object that build.rs chose. Aligned: aya reads ELF structs in place.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/imds-observer.bpf.o"));

/// From here on `kernel.unprivileged_bpf_disabled` is about loading programs and making maps alone.
const MAPS_FOR_ALL: KernelVersion = KernelVersion::new(5, 19, 0);

/// Limit of recorded missing capabilities.
const MAX_MISSING: usize = 64;

/// Why the observer can't start.
#[derive(Debug, Error)]
pub enum KernelError {
    #[error(
        "no cgroup v2 hierarchy is mounted: mount one with `mount -t cgroup2 none /mnt/cgroup2` and name it with --cgroup"
    )]
    NoCgroup2,
    #[error("open cgroup {path}: {source}")]
    Cgroup { path: String, source: io::Error },
    #[error("{family} endpoints: at most {MAX_ENDPOINTS} can be observed")]
    TooManyEndpoints { family: &'static str },
    #[error("load the eBPF object: {}", explain(.0))]
    Load(aya::EbpfError),
    #[error(
        "load the eBPF object: the limit of {kib} KiB of locked memory (RLIMIT_MEMLOCK) is too low, and this kernel charges eBPF maps against it (raise it with LimitMEMLOCK=infinity or ulimit -l unlimited, or add CAP_SYS_RESOURCE)"
    )]
    LockedMemory { kib: u64 },
    #[error("load the eBPF object: this process lacks {0} (run as root, or add the capability)")]
    Right(&'static str),
    #[error("map {name}: {source}")]
    Map {
        name: &'static str,
        source: aya::maps::MapError,
    },
    #[error("map {0} is not in the object")]
    NoMap(&'static str),
    #[error("{hook} at {target}: {why} ({hint})")]
    Attach {
        hook: &'static str,
        target: String,
        why: String,
        hint: &'static str,
    },
}

/// Running programs. Dropping it detaches all of them.
pub struct Kernel {
    ebpf: Ebpf,
    ring: RingBuf<MapData>,
    sleeping: Array<MapData, u32>,
    loss: PerCpuArray<MapData, [u64; size_of::<LossCounters>() / 8]>,
    interfaces: PerCpuHashMap<MapData, u32, [u64; size_of::<InterfaceCounters>() / 8]>,
    attached: Vec<Attached>,
    missing: Vec<Missing>,
    uplinks: HashMap<u32, AttachedUplink>,
    /// Of programs that run before those of other tools.
    first: Vec<OwnedFd>,
    #[cfg(feature = "kernel-log")]
    log: Option<aya_log::EbpfLogger<&'static dyn log::Log>>,
}

struct AttachedUplink {
    /// Kept: the reader's thread may be in another network namespace later.
    name: Arc<str>,
    links: Vec<(&'static str, SchedClassifierLinkId)>,
    /// Where the kernel has no tcx.
    filters: Option<Filters>,
}

/// Which of the rights that all of this needs may be lacking, for error lines.
fn rights_hint() -> &'static str {
    let lacks = |right: &Right| right.held() == Some(Held::No);
    if lacks(&rights::BPF) {
        "this process lacks CAP_BPF: run as root, or add the capability"
    } else if lacks(&rights::PERFMON) {
        "this process lacks CAP_PERFMON: run as root, or add the capability"
    } else if lacks(&rights::NET_ADMIN) {
        "this process lacks CAP_NET_ADMIN: run as root, or add the capability"
    } else {
        "needs root, or CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN"
    }
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
        let reads_memory = rights::PERFMON.held() != Some(Held::No);
        for right in [rights::PERFMON, rights::SYS_PTRACE] {
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
            #[cfg(feature = "kernel-log")]
            log,
        };
        let traced = types.as_ref().filter(|_| parsed.is_ok() && reads_memory);
        load_ahead(&mut kernel.ebpf, traced);
        let behind = kernel.attach_cgroup(options.cgroup.as_deref())?;
        kernel.attach_tracing(traced);
        kernel.miss_rewritten(&behind);
        drop((parsed, types));
        drop(vmlinux);
        give_back_memory();
        Ok((kernel, Decoder::new(reasons, symbols)))
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
        let itself = |right: &Right| match right.held() {
            Some(Held::ThroughAdmin) => Capability::CAP_SYS_ADMIN,
            _ => right.capability,
        };
        let mut own = Vec::new();
        if follows {
            own.push(itself(&rights::NET_ADMIN));
        }
        // Where BPF is switched off for users, older kernels refuse them to read maps as well.
        if KernelVersion::current().is_ok_and(|running| running < MAPS_FOR_ALL) {
            own.push(itself(&rights::BPF));
        }
        let clsact = self.uplinks.values().any(|uplink| uplink.filters.is_some());
        let elsewhere = if clsact {
            vec![Capability::CAP_NET_ADMIN]
        } else {
            Vec::new()
        };
        (own, elsewhere)
    }

    /// Other tools' programs at `connect4` and `connect6`, each with whether ours runs before it.
    fn attach_cgroup(&mut self, wanted: Option<&Path>) -> Result<Vec<(Occupant, bool)>, KernelError> {
        let path = match wanted {
            Some(path) => path.to_path_buf(),
            None => cgroup2_mount().ok_or(KernelError::NoCgroup2)?,
        };
        let target = path.display().to_string();
        let cgroup = File::open(&path).map_err(|source| KernelError::Cgroup {
            path: target.clone(),
            source,
        })?;
        // Ingress first: an answer must not be missed because its request was seen a moment before.
        for (hook, direction, kind) in [
            ("segment_ingress", CgroupSkbAttachType::Ingress, CgroupHook::Ingress),
            ("segment_egress", CgroupSkbAttachType::Egress, CgroupHook::Egress),
        ] {
            self.loaded::<CgroupSkb>(hook, None)
                .and_then(|program| program.attach(&cgroup, direction, CgroupAttachMode::Single))
                .map_err(|error| cgroup_error(hook, &path, kind, &error))?;
            self.note(hook, "cgroup", &target);
        }
        let mut others: Vec<_> = others_at_connect(&path, cgroup2_mount().as_deref())
            .into_iter()
            .map(|other| (other, false))
            .collect();
        for (hook, kind) in [("connect4", CgroupHook::Connect4), ("connect6", CgroupHook::Connect6)] {
            let first = self
                .loaded::<CgroupSockAddr>(hook, None)
                .and_then(|program| Ok(attach_first(program.fd()?.as_fd(), cgroup.as_fd(), kind).ok()));
            let result = match first {
                Ok(Some(link)) => {
                    self.first.push(link);
                    for (other, is_behind) in &mut others {
                        *is_behind |= other.hook == hook;
                    }
                    Ok(())
                }
                _ => self
                    .loaded::<CgroupSockAddr>(hook, None)
                    .and_then(|program| program.attach(&cgroup, CgroupAttachMode::Single))
                    .map(drop),
            };
            self.settle(
                hook,
                "cgroup",
                &target,
                result.map_err(|error| cgroup_why(&path, kind, &error)),
                "connection attempts that fail before a packet is sent, and their processes",
            );
        }
        let hook = "connect_tuple";
        let result = self
            .loaded::<SockOps>(hook, None)
            .and_then(|program| program.attach(&cgroup, CgroupAttachMode::Single));
        self.settle(
            hook,
            "cgroup",
            &target,
            result.map_err(|error| cgroup_why(&path, CgroupHook::SockOps, &error)),
            "the process whose packets an OUTPUT firewall rule drops",
        );
        Ok(others)
    }

    /// A program that runs before ours at `connect4` or `connect6` may have rewritten the address by then. What one behind ours has made of it
    /// is seen right before the SYN.
    fn miss_rewritten(&mut self, others: &[(Occupant, bool)]) {
        let sees_more = self.attached.iter().any(|attached| attached.hook == "connect-tuple");
        for hook in ["connect4", "connect6"] {
            let unseen: Vec<_> = others
                .iter()
                .filter(|(other, is_behind)| other.hook == hook && !(*is_behind && sees_more))
                .map(|(other, _)| other)
                .collect();
            if !unseen.is_empty() {
                self.missing.push(Missing {
                    capability: format!("{hook}-before-others"),
                    why: format!("{} may rewrite a connection's address", listed(&unseen)),
                    blinds:
                        "clients whose connection it sends to another address: no packet of theirs has an endpoint's"
                            .into(),
                });
            }
        }
    }

    fn attach_tracing(&mut self, types: Option<&aya::Btf>) {
        self.attach_connect_returned(types);
        let Some(types) = types else { return };
        let hook = "drop_btf";
        let result = self
            .loaded::<BtfTracePoint>(hook, Some(types))
            .and_then(BtfTracePoint::attach);
        if result.is_ok() {
            self.note(hook, "tp_btf", "kfree_skb");
        } else {
            tracing::debug!("kfree_skb over tp_btf: {:?}", result.err());
            let hook = "drop_raw";
            let result = self
                .loaded::<RawTracePoint>(hook, None)
                .and_then(|program| program.attach("kfree_skb"));
            self.settle(
                hook,
                "raw_tp",
                "kfree_skb",
                result.map_err(|error| explain(&error)),
                "packets that this kernel drops, and drop reasons",
            );
        }
        let hook = "socket_state_btf";
        let result = self
            .loaded::<BtfTracePoint>(hook, Some(types))
            .and_then(BtfTracePoint::attach);
        let states = result.is_ok();
        if states {
            self.note("socket_state", "tp_btf", "inet_sock_set_state");
        } else {
            tracing::debug!("inet_sock_set_state over tp_btf: {:?}", result.err());
        }
        for (hook, tracepoint, blinds) in [
            (
                "socket_state",
                "inet_sock_set_state",
                "clients that abandon a connection without sending a packet",
            ),
            (
                "socket_error",
                "inet_sk_error_report",
                "socket errors that no packet reports",
            ),
        ] {
            if states && hook == "socket_state" {
                continue;
            }
            let result = self
                .loaded::<RawTracePoint>(hook, None)
                .and_then(|program| program.attach(tracepoint));
            self.settle(
                hook,
                "raw_tp",
                tracepoint,
                result.map_err(|error| explain(&error)),
                blinds,
            );
        }
    }

    /// Three ways, the cheapest first. The function behind `connect()` costs nobody else anything, but needs BTF and, on arm64,
    /// 6.4. The tracepoint of that one call is refused by Debian's kernels to all but CAP_SYS_ADMIN. The raw tracepoint of all
    /// calls takes neither. Both tracepoints make every call of every process return the slow way.
    fn attach_connect_returned(&mut self, types: Option<&aya::Btf>) {
        let hook = "connect_returned";
        let (function, event, every) = (CONNECT, "syscalls/sys_exit_connect", "sys_exit");
        let exit = match types {
            Some(_) => self
                .loaded::<FExit>("connect_exit", types)
                .and_then(FExit::attach)
                .map_err(|error| explain(&error)),
            None => Err("needs BTF".to_owned()),
        };
        let Err(exit) = exit else {
            return self.note(hook, "fexit", function);
        };
        tracing::debug!("fexit {function}: {exit}");
        let traced = self
            .loaded::<TracePoint>(hook, None)
            .and_then(|program| program.attach("syscalls", "sys_exit_connect"));
        let Err(refused) = traced.map_err(|error| tracepoint_why(&error)) else {
            return self.note(hook, "tracepoint", event);
        };
        tracing::debug!("tracepoint {event}: {refused}");
        let raw = self
            .loaded::<RawTracePoint>("any_call_returned", None)
            .and_then(|program| program.attach(every));
        match raw {
            Ok(_) => self.note(hook, "raw_tp", every),
            Err(error) => self.settle::<()>(
                hook,
                "fexit",
                function,
                Err(format!(
                    "{exit}; tracepoint {event}: {refused}; raw_tp {every}: {}",
                    explain(&error)
                )),
                "the error that connect() returned",
            ),
        }
    }

    /// Attaches to an uplink of the current network namespace: tcx where the kernel has it (6.6), else clsact.
    /// Both directions or none: half of an uplink would report lost responses that were not.
    pub fn attach_uplink(&mut self, interface: &str) -> Result<(), KernelError> {
        let index = nix::net::if_::if_nametoindex(interface).map_err(|errno| KernelError::Attach {
            hook: "wire",
            target: interface.to_owned(),
            why: errno.desc().to_owned(),
            hint: "see `ip link` for the interfaces of this network namespace",
        })?;
        // An interface that was replaced under its index has taken its filters along.
        self.detach_uplink(index);
        let mut uplink = AttachedUplink {
            name: Arc::from(interface),
            links: Vec::new(),
            filters: None,
        };
        let mut methods = Vec::new();
        for (hook, direction) in [
            ("wire_ingress", TcAttachType::Ingress),
            ("wire_egress", TcAttachType::Egress),
        ] {
            match self.attach_wire(hook, direction, &mut uplink) {
                Ok(method) => methods.push((hook, method)),
                Err(error) => {
                    self.detach(uplink);
                    return Err(attach_error(hook, interface, &error));
                }
            }
        }
        for (hook, method) in methods {
            self.note(hook, method, interface);
        }
        self.uplinks.insert(index, uplink);
        Ok(())
    }

    /// Loads what uplinks that come later will take: by then there is no right to load anything.
    pub fn prepare_uplinks(&mut self) -> Result<(), KernelError> {
        for hook in ["wire_ingress", "wire_egress"] {
            self.loaded::<SchedClassifier>(hook, None)
                .map_err(|error| attach_error(hook, "uplinks to come", &error))?;
        }
        Ok(())
    }

    fn attach_wire(
        &mut self,
        hook: &'static str,
        direction: TcAttachType,
        uplink: &mut AttachedUplink,
    ) -> Result<&'static str, ProgramError> {
        let program = self.loaded::<SchedClassifier>(hook, None)?;
        // First of all: another tool's program may consume the packet.
        let order = TcAttachOptions::TcxOrder(LinkOrder::first());
        match program.attach_with_options(&uplink.name, direction, order) {
            Ok(link) => {
                uplink.links.push((hook, link));
                return Ok("tcx");
            }
            Err(tcx) => tracing::debug!("{hook} at {} over tcx: {}", uplink.name, explain(&tcx)),
        }
        let filters = match &mut uplink.filters {
            Some(filters) => filters,
            none => none.insert(Filters::at(&uplink.name)?),
        };
        filters.attach(program, direction, hook)?;
        Ok("clsact")
    }

    /// An uplink has another name now.
    pub fn rename_uplink(&mut self, index: u32, name: &str) {
        let Some(uplink) = self.uplinks.get_mut(&index) else {
            return;
        };
        let before = std::mem::replace(&mut uplink.name, Arc::from(name));
        for attached in &mut self.attached {
            if attached.hook.starts_with("wire-") && attached.target == *before {
                name.clone_into(&mut attached.target);
            }
        }
    }

    /// Detaches from an uplink that no longer exists.
    pub fn detach_uplink(&mut self, index: u32) {
        let Some(uplink) = self.uplinks.remove(&index) else {
            return;
        };
        self.attached
            .retain(|attached| !(attached.hook.starts_with("wire-") && attached.target == *uplink.name));
        self.detach(uplink);
    }

    fn detach(&mut self, uplink: AttachedUplink) {
        for (hook, link) in uplink.links {
            let result = self
                .program::<SchedClassifier>(hook)
                .and_then(|program| program.detach(link));
            // With the interface its programs are gone as well.
            if let Err(error) = result {
                tracing::debug!("detach {hook}: {}", explain(&error));
            }
        }
    }

    /// Name of an uplink that was attached.
    pub fn uplink(&self, index: u32) -> Option<Arc<str>> {
        self.uplinks.get(&index).map(|uplink| Arc::clone(&uplink.name))
    }

    /// Uplinks that are attached.
    pub fn uplinks(&self) -> impl Iterator<Item = (u32, Arc<str>)> + '_ {
        self.uplinks
            .iter()
            .map(|(index, uplink)| (*index, Arc::clone(&uplink.name)))
    }

    /// Records that an uplink's traffic is not visible.
    pub fn miss_uplink(&mut self, why: String) {
        // Recorded for the `start` record; later failures are only logged.
        if self.missing.len() >= MAX_MISSING {
            return;
        }
        self.missing.push(Missing {
            capability: "wire".into(),
            why,
            blinds: "TTLs on arrival, lost responses and the packet quota".into(),
        });
    }

    /// A program that the verifier has let in, now or before. `types`: of this kernel, which those that trace its functions take.
    fn loaded<T>(&mut self, name: &'static str, types: Option<&aya::Btf>) -> Result<&mut T, ProgramError>
    where
        for<'a> &'a mut T: TryFrom<&'a mut Program, Error = ProgramError>,
    {
        if let Some(program) = self.ebpf.program_mut(name)
            && program.fd().is_err()
        {
            load(name, program, types)?;
        }
        self.program(name)
    }

    fn program<T>(&mut self, name: &'static str) -> Result<&mut T, ProgramError>
    where
        for<'a> &'a mut T: TryFrom<&'a mut Program, Error = ProgramError>,
    {
        self.ebpf
            .program_mut(name)
            .ok_or(ProgramError::UnexpectedProgramType)
            .and_then(TryInto::try_into)
    }

    fn note(&mut self, hook: &str, method: &str, target: &str) {
        let hook = hook.replace('_', "-");
        self.attached.push(Attached {
            hook,
            method: method.to_owned(),
            target: target.to_owned(),
        });
    }

    fn settle<T>(&mut self, hook: &str, method: &str, target: &str, result: Result<T, String>, blinds: &str) {
        match result {
            Ok(_) => self.note(hook, method, target),
            Err(why) => self.missing.push(Missing {
                capability: hook.replace('_', "-"),
                why: format!("{method} {target}: {why}"),
                blinds: blinds.to_owned(),
            }),
        }
    }

    /// The next event wakes who waits for [`Self::ring_fd`]. Without this only one by which the ring is a quarter full does: who reads
    /// again soon need not be woken, and waking costs those who are observed. What came before the call must be looked for after it.
    pub fn ask_to_be_woken(&mut self) -> Result<(), KernelError> {
        self.sleeping.set(0, 1, 0).map_err(|source| KernelError::Map {
            name: "SLEEPING",
            source,
        })
    }

    /// For epoll(7), edge-triggered: it is readable whenever events wait, and only its edges tell of being woken.
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

fn endpoints(addresses: &[IpAddr]) -> Result<Endpoints, KernelError> {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for address in addresses {
        match address {
            IpAddr::V4(address) => v4.push(address.octets()),
            IpAddr::V6(address) => v6.push(address.octets()),
        }
    }
    let (v4, v4_count, v4_far_count) = slots(v4, &[169, 254], "IPv4")?;
    let (v6, v6_count, v6_far_count) = slots(v6, &[0xfd, 0, 0x0e, 0xc2], "IPv6")?;
    Ok(Endpoints {
        v4,
        v6,
        v4_count,
        v6_count,
        v4_far_count,
        v6_far_count,
    })
}

/// Those beyond the range with this prefix first, how many there are, and how many of them are beyond.
fn slots<T: AsRef<[u8]> + Copy + Default>(
    mut addresses: Vec<T>,
    near: &[u8],
    family: &'static str,
) -> Result<([T; MAX_ENDPOINTS], u32, u32), KernelError> {
    if addresses.len() > MAX_ENDPOINTS {
        return Err(KernelError::TooManyEndpoints { family });
    }
    let is_near = |address: &T| address.as_ref().starts_with(near);
    addresses.sort_by_key(is_near);
    let far = addresses.iter().filter(|address| !is_near(address)).count();
    let first = addresses.first().copied().unwrap_or_default();
    Ok((
        std::array::from_fn(|index| addresses.get(index).copied().unwrap_or(first)),
        addresses.len() as u32,
        far as u32,
    ))
}

/// Programs of first choice, those first that the verifier takes longest for.
const AHEAD: [&str; 11] = [
    "connect6",
    "connect4",
    "segment_egress",
    "wire_ingress",
    "wire_egress",
    "segment_ingress",
    "connect_exit",
    "drop_btf",
    "socket_state_btf",
    "socket_error",
    "connect_tuple",
];

/// Lets the verifier look at several programs at once: that is most of the time that starting takes. What it refuses is tried again, and
/// told, where it would be attached.
fn load_ahead(ebpf: &mut Ebpf, types: Option<&aya::Btf>) {
    let mut programs: Vec<(usize, &mut Program)> = ebpf
        .programs_mut()
        .filter_map(|(name, program)| Some((AHEAD.iter().position(|ahead| *ahead == name)?, program)))
        .collect();
    programs.sort_by_key(|(place, _)| *place);
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let programs = Mutex::new(programs.into_iter());
    let next = || programs.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        while let Some((place, program)) = next() {
            if let Err(error) = load(AHEAD[place], program, types) {
                tracing::debug!("load {} ahead: {}", AHEAD[place], explain(&error));
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..processors.min(MOST_AT_ONCE) {
            scope.spawn(work);
        }
        work();
    });
}

/// Programs that are looked at at once: the longest takes a third of the whole.
const MOST_AT_ONCE: usize = 4;

/// The kernel's function behind `connect()`.
const CONNECT: &str = "inet_stream_connect";

/// Hands a program to the verifier.
fn load(name: &str, program: &mut Program, types: Option<&aya::Btf>) -> Result<(), ProgramError> {
    match program {
        Program::CgroupSkb(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        Program::RawTracePoint(program) => program.load(),
        Program::TracePoint(program) => program.load(),
        Program::BtfTracePoint(program) => program.load(traced(name), types.ok_or(ProgramError::NotLoaded)?),
        Program::FExit(program) => program.load(traced(name), types.ok_or(ProgramError::NotLoaded)?),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// The tracepoint or kernel function that a program traces by its type.
fn traced(name: &str) -> &'static str {
    match name {
        "connect_exit" => CONNECT,
        "drop_btf" => "kfree_skb",
        _ => "inet_sock_set_state",
    }
}

/// Parsing this kernel's types took tens of megabytes for a moment. They are free now, but the allocator keeps them unless asked.
fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers; may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Kernels before 5.11 charge maps against this limit. If it can't be raised, loading fails with its name.
fn raise_locked_memory() {
    use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
    if setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY).is_err()
        && let Ok((_, hard)) = getrlimit(Resource::RLIMIT_MEMLOCK)
    {
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard);
    }
}

fn attach_error(hook: &'static str, target: &str, error: &ProgramError) -> KernelError {
    KernelError::Attach {
        hook,
        target: target.to_owned(),
        why: explain(error),
        hint: rights_hint(),
    }
}

/// Reason for a refusal at a cgroup: EPERM is a lack of rights, or another tool that keeps it to itself.
fn cgroup_why(cgroup: &Path, hook: CgroupHook, error: &ProgramError) -> String {
    let why = explain(error);
    if errno(error) == Some(libc::EPERM)
        && let Some(holder) = exclusive_holder(cgroup, hook)
    {
        return format!("{why}: {holder}");
    }
    why
}

fn cgroup_error(hook: &'static str, cgroup: &Path, kind: CgroupHook, error: &ProgramError) -> KernelError {
    let why = cgroup_why(cgroup, kind, error);
    let hint = if why.ends_with("exclusively") {
        "have that tool attach with BPF_F_ALLOW_MULTI, or name a cgroup beside it with --cgroup"
    } else {
        rights_hint()
    };
    KernelError::Attach {
        hook,
        target: cgroup.display().to_string(),
        why,
        hint,
    }
}

/// Reasons for which a tracepoint is refused though the program was loaded.
fn tracepoint_why(error: &ProgramError) -> String {
    let why = explain(error);
    match errno(error) {
        Some(libc::EACCES | libc::EPERM) => {
            let paranoid = std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap_or_default();
            format!(
                "{why} (kernel.perf_event_paranoid is {}: above 2, Debian's kernels give tracepoints to CAP_SYS_ADMIN only)",
                paranoid.trim()
            )
        }
        Some(libc::ENOENT) => format!("{why} (is tracefs mounted? mount -t tracefs tracefs /sys/kernel/tracing)"),
        _ => why,
    }
}

/// The system's error at the end of a chain.
fn errno(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut cause = Some(error);
    let mut found = None;
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            found = io.raw_os_error().or(found);
        }
        cause = error.source();
    }
    found
}

/// Up to 5.10 the kernel counts maps and programs as locked memory and says EPERM, as it does for a lack of rights.
fn load_error(error: aya::EbpfError) -> KernelError {
    use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
    if errno(&error) == Some(libc::EPERM)
        && KernelVersion::current().is_ok_and(|running| running < KernelVersion::new(5, 11, 0))
        && let Ok((soft, _)) = getrlimit(Resource::RLIMIT_MEMLOCK)
        && soft != RLIM_INFINITY
    {
        return KernelError::LockedMemory { kib: soft >> 10 };
    }
    if matches!(errno(&error), Some(libc::EPERM | libc::EACCES)) && rights::BPF.held() == Some(Held::No) {
        return KernelError::Right("CAP_BPF");
    }
    KernelError::Load(error)
}

/// The verifier's last words, enough to see what it was about.
const LOG_LINES: usize = 80;

/// The whole chain, in one line. A verifier log is cut: it is of use in a bug report, not in a log.
fn explain(error: &(dyn std::error::Error + 'static)) -> String {
    if let Some(ProgramError::LoadError { io_error, verifier_log }) = error.downcast_ref() {
        let log = verifier_log.to_string();
        let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
        tracing::debug!(
            "verifier: {}",
            lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
        );
        // Behind the reason come statistics.
        let last = lines
            .iter()
            .rfind(|line| {
                !["processed ", "stack depth ", "verification time "]
                    .iter()
                    .any(|statistics| line.starts_with(statistics))
            })
            .copied()
            .unwrap_or_default();
        return format!("the kernel refused the program: {io_error} {last}");
    }
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use object::{Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget};

    use imds_observer_common::MAX_ENDPOINTS;

    use super::{OBJECT, endpoints};

    #[test]
    fn endpoints_beyond_the_usual_ranges_stand_first() {
        let addresses =
            ["169.254.169.254", "10.0.0.1", "fd00:ec2::254", "169.254.1.1"].map(|text| text.parse().unwrap());
        let found = endpoints(&addresses).unwrap();
        assert_eq!((found.v4_count, found.v4_far_count), (3, 1));
        assert_eq!(found.v4[0], [10, 0, 0, 1]);
        assert_eq!(found.v4[1], [169, 254, 169, 254]);
        assert_eq!((found.v6_count, found.v6_far_count), (1, 0));
        assert_eq!(found.v6[3], found.v6[0]);
        let many = ["10.0.0.1"; MAX_ENDPOINTS + 1].map(|text| text.parse().unwrap());
        assert!(endpoints(&many).is_err());
    }

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
