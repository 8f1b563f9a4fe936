//! A bounded queue with a writer thread of its own, between the pipeline and a sink that may be slow.
//!
//! When the sink can't keep up, the queue drops the oldest record of the lowest priority: exchanges first, then drops, connects and summaries, findings last. `loss.shed` counts them.
//!
//! Little that goes to a pipe with room is written without the writer: waking it costs more than writing.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::backlog::Backlog;
use super::{Express, Item, Output, Sink};
use crate::filter::Kinds;
use crate::record::Record;

/// How often an idle writer looks whether anybody still reads.
const IDLE: Duration = Duration::from_millis(500);
/// Timeout for writing the remaining records at shutdown. A pipe without a reader must not keep the program alive.
const LAST_WRITE: Duration = Duration::from_secs(5);

/// Records that the writer takes at a time. Those can't be dropped for others any more.
const BATCH: usize = 256;

/// See the module.
pub struct Queue<I = Arc<Record>> {
    shared: Arc<Shared<I>>,
    /// Not handed over yet: the writer is woken once for what came together.
    gathered: Vec<I>,
    express: Option<Box<dyn Express<I>>>,
    thread: Option<JoinHandle<io::Result<()>>>,
    kinds: Kinds,
}

struct Shared<I> {
    state: Mutex<Progress<I>>,
    changed: Condvar,
    shed: AtomicU64,
    closed: AtomicBool,
}

struct Progress<I> {
    waiting: Backlog<I>,
    /// Taken out, not yet written.
    writing: usize,
    ending: bool,
    ended: bool,
}

impl<I> Shared<I> {
    fn lock(&self) -> MutexGuard<'_, Progress<I>> {
        // A panic while the lock is held can't happen between two consistent states here.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<I: Item> Queue<I> {
    /// At most `limit` items wait, besides those that are being written.
    pub fn new(mut output: impl Output<Item = I> + 'static, kinds: Kinds, limit: usize) -> anyhow::Result<Self> {
        let express = output.express();
        let shared = Arc::new(Shared {
            state: Mutex::new(Progress {
                waiting: Backlog::new(limit, usize::MAX),
                writing: 0,
                ending: false,
                ended: false,
            }),
            changed: Condvar::new(),
            shed: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        });
        let thread = std::thread::Builder::new()
            .name("writer".to_owned())
            .spawn({
                let shared = shared.clone();
                move || write_all(&shared, output)
            })
            .context("start the writer thread")?;
        Ok(Self {
            shared,
            gathered: Vec::new(),
            express,
            thread: Some(thread),
            kinds,
        })
    }

    /// At most so many bytes wait, too.
    #[must_use]
    pub fn with_budget(self, bytes: usize) -> Self {
        self.shared.lock().waiting.limit_bytes(bytes);
        self
    }
}

impl<I: Item> Sink for Queue<I> {
    fn kinds(&self) -> Kinds {
        self.kinds
    }

    fn write(&mut self, record: &Arc<Record>) {
        self.gathered.push(I::of(record));
        if self.gathered.len() >= BATCH {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.gathered.is_empty() {
            return;
        }
        if self.is_closed() {
            self.gathered.clear();
            return;
        }
        let mut state = self.shared.lock();
        let idle = state.waiting.is_empty();
        if let Some(express) = self.express.as_mut().filter(|_| idle && state.writing == 0) {
            // Nothing is before it, and only this thread puts anything there.
            drop(state);
            if express.write(&mut self.gathered).is_err() {
                self.gathered.clear();
                self.shared.closed.store(true, Ordering::Relaxed);
            }
            if self.gathered.is_empty() {
                return;
            }
            state = self.shared.lock();
        }
        for item in self.gathered.drain(..) {
            let dropped = state.waiting.push(item);
            self.shared.shed.fetch_add(dropped, Ordering::Relaxed);
        }
        drop(state);
        if idle {
            self.shared.changed.notify_all();
        }
    }

    fn shed(&self) -> u64 {
        self.shared.shed.load(Ordering::Relaxed)
    }

    fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::Relaxed)
    }

    fn finish(&mut self) -> anyhow::Result<()> {
        self.flush();
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        let deadline = Instant::now() + LAST_WRITE;
        let mut state = self.shared.lock();
        state.ending = true;
        self.shared.changed.notify_all();
        while !state.ended {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let count = state.waiting.len() + state.writing;
                tracing::warn!("output stalled: dropped {count} records at shutdown");
                return Ok(());
            }
            (state, _) = self
                .shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        match thread.join() {
            Ok(result) => result.context("write the output"),
            Err(_) => anyhow::bail!("the writer thread panicked"),
        }
    }
}

