//! Offsets in this kernel's structs that the eBPF programs need.

use aya::util::KernelVersion;
use imds_observer_common::{KernelOffsets, NO_OFFSET};

use super::btf::Btf;

/// Names of drop reasons by number.
pub(super) type DropReasons = Vec<(u32, String)>;

/// `bpf_get_current_task_btf` is offered to programs of all kinds since then.
const TASK_BTF: KernelVersion = KernelVersion::new(5, 15, 0);

/// Offsets for the programs. Fields that this kernel doesn't have stay [`NO_OFFSET`].
pub(super) fn kernel_offsets(btf: &Btf<'_>) -> KernelOffsets {
    let field = |structure: &str, path: &str| btf.offset(structure, path).unwrap_or(NO_OFFSET);
    let either = |structure: &str, paths: &[&str]| {
        paths
            .iter()
            .find_map(|path| btf.offset(structure, path))
            .unwrap_or(NO_OFFSET)
    };
    let subsystems = btf.enumeration("cgroup_subsys_id");
    let v1_subsys = v1_controller(&std::fs::read_to_string("/proc/cgroups").unwrap_or_default())
        .and_then(|wanted| {
            subsystems
                .iter()
                .find(|(name, _)| name.strip_suffix("_cgrp_id") == Some(wanted))
        })
        .and_then(|(_, index)| Some(btf.offset("css_set", "subsys")? + index * size_of::<u64>() as u32));
    let reasons = btf.enumeration("skb_drop_reason");
    KernelOffsets {
        task_tgid: field("task_struct", "tgid"),
        task_pid: field("task_struct", "pid"),
        task_start_time: either("task_struct", &["start_boottime", "real_start_time"]),
        task_self_exec_id: field("task_struct", "self_exec_id"),
        task_comm: field("task_struct", "comm"),
        task_real_parent: field("task_struct", "real_parent"),
        task_group_leader: field("task_struct", "group_leader"),
        task_mm: field("task_struct", "mm"),
        task_cred: field("task_struct", "cred"),
        task_nsproxy: field("task_struct", "nsproxy"),
        task_thread_pid: field("task_struct", "thread_pid"),
        task_cgroups: field("task_struct", "cgroups"),
        cred_euid: field("cred", "euid"),
        nsproxy_net_ns: field("nsproxy", "net_ns"),
        net_ns_inum: field("net", "ns.inum"),
        pid_level: field("pid", "level"),
        pid_numbers: field("pid", "numbers"),
        upid_size: btf.size("upid").unwrap_or(NO_OFFSET),
        upid_nr: field("upid", "nr"),
        mm_arg_start: field("mm_struct", "arg_start"),
        mm_arg_end: field("mm_struct", "arg_end"),
        mm_exe_file: field("mm_struct", "exe_file"),
        file_f_path: field("file", "f_path"),
        path_mnt: field("path", "mnt"),
        path_dentry: field("path", "dentry"),
        dentry_d_parent: field("dentry", "d_parent"),
        dentry_d_name_name: field("dentry", "d_name.name"),
        mount_mnt: field("mount", "mnt"),
        mount_mnt_parent: field("mount", "mnt_parent"),
        mount_mnt_mountpoint: field("mount", "mnt_mountpoint"),
        vfsmount_mnt_root: field("vfsmount", "mnt_root"),
        css_set_dfl_cgrp: field("css_set", "dfl_cgrp"),
        css_set_v1_subsys: v1_subsys.unwrap_or(NO_OFFSET),
        css_cgroup: field("cgroup_subsys_state", "cgroup"),
        cgroup_kn: field("cgroup", "kn"),
        kernfs_node_name: field("kernfs_node", "name"),
        // Renamed in 6.15.
        kernfs_node_parent: either("kernfs_node", &["parent", "__parent"]),
        kernfs_node_id: field("kernfs_node", "id"),
        kernfs_node_mode: field("kernfs_node", "mode"),
        kernfs_node_iattr: field("kernfs_node", "iattr"),
        kernfs_iattrs_uid: either("kernfs_iattrs", &["ia_uid", "ia_iattr.ia_uid"]),
        skb_head: field("sk_buff", "head"),
        skb_network_header: field("sk_buff", "network_header"),
        skb_protocol: field("sk_buff", "protocol"),
        skb_len: field("sk_buff", "len"),
        skb_dev: field("sk_buff", "dev"),
        skb_sk: field("sk_buff", "sk"),
        net_device_ifindex: field("net_device", "ifindex"),
        net_device_nd_net: field("net_device", "nd_net"),
        sock_family: field("sock", "__sk_common.skc_family"),
        sock_dport: field("sock", "__sk_common.skc_dport"),
        sock_num: field("sock", "__sk_common.skc_num"),
        sock_daddr: field("sock", "__sk_common.skc_daddr"),
        sock_rcv_saddr: field("sock", "__sk_common.skc_rcv_saddr"),
        sock_v6_daddr: field("sock", "__sk_common.skc_v6_daddr"),
        sock_v6_rcv_saddr: field("sock", "__sk_common.skc_v6_rcv_saddr"),
        sock_net: field("sock", "__sk_common.skc_net"),
        sock_cookie: field("sock", "__sk_common.skc_cookie"),
        sock_err: field("sock", "sk_err"),
        sock_shutdown: field("sock", "sk_shutdown"),
        sock_owned: field("sock", "sk_lock.owned"),
        tcp_bytes_received: field("tcp_sock", "bytes_received"),
        // The first parameter is the tracer's own; then packet, location, reason (5.17), receiving socket (6.11).
        kfree_skb_has_reason: u32::from(btf.parameters("btf_trace_kfree_skb").is_some_and(|count| count >= 4)),
        last_benign_reason: reasons
            .iter()
            .filter(|(name, _)| matches!(*name, "SKB_CONSUMED" | "SKB_NOT_DROPPED_YET"))
            .map(|(_, value)| *value)
            .max()
            .unwrap_or(0),
        has_task_btf: u32::from(KernelVersion::current().is_ok_and(|running| running >= TASK_BTF)),
    }
}

