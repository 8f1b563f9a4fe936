//! Builds sequences of records as the pipeline would write them, in a few words: `trace.add(app.put(0.0))`.

use std::sync::Arc;

use imds_observer::detectors::{DetectorConfig, Detectors, Observation};
use imds_observer::host_facts::HostFacts;
use imds_observer::record::{
    Ancestor, Body, Code, Connect, ConnectOutcome, Connection, Container, Dialect, Exchange, ExchangeOutcome, Finding,
    FindingState, Host, ImdsVersion, InterfaceSummary, PacketDirection, PacketDrop, Pod, Process, Record, Request,
    Response, SECOND, Severity, Summary, Time,
};

/// Start of all scenarios, 2023-11-14T22:13:20Z.
pub(crate) const START: Time = Time(1_700_000_000 * SECOND);
pub(crate) const V4: &str = "169.254.169.254:80";
pub(crate) const V6: &str = "[fd00:ec2::254]:80";
pub(crate) const TOKEN: &str = "/latest/api/token";
pub(crate) const CREDENTIALS: &str = "/latest/meta-data/iam/security-credentials/";
pub(crate) const ROLE: &str = "/latest/meta-data/iam/security-credentials/app-role";
pub(crate) const INSTANCE_ID: &str = "i-0123456789abcdef0";

pub(crate) fn at(seconds: f64) -> Time {
    START.plus_ns((seconds * 1e9) as u64)
}

pub(crate) fn host() -> Host {
    Host::from("node-1")
}

/// A client.
#[derive(Clone, Debug)]
pub(crate) struct Actor {
    pub(crate) process: Option<Arc<Process>>,
    pub(crate) container: Option<Arc<Container>>,
    agent: Option<String>,
    /// TTL of its requests at the uplink.
    ttl: u8,
    remote: &'static str,
    local: String,
}

impl Actor {
    /// A process of the host; its parent is `bash`, 4100.
    pub(crate) fn host(pid: u32, exe: &str) -> Self {
        let comm = exe.rsplit('/').next().unwrap_or(exe);
        Self {
            process: Some(Arc::new(Process {
                pid,
                tid: Some(pid),
                namespace_pid: None,
                comm: comm.chars().take(15).collect(),
                exe: Some(exe.to_owned()),
                cmdline: Some(vec![comm.to_owned()]),
                uid: Some(1000),
                start_time: Some(START.minus_ns(3600 * SECOND)),
                ancestors: vec![
                    Ancestor {
                        pid: 4100,
                        comm: "bash".to_owned(),
                    },
                    Ancestor {
                        pid: 1,
                        comm: "systemd".to_owned(),
                    },
                ],
                cgroup: Some("/user.slice/user-1000.slice/session-3.scope".to_owned()),
                netns: Some(4_026_531_840),
            })),
            container: None,
            agent: None,
            ttl: 64,
            remote: V4,
            local: "10.0.1.5".to_owned(),
        }
    }

    /// A process of a systemd service.
    pub(crate) fn service(pid: u32, exe: &str, unit: &str) -> Self {
        Self::host(pid, exe).with(|process| {
            process.cgroup = Some(format!("/system.slice/{unit}"));
            process.ancestors.remove(0);
        })
    }

