//! The control socket: the switchboard and the log for another process, as JSON lines over a Unix socket.
//!
//! One request a line, one answer a line: `{"ok":…}` or `{"error":"…"}`.
//! `echo '{"op":"set","behaviour":{"tokens":"required"}}' | nc -U SOCKET`

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::Arc,
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt},
    net::UnixListener,
    task::JoinSet,
};

use super::{Behaviour, RequestLog, Shared, lock};

/// A longer line ends the connection.
const MAX_LINE: u64 = 1024 * 1024;

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
enum Request {
    /// The current behavior.
    Behaviour,
    /// Changes what the object names.
    Set {
        behaviour: Value,
    },
    /// Back to a healthy instance.
    Reset,
    ExpireTokens,
    Log,
    TakeLog,
    Stats,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Reply {
    Ok(Value),
    Error(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    pub requests: u64,
    pub evicted: u64,
    pub listening: bool,
}

pub(super) fn bind(path: &Path) -> Result<UnixListener> {
    // A socket file outlives its process; its owner has ended, or the caller wouldn't use the name.
    let _ = std::fs::remove_file(path);
    UnixListener::bind(path).with_context(|| format!("make the control socket {}", path.display()))
}

pub(super) async fn listen(listener: UnixListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let shared = Arc::clone(&shared);
                connections.spawn(async move {
                    let (read, mut write) = stream.into_split();
                    let mut read = tokio::io::BufReader::new(read);
                    loop {
                        let mut line = String::new();
                        match (&mut read).take(MAX_LINE).read_line(&mut line).await {
                            Ok(length) if length > 0 && line.ends_with('\n') => {}
                            _ => return,
                        }
                        let reply = answer(&line, &shared)
                            .await
                            .unwrap_or_else(|error| Reply::Error(format!("{error:#}")));
                        let Ok(mut text) = serde_json::to_vec(&reply) else {
                            return;
                        };
                        text.push(b'\n');
                        if write.write_all(&text).await.is_err() {
                            return;
                        }
                    }
                });
            }
            Err(_) => tokio::task::yield_now().await,
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(line: &str, shared: &Shared) -> Result<Reply> {
    let value = match serde_json::from_str(line)? {
        Request::Behaviour => serde_json::to_value(&*shared.behaviour())?,
        Request::Set { behaviour: patch } => {
            let wanted = shared.behaviour().patched(&patch)?;
            apply(shared, wanted).await;
            serde_json::to_value(&*shared.behaviour())?
        }
        Request::Reset => {
            apply(shared, Behaviour::default()).await;
            Value::Null
        }
        Request::ExpireTokens => {
            shared.mint.expire_all();
            Value::Null
        }
        Request::Log => serde_json::to_value(&*lock(&shared.log))?,
        Request::TakeLog => serde_json::to_value(lock(&shared.log).take())?,
        Request::Stats => {
            let log = lock(&shared.log);
            serde_json::to_value(Stats {
                requests: log.total,
                evicted: log.evicted,
                listening: *shared.listening_seen.borrow(),
            })?
        }
    };
    Ok(Reply::Ok(value))
}

async fn apply(shared: &Shared, behaviour: Behaviour) {
    shared.change(|current| *current = behaviour);
    // Fails only when the sender is gone, and `shared` holds it.
    let in_force = |now: &bool| *now == shared.behaviour().listening;
    let _ = shared.listening_seen.subscribe().wait_for(in_force).await;
}

/// The other end of the control socket.
pub struct ControlClient {
    stream: BufReader<UnixStream>,
}

impl ControlClient {
    pub fn connect(path: &Path) -> Result<Self> {
        let stream =
            UnixStream::connect(path).with_context(|| format!("connect to the control socket {}", path.display()))?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    pub fn behaviour(&mut self) -> Result<Behaviour> {
        self.ask(&Request::Behaviour)
    }

    /// Changes what the object names, e.g. `json!({"hop_limit": 2})`; returns when it is in force.
    pub fn set(&mut self, patch: Value) -> Result<Behaviour> {
        self.ask(&Request::Set { behaviour: patch })
    }

    pub fn reset(&mut self) -> Result<()> {
        self.ask(&Request::Reset)
    }

    pub fn expire_tokens(&mut self) -> Result<()> {
        self.ask(&Request::ExpireTokens)
    }

    pub fn log(&mut self) -> Result<RequestLog> {
        self.ask(&Request::Log)
    }

    pub fn take_log(&mut self) -> Result<RequestLog> {
        self.ask(&Request::TakeLog)
    }

    pub fn stats(&mut self) -> Result<Stats> {
        self.ask(&Request::Stats)
    }

    fn ask<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.stream
            .get_mut()
            .write_all(&line)
            .context("write to the control socket")?;
        let mut reply = String::new();
        self.stream
            .read_line(&mut reply)
            .context("read from the control socket")?;
        match serde_json::from_str(&reply).context("the control socket closed or answered nonsense")? {
            Reply::Ok(value) => Ok(serde_json::from_value(value)?),
            Reply::Error(error) => bail!("the stand-in refused: {error}"),
        }
    }
}
