//! eBPF policies of another tool that deny: a connect hook, a cgroup's packet filter, a program on an interface.
//!
//! The programs have so few instructions that they are encoded here and loaded by system call. An object file and a loader would be more
//! code.

use std::ffi::CString;
use std::fs::{self, File};
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};
use nix::net::if_::if_nametoindex;

use super::{FaultGuard, Victim};
use crate::bpf::{
    self, ATTACH_CGROUP_INET_EGRESS, ATTACH_CGROUP_INET_INGRESS, ATTACH_CGROUP_INET4_CONNECT,
    ATTACH_CGROUP_INET6_CONNECT, ATTACH_TCX_EGRESS, ATTACH_TCX_INGRESS, AttachAttributes, BPF_LINK_CREATE, BPF_OBJ_PIN,
    BPF_PROG_ATTACH, BPF_PROG_DETACH, LinkAttributes, PROG_TYPE_CGROUP_SKB, PROG_TYPE_CGROUP_SOCK_ADDR,
    PROG_TYPE_SCHED_CLS, PinAttributes, call, immediate,
};
use crate::topology::{IMDS_V4, Lab};

/// Which hook denies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// `connect()` over IPv4 fails with EPERM before any packet is made.
    Connect4,
    /// The same over IPv6.
    Connect6,
    /// Packets that leave the victim's sockets are dropped.
    CgroupEgress,
    /// Packets that are to be delivered to the victim's sockets are dropped. Programs at parent cgroups, such as the observer's, still see
    /// them.
    CgroupIngress,
    /// Packets that leave the node's uplink are dropped.
    TcEgress,
    /// Packets that arrive from the pod's veth interface are dropped.
    TcIngress,
}

/// Priority after the observer's own filter, which is the first.
const PRIORITY: &str = "20";
/// Return value of a cgroup program that denies; TC programs return `TC_ACT_SHOT`.
const DENY: i32 = 0;
const ALLOW: i32 = 1;
const SHOT: i32 = 2;
/// `TCX_NEXT`: the next program decides.
const NEXT: i32 = -1;
/// Number of programs that one direction of an interface accepts (`BPF_MPROG_MAX`).
const TCX_PROGRAMS: usize = 64;

/// `r0 = verdict; exit`.
fn program(kind: u32, attach: u32, verdict: i32) -> Result<OwnedFd> {
    load(kind, attach, &[0xb7 | immediate(verdict), 0x95])
}

/// A program for an interface that drops everything except neighbor resolution. Without neighbor resolution, the kernel would consider the
/// gateway unreachable after some seconds, which would be another fault.
fn shoot_all_but_neighbours(attach: u32) -> Result<OwnedFd> {
    let protocol = |ethertype: u16| immediate(i32::from(ethertype.to_be()));
    let instructions = [
        // r6 = ctx; r0 = skb->protocol
        0x16_bf,
        0x61 | 0x60 << 8 | 16 << 16,
        // ARP: next program. Not IPv6: drop. ICMPv6: next program.
        0x15 | 5 << 16 | protocol(0x0806),
        0x55 | 2 << 16 | protocol(0x86dd),
        0x30 | immediate(14 + 6),
        0x15 | 2 << 16 | immediate(58),
        0xb7 | immediate(SHOT),
        0x95,
        0xb7 | immediate(NEXT),
        0x95,
    ];
    load(PROG_TYPE_SCHED_CLS, attach, &instructions)
}

fn load(kind: u32, attach: u32, instructions: &[u64]) -> Result<OwnedFd> {
    bpf::load("imdslab_policy", kind, attach, 0, instructions).context("load a policy program")
}

const BPF_F_ALLOW_MULTI: u32 = 2;

/// Attaches another tool's program that lets everything pass but excludes other programs from this hook of the lab's cgroup: it is attached
/// without `BPF_F_ALLOW_MULTI`.
pub fn occupy(lab: &Lab, hook: Hook) -> Result<FaultGuard> {
    attach_beside(lab, hook, 0)
}

/// Attaches another tool's program that lets everything pass to the lab's cgroup. Other programs may be attached beside it.
pub fn accompany(lab: &Lab, hook: Hook) -> Result<FaultGuard> {
    attach_beside(lab, hook, BPF_F_ALLOW_MULTI)
}