fn write_all<I: Item>(shared: &Shared<I>, mut output: impl Output<Item = I>) -> io::Result<()> {
    let result = match write_until_end(shared, &mut output) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    };
    shared.closed.store(true, Ordering::Relaxed);
    shared.lock().ended = true;
    shared.changed.notify_all();
    result
}

fn write_until_end<I: Item>(shared: &Shared<I>, output: &mut impl Output<Item = I>) -> io::Result<()> {
    let mut batch = Vec::new();
    loop {
        let mut state = shared.lock();
        state.writing = 0;
        while state.waiting.is_empty() && !state.ending {
            let timeout;
            (state, timeout) = shared
                .changed
                .wait_timeout(state, IDLE)
                .unwrap_or_else(PoisonError::into_inner);
            if timeout.timed_out() && state.waiting.is_empty() {
                drop(state);
                output.idle()?;
                state = shared.lock();
            }
        }
        state.waiting.take(BATCH, &mut batch);
        state.writing = batch.len();
        drop(state);
        if batch.is_empty() {
            return output.close();
        }
        let shed = output.write(&batch)?;
        shared.shed.fetch_add(shed, Ordering::Relaxed);
        batch.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::record::{Body, Kind, LossCounts, Time};

    /// Stuck until the test lets it go on.
    struct Gate {
        go: mpsc::Receiver<()>,
        entered: mpsc::Sender<()>,
        written: Arc<Mutex<Vec<Arc<Record>>>>,
    }

    impl Output for Gate {
        type Item = Arc<Record>;

        fn write(&mut self, records: &[Arc<Record>]) -> io::Result<u64> {
            let _ = self.entered.send(());
            let _ = self.go.recv();
            self.written.lock().unwrap().extend_from_slice(records);
            Ok(0)
        }
    }

    /// Takes a given number of records, before all others.
    struct Way {
        room: Arc<AtomicU64>,
        written: Arc<Mutex<Vec<Arc<Record>>>>,
    }

    impl Express<Arc<Record>> for Way {
        fn write(&mut self, items: &mut Vec<Arc<Record>>) -> io::Result<()> {
            let count = items.len().min(self.room.load(Ordering::Relaxed) as usize);
            self.room.fetch_sub(count as u64, Ordering::Relaxed);
            self.written.lock().unwrap().extend(items.drain(..count));
            Ok(())
        }
    }

    #[test]
    fn nothing_overtakes_what_waits_for_the_writer() {
        let (go, gate) = mpsc::channel();
        let (entered, has_entered) = mpsc::channel();
        let written = Arc::<Mutex<Vec<Arc<Record>>>>::default();
        let output = Gate {
            go: gate,
            entered,
            written: written.clone(),
        };
        let room = Arc::new(AtomicU64::new(1));
        let mut queue = Queue::new(output, Kinds::ALL, 16).unwrap();
        queue.express = Some(Box::new(Way {
            room: room.clone(),
            written: written.clone(),
        }));
        for name in ["0", "1", "2"] {
            queue.write(&loss(name));
        }
        queue.flush();
        // The first was written directly, the others by the writer: the pipe has free space again.
        has_entered.recv().unwrap();
        room.store(9, Ordering::Relaxed);
        queue.write(&loss("3"));
        queue.flush();
        assert_eq!(written.lock().unwrap().len(), 1);
        drop(go);
        queue.finish().unwrap();
        let hosts: Vec<String> = written
            .lock()
            .unwrap()
            .iter()
            .map(|record| record.host.to_string())
            .collect();
        assert_eq!(hosts, ["0", "1", "2", "3"]);
    }

    fn loss(host: &str) -> Arc<Record> {
        Arc::new(Record {
            time: Time(0),
            host: host.into(),
            body: Body::Loss(LossCounts::default()),
        })
    }

    #[test]
    fn a_stuck_sink_never_blocks_and_what_is_shed_is_counted() {
        let (go, gate) = mpsc::channel();
        let (entered, has_entered) = mpsc::channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let gate = Gate {
            go: gate,
            entered,
            written: written.clone(),
        };
        let mut queue = Queue::new(gate, Kinds::ALL, 4).unwrap();
        queue.write(&loss("h"));
        queue.flush();
        has_entered.recv().unwrap();
        // One is being written, and there is room for 4 more.
        for _ in 0..10 {
            queue.write(&loss("h"));
        }
        queue.flush();
        assert_eq!(queue.shed(), 6);
        drop(go);
        queue.finish().unwrap();
        assert_eq!(written.lock().unwrap().len(), 5);
    }

    #[test]
    fn what_matters_more_takes_the_place_of_what_matters_less() {
        let (go, gate) = mpsc::channel::<()>();
        let (entered, has_entered) = mpsc::channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let gate = Gate {
            go: gate,
            entered,
            written: written.clone(),
        };
        let mut queue = Queue::new(gate, Kinds::ALL, 4).unwrap();
        queue.write(&loss("h"));
        queue.flush();
        has_entered.recv().unwrap();
        let drop_record = example(Kind::Drop);
        let exchange = example(Kind::Exchange);
        for record in [&exchange, &drop_record, &exchange, &exchange, &drop_record, &exchange] {
            queue.write(record);
        }
        // Two drops and two exchanges wait. Three of these: the exchanges go, then a drop.
        for _ in 0..3 {
            queue.write(&loss("h"));
        }
        queue.flush();
        assert_eq!(queue.shed(), 5);
        drop(go);
        queue.finish().unwrap();
        let kinds: Vec<Kind> = written.lock().unwrap().iter().map(Item::kind).collect();
        assert_eq!(kinds, [Kind::Loss, Kind::Drop, Kind::Loss, Kind::Loss, Kind::Loss]);
    }

    #[test]
    fn a_budget_of_bytes_holds_whatever_the_count() {
        let one = example(Kind::Exchange).bytes();
        let mut queue = Queue::new(Stuck, Kinds::ALL, 1000).unwrap().with_budget(8 * one);
        for _ in 0..100 {
            queue.write(&example(Kind::Exchange));
        }
        queue.flush();
        assert_eq!(queue.shed(), 92);
    }

    /// Takes nothing.
    struct Stuck;

    impl Output for Stuck {
        type Item = Arc<Record>;

        fn write(&mut self, _: &[Arc<Record>]) -> io::Result<u64> {
            std::thread::park();
            Ok(0)
        }
    }

    /// From a trace: such a record has many fields.
    fn example(kind: Kind) -> Arc<Record> {
        let trace = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/traces/lost-token-pod.ndjson");
        let text = std::fs::read_to_string(trace).unwrap();
        let records = text
            .lines()
            .map(|line| crate::source::ndjson::parse(line.as_bytes()).unwrap());
        Arc::new(records.into_iter().find(|record| record.kind() == kind).unwrap())
    }

    #[test]
    fn a_closed_pipe_is_a_normal_end() {
        struct Closed;
        impl Output for Closed {
            type Item = Arc<Record>;

            fn write(&mut self, _: &[Arc<Record>]) -> io::Result<u64> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
        let mut queue = Queue::new(Closed, Kinds::ALL, 4).unwrap();
        queue.write(&loss("h"));
        queue.finish().unwrap();
        assert!(queue.is_closed());
    }
}
