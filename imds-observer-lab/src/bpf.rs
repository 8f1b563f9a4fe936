//! The `bpf()` system call, as far as the lab needs it: for programs of a few instructions, and for the kernel's information about any
//! program.
//!
//! An object file and a loader would be more code than these programs.

pub mod least;

use std::cell::UnsafeCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

const BPF_MAP_CREATE: libc::c_long = 0;
pub(crate) const BPF_PROG_LOAD: libc::c_long = 5;
pub(crate) const BPF_OBJ_PIN: libc::c_long = 6;
pub(crate) const BPF_PROG_ATTACH: libc::c_long = 8;
pub(crate) const BPF_PROG_DETACH: libc::c_long = 9;
const BPF_PROG_GET_NEXT_ID: libc::c_long = 11;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_RAW_TRACEPOINT_OPEN: libc::c_long = 17;
pub(crate) const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_ENABLE_STATS: libc::c_long = 32;

pub(crate) const PROG_TYPE_SCHED_CLS: u32 = 3;
pub(crate) const PROG_TYPE_CGROUP_SKB: u32 = 8;
const PROG_TYPE_SOCK_OPS: u32 = 13;
const PROG_TYPE_RAW_TRACEPOINT: u32 = 17;
pub(crate) const PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
const PROG_TYPE_TRACING: u32 = 26;
pub(crate) const ATTACH_CGROUP_INET_INGRESS: u32 = 0;
pub(crate) const ATTACH_CGROUP_INET_EGRESS: u32 = 1;
const ATTACH_CGROUP_SOCK_OPS: u32 = 3;
pub(crate) const ATTACH_CGROUP_INET4_CONNECT: u32 = 10;
pub(crate) const ATTACH_CGROUP_INET6_CONNECT: u32 = 11;
const ATTACH_TRACE_RAW_TP: u32 = 23;
const ATTACH_TRACE_FEXIT: u32 = 25;
pub(crate) const ATTACH_TCX_INGRESS: u32 = 46;
pub(crate) const ATTACH_TCX_EGRESS: u32 = 47;

/// The first members of `union bpf_attr` for loading a program, up to the last one in use.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    attach_btf_id: u32,
}

#[repr(C)]
#[derive(Default)]
pub(crate) struct LinkAttributes {
    pub(crate) prog_fd: u32,
    /// Descriptor of a cgroup, or index of an interface.
    pub(crate) target: u32,
    pub(crate) attach_type: u32,
    pub(crate) flags: u32,
    pub(crate) relative: u32,
    pub(crate) reserved: u32,
    pub(crate) expected_revision: u64,
}

#[repr(C)]
#[derive(Default)]
pub(crate) struct PinAttributes {
    pub(crate) pathname: u64,
    pub(crate) bpf_fd: u32,
    pub(crate) file_flags: u32,
}

/// Members of `union bpf_attr` for attaching and detaching without a link.
#[repr(C)]
pub(crate) struct AttachAttributes {
    pub(crate) target_fd: u32,
    pub(crate) attach_bpf_fd: u32,
    pub(crate) attach_type: u32,
    pub(crate) attach_flags: u32,
}

pub(crate) fn call<T>(command: libc::c_long, attributes: &T) -> io::Result<i32> {
    // SAFETY: the attributes are a prefix of `union bpf_attr` and outlive the call; the kernel takes the rest as zero.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as i32)
}

/// Runs a command that creates a descriptor.
pub(crate) fn open<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    let fd = call(command, attributes)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(crate) fn immediate(value: i32) -> u64 {
    u64::from(value as u32) << 32
}

/// Loads a program. `type_id`: BTF type of the kernel to which a tracing program is attached; otherwise 0.
pub(crate) fn load(name: &str, kind: u32, attach: u32, type_id: u32, instructions: &[u64]) -> io::Result<OwnedFd> {
    let mut prog_name = [0; 16];
    for (to, from) in prog_name.iter_mut().zip(name.bytes().take(15)) {
        *to = from;
    }
    open(
        BPF_PROG_LOAD,
        &LoadAttributes {
            prog_type: kind,
            insn_cnt: instructions.len() as u32,
            insns: instructions.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            prog_name,
            expected_attach_type: attach,
            attach_btf_id: type_id,
            ..LoadAttributes::default()
        },
    )
}

