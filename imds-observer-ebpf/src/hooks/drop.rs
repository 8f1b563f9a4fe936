//! Drops of packets of IMDS flows, reported by `kfree_skb`.
//!
//! `tp_btf` dereferences the packet directly, which costs about 25 ns per drop of other traffic. `raw_tp` is the fallback if the kernel
//! refuses tracing programs. It reads with probe helpers and costs about 105 ns.

use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use imds_observer_common::{Direction, DropEvent, EventKind, ProcessKey, Tuple, mapped_v4};
use network_types::tcp::TcpHdr;

use crate::config::{bytes, drop_reasons, is_endpoint, is_endpoint_v4, offset};
use crate::emit::{emit, header};
use crate::maps::{DROP_SCRATCH, FLOWS, TUPLES, with_slot};
use crate::packet::{ETH_P_IP, ETH_P_IPV6, IPPROTO_TCP, SYN, Tcp, is_clients_port};
use crate::task::netns;

#[btf_tracepoint(function = "kfree_skb")]
pub(crate) fn drop_btf(ctx: BtfTracePointContext) -> i32 {
    let skb: *const u8 = ctx.arg(0);
    let Some(protocol_offset) = offset!(skb_protocol) else {
        return 0;
    };
    // SAFETY: a BTF pointer: the verifier knows the struct, and a fault reads as 0.
    let protocol = unsafe { skb.add(protocol_offset).cast::<u16>().read_volatile() };
    if protocol != ETH_P_IP && protocol != ETH_P_IPV6 {
        return 0;
    }
    let reason = match drop_reasons() {
        Some(benign) => {
            let reason: u32 = ctx.arg(2);
            if reason <= benign {
                return 0;
            }
            reason
        }
        None => 0,
    };
    let (Some(head_offset), Some(network_offset)) = (offset!(skb_head), offset!(skb_network_header)) else {
        return 0;
    };
    // SAFETY: the kernel passes a valid packet, and both offsets are those of its fields. The packet's data is only read with probe
    // helpers.
    let (head, network) = unsafe {
        (
            skb.add(head_offset).cast::<u64>().read_volatile(),
            skb.add(network_offset).cast::<u16>().read_volatile(),
        )
    };
    try_drop(
        skb as u64,
        ctx.arg::<u64>(1),
        reason,
        protocol == ETH_P_IPV6,
        head + u64::from(network),
    );
    0
}

#[raw_tracepoint(tracepoint = "kfree_skb")]
pub(crate) fn drop_raw(ctx: RawTracePointContext) -> i32 {
    let skb: u64 = ctx.arg(0);
    let reason = match drop_reasons() {
        Some(benign) => {
            let reason: u32 = ctx.arg(2);
            if reason <= benign {
                return 0;
            }
            reason
        }
        None => 0,
    };
    raw(skb, ctx.arg(1), reason);
    0
}

#[inline(always)]
fn raw(skb: u64, location: u64, reason: u32) -> Option<()> {
    let protocol: u16 = read(skb, offset!(skb_protocol)?)?;
    if protocol != ETH_P_IP && protocol != ETH_P_IPV6 {
        return None;
    }
    let head: u64 = read(skb, offset!(skb_head)?)?;
    let network: u16 = read(skb, offset!(skb_network_header)?)?;
    try_drop(skb, location, reason, protocol == ETH_P_IPV6, head + u64::from(network));
    Some(())
}

#[inline(always)]
fn read<T>(base: u64, offset: usize) -> Option<T> {
    // SAFETY: bpf_probe_read_kernel takes any address and fails on bad ones.
    unsafe { bpf_probe_read_kernel((base as usize).wrapping_add(offset) as *const T) }.ok()
}

