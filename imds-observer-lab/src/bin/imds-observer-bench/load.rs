//! Creates a known amount of traffic in the lab. It runs as a separate process, which the observer must name as the client.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use imds_observer_lab::topology::{IMDS_PORT, IMDS_V4, Place};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream as AsyncStream;
use tokio::task::JoinSet;
use tokio::time::{self, MissedTickBehavior};

const REQUEST: &[u8] =
    b"GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: bench\r\n\r\n";
/// Timeout of one exchange.
const PATIENCE: Duration = Duration::from_secs(30);
/// Number of packets that a UDP client keeps in flight.
const WINDOW: usize = 16;
const DATAGRAM: usize = 64;
/// Minimum lifetime of a process.
const LIFE: Duration = Duration::from_millis(5);
/// Limit on concurrent processes.
const MOST_PROCESSES: usize = 2000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// One TCP stream to `--to`
    Stream,
    /// One TCP stream from `--to`
    Download,
    /// Connections to `--to`, one after the other
    Connects,
    /// Small datagrams to `--to`, which sends them back
    Datagrams,
    /// Small messages over TCP within this host
    Loopback,
    /// `--rate` exchanges with IMDS a second (0: as many as possible), each on its own connection
    Exchanges,
    /// The same on `--width` persistent connections
    Kept,
    /// `--count` connections to IMDS at once, and a request on each when all are open
    Crowd,
    /// `--rate` processes a second, each of which makes one exchange and lives for 5 ms
    Processes,
    /// `--width` processes, each in its own cgroup, that make `--rate` exchanges a second in total
    Workers,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct Load {
    kind: Kind,
    #[arg(long)]
    to: Option<SocketAddr>,
    #[arg(long, default_value_t = 0)]
    milliseconds: u64,
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// Total number of exchanges; 0: until time is up
    #[arg(long, default_value_t = 0)]
    count: u64,
    #[arg(long, default_value_t = 1)]
    width: u64,
    /// Cgroup to join before the load begins
    #[arg(long)]
    cgroup: Option<PathBuf>,
}

impl Load {
    pub(crate) fn new(kind: Kind, length: Duration) -> Self {
        Self {
            kind,
            to: None,
            milliseconds: length.as_millis() as u64,
            rate: 0,
            count: 0,
            width: 1,
            cgroup: None,
        }
    }

    pub(crate) fn to(self, to: SocketAddr) -> Self {
        Self { to: Some(to), ..self }
    }

    pub(crate) fn rate(self, rate: u64) -> Self {
        Self { rate, ..self }
    }

    pub(crate) fn count(self, count: u64) -> Self {
        Self { count, ..self }
    }

    pub(crate) fn width(self, width: u64) -> Self {
        Self { width, ..self }
    }

    pub(crate) fn cgroup(self, cgroup: &Path) -> Self {
        Self {
            cgroup: Some(cgroup.to_path_buf()),
            ..self
        }
    }

    /// Starts the load in a place of the lab.
    pub(crate) fn start(&self, place: &Place) -> Result<Running> {
        let own = std::env::current_exe().context("find this program")?;
        let mut command = place.command(own)?;
        let kind = self.kind.to_possible_value().context("name a load")?;
        command.args(["load", kind.get_name()]);
        for (name, value) in [
            ("--milliseconds", self.milliseconds),
            ("--rate", self.rate),
            ("--count", self.count),
            ("--width", self.width),
        ] {
            command.args([name, &value.to_string()]);
        }
        if let Some(to) = self.to {
            command.args(["--to", &to.to_string()]);
        }
        if let Some(cgroup) = &self.cgroup {
            command.arg("--cgroup").arg(cgroup);
        }
        spawn(&mut command)
    }

    /// Runs the load to its end in a place of the lab.
    pub(crate) fn run(&self, place: &Place) -> Result<Made> {
        self.start(place)?.wait()
    }
}

