//! Faults on the path to the metadata service, which a test enables and disables in a lab.
//!
//! Faults of the server are settings of `server::Behaviour`; this module adds those of firewalls, routes and neighbors. A guard reverts its
//! fault on drop. Drop guards in the reverse order of their creation, as scopes do.

mod firewall;
mod policy;
mod registry;
mod routes;

use std::{net::IpAddr, process::Command, sync::Arc};

use anyhow::{Context as _, Result};
use rtnetlink::packet_route::neighbour::NeighbourState;

pub use firewall::{Chain, Firewall, RuleAction, Scope, Tool};
pub use policy::{Hook, accompany, crowd_uplink, occupy, rewrite_connect};
pub use registry::{Entry, disturbances, registry};
pub use routes::RouteFault;

use crate::{
    server::Behaviour,
    topology::{IMDS_V4, Lab, Netns, Place, wire},
};

#[derive(Clone, Debug)]
pub enum Fault {
    Firewall(Firewall),
    Route {
        kind: RouteFault,
        victim: Victim,
        family: Family,
    },
    /// Another tool's eBPF program denies.
    Policy {
        hook: Hook,
        victim: Victim,
    },
    /// Upstream drops the packets silently.
    SilentUpstream(Family),
    /// Upstream silently drops packets above this rate, as EC2 does above 1024 packets a second.
    Quota {
        packets_per_s: u32,
    },
    /// Upstream loses every other SYN, so that each connection needs a second one.
    SynLoss,
    /// A NAT rule redirects the node's own packets to an address where nothing answers, like the leftover rule of a removed agent.
    Redirect,
    /// A NAT rule on the node redirects packets to [`AGENT_PORT`] of the node itself: the node's own packets, or those that it forwards for
    /// pods.
    RedirectToPort {
        forwarded: bool,
    },
    /// The listeners are closed: connections are refused.
    ServerDown,
    /// Any other setting of the server, as in `Behaviour::patched`.
    Behaviour(serde_json::Value),
}

/// Location of a fault, which determines the affected clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// On the node itself. A route that is missing there is missing for its pods too.
    Node,
    /// On the node, for forwarded packets. Only pods are affected.
    Forwarded,
    /// In this pod's own namespace.
    Pod(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
    Both,
}

impl Family {
    pub fn has(self, address: IpAddr) -> bool {
        match self {
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
            Self::Both => true,
        }
    }

    /// The lab's endpoints of this family.
    fn endpoints(self, lab: &Lab) -> Vec<IpAddr> {
        lab.endpoints()
            .iter()
            .map(std::net::SocketAddr::ip)
            .filter(|endpoint| self.has(*endpoint))
            .collect()
    }
}

/// Keeps a fault enabled. Dropping the guard disables it.
#[must_use = "the fault ends when its guard is dropped"]
pub struct FaultGuard {
    undo: Option<Box<dyn FnOnce() -> Result<()> + Send>>,
}

impl FaultGuard {
    fn new(undo: impl FnOnce() -> Result<()> + Send + 'static) -> Self {
        Self {
            undo: Some(Box::new(undo)),
        }
    }

    /// Reverts the fault, and returns whether that worked.
    pub fn undo(mut self) -> Result<()> {
        self.undo
            .take()
            .map_or(Ok(()), |undo| undo())
            .context("take a fault back")
    }
}

impl Drop for FaultGuard {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.undo.take().map(|undo| undo()) {
            eprintln!("imds-observer-lab: take a fault back: {error:#}");
        }
    }
}

impl Lab {
    /// Enables a fault, which is in force when this returns.
    pub fn inject(&self, fault: &Fault) -> Result<FaultGuard> {
        let guard = match fault {
            Fault::Firewall(rule) => rule.inject(self),
            Fault::Route { kind, victim, family } => routes::inject(self, *kind, *victim, *family),
            Fault::Policy { hook, victim } => policy::inject(self, *hook, *victim),
            Fault::SilentUpstream(family) => silence(self, *family),
            Fault::Quota { packets_per_s } => limit(self, *packets_per_s),
            Fault::SynLoss => lose_syns(self),
            Fault::Redirect => redirect(self),
            Fault::RedirectToPort { forwarded } => redirect_to_port(self, *forwarded),
            Fault::ServerDown => Ok(switch(self, |behaviour| behaviour.listening = false)),
            Fault::Behaviour(patch) => {
                let wanted = self.server().behaviour().patched(patch)?;
                Ok(switch(self, |behaviour| *behaviour = wanted))
            }
        };
        guard.with_context(|| format!("inject {fault:?}"))
    }

