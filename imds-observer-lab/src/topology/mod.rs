//! A host with its metadata service, made of network namespaces: the service, the node, and pods behind a bridge.
//!
//! ```text
//!  imds                         node                          pod0, pod1, ...
//!  lo  169.254.169.254          eth0 10.77.0.5  cni0 10.88.0.1
//!      fd00:ec2::254     up0 ── eth0     forwards,  └─ veth0 ── eth0 10.88.0.2
//!      10.77.0.1                         masquerades pods       (nested: one router more)
//! ```
//!
//! No packet can leave the lab: both ends of each veth pair are inside, and `Lab::new` checks the result.

mod cgroup;
mod claim;
mod netns;
mod place;

use std::{
    collections::BTreeMap,
    fs::File,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::fcntl::Flock;

pub use cgroup::{Cgroup, mount_point as cgroup_mount_point};
pub use claim::{DIRECTORY as RUN_DIRECTORY, clean, take_turn};
pub use netns::Netns;
pub use place::Place;

use crate::server::{Behaviour, Server, ServerOptions};
use claim::Claim;
pub(crate) use imds_observer_standin::wire;
use wire::Route;

pub const IMDS_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
pub const IMDS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
pub const IMDS_PORT: u16 = 80;
/// Bridge to which the pods are connected.
pub const BRIDGE: &str = "cni0";

const POD_GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);
const POD_PREFIX_V4: u8 = 16;
const POD_GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd88, 0, 0, 0, 0, 0, 0, 1);
/// Gateway addresses of a nested pod (IPv4, IPv6).
const NEST_GATEWAYS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 99, 255, 254)),
    IpAddr::V6(Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 1)),
];
/// Number of pods. The host part of a pod's IPv4 and IPv6 addresses counts from 2.
const MAX_PODS: usize = 60_000;
/// Timeout of the first connection to each endpoint.
const READY: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub struct LabOptions {
    /// The server's initial behavior; the default is a healthy instance with hop limit 1.
    pub behaviour: Behaviour,
    pub pods: Vec<PodOptions>,
    pub route: RouteStyle,
    pub masquerade: bool,
    /// Disabled automatically if the kernel has no IPv6.
    pub ipv6: bool,
    /// Wait for the machine-wide lock of exclusive labs. Two exclusive labs on one thread wait for ever.
    pub exclusive: bool,
    /// Connect to the service once from the node and from each pod before returning. Without it the first packets may find no
    /// neighbor entry.
    pub probe: bool,
}

impl Default for LabOptions {
    fn default() -> Self {
        Self {
            behaviour: Behaviour::default(),
            pods: vec![PodOptions::default()],
            route: RouteStyle::Endpoints,
            masquerade: true,
            ipv6: true,
            exclusive: true,
            probe: true,
        }
    }
}

/// The node's routes to the endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteStyle {
    /// A host route to each endpoint, through the gateway.
    Endpoints,
    /// The default route, which ends in the lab.
    Default,
}

#[derive(Clone, Debug, Default)]
pub struct PodOptions {
    pub cgroup: PodCgroup,
    /// Whether the path has one more router, so that requests reach the uplink with TTL 62.
    pub nested: bool,
}

/// Name of the pod's cgroup, below the lab's own.
#[derive(Clone, Debug, Default)]
pub enum PodCgroup {
    /// `pod-<k>`
    #[default]
    Plain,
    /// `kubepods/<qos>/pod<uid>/<container id>`
    Kubepods {
        qos: String,
        uid: String,
        container_id: String,
    },
    Path(String),
}

impl PodCgroup {
    fn path(&self, number: usize) -> String {
        match self {
            Self::Plain => format!("pod-{number}"),
            Self::Kubepods { qos, uid, container_id } => format!("kubepods/{qos}/pod{uid}/{container_id}"),
            Self::Path(path) => path.trim_matches('/').to_owned(),
        }
    }
}

struct Pod {
    place: Place,
    /// The router of a nested pod.
    outer: Option<Arc<Netns>>,
    /// Name of the pod's veth interface on the node.
    cable: String,
    default_routes: Vec<Route>,
}

