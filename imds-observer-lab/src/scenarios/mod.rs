//! Scenarios: clients, their surroundings, and the findings that the observer must report.
//!
//! Scenarios are data, in `scenarios.toml`. [`run`] plays one in a lab and records it, and [`score`] compares the reported findings with
//! the expected ones. The golden test of the observer analyzes the recordings without a lab.

mod agent;
mod client;
mod compare;
pub mod neutral;
mod run;
pub mod scrub;
mod tools;
mod trace;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::{Map, Value};

pub use agent::Agent;
pub use compare::{Score, findings_of, score};
pub use run::{Outcome, Prepared, Stage};
pub use tools::Tools;

use crate::client::Script;
use crate::faults::{Entry, Family, disturbances, registry};
use crate::server::Behaviour;

/// All clients and scenarios, in the order in which scenarios are played.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    #[serde(rename = "client")]
    pub clients: BTreeMap<String, Client>,
    #[serde(rename = "scenario")]
    pub scenarios: Vec<Scenario>,
}

/// A program that uses IMDS, or its replacement.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Client {
    /// Origin of the program; for a script, the program that it replaces.
    pub from: String,
    /// A program and its arguments. `{tools}` is the directory that setup created, `{clients}` the directory of our small client programs.
    #[serde(default)]
    pub command: Vec<String>,
    /// Preset of the lab's client, instead of a command: for programs that can't be installed.
    pub preset: Option<String>,
    /// Script of the lab's client, instead of a command and a preset.
    pub script: Option<Script>,
    /// Rounds of the preset.
    pub rounds: Option<u32>,
    /// Pause before each round of the preset, if the preset has one.
    pub pause_ms: Option<u64>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Written to its standard input, which is then closed.
    pub input: Option<String>,
    /// Whether the client itself is a fault, so that no healthy scenario can include it.
    #[serde(default)]
    pub faulty: bool,
    /// Time after which the client is ended. That is no failure: by then it has finished with IMDS and tries to reach services that don't
    /// exist in the lab.
    pub cut_s: Option<u64>,
}

impl Client {
    pub fn is_scripted(&self) -> bool {
        self.command.is_empty()
    }
}

/// One scenario.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    pub name: String,
    /// One-line description.
    pub about: String,
    /// Changes to the server's behavior. By default it is that of a new instance: tokens optional, hop limit 1.
    #[serde(default)]
    pub server: Map<String, Value>,
    /// Fault of the registry that is enabled during the whole scenario.
    pub fault: Option<String>,
    #[serde(default = "v4")]
    pub family: IpFamily,
    /// A server that this project did not write, in place of the lab's own.
    pub stand_in: Option<StandIn>,
    /// A credential agent on the node, in addition to the lab's IMDS.
    pub agent: Option<Agent>,
    /// Age that the clients that are started first must reach before observation begins. Such scenarios are played last.
    pub age_s: Option<u64>,
    pub steps: Vec<Step>,
    /// Minimum number of exchanges and failed connections, so that a client that didn't run isn't a success.
    #[serde(default = "one")]
    pub least: usize,
    /// Expected findings, each as `code severity` with its highest severity. The observer must report no others. Two findings of one kind
    /// (for two subjects) are listed twice.
    pub expect: Vec<String>,
    /// Expected findings of a packet capture at the node's uplink alone. By default they are the same.
    pub capture: Option<Vec<String>>,
    /// Why the capture leads to other findings.
    pub capture_why: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IpFamily {
    V4,
    V6,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StandIn {
    /// Name of the client that is the server.
    pub client: String,
    /// Port of 127.0.0.1 on the node at which it listens, and to which a rule redirects packets. The lab's own server keeps running.
    /// Without a port, it replaces the lab's own server.
    pub port: Option<u16>,
    /// Hop limit of its token responses, which iptables sets, because no stand-in supports hop limits.
    #[serde(default = "one_hop")]
    pub hop_limit: u8,
    /// Texts by which the segments of a token response are recognized. Head and body may be separate segments. Empty: no hop limit is set.
    #[serde(default)]
    pub token_marks: Vec<String>,
}

/// Where a client runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum On {
    #[default]
    Node,
    /// In a container of a Kubernetes pod: one hop.
    Pod,
    /// In another pod.
    OtherPod,
    /// In a pod within a pod: two hops.
    NestedPod,
}

/// One step of a scenario.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Step {
    /// Runs a client to its end.
    Run {
        client: String,
        #[serde(default)]
        on: On,
        /// Number of runs, one after the other.
        #[serde(default = "once")]
        times: u32,
    },
    /// Starts a client that keeps running.
    Start {
        client: String,
        #[serde(default)]
        on: On,
    },
    /// Waits until a started client has ended by itself.
    Finish { client: String },
    /// Sends a line of input to a started client that waits for it.
    Nudge { client: String },
    /// Waits for new exchanges.
    Await {
        path: String,
        status: Option<u16>,
        #[serde(default = "one")]
        count: usize,
    },
    /// Changes the server's behavior.
    Set { server: Map<String, Value> },
    /// Makes all tokens invalid.
    ExpireTokens,
}