/// The controller of a v1 hierarchy by which containers are known, from `/proc/cgroups` (name, hierarchy, cgroups, enabled). A hierarchy
/// of 0 is v2's. Each controller may have a hierarchy of its own, and runtimes make a container's cgroup in all.
fn v1_controller(cgroups: &str) -> Option<&'static str> {
    const PREFERRED: [&str; 6] = ["pids", "memory", "cpu", "devices", "freezer", "blkio"];
    let in_v1 = |wanted: &str| {
        cgroups.lines().any(|line| {
            let mut fields = line.split_ascii_whitespace();
            fields.next() == Some(wanted) && fields.next().is_some_and(|hierarchy| hierarchy != "0")
        })
    };
    PREFERRED.into_iter().find(|wanted| in_v1(wanted))
}

/// `enum skb_drop_reason` of this kernel, without its prefix. Empty before 5.17.
pub(super) fn drop_reasons(btf: &Btf<'_>) -> DropReasons {
    btf.enumeration("skb_drop_reason")
        .into_iter()
        .map(|(name, value)| (value, name.strip_prefix("SKB_DROP_REASON_").unwrap_or(name).to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_v1_controller_is_one_with_a_hierarchy_of_its_own() {
        let head = "#subsys_name\thierarchy\tnum_cgroups\tenabled\n";
        let v2 = format!("{head}cpu\t0\t80\t1\nmemory\t0\t80\t1\npids\t0\t80\t1\n");
        assert_eq!(v1_controller(&v2), None, "cgroup v2 alone");
        let hybrid = format!("{head}cpu\t3\t80\t1\nmemory\t4\t80\t1\npids\t8\t80\t1\n");
        assert_eq!(v1_controller(&hybrid), Some("pids"));
        let mixed = format!("{head}cpu\t0\t80\t1\nmemory\t4\t80\t1\npids\t0\t80\t1\n");
        assert_eq!(v1_controller(&mixed), Some("memory"), "pids was given to v2");
        assert_eq!(v1_controller(""), None);
        assert_eq!(v1_controller("pids"), None);
    }
}