    /// A process of a pod, one hop away.
    pub(crate) fn pod(pid: u32, exe: &str, namespace: &str, name: &str) -> Self {
        let mut actor = Self::host(pid, exe).with(|process| {
            process.namespace_pid = Some(1);
            process.cgroup = Some(format!("/kubepods/burstable/pod{pid}/{pid:064x}"));
            process.netns = Some(4_026_532_000 + pid);
            process.ancestors.remove(0);
        });
        actor.container = Some(Arc::new(Container {
            id: format!("{pid:064x}"),
            runtime: Some("containerd".to_owned()),
            name: Some("app".to_owned()),
            image: None,
            pod: Some(Pod {
                namespace: Some(namespace.to_owned()),
                name: Some(name.to_owned()),
                uid: Some(format!("00000000-0000-4000-8000-{pid:012}")),
                identity: None,
            }),
        }));
        actor.ttl = 63;
        "10.244.0.7".clone_into(&mut actor.local);
        actor
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut Process)) -> Self {
        if let Some(process) = &mut self.process {
            change(Arc::make_mut(process));
        }
        self
    }

    pub(crate) fn agent(mut self, agent: &str) -> Self {
        self.agent = Some(agent.to_owned());
        self
    }

    pub(crate) fn v6(mut self) -> Self {
        self.remote = V6;
        self
    }

    /// Another process of the same program.
    pub(crate) fn pid(&self, pid: u32, started: f64) -> Self {
        self.clone().with(|process| {
            process.pid = pid;
            process.tid = Some(pid);
            process.start_time = Some(at(started));
        })
    }

    fn connection(&self, time: Time, exchange: u32) -> Connection {
        // One connection per request, as most clients do.
        let port = 32_768 + (time.0 / 1_000_003) % 28_000;
        Connection {
            id: format!(
                "c{}-{}",
                time.0 - START.0,
                self.process.as_ref().map_or(0, |process| process.pid)
            ),
            local: Some(format!("{}:{port}", self.local)),
            remote: self.remote.to_owned(),
            exchange,
            interface: None,
            cgroup: None,
            netns: None,
            redirected_to: None,
        }
    }

    /// An answered request in 0.3 ms.
    pub(crate) fn request(&self, seconds: f64, method: &str, path: &str) -> Record<Exchange> {
        let time = at(seconds);
        let body = Exchange {
            process: self.process.clone(),
            container: self.container.clone(),
            connection: self.connection(time, 1),
            request: Request {
                method: Some(method.to_owned()),
                path: Some(path.to_owned()),
                dialect: Dialect::Aws,
                imds_version: Some(ImdsVersion::V1),
                token: None,
                token_ttl_s: None,
                user_agent: self.agent.clone(),
                ttl: Some(self.ttl),
                forwarded: false,
                retransmits: 0,
                ttl_on_wire: Some(true),
                hops: None,
                endpoint: None,
                trace_id: None,
            },
            response: Some(Response {
                status: Some(200),
                ttl: Some(255),
                delivered: Some(true),
                server: None,
                retransmits: 0,
                icmp: None,
                via_proxy: None,
                length: None,
            }),
            outcome: ExchangeOutcome::Answered,
            latency_ns: Some(300_000),
            waited_ns: Some(300_000),
            connect_ns: Some(120_000),
            closed_by: None,
        };
        record(time, body)
    }

    /// A token request that is granted; the hop limit is 2.
    pub(crate) fn put(&self, seconds: f64) -> Record<Exchange> {
        let mut exchange = self.request(seconds, "PUT", TOKEN);
        exchange.request.imds_version = Some(ImdsVersion::Token);
        exchange.request.token_ttl_s = Some(21_600);
        if let Some(response) = &mut exchange.response {
            response.ttl = Some(2);
        }
        exchange
    }

    /// A request with a token.
    pub(crate) fn get(&self, seconds: f64, path: &str) -> Record<Exchange> {
        let mut exchange = self.v1(seconds, path);
        exchange.request.imds_version = Some(ImdsVersion::V2);
        exchange.request.token = Some("9f2c51d0".to_owned());
        exchange
    }

    /// A request without a token.
    pub(crate) fn v1(&self, seconds: f64, path: &str) -> Record<Exchange> {
        self.request(seconds, "GET", path)
    }

    /// A token request whose response arrives with TTL 1 and is lost; the client times out after `waited` seconds.
    pub(crate) fn lost_put(&self, seconds: f64, waited: f64) -> Record<Exchange> {
        let mut exchange = self.put(seconds);
        exchange.outcome = ExchangeOutcome::Lost;
        exchange.waited_ns = Some((waited * 1e9) as u64);
        if let Some(response) = &mut exchange.response {
            response.ttl = Some(1);
            response.delivered = Some(false);
            response.retransmits = 2;
        }
        exchange
    }

    /// The drop that goes with [`Self::lost_put`].
    pub(crate) fn ttl_drop(&self, seconds: f64) -> Record<PacketDrop> {
        let mut drop = self.drop(seconds, "IP_INHDR", "ip_forward");
        drop.direction = PacketDirection::Response;
        drop.ttl = Some(1);
        drop
    }

    /// A dropped SYN, in the host's network.
    pub(crate) fn drop(&self, seconds: f64, reason: &str, location: &str) -> Record<PacketDrop> {
        let time = at(seconds);
        let body = PacketDrop {
            process: self.process.clone(),
            container: self.container.clone(),
            connection: self.connection(time, 0),
            direction: PacketDirection::Request,
            reason: Some(reason.to_owned()),
            location: Some(location.to_owned()),
            ttl: Some(64),
            netns: Some(4_026_531_840),
        };
        record(time, body)
    }

    /// A connection attempt that ended after `elapsed` seconds.
    pub(crate) fn connect(
        &self,
        seconds: f64,
        outcome: ConnectOutcome,
        errno: i32,
        elapsed: f64,
        syns: [u32; 2],
    ) -> Record<Connect> {
        let time = at(seconds);
        let body = Connect {
            process: self.process.clone(),
            container: self.container.clone(),
            connection: self.connection(time, 0),
            outcome,
            errno: (errno != 0).then_some(errno),
            elapsed_ns: (elapsed * 1e9) as u64,
            syns: syns[0],
            wire_syns: syns[1],
            syn_acks: 0,
            dropped: None,
            icmp: None,
            nat_rule: None,
        };
        record(time, body)
    }
}