/// Hook to which a program of a few instructions can be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    CgroupIngress,
    CgroupEgress,
    Connect4,
    SockOps,
    TcxIngress,
    TcxEgress,
    RawTracepoint(&'static str),
    /// Tracepoint of the kernel's BTF type with this number.
    BtfTracepoint(u32),
    /// Exit of the kernel's BTF function with this number.
    FunctionExit(u32),
}

/// A program whose runs are counted. It is detached on drop.
pub struct Measured {
    program: OwnedFd,
    _link: OwnedFd,
}

impl Measured {
    /// Attaches a program that only lets everything pass. Hooks use `cgroup` or `ifindex` as needed. For tcx hooks, call this on a thread
    /// in the interface's network namespace.
    pub fn empty(at: Hook, cgroup: BorrowedFd<'_>, ifindex: u32) -> io::Result<Self> {
        Self::attach("imdslab_empty", at, &[], cgroup, ifindex)
    }

    /// Attaches a program that runs `instructions` before it lets everything pass. At their begin, r1 points to the context.
    fn attach(name: &str, at: Hook, instructions: &[u64], cgroup: BorrowedFd<'_>, ifindex: u32) -> io::Result<Self> {
        let cgroup = cgroup.as_raw_fd() as u32;
        let (kind, attach, target, type_id, verdict) = match at {
            Hook::CgroupIngress => (PROG_TYPE_CGROUP_SKB, ATTACH_CGROUP_INET_INGRESS, cgroup, 0, 1),
            Hook::CgroupEgress => (PROG_TYPE_CGROUP_SKB, ATTACH_CGROUP_INET_EGRESS, cgroup, 0, 1),
            Hook::Connect4 => (PROG_TYPE_CGROUP_SOCK_ADDR, ATTACH_CGROUP_INET4_CONNECT, cgroup, 0, 1),
            Hook::SockOps => (PROG_TYPE_SOCK_OPS, ATTACH_CGROUP_SOCK_OPS, cgroup, 0, 1),
            Hook::TcxIngress => (PROG_TYPE_SCHED_CLS, ATTACH_TCX_INGRESS, ifindex, 0, -1),
            Hook::TcxEgress => (PROG_TYPE_SCHED_CLS, ATTACH_TCX_EGRESS, ifindex, 0, -1),
            Hook::RawTracepoint(_) => (PROG_TYPE_RAW_TRACEPOINT, 0, 0, 0, 0),
            Hook::BtfTracepoint(id) => (PROG_TYPE_TRACING, ATTACH_TRACE_RAW_TP, 0, id, 0),
            Hook::FunctionExit(id) => (PROG_TYPE_TRACING, ATTACH_TRACE_FEXIT, 0, id, 0),
        };
        let whole: Vec<u64> = instructions
            .iter()
            .copied()
            .chain([0xb7 | immediate(verdict), 0x95])
            .collect();
        let program = load(name, kind, attach, type_id, &whole)?;
        let link = match at {
            Hook::RawTracepoint(name) => Self::trace(&program, Some(name))?,
            Hook::BtfTracepoint(_) | Hook::FunctionExit(_) => Self::trace(&program, None)?,
            _ => open(
                BPF_LINK_CREATE,
                &LinkAttributes {
                    prog_fd: program.as_raw_fd() as u32,
                    target,
                    attach_type: attach,
                    ..LinkAttributes::default()
                },
            )?,
        };
        Ok(Self { program, _link: link })
    }

    fn trace(program: &OwnedFd, tracepoint: Option<&str>) -> io::Result<OwnedFd> {
        #[repr(C)]
        struct Attributes {
            name: u64,
            prog_fd: u32,
            reserved: u32,
        }
        let name = tracepoint.map(std::ffi::CString::new).transpose()?;
        open(
            BPF_RAW_TRACEPOINT_OPEN,
            &Attributes {
                name: name.as_ref().map_or(0, |name| name.as_ptr() as u64),
                prog_fd: program.as_raw_fd() as u32,
                reserved: 0,
            },
        )
    }

