//! A host with a metadata service, in network namespaces without names.
//!
//! ```text
//!  service                      host                          container         nested container
//!  lo  169.254.169.254          eth0 10.77.0.5  hop1 ─ eth0 10.88.1.2  hop2 ─ eth0 10.88.2.2
//!      10.77.0.1   up0 ──────── eth0   forwards              forwards
//! ```
//!
//! The namespaces are held by descriptors and processes only: when the last of those ends, the kernel removes them. No interface
//! leads out of them, and [`World::build`] fails if one does. A packet for an address that nothing in here has is answered with
//! "network unreachable" by the namespace of the service.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::thread;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{getegid, geteuid};
use rtnetlink::Handle;

use crate::server::{Behaviour, Server, ServerOptions, Serves, TASK};
use crate::wire::{self, Route};

/// Forwarding hops that a world can have.
pub const MAX_HOPS: u8 = 8;
/// The host's interface on the way to the service.
pub const UPLINK: &str = "eth0";

const IMDS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];
const POD_IDENTITY: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
];
const ECS: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2));
const PORT: u16 = 80;

const SERVICE_LINK: &str = "up0";
const SERVICE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1)),
];
const HOST: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 77, 0, 5)),
    IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 5)),
];

/// Properties of a world.
#[derive(Clone, Debug, PartialEq)]
pub struct WorldOptions {
    pub imds: Behaviour,
    /// Network namespaces that forward between the command and the service's link: 0 for a process of the host, 1 for a container,
    /// 2 for a container in it.
    pub hops: u8,
    /// The endpoint `fd00:ec2::254` exists.
    pub ipv6: bool,
    /// The EKS Pod Identity Agent answers.
    pub pod_identity: bool,
    /// The ECS agent answers.
    pub ecs: bool,
}

/// A network namespace without a name.
struct Netns {
    file: File,
    inode: u64,
}

/// The namespaces, and the servers that answer in one of them.
pub struct World {
    options: WorldOptions,
    service: Netns,
    /// The host, and behind it a namespace for each hop.
    chain: Vec<Netns>,
    servers: Vec<Server>,
}

impl World {
    /// Makes the namespaces and moves the calling thread into that of the host. The process must have no other thread: those stay
    /// outside. With `user_namespace` in a user namespace of its own, which needs no privileges.
    pub fn build(options: WorldOptions, user_namespace: bool) -> Result<Self> {
        ensure!(
            options.hops <= MAX_HOPS,
            "{} hops: at most {MAX_HOPS} are possible",
            options.hops
        );
        let mut options = options;
        options.ipv6 &= Path::new("/proc/sys/net/ipv6").exists();
        let outside = inode()?;
        if user_namespace {
            enter_user_namespace()?;
        }
        unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
        let host = Netns::current()?;
        ensure!(host.inode != outside, "unshare did not make a network namespace");
        let service = Netns::make(outside)?;
        let mut chain = vec![host];
        for _ in 0..options.hops {
            chain.push(Netns::make(outside)?);
        }
        let world = Self {
            options,
            service,
            chain,
            servers: Vec::new(),
        };
        world.connect().context("connect the network namespaces")?;
        Ok(world)
    }

    /// Starts the servers, each on a thread of its own.
    pub fn serve(&mut self) -> Result<()> {
        let options = &self.options;
        let mut services = vec![(Serves::Imds, options.imds.clone(), self.addresses(IMDS))];
        let agent = |serves| Behaviour {
            serves,
            delay_ms: options.imds.delay_ms,
            ..Behaviour::default()
        };
        if options.pod_identity {
            services.push((
                Serves::PodIdentity,
                agent(Serves::PodIdentity),
                self.addresses(POD_IDENTITY),
            ));
        }
        if options.ecs {
            services.push((Serves::Ecs, agent(Serves::Ecs), vec![ECS]));
        }
        let mut servers = Vec::new();
        for (serves, behaviour, addresses) in services {
            let listen = addresses.into_iter().map(|address| SocketAddr::new(address, PORT));
            let server = Server::start(ServerOptions {
                netns: Some(self.service.file.as_fd().try_clone_to_owned()?),
                behaviour,
                ..ServerOptions::new(listen.collect())
            })
            .with_context(|| format!("start the stand-in ({serves:?})"))?;
            servers.push(server);
        }
        self.servers = servers;
        Ok(())
    }

