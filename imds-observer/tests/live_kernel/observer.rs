//! An observer under test: on a separate thread, in the lab's node, with the privileges of this run.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use imds_observer::bpf::LiveOptions;
use imds_observer::event::Event;
use imds_observer::live::LiveSource;
use imds_observer::record::{Attached, LossCounts, Missing};
use imds_observer::source::Source as _;
use imds_observer_lab::privileges::Privileges;
use imds_observer_lab::topology::Lab;

/// Long enough for a guest without hardware virtualization, which is ten times slower.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Observer {
    pub(crate) attached: Vec<Attached>,
    pub(crate) missing: Vec<Missing>,
    pub(crate) events: Vec<Event>,
    incoming: Receiver<Vec<Event>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<LossCounts>>,
}

pub(crate) fn options(lab: &Lab) -> LiveOptions {
    LiveOptions {
        interfaces: vec!["eth0".to_owned()],
        cgroup: Some(lab.cgroup_directory().to_path_buf()),
        ..LiveOptions::default()
    }
}

/// Enables the loader's log; `RUST_LOG=debug` shows more than errors.
fn log() {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
}

/// Opens the source with this run's privileges on the calling thread, which keeps them.
pub(crate) fn open_here(interface: &str, cgroup: &Path) -> anyhow::Result<LiveSource> {
    log();
    Privileges::from_env()?.reduce_thread()?;
    LiveSource::open(&LiveOptions {
        interfaces: vec![interface.to_owned()],
        cgroup: Some(PathBuf::from(cgroup)),
        ..LiveOptions::default()
    })
}

impl Observer {
    pub(crate) fn open(lab: &Lab, options: LiveOptions) -> anyhow::Result<Self> {
        log();
        let (send, incoming) = channel();
        let (opened, answer) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        // A new thread is in the network namespace of the thread that starts it.
        let thread = lab.node().netns().run(|| {
            std::thread::spawn(move || {
                let source = Privileges::from_env()
                    .and_then(Privileges::reduce_thread)
                    .and_then(|()| LiveSource::open(&options));
                let mut source = match source {
                    Ok(source) => source,
                    Err(error) => {
                        let _ = opened.send(Err(error));
                        return LossCounts::default();
                    }
                };
                let kernel = source.kernel();
                let _ = opened.send(Ok((kernel.attached().to_vec(), kernel.missing().to_vec())));
                let mut loss = LossCounts::default();
                let mut batch = Vec::new();
                while !stopped.load(Ordering::Relaxed) {
                    source
                        .next_batch(Duration::from_millis(50), &mut batch)
                        .expect("read events");
                    if batch.iter().any(|event| matches!(event, Event::Loss(_))) {
                        loss = last_loss(&batch).unwrap_or(loss);
                    }
                    let _ = send.send(std::mem::take(&mut batch));
                }
                source.last_batch(&mut batch);
                last_loss(&batch).unwrap_or(loss)
            })
        })?;
        let (attached, missing) = answer.recv()??;
        Ok(Self {
            attached,
            missing,
            events: Vec::new(),
            incoming,
            stop,
            thread: Some(thread),
        })
    }

    /// Waits for an event for which `pick` returns a value.
    pub(crate) fn wait<T>(&mut self, what: &str, mut pick: impl FnMut(&Event) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut looked_at = 0;
        loop {
            if let Some(found) = self.events[looked_at..].iter().find_map(&mut pick) {
                return found;
            }
            looked_at = self.events.len();
            match self
                .incoming
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(batch) => self.events.extend(batch),
                Err(RecvTimeoutError::Timeout) => panic!("no {what} within {PATIENCE:?}; saw {:#?}", self.events),
                Err(RecvTimeoutError::Disconnected) => panic!("the observer ended"),
            }
        }
    }

    /// Ends the observer and returns its losses.
    pub(crate) fn close(mut self) -> LossCounts {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("closed once");
        thread.join().expect("the observer's thread")
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn last_loss(batch: &[Event]) -> Option<LossCounts> {
    batch.iter().rev().find_map(|event| match event {
        Event::Loss(loss) => Some(*loss),
        _ => None,
    })
}
