//! Plays one scenario: starts a lab, a capture, the observer and the clients, and compares the findings.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::fcntl::Flock;
use serde_json::Value;
use tempfile::TempDir;

use super::client::Player;
use super::compare::{Score, findings_of, score};
use super::trace::{Capture, Observer};
use super::{Client, On, Scenario, StandIn, Step, Suite, Tools};
use crate::faults::FaultGuard;
use crate::server::Server;
use crate::topology::{IMDS_PORT, IMDS_V4, Lab, LabOptions, Place, PodCgroup, PodOptions, take_turn};

/// Time after the end of the clients within which expected findings must be reported.
const PATIENCE: Duration = Duration::from_secs(15);
/// Time without a new record after which no more records are expected.
const QUIET: Duration = Duration::from_millis(1500);
/// Timeout of a step's condition.
const AWAITED: Duration = Duration::from_secs(90);
const STAND_IN_READY: Duration = Duration::from_secs(60);

/// Invented IDs in the format of real ones.
const PODS: [(&str, &str); 3] = [
    (
        "6e1c5a52-3f0b-4a7e-9d0c-2b8f4a1e7c33",
        "0f8a1c5d9b3e7a2f4c6d8e0b1a3c5e7f9d2b4a6c8e0f1a3b5c7d9e1f3a5b7c9d",
    ),
    (
        "a2d94c1e-7b56-4c0d-8e3f-51c60d7ab9f2",
        "7c2e9a4b6d8f0a1c3e5b7d9f2a4c6e8b0d1f3a5c7e9b2d4f6a8c0e1b3d5f7a9c",
    ),
    (
        "c5f70b83-1d2a-4e69-b8a4-0e9d3c7f6152",
        "e4b6d8a0c2f1e3b5d7a9c0f2e4b6d8a1c3f5e7b9d0a2c4f6e8b1d3a5c7f9e0b2",
    ),
];

/// State that all scenarios share.
pub struct Stage {
    pub suite: Suite,
    pub tools: Tools,
}

/// Result of a scenario.
pub struct Outcome {
    pub found: Vec<String>,
    pub score: Score,
    /// Exchanges and failed connections, in order, each in a few words.
    pub reported: Vec<String>,
    /// Records that the observer wrote.
    pub trace: Vec<String>,
    /// The capture of tcpdump, with tokens and bodies.
    pub capture: Vec<u8>,
    /// The run's scratch directory, whose path may occur in the trace.
    pub scratch: std::path::PathBuf,
    pub took: Duration,
    /// Failure of the run itself, not of a finding.
    pub failure: Option<String>,
}

/// A scenario whose lab is up. Dropping it ends its clients, then the lab.
pub struct Prepared<'a> {
    stage: &'a Stage,
    scenario: &'a Scenario,
    players: BTreeMap<String, Player>,
    next_step: usize,
    guard: Option<FaultGuard>,
    stand_in: Option<Player>,
    agent: Option<Server>,
    lab: Lab,
    scratch: TempDir,
    turn: Option<Flock<std::fs::File>>,
}

impl Stage {
    /// Creates a scenario's lab. Clients that must reach a certain age are started, and then wait for a nudge.
    pub fn prepare<'a>(&'a self, scenario: &'a Scenario) -> Result<Prepared<'a>> {
        let turn = take_turn()?;
        let pod = |number: usize, nested| PodOptions {
            cgroup: PodCgroup::Kubepods {
                qos: "burstable".to_owned(),
                uid: PODS[number].0.to_owned(),
                container_id: PODS[number].1.to_owned(),
            },
            nested,
        };
        let lab = Lab::new(LabOptions {
            behaviour: scenario.behaviour()?,
            pods: vec![pod(0, false), pod(1, false), pod(2, true)],
            // This scenario has the lock, and releases it while clients age.
            exclusive: false,
            ..LabOptions::default()
        })?;
        let mut prepared = Prepared {
            stage: self,
            scenario,
            players: BTreeMap::new(),
            next_step: 0,
            guard: None,
            stand_in: None,
            agent: None,
            lab,
            scratch: TempDir::with_prefix("imds-observer-scenario-").context("make a temporary directory")?,
            turn: Some(turn),
        };
        if scenario.age_s.is_some() {
            while let Some(Step::Start { client, on }) = scenario.steps.get(prepared.next_step) {
                prepared.start(client, *on)?;
                prepared.next_step += 1;
            }
            // They send nothing until signaled, so other tests are not disturbed.
            prepared.turn = None;
        }
        Ok(prepared)
    }
}

