//! A credential agent on the node: the address that clients use, the redirection of packets to the agent, and the server itself.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::server::{Behaviour, Server, ServerOptions, Serves};
use crate::topology::{Lab, Netns};

const POD_IDENTITY: Ipv4Addr = Ipv4Addr::new(169, 254, 170, 23);
const POD_IDENTITY_LINK: &str = "pod-id-link0";
const ECS: Ipv4Addr = Ipv4Addr::new(169, 254, 170, 2);
const ECS_PORT: u16 = 51679;

/// The agent of a scenario.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agent {
    /// Changes to the server's behavior. `serves` names the agent.
    pub server: Map<String, Value>,
    /// Whether a packet filter of the node drops packets from pods to the agent, as a network policy does.
    #[serde(default)]
    pub blocked: bool,
}

impl Agent {
    pub(super) fn behaviour(&self) -> Result<Behaviour> {
        Ok(Behaviour::default().patched(&Value::Object(self.server.clone()))?)
    }

    /// Configures the node as the agent does, and starts the agent.
    pub(super) fn start(&self, lab: &Lab) -> Result<Server> {
        let behaviour = self.behaviour()?;
        let node = lab.node().netns();
        let (listen, asked) = match behaviour.serves {
            Serves::Ecs => {
                let asked = ECS.to_string();
                let target = format!("127.0.0.1:{ECS_PORT}");
                node.sysctls(&[("ipv4/conf/all/route_localnet", "1")])?;
                let rule = [
                    "-w",
                    "-t",
                    "nat",
                    "-A",
                    "PREROUTING",
                    "-p",
                    "tcp",
                    "-d",
                    &asked,
                    "--dport",
                    "80",
                ];
                run(
                    node,
                    "iptables",
                    &[&rule[..], &["-j", "DNAT", "--to-destination", &target]].concat(),
                )?;
                (
                    SocketAddr::from((Ipv4Addr::LOCALHOST, ECS_PORT)),
                    Ipv4Addr::LOCALHOST.to_string(),
                )
            }
            _ => {
                let asked = POD_IDENTITY.to_string();
                run(node, "ip", &["link", "add", POD_IDENTITY_LINK, "type", "bridge"])?;
                run(
                    node,
                    "ip",
                    &["addr", "add", &format!("{asked}/32"), "dev", POD_IDENTITY_LINK],
                )?;
                run(node, "ip", &["link", "set", POD_IDENTITY_LINK, "up"])?;
                (SocketAddr::from((POD_IDENTITY, 80)), asked)
            }
        };
        if self.blocked {
            run(
                node,
                "iptables",
                &["-w", "-I", "INPUT", "-d", &asked, "-p", "tcp", "-j", "DROP"],
            )?;
        }
        Server::start(ServerOptions {
            netns: Some(node.descriptor()?),
            behaviour,
            ..ServerOptions::new(vec![listen])
        })
    }
}

fn run(netns: &Netns, program: &str, arguments: &[&str]) -> Result<()> {
    netns
        .run_program(Command::new(program).args(arguments))
        .with_context(|| format!("run {program} {}", arguments.join(" ")))
}
