//! Firewall rules between a client and the endpoints.

use std::{
    net::IpAddr,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result};

use super::{Family, FaultGuard, Victim};
use crate::topology::{Lab, Place, cgroup_mount_point};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firewall {
    pub tool: Tool,
    pub chain: Chain,
    pub verdict: RuleAction,
    /// Host whose OUTPUT or INPUT chain has the rule. The FORWARD chain is always the node's.
    pub victim: Victim,
    pub scope: Scope,
    pub family: Family,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    Nft,
    /// The legacy iptables interface of the kernel, which drops packets in another function.
    Legacy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chain {
    Output,
    Forward,
    /// The victim's INPUT chain, for packets of the endpoints.
    Input,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleAction {
    Drop,
    /// ICMP port unreachable: the client sees a refused connection.
    Reject,
    /// ICMP host unreachable.
    RejectHost,
    /// A reset that looks as if the server had sent it.
    RejectReset,
}

/// Processes of the victim to which an OUTPUT rule applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    All,
    Uid(u32),
    /// The processes of the victim's cgroup.
    OwnCgroup,
}

impl Firewall {
    pub(super) fn inject(&self, lab: &Lab) -> Result<FaultGuard> {
        let place = match self.chain {
            Chain::Output | Chain::Input => lab.place_of(self.victim),
            Chain::Forward => lab.node(),
        };
        let endpoints = self.family.endpoints(lab);
        match self.tool {
            Tool::Nft => self.inject_nft(place, &endpoints),
            Tool::Legacy => self.inject_legacy(place, &endpoints),
        }
    }

    fn inject_nft(&self, place: &Place, endpoints: &[IpAddr]) -> Result<FaultGuard> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let name = format!("imdslab_fault_{}", COUNTER.fetch_add(1, Ordering::Relaxed));
        let hook = match self.chain {
            Chain::Output => "output",
            Chain::Forward => "forward",
            Chain::Input => "input",
        };
        let (address, port) = match self.chain {
            Chain::Output | Chain::Forward => ("daddr", "dport"),
            Chain::Input => ("saddr", "sport"),
        };
        let scope = match self.scope {
            Scope::All => String::new(),
            Scope::Uid(uid) => format!("meta skuid {uid}"),
            Scope::OwnCgroup => nft_cgroup(place)?,
        };
        let verdict = match self.verdict {
            RuleAction::Drop => "drop",
            RuleAction::Reject => "reject with icmpx type port-unreachable",
            RuleAction::RejectHost => "reject with icmpx type host-unreachable",
            RuleAction::RejectReset => "reject with tcp reset",
        };
        let rule = |endpoint: &IpAddr| {
            let family = if endpoint.is_ipv4() { "ip" } else { "ip6" };
            format!("{family} {address} {endpoint} tcp {port} 80 {scope} {verdict}\n")
        };
        let rules: String = endpoints.iter().map(rule).collect();
        let table = format!(
            "table inet {name} {{ chain {hook} {{ type filter hook {hook} priority 0; policy accept;\n{rules}}}\n}}"
        );
        let netns = place.shared_netns();
        netns.run_program(Command::new("nft").arg(table))?;
        Ok(FaultGuard::new(move || {
            netns.run_program(Command::new("nft").args(["delete", "table", "inet", &name]))
        }))
    }

    fn inject_legacy(&self, place: &Place, endpoints: &[IpAddr]) -> Result<FaultGuard> {
        let netns = place.shared_netns();
        let mut guards = Vec::new();
        for endpoint in endpoints {
            let program = if endpoint.is_ipv4() {
                "iptables-legacy"
            } else {
                "ip6tables-legacy"
            };
            let rule = self.legacy_rule(place, *endpoint);
            netns.run_program(Command::new(program).args(["-w", "-I"]).args(&rule))?;
            let netns = place.shared_netns();
            guards.push(FaultGuard::new(move || {
                netns.run_program(Command::new(program).args(["-w", "-D"]).args(&rule))
            }));
        }
        Ok(FaultGuard::new(move || {
            guards.into_iter().try_for_each(FaultGuard::undo)
        }))
    }

    fn legacy_rule(&self, place: &Place, endpoint: IpAddr) -> Vec<String> {
        let chain = match self.chain {
            Chain::Output => "OUTPUT",
            Chain::Forward => "FORWARD",
            Chain::Input => "INPUT",
        };
        let (address, port) = match self.chain {
            Chain::Output | Chain::Forward => ("-d", "--dport"),
            Chain::Input => ("-s", "--sport"),
        };
        let mut rule: Vec<String> = [chain, address, &endpoint.to_string(), "-p", "tcp", port, "80"]
            .map(str::to_owned)
            .to_vec();
        match self.scope {
            Scope::All => {}
            Scope::Uid(uid) => rule.extend(["-m", "owner", "--uid-owner", &uid.to_string()].map(str::to_owned)),
            Scope::OwnCgroup => {
                let path = place.cgroup().path().trim_start_matches('/');
                rule.extend(["-m", "cgroup", "--path", path].map(str::to_owned));
            }
        }
        let unreachable = if endpoint.is_ipv4() {
            "icmp-host-unreachable"
        } else {
            "icmp6-addr-unreachable"
        };
        let target: &[&str] = match self.verdict {
            RuleAction::Drop => &["-j", "DROP"],
            RuleAction::Reject => &["-j", "REJECT"],
            RuleAction::RejectHost => &["-j", "REJECT", "--reject-with", unreachable],
            RuleAction::RejectReset => &["-j", "REJECT", "--reject-with", "tcp-reset"],
        };
        rule.extend(target.iter().map(|&word| word.to_owned()));
        rule
    }
}

/// Cgroup match of an nft rule. nft resolves cgroups below /sys/fs/cgroup, regardless of cgroup2's mount point. The level counts from
/// cgroup2's root.
fn nft_cgroup(place: &Place) -> Result<String> {
    let level = place
        .cgroup()
        .path()
        .split('/')
        .filter(|segment| !segment.is_empty())
        .count();
    let directory = place.cgroup().directory();
    let path = directory.strip_prefix("/sys/fs/cgroup").with_context(|| {
        format!(
            "name {} to nft: cgroup2 is mounted elsewhere",
            cgroup_mount_point().unwrap_or_default().display()
        )
    })?;
    Ok(format!("socket cgroupv2 level {level} \"{}\"", path.display()))
}
