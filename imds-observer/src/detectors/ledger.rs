//! Turns sightings into findings: one per cause and subject, `open` once, `update` rarely, `resolved` when it has stopped.
//!
//! An update is written when the severity rises, when the detector reports news, when the count has
//! doubled, or after [`UPDATE_NS`], a pause that doubles with each update up to [`MAX_UPDATE_NS`]: a fault that
//! lasts for a day must not fill the log. Severity never falls while a finding is open, so nothing flaps.
//!
//! At most [`super::Limits::findings`] findings of one code are open. Further subjects are counted together under one finding for
//! [`OTHERS`]: a hostile process must not be able to open 100,000, nor to push an honest finding out.

use std::any::Any;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use serde_json::{Map, Value};

use crate::record::{Code, Finding, FindingState, Host, Record, Remedy, SECOND, Severity, Subject, Time};

/// Shortest pause between two updates of one finding that only grew.
pub(super) const UPDATE_NS: u64 = 60 * SECOND;
/// Longest such pause.
const MAX_UPDATE_NS: u64 = 3600 * SECOND;
/// After counter-evidence (the same client succeeds) a finding is resolved once it has been silent for this long.
const SETTLE_NS: u64 = 30 * SECOND;
/// Up to this count details that were [reported](Sightings::report) are kept fresh at every sighting. Above, they are never behind by more than
/// this part of the count, nor by more than [`STALE_NS`] where sightings come: making them costs microseconds, and no one reads them before they
/// are written. Where that is not good enough, what they are made of can be [kept](Sightings::keep) instead.
const ALWAYS_FRESH: u64 = 64;
const STALE_PART: u64 = 16;
const STALE_NS: u64 = 60 * SECOND;
/// Key of the subject that represents all those beyond the bound.
const OTHERS: &str = "others";

/// A detector has seen its pattern, once more.
#[derive(Clone, Copy, Debug)]
pub struct Sighting<'a> {
    /// Key of the subject: one finding for each.
    pub key: &'a str,
    pub severity: Severity,
    pub time: Time,
    /// Occurrences that this sighting adds; 0 when it only adds to the last one.
    pub count: u64,
    /// Something was learned that a reader should know now.
    pub news: bool,
}

/// Text and evidence of a finding.
#[derive(Clone, Debug)]
pub struct Details {
    pub subject: Subject,
    /// One sentence.
    pub summary: String,
    pub evidence: Map<String, Value>,
    pub remedy: Remedy,
}

/// The latest sighting, as a function that builds the finding's text.
trait Reported: Any + Send {
    fn details(&self) -> Details;
}

impl<F: Fn() -> Details + Any + Send> Reported for F {
    fn details(&self) -> Details {
        self()
    }
}

struct Open {
    /// It represents all subjects beyond the bound.
    others: Option<usize>,
    severity: Severity,
    first_seen: Time,
    last_seen: Time,
    count: u64,
    reported: Box<dyn Reported>,
    reported_at: Time,
    reported_count: u64,
    written_at: Time,
    written_count: u64,
    pause_ns: u64,
    quiet_ns: u64,
    cleared: Option<Time>,
}

pub(super) struct Ledger {
    host: Host,
    /// By code, in the order of [`Code::ALL`].
    open: Vec<FxHashMap<Arc<str>, Open>>,
    /// Codes that have any, a bit each: asked for at every observation.
    open_codes: u64,
    /// Open findings of one code.
    max_open: usize,
    folded: u64,
    /// Commands of AWS make sense on this host.
    pub(super) is_aws: bool,
}

/// Where a detector reports.
pub struct Sightings<'a> {
    ledger: &'a mut Ledger,
    code: Code,
    quiet_ns: u64,
    now: Time,
    /// Start of the next sighting: see [`Self::since`].
    since: Option<Time>,
    out: &'a mut Vec<Record<Finding>>,
}

impl<'a> Sightings<'a> {
    /// Belongs to no detector yet: see [`Self::turn_to`].
    pub(super) fn new(ledger: &'a mut Ledger, now: Time, out: &'a mut Vec<Record<Finding>>) -> Self {
        Self {
            ledger,
            code: Code::ALL[0],
            quiet_ns: 0,
            now,
            since: None,
            out,
        }
    }

