//! The whole program on one page: source -> flow -> exchange -> attribution -> detectors -> sinks.
//!
//! [`run`] reads a [`Source`], live or offline, and feeds a [`Pipeline`]. Nothing in here does I/O of its own or reads the wall clock:
//! `run` is the one place that does, for live sources. Records of an earlier trace enter behind attribution, where they had left.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::attribution::Attribution;
use crate::detectors::{DetectorConfig, Observation};
use crate::event::{ClockStep, Event};
use crate::exchange::{Fact, FlowTable};
use crate::filter::{Filter, Kinds};
use crate::hosts::{HostDetectors, RecordedHosts};
use crate::imds::is_own_request;
use crate::record::steps::Steps;
use crate::record::{Body, Caller, Code, Finding, Host, Kind, LossCounts, Mode, Record, SECOND, Start, Time};
use crate::sinks::Sink;
use crate::source::{Source, SourceFacts, SourceState};
use crate::stop::Stop;
use crate::summary::Summarizer;

/// Parts of a pipeline.
pub struct Parts {
    /// Name that this run's own records bear.
    pub host: Host,
    pub flow: FlowTable,
    pub attribution: Attribution,
    pub filter: Filter,
    /// Filters that restrict what is observed or written, as the `start` record names them.
    pub filters: Vec<String>,
    pub detectors: HostDetectors,
    /// `None`: see [`Pipeline::detach_summarizer`].
    pub summarizer: Option<Summarizer>,
    pub sinks: Vec<Box<dyn Sink>>,
    /// Time between interval summaries; `None`: only the total at the end.
    pub interval: Option<Duration>,
    /// Hosts of traces whose loss is added up.
    pub recorded_hosts: usize,
    /// Exchanges after which the run is over.
    pub count: Option<u64>,
}

/// Turns events into records.
pub struct Pipeline {
    parts: Parts,
    /// Record kinds that at least one sink accepts.
    wanted: Kinds,
    /// Whether the filter lets anything out.
    filters: bool,
    mode: Mode,
    exchanges: u64,
    unattributed: u64,
    /// Records and packets that were left out for their time.
    misdated: u64,
    source_loss: LossCounts,
    recorded: RecordedHosts,
    /// Steps of the wall clocks of a trace's hosts.
    steps: Steps,
    loss_reported: LossCounts,
    next_loss: Time,
    next_interval: Option<Time>,
    facts: Vec<Fact>,
    findings: Vec<Record<Finding>>,
}

impl Pipeline {
    pub fn new(parts: Parts) -> Self {
        Self {
            wanted: parts
                .sinks
                .iter()
                .fold(Kinds::NONE, |kinds, sink| kinds.or(sink.kinds())),
            recorded: RecordedHosts::new(parts.recorded_hosts),
            steps: Steps::default(),
            filters: parts.filter != Filter::default(),
            parts,
            mode: Mode::Live,
            exchanges: 0,
            unattributed: 0,
            misdated: 0,
            source_loss: LossCounts::default(),
            loss_reported: LossCounts::default(),
            next_loss: Time::default(),
            next_interval: None,
            facts: Vec::new(),
            findings: Vec::new(),
        }
    }

    /// Writes the `start` record.
    pub fn start(&mut self, facts: SourceFacts, now: Time) {
        self.mode = facts.mode;
        if self.mode == Mode::Live
            && let Some(summarizer) = &mut self.parts.summarizer
        {
            summarizer.begin(now);
            self.next_interval = self
                .parts
                .interval
                .map(|interval| now.plus_ns(interval.as_nanos() as u64));
        }
        let own = self.parts.detectors.own();
        let (netns, boot_time) = own.map(|own| (own.netns, own.boot_time)).unwrap_or_default();
        let nat_rules = own.and_then(|own| own.nat_rules.clone());
        let cloud = own.and_then(|own| own.cloud);
        let network_tool = own.and_then(|own| own.network_tool);
        let node_owner = own.and_then(|own| own.node_owner.clone());
        let time = facts.time.unwrap_or(now);
        let start = Start {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: facts.kernel,
            mode: facts.mode,
            endpoints: facts.endpoints,
            interfaces: facts.interfaces,
            attached: facts.attached,
            missing: facts.missing,
            filters: facts.filters.into_iter().chain(self.parts.filters.clone()).collect(),
            confinement: facts.confinement,
            netns,
            boot_time,
            nat_rules,
            cloud,
            network_tool,
            node_owner,
        };
        self.emit(time, Body::Start(start));
    }

