//! One connection: bytes in, requests out of them, answers back with the right TTL.

use std::{
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use jiff::Timestamp;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time,
};

use super::{
    Shared,
    answer::{Answer, Parsed, Request, decide},
    behaviour::{AnswerMode, Behaviour},
    log::Served,
};

/// A longer head is answered 431.
const MAX_HEAD: usize = 64 * 1024;
/// A longer body ends the connection: IMDS takes none.
const MAX_BODY: usize = 1024 * 1024;
/// A path is logged up to this length.
const MAX_LOGGED: usize = 1024;
/// How long the other side may take to close after we did.
const LINGER: Duration = Duration::from_secs(10);
/// How long an answer waits for the one before it to be acknowledged, see `settle`.
const SETTLE: Duration = Duration::from_mins(1);

pub(super) async fn serve(mut stream: TcpStream, peer: SocketAddr, shared: Arc<Shared>) {
    let Ok(local) = stream.local_addr() else { return };
    let _ = stream.set_nodelay(true);
    let mut connection = Connection {
        local,
        peer,
        ttl: None,
        exchange: 0,
    };
    // Errors are the peer's doing (resets, disappearing pods): the log has what was served until then.
    let _ = connection.run(&mut stream, &shared).await;
}

struct Connection {
    local: SocketAddr,
    peer: SocketAddr,
    /// TTL that was last set on the socket. `None`: inherited from the listener.
    ttl: Option<u8>,
    exchange: u32,
}

impl Connection {
    async fn run(&mut self, stream: &mut TcpStream, shared: &Arc<Shared>) -> std::io::Result<()> {
        let mut bytes: Vec<u8> = Vec::new();
        loop {
            let (head_length, request) = loop {
                match Request::parse(&bytes) {
                    Parsed::Complete { head_length, request } => break (head_length, request),
                    Parsed::Partial if bytes.len() < MAX_HEAD => {}
                    Parsed::Partial => return self.refuse(stream, shared, 431).await,
                    Parsed::Malformed => return self.refuse(stream, shared, 400).await,
                }
                if stream.read_buf(&mut bytes).await? == 0 {
                    return Ok(());
                }
            };
            let arrived = SystemTime::now();
            if request.body_length > MAX_BODY {
                return self.refuse(stream, shared, 400).await;
            }
            while bytes.len() < head_length + request.body_length {
                if stream.read_buf(&mut bytes).await? == 0 {
                    return Ok(());
                }
            }
            bytes.drain(..head_length + request.body_length);
            self.exchange += 1;
            if !self.respond(stream, shared, &request, arrived).await? {
                return Ok(());
            }
        }
    }

    /// Answers one request according to the switchboard; `false` ends the connection.
    async fn respond(
        &mut self,
        stream: &mut TcpStream,
        shared: &Arc<Shared>,
        request: &Request,
        arrived: SystemTime,
    ) -> std::io::Result<bool> {
        let behaviour = shared.behaviour();
        let path = super::paths::split_version(&request.path).map_or_else(|| request.path.clone(), |(_, rest)| rest);
        let concerned = behaviour.concerns(&path);
        let mode = match behaviour.answer {
            _ if behaviour.silent_v6 && is_v6(self.local) => AnswerMode::Silent,
            mode if concerned => mode,
            _ => AnswerMode::Normal,
        };
        if mode != AnswerMode::Normal {
            shared.log(self.served(request, arrived, None));
            return self.misbehave(stream, mode).await.map(|()| false);
        }
        if concerned && behaviour.delay_ms > 0 {
            time::sleep(Duration::from_millis(behaviour.delay_ms)).await;
        }
        let now = Timestamp::now();
        let answer = match behaviour.error {
            Some(rate) if concerned && shared.error_is_due(rate.per_mille) => Answer::error(rate.status),
            _ => decide(request, &behaviour, &shared.mint, now),
        };
        let keep_alive = behaviour.keep_alive && request.wants_keep_alive;
        let ttl = if answer.hop_limited {
            behaviour.hop_limit
        } else {
            behaviour.other_ttl
        };
        self.settle(stream, &behaviour, ttl).await;
        self.set_ttl(stream, ttl)?;
        shared.log(self.served(request, arrived, Some((answer.status, ttl))));
        stream
            .write_all(&answer.encode(Some(request), keep_alive, &behaviour, now))
            .await?;
        if !keep_alive {
            part(stream).await?;
        }
        Ok(keep_alive)
    }

