//! Loads the programs, attaches them, and says what could not be had and what that blinds.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use aya::maps::{MapData, PerCpuArray, PerCpuHashMap, RingBuf};
use aya::programs::links::LinkOrder;
use aya::programs::tc::{NlOptions, SchedClassifierLinkId, TcAttachOptions, qdisc_add_clsact};
use aya::programs::{
    BtfTracePoint, CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSockAddr, ProgramError, RawTracePoint,
    SchedClassifier, SockOps, TcAttachType, TracePoint,
};
use aya::{Ebpf, EbpfLoader};
use imds_observer_common::{Endpoints, InterfaceCounters, KernelOffsets, LossCounters, MAX_ENDPOINTS};
use thiserror::Error;
use zerocopy::IntoBytes as _;

use super::LiveOptions;
use super::attach::cgroup2_mount;
use super::btf::Btf;
use super::decode::Decoder;
use super::offsets::{drop_reasons, kernel_offsets};
use super::symbols::Symbols;
use crate::record::{Attached, Missing};

/// The object that build.rs made. Aligned: aya reads ELF structs in place.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/imds-observer-ebpf"));

/// Why the observer can't start.
#[derive(Debug, Error)]
pub enum KernelError {
    #[error("this build has no eBPF object: build with `cargo xtask build`")]
    NoObject,
    #[error(
        "no cgroup v2 hierarchy is mounted: mount one with `mount -t cgroup2 none /mnt/cgroup2` and name it with --cgroup"
    )]
    NoCgroup2,
    #[error("open cgroup {path}: {source}")]
    Cgroup { path: String, source: io::Error },
    #[error("{family} endpoints: at most {MAX_ENDPOINTS} can be watched")]
    TooManyEndpoints { family: &'static str },
    #[error("load the eBPF object: {0}")]
    Load(#[from] aya::EbpfError),
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
    loss: PerCpuArray<MapData, [u64; size_of::<LossCounters>() / 8]>,
    interfaces: PerCpuHashMap<MapData, u32, [u64; size_of::<InterfaceCounters>() / 8]>,
    attached: Vec<Attached>,
    missing: Vec<Missing>,
    uplinks: HashMap<u32, AttachedUplink>,
}

struct AttachedUplink {
    /// Kept: the reader's thread may be in another network namespace later.
    name: Arc<str>,
    links: Vec<(&'static str, SchedClassifierLinkId)>,
}

/// Rights that all of this needs, for error lines.
const RIGHTS: &str = "needs root, or CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN";

impl Kernel {
    /// Loads and attaches all but the uplinks' programs, which [`Self::attach_uplink`] adds.
    pub fn load(options: &LiveOptions) -> Result<(Self, Decoder), KernelError> {
        if OBJECT.is_empty() {
            return Err(KernelError::NoObject);
        }
        raise_locked_memory();
        let mut missing = Vec::new();
        let vmlinux = std::fs::read("/sys/kernel/btf/vmlinux");
        let parsed = vmlinux
            .as_ref()
            .map_err(ToString::to_string)
            .and_then(|bytes| Btf::parse(bytes).map_err(|error| error.to_string()));
        let (offsets, reasons) = match &parsed {
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
                blinds: "why a packet was dropped; where is still told".into(),
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
        let mut loader = EbpfLoader::new();
        loader
            .override_global("ENDPOINTS", endpoints.as_bytes(), true)
            .override_global("OFFSETS", offsets.as_bytes(), true);
        if let Some(bytes) = options.ring_bytes {
            loader.map_max_entries("EVENTS", bytes);
        }
        let mut ebpf = loader.load(OBJECT)?;
        let ring = RingBuf::try_from(take_map(&mut ebpf, "EVENTS")?)
            .map_err(|source| KernelError::Map { name: "EVENTS", source })?;
        let loss = PerCpuArray::try_from(take_map(&mut ebpf, "LOSS")?)
            .map_err(|source| KernelError::Map { name: "LOSS", source })?;
        let interfaces =
            PerCpuHashMap::try_from(take_map(&mut ebpf, "INTERFACES")?).map_err(|source| KernelError::Map {
                name: "INTERFACES",
                source,
            })?;
        let mut kernel = Self {
            ebpf,
            ring,
            loss,
            interfaces,
            attached: Vec::new(),
            missing,
            uplinks: HashMap::new(),
        };
        kernel.attach_cgroup(options.cgroup.as_deref())?;
        kernel.attach_tracing(parsed.is_ok());
        drop(parsed);
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

    fn attach_cgroup(&mut self, wanted: Option<&Path>) -> Result<(), KernelError> {
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
        for (hook, direction) in [
            ("segment_ingress", CgroupSkbAttachType::Ingress),
            ("segment_egress", CgroupSkbAttachType::Egress),
        ] {
            self.program::<CgroupSkb>(hook)
                .and_then(|program| {
                    program.load()?;
                    program.attach(&cgroup, direction, CgroupAttachMode::Single)
                })
                .map_err(|error| attach_error(hook, &target, &error))?;
            self.note(hook, "cgroup", &target);
        }
        for hook in ["connect4", "connect6"] {
            let result = self.program::<CgroupSockAddr>(hook).and_then(|program| {
                program.load()?;
                program.attach(&cgroup, CgroupAttachMode::Single)
            });
            self.settle(
                hook,
                "cgroup",
                &target,
                result,
                "attempts that fail before a packet leaves, and who made them",
            );
        }
        let hook = "connect_tuple";
        let result = self.program::<SockOps>(hook).and_then(|program| {
            program.load()?;
            program.attach(&cgroup, CgroupAttachMode::Single)
        });
        self.settle(
            hook,
            "cgroup",
            &target,
            result,
            "which process's packets a firewall in OUTPUT drops",
        );
        Ok(())
    }

    fn attach_tracing(&mut self, have_btf: bool) {
        let hook = "connect_returned";
        let result = self.program::<TracePoint>(hook).and_then(|program| {
            program.load()?;
            program.attach("syscalls", "sys_exit_connect")
        });
        self.settle(
            hook,
            "tracepoint",
            "syscalls/sys_exit_connect",
            result,
            "the error that connect() returned",
        );
        if !have_btf {
            return;
        }
        let hook = "drop_btf";
        let result = aya::Btf::from_sys_fs().map_err(ProgramError::Btf).and_then(|btf| {
            let program = self.program::<BtfTracePoint>(hook)?;
            program.load("kfree_skb", &btf)?;
            program.attach()
        });
        if result.is_ok() {
            self.note(hook, "tp_btf", "kfree_skb");
        } else {
            tracing::debug!("kfree_skb over tp_btf: {:?}", result.err());
            let hook = "drop_raw";
            let result = self.program::<RawTracePoint>(hook).and_then(|program| {
                program.load()?;
                program.attach("kfree_skb")
            });
            self.settle(
                hook,
                "raw_tp",
                "kfree_skb",
                result,
                "packets that this kernel drops, and why",
            );
        }
        for (hook, tracepoint, blinds) in [
            (
                "socket_state",
                "inet_sock_set_state",
                "clients that give up without a packet",
            ),
            (
                "socket_error",
                "inet_sk_error_report",
                "errors that reach a socket without a packet to it",
            ),
        ] {
            let result = self.program::<RawTracePoint>(hook).and_then(|program| {
                program.load()?;
                program.attach(tracepoint)
            });
            self.settle(hook, "raw_tp", tracepoint, result, blinds);
        }
    }

    /// Attaches to an uplink of the current network namespace: tcx where the kernel has it (6.6), else clsact.
    /// Both directions or none.
    pub fn attach_uplink(&mut self, interface: &str) -> Result<(), KernelError> {
        let index = nix::net::if_::if_nametoindex(interface).map_err(|errno| KernelError::Attach {
            hook: "wire",
            target: interface.to_owned(),
            why: errno.desc().to_owned(),
            hint: "see `ip link` for the interfaces of this network namespace",
        })?;
        let mut links = Vec::new();
        let mut methods = Vec::new();
        for (hook, direction) in [
            ("wire_ingress", TcAttachType::Ingress),
            ("wire_egress", TcAttachType::Egress),
        ] {
            match self.attach_wire(hook, interface, direction) {
                Ok((link, method)) => {
                    links.push((hook, link));
                    methods.push((hook, method));
                }
                Err(error) => {
                    self.detach(links);
                    return Err(attach_error(hook, interface, &error));
                }
            }
        }
        for (hook, method) in methods {
            self.note(hook, method, interface);
        }
        let name = Arc::from(interface);
        if let Some(before) = self.uplinks.insert(index, AttachedUplink { name, links }) {
            self.detach(before.links);
        }
        Ok(())
    }

    fn attach_wire(
        &mut self,
        hook: &'static str,
        interface: &str,
        direction: TcAttachType,
    ) -> Result<(SchedClassifierLinkId, &'static str), ProgramError> {
        let program = self.program::<SchedClassifier>(hook)?;
        if program.fd().is_err() {
            program.load()?;
        }
        // First of all: another tool's program may consume the packet.
        let order = TcAttachOptions::TcxOrder(LinkOrder::first());
        match program.attach_with_options(interface, direction, order) {
            Ok(link) => Ok((link, "tcx")),
            Err(tcx) => {
                tracing::debug!("{hook} at {interface} over tcx: {tcx:?}");
                // Exists: fine.
                let _ = qdisc_add_clsact(interface);
                let options = TcAttachOptions::Netlink(NlOptions {
                    priority: 1,
                    ..NlOptions::default()
                });
                let link = program.attach_with_options(interface, direction, options)?;
                Ok((link, "clsact"))
            }
        }
    }

    /// Lets go of an uplink that is no more.
    pub fn detach_uplink(&mut self, index: u32) {
        let Some(uplink) = self.uplinks.remove(&index) else {
            return;
        };
        self.attached
            .retain(|attached| !(attached.hook.starts_with("wire-") && attached.target == *uplink.name));
        self.detach(uplink.links);
    }

    fn detach(&mut self, links: Vec<(&'static str, SchedClassifierLinkId)>) {
        for (hook, link) in links {
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

    /// Says that an uplink's traffic can't be seen.
    pub fn miss_uplink(&mut self, why: String) {
        self.missing.push(Missing {
            capability: "wire".into(),
            why,
            blinds: "TTLs on arrival, lost responses, and the packet quota".into(),
        });
    }

    fn program<T>(&mut self, name: &'static str) -> Result<&mut T, ProgramError>
    where
        for<'a> &'a mut T: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
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

    fn settle<T>(&mut self, hook: &str, method: &str, target: &str, result: Result<T, ProgramError>, blinds: &str) {
        match result {
            Ok(_) => self.note(hook, method, target),
            Err(error) => self.missing.push(Missing {
                capability: hook.replace('_', "-"),
                why: format!("{method} {target}: {}", explain(&error)),
                blinds: blinds.to_owned(),
            }),
        }
    }

    /// For poll(2): readable when events wait.
    pub fn ring_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor lives as long as the ring, which lives as long as self.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
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
    let v4: Vec<_> = addresses
        .iter()
        .filter_map(|address| {
            if let IpAddr::V4(v4) = address {
                Some(v4.octets())
            } else {
                None
            }
        })
        .collect();
    let v6: Vec<_> = addresses
        .iter()
        .filter_map(|address| {
            if let IpAddr::V6(v6) = address {
                Some(v6.octets())
            } else {
                None
            }
        })
        .collect();
    let slots = |len: usize, family| {
        if len > MAX_ENDPOINTS {
            Err(KernelError::TooManyEndpoints { family })
        } else {
            Ok(len as u32)
        }
    };
    let (v4_count, v6_count) = (slots(v4.len(), "IPv4")?, slots(v6.len(), "IPv6")?);
    let first_v4 = v4.first().copied().unwrap_or_default();
    let first_v6 = v6.first().copied().unwrap_or_default();
    Ok(Endpoints {
        v4: std::array::from_fn(|index| v4.get(index).copied().unwrap_or(first_v4)),
        v6: std::array::from_fn(|index| v6.get(index).copied().unwrap_or(first_v6)),
        v4_count,
        v6_count,
    })
}

/// Parsing this kernel's types took tens of megabytes for a moment. They are free now, but the allocator keeps them unless asked.
fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers; may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Kernels before 5.11 charge maps against this limit. Where it can't be raised, loading says so.
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
        hint: RIGHTS,
    }
}

/// The whole chain, in one line. A verifier log is cut: it is of use in a bug report, not in a log.
fn explain(error: &ProgramError) -> String {
    if let ProgramError::LoadError { io_error, verifier_log } = error {
        let log = verifier_log.to_string();
        tracing::debug!("verifier: {log}");
        let last = log
            .lines()
            .rev()
            .filter(|line| !line.trim().is_empty())
            .nth(1)
            .unwrap_or_default()
            .to_owned();
        return format!("the kernel refused the program: {io_error} {last}");
    }
    let mut text = error.to_string();
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}