#[inline(always)]
fn try_drop(skb: u64, location: u64, reason: u32, v6: bool, network: u64) -> Option<()> {
    // Reads both addresses at once, because most drops are of other traffic and each read is a call. Reads words, because bytes would be
    // combined one by one.
    let (source, destination) = if v6 {
        let [a, b, c, d, e, f, g, h]: [u32; 8] = read(network, 8)?;
        (bytes([a, b, c, d]), bytes([e, f, g, h]))
    } else {
        let [source, destination]: [u32; 2] = read(network, 12)?;
        if !is_endpoint_v4(source) && !is_endpoint_v4(destination) {
            return None;
        }
        (mapped_v4(source.to_ne_bytes()), mapped_v4(destination.to_ne_bytes()))
    };
    let to_endpoint = is_endpoint(&destination);
    let from_endpoint = is_endpoint(&source);
    if !to_endpoint && !from_endpoint {
        return None;
    }
    let (protocol, ttl, header_len, total): (u8, u8, u32, u32) = if v6 {
        let payload: [u8; 2] = read(network, 4)?;
        (
            read(network, 6)?,
            read(network, 7)?,
            40,
            u32::from(u16::from_be_bytes(payload)) + 40,
        )
    } else {
        let first: u8 = read(network, 0)?;
        let total: [u8; 2] = read(network, 2)?;
        (
            read(network, 9)?,
            read(network, 8)?,
            u32::from(first & 15) * 4,
            u32::from(u16::from_be_bytes(total)),
        )
    };
    if protocol != IPPROTO_TCP {
        return None;
    }
    let tcp = Tcp::from(&read::<TcpHdr>(network, header_len as usize)?);
    let payload_len = total.saturating_sub(header_len + tcp.header_len);
    // Purged FINs, duplicate ACKs and similar packets are part of the kernel's normal operation.
    if payload_len == 0 && tcp.flags & SYN == 0 {
        return None;
    }
    // On a host that has the endpoint's address itself, both addresses are endpoints.
    let request = to_endpoint && (!from_endpoint || is_clients_port(tcp.source, tcp.destination));
    with_slot(&DROP_SCRATCH, |scratch| {
        let event = &mut scratch.event;
        event.tuple = if request {
            Tuple {
                local: source,
                remote: destination,
                local_port: tcp.source,
                remote_port: tcp.destination,
            }
        } else {
            Tuple {
                local: destination,
                remote: source,
                local_port: tcp.destination,
                remote_port: tcp.source,
            }
        };
        event.location = location;
        event.seq = tcp.seq;
        event.payload_len = payload_len;
        event.reason = reason;
        event.direction = if request {
            Direction::Request
        } else {
            Direction::Response
        } as u8;
        event.tcp_flags = tcp.flags;
        event.ttl = ttl;
        event.reserved = 0;
        // SAFETY: copied at once.
        event.cookie = unsafe { TUPLES.get(event.tuple) }.copied().unwrap_or(0);
        if event.cookie == 0 && request {
            event.cookie = socket_cookie(skb).unwrap_or(0);
        }
        event.process = ProcessKey::default();
        event.cgroup_id = 0;
        event.tid = 0;
        // SAFETY: copied at once.
        if let Some(flow) = unsafe { FLOWS.get(event.cookie) } {
            event.process = flow.process;
            event.cgroup_id = flow.cgroup_id;
            event.tid = flow.tid;
        }
        event.ifindex = 0;
        event.netns = 0;
        let device: u64 = offset!(skb_dev).and_then(|field| read(skb, field)).unwrap_or(0);
        if device != 0 {
            event.ifindex = offset!(net_device_ifindex)
                .and_then(|field| read(device, field))
                .unwrap_or(0);
            event.netns = offset!(net_device_nd_net)
                .and_then(|field| read(device, field))
                .and_then(netns)
                .unwrap_or(0);
        }
        event.header = header(EventKind::Drop, size_of::<DropEvent>());
        emit(event);
    })
}

/// Cookie of the socket that sent the packet, if the socket already has a cookie (`connect()` assigns one).
#[inline(always)]
fn socket_cookie(skb: u64) -> Option<u64> {
    let socket: u64 = read(skb, offset!(skb_sk)?)?;
    if socket == 0 {
        return None;
    }
    read(socket, offset!(sock_cookie)?)
}
