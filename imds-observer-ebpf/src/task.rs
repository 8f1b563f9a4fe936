//! Identity of the current task, and its description, which is sent once per process image.
//!
//! Everything is read through offsets from this kernel's BTF. On 6.1, cgroup_skb, sock_ops and TC programs may not call the helpers that
//! return PID, comm and cgroup.

use aya_ebpf::helpers::{
    bpf_get_current_task, bpf_probe_read_kernel,
    generated::{bpf_get_current_task_btf, bpf_probe_read_kernel_str, bpf_probe_read_user},
};
use imds_observer_common::{
    Ancestor, CGROUP_BYTES, CMDLINE_BYTES, COMM_BYTES, EXE_BYTES, EventKind, MAX_ANCESTORS, ProcessEvent, ProcessKey,
};

use crate::config::{offset, reads_tasks_directly};
use crate::emit::{count, emit_bytes, header};
use crate::maps::{Announced, COMPONENT_BYTES, PROCESS_SCRATCH, PROCESSES};

/// Limit on dentries and mounts that are followed for one path.
const MAX_COMPONENTS: usize = 24;

/// The current task.
#[derive(Clone, Copy)]
pub(crate) struct Current {
    pub(crate) key: ProcessKey,
    pub(crate) tid: u32,
    /// Whether the task is a user-space process. A kernel thread has no memory map, and sends on behalf of others.
    pub(crate) is_user: bool,
}

#[inline(always)]
fn read<T>(base: u64, offset: usize) -> Option<T> {
    // SAFETY: bpf_probe_read_kernel takes any address and fails on bad ones.
    unsafe { bpf_probe_read_kernel((base as usize).wrapping_add(offset) as *const T) }.ok()
}

/// Whether the helpers below may be called. Without CAP_PERFMON, the kernel refuses even programs that contain these calls. User space then
/// sets no offsets, and the verifier removes the code that depends on this function.
#[inline(always)]
fn may_read() -> bool {
    offset!(task_group_leader).is_some()
}

#[inline(always)]
fn current_task() -> Option<u64> {
    if !may_read() {
        return None;
    }
    // SAFETY: no arguments.
    let task = unsafe { bpf_get_current_task() };
    (task != 0).then_some(task)
}

/// The current task for the fast paths. If the verifier knows the type of the task, reading a field is one load instead of a call. Such a
/// pointer must not be passed to the global functions below, which take plain numbers.
#[inline(always)]
fn typed_task() -> Option<u64> {
    if !may_read() {
        return None;
    }
    if reads_tasks_directly() {
        // SAFETY: no arguments.
        return Some(unsafe { bpf_get_current_task_btf() } as u64);
    }
    current_task()
}

/// A field of the current task, or of a struct that one of its fields points to.
#[inline(always)]
fn field<T: Copy>(base: u64, offset: usize) -> Option<T> {
    if reads_tasks_directly() {
        // SAFETY: the verifier knows the struct that `base` points to; a fault reads as 0.
        return Some(unsafe { (base as *const u8).wrapping_add(offset).cast::<T>().read_volatile() });
    }
    read(base, offset)
}

/// Identity of the current task, without its description. It is cheap enough for every request.
#[inline(always)]
pub(crate) fn current() -> Option<Current> {
    let leader_field = offset!(task_group_leader)?;
    let task = typed_task()?;
    let leader: u64 = field(task, leader_field)?;
    let key = ProcessKey {
        start_time_ns: field(leader, offset!(task_start_time)?)?,
        tgid: field(task, offset!(task_tgid)?)?,
        exec_id: offset!(task_self_exec_id)
            .and_then(|offset| field(leader, offset))
            .unwrap_or(0),
    };
    let tid: u32 = field(task, offset!(task_pid)?)?;
    let mm: u64 = field(task, offset!(task_mm)?)?;
    Some(Current {
        key,
        tid,
        is_user: mm != 0,
    })
}