fn record<B>(time: Time, body: B) -> Record<B> {
    Record {
        time,
        host: host(),
        body,
    }
}

/// Small changes to a record in one expression.
pub(crate) trait Change: Sized {
    fn but(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

impl<B> Change for Record<B> {}

pub(crate) fn status(status: u16) -> impl Fn(&mut Record<Exchange>) {
    move |exchange| {
        if let Some(response) = &mut exchange.response {
            response.status = Some(status);
        }
    }
}

/// No response; the client timed out.
pub(crate) fn unanswered(waited: f64) -> impl Fn(&mut Record<Exchange>) {
    move |exchange| {
        exchange.response = None;
        exchange.outcome = ExchangeOutcome::Unanswered;
        exchange.latency_ns = None;
        exchange.waited_ns = Some((waited * 1e9) as u64);
    }
}

/// A `summary` with one interface's busiest second.
pub(crate) fn quota(seconds: f64, packets: u64, allowance_exceeded: u64) -> Record<Summary> {
    let body = Summary {
        total: false,
        from: at(seconds - 10.0),
        to: at(seconds),
        interval_ns: 10 * SECOND,
        processes: Vec::new(),
        interfaces: vec![InterfaceSummary {
            name: "ens5".to_owned(),
            egress_packets: packets * 10,
            ingress_packets: packets * 9,
            peak_packets_per_s: packets,
            quota_share: packets as f64 / 1024.0,
            allowance_exceeded: Some(allowance_exceeded),
            peak_by_class: [("imds".to_owned(), packets)].into(),
            vpc_resolver: None,
        }],
        other_requests: 0,
    };
    record(at(seconds), body)
}

/// Records in the order in which the pipeline writes them, by their end.
#[derive(Default)]
pub(crate) struct Trace(pub(crate) Vec<Record>);

pub(crate) fn end(record: &Record) -> Time {
    record.settled()
}

impl Trace {
    pub(crate) fn add(&mut self, record: impl Into<Record>) {
        self.0.push(record.into());
    }

    /// Returns all findings. The run ends `silence_s` seconds after the last record.
    pub(crate) fn run(mut self, config: &DetectorConfig, facts: &HostFacts, silence_s: u64) -> Vec<Record<Finding>> {
        self.0.sort_by_key(end);
        let mut detectors = Detectors::new(config, facts.clone());
        let mut findings = Vec::new();
        let mut now = START;
        for record in &self.0 {
            now = end(record);
            observe(&mut detectors, record, &mut findings);
        }
        for _ in 0..silence_s {
            now = now.plus_ns(SECOND);
            detectors.advance(now, &mut findings);
        }
        detectors.finish(now, &mut findings);
        findings
    }

    pub(crate) fn findings(self) -> Vec<Record<Finding>> {
        self.run(&DetectorConfig::default(), &facts(), 0)
    }

    /// `code severity` of every finding that opened, sorted. The severity is the final one.
    pub(crate) fn verdicts(self) -> Vec<String> {
        verdicts(&self.findings())
    }
}

pub(crate) fn observe(detectors: &mut Detectors, record: &Record, findings: &mut Vec<Record<Finding>>) {
    if let Some(observation) = Observation::of(record) {
        detectors.observe(&observation, findings);
    }
    if let Body::Summary(summary) = &record.body {
        detectors.observe_summary(record.with(summary), findings);
    }
}

pub(crate) fn facts() -> HostFacts {
    HostFacts {
        name: host(),
        instance_id: Some(INSTANCE_ID.to_owned()),
        ..HostFacts::default()
    }
}

pub(crate) fn verdicts(findings: &[Record<Finding>]) -> Vec<String> {
    let mut verdicts: Vec<(Code, String, Severity)> = Vec::new();
    for finding in findings {
        let key = &finding.subject.key;
        if finding.state == FindingState::Open {
            verdicts.push((finding.code, key.clone(), finding.severity));
        } else {
            let open = verdicts
                .iter_mut()
                .rev()
                .find(|(code, of, _)| *code == finding.code && of == key)
                .expect("an update follows its opening");
            open.2 = finding.severity;
        }
    }
    let mut verdicts: Vec<String> = verdicts
        .into_iter()
        .map(|(code, _, severity)| format!("{code} {}", severity.as_str()))
        .collect();
    verdicts.sort();
    verdicts
}