/// A running lab. Dropping it ends its processes and removes its namespaces, cgroups and files.
pub struct Lab {
    server: Option<Server>,
    imds: Place,
    node: Place,
    pods: BTreeMap<usize, Pod>,
    next_pod: usize,
    uplinks: Vec<u8>,
    /// The node's current routes to the endpoints.
    routes: Arc<Mutex<Vec<Route>>>,
    options: LabOptions,
    cgroups: PathBuf,
    claim: Claim,
    _turn: Option<Flock<File>>,
}

impl Lab {
    /// Creates a lab and returns when the node and all pods reach the service. Needs root.
    pub fn new(options: LabOptions) -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "making network namespaces needs root");
        let turn = options.exclusive.then(take_turn).transpose()?;
        clean().context("clean up after labs whose owner died")?;
        let claim = Claim::new()?;
        let mut options = options;
        options.ipv6 &= Path::new("/proc/sys/net/ipv6").exists();

        let mount_point = cgroup::mount_point()?;
        let lab_cgroup = format!("{}{}", claim::PREFIX, claim.id());
        let place = |name: &str, ipv4, ipv6| -> Result<Place> {
            let netns = Netns::create(&format!("{lab_cgroup}-{name}"))?;
            prepare(&netns, options.ipv6)?;
            let cgroup = Arc::new(Cgroup::create(&mount_point, &format!("{lab_cgroup}/{name}"))?);
            Ok(Place {
                netns: Arc::new(netns),
                cgroup,
                ipv4,
                ipv6: options.ipv6.then_some(ipv6),
            })
        };
        let imds = place("imds", IMDS_V4, IMDS_V6)?;
        let node = place("node", node_v4(0), node_v6(0))?;
        let mut lab = Self {
            server: None,
            imds,
            node,
            pods: BTreeMap::new(),
            next_pod: 0,
            uplinks: Vec::new(),
            routes: Arc::default(),
            options,
            cgroups: mount_point.join(&lab_cgroup),
            claim,
            _turn: turn,
        };
        lab.build().context("build the lab")?;
        Ok(lab)
    }

    fn build(&mut self) -> Result<()> {
        let ipv6 = self.options.ipv6;
        self.imds.netns.netlink(async |handle| {
            wire::add_address(&handle, "lo", IMDS_V4.into(), 32).await?;
            if ipv6 {
                wire::add_address(&handle, "lo", IMDS_V6.into(), 128).await?;
            }
            Ok(())
        })?;
        // Raised for flood tests; both sysctls are per network namespace.
        self.imds
            .netns
            .sysctls(&[("core/somaxconn", "65535"), ("ipv4/tcp_max_syn_backlog", "65535")])?;
        let uplink = self.add_uplink()?;
        self.route_through(&uplink)?;

        self.node.netns.netlink(async |handle| {
            wire::bridge(&handle, BRIDGE).await?;
            wire::add_address(&handle, BRIDGE, POD_GATEWAY_V4.into(), POD_PREFIX_V4).await?;
            if ipv6 {
                wire::add_address(&handle, BRIDGE, POD_GATEWAY_V6.into(), 64).await?;
            }
            Ok(())
        })?;
        forward(&self.node.netns, ipv6)?;
        if self.options.masquerade {
            masquerade(&self.node.netns, "10.88.0.0/16", ipv6.then_some("fd88::/64"))?;
        } else {
            self.route_back()?;
        }

        let mut listen = vec![SocketAddr::from((IMDS_V4, IMDS_PORT))];
        if ipv6 {
            listen.push(SocketAddr::from((IMDS_V6, IMDS_PORT)));
        }
        self.server = Some(Server::start(ServerOptions {
            netns: Some(self.imds.netns.descriptor()?),
            control: Some(self.claim.control_socket()),
            behaviour: self.options.behaviour.clone(),
            ..ServerOptions::new(listen)
        })?);
        for pod in self.options.pods.clone() {
            self.make_pod(&pod)?;
        }
        self.check_enclosed()?;
        if self.options.probe {
            self.probe(&self.node)?;
            self.pods.values().try_for_each(|pod| self.probe(&pod.place))?;
        }
        Ok(())
    }

    /// ID of the lab, as `<pid>-<n>`. The names of its namespaces and cgroups contain it.
    pub fn id(&self) -> &str {
        self.claim.id()
    }

    pub fn server(&self) -> &Server {
        self.server.as_ref().expect("a lab has a server until it is dropped")
    }

    /// Path of the socket through which another process changes the server's behavior (`server::ControlClient`).
    pub fn control_socket(&self) -> PathBuf {
        self.claim.control_socket()
    }

    pub fn has_ipv6(&self) -> bool {
        self.options.ipv6
    }

    /// The endpoints of this lab, with their port.
    pub fn endpoints(&self) -> Vec<SocketAddr> {
        self.server().addresses().to_vec()
    }

    /// The cgroup that contains the cgroups of the node and all pods.
    pub fn cgroup_directory(&self) -> &Path {
        &self.cgroups
    }

    pub fn node(&self) -> &Place {
        &self.node
    }

    /// The service's namespace, for captures and faults.
    pub fn imds(&self) -> &Place {
        &self.imds
    }

    /// The pod with this number. Panics if there is none, which is a bug in the test.
    pub fn pod(&self, number: usize) -> &Place {
        match self.pods.get(&number) {
            Some(pod) => &pod.place,
            None => panic!("this lab has no pod {number}"),
        }
    }

    /// Gateways of the node's first uplink.
    pub(crate) fn next_hops(&self) -> Vec<IpAddr> {
        let mut hops = vec![gateway_v4(0).into()];
        if self.has_ipv6() {
            hops.push(gateway_v6(0).into());
        }
        hops
    }

    /// Name of a pod's veth interface on the node.
    pub(crate) fn cable_of(&self, victim: crate::faults::Victim) -> Result<String> {
        let crate::faults::Victim::Pod(number) = victim else {
            anyhow::bail!("only pods have a veth pair");
        };
        let pod = self
            .pods
            .get(&number)
            .with_context(|| format!("there is no pod {number}"))?;
        Ok(pod.cable.clone())
    }

    pub fn pods(&self) -> impl Iterator<Item = (usize, &Place)> {
        self.pods.iter().map(|(number, pod)| (*number, &pod.place))
    }

    /// Adds a pod and returns its number; numbers are not used again.
    pub fn add_pod(&mut self, options: &PodOptions) -> Result<usize> {
        let number = self.make_pod(options)?;
        self.check_enclosed()?;
        if self.options.probe {
            self.probe(self.pod(number))?;
        }
        Ok(number)
    }

    /// Ends a pod's processes and removes it.
    pub fn remove_pod(&mut self, number: usize) -> Result<()> {
        let pod = self
            .pods
            .remove(&number)
            .ok_or_else(|| anyhow!("this lab has no pod {number}"))?;
        cgroup::remove_tree(pod.place.cgroup.directory())?;
        // The kernel removes a namespace some time after its last user has ended. Delete the veth pair now.
        self.node
            .netns
            .netlink(async |handle| wire::delete(&handle, &pod.cable).await)
    }

    /// Adds another interface of the node through which the service is reachable. No route uses it yet.
    pub fn add_uplink(&mut self) -> Result<String> {
        let number = self.uplinks.iter().max().map_or(0, |last| last + 1);
        let (name, peer, ipv6) = (format!("eth{number}"), format!("up{number}"), self.options.ipv6);
        let imds = self.imds.netns.descriptor()?;
        self.node.netns.netlink(async |handle| {
            wire::veth(&handle, &name, &peer, &imds).await?;
            wire::add_address(&handle, &name, node_v4(number).into(), 24).await?;
            if ipv6 {
                wire::add_address(&handle, &name, node_v6(number).into(), 64).await?;
            }
            Ok(())
        })?;
        self.imds.netns.netlink(async |handle| {
            wire::up(&handle, &peer).await?;
            wire::add_address(&handle, &peer, gateway_v4(number).into(), 24).await?;
            if ipv6 {
                wire::add_address(&handle, &peer, gateway_v6(number).into(), 64).await?;
            }
            Ok(())
        })?;
        self.uplinks.push(number);
        Ok(name)
    }

    /// Removes an uplink. The kernel removes the routes through it.
    pub fn remove_uplink(&mut self, name: &str) -> Result<()> {
        let number = self.uplink_number(name)?;
        self.node
            .netns
            .netlink(async |handle| wire::delete(&handle, name).await)?;
        self.uplinks.retain(|uplink| *uplink != number);
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        routes.retain(|route| !matches!(&route.hop, wire::Hop::Via { interface, .. } if interface == name));
        Ok(())
    }

    /// From now on, sends IMDS traffic of the node and of its pods through this uplink.
    pub fn route_through(&self, uplink: &str) -> Result<()> {
        let number = self.uplink_number(uplink)?;
        let route = |endpoint: IpAddr, gateway: IpAddr| match (self.options.route, endpoint) {
            (RouteStyle::Default, _) => Route::default_via(gateway, uplink),
            (RouteStyle::Endpoints, IpAddr::V4(_)) => Route::via(endpoint, 32, gateway, uplink),
            (RouteStyle::Endpoints, IpAddr::V6(_)) => Route::via(endpoint, 128, gateway, uplink),
        };
        let mut wanted = vec![route(IMDS_V4.into(), gateway_v4(number).into())];
        if self.options.ipv6 {
            wanted.push(route(IMDS_V6.into(), gateway_v6(number).into()));
        }
        self.replace_routes(wanted)
    }

    /// Replaces the node's routes to the endpoints.
    fn replace_routes(&self, wanted: Vec<Route>) -> Result<()> {
        replace_routes(&self.node.netns, &self.routes, wanted)
    }

    /// The node's routes to the endpoints, shared with the guards of faults.
    pub(crate) fn routes(&self) -> &Arc<Mutex<Vec<Route>>> {
        &self.routes
    }

    pub(crate) fn route_style(&self) -> RouteStyle {
        self.options.route
    }

    /// The pod's default routes, as created.
    pub(crate) fn default_routes_of(&self, pod: usize) -> &[Route] {
        self.pods.get(&pod).map_or(&[], |pod| &pod.default_routes)
    }

    fn uplink_number(&self, name: &str) -> Result<u8> {
        let number = name.strip_prefix("eth").and_then(|number| number.parse().ok());
        number
            .filter(|number| self.uplinks.contains(number))
            .ok_or_else(|| anyhow!("this lab has no uplink {name}"))
    }

    fn make_pod(&mut self, options: &PodOptions) -> Result<usize> {
        let number = self.next_pod;
        ensure!(number < MAX_PODS, "a lab has addresses for {MAX_PODS} pods");
        self.next_pod += 1;
        let host = number as u16 + 2;
        let [high, low] = host.to_be_bytes();
        let ipv4 = Ipv4Addr::new(10, 88, high, low);
        let ipv6 = Ipv6Addr::new(0xfd88, 0, 0, 0, 0, 0, 0, host);
        let prefix = format!("{}{}-pod{number}", claim::PREFIX, self.id());
        let cgroup_path = format!("{}{}/{}", claim::PREFIX, self.id(), options.cgroup.path(number));
        let cgroup = Arc::new(Cgroup::create(&cgroup::mount_point()?, &cgroup_path)?);
        let has_v6 = self.options.ipv6;

        let netns = Arc::new(Netns::create(&prefix)?);
        prepare(&netns, has_v6)?;
        let cable = format!("veth{number}");
        let (outer, addresses) = if options.nested {
            let outer = Arc::new(Netns::create(&format!("{prefix}-outer"))?);
            prepare(&outer, has_v6)?;
            self.plug_in(&cable, &outer, ipv4, ipv6)?;
            (Some(Arc::clone(&outer)), nest(&outer, &netns, host, has_v6)?)
        } else {
            self.plug_in(&cable, &netns, ipv4, ipv6)?;
            (None, (ipv4, ipv6))
        };
        let gateways: [IpAddr; 2] = if options.nested {
            NEST_GATEWAYS
        } else {
            [POD_GATEWAY_V4.into(), POD_GATEWAY_V6.into()]
        };
        let default_routes = gateways
            .into_iter()
            .filter(|gateway| has_v6 || gateway.is_ipv4())
            .map(|gateway| Route::default_via(gateway, "eth0"))
            .collect();
        let place = Place {
            netns,
            cgroup,
            ipv4: addresses.0,
            ipv6: has_v6.then_some(addresses.1),
        };
        self.pods.insert(
            number,
            Pod {
                place,
                outer,
                cable,
                default_routes,
            },
        );
        Ok(number)
    }

    /// Connects a namespace to the bridge.
    fn plug_in(&self, cable: &str, netns: &Netns, ipv4: Ipv4Addr, ipv6: Ipv6Addr) -> Result<()> {
        let (target, has_v6) = (netns.descriptor()?, self.options.ipv6);
        self.node.netns.netlink(async |handle| {
            wire::veth(&handle, cable, "eth0", &target).await?;
            wire::plug_into(&handle, cable, BRIDGE).await
        })?;
        netns.netlink(async |handle| {
            wire::up(&handle, "eth0").await?;
            wire::add_address(&handle, "eth0", ipv4.into(), POD_PREFIX_V4).await?;
            Route::default_via(POD_GATEWAY_V4.into(), "eth0").add(&handle).await?;
            if has_v6 {
                wire::add_address(&handle, "eth0", ipv6.into(), 64).await?;
                Route::default_via(POD_GATEWAY_V6.into(), "eth0").add(&handle).await?;
            }
            Ok(())
        })
    }

    /// Adds routes to the pods on the service's host, which needs them without masquerading.
    fn route_back(&self) -> Result<()> {
        let ipv6 = self.options.ipv6;
        self.imds.netns.netlink(async |handle| {
            let pods = Ipv4Addr::new(10, 88, 0, 0).into();
            Route::via(pods, POD_PREFIX_V4, node_v4(0).into(), "up0")
                .add(&handle)
                .await?;
            if ipv6 {
                let pods = Ipv6Addr::new(0xfd88, 0, 0, 0, 0, 0, 0, 0).into();
                Route::via(pods, 64, node_v6(0).into(), "up0").add(&handle).await?;
            }
            Ok(())
        })
    }

    /// Checks that the lab has no route to the outside: the service has no default route, and every active interface was
    /// created by the lab.
    fn check_enclosed(&self) -> Result<()> {
        let ways_out = self
            .imds
            .netns
            .netlink(async |handle| wire::default_routes(&handle).await)?;
        ensure!(
            ways_out == 0,
            "the namespace of the metadata service has a default route"
        );
        let mut spaces: Vec<&Netns> = vec![&self.imds.netns, &self.node.netns];
        for pod in self.pods.values() {
            spaces.push(&pod.place.netns);
            spaces.extend(pod.outer.as_deref());
        }
        for netns in spaces {
            for name in netns.netlink(async |handle| wire::active_interfaces(&handle).await)? {
                let ours =
                    name == BRIDGE || name == "inner0" || ["eth", "up", "veth"].iter().any(|p| name.starts_with(p));
                ensure!(
                    ours,
                    "{} has an interface {name} that the lab did not make",
                    netns.name()
                );
            }
        }
        Ok(())
    }

    /// Waits until a namespace reaches every endpoint.
    fn probe(&self, place: &Place) -> Result<()> {
        place.run_in_thread(|| {
            for endpoint in self.endpoints() {
                let deadline = Instant::now() + READY;
                loop {
                    match TcpStream::connect_timeout(&endpoint, Duration::from_millis(500)) {
                        Ok(_) => break,
                        // A refused connection proves that the path works: the test has stopped the server.
                        Err(error) if error.kind() == ErrorKind::ConnectionRefused => break,
                        Err(error) if Instant::now() > deadline => {
                            bail!("{} does not reach {endpoint}: {error}", place.netns.name());
                        }
                        Err(_) => std::thread::yield_now(),
                    }
                }
            }
            Ok(())
        })?
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.server = None;
        if let Err(error) = cgroup::remove_tree(&self.cgroups) {
            eprintln!("imds-observer-lab: {error:#}");
        }
        // The guard of a fault may keep a namespace alive. Remove the namespace's name now.
        let pods = self
            .pods
            .values()
            .flat_map(|pod| [Some(&pod.place.netns), pod.outer.as_ref()]);
        for netns in pods.flatten().chain([&self.imds.netns, &self.node.netns]) {
            netns::remove(netns.path());
        }
    }
}