fn spawn(command: &mut Command) -> Result<Running> {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start a load")?;
    Ok(Running(child))
}

/// A running load. It is ended on drop.
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn wait(mut self) -> Result<Made> {
        let mut said = String::new();
        self.0
            .stdout
            .take()
            .context("take a load's output")?
            .read_to_string(&mut said)?;
        let status = self.0.wait()?;
        ensure!(status.success(), "a load ended with {status}");
        serde_json::from_str(&said).context("parse a load's output")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail if the load has already ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Result of a load.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Made {
    pub(crate) seconds: f64,
    /// Number of answered exchanges, of connections, or of message round trips.
    pub(crate) done: u64,
    pub(crate) failed: u64,
    /// PIDs of the processes that were started.
    pub(crate) pids: Vec<u64>,
}

/// Raises the limit on open descriptors, because a flood needs one per connection. A failure is ignored: the load then only ends sooner.
pub(crate) fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

pub(crate) fn run(load: &Load) -> Result<()> {
    if let Some(cgroup) = &load.cgroup {
        enter(cgroup)?;
    }
    let begun = Instant::now();
    let mut made = make(load, begun + Duration::from_millis(load.milliseconds))?;
    made.seconds = begun.elapsed().as_secs_f64();
    println!("{}", serde_json::to_string(&made)?);
    Ok(())
}

fn enter(cgroup: &Path) -> Result<()> {
    let door = cgroup.join("cgroup.procs");
    fs::write(&door, "0").with_context(|| format!("write to {}", door.display()))
}

fn make(load: &Load, end: Instant) -> Result<Made> {
    let to = || load.to.context("this load needs --to");
    match load.kind {
        Kind::Stream => stream(to()?, end),
        Kind::Download => download(to()?, end),
        Kind::Connects => connects(to()?, end),
        Kind::Datagrams => datagrams(to()?, end),
        Kind::Loopback => loopback(end),
        Kind::Exchanges => asynchronous(exchanges(load.clone(), end)),
        Kind::Kept => asynchronous(kept(load.clone(), end)),
        Kind::Crowd => asynchronous(crowd(load.count)),
        Kind::Processes => processes(load.rate, end),
        Kind::Workers => workers(load, end),
    }
}

fn stream(to: SocketAddr, end: Instant) -> Result<Made> {
    let mut stream = TcpStream::connect(to)?;
    let mut made = Made::default();
    let bytes = vec![0; 32 << 10];
    while Instant::now() < end {
        stream.write_all(&bytes)?;
        made.done += 1;
    }
    Ok(made)
}

fn download(to: SocketAddr, end: Instant) -> Result<Made> {
    let mut stream = TcpStream::connect(to)?;
    let mut made = Made::default();
    let mut bytes = vec![0; 32 << 10];
    while Instant::now() < end && stream.read(&mut bytes)? > 0 {
        made.done += 1;
    }
    Ok(made)
}

fn connects(to: SocketAddr, end: Instant) -> Result<Made> {
    let mut made = Made::default();
    while Instant::now() < end {
        drop(TcpStream::connect(to)?);
        made.done += 1;
    }
    Ok(made)
}

fn datagrams(to: SocketAddr, end: Instant) -> Result<Made> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let mut made = Made::default();
    let mut bytes = [0; DATAGRAM];
    while Instant::now() < end {
        for _ in 0..WINDOW {
            socket.send(&bytes)?;
        }
        for _ in 0..WINDOW {
            if socket.recv(&mut bytes).is_err() {
                break;
            }
            made.done += 1;
        }
    }
    Ok(made)
}

fn loopback(end: Instant) -> Result<Made> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let to = listener.local_addr()?;
    let server = thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut bytes = [0; DATAGRAM];
        while stream.read(&mut bytes)? > 0 {
            stream.write_all(&bytes)?;
        }
        Ok(())
    });
    let mut stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    let mut made = Made::default();
    let mut bytes = [0; DATAGRAM];
    while Instant::now() < end {
        stream.write_all(&bytes)?;
        stream.read_exact(&mut bytes)?;
        made.done += 1;
    }
    drop(stream);
    let _ = server.join();
    Ok(made)
}