/// Numbers of the current task's process and thread, in the form of `bpf_get_current_pid_tgid`.
#[inline(always)]
pub(crate) fn current_number() -> Option<u64> {
    let (tgid, pid) = (offset!(task_tgid)?, offset!(task_pid)?);
    let task = typed_task()?;
    let tgid: u32 = field(task, tgid)?;
    let pid: u32 = field(task, pid)?;
    Some((u64::from(tgid) << 32) | u64::from(pid))
}

/// Network namespace inode of the current task.
#[inline(always)]
pub(crate) fn current_netns() -> u32 {
    typed_task().and_then(netns_of_current).unwrap_or(0)
}

#[inline(always)]
fn netns_of_current(task: u64) -> Option<u32> {
    let nsproxy: u64 = field(task, offset!(task_nsproxy)?)?;
    let net: u64 = field(nsproxy, offset!(nsproxy_net_ns)?)?;
    field(net, offset!(net_ns_inum)?)
}

#[inline(always)]
fn netns_of_task(task: u64) -> Option<u32> {
    let nsproxy: u64 = read(task, offset!(task_nsproxy)?)?;
    netns(read(nsproxy, offset!(nsproxy_net_ns)?)?)
}

/// Inode of a `struct net`.
#[inline(always)]
pub(crate) fn netns(net: u64) -> Option<u32> {
    read(net, offset!(net_ns_inum)?)
}

/// The cgroups of the current task.
#[derive(Clone, Copy, Default)]
pub(crate) struct Cgroups {
    /// cgroup v2 id; 0: not known.
    pub(crate) id: u64,
    /// See [`imds_observer_common::Flow::cgroup_mark`].
    pub(crate) mark: u64,
}

#[inline(always)]
pub(crate) fn current_cgroups() -> Cgroups {
    let Some(task) = typed_task() else {
        return Cgroups::default();
    };
    let id = cgroup_id_of_current(task).unwrap_or(0);
    let v1 = cgroup_node_v1(task)
        .and_then(|node| read::<u64>(node, offset!(kernfs_node_id)?))
        .unwrap_or(0);
    Cgroups {
        id,
        mark: id.wrapping_add(v1.rotate_left(32)),
    }
}

#[inline(always)]
fn cgroup_id_of_current(task: u64) -> Option<u64> {
    let set: u64 = field(task, offset!(task_cgroups)?)?;
    let cgroup: u64 = field(set, offset!(css_set_dfl_cgrp)?)?;
    let node: u64 = field(cgroup, offset!(cgroup_kn)?)?;
    field(node, offset!(kernfs_node_id)?)
}

#[inline(always)]
fn cgroup_node(task: u64) -> Option<u64> {
    let set: u64 = read(task, offset!(task_cgroups)?)?;
    let cgroup: u64 = read(set, offset!(css_set_dfl_cgrp)?)?;
    read(cgroup, offset!(cgroup_kn)?)
}

/// The cgroup in the hierarchy of a v1 controller, in which runtimes on hybrid hosts put containers. `None` if there is no such hierarchy.
#[inline(always)]
fn cgroup_node_v1(task: u64) -> Option<u64> {
    let set: u64 = read(task, offset!(task_cgroups)?)?;
    let state: u64 = read(set, offset!(css_set_v1_subsys)?)?;
    let cgroup: u64 = read(state, offset!(css_cgroup)?)?;
    read(cgroup, offset!(cgroup_kn)?)
}

// The functions below are global functions in the verifier's sense (external symbols with scalar arguments). The verifier checks each of
// them once and separately, and its callers get an unknown scalar. If they were inlined, the loop over a path would have 3^24 paths.