pub(crate) fn replace_routes(node: &Netns, current: &Mutex<Vec<Route>>, wanted: Vec<Route>) -> Result<()> {
    let mut current = current.lock().unwrap_or_else(PoisonError::into_inner);
    let (old, new) = (current.clone(), &wanted);
    node.netlink(async |handle| {
        for route in &old {
            route.delete(&handle).await?;
        }
        for route in new {
            route.add(&handle).await?;
        }
        Ok(())
    })?;
    *current = wanted;
    Ok(())
}

/// Sets sysctls of a new namespace, before it has an interface.
fn prepare(netns: &Netns, ipv6: bool) -> Result<()> {
    netns.sysctls(&[
        // Replies may arrive on an interface other than that of the return route.
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv4/ip_local_port_range", "1024 65535"),
    ])?;
    if ipv6 {
        netns.sysctls(&[
            ("ipv6/conf/all/disable_ipv6", "0"),
            ("ipv6/conf/default/disable_ipv6", "0"),
            // No duplicate address detection of addresses that the kernel adds.
            ("ipv6/conf/all/accept_dad", "0"),
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv6/conf/all/accept_ra", "0"),
            ("ipv6/conf/default/accept_ra", "0"),
        ])?;
    }
    netns.netlink(async |handle| wire::up(&handle, "lo").await)
}