    /// From here on the detector of this code reports.
    pub(super) fn turn_to(&mut self, code: Code, quiet_ns: u64) {
        self.code = code;
        self.quiet_ns = quiet_ns;
    }

    /// The next sighting rests on evidence from `first` on, and its own time is that of the last one. A detector that waits for several
    /// occurrences reports the first of them here, because `first_seen` is when the pattern began, not when it was recognized.
    pub fn since(&mut self, first: Time) -> &mut Self {
        self.since = Some(first);
        self
    }

    /// The count of the next sighting, which is the last of `all` since `first`: all of them where it opens a finding, else itself.
    pub fn counted(&mut self, key: &str, all: u64, first: Time) -> u64 {
        if self.is_open(key) {
            return 1;
        }
        self.since(first);
        all
    }

    /// The pattern was seen. `details` is called when it is about to be written, and now and then.
    pub fn report(&mut self, sighting: Sighting<'_>, details: impl FnOnce() -> Details) {
        self.describe(sighting, false, || {
            let details = details();
            move || details.clone()
        });
    }

    /// The pattern was seen, and is seen so often that it costs too much to make details each time: `facts` gathers what they are made of.
    pub fn keep<F: Fn() -> Details + Send + 'static>(&mut self, sighting: Sighting<'_>, facts: impl FnOnce() -> F) {
        self.describe(sighting, true, facts);
    }

    fn describe<T: Reported>(&mut self, sighting: Sighting<'_>, always: bool, reported: impl FnOnce() -> T) {
        let Self {
            ledger,
            code,
            quiet_ns,
            now,
            since,
            out,
        } = self;
        let since = since.take().unwrap_or(sighting.time).min(sighting.time);
        ledger.report(*code, *quiet_ns, *now, since, sighting, always, reported, out);
    }

    /// Counter-evidence: what the finding complains of works. If nothing more is seen it is resolved soon.
    pub fn clear(&mut self, key: &str, time: Time) {
        if let Some(open) = self.ledger.open[self.code as usize].get_mut(key)
            && time >= open.last_seen
        {
            open.cleared.get_or_insert(time);
        }
    }

    /// Whether any finding of this code is open.
    pub fn any_open(&self) -> bool {
        self.ledger.any_open(self.code)
    }

    pub fn is_open(&self, key: &str) -> bool {
        self.ledger.open[self.code as usize].contains_key(key)
    }
}

fn bit(code: Code) -> u64 {
    const { assert!(Code::ALL.len() <= u64::BITS as usize) };
    1 << code as u32
}

impl Ledger {
    pub(super) fn new(host: Host, max_open: usize) -> Self {
        Self {
            host,
            max_open,
            open: Code::ALL.iter().map(|_| FxHashMap::default()).collect(),
            open_codes: 0,
            folded: 0,
            is_aws: true,
        }
    }

    /// Codes with findings open, a bit each.
    pub(super) fn open_codes(&self) -> u64 {
        self.open_codes
    }

    /// Whether any finding of this code is open.
    pub(super) fn any_open(&self, code: Code) -> bool {
        self.open_codes & bit(code) != 0
    }