    /// Where a command runs: behind all hops.
    pub fn innermost(&self) -> BorrowedFd<'_> {
        self.chain.last().unwrap_or(&self.service).file.as_fd()
    }

    /// Environment variables with which an SDK finds the agents that are served. All values are made up.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let mut environment = Vec::new();
        if self.options.pod_identity {
            let address = format!("http://{}/v1/credentials", POD_IDENTITY[0]);
            environment.push(("AWS_CONTAINER_CREDENTIALS_FULL_URI", address));
            environment.push(("AWS_CONTAINER_AUTHORIZATION_TOKEN", "made.up.jwt".to_owned()));
        }
        if self.options.ecs {
            let path = format!("/v2/credentials/{TASK}");
            environment.push(("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", path));
        }
        environment
    }

    /// Requests to IMDS that the stand-in has read.
    pub fn requests(&self) -> u64 {
        self.servers.iter().map(|server| server.log().total).sum()
    }

    fn addresses(&self, both: [IpAddr; 2]) -> Vec<IpAddr> {
        both.into_iter()
            .filter(|address| address.is_ipv4() || self.options.ipv6)
            .collect()
    }

    fn connect(&self) -> Result<()> {
        let Self {
            options: WorldOptions { ipv6, .. },
            service,
            chain,
            ..
        } = self;
        for netns in chain.iter().chain([service]) {
            netns.prepare(*ipv6)?;
        }
        service.netlink(async |handle| {
            let mut addresses = self.addresses(IMDS);
            if self.options.pod_identity {
                addresses.extend(self.addresses(POD_IDENTITY));
            }
            if self.options.ecs {
                addresses.push(ECS);
            }
            for address in addresses {
                wire::add_address(&handle, "lo", address, whole(address)).await?;
            }
            Ok(())
        })?;
        let host = &chain[0];
        let target = service.descriptor()?;
        host.netlink(async |handle| {
            wire::veth(&handle, UPLINK, SERVICE_LINK, &target).await?;
            for address in self.addresses(HOST) {
                wire::add_address(&handle, UPLINK, address, link(address)).await?;
            }
            Ok(())
        })?;
        service.netlink(async |handle| {
            wire::up(&handle, SERVICE_LINK).await?;
            for address in self.addresses(SERVICE) {
                wire::add_address(&handle, SERVICE_LINK, address, link(address)).await?;
            }
            for gateway in self.addresses(HOST) {
                let (net, prefix) = containers(gateway);
                Route::via(net, prefix, gateway, SERVICE_LINK).add(&handle).await?;
            }
            Ok(())
        })?;
        host.netlink(async |handle| {
            for gateway in self.addresses(SERVICE) {
                Route::default_via(gateway, UPLINK).add(&handle).await?;
            }
            Ok(())
        })?;
        for hop in 1..chain.len() {
            self.add_hop(hop)?;
        }
        self.check_enclosed()
    }

    /// Puts namespace `hop` of the chain behind the one before it, which forwards from now on.
    fn add_hop(&self, hop: usize) -> Result<()> {
        let (outer, inner) = (&self.chain[hop - 1], &self.chain[hop]);
        let (cable, target) = (format!("hop{hop}"), inner.descriptor()?);
        outer.forward(self.options.ipv6)?;
        outer.netlink(async |handle| {
            wire::veth(&handle, &cable, UPLINK, &target).await?;
            for address in self.addresses(ends(hop, 1)) {
                wire::add_address(&handle, &cable, address, link(address)).await?;
            }
            Ok(())
        })?;
        inner.netlink(async |handle| {
            wire::up(&handle, UPLINK).await?;
            for address in self.addresses(ends(hop, 2)) {
                wire::add_address(&handle, UPLINK, address, link(address)).await?;
            }
            for gateway in self.addresses(ends(hop, 1)) {
                Route::default_via(gateway, UPLINK).add(&handle).await?;
            }
            Ok(())
        })?;
        // The namespaces outside this one need the way to it.
        for (outside, netns) in self.chain[..hop - 1].iter().enumerate() {
            let cable = format!("hop{}", outside + 1);
            netns.netlink(async |handle| {
                let gateways = self.addresses(ends(outside + 1, 2));
                for (net, gateway) in self.addresses(ends(hop, 0)).into_iter().zip(gateways) {
                    Route::via(net, link(net), gateway, &cable).add(&handle).await?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Nothing leads out: the service has no default route, and no namespace has an interface that was not made here.
    fn check_enclosed(&self) -> Result<()> {
        let ways_out = self
            .service
            .netlink(async |handle| wire::default_routes(&handle).await)?;
        ensure!(ways_out == 0, "the namespace of the stand-in has a default route");
        for netns in self.chain.iter().chain([&self.service]) {
            for name in netns.netlink(async |handle| wire::active_interfaces(&handle).await)? {
                let own = name == UPLINK || name == SERVICE_LINK || name.starts_with("hop");
                ensure!(
                    own,
                    "a network namespace has the interface {name}, which was not made here"
                );
            }
        }
        Ok(())
    }
}

impl Netns {
    fn current() -> Result<Self> {
        let file = File::open("/proc/thread-self/ns/net").context("open the network namespace")?;
        let inode = file.metadata()?.ino();
        Ok(Self { file, inode })
    }

    fn make(outside: u64) -> Result<Self> {
        let made = thread::scope(|scope| {
            let thread = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
                Self::current()
            });
            thread
                .join()
                .unwrap_or_else(|_| bail!("the thread that made it panicked"))
        })?;
        ensure!(made.inode != outside, "unshare did not make a network namespace");
        Ok(made)
    }

    fn descriptor(&self) -> io::Result<OwnedFd> {
        self.file.as_fd().try_clone_to_owned()
    }

    /// Runs `work` on a thread inside.
    fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).context("enter a network namespace")?;
                ensure!(inode()? == self.inode, "setns left the thread where it was");
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn netlink<T: Send>(&self, work: impl AsyncFnOnce(Handle) -> Result<T> + Send) -> Result<T> {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection().context("open a netlink socket")?;
                tokio::spawn(connection);
                work(handle).await
            })
        })
    }

    fn sysctls(&self, values: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (name, value) in values {
                let path = format!("/proc/sys/net/{name}");
                fs::write(&path, value)
                    .with_context(|| format!("write {value} to {path} (is /proc/sys mounted read-only?)"))?;
            }
            Ok(())
        })
    }

    fn prepare(&self, ipv6: bool) -> Result<()> {
        if ipv6 {
            self.sysctls(&[
                ("ipv6/conf/all/disable_ipv6", "0"),
                ("ipv6/conf/default/disable_ipv6", "0"),
                ("ipv6/conf/default/accept_dad", "0"),
                ("ipv6/conf/default/accept_ra", "0"),
            ])?;
        }
        self.netlink(async |handle| wire::up(&handle, "lo").await)
    }

    fn forward(&self, ipv6: bool) -> Result<()> {
        self.sysctls(&[("ipv4/ip_forward", "1")])?;
        if ipv6 {
            self.sysctls(&[("ipv6/conf/all/forwarding", "1")])?;
        }
        Ok(())
    }
}