/// Socket-level load balancing of another tool: connections of this cgroup to the IPv4 endpoint are redirected to `to`.
pub fn rewrite_connect(cgroup: &Path, to: SocketAddrV4) -> Result<FaultGuard> {
    let word = |bytes: [u8; 4]| immediate(i32::from_ne_bytes(bytes));
    let [high, low] = to.port().to_be_bytes();
    // Offsets in `struct bpf_sock_addr`: user_ip4 4, user_port 24.
    let instructions = [
        0x61 | 0x12 << 8 | 4 << 16,
        0x56 | 0x02 << 8 | 4 << 16 | word(IMDS_V4.octets()),
        0xb4 | 0x03 << 8 | word(to.ip().octets()),
        0x63 | 0x31 << 8 | 4 << 16,
        0xb4 | 0x03 << 8 | word([high, low, 0, 0]),
        0x63 | 0x31 << 8 | 24 << 16,
        0xb7 | immediate(ALLOW),
        0x95,
    ];
    let program = load(PROG_TYPE_CGROUP_SOCK_ADDR, ATTACH_CGROUP_INET4_CONNECT, &instructions)?;
    let directory = File::open(cgroup).with_context(|| format!("open {}", cgroup.display()))?;
    attach(directory, program, ATTACH_CGROUP_INET4_CONNECT, BPF_F_ALLOW_MULTI)
}

fn attach_beside(lab: &Lab, hook: Hook, attach_flags: u32) -> Result<FaultGuard> {
    let (attach_type, kind) = match hook {
        Hook::Connect4 => (ATTACH_CGROUP_INET4_CONNECT, PROG_TYPE_CGROUP_SOCK_ADDR),
        Hook::Connect6 => (ATTACH_CGROUP_INET6_CONNECT, PROG_TYPE_CGROUP_SOCK_ADDR),
        Hook::CgroupEgress => (ATTACH_CGROUP_INET_EGRESS, PROG_TYPE_CGROUP_SKB),
        Hook::CgroupIngress => (ATTACH_CGROUP_INET_INGRESS, PROG_TYPE_CGROUP_SKB),
        Hook::TcEgress | Hook::TcIngress => anyhow::bail!("only a cgroup can be had exclusively"),
    };
    let directory = File::open(lab.cgroup_directory()).context("open the lab's cgroup")?;
    let program = program(kind, attach_type, ALLOW)?;
    attach(directory, program, attach_type, attach_flags)
}

fn attach(directory: File, program: OwnedFd, attach_type: u32, attach_flags: u32) -> Result<FaultGuard> {
    let attributes = move |attach_flags| AttachAttributes {
        target_fd: directory.as_raw_fd() as u32,
        attach_bpf_fd: program.as_raw_fd() as u32,
        attach_type,
        attach_flags,
    };
    call(BPF_PROG_ATTACH, &attributes(attach_flags)).context("attach a program to a cgroup")?;
    Ok(FaultGuard::new(move || {
        // Flags are only for attaching: since 6.17 the kernel rejects them here.
        call(BPF_PROG_DETACH, &attributes(0)).context("detach a program from a cgroup")?;
        Ok(())
    }))
}

/// Attaches programs of other tools that let everything pass, as many as both directions of the node's uplink accept over tcx. The kernel
/// rejects one more.
pub fn crowd_uplink(lab: &Lab) -> Result<FaultGuard> {
    let links = lab.node().netns().run(|| {
        let index = if_nametoindex("eth0").context("find interface eth0")?;
        let mut links = Vec::new();
        for attach_type in [ATTACH_TCX_INGRESS, ATTACH_TCX_EGRESS] {
            let program = program(PROG_TYPE_SCHED_CLS, attach_type, NEXT)?;
            for number in 0..TCX_PROGRAMS {
                // The kernel accepts each program only once.
                let program = if number == 0 {
                    program.try_clone()?
                } else {
                    self::program(PROG_TYPE_SCHED_CLS, attach_type, NEXT)?
                };
                let link = LinkAttributes {
                    prog_fd: program.as_raw_fd() as u32,
                    target: index,
                    attach_type,
                    ..LinkAttributes::default()
                };
                match bpf::open(BPF_LINK_CREATE, &link) {
                    Ok(link) => links.push(link),
                    Err(error) if error.raw_os_error() == Some(libc::ERANGE) => break,
                    Err(error) => return Err(error).context("attach a program to eth0 (needs tcx: 6.6)"),
                }
            }
        }
        Ok(links)
    })??;
    Ok(FaultGuard::new(move || {
        drop(links);
        Ok(())
    }))
}