    #[expect(clippy::too_many_arguments, reason = "what `Sightings` holds, each by itself")]
    fn report<T: Reported>(
        &mut self,
        code: Code,
        quiet_ns: u64,
        now: Time,
        since: Time,
        sighting: Sighting<'_>,
        always: bool,
        reported: impl FnOnce() -> T,
        out: &mut Vec<Record<Finding>>,
    ) {
        let (of_code, max_open) = (&mut self.open[code as usize], self.max_open);
        let others = of_code.len() >= max_open && !of_code.contains_key(sighting.key);
        let key = if others { OTHERS } else { sighting.key };
        if others {
            self.folded += 1;
        }
        let Some(open) = of_code.get_mut(key) else {
            let open = Open {
                others: others.then_some(max_open),
                severity: sighting.severity,
                first_seen: since,
                last_seen: sighting.time,
                count: sighting.count.max(1),
                reported: Box::new(reported()),
                reported_at: now,
                reported_count: sighting.count.max(1),
                written_at: now,
                written_count: sighting.count.max(1),
                pause_ns: UPDATE_NS,
                quiet_ns,
                cleared: None,
            };
            out.push(open.finding(code, FindingState::Open, now, &self.host, self.is_aws));
            of_code.insert(key.into(), open);
            self.open_codes |= bit(code);
            return;
        };
        open.first_seen = open.first_seen.min(since);
        open.last_seen = open.last_seen.max(sighting.time);
        open.count = open.count.saturating_add(sighting.count);
        open.cleared = open.cleared.filter(|cleared| *cleared > sighting.time);
        let due = sighting.severity > open.severity
            || sighting.news
            || open.count >= open.written_count.saturating_mul(2)
            || (open.count > open.written_count && now.since(open.written_at) >= open.pause_ns);
        open.severity = open.severity.max(sighting.severity);
        if always || due || open.is_stale(now) {
            let kept: &mut dyn Any = &mut *open.reported;
            match kept.downcast_mut::<T>() {
                Some(kept) => *kept = reported(),
                None => open.reported = Box::new(reported()),
            }
            open.reported_at = now;
            open.reported_count = open.count;
        }
        if due {
            if now.since(open.written_at) >= open.pause_ns {
                open.pause_ns = (open.pause_ns * 2).min(MAX_UPDATE_NS);
            }
            out.push(open.write(code, FindingState::Update, now, &self.host, self.is_aws));
        }
    }

    pub(super) fn resolve(&mut self, now: Time, out: &mut Vec<Record<Finding>>) {
        for (code, of_code) in Code::ALL.iter().zip(&mut self.open) {
            let mut done = of_code
                .extract_if(|_, open| {
                    now.since(open.last_seen) >= open.quiet_ns
                        || open.cleared.is_some_and(|cleared| now.since(cleared) >= SETTLE_NS)
                })
                .collect::<Vec<_>>();
            if of_code.is_empty() {
                self.open_codes &= !bit(*code);
            }
            done.sort_by(|(a, _), (b, _)| a.cmp(b));
            for (_, mut open) in done {
                out.push(open.write(*code, FindingState::Resolved, now, &self.host, self.is_aws));
            }
        }
    }

    pub(super) fn finish(&mut self, now: Time, out: &mut Vec<Record<Finding>>) {
        let mut changed = Vec::new();
        for (code, of_code) in Code::ALL.iter().zip(&mut self.open) {
            for (key, open) in of_code {
                if open.count > open.written_count {
                    changed.push((
                        *code,
                        key.clone(),
                        open.write(*code, FindingState::Update, now, &self.host, self.is_aws),
                    ));
                }
            }
        }
        changed.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        out.extend(changed.into_iter().map(|(_, _, finding)| finding));
    }

    /// Sightings of subjects that had no finding of their own.
    pub(super) fn evicted(&self) -> u64 {
        self.folded
    }
}

impl Open {
    /// Whether details are to be renewed though nothing is written.
    fn is_stale(&self, now: Time) -> bool {
        self.count <= ALWAYS_FRESH
            || self.count.saturating_sub(self.reported_count) >= self.count / STALE_PART
            || now.since(self.reported_at) >= STALE_NS
    }

    fn write(&mut self, code: Code, state: FindingState, now: Time, host: &Host, is_aws: bool) -> Record<Finding> {
        self.written_at = now;
        self.written_count = self.count;
        self.finding(code, state, now, host, is_aws)
    }

    fn finding(&self, code: Code, state: FindingState, now: Time, host: &Host, is_aws: bool) -> Record<Finding> {
        let Details {
            mut subject,
            summary,
            evidence,
            mut remedy,
        } = self.reported.details();
        if !is_aws {
            remedy.commands.retain(|command| !command.starts_with("aws "));
        }
        if let Some(most) = self.others {
            OTHERS.clone_into(&mut subject.key);
            subject.name = format!("more than {most} subjects");
        }
        let body = Finding {
            code,
            severity: self.severity,
            state,
            subject,
            first_seen: self.first_seen,
            last_seen: self.last_seen,
            count: self.count,
            summary,
            evidence,
            remedy,
        };
        Record {
            time: now,
            host: host.clone(),
            body,
        }
    }
}