fn forward(netns: &Netns, ipv6: bool) -> Result<()> {
    netns.sysctls(&[("ipv4/ip_forward", "1")])?;
    if ipv6 {
        netns.sysctls(&[("ipv6/conf/all/forwarding", "1")])?;
    }
    Ok(())
}

/// Adds a router namespace between the bridge and the pod, as for a container nested in a pod.
fn nest(outer: &Netns, inner: &Netns, host: u16, ipv6: bool) -> Result<(Ipv4Addr, Ipv6Addr)> {
    let [high, low] = host.to_be_bytes();
    let [gateway, gateway_v6] = NEST_GATEWAYS;
    let address = Ipv4Addr::new(10, 99, high, low);
    let address_v6 = Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, host);
    let target = inner.descriptor()?;
    outer.netlink(async |handle| {
        wire::veth(&handle, "inner0", "eth0", &target).await?;
        wire::add_address(&handle, "inner0", gateway, 16).await?;
        if ipv6 {
            wire::add_address(&handle, "inner0", gateway_v6, 64).await?;
        }
        Ok(())
    })?;
    inner.netlink(async |handle| {
        wire::up(&handle, "eth0").await?;
        wire::add_address(&handle, "eth0", address.into(), 16).await?;
        Route::default_via(gateway, "eth0").add(&handle).await?;
        if ipv6 {
            wire::add_address(&handle, "eth0", address_v6.into(), 64).await?;
            Route::default_via(gateway_v6, "eth0").add(&handle).await?;
        }
        Ok(())
    })?;
    forward(outer, ipv6)?;
    masquerade(outer, "10.99.0.0/16", ipv6.then_some("fd99::/64"))?;
    Ok((address, address_v6))
}

