//! The stand-in for the metadata service: EC2's protocol with made-up values, and faults on demand.
//!
//! Written from the provider's documentation and from measurements.

mod agents;
mod answer;
mod behaviour;
mod clouds;
mod connection;
mod control;
mod log;
mod paths;
mod token;

/// ID of the only task that the stand-in for the ECS agent knows.
pub use agents::TASK;

use std::{
    net::SocketAddr,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, anyhow};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::{oneshot, watch},
    task::JoinSet,
};

pub use behaviour::{AnswerMode, Behaviour, Endpoint, ErrorRate, Serves, Tokens};
pub use control::{ControlClient, Stats};
pub use log::{RequestLog, Served};
pub use paths::{INSTANCE_ID, ROLE};

/// Enough for 10,000 clients that connect at once; the kernel caps it at the namespace's `somaxconn`.
const BACKLOG: u32 = 16_384;
/// Requests kept until they are read, at about 300 bytes each.
const LOG_CAPACITY: usize = 400_000;

pub struct ServerOptions {
    /// Addresses to listen on; port 0 asks for any.
    pub listen: Vec<SocketAddr>,
    /// The network namespace to listen in, else the caller's.
    pub netns: Option<OwnedFd>,
    /// Where to put the control socket.
    pub control: Option<PathBuf>,
    pub behaviour: Behaviour,
    pub log_capacity: usize,
}

impl ServerOptions {
    pub fn new(listen: Vec<SocketAddr>) -> Self {
        Self {
            listen,
            netns: None,
            control: None,
            behaviour: Behaviour::default(),
            log_capacity: LOG_CAPACITY,
        }
    }
}

