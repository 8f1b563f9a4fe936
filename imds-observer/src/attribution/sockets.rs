//! Whose a socket is that was there before the observer: cookie -> inode -> a file descriptor of some process.
//!
//! The kernel side names the sender of each new payload, so this is for connections of which only the end is seen. `sock_diag` shows the
//! sockets of one network namespace, so a thread of its own goes through all of them, as far as it may.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};
use nix::sched::{CloneFlags, setns};

use super::host::HostRoot;
use super::process;

/// Network namespaces that one search enters.
const MAX_NAMESPACES: usize = 4_096;
/// Processes and descriptors that one search looks at.
const MAX_PROCESSES: usize = 32_768;
const MAX_DESCRIPTORS: usize = 1_000_000;
/// Sockets towards the endpoints that are remembered.
const MAX_SOCKETS: usize = 16_384;
/// One search, all in all. It is for the few; it must not eat a core for the many.
const PATIENCE: Duration = Duration::from_secs(5);
/// The kernel answers a dump at once; without a limit a broken answer would hold the thread.
const ANSWER: Duration = Duration::from_secs(1);

/// A socket towards an endpoint, and the one process that holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub cookie: u64,
    pub pid: u32,
}

/// Every TCP socket towards `endpoints` that some process holds.
pub fn find(host: &HostRoot, endpoints: &[IpAddr]) -> Vec<Held> {
    let deadline = Instant::now() + PATIENCE;
    let pids = pids(host);
    // Entering a namespace changes the thread for good: this one is thrown away afterwards.
    let sockets = std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("sock-diag".to_owned())
            .spawn_scoped(scope, || in_all_namespaces(host, &pids, endpoints, deadline))
            .ok()
            .and_then(|thread| thread.join().ok())
    });
    match sockets {
        Some(sockets) if !sockets.is_empty() => holders(host, &pids, &sockets, deadline),
        _ => Vec::new(),
    }
}

fn pids(host: &HostRoot) -> Vec<u32> {
    let mut pids: Vec<u32> = host
        .names("proc", MAX_PROCESSES)
        .iter()
        .filter_map(|name| name.parse().ok())
        .collect();
    pids.sort_unstable();
    pids
}

/// Inode -> cookie.
fn in_all_namespaces(host: &HostRoot, pids: &[u32], endpoints: &[IpAddr], deadline: Instant) -> HashMap<u32, u64> {
    let mut sockets = HashMap::new();
    let own = host
        .proc_link("self/ns/net")
        .as_deref()
        .and_then(process::namespace_inode);
    if let Err(error) = dump(endpoints, &mut sockets) {
        tracing::debug!("list the sockets of this network namespace: {error}");
    }
    let mut seen: HashSet<u32> = own.into_iter().collect();
    for pid in pids {
        if Instant::now() > deadline || seen.len() >= MAX_NAMESPACES {
            tracing::debug!("too many network namespaces: some were not searched for sockets");
            break;
        }
        let link = format!("{pid}/ns/net");
        let Some(inode) = host.proc_link(&link).as_deref().and_then(process::namespace_inode) else {
            continue;
        };
        if !seen.insert(inode) {
            continue;
        }
        let entered = File::open(host.join("proc").join(&link))
            .map_err(anyhow::Error::from)
            .and_then(|namespace| Ok(setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?))
            .and_then(|()| dump(endpoints, &mut sockets));
        if let Err(error) = entered {
            tracing::debug!("list the sockets of the network namespace of pid {pid}: {error} (needs CAP_SYS_ADMIN)");
        }
    }
    sockets
}

/// Adds the current network namespace's sockets towards the endpoints.
fn dump(endpoints: &[IpAddr], sockets: &mut HashMap<u32, u64>) -> anyhow::Result<()> {
    for (family, any) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        nix::sys::socket::setsockopt(
            &socket,
            nix::sys::socket::sockopt::ReceiveTimeout,
            &nix::sys::time::TimeVal::new(ANSWER.as_secs() as i64, 0),
        )?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let request = InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::SYN_SENT
                | StateFlags::ESTABLISHED
                | StateFlags::FIN_WAIT1
                | StateFlags::FIN_WAIT2
                | StateFlags::CLOSE_WAIT
                | StateFlags::LAST_ACK,
            socket_id: any,
        };
        let mut packet = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        socket.send(&bytes, 0)?;
        while receive(&socket, endpoints, sockets)? {}
    }
    Ok(())
}

/// One datagram of the answer. `false`: it was the last.
fn receive(socket: &Socket, endpoints: &[IpAddr], sockets: &mut HashMap<u32, u64>) -> anyhow::Result<bool> {
    let mut buffer = Vec::with_capacity(64 << 10);
    socket.recv(&mut buffer, 0)?;
    let mut rest = buffer.as_slice();
    if rest.is_empty() {
        return Ok(false);
    }
    while !rest.is_empty() {
        let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)?;
        match message.payload {
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                let header = &response.header;
                let id = &header.socket_id;
                if endpoints.contains(&id.destination_address.to_canonical()) && sockets.len() < MAX_SOCKETS {
                    sockets.insert(header.inode, u64::from_ne_bytes(id.cookie));
                }
            }
            NetlinkPayload::Done(_) | NetlinkPayload::Error(_) => return Ok(false),
            _ => {}
        }
        // Messages are aligned to 4 bytes.
        let length = (message.header.length as usize).next_multiple_of(4).max(16);
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(true)
}

/// Looks for the sockets among all open descriptors. One that several processes hold has no owner: which of them uses it isn't to
/// be seen from here.
fn holders(host: &HostRoot, pids: &[u32], sockets: &HashMap<u32, u64>, deadline: Instant) -> Vec<Held> {
    let mut found: HashMap<u64, Option<u32>> = HashMap::new();
    let mut looked = 0;
    for pid in pids {
        if looked >= MAX_DESCRIPTORS || Instant::now() > deadline {
            // Who else holds them stays open, so nothing is sure.
            return Vec::new();
        }
        for descriptor in host.names(&format!("proc/{pid}/fd"), MAX_DESCRIPTORS) {
            looked += 1;
            let Some(target) = host.proc_link(&format!("{pid}/fd/{descriptor}")) else {
                continue;
            };
            let inode = target
                .strip_prefix("socket:[")
                .and_then(|inode| inode.strip_suffix(']')?.parse::<u32>().ok());
            if let Some(cookie) = inode.and_then(|inode| sockets.get(&inode)) {
                let holder = found.entry(*cookie).or_insert(Some(*pid));
                *holder = holder.filter(|holder| holder == pid);
            }
        }
    }
    found
        .into_iter()
        .filter_map(|(cookie, pid)| Some(Held { cookie, pid: pid? }))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::path::Path;

    use super::*;

    #[test]
    fn a_socket_of_our_own_is_found() {
        // Replaces the endpoint: loopback only.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut cookie = 0_u64;
        let mut length = size_of::<u64>() as libc::socklen_t;
        // SAFETY: the kernel writes 8 bytes to `cookie`.
        let result = unsafe {
            use std::os::fd::AsRawFd as _;
            libc::getsockopt(
                client.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut length,
            )
        };
        assert_eq!(result, 0);
        let held = find(&HostRoot::new(Path::new("/")), &["127.0.0.1".parse().unwrap()]);
        assert!(
            held.contains(&Held {
                cookie,
                pid: std::process::id()
            }),
            "{held:?}"
        );
    }
}