    /// Takes events by reference, to avoid copying packets.
    pub fn handle(&mut self, event: &Event) {
        match event {
            Event::Record(record) => self.recorded(record),
            Event::Loss(counts) => self.source_loss = *counts,
            Event::ClockStep(step) => self.clock_stepped(*step),
            Event::Interface(sample) => {
                if let Some(summarizer) = &mut self.parts.summarizer {
                    summarizer.interface(sample);
                }
                self.parts
                    .detectors
                    .observe(&self.parts.host, &Observation::Interface(sample), &mut self.findings);
                self.write_findings();
            }
            event => {
                self.parts.attribution.note(event);
                self.parts.flow.handle(event, &mut self.facts);
                self.join_facts(event.time().unwrap_or_default());
            }
        }
    }

    /// Advances event time to at least `now`, firing timeouts and periodic records.
    pub fn advance(&mut self, now: Time) {
        let mut more = true;
        while more {
            more = self.parts.flow.advance(now, &mut self.facts);
            self.join_facts(now);
        }
        self.parts.detectors.advance(now, &mut self.findings);
        self.write_findings();
        self.emit_interval(now);
        if now >= self.next_loss {
            self.next_loss = now.plus_ns(SECOND);
            self.emit_loss(now, false);
        }
    }

    /// Records have the new time from the one on that reports the step.
    fn clock_stepped(&mut self, ClockStep { time, by_ns }: ClockStep) {
        #[cfg(live)]
        crate::record::steady::step(by_ns);
        let counts = LossCounts {
            clock_step_ns: by_ns,
            ..self.loss()
        };
        self.emit(time, Body::Loss(counts));
    }

    /// A record or packet of a trace bears a time that can't be right: it is left out.
    fn misdated(&mut self) {
        if self.misdated == 0 {
            tracing::warn!(
                "ignored a record whose time is far ahead of its neighbors; further ones are ignored without a message"
            );
        }
        self.misdated += 1;
    }

    /// When an event of a trace was over, on the continuous clock of its host.
    fn settled(&self, event: &Event) -> Option<Time> {
        match event {
            Event::Record(record) => Some(self.steps.settled(record)),
            event => event.settled(),
        }
    }

    /// Takes over another filter and other thresholds from here on.
    pub fn reconfigure(&mut self, filter: Filter, detectors: DetectorConfig) {
        self.filters = filter != Filter::default();
        self.parts.filter = filter;
        self.parts.detectors.reconfigure(detectors);
    }

    /// Nothing may come for a while.
    pub fn flush(&mut self) {
        self.parts.sinks.iter_mut().for_each(|sink| sink.flush());
    }

    /// The last call: everything still open is closed and written, then the totals.
    pub fn finish(&mut self, now: Time) -> anyhow::Result<()> {
        self.parts.flow.finish(now, &mut self.facts);
        self.join_facts(now);
        let mut last = Vec::new();
        self.parts
            .attribution
            .finish(now, |fact, caller| last.push((fact, caller)));
        for (fact, caller) in last {
            self.joined(fact, caller);
        }
        self.parts.detectors.finish(now, &mut self.findings);
        self.write_findings();
        if let Some(summarizer) = &self.parts.summarizer {
            let total = summarizer.total(now);
            self.emit(now, Body::Summary(total));
        }
        self.emit_loss(now, true);
        self.parts
            .sinks
            .iter_mut()
            .map(|sink| sink.finish())
            .fold(Ok(()), anyhow::Result::and)
    }

