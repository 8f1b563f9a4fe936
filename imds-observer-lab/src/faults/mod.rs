//! Ways of not reaching the metadata service, each to be switched on in a lab and off again.
//!
//! Faults of the server are switches of `server::Behaviour`; this module adds those of firewalls, routes and neighbors.
//! Guards undo what they did: drop them in the reverse order, as scopes do.

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
    /// Upstream silently drops what exceeds this rate, as EC2 does with more than 1024 packets a second.
    Quota {
        packets_per_s: u32,
    },
    /// Upstream loses every other SYN, so that each connection needs a second one.
    SynLoss,
    /// NAT of the node's own packets leads to an address where nothing answers, as the rule of an agent that is gone.
    Redirect,
    /// NAT on the node leads to [`AGENT_PORT`] of the node itself: its own packets, or those that it forwards for pods.
    RedirectToPort {
        forwarded: bool,
    },
    /// The listeners are closed: connections are refused.
    ServerDown,
    /// Any other switch of the server, as in `Behaviour::patched`.
    Behaviour(serde_json::Value),
}

/// Where a fault sits, and so whom it hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// On the node itself; a route that is missing there is missing for its pods too.
    Node,
    /// On the node, for forwarded packets: only pods.
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

    /// The endpoints it means, in this lab.
    fn endpoints(self, lab: &Lab) -> Vec<IpAddr> {
        lab.endpoints()
            .iter()
            .map(std::net::SocketAddr::ip)
            .filter(|endpoint| self.has(*endpoint))
            .collect()
    }
}

/// Holds a fault on; dropping it takes the fault back.
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
    /// Switches a fault on; it is in force when this returns.
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

    /// The place a victim's own fault sits in.
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

/// The next hop takes the packets and does nothing: they go to an unused link-layer address. So the drop bears no
/// sign of a cause, as on a real network, where it happens on another machine.
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

/// They go to a link-layer address that no host there has, as in [`silence`]: a rule that drops would be seen as what it is.
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

/// Where a metadata agent listens on its node. Nothing does unless a scenario starts it.
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

/// Adds an nftables table, which goes with the guard.
fn table(netns: Arc<Netns>, name: &'static str, chains: &str) -> Result<FaultGuard> {
    netns.run_program(Command::new("nft").arg(format!("table {name} {{ {chains}\n}}")))?;
    Ok(FaultGuard::new(move || {
        netns.run_program(Command::new("nft").args(["delete", "table"]).args(name.split(' ')))
    }))
}

fn limit(lab: &Lab, packets_per_s: u32) -> Result<FaultGuard> {
    let netns = lab.imds().shared_netns();
    // Both families share the allowance, as they do on EC2: everything that comes in counts.
    let chains = format!(
        "chain input {{ type filter hook input priority 0; policy accept;\n\
         limit rate over {packets_per_s}/second burst 64 packets drop\n}}"
    );
    table(netns, "inet imdslab_quota", &chains)
}