/// Sends the description of the current process to user space, unless it has already been sent.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn announce(start_time_ns: u64, tgid_exec: u64, cgroup_mark: u64) -> u32 {
    let key = ProcessKey {
        start_time_ns,
        tgid: tgid_exec as u32,
        exec_id: (tgid_exec >> 32) as u32,
    };
    let announced = Announced { key, cgroup_mark };
    // SAFETY: only the presence of the value is checked.
    if unsafe { PROCESSES.get(announced) }.is_some() {
        return 0;
    }
    let Some(task) = current_task() else { return 0 };
    let Some(scratch) = PROCESS_SCRATCH.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: a per-CPU slot.
    let taken = unsafe { &raw mut (*scratch).taken };
    // A sender in softirq never announces, but on kernels that preempt tasks anywhere, this program may have interrupted another task in
    // this function. The current process is then announced with its next segment.
    // SAFETY: a field of a live value.
    if unsafe { taken.read_volatile() } != 0 {
        return 0;
    }
    // SAFETY: a field of a live value.
    unsafe { taken.write_volatile(1) };
    // SAFETY: a per-CPU slot that `taken` reserves until it is 0 again.
    let event = unsafe { &mut (*scratch).event };
    event.key = key;
    event.reserved = 0;
    describe(task, event);
    // The result is 0..=512, computed in a form that the verifiers of all kernels follow.
    let v1 = u64::from(event.cgroup_v1_len) & (2 * CGROUP_BYTES as u64 - 1);
    let size = size_of::<ProcessEvent>() as u64 + if v1 > CGROUP_BYTES as u64 { 0 } else { v1 };
    event.header = header(EventKind::Process, size as usize);
    if emit_bytes(scratch.cast(), size) && PROCESSES.insert(announced, 1, 0).is_err() {
        count(|loss| &mut loss.map_full);
    }
    // SAFETY: a field of a live value.
    unsafe { taken.write_volatile(0) };
    1
}

impl Current {
    #[inline(always)]
    pub(crate) fn announce(&self, cgroups: Cgroups) {
        announce(
            self.key.start_time_ns,
            u64::from(self.key.tgid) | (u64::from(self.key.exec_id) << 32),
            cgroups.mark,
        );
    }
}

#[inline(always)]
fn describe(task: u64, event: &mut ProcessEvent) {
    event.cgroup_id = cgroup_node(task)
        .and_then(|node| read(node, offset!(kernfs_node_id)?))
        .unwrap_or(0);
    event.uid = user(task).unwrap_or(u32::MAX);
    event.netns = netns_of_task(task).unwrap_or(0);
    event.namespace_pid = namespace_pid(task).unwrap_or(event.key.tgid);
    event.comm = leader_of(task).and_then(comm).unwrap_or([0; COMM_BYTES]);
    note_ancestors(task);
    // The arrays are filled in the order of their addresses: a component that exceeds its array is overwritten by the next array.
    event.exe_len = note_executable(task) as u16;
    command_line(task, event);
    let noted = cgroup_node(task).map_or(0, |node| note_cgroup(CGROUP, node));
    event.cgroup_len = noted as u16;
    event.cgroup_delegated = (noted >> 16) as u16;
    // User space decides which of the two paths names the container: on hybrid hosts, the v2 path may only show the service of a runtime.
    let noted = cgroup_node_v1(task).map_or(0, |node| note_cgroup(CGROUP_V1, node));
    event.cgroup_v1_len = noted as u16;
    event.cgroup_v1_delegated = (noted >> 16) as u16;
}

#[inline(always)]
fn leader_of(task: u64) -> Option<u64> {
    read(task, offset!(task_group_leader)?)
}

#[inline(always)]
fn comm(task: u64) -> Option<[u8; COMM_BYTES]> {
    read(task, offset!(task_comm)?)
}

#[inline(always)]
fn user(task: u64) -> Option<u32> {
    let cred: u64 = read(task, offset!(task_cred)?)?;
    read(cred, offset!(cred_euid)?)
}