    /// Detaches the summarizer so it can run one batch behind, on another thread. Only if it sees all records and is not needed before the end.
    fn detach_summarizer(&mut self) -> Option<Summarizer> {
        let sees_all = !self.filters && self.parts.count.is_none() && self.parts.interval.is_none();
        self.parts.summarizer.take_if(|_| sees_all)
    }

    /// Whether no more is wanted: as many exchanges as were asked for, or every sink's reader gone.
    pub fn is_done(&self) -> bool {
        self.is_full() || !self.parts.sinks.is_empty() && self.parts.sinks.iter().all(|sink| sink.is_closed())
    }

    /// Whether the requested number of exchanges is reached.
    fn is_full(&self) -> bool {
        self.parts.count.is_some_and(|count| self.exchanges >= count)
    }

    /// Facts that the traces record about the runs that wrote them.
    pub fn recorded_hosts(&self) -> &RecordedHosts {
        &self.recorded
    }

    /// Everything that was lost so far, wherever.
    pub fn loss(&self) -> LossCounts {
        let own = LossCounts {
            evicted: self.parts.attribution.evicted()
                + self.parts.detectors.evicted()
                + self.parts.summarizer.as_ref().map_or(0, Summarizer::evicted),
            unattributed: self.unattributed,
            unparsed: self.misdated,
            shed: self.parts.sinks.iter().map(|sink| sink.shed()).sum(),
            unknown_containers: self.parts.attribution.unknown_containers(),
            ..LossCounts::default()
        };
        [self.source_loss, self.recorded.loss(), self.parts.flow.loss()]
            .into_iter()
            .fold(own, LossCounts::plus)
    }

    /// Facts become records once the caller is known, which may take a moment.
    fn join_facts(&mut self, now: Time) {
        for fact in self.facts.drain(..) {
            self.parts.attribution.submit(fact, now);
        }
        while let Some((fact, caller)) = self.parts.attribution.next_resolved(now) {
            self.joined(fact, caller);
        }
    }

    fn joined(&mut self, fact: Fact, caller: Caller) {
        let unknown = self.mode == Mode::Live && caller.process.is_none();
        self.unattributed += u64::from(unknown && matches!(fact.body, Body::Exchange(_)));
        let mut record = fact.attribute(caller, &self.parts.host);
        if let (Body::Connect(connect), Some(own)) = (&mut record.body, self.parts.detectors.own()) {
            connect.nat_rule = own.nat_rule(connect).map(str::to_owned);
        }
        let record = Arc::new(record);
        self.observe(&record, &record);
    }

    /// From here on it is all the same whether a record was made now or read from a trace. `record` has continuous time, `written` is what sinks get.
    fn observe(&mut self, record: &Arc<Record>, written: &Arc<Record>) {
        let Some(observation) = Observation::of(record) else {
            return;
        };
        let caller = (observation.process(), observation.container());
        if is_own_request(record) {
            return;
        }
        if self.filters
            && !self
                .parts
                .filter
                .allows(caller.0.map(Arc::as_ref), caller.1.map(Arc::as_ref))
        {
            return;
        }
        if matches!(observation, Observation::Exchange(_)) {
            if self.is_full() {
                return;
            }
            self.exchanges += 1;
        }
        self.parts
            .detectors
            .observe(&record.host, &observation, &mut self.findings);
        self.write(written);
        self.write_findings();
        if let Some(summarizer) = &mut self.parts.summarizer {
            summarizer.observe(record);
        }
    }