pub(super) fn inject(lab: &Lab, hook: Hook, victim: Victim) -> Result<FaultGuard> {
    let place = lab.place_of(victim);
    let cgroup = |attach: u32, kind: u32| -> Result<OwnedFd> {
        let directory = File::open(place.cgroup().directory()).context("open the victim's cgroup")?;
        let program = program(kind, attach, DENY)?;
        let link = LinkAttributes {
            prog_fd: program.as_raw_fd() as u32,
            target: directory.as_raw_fd() as u32,
            attach_type: attach,
            ..LinkAttributes::default()
        };
        bpf::open(BPF_LINK_CREATE, &link).context("attach a policy program to a cgroup")
    };
    let interface = |attach: u32, name: &str| -> Result<FaultGuard> {
        let program = shoot_all_but_neighbours(attach)?;
        let link = lab.node().netns().run(|| {
            let index = if_nametoindex(name).with_context(|| format!("find interface {name}"))?;
            let link = LinkAttributes {
                prog_fd: program.as_raw_fd() as u32,
                target: index,
                attach_type: attach,
                ..LinkAttributes::default()
            };
            anyhow::Ok(bpf::open(BPF_LINK_CREATE, &link))
        })??;
        match link {
            Ok(link) => Ok(held(link)),
            // Kernels before 6.6 have no tcx.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => filter(lab, program.as_fd(), attach, name),
            Err(error) => Err(error).with_context(|| format!("attach a policy program to {name}")),
        }
    };
    match hook {
        Hook::Connect4 => cgroup(ATTACH_CGROUP_INET4_CONNECT, PROG_TYPE_CGROUP_SOCK_ADDR).map(held),
        Hook::Connect6 => cgroup(ATTACH_CGROUP_INET6_CONNECT, PROG_TYPE_CGROUP_SOCK_ADDR).map(held),
        Hook::CgroupEgress => cgroup(ATTACH_CGROUP_INET_EGRESS, PROG_TYPE_CGROUP_SKB).map(held),
        Hook::CgroupIngress => cgroup(ATTACH_CGROUP_INET_INGRESS, PROG_TYPE_CGROUP_SKB).map(held),
        Hook::TcEgress => interface(ATTACH_TCX_EGRESS, "eth0"),
        Hook::TcIngress => interface(ATTACH_TCX_INGRESS, &lab.cable_of(victim)?),
    }
}

/// The kernel removes the link when its descriptor is closed.
fn held(link: OwnedFd) -> FaultGuard {
    FaultGuard::new(move || {
        drop(link);
        Ok(())
    })
}

/// Adds a tc filter. tc finds the program by a name in the BPF file system.
fn filter(lab: &Lab, program: BorrowedFd<'_>, attach: u32, name: &str) -> Result<FaultGuard> {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let pin = format!("/sys/fs/bpf/imdslab-{}-policy-{number}", lab.id());
    let path = CString::new(pin.as_str()).context("name a policy program")?;
    let attributes = PinAttributes {
        pathname: path.as_ptr() as u64,
        bpf_fd: program.as_raw_fd() as u32,
        ..PinAttributes::default()
    };
    call(BPF_OBJ_PIN, &attributes).with_context(|| format!("pin a policy program at {pin} (is bpffs mounted?)"))?;
    let side = if attach == ATTACH_TCX_EGRESS {
        "egress"
    } else {
        "ingress"
    };
    let netns = lab.node().shared_netns();
    // The qdisc may exist already, because of the observer or an earlier fault.
    let _ = netns.run_program(Command::new("tc").args(["qdisc", "add", "dev", name, "clsact"]));
    let added = netns.run_program(
        Command::new("tc")
            .args(["filter", "add", "dev", name, side, "prio", PRIORITY])
            .args(["bpf", "direct-action", "object-pinned", &pin]),
    );
    fs::remove_file(&pin).with_context(|| format!("remove {pin}"))?;
    added?;
    let name = name.to_owned();
    Ok(FaultGuard::new(move || {
        netns.run_program(Command::new("tc").args(["filter", "del", "dev", &name, side, "prio", PRIORITY]))
    }))
}