    pub fn runs(&self) -> io::Result<Runs> {
        info(&self.program).map(|info| info.runs())
    }
}

/// Number of runs of a program and their total time, while statistics are enabled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    pub ns: u64,
    pub count: u64,
}

impl Runs {
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            ns: self.ns.saturating_sub(before.ns),
            count: self.count.saturating_sub(before.count),
        }
    }

    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            ns: self.ns + other.ns,
            count: self.count + other.count,
        }
    }

    /// Nanoseconds per run, or `None` if the program never ran.
    pub fn ns_each(self) -> Option<f64> {
        (self.count > 0).then(|| self.ns as f64 / self.count as f64)
    }
}

/// Makes the kernel count runs and their time for as long as the descriptor is open. This affects the whole machine, but the kernel ends it
/// with this process.
pub fn count_runs() -> io::Result<OwnedFd> {
    // BPF_STATS_RUN_TIME
    open(BPF_ENABLE_STATS, &0_u32)
}

/// `struct bpf_prog_info` up to what is used.
#[repr(C)]
#[derive(Clone, Copy)]
struct ProgramInfo {
    before_id: u32,
    id: u32,
    before_name: [u64; 7],
    name: [u8; 16],
    between: [u64; 14],
    run_time_ns: u64,
    run_cnt: u64,
}

const _: () = assert!(std::mem::offset_of!(ProgramInfo, name) == 64);
const _: () = assert!(std::mem::offset_of!(ProgramInfo, run_time_ns) == 192);

impl ProgramInfo {
    fn runs(&self) -> Runs {
        Runs {
            ns: self.run_time_ns,
            count: self.run_cnt,
        }
    }
}

fn info(program: &OwnedFd) -> io::Result<ProgramInfo> {
    #[repr(C)]
    struct Attributes {
        bpf_fd: u32,
        info_len: u32,
        info: u64,
    }
    let mut info = ProgramInfo {
        before_id: 0,
        id: 0,
        before_name: [0; 7],
        name: [0; 16],
        between: [0; 14],
        run_time_ns: 0,
        run_cnt: 0,
    };
    call(
        BPF_OBJ_GET_INFO_BY_FD,
        &Attributes {
            bpf_fd: program.as_raw_fd() as u32,
            info_len: size_of::<ProgramInfo>() as u32,
            info: (&raw mut info) as u64,
        },
    )?;
    Ok(info)
}

/// Returns the descriptors of loaded programs by name: of those with one of these names and an ID above `after`.
pub fn programs(names: &[&str], after: u32) -> io::Result<BTreeMap<String, OwnedFd>> {
    let mut found = BTreeMap::new();
    let mut id = after;
    while let Some(next) = next_id(id)? {
        id = next;
        let program = match open(BPF_PROG_GET_FD_BY_ID, &[id, 0, 0]) {
            Ok(program) => program,
            // The program was unloaded between the two calls.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
            Err(error) => return Err(error),
        };
        let info = info(&program)?;
        let name: Vec<u8> = info.name.iter().copied().take_while(|byte| *byte != 0).collect();
        // The kernel keeps 15 bytes of a name.
        let known = names
            .iter()
            .find(|known| known.bytes().take(15).eq(name.iter().copied()));
        if let Some(known) = known {
            found.insert((*known).to_owned(), program);
        }
    }
    Ok(found)
}

/// The highest program ID in use, for [`programs`].
pub fn last_program() -> io::Result<u32> {
    let mut id = 0;
    while let Some(next) = next_id(id)? {
        id = next;
    }
    Ok(id)
}

fn next_id(id: u32) -> io::Result<Option<u32>> {
    // start_id, next_id, open_flags; the kernel writes the second.
    let attributes = UnsafeCell::new([id, 0, 0]);
    match call(BPF_PROG_GET_NEXT_ID, &attributes) {
        Ok(_) => Ok(Some(attributes.into_inner()[1])),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Number of runs and their time, of a program that [`programs`] found.
pub fn runs_of(program: &OwnedFd) -> io::Result<Runs> {
    info(program).map(|info| info.runs())
}