    fn recorded(&mut self, written: &Arc<Record>) {
        self.steps.follow(written);
        let undone = self.steps.undo(written);
        let record = undone.as_ref().unwrap_or(written);
        if let Body::Summary(summary) = &record.body
            && !summary.total
        {
            self.recorded.summarized(record.with(summary));
        }
        let observed = matches!(record.body, Body::Exchange(_) | Body::Connect(_) | Body::Drop(_));
        self.recorded.sees(&record.host, record.time, observed);
        match &record.body {
            Body::Exchange(_) | Body::Connect(_) | Body::Drop(_) => self.observe(record, written),
            // Findings are derived again, unless the trace lacks what they rest on.
            Body::Finding(finding) => {
                let derived = self.recorded.has_exchanges(&record.host) || finding.code == Code::PacketQuota;
                let subject = &finding.subject;
                if !derived
                    && self
                        .parts
                        .filter
                        .allows(subject.process.as_deref(), subject.container.as_deref())
                {
                    self.write(written);
                }
            }
            // Processes are added up again; packet counts are nowhere else.
            Body::Summary(summary) if !summary.total => {
                self.parts
                    .detectors
                    .observe_summary(record.with(summary), &mut self.findings);
                self.write_findings();
                if let Some(summarizer) = &mut self.parts.summarizer {
                    summarizer.observe(record);
                }
            }
            Body::Summary(_) => {}
            Body::Loss(loss) => self.recorded.loses(record.with(loss)),
            Body::Start(start) => {
                let start = record.with(start);
                self.recorded.starts(start);
                self.parts.detectors.recorded(start, &mut self.findings);
                self.write_findings();
            }
        }
    }

    fn write_findings(&mut self) {
        if self.findings.is_empty() {
            return;
        }
        let mut findings = std::mem::take(&mut self.findings);
        for finding in findings.drain(..) {
            if self.wanted.has(Kind::Finding) {
                let mut record = finding.into();
                self.steps.redo(&mut record);
                self.write(&Arc::new(record));
            }
        }
        self.findings = findings;
    }

    fn emit_interval(&mut self, now: Time) {
        let (Some(interval), Some(summarizer)) = (self.parts.interval, &mut self.parts.summarizer) else {
            return;
        };
        let interval = interval.as_nanos() as u64;
        let due = *self.next_interval.get_or_insert(now.plus_ns(interval));
        if now < due {
            return;
        }
        self.next_interval = Some(now.plus_ns(interval - now.since(due) % interval));
        // Live, an idle interval is news too; in a trace it is a gap.
        if self.mode == Mode::Live || summarizer.is_busy() {
            let summary = summarizer.interval(now);
            self.emit(now, Body::Summary(summary));
        }
    }

    fn emit_loss(&mut self, now: Time, last: bool) {
        let counts = self.loss();
        if last || counts != self.loss_reported {
            self.loss_reported = counts;
            self.emit(now, Body::Loss(counts));
        }
    }

    /// Writes a record of this run's own.
    fn emit(&mut self, time: Time, body: Body) {
        if self.wanted.has(body.kind()) {
            let host = self.parts.host.clone();
            let mut record = Record { time, host, body };
            self.steps.redo(&mut record);
            self.write(&Arc::new(record));
        }
    }

    fn write(&mut self, record: &Arc<Record>) {
        let kind = record.kind();
        if self.wanted.has(kind) {
            for sink in self.parts.sinks.iter_mut().filter(|sink| sink.kinds().has(kind)) {
                sink.write(record);
            }
        }
    }
}

/// Event time between two calls of [`Pipeline::advance`], at most.
const STEP_NS: u64 = SECOND / 10;
/// A record that is further ahead of its neighbors in a trace has a wrong time. Advancing to it would end all open connections and
/// findings.
const MAX_LEAP_NS: u64 = 600 * SECOND;
/// Longest wait for a live source.
const WAIT: Duration = Duration::from_millis(100);