fn one() -> usize {
    1
}

fn one_hop() -> u8 {
    1
}

fn once() -> u32 {
    1
}

fn v4() -> IpFamily {
    IpFamily::V4
}

impl Suite {
    /// The suite of `scenarios.toml`.
    pub fn load() -> Result<Self> {
        let suite: Self = toml::from_str(include_str!("../../scenarios.toml")).context("read scenarios.toml")?;
        for (name, client) in &suite.clients {
            let kinds = usize::from(!client.command.is_empty())
                + usize::from(client.preset.is_some())
                + usize::from(client.script.is_some());
            ensure!(
                kinds == 1,
                "client {name}: one of command, preset and script, not {kinds}"
            );
        }
        for scenario in &suite.scenarios {
            scenario
                .check(&suite)
                .with_context(|| format!("scenario {}", scenario.name))?;
        }
        Ok(suite)
    }

    pub fn client(&self, name: &str) -> Result<&Client> {
        self.clients
            .get(name)
            .with_context(|| format!("scenarios.toml has no client {name}"))
    }
}

impl Scenario {
    fn check(&self, suite: &Suite) -> Result<()> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        ensure!(
            self.name.chars().all(plain),
            "a name is a file's name too: a-z, 0-9 and -"
        );
        ensure!(
            suite.scenarios.iter().filter(|other| other.name == self.name).count() == 1,
            "there are two of that name"
        );
        for client in self.clients() {
            suite.client(client)?;
        }
        ensure!(self.clients().next().is_some(), "no client does anything");
        self.behaviour()?;
        self.agent.as_ref().map(Agent::behaviour).transpose()?;
        self.fault_entry()?;
        ensure!(
            self.capture.is_some() == self.capture_why.is_some(),
            "`capture` and `capture_why` go together"
        );
        ensure!(
            self.capture.as_ref().is_none_or(|capture| *capture != self.expect),
            "`capture` equals `expect`"
        );
        Ok(())
    }

    /// Names of its clients, in order of appearance.
    pub fn clients(&self) -> impl Iterator<Item = &str> {
        self.steps.iter().filter_map(|step| match step {
            Step::Run { client, .. } | Step::Start { client, .. } => Some(client.as_str()),
            _ => None,
        })
    }

    /// The server's initial behavior.
    pub fn behaviour(&self) -> Result<Behaviour> {
        Ok(Behaviour::default().patched(&Value::Object(self.server.clone()))?)
    }

    /// Findings that the capture alone must show.
    pub fn in_capture(&self) -> &[String] {
        self.capture.as_ref().unwrap_or(&self.expect)
    }

    fn fault_entry(&self) -> Result<Option<Entry>> {
        let Some(name) = &self.fault else { return Ok(None) };
        let family = match self.family {
            IpFamily::V4 => Family::V4,
            IpFamily::V6 => Family::V6,
        };
        registry(family)
            .into_iter()
            .chain(disturbances(family))
            .find(|entry| entry.name == name)
            .map(Some)
            .with_context(|| format!("there is no fault {name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suite_is_sound() {
        let suite = Suite::load().unwrap();
        let used: std::collections::BTreeSet<&str> = suite
            .scenarios
            .iter()
            .flat_map(|scenario| {
                let stand_in = scenario.stand_in.as_ref().map(|stand_in| stand_in.client.as_str());
                scenario.clients().chain(stand_in)
            })
            .collect();
        for name in suite.clients.keys() {
            assert!(used.contains(name.as_str()), "nobody plays {name}");
        }
        for (name, client) in &suite.clients {
            if let Some(preset) = &client.preset {
                assert!(
                    crate::client::presets().iter().any(|(known, _)| known == preset),
                    "{name}"
                );
            }
        }
    }

    #[test]
    fn every_client_has_a_healthy_day() {
        let suite = Suite::load().unwrap();
        for (name, client) in suite.clients.iter().filter(|(_, client)| !client.is_scripted()) {
            let healthy = suite
                .scenarios
                .iter()
                .any(|scenario| scenario.expect.is_empty() && scenario.clients().any(|one| one == name));
            let serves = suite
                .scenarios
                .iter()
                .any(|scenario| scenario.stand_in.as_ref().is_some_and(|it| it.client == *name));
            assert!(
                healthy || client.faulty || serves,
                "{name} is never seen without a fault"
            );
        }
    }
}