    /// The place in which a victim's own fault is created.
    fn place_of(&self, victim: Victim) -> &Place {
        match victim {
            Victim::Node | Victim::Forwarded => self.node(),
            Victim::Pod(number) => self.pod(number),
        }
    }
}

fn switch(lab: &Lab, change: impl FnOnce(&mut Behaviour)) -> FaultGuard {
    let switchboard = lab.server().switchboard();
    let before = switchboard.behaviour();
    switchboard.update(change);
    FaultGuard::new(move || {
        switchboard.update(|behaviour| *behaviour = before);
        Ok(())
    })
}

/// The next hop accepts the packets and does nothing with them: they are sent to an unused link-layer address. The drop therefore shows no
/// sign of its cause, as on a real network, where it happens on another machine.
fn silence(lab: &Lab, family: Family) -> Result<FaultGuard> {
    const NOBODY: [u8; 6] = [0x02, 0, 0, 0, 0, 0x99];
    let netns = lab.node().shared_netns();
    let hops: Vec<IpAddr> = lab.next_hops().into_iter().filter(|hop| family.has(*hop)).collect();
    netns.netlink(async |handle| {
        let index = wire::index("eth0")?;
        for hop in &hops {
            let entry = handle.neighbours().add(index, *hop).link_layer_address(&NOBODY);
            entry.state(NeighbourState::Permanent).replace().execute().await?;
        }
        Ok(())
    })?;
    Ok(FaultGuard::new(move || {
        netns.netlink(async |handle| {
            let index = wire::index("eth0")?;
            for hop in &hops {
                let mut entry = handle.neighbours().add(index, *hop);
                let entry = entry.message_mut().clone();
                handle.neighbours().del(entry).execute().await?;
            }
            Ok(())
        })
    }))
}

/// Sends every other SYN to a link-layer address that no host has, as in [`silence`]. The observer would recognize a firewall rule as the
/// cause of a drop.
fn lose_syns(lab: &Lab) -> Result<FaultGuard> {
    table(
        lab.node().shared_netns(),
        "netdev imdslab_syns",
        "chain egress { type filter hook egress device eth0 priority 0; policy accept;\n\
         tcp dport 80 tcp flags & (syn | ack) == syn numgen inc mod 2 == 0 ether daddr set 02:00:00:00:00:99\n}",
    )
}

/// An address of the documentation range: no machine has it, and the upstream host forwards nothing.
const AGENT: &str = "192.0.2.77:8181";

fn redirect(lab: &Lab) -> Result<FaultGuard> {
    let hops = lab.next_hops();
    let hop = hops.iter().find(|hop| hop.is_ipv4()).context("there is no next hop")?;
    let netns = lab.node().shared_netns();
    // Without a route the packets would not leave their socket.
    let (address, _) = AGENT.split_once(':').unwrap_or((AGENT, ""));
    let route = [address, "via", &hop.to_string(), "dev", "eth0"];
    netns.run_program(Command::new("ip").args(["route", "replace"]).args(route))?;
    table(
        lab.node().shared_netns(),
        "ip imdslab_redirect",
        &format!(
            "chain output {{ type nat hook output priority -100; policy accept;\n\
             ip daddr {IMDS_V4} tcp dport 80 dnat to {AGENT}\n}}"
        ),
    )
}

/// Port of a metadata agent on its node. Nothing listens there unless a scenario starts an agent.
pub const AGENT_PORT: u16 = 1338;

fn redirect_to_port(lab: &Lab, forwarded: bool) -> Result<FaultGuard> {
    let hook = if forwarded { "prerouting" } else { "output" };
    table(
        lab.node().shared_netns(),
        "ip imdslab_redirect_to_port",
        &format!(
            "chain {hook} {{ type nat hook {hook} priority -100; policy accept;\n\
             ip daddr {IMDS_V4} tcp dport 80 redirect to :{AGENT_PORT}\n}}"
        ),
    )
}

/// Adds an nftables table. The guard deletes it.
fn table(netns: Arc<Netns>, name: &'static str, chains: &str) -> Result<FaultGuard> {
    netns.run_program(Command::new("nft").arg(format!("table {name} {{ {chains}\n}}")))?;
    Ok(FaultGuard::new(move || {
        netns.run_program(Command::new("nft").args(["delete", "table"]).args(name.split(' ')))
    }))
}

fn limit(lab: &Lab, packets_per_s: u32) -> Result<FaultGuard> {
    let netns = lab.imds().shared_netns();
    // Both address families share the allowance, as on EC2: every incoming packet counts.
    let chains = format!(
        "chain input {{ type filter hook input priority 0; policy accept;\n\
         limit rate over {packets_per_s}/second burst 64 packets drop\n}}"
    );
    table(netns, "inet imdslab_quota", &chains)
}