/// Reads the source to its end, or until `duration` has passed, the pipeline is done, or it is stopped.
pub fn run(
    source: &mut dyn Source,
    pipeline: &mut Pipeline,
    duration: Option<Duration>,
    stop: &Stop,
) -> anyhow::Result<()> {
    let mut run = Run::begin(source.start(), pipeline, duration, stop);
    let mut detached = run.pipeline.detach_summarizer();
    let mut steps = Steps::default();
    let mut add_up = |records: &[Arc<Record>]| {
        if let Some(summarizer) = &mut detached {
            for record in records {
                steps.follow(record);
                summarizer.observe(steps.undo(record).as_ref().unwrap_or(record));
            }
        }
    };
    let in_turns = source.in_turns(&mut |records| run.records(records), &mut add_up);
    if let Some(summarizer) = detached {
        run.pipeline.parts.summarizer = Some(summarizer);
    }
    if in_turns {
        return run.finish();
    }
    run.batches(source, &mut |_| {})
}

/// The same batch by batch, with a callback after each iteration, live at least every 100 ms.
pub fn run_supervised(
    source: &mut dyn Source,
    pipeline: &mut Pipeline,
    duration: Option<Duration>,
    stop: &Stop,
    supervisor: &mut dyn FnMut(&mut Pipeline),
) -> anyhow::Result<()> {
    Run::begin(source.start(), pipeline, duration, stop).batches(source, supervisor)
}

/// A pipeline that is being fed, and its clock.
struct Run<'a> {
    pipeline: &'a mut Pipeline,
    stop: &'a Stop,
    end: Option<Instant>,
    live: bool,
    now: Time,
    advanced: Time,
    /// Nothing has been handled yet.
    first: bool,
}

impl<'a> Run<'a> {
    fn begin(facts: SourceFacts, pipeline: &'a mut Pipeline, duration: Option<Duration>, stop: &'a Stop) -> Self {
        let live = facts.mode == Mode::Live;
        let now = if live {
            Time::now()
        } else {
            facts.time.unwrap_or_default()
        };
        pipeline.start(facts, now);
        Self {
            pipeline,
            stop,
            end: duration.map(|duration| Instant::now() + duration),
            live,
            now,
            advanced: now,
            first: true,
        }
    }

    /// Whether the clock of a trace must not follow this time: it is far ahead, and what comes next is far behind it again.
    fn leaps(&mut self, time: Time, next: impl FnOnce() -> Option<Time>) -> bool {
        let first = std::mem::take(&mut self.first);
        (first || time.since(self.now) > MAX_LEAP_NS) && next().is_some_and(|next| time.since(next) > MAX_LEAP_NS)
    }

    fn batches(mut self, source: &mut dyn Source, supervisor: &mut dyn FnMut(&mut Pipeline)) -> anyhow::Result<()> {
        let mut batch = Vec::new();
        let mut state = SourceState::More;
        while state != SourceState::End
            && let Some(left) = self.left()
        {
            state = source.next_batch(left.min(WAIT), &mut batch)?;
            // Behind in a flood, it is as late as what was last read: an answer that waits in the ring isn't missing.
            let seen = batch
                .iter()
                .rev()
                .find(|event| self.live && event.is_traffic())
                .and_then(Event::time);
            let held = source.held_since();
            self.pipeline.parts.flow.hold(held);
            for (at, event) in batch.iter().enumerate() {
                if !self.live
                    && let Some(time) = self.pipeline.settled(event)
                {
                    let next = batch[at + 1..].iter().find_map(|event| self.pipeline.settled(event));
                    if self.leaps(time, || next) {
                        self.pipeline.misdated();
                        continue;
                    }
                    self.turn_to(time);
                }
                self.pipeline.handle(event);
                if self.pipeline.is_full() {
                    break;
                }
            }
            source.take_back(&mut batch);
            if self.live {
                let now = seen.unwrap_or_else(Time::now);
                self.now = held.map_or(now, |held| now.min(held));
                self.pipeline.advance(self.now);
            }
            self.pipeline.flush();
            supervisor(self.pipeline);
        }
        source.last_batch(&mut batch);
        // Drops that waited for their names come last, and ends may depend on them.
        self.pipeline.parts.flow.hold(self.live.then_some(self.now));
        for event in &batch {
            self.pipeline.handle(event);
        }
        self.pipeline.parts.flow.hold(None);
        self.finish()
    }