impl<'a> Prepared<'a> {
    pub fn scenario(&self) -> &'a Scenario {
        self.scenario
    }

    /// Plays the scenario to its end.
    pub fn play(mut self) -> Result<Outcome> {
        let begin = Instant::now();
        if let Some(age_s) = self.scenario.age_s {
            let wanted = Duration::from_secs(age_s);
            let youngest = self.players.values().map(Player::age).min().unwrap_or(wanted);
            // The wait has no other condition than the clients' age.
            std::thread::sleep(wanted.saturating_sub(youngest));
            self.turn = Some(take_turn()?);
        }
        if let Some(stand_in) = &self.scenario.stand_in {
            self.replace_server(stand_in)?;
        }
        if let Some(agent) = &self.scenario.agent {
            self.agent = Some(agent.start(&self.lab)?);
        }
        if let Some(entry) = self.scenario.fault_entry()? {
            self.guard = Some(self.lab.inject(&entry.fault)?);
        }
        let capture = Capture::start(&self.lab, self.scratch.path())?;
        let mut observer = Observer::start(&self.lab, &self.stage.tools.observer, self.scratch.path())?;
        let played = self.steps(&mut observer);
        let settled = played.and_then(|()| self.settle(&mut observer));
        let logs = self.logs();
        // Ends clients that run in the background.
        self.players.clear();
        let trace = observer.finish()?;
        let capture = capture.finish()?;
        let records: Vec<Value> = trace
            .iter()
            .map(|line| serde_json::from_str(line))
            .collect::<Result<_, _>>()?;
        let reported = reported(&records);
        let found = findings_of(&records);
        let failure = settled.err().map(|error| format!("{error:#}")).or_else(|| {
            (reported.len() < self.scenario.least).then(|| {
                format!(
                    "{} exchanges and failed connections, not {}; output of the clients: {}",
                    reported.len(),
                    self.scenario.least,
                    logs
                )
            })
        });
        if let Some(guard) = self.guard.take() {
            guard.undo()?;
        }
        Ok(Outcome {
            score: score(&self.scenario.expect, &found),
            found,
            reported,
            trace,
            capture,
            scratch: self.scratch.path().to_owned(),
            took: begin.elapsed(),
            failure,
        })
    }

    fn steps(&mut self, observer: &mut Observer) -> Result<()> {
        let scenario = self.scenario;
        for step in &scenario.steps[self.next_step..] {
            match step {
                Step::Run { client, on, times } => {
                    for _ in 0..*times {
                        self.start(client, *on)?;
                        self.player(client)?.finish()?;
                    }
                }
                Step::Start { client, on } => self.start(client, *on)?,
                Step::Finish { client } => self.player(client)?.finish()?,
                Step::Nudge { client } => self.player(client)?.nudge()?,
                Step::Await { path, status, count } => self.await_exchanges(observer, path, *status, *count)?,
                Step::Set { server } => {
                    let wanted = self.lab.server().behaviour().patched(&Value::Object(server.clone()))?;
                    self.lab.server().set(wanted);
                }
                Step::ExpireTokens => self.lab.server().expire_tokens(),
            }
        }
        Ok(())
    }

    fn start(&mut self, name: &str, on: On) -> Result<()> {
        let client: &Client = self.stage.suite.client(name)?;
        let place = self.place(on);
        let player = Player::start(name, client, place, &self.stage.tools, self.scratch.path())?;
        self.players.insert(name.to_owned(), player);
        Ok(())
    }

    fn player(&mut self, name: &str) -> Result<&mut Player> {
        self.players
            .get_mut(name)
            .with_context(|| format!("client {name} was not started"))
    }

    fn place(&self, on: On) -> &Place {
        match on {
            On::Node => self.lab.node(),
            On::Pod => self.lab.pod(0),
            On::OtherPod => self.lab.pod(1),
            On::NestedPod => self.lab.pod(2),
        }
    }

    fn await_exchanges(&self, observer: &mut Observer, path: &str, status: Option<u16>, count: usize) -> Result<()> {
        let mut seen = 0;
        let came = observer.wait(AWAITED, |record| {
            let fits = record["record"] == "exchange"
                && record["request"]["path"]
                    .as_str()
                    .is_some_and(|asked| asked.ends_with(path))
                && status.is_none_or(|status| record["response"]["status"] == status);
            seen += usize::from(fits);
            seen >= count
        })?;
        ensure!(
            came,
            "{seen} of {count} requests for {path} arrived; output of the clients: {}",
            self.logs()
        );
        Ok(())
    }

    /// Waits for the expected findings, and then until no new record arrives.
    fn settle(&self, observer: &mut Observer) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let records: Vec<Value> = observer
                .lines()
                .iter()
                .filter(|line| line.contains("\"finding\""))
                .map(|line| serde_json::from_str(line))
                .collect::<Result<_, _>>()?;
            let missed = score(&self.scenario.expect, &findings_of(&records)).missed;
            // Summaries depend on the clock and add nothing; findings that are held back are written at the end.
            let news = observer.wait(QUIET, |record| record["record"] != "summary")?;
            if missed == 0 && !news {
                return Ok(());
            }
        }
        // The comparison shows what is missing.
        Ok(())
    }

    fn replace_server(&mut self, stand_in: &StandIn) -> Result<()> {
        let client = self.stage.suite.client(&stand_in.client)?;
        let (place, address) = match stand_in.port {
            Some(port) => (self.lab.node(), SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
            None => {
                self.lab.server().update(|behaviour| behaviour.listening = false);
                (self.lab.imds(), SocketAddr::from((IMDS_V4, IMDS_PORT)))
            }
        };
        for mark in &stand_in.token_marks {
            let mut mangle = Command::new("iptables");
            mangle.args(["-w", "-t", "mangle", "-A", "POSTROUTING", "-p", "tcp", "--sport", "80"]);
            mangle.args(["-m", "string", "--algo", "bm", "--string", mark]);
            mangle.args(["-j", "TTL", "--ttl-set", &stand_in.hop_limit.to_string()]);
            place.netns().run_program(&mut mangle)?;
        }
        let player = Player::start(&stand_in.client, client, place, &self.stage.tools, self.scratch.path())?;
        let deadline = Instant::now() + STAND_IN_READY;
        let ready = place.run_in_thread(|| {
            while Instant::now() < deadline {
                if TcpStream::connect_timeout(&address, Duration::from_millis(500)).is_ok() {
                    return true;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            false
        })?;
        if !ready {
            bail!(
                "{} does not listen on {address}; its output: {}",
                stand_in.client,
                player.last_words()
            );
        }
        self.stand_in = Some(player);
        Ok(())
    }

    fn logs(&self) -> String {
        let logs: Vec<String> = self
            .players
            .iter()
            .map(|(name, player)| format!("{name}: {}", player.last_words()))
            .collect();
        logs.join("\n")
    }
}

/// Short descriptions of the exchanges: `PUT token 200`, `GET v1 200`, `connect refused`.
fn reported(records: &[Value]) -> Vec<String> {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => "?".to_owned(),
    };
    records
        .iter()
        .filter_map(|record| match record["record"].as_str()? {
            "exchange" => {
                let (request, response) = (&record["request"], &record["response"]);
                let end = if record["outcome"] == "answered" {
                    text(&response["status"])
                } else {
                    text(&record["outcome"])
                };
                Some(format!(
                    "{} {} {end}",
                    text(&request["method"]),
                    text(&request["imds_version"])
                ))
            }
            "connect" => Some(format!("connect {}", text(&record["outcome"]))),
            _ => None,
        })
        .collect()
}
