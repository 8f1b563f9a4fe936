//! Which program of another tool keeps ours away from a cgroup?
//!
//! A program that was attached without `BPF_F_ALLOW_MULTI` has its cgroup, and unless it may be overridden all below, to
//! itself: attaching there gives EPERM, which looks like a lack of rights and is none.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::Path;

/// `enum bpf_attach_type`.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(super) enum CgroupHook {
    Ingress = 0,
    Egress = 1,
    SockOps = 3,
    Connect4 = 10,
    Connect6 = 11,
}

const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_F_ALLOW_OVERRIDE: u32 = 1;
const BPF_F_ALLOW_MULTI: u32 = 2;
/// Programs that are looked at; a cgroup holds 64 at most.
const MAX_PROGRAMS: usize = 64;

/// The part of `union bpf_attr` that `BPF_PROG_QUERY` has had from its beginning.
#[repr(C)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
}

/// Flags and ids of what is attached at a cgroup itself.
fn attached(cgroup: &File, hook: CgroupHook) -> Option<(u32, Vec<u32>)> {
    let mut ids = [0_u32; MAX_PROGRAMS];
    let mut query = Query {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_type: hook as u32,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: ids.len() as u32,
        padding: 0,
    };
    // SAFETY: the attributes and the array that they point to live through the call and have the stated sizes.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>()) };
    (result == 0).then(|| {
        let count = (query.prog_cnt as usize).min(ids.len());
        (query.attach_flags, ids[..count].to_vec())
    })
}

/// Names the program that has `cgroup` to itself at this hook. `None`: there is none, or the kernel doesn't tell us.
pub(super) fn exclusive_holder(cgroup: &Path, hook: CgroupHook) -> Option<String> {
    let tolerated = |own: bool| {
        if own {
            BPF_F_ALLOW_MULTI
        } else {
            BPF_F_ALLOW_MULTI | BPF_F_ALLOW_OVERRIDE
        }
    };
    cgroup.ancestors().enumerate().find_map(|(above, path)| {
        let (flags, ids) = attached(&File::open(path).ok()?, hook)?;
        if ids.is_empty() || flags & tolerated(above == 0) != 0 {
            return None;
        }
        let names: Vec<String> = ids.iter().map(|id| describe(*id)).collect();
        Some(format!("{} holds {} exclusively", names.join(", "), path.display()))
    })
}

/// A program by its id, and by its name where we may ask for it.
fn describe(id: u32) -> String {
    let name = aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .find(|program| program.id() == id)
        .and_then(|program| program.name_as_str().map(str::to_owned));
    match name {
        Some(name) if !name.is_empty() => format!("program {name:?} (id {id})"),
        _ => format!("another tool's program (id {id})"),
    }
}