    /// Records of a trace, and whether more are wanted.
    fn records(&mut self, records: &[Arc<Record>]) -> ControlFlow<()> {
        for (at, record) in records.iter().enumerate() {
            let steps = &self.pipeline.steps;
            let time = steps.settled(record);
            let next = records.get(at + 1).map(|next| steps.settled(next));
            if self.leaps(time, || next) {
                self.pipeline.misdated();
                continue;
            }
            self.turn_to(time);
            self.pipeline.recorded(record);
            if self.pipeline.is_full() {
                break;
            }
        }
        self.pipeline.flush();
        match self.left() {
            Some(_) => ControlFlow::Continue(()),
            None => ControlFlow::Break(()),
        }
    }

    /// Time that is left, if more is wanted.
    fn left(&self) -> Option<Duration> {
        if self.stop.requested() || self.pipeline.is_done() {
            return None;
        }
        let left = self
            .end
            .map_or(WAIT, |end| end.saturating_duration_since(Instant::now()));
        (!left.is_zero()).then_some(left)
    }

    /// A trace is its own clock. It jumps ahead of what comes next, so that what was due before is decided before.
    fn turn_to(&mut self, time: Time) {
        self.now = self.now.max(time);
        if self.now.since(self.advanced) >= STEP_NS {
            self.advanced = self.now;
            self.pipeline.advance(self.now);
        }
    }

