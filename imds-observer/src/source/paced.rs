//! Plays a trace at a chosen speed: holds each event back until its time has come.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::{Source, SourceFacts, SourceState};
use crate::event::Event;
use crate::record::{Body, Time};

/// Longer gaps are shortened to this.
const MAX_SILENCE: Duration = Duration::from_secs(5);

/// How many seconds of the trace go by in one; `None`: as fast as it can be read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed(pub Option<f64>);

impl FromStr for Speed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "max" {
            return Ok(Self(None));
        }
        match text.strip_suffix('x').unwrap_or(text).parse::<f64>() {
            Ok(times) if (0.001..=1_000_000.0).contains(&times) => Ok(Self(Some(times))),
            _ => Err("not a speed such as 1x, 10x, 0.5x or max".to_owned()),
        }
    }
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(times) => write!(f, "{times}x"),
            None => f.write_str("max"),
        }
    }
}

/// Shared with the view, which handles the pause key and shows the time.
#[derive(Debug, Default)]
pub struct Playback {
    pub paused: AtomicBool,
    pub ended: AtomicBool,
    now: AtomicU64,
}

impl Playback {
    /// Where the trace is played.
    pub fn now(&self) -> Time {
        Time(self.now.load(Ordering::Relaxed))
    }
}

/// See the module.
pub struct Paced<S> {
    inner: S,
    speed: Speed,
    playback: Arc<Playback>,
    waiting: VecDeque<Event>,
    ended: bool,
    /// Trace's time, and when that was.
    now: Option<Time>,
    looked: Instant,
}

impl<S: Source> Paced<S> {
    pub fn new(inner: S, speed: Speed, playback: Arc<Playback>) -> Self {
        Self {
            inner,
            speed,
            playback,
            waiting: VecDeque::new(),
            ended: false,
            now: None,
            looked: Instant::now(),
        }
    }

    /// The time of the trace goes on by what has passed since the last look.
    fn tick(&mut self, next: Time) -> Time {
        let passed = self.looked.elapsed();
        self.looked = Instant::now();
        let times = self.speed.0.unwrap_or(1.0);
        let now = self.now.unwrap_or(next);
        let silence = (MAX_SILENCE.as_nanos() as f64 * times) as u64;
        let paused = self.playback.paused.load(Ordering::Relaxed);
        let step = if paused {
            0
        } else {
            (passed.as_nanos() as f64 * times) as u64
        };
        // Ahead to shortly before what comes next.
        let now = now.plus_ns(step).max(next.minus_ns(silence));
        self.now = Some(now);
        self.playback.now.store(now.0, Ordering::Relaxed);
        now
    }
}

impl<S: Source> Source for Paced<S> {
    fn start(&self) -> SourceFacts {
        self.inner.start()
    }

    fn next_batch(&mut self, wait: Duration, out: &mut Vec<Event>) -> anyhow::Result<SourceState> {
        if self.waiting.is_empty() && !self.ended {
            let mut batch = Vec::new();
            self.ended = self.inner.next_batch(wait, &mut batch)? == SourceState::End;
            self.waiting.extend(batch);
        }
        let Some(next) = self.waiting.front() else {
            if self.ended {
                self.playback.ended.store(true, Ordering::Relaxed);
            }
            return Ok(if self.ended {
                SourceState::End
            } else {
                SourceState::Idle
            });
        };
        let paused = self.playback.paused.load(Ordering::Relaxed);
        let Some(times) = self.speed.0 else {
            if paused {
                sleep(wait);
                return Ok(SourceState::Idle);
            }
            out.extend(self.waiting.drain(..));
            return Ok(SourceState::More);
        };
        let due = next.settled().unwrap_or_default();
        let now = self.tick(due);
        if due > now || paused {
            let left = Duration::from_nanos((due.since(now) as f64 / times) as u64);
            sleep(if paused { wait } else { left.min(wait) });
            return Ok(SourceState::Idle);
        }
        while let Some(event) = self
            .waiting
            .pop_front_if(|event| event.settled().unwrap_or_default() <= now)
        {
            // After a step of the recorded clock the trace goes on in the new time.
            if let Event::Record(record) = &event
                && let Body::Loss(loss) = &record.body
                && loss.clock_step_ns != 0
            {
                self.now = Some(record.time);
                out.push(event);
                break;
            }
            out.push(event);
        }
        Ok(SourceState::More)
    }

    fn last_batch(&mut self, out: &mut Vec<Event>) {
        self.inner.last_batch(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Body, LossCounts, Mode, Record, SECOND};

    struct Fixed(Vec<Event>);

    impl Source for Fixed {
        fn start(&self) -> SourceFacts {
            SourceFacts {
                mode: Mode::Offline,
                host: None,
                time: None,
                kernel: None,
                endpoints: Vec::new(),
                interfaces: Vec::new(),
                attached: Vec::new(),
                missing: Vec::new(),
                filters: Vec::new(),
                confinement: None,
            }
        }

        fn next_batch(&mut self, _: Duration, out: &mut Vec<Event>) -> anyhow::Result<SourceState> {
            out.append(&mut self.0);
            Ok(SourceState::End)
        }
    }

    fn at(ns: u64) -> Event {
        Event::Record(Arc::new(Record {
            time: Time(ns),
            host: "h".into(),
            body: Body::Loss(LossCounts::default()),
        }))
    }

    fn play(speed: &str, playback: &Arc<Playback>, times: &[u64]) -> (usize, Duration) {
        let events = times.iter().map(|ns| at(*ns)).collect();
        let mut paced = Paced::new(Fixed(events), speed.parse().unwrap(), playback.clone());
        let mut out = Vec::new();
        let begin = Instant::now();
        while paced.next_batch(Duration::from_millis(20), &mut out).unwrap() != SourceState::End {}
        (out.len(), begin.elapsed())
    }

    #[test]
    fn a_trace_takes_its_time_divided_by_the_speed() {
        let playback = Arc::new(Playback::default());
        let times = [SECOND, 2 * SECOND, 3 * SECOND];
        let (count, took) = play("10x", &playback, &times);
        assert_eq!(count, 3);
        assert!(took >= Duration::from_millis(190), "{took:?}");
        assert!(playback.ended.load(Ordering::Relaxed));
        assert_eq!(play("max", &playback, &times).0, 3);
    }

    #[test]
    fn a_long_silence_is_cut() {
        let (count, took) = play("100x", &Arc::default(), &[SECOND, 1_000_000 * SECOND]);
        assert_eq!(count, 2);
        assert!(took < Duration::from_secs(60), "{took:?}");
    }

    #[test]
    fn only_speeds_are_speeds() {
        assert_eq!("10x".parse(), Ok(Speed(Some(10.0))));
        for wrong in ["", "x", "0", "-1x", "NaN", "inf", "fast"] {
            assert!(wrong.parse::<Speed>().is_err(), "{wrong}");
        }
    }
}