/// Masquerades packets from these nets, with random ports as in the VPC CNI.
fn masquerade(netns: &Netns, v4: &str, v6: Option<&str>) -> Result<()> {
    let v6_rule = v6
        .map(|net| format!("ip6 saddr {net} ip6 daddr != {net} masquerade fully-random"))
        .unwrap_or_default();
    let table = format!(
        "table inet imdslab {{ chain postrouting {{ type nat hook postrouting priority 100; policy accept; \
         ip saddr {v4} ip daddr != {v4} masquerade fully-random\n{v6_rule}\n}}\n}}"
    );
    let by_nft = netns.run_program(Command::new("nft").arg(table));
    let Err(nft_error) = by_nft else { return Ok(()) };
    let by_iptables = |program: &str, net: &str| {
        let mut command = Command::new(program);
        command.args([
            "-w",
            "-t",
            "nat",
            "-A",
            "POSTROUTING",
            "-s",
            net,
            "!",
            "-d",
            net,
            "-j",
            "MASQUERADE",
        ]);
        netns.run_program(command.arg("--random-fully"))
    };
    by_iptables("iptables", v4)
        .and_then(|()| v6.map_or(Ok(()), |net| by_iptables("ip6tables", net)))
        .with_context(|| {
            format!("masquerade (nft failed too: {nft_error:#}); LabOptions::masquerade = false does without")
        })
}

fn node_v4(uplink: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, uplink, 5)
}

fn gateway_v4(uplink: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, uplink, 1)
}

fn node_v6(uplink: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0, 0, u16::from(uplink), 0, 0, 0, 5)
}

fn gateway_v6(uplink: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0, 0, u16::from(uplink), 0, 0, 0, 1)
}