    fn finish(self) -> anyhow::Result<()> {
        self.pipeline.finish(if self.live { Time::now() } else { self.now })
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Mutex;

    use super::*;
    use crate::imds::Hasher;
    use crate::source::input::Input;
    use crate::source::traces::Traces;
    use crate::source::{Handle, Then};
    use crate::{attribution, exchange, source, summary};

    /// Keeps what it gets, as it would be written.
    struct Kept(Arc<Mutex<Vec<String>>>);

    impl Sink for Kept {
        fn kinds(&self) -> Kinds {
            Kinds::ALL
        }

        fn write(&mut self, record: &Arc<Record>) {
            self.0.lock().unwrap().push(serde_json::to_string(record).unwrap());
        }
    }

    /// Batch by batch, whatever the source could do.
    struct BatchByBatch(Traces);

    impl Source for BatchByBatch {
        fn start(&self) -> SourceFacts {
            self.0.start()
        }

        fn next_batch(&mut self, wait: Duration, out: &mut Vec<Event>) -> anyhow::Result<SourceState> {
            self.0.next_batch(wait, out)
        }
    }

    /// A source, and whether it was one that could.
    struct Watched(Traces, bool);

    impl Source for Watched {
        fn start(&self) -> SourceFacts {
            self.0.start()
        }

        fn next_batch(&mut self, wait: Duration, out: &mut Vec<Event>) -> anyhow::Result<SourceState> {
            self.0.next_batch(wait, out)
        }

        fn in_turns(&mut self, handle: Handle<'_>, then: Then<'_>) -> bool {
            self.1 = self.0.in_turns(handle, then);
            self.1
        }
    }

    /// Seven callers who ask all the time, which is a finding each.
    fn trace() -> Traces {
        let mut text = String::new();
        for number in 0..4000 {
            let (ms, who) = (number * 10, number % 7);
            text.push_str(&format!(
                r#"{{"record":"exchange","schema":1,"time":"2026-01-01T00:{:02}:{:02}.{:03}000000Z","host":"a","process":{{"pid":{who},"tid":{who},"namespace_pid":null,"comm":"c{who}","exe":null,"cmdline":null,"uid":0,"start_time":null,"ancestors":[],"cgroup":null,"netns":null}},"container":null,"connection":{{"id":"{number:x}","local":"10.0.0.1:{number}","remote":"169.254.169.254:80","exchange":1}},"request":{{"method":"GET","path":"/latest/meta-data/x","dialect":"aws","imds_version":"v2","token":"t{who}","token_ttl_s":null,"user_agent":null,"ttl":64,"forwarded":false}},"response":{{"status":200,"ttl":1,"delivered":true,"server":null}},"outcome":"answered","latency_ns":{}}}"#,
                ms / 60_000,
                ms / 1000 % 60,
                ms % 1000,
                100_000 + number * 13,
            ));
            text.push('\n');
        }
        let limits = source::Limits {
            read_ahead_bytes: 64 * 1024,
            ..source::Limits::default()
        };
        let input = Input::new("t".into(), Box::new(io::Cursor::new(text))).unwrap();
        Traces::with_limits(vec![input], &[], &limits)
    }

    fn pipeline(change: impl FnOnce(&mut Parts)) -> (Pipeline, Arc<Mutex<Vec<String>>>) {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let host = Host::from("a");
        let mut parts = Parts {
            flow: FlowTable::new(exchange::Limits::default(), Hasher::random()),
            attribution: Attribution::new(attribution::Limits::default(), None),
            filter: Filter::default(),
            filters: Vec::new(),
            detectors: HostDetectors::new(DetectorConfig::default(), None),
            summarizer: Some(Summarizer::new(summary::Limits::default())),
            host,
            sinks: vec![Box::new(Kept(kept.clone()))],
            interval: None,
            recorded_hosts: 1,
            count: None,
        };
        change(&mut parts);
        (Pipeline::new(parts), kept)
    }

    fn records_of(source: &mut dyn Source, change: impl FnOnce(&mut Parts)) -> Vec<String> {
        let (mut pipeline, kept) = pipeline(change);
        run(source, &mut pipeline, None, &Stop::never()).unwrap();
        let kept = kept.lock().unwrap();
        kept.clone()
    }

    /// However long the first look takes: what it brings is summed up at once, and not an interval later.
    #[test]
    fn live_the_first_interval_begins_with_the_run() {
        let (mut pipeline, kept) = pipeline(|parts| parts.interval = Some(Duration::from_secs(1)));
        let facts = SourceFacts {
            mode: Mode::Live,
            ..trace().start()
        };
        let begin = Time(1_767_225_600 * SECOND);
        let reported = || {
            let reported = kept.lock().unwrap();
            reported
                .iter()
                .filter(|record| record.contains("\"total\":false"))
                .count()
        };
        pipeline.start(facts, begin);
        pipeline.advance(begin.plus_ns(SECOND / 2));
        assert_eq!(reported(), 0);
        pipeline.advance(begin.plus_ns(3 * SECOND));
        assert_eq!(reported(), 1);
        pipeline.advance(begin.plus_ns(4 * SECOND));
        assert_eq!(reported(), 2);
    }

    /// Also where the summary can't be added up aside.
    #[test]
    fn in_turns_a_trace_gives_what_it_gives_batch_by_batch() {
        let changes: [fn(&mut Parts); 4] = [
            |_| {},
            |parts| parts.interval = Some(Duration::from_secs(10)),
            |parts| parts.count = Some(1234),
            |parts| parts.filter.comm = vec!["c1".into(), "c2".into()],
        ];
        for (index, change) in changes.into_iter().enumerate() {
            let mut watched = Watched(trace(), false);
            let in_turns = records_of(&mut watched, change);
            assert!(watched.1, "it goes in turns");
            let batches = records_of(&mut BatchByBatch(trace()), change);
            assert_eq!(in_turns.len(), batches.len(), "{index}");
            for (left, right) in in_turns.iter().zip(&batches) {
                assert_eq!(left, right, "{index}");
            }
            assert!(in_turns.iter().any(|record| record.contains("tight-polling")));
        }
    }
}