fn asynchronous(work: impl Future<Output = Result<Made>>) -> Result<Made> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(work)
}

fn imds() -> SocketAddr {
    (IMDS_V4, IMDS_PORT).into()
}

/// Sends a request and reads until the server closes the connection.
async fn exchange(to: SocketAddr) -> std::io::Result<()> {
    let mut stream = AsyncStream::connect(to).await?;
    ask(&mut stream).await
}

async fn ask(stream: &mut AsyncStream) -> std::io::Result<()> {
    stream.write_all(REQUEST).await?;
    let mut bytes = Vec::with_capacity(1024);
    while stream.read_buf(&mut bytes).await? > 0 {}
    if bytes.starts_with(b"HTTP/1.1 ") {
        Ok(())
    } else {
        Err(std::io::ErrorKind::InvalidData.into())
    }
}

fn count(made: &mut Made, outcome: &Result<std::io::Result<()>, time::error::Elapsed>) {
    if matches!(outcome, Ok(Ok(()))) {
        made.done += 1;
    } else {
        made.failed += 1;
    }
}

async fn exchanges(load: Load, end: Instant) -> Result<Made> {
    let to = load.to.unwrap_or_else(imds);
    let mut made = Made::default();
    let mut running = JoinSet::new();
    let mut started = 0;
    let wanted = |started: u64| (load.count == 0 || started < load.count) && (load.count > 0 || Instant::now() < end);
    if load.rate == 0 {
        while wanted(started) {
            while running.len() as u64 >= load.width
                && let Some(outcome) = running.join_next().await
            {
                count(&mut made, &outcome?);
            }
            running.spawn(time::timeout(PATIENCE, exchange(to)));
            started += 1;
        }
    } else {
        let begun = Instant::now();
        let mut tick = time::interval(Duration::from_millis(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        while wanted(started) {
            tick.tick().await;
            let due = (begun.elapsed().as_secs_f64() * load.rate as f64) as u64;
            while started < due && wanted(started) {
                running.spawn(time::timeout(PATIENCE, exchange(to)));
                started += 1;
            }
            while let Some(outcome) = running.try_join_next() {
                count(&mut made, &outcome?);
            }
        }
    }
    while let Some(outcome) = running.join_next().await {
        count(&mut made, &outcome?);
    }
    Ok(made)
}

/// Makes exchanges on persistent connections. The observer then sees one packet in each direction per exchange, and no others.
async fn kept(load: Load, end: Instant) -> Result<Made> {
    let to = load.to.unwrap_or_else(imds);
    let each = load.count.div_ceil(load.width.max(1));
    let mut running = JoinSet::new();
    for _ in 0..load.width.max(1) {
        running.spawn(async move {
            let mut stream = AsyncStream::connect(to).await?;
            stream.set_nodelay(true)?;
            let mut bytes = [0; 4096];
            let mut done = 0_u64;
            while (load.count > 0 && done < each) || (load.count == 0 && Instant::now() < end) {
                stream.write_all(REQUEST).await?;
                if stream.read(&mut bytes).await? == 0 {
                    break;
                }
                done += 1;
            }
            std::io::Result::Ok(done)
        });
    }
    let mut made = Made::default();
    while let Some(done) = running.join_next().await {
        made.done += done??;
    }
    Ok(made)
}

async fn crowd(size: u64) -> Result<Made> {
    let mut connecting = JoinSet::new();
    for _ in 0..size {
        connecting.spawn(time::timeout(PATIENCE, AsyncStream::connect(imds())));
    }
    let mut made = Made::default();
    let mut streams = Vec::new();
    while let Some(stream) = connecting.join_next().await {
        match stream? {
            Ok(Ok(stream)) => streams.push(stream),
            _ => made.failed += 1,
        }
    }
    let mut asking = JoinSet::new();
    for mut stream in streams {
        asking.spawn(time::timeout(PATIENCE, async move { ask(&mut stream).await }));
    }
    while let Some(outcome) = asking.join_next().await {
        count(&mut made, &outcome?);
    }
    Ok(made)
}

/// Makes one exchange. It uses only system calls and the standard library's sockets, so that a forked child can call it.
fn one_exchange() -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&imds(), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(REQUEST)?;
    let mut bytes = [0; 4096];
    let first = stream.read(&mut bytes)?;
    let is_answer = bytes.get(..first).is_some_and(|bytes| bytes.starts_with(b"HTTP/1.1 "));
    while stream.read(&mut bytes)? > 0 {}
    if is_answer {
        Ok(())
    } else {
        Err(std::io::ErrorKind::InvalidData.into())
    }
}

/// Forks a child that runs `work` and exits with 0 if `work` returned true.
fn fork(work: impl FnOnce() -> bool) -> Result<libc::pid_t> {
    // SAFETY: this process has one thread, so the child finds all locks free.
    let child = unsafe { libc::fork() };
    ensure!(child >= 0, "fork: {}", std::io::Error::last_os_error());
    if child == 0 {
        let status = i32::from(!work());
        // SAFETY: ends the child at once, without the parent's clean-up.
        unsafe { libc::_exit(status) };
    }
    Ok(child)
}

/// Reaps one child, after waiting for its end if `patient`. Returns whether its exit status was 0, or `None` if no child has ended.
fn reap(patient: bool) -> Option<bool> {
    let mut status = 0;
    let flags = if patient { 0 } else { libc::WNOHANG };
    // SAFETY: the status is ours.
    let child = unsafe { libc::waitpid(-1, &raw mut status, flags) };
    (child > 0).then_some(status == 0)
}

fn processes(rate: u64, end: Instant) -> Result<Made> {
    let mut made = Made::default();
    let (begun, mut living) = (Instant::now(), 0_usize);
    let report = |made: &mut Made, well: bool| {
        made.done += u64::from(well);
        made.failed += u64::from(!well);
    };
    while Instant::now() < end {
        let due = (begun.elapsed().as_secs_f64() * rate as f64) as usize;
        while made.pids.len() < due && living < MOST_PROCESSES {
            let child = fork(|| {
                let born = Instant::now();
                let well = one_exchange().is_ok();
                thread::sleep(LIFE.saturating_sub(born.elapsed()));
                well
            })?;
            made.pids.push(child as u64);
            living += 1;
        }
        while let Some(well) = reap(false) {
            report(&mut made, well);
            living -= 1;
        }
        thread::sleep(Duration::from_micros(200));
    }
    while living > 0 {
        let Some(well) = reap(true) else { break };
        report(&mut made, well);
        living -= 1;
    }
    Ok(made)
}

fn workers(load: &Load, end: Instant) -> Result<Made> {
    let parent = load.cgroup.clone().context("this load needs --cgroup")?;
    let mut made = Made::default();
    for number in 0..load.width {
        let cgroup = parent.join(format!("worker-{number}"));
        fs::create_dir_all(&cgroup).with_context(|| format!("make cgroup {}", cgroup.display()))?;
        let gap = Duration::from_secs_f64(load.width as f64 / load.rate.max(1) as f64);
        // Spreads the requests of the processes over the interval.
        let begun = Instant::now() + gap.mul_f64(number as f64 / load.width as f64);
        let child = fork(|| {
            if enter(&cgroup).is_err() {
                return false;
            }
            let mut next = begun;
            while next < end {
                thread::sleep(next.saturating_duration_since(Instant::now()));
                if one_exchange().is_err() {
                    return false;
                }
                next += gap;
            }
            true
        })?;
        made.pids.push(child as u64);
    }
    while let Some(well) = reap(true) {
        made.failed += u64::from(!well);
    }
    Ok(made)
}
