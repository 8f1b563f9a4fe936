//! Facts about a host that detectors and remedies use.

use crate::imds::endpoint_of;
use crate::record::{Connect, Container, Dialect, Exchange, Host, NetworkTool, NodeOwner, Process, Start, Time};

/// Facts about the host that the records come from. Offline they are unknown, unless the user states them.
#[derive(Clone, Debug)]
pub struct HostFacts {
    pub name: Host,
    /// For the commands of remedies; a placeholder is used if it isn't known.
    pub instance_id: Option<String>,
    /// Requests right after it are start-up, not polling.
    pub boot_time: Option<Time>,
    /// Inode of the host's own network namespace: processes in another one are not the host's.
    pub netns: Option<u32>,
    /// Default gateway and its interface.
    pub gateway: Option<String>,
    pub uplink: Option<String>,
    /// NAT rules of this host that match requests for the endpoints, as they were when the run began. `None`: not read.
    pub nat_rules: Option<Vec<String>>,
    /// Cloud that the firmware names, `Unknown` for another maker. `None`: not read.
    pub cloud: Option<Dialect>,
    /// The tool that configures this host's network.
    pub network_tool: Option<NetworkTool>,
    /// The tool that creates instances like this one.
    pub node_owner: Option<NodeOwner>,
}

impl Default for HostFacts {
    fn default() -> Self {
        Self {
            name: Host::from(""),
            instance_id: None,
            boot_time: None,
            netns: None,
            gateway: None,
            uplink: None,
            nat_rules: None,
            cloud: None,
            network_tool: None,
            node_owner: None,
        }
    }
}

/// Whose requests a NAT rule concerns, as its text in [`HostFacts::nat_rules`] states it.
const OWN_WAY: &str = "requests of this host";
const FORWARDED_WAY: &str = "requests that this host forwards";

/// The address or port to which a rule redirects: `dnat to 10.0.1.23:8181` is in parentheses in its description.
pub(crate) fn nat_target(rule: &str) -> Option<&str> {
    let (_, how) = rule.split_once("redirects (")?;
    let (how, _) = how.split_once(')')?;
    how.split_once(" to ").map(|(_, target)| target)
}

impl HostFacts {
    /// The NAT rule of this host that matches an attempt's requests, if none of its SYNs was seen to leave or was dropped.
    pub(crate) fn nat_rule(&self, connect: &Connect) -> Option<&str> {
        let agent = endpoint_of(&connect.connection.remote).is_agent();
        if connect.wire_syns > 0 || connect.dropped.is_some() || agent {
            return None;
        }
        let elsewhere = self.is_elsewhere(connect.process.as_deref(), connect.container.as_deref());
        self.first_nat_rule(if elsewhere { FORWARDED_WAY } else { OWN_WAY })
    }

    /// The NAT rule of this host that matches the requests of another network namespace, if this one was not seen at an
    /// uplink. For requests of the host itself the socket shows the redirection.
    pub(crate) fn nat_rule_of_forwarded(&self, exchange: &Exchange) -> Option<&str> {
        let unseen_at_uplink = exchange.request.ttl_on_wire == Some(false);
        let elsewhere = self.is_elsewhere(exchange.process.as_deref(), exchange.container.as_deref());
        (unseen_at_uplink && elsewhere).then(|| self.first_nat_rule(FORWARDED_WAY))?
    }

    fn is_elsewhere(&self, process: Option<&Process>, container: Option<&Container>) -> bool {
        match (process.and_then(|process| process.netns), self.netns) {
            (Some(own), Some(host)) => own != host,
            _ => container.is_some(),
        }
    }

    fn first_nat_rule(&self, way: &str) -> Option<&str> {
        let mut rules = self.nat_rules.iter().flatten().map(String::as_str);
        rules.find(|rule| rule.contains(way))
    }

    /// Takes over what an earlier run recorded of this host.
    pub(crate) fn recorded(&mut self, start: &Start) {
        self.netns = start.netns.or(self.netns);
        self.boot_time = start.boot_time.or(self.boot_time);
        self.nat_rules = start.nat_rules.clone().or(self.nat_rules.take());
        self.cloud = start.cloud.or(self.cloud);
        self.network_tool = start.network_tool.or(self.network_tool);
        self.node_owner = start.node_owner.clone().or(self.node_owner.take());
    }
}