/// A running server; dropping it ends it.
pub struct Server {
    shared: Arc<Shared>,
    addresses: Vec<SocketAddr>,
    control: Option<PathBuf>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Returns when the listeners are open.
    pub fn start(options: ServerOptions) -> Result<Self> {
        let shared = Arc::new(Shared::new(options.behaviour, options.log_capacity));
        let (stop, stopped) = oneshot::channel();
        let (ready, started) = mpsc::channel();
        let control = options.control.clone();
        let thread = thread::Builder::new().name("imds-server".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || {
                let outcome = run(
                    &shared,
                    options.listen,
                    options.netns.as_ref(),
                    options.control,
                    stopped,
                    &ready,
                );
                shared.note_listening(None);
                if let Err(error) = outcome {
                    let _ = ready.send(Err(error));
                }
            }
        })?;
        let addresses = started
            .recv()
            .map_err(|_| anyhow!("the server's thread ended before it listened"))??;
        Ok(Self {
            shared,
            addresses,
            control,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where it listens, in the order of the options.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    pub fn control_socket(&self) -> Option<&std::path::Path> {
        self.control.as_deref()
    }

    /// A handle to the switches that may outlive the server.
    pub fn switchboard(&self) -> Switchboard {
        Switchboard(Arc::clone(&self.shared))
    }

    pub fn behaviour(&self) -> Behaviour {
        self.switchboard().behaviour()
    }

    /// Changes the behavior; returns when it is active, including closed and opened listeners.
    pub fn update(&self, change: impl FnOnce(&mut Behaviour)) {
        self.switchboard().update(change);
    }

    pub fn set(&self, behaviour: Behaviour) {
        self.update(|current| *current = behaviour);
    }

    /// Every token issued so far is answered 401 from now on.
    pub fn expire_tokens(&self) {
        self.shared.mint.expire_all();
    }

    /// A copy of the requests seen since the last `take_log`.
    pub fn log(&self) -> RequestLog {
        lock(&self.shared.log).clone()
    }

    pub fn take_log(&self) -> RequestLog {
        lock(&self.shared.log).take()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if let Some(control) = &self.control {
            let _ = std::fs::remove_file(control);
        }
    }
}

/// The switches of a server.
#[derive(Clone)]
pub struct Switchboard(Arc<Shared>);

impl Switchboard {
    pub fn behaviour(&self) -> Behaviour {
        (*self.0.behaviour()).clone()
    }

    /// As `Server::update`; of a server that ended nothing changes any more.
    pub fn update(&self, change: impl FnOnce(&mut Behaviour)) {
        self.0.change(change);
        let mut listening = lock(&self.0.listening);
        // Looked up each time: another thread may have changed it.
        while listening.is_some_and(|now| now != self.0.behaviour().listening) {
            listening = self
                .0
                .listening_changed
                .wait(listening)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// State that connections, listeners and the control socket share.
struct Shared {
    behaviour: watch::Sender<Arc<Behaviour>>,
    mint: token::Mint,
    log: Mutex<RequestLog>,
    log_capacity: usize,
    /// Thousandths of an error that are owed, see `ErrorRate`.
    owed: AtomicU32,
    /// What the listeners really are, as against `Behaviour::listening`, what they shall be; `None` when the server
    /// has ended.
    listening: Mutex<Option<bool>>,
    listening_changed: Condvar,
    listening_seen: watch::Sender<bool>,
}

impl Shared {
    fn new(behaviour: Behaviour, log_capacity: usize) -> Self {
        Self {
            behaviour: watch::Sender::new(Arc::new(behaviour)),
            mint: token::Mint::new(),
            log: Mutex::default(),
            log_capacity,
            owed: AtomicU32::new(999),
            listening: Mutex::new(None),
            listening_changed: Condvar::new(),
            listening_seen: watch::Sender::new(false),
        }
    }

    fn behaviour(&self) -> Arc<Behaviour> {
        Arc::clone(&self.behaviour.borrow())
    }

    fn change(&self, change: impl FnOnce(&mut Behaviour)) {
        self.behaviour.send_modify(|behaviour| change(Arc::make_mut(behaviour)));
        // An error rate begins with an error, whatever came before.
        self.owed.store(999, Ordering::Relaxed);
        // Who waits for the listeners may now want what they are already.
        drop(lock(&self.listening));
        self.listening_changed.notify_all();
        self.listening_seen.send_modify(|_| {});
    }

    fn log(&self, served: Served) {
        lock(&self.log).push(served, self.log_capacity);
    }

    fn error_is_due(&self, per_mille: u16) -> bool {
        let mut due = false;
        let add = |owed: u32| {
            let sum = owed + u32::from(per_mille.min(1000));
            due = sum >= 1000;
            Some(if due { sum - 1000 } else { sum })
        };
        let _ = self.owed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        due
    }

    fn note_listening(&self, now: Option<bool>) {
        *lock(&self.listening) = now;
        self.listening_changed.notify_all();
        self.listening_seen.send_replace(now == Some(true));
    }
}

/// No invariant spans a panic here, so a poisoned lock is as good as another.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(
    shared: &Arc<Shared>,
    listen: Vec<SocketAddr>,
    netns: Option<&OwnedFd>,
    control: Option<PathBuf>,
    stopped: oneshot::Receiver<()>,
    ready: &mpsc::Sender<Result<Vec<SocketAddr>>>,
) -> Result<()> {
    if let Some(netns) = netns {
        nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET).context("enter the server's namespace")?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut tasks = JoinSet::new();
        let listeners = listen.into_iter().map(open).collect::<Result<Vec<_>>>()?;
        let addresses = listeners
            .iter()
            .map(TcpListener::local_addr)
            .collect::<std::io::Result<Vec<_>>>()?;
        if let Some(path) = control {
            tasks.spawn(control::listen(control::bind(&path)?, Arc::clone(shared)));
        }
        let wanted = shared.behaviour().listening;
        shared.note_listening(Some(wanted));
        tasks.spawn(follow(
            Arc::clone(shared),
            if wanted { listeners } else { Vec::new() },
            addresses.clone(),
        ));
        let _ = ready.send(Ok(addresses));
        // An error here is the handle going away, which means the same.
        let _ = stopped.await;
        Ok(())
    })
}

/// Opens and closes listeners according to the switchboard.
async fn follow(shared: Arc<Shared>, mut listeners: Vec<TcpListener>, addresses: Vec<SocketAddr>) {
    let mut switchboard = shared.behaviour.subscribe();
    loop {
        let mut accepting = JoinSet::new();
        for listener in listeners.drain(..) {
            accepting.spawn(accept(listener, Arc::clone(&shared)));
        }
        if switchboard.wait_for(|behaviour| !behaviour.listening).await.is_err() {
            return;
        }
        accepting.shutdown().await;
        shared.note_listening(Some(false));
        if switchboard.wait_for(|behaviour| behaviour.listening).await.is_err() {
            return;
        }
        match addresses.iter().copied().map(open).collect::<Result<Vec<_>>>() {
            Ok(opened) => listeners = opened,
            Err(error) => eprintln!("metadata stand-in: cannot listen again: {error:#}"),
        }
        shared.note_listening(Some(true));
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Detached on purpose: a closed listener leaves the connections it accepted alone.
                drop(tokio::spawn(connection::serve(stream, peer, Arc::clone(&shared))));
            }
            // Out of descriptors, or a connection that was reset in the queue: the next one may do.
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

fn open(address: SocketAddr) -> Result<TcpListener> {
    let listen = || -> std::io::Result<TcpListener> {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        // Accepted sockets inherit it, so that the handshake carries it too.
        connection::set_ttl(&socket, address, Behaviour::default().other_ttl)?;
        socket.listen(BACKLOG)
    };
    listen().with_context(|| format!("listen on {address}"))
}

#[cfg(test)]
mod tests;
