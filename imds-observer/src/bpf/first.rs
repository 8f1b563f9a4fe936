//! Attaching to a cgroup before the programs of other tools: what they rewrite is then seen as it was.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use super::occupied::CgroupHook;

const BPF_LINK_CREATE: libc::c_long = 28;
/// Before the programs of the same cgroup (6.17).
const BPF_F_BEFORE: u32 = 1 << 3;
/// Before those of the cgroups below (6.15), which otherwise run first.
const BPF_F_PREORDER: u32 = 1 << 6;

/// `union bpf_attr` for `BPF_LINK_CREATE`, as far as it is used.
#[repr(C)]
struct LinkCreate {
    program: u32,
    cgroup: u32,
    attach_type: u32,
    flags: u32,
    /// None: before all.
    relative: u32,
    padding: u32,
    expected_revision: u64,
}

/// Attaches before all other programs of this cgroup, those above and those below. An error: this kernel can't, or refuses to attach at all.
/// The program is attached for as long as the descriptor is open.
pub(super) fn attach_first(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, hook: CgroupHook) -> io::Result<OwnedFd> {
    let attributes = LinkCreate {
        program: program.as_raw_fd() as u32,
        cgroup: cgroup.as_raw_fd() as u32,
        attach_type: hook as u32,
        flags: BPF_F_BEFORE | BPF_F_PREORDER,
        relative: 0,
        padding: 0,
        expected_revision: 0,
    };
    // SAFETY: the attributes are a prefix of `union bpf_attr` and outlive the call; kernels that know less of it refuse what isn't zero.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_LINK_CREATE,
            std::ptr::from_ref(&attributes),
            size_of::<LinkCreate>(),
        )
    };
    let descriptor = nix::errno::Errno::result(result)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as i32) })
}