#[inline(always)]
fn namespace_pid(task: u64) -> Option<u32> {
    let leader = leader_of(task)?;
    let pid: u64 = read(leader, offset!(task_thread_pid)?)?;
    let level: u32 = read(pid, offset!(pid_level)?)?;
    let upid = (level as usize & 31).wrapping_mul(offset!(upid_size)?);
    read(
        pid,
        offset!(pid_numbers)?.wrapping_add(upid).wrapping_add(offset!(upid_nr)?),
    )
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn note_ancestors(task: u64) -> u32 {
    let Some(scratch) = PROCESS_SCRATCH.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: a per-CPU slot. The caller's reference is to the same memory, which the verifier allows and which the compiler cannot see
    // through an external call.
    let event = unsafe { &mut (*scratch).event };
    event.ancestors = 0;
    let (Some(parent_field), Some(tgid_field), Some(start_field)) =
        (offset!(task_real_parent), offset!(task_tgid), offset!(task_start_time))
    else {
        return 0;
    };
    let mut child = task;
    for index in 0..MAX_ANCESTORS {
        let Some(parent) = read::<u64>(child, parent_field) else {
            break;
        };
        let Some(parent) = leader_of(parent) else { break };
        let tgid = read::<u32>(parent, tgid_field).unwrap_or(0);
        if tgid == 0 {
            break;
        }
        event.ancestor[index] = Ancestor {
            start_time_ns: read(parent, start_field).unwrap_or(0),
            tgid,
            reserved: 0,
            comm: comm(parent).unwrap_or([0; COMM_BYTES]),
        };
        event.ancestors = index as u32 + 1;
        child = parent;
    }
    event.ancestors
}

#[inline(always)]
fn command_line(task: u64, event: &mut ProcessEvent) {
    event.cmdline_len = 0;
    event.cmdline_total = 0;
    let Some((start, end)) = arguments(task) else { return };
    let total = end.wrapping_sub(start);
    if total == 0 || total > 1 << 21 {
        return;
    }
    let wanted = if total > CMDLINE_BYTES as u64 {
        CMDLINE_BYTES as u32
    } else {
        total as u32
    };
    // The result is 1..=512, computed in a form that the verifiers of all kernels follow.
    let len = (wanted.wrapping_sub(1) & (CMDLINE_BYTES as u32 - 1)) + 1;
    // SAFETY: `len` bytes fit into the array; if a page isn't present, the helper fails.
    if unsafe { bpf_probe_read_user(event.cmdline.as_mut_ptr().cast(), len, start as *const _) } == 0 {
        event.cmdline_len = len as u16;
        event.cmdline_total = if total > 0xffff { 0xffff } else { total as u16 };
    }
}

#[inline(always)]
fn arguments(task: u64) -> Option<(u64, u64)> {
    let mm: u64 = read(task, offset!(task_mm)?)?;
    if mm == 0 {
        return None;
    }
    Some((read(mm, offset!(mm_arg_start)?)?, read(mm, offset!(mm_arg_end)?)?))
}

/// Arrays in which paths are built.
const EXECUTABLE: u32 = 0;
const CGROUP: u32 = 1;
const CGROUP_V1: u32 = 2;

/// Appends the string at address `name` to one of the paths, which has `used` bytes, and returns the new length.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn note_component(path: u32, used: u32, name: u64) -> u32 {
    if !may_read() {
        return used;
    }
    let Some(scratch) = PROCESS_SCRATCH.get_ptr_mut(0) else {
        return used;
    };
    // SAFETY: a live value of a per-CPU map, which the caller has reserved.
    let scratch = unsafe { &mut *scratch };
    let buffer = if path == EXECUTABLE {
        scratch.event.exe.as_mut_ptr()
    } else if path == CGROUP {
        scratch.event.cgroup.as_mut_ptr()
    } else {
        scratch.cgroup_v1.as_mut_ptr()
    };
    // The offset is masked, so that the verifier knows its bound. A component that begins near the end of the array extends into the memory
    // after it.
    let at = used as usize & (EXE_BYTES - 1);
    // SAFETY: at most EXE_BYTES - 1 + COMPONENT_BYTES bytes, which the scratch value has.
    let n = unsafe { bpf_probe_read_kernel_str(buffer.add(at).cast(), COMPONENT_BYTES as u32, name as *const _) };
    if n <= 0 { used } else { at as u32 + n as u32 }
}