/// Both ends and the net of the link before namespace `hop`: host part 1 is outside, 2 is inside, 0 is the net.
fn ends(hop: usize, host: u8) -> [IpAddr; 2] {
    let hop = u8::try_from(hop).unwrap_or(u8::MAX);
    [
        Ipv4Addr::new(10, 88, hop, host).into(),
        Ipv6Addr::new(0xfd88, 0, 0, u16::from(hop), 0, 0, 0, u16::from(host)).into(),
    ]
}

/// The net of all containers, of the family of `like`.
fn containers(like: IpAddr) -> (IpAddr, u8) {
    if like.is_ipv4() {
        (Ipv4Addr::new(10, 88, 0, 0).into(), 16)
    } else {
        (Ipv6Addr::new(0xfd88, 0, 0, 0, 0, 0, 0, 0).into(), 32)
    }
}

/// Prefix length of a link.
fn link(address: IpAddr) -> u8 {
    if address.is_ipv4() { 24 } else { 64 }
}

/// Prefix length of one address.
fn whole(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn inode() -> io::Result<u64> {
    Ok(fs::metadata("/proc/thread-self/ns/net")?.ino())
}

/// The caller keeps its user and group: what it executes has no privileges.
fn enter_user_namespace() -> Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER).context(
        "make a user namespace (this kernel or its security policy refuses it: run as root, or see \
         kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns and user.max_user_namespaces)",
    )?;
    let write = |name: &str, text: String| {
        let path = format!("/proc/self/{name}");
        fs::write(&path, text).with_context(|| format!("write {path}"))
    };
    write("setgroups", "deny".to_owned())?;
    write("uid_map", format!("{uid} {uid} 1"))?;
    write("gid_map", format!("{gid} {gid} 1"))
}