    /// A head that is no request: answer 400 and close.
    async fn refuse(&mut self, stream: &mut TcpStream, shared: &Arc<Shared>, status: u16) -> std::io::Result<()> {
        let behaviour = shared.behaviour();
        stream
            .write_all(&Answer::error(status).encode(None, false, &behaviour, Timestamp::now()))
            .await?;
        part(stream).await
    }

    async fn misbehave(&mut self, stream: &mut TcpStream, mode: AnswerMode) -> std::io::Result<()> {
        match mode {
            AnswerMode::Normal | AnswerMode::Close => {}
            AnswerMode::Silent => {
                let mut sink = [0; 4096];
                while stream.read(&mut sink).await? > 0 {}
            }
            AnswerMode::Reset => {
                // A linger time of zero turns the close into a reset.
                setsockopt(
                    stream,
                    sockopt::Linger,
                    &libc::linger {
                        l_onoff: 1,
                        l_linger: 0,
                    },
                )?;
            }
            AnswerMode::Garbage => {
                stream
                    .write_all(b"\x16\x03\x01\x00\x02 this is not HTTP\r\n\r\n")
                    .await?;
                part(stream).await?;
            }
        }
        Ok(())
    }

    /// The kernel retransmits with the TTL the socket has *then*. So an answer with another TTL waits until the one
    /// before it was acknowledged; the client couldn't read it earlier anyway.
    async fn settle(&self, stream: &TcpStream, behaviour: &Behaviour, ttl: u8) {
        if self.ttl.unwrap_or(behaviour.other_ttl) == ttl {
            return;
        }
        let deadline = time::Instant::now() + SETTLE;
        while unacknowledged(stream) > 0 && time::Instant::now() < deadline {
            // There is no event for an empty send queue.
            time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn set_ttl(&mut self, stream: &TcpStream, ttl: u8) -> std::io::Result<()> {
        if self.ttl != Some(ttl) {
            set_ttl(stream, self.local, ttl)?;
            self.ttl = Some(ttl);
        }
        Ok(())
    }

    fn served(&self, request: &Request, arrived: SystemTime, outcome: Option<(u16, u8)>) -> Served {
        let short = |text: &str| text.chars().take(MAX_LOGGED).collect::<String>();
        Served {
            time_unix_ns: arrived
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_nanos() as u64),
            peer: self.peer,
            local: self.local,
            exchange: self.exchange,
            method: short(&request.method),
            path: short(&request.path),
            user_agent: request.user_agent.as_deref().map(short),
            had_token: request.has_token(),
            token_ttl_s: request.token_ttl_s(),
            forwarded: request.forwarded,
            status: outcome.map(|(status, _)| status),
            response_ttl: outcome.map(|(_, ttl)| ttl),
        }
    }
}

/// Closes our half, then waits for the other: data that is unread at close would turn the close into a reset.
async fn part(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.shutdown().await?;
    let mut sink = [0; 4096];
    let drained = async {
        while stream.read(&mut sink).await? > 0 {}
        Ok(())
    };
    time::timeout(LINGER, drained).await.unwrap_or(Ok(()))
}

fn is_v6(local: SocketAddr) -> bool {
    match local {
        SocketAddr::V4(_) => false,
        SocketAddr::V6(address) => address.ip().to_ipv4_mapped().is_none(),
    }
}

/// Sets the TTL or hop limit that packets of this socket leave with.
pub(super) fn set_ttl(socket: &impl AsFd, local: SocketAddr, ttl: u8) -> std::io::Result<()> {
    let ttl = i32::from(ttl);
    if is_v6(local) {
        setsockopt(socket, sockopt::Ipv6Ttl, &ttl)?;
    } else {
        setsockopt(socket, sockopt::Ipv4Ttl, &ttl)?;
    }
    Ok(())
}

fn unacknowledged(stream: &TcpStream) -> i32 {
    nix::ioctl_read_bad!(siocoutq, libc::TIOCOUTQ, i32);
    let mut queued = 0;
    // SAFETY: the descriptor is open for as long as `stream` lives, and the kernel writes one int.
    match unsafe { siocoutq(stream.as_raw_fd(), &raw mut queued) } {
        Ok(_) => queued,
        Err(_) => 0,
    }
}