/// Records the executable's path from the file up to the root. It follows `d_parent`, and crosses mount points as the process sees them.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn note_executable(task: u64) -> u32 {
    let Some((mut dentry, mut mount)) = executable_place(task) else {
        return 0;
    };
    let (Some(d_parent), Some(d_name), Some(mount_mnt), Some(mnt_root), Some(mnt_parent), Some(mnt_mountpoint)) = (
        offset!(dentry_d_parent),
        offset!(dentry_d_name_name),
        offset!(mount_mnt),
        offset!(vfsmount_mnt_root),
        offset!(mount_mnt_parent),
        offset!(mount_mnt_mountpoint),
    ) else {
        return 0;
    };
    let mut used = 0;
    for _ in 0..MAX_COMPONENTS {
        let parent: u64 = read(dentry, d_parent).unwrap_or(0);
        let root: u64 = read(mount, mount_mnt + mnt_root).unwrap_or(0);
        let mut top = false;
        let mut above = dentry;
        if dentry == root || dentry == parent {
            let over: u64 = read(mount, mnt_parent).unwrap_or(0);
            if over != mount && over != 0 && parent != 0 {
                dentry = read(mount, mnt_mountpoint).unwrap_or(0);
                mount = over;
                continue;
            }
            // The name of the root is "/", which shows user space that the path is complete.
            top = true;
        } else {
            above = parent;
        }
        used = note_component(EXECUTABLE, used, read(dentry, d_name).unwrap_or(0));
        if top || used >= EXE_BYTES as u32 {
            break;
        }
        dentry = above;
    }
    if used > EXE_BYTES as u32 {
        EXE_BYTES as u32
    } else {
        used
    }
}

/// Records the cgroup's path from the leaf up to the root, whose name is empty. Returns the length of the path in the lower 16 bits and,
/// above them, the number of components that are below a directory of an unprivileged user.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn note_cgroup(path: u32, leaf: u64) -> u32 {
    let (Some(name), Some(parent)) = (offset!(kernfs_node_name), offset!(kernfs_node_parent)) else {
        return 0;
    };
    let mut node = leaf;
    let mut used = 0;
    let mut delegated = 0_u32;
    for level in 0..MAX_COMPONENTS {
        if node == 0 || used >= CGROUP_BYTES as u32 {
            break;
        }
        used = note_component(path, used, read(node, name).unwrap_or(0));
        if is_delegated(node) {
            delegated = level as u32;
        }
        node = read(node, parent).unwrap_or(0);
    }
    let used = if used > CGROUP_BYTES as u32 {
        CGROUP_BYTES as u32
    } else {
        used
    };
    used | (delegated << 16)
}

/// Whether a user other than root may create directories in this cgroup.
#[inline(always)]
fn is_delegated(node: u64) -> bool {
    const WRITABLE_BY_OTHERS: u16 = 0o022;
    let mode: u16 = offset!(kernfs_node_mode)
        .and_then(|field| read(node, field))
        .unwrap_or(0);
    let attributes: u64 = offset!(kernfs_node_iattr)
        .and_then(|field| read(node, field))
        .unwrap_or(0);
    let owner: u32 = if attributes == 0 {
        0
    } else {
        offset!(kernfs_iattrs_uid)
            .and_then(|field| read(attributes, field))
            .unwrap_or(0)
    };
    owner != 0 || mode & WRITABLE_BY_OTHERS != 0
}

#[inline(always)]
fn executable_place(task: u64) -> Option<(u64, u64)> {
    let mm: u64 = read(task, offset!(task_mm)?)?;
    if mm == 0 {
        return None;
    }
    let file: u64 = read(mm, offset!(mm_exe_file)?)?;
    if file == 0 {
        return None;
    }
    let path = offset!(file_f_path)?;
    let vfsmount: u64 = read(file, path + offset!(path_mnt)?)?;
    let dentry: u64 = read(file, path + offset!(path_dentry)?)?;
    Some((dentry, vfsmount.wrapping_sub(offset!(mount_mnt)? as u64)))
}

const _: () = assert!(EXE_BYTES == CGROUP_BYTES);
