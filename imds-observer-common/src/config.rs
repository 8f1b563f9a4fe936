//! Configuration that user space writes into the kernel programs before they are loaded.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Limit on the endpoints of one address family.
pub const MAX_ENDPOINTS: usize = 4;

/// Marks a field that this kernel's BTF does not have.
pub const NO_OFFSET: u32 = u32::MAX;

/// Addresses of the metadata service. Unused slots repeat the first address, so that a comparison with all slots stays correct. Addresses
/// outside the ranges that the programs always check (169.254.0.0/16 and fd00:ec2::/32) come first.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Endpoints {
    /// In the packet's byte order.
    pub v4: [[u8; 4]; MAX_ENDPOINTS],
    pub v6: [[u8; 16]; MAX_ENDPOINTS],
    pub v4_count: u32,
    pub v6_count: u32,
    /// Number of addresses outside these ranges.
    pub v4_far_count: u32,
    pub v6_far_count: u32,
}

/// Byte offsets of kernel struct fields, from this kernel's BTF, and other differences between kernels. [`NO_OFFSET`] if the field is
/// absent.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct KernelOffsets {
    pub task_tgid: u32,
    pub task_pid: u32,
    pub task_start_time: u32,
    pub task_self_exec_id: u32,
    pub task_comm: u32,
    pub task_real_parent: u32,
    pub task_group_leader: u32,
    pub task_mm: u32,
    pub task_cred: u32,
    pub task_nsproxy: u32,
    pub task_thread_pid: u32,
    pub task_cgroups: u32,
    pub cred_euid: u32,
    pub nsproxy_net_ns: u32,
    pub net_ns_inum: u32,
    pub pid_level: u32,
    pub pid_numbers: u32,
    pub upid_size: u32,
    pub upid_nr: u32,
    pub mm_arg_start: u32,
    pub mm_arg_end: u32,
    pub mm_exe_file: u32,
    pub file_f_path: u32,
    pub path_mnt: u32,
    pub path_dentry: u32,
    pub dentry_d_parent: u32,
    pub dentry_d_name_name: u32,
    pub mount_mnt: u32,
    pub mount_mnt_parent: u32,
    pub mount_mnt_mountpoint: u32,
    pub vfsmount_mnt_root: u32,
    pub css_set_dfl_cgrp: u32,
    /// Offset of the `cgroup_subsys_state *` of a controller in a v1 hierarchy. Absent on hosts with only cgroup v2.
    pub css_set_v1_subsys: u32,
    pub css_cgroup: u32,
    pub cgroup_kn: u32,
    pub kernfs_node_name: u32,
    pub kernfs_node_parent: u32,
    pub kernfs_node_id: u32,
    pub kernfs_node_mode: u32,
    /// Null while root owns the node.
    pub kernfs_node_iattr: u32,
    pub kernfs_iattrs_uid: u32,
    pub skb_head: u32,
    pub skb_network_header: u32,
    pub skb_protocol: u32,
    pub skb_len: u32,
    pub skb_dev: u32,
    pub skb_sk: u32,
    pub net_device_ifindex: u32,
    pub net_device_nd_net: u32,
    pub sock_family: u32,
    pub sock_dport: u32,
    pub sock_num: u32,
    pub sock_daddr: u32,
    pub sock_rcv_saddr: u32,
    pub sock_v6_daddr: u32,
    pub sock_v6_rcv_saddr: u32,
    pub sock_net: u32,
    pub sock_cookie: u32,
    pub sock_err: u32,
    pub sock_shutdown: u32,
    pub sock_owned: u32,
    pub tcp_bytes_received: u32,
    /// 1: `kfree_skb` has a third argument, the reason (5.17 and later).
    pub kfree_skb_has_reason: u32,
    /// `SKB_NOT_DROPPED_YET` or `SKB_CONSUMED`: reasons up to this one are not drops.
    pub last_benign_reason: u32,
    /// 1: every hook's programs may follow typed pointers from the current task (5.15 and later, with CAP_PERFMON).
    pub has_task_btf: u32,
}

impl KernelOffsets {
    /// No offset is known, so the programs skip every read that needs one.
    pub const NONE: Self = {
        // Bytes of all ones are `NO_OFFSET` in every field. The three fields that are not offsets are set below.
        let mut none: Self = zerocopy::transmute!([0xff_u8; size_of::<KernelOffsets>()]);
        none.kfree_skb_has_reason = 0;
        none.last_benign_reason = 0;
        none.has_task_btf = 0;
        none
    };
}
