//! `/metrics`, `/healthz` and `/readyz` over HTTP.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use prometheus_client::registry::Registry;
use tokio::net::TcpStream;

use super::{Shared, exposition};

/// The pipeline loop runs ten times a second; after this time without an iteration it counts as stuck.
const STUCK: Duration = Duration::from_secs(10);
/// Longest life of a connection.
const MAX_CONNECTION: Duration = Duration::from_secs(120);
/// Longest time in which a connection gets no byte of an answer: for a request to come whole, and between two requests.
const MAX_SILENCE: Duration = Duration::from_secs(5);

struct Served {
    shared: Arc<Shared>,
    registry: Registry,
}

pub(super) fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .with_context(|| format!("listen for metrics on {address} (choose another with --metrics)"))
}

/// Returns the address that it listens on.
pub(super) fn start(listener: TcpListener, shared: &Arc<Shared>) -> anyhow::Result<SocketAddr> {
    listener
        .set_nonblocking(true)
        .context("make the metrics listener non-blocking")?;
    let bound = listener
        .local_addr()
        .context("read the address of the metrics listener")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .context("start the metrics server")?;
    let served = Arc::new(Served {
        shared: Arc::clone(shared),
        registry: exposition::registry(shared),
    });
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(served);
    let connections = shared.connections;
    std::thread::Builder::new()
        .name("metrics".to_owned())
        .spawn(move || {
            let result = runtime.block_on(async {
                let listener = Bounded {
                    inner: tokio::net::TcpListener::from_std(listener)?,
                    slots: Slots::new(connections),
                };
                axum::serve(listener, router).await
            });
            if let Err(error) = result {
                tracing::error!("metrics server stopped: {error}");
            }
        })
        .context("start the metrics thread")?;
    Ok(bound)
}

async fn metrics(State(served): State<Arc<Served>>, headers: HeaderMap) -> Response {
    let Ok(openmetrics) = exposition::openmetrics(&served.registry) else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let wants_openmetrics = headers.get_all(header::ACCEPT).iter().any(|accept| {
        accept
            .to_str()
            .is_ok_and(|accept| accept.contains("application/openmetrics-text"))
    });
    let (kind, body) = if wants_openmetrics {
        (
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            openmetrics,
        )
    } else {
        (
            "text/plain; version=0.0.4; charset=utf-8",
            exposition::prometheus(&openmetrics),
        )
    };
    ([(header::CONTENT_TYPE, HeaderValue::from_static(kind))], body).into_response()
}

/// Whether the pipeline iterates.
async fn healthz(State(served): State<Arc<Served>>) -> Response {
    let alive = Duration::from_millis(served.shared.alive_ms.load(Ordering::Relaxed));
    let silent = served.shared.begin.elapsed().saturating_sub(alive);
    if silent > STUCK {
        let text = format!("the pipeline loop has stalled for {} s\n", silent.as_secs());
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    }
    "ok\n".into_response()
}

/// Whether the hooks are attached.
async fn readyz(State(served): State<Arc<Served>>) -> Response {
    if served.shared.ready.load(Ordering::Relaxed) {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not attached yet\n").into_response()
    }
}

/// A listener that holds only so many connections, of all peers and of each. A new one is always taken: it takes the slot of the oldest of the
/// peer that holds the most, so that idle connections can't keep a probe out.
struct Bounded {
    inner: tokio::net::TcpListener,
    slots: Slots,
}

impl Listener for Bounded {
    type Io = HeldConnection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (HeldConnection, SocketAddr) {
        let (stream, address) = Listener::accept(&mut self.inner).await;
        let (slot, closed) = self.slots.take(address.ip());
        (HeldConnection::new(stream, slot, closed), address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

mod slots {
    //! Who is connected.

    use std::net::IpAddr;
    use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

    use tokio::sync::oneshot;

    #[derive(Debug)]
    struct Taken {
        number: u64,
        peer: IpAddr,
        /// Dropped, it closes the connection.
        _close: oneshot::Sender<()>,
    }

    #[derive(Debug, Default)]
    struct Occupancy {
        /// The oldest first.
        taken: Vec<Taken>,
        next: u64,
    }

    impl Occupancy {
        /// Closes the oldest connection of the peer with the most.
        fn close_one(&mut self) {
            let count = |peer: IpAddr| self.taken.iter().filter(|taken| taken.peer == peer).count();
            let most = self.taken.iter().map(|taken| count(taken.peer)).max();
            let oldest = self.taken.iter().position(|taken| Some(count(taken.peer)) == most);
            if let Some(at) = oldest {
                self.taken.remove(at);
            }
        }
    }

    /// See [`super::Bounded`].
    #[derive(Clone, Debug)]
    pub(super) struct Slots {
        state: Arc<Mutex<Occupancy>>,
        limit: usize,
    }

    impl Slots {
        pub(super) fn new(limit: usize) -> Self {
            Self {
                state: Arc::default(),
                limit: limit.max(1),
            }
        }

        fn lock(&self) -> MutexGuard<'_, Occupancy> {
            self.state.lock().unwrap_or_else(PoisonError::into_inner)
        }

        /// A slot, and what ends when it has to be left.
        pub(super) fn take(&self, peer: IpAddr) -> (Slot, oneshot::Receiver<()>) {
            // Half of them, so that one peer never closes what another holds.
            let of_one = self.limit.div_ceil(2);
            let (close, closed) = oneshot::channel();
            let mut state = self.lock();
            let own = state.taken.iter().filter(|taken| taken.peer == peer).count();
            if own >= of_one {
                let oldest = state.taken.iter().position(|taken| taken.peer == peer);
                oldest.map(|at| state.taken.remove(at));
            } else if state.taken.len() >= self.limit {
                state.close_one();
            }
            let number = state.next;
            state.next += 1;
            state.taken.push(Taken {
                number,
                peer,
                _close: close,
            });
            let slot = Slot {
                slots: self.clone(),
                number,
            };
            (slot, closed)
        }

        #[cfg(test)]
        pub(super) fn peers(&self) -> Vec<IpAddr> {
            self.lock().taken.iter().map(|taken| taken.peer).collect()
        }
    }

    /// Free again when it is dropped.
    #[derive(Debug)]
    pub(super) struct Slot {
        slots: Slots,
        number: u64,
    }

    impl Drop for Slot {
        fn drop(&mut self) {
            self.slots.lock().taken.retain(|taken| taken.number != self.number);
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_crowd_of_one_peer_closes_its_own_connections_only() {
            let slots = Slots::new(8);
            let (probe, crowd): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
            let (_held, mut probed) = slots.take(probe);
            let mut others: Vec<_> = (0..40).map(|_| slots.take(crowd)).collect();
            assert!(probed.try_recv() == Err(oneshot::error::TryRecvError::Empty));
            assert_eq!(slots.peers().iter().filter(|peer| **peer == crowd).count(), 4);
            let open =
                |closed: &mut oneshot::Receiver<()>| closed.try_recv() == Err(oneshot::error::TryRecvError::Empty);
            assert_eq!(
                others
                    .iter_mut()
                    .filter_map(|(_, closed)| open(closed).then_some(()))
                    .count(),
                4
            );
            drop(others);
            assert_eq!(slots.peers(), [probe]);
        }

        #[test]
        fn a_crowd_of_many_peers_leaves_a_place_for_the_next() {
            let slots = Slots::new(4);
            let held: Vec<_> = (0..40_u8).map(|peer| slots.take([10, 0, 1, peer].into())).collect();
            assert_eq!(slots.peers().len(), 4);
            assert_eq!(slots.peers().last(), Some(&IpAddr::from([10, 0, 1, 39])));
            drop(held);
            assert!(slots.peers().is_empty());
        }
    }
}

mod held {
    //! A connection that holds its slot until it ends, its time is up, or another one needs the slot.

    use std::future::Future;
    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
    use tokio::sync::oneshot;
    use tokio::time::{Instant, Sleep, sleep};

    use super::slots::Slot;
    use super::{MAX_CONNECTION, MAX_SILENCE, TcpStream};

    pub(super) struct HeldConnection {
        stream: TcpStream,
        end: Pin<Box<Sleep>>,
        /// The next answer must have begun by then.
        answer: Pin<Box<Sleep>>,
        closed: oneshot::Receiver<()>,
        _place: Slot,
    }

    impl HeldConnection {
        pub(super) fn new(stream: TcpStream, slot: Slot, closed: oneshot::Receiver<()>) -> Self {
            Self {
                stream,
                end: Box::pin(sleep(MAX_CONNECTION)),
                answer: Box::pin(sleep(MAX_SILENCE)),
                closed,
                _place: slot,
            }
        }

        fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
            let left = Pin::new(&mut self.closed).poll(cx).is_ready();
            if left || self.end.as_mut().poll(cx).is_ready() || self.answer.as_mut().poll(cx).is_ready() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Ok(())
        }

        /// An answer is under way: so much time for the next.
        fn progress(&mut self) {
            self.answer.as_mut().reset(Instant::now() + MAX_SILENCE);
        }
    }

    impl AsyncRead for HeldConnection {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            self.check(cx)?;
            Pin::new(&mut self.stream).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for HeldConnection {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.check(cx)?;
            let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
            if matches!(written, Poll::Ready(Ok(1..))) {
                self.progress();
            }
            written
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_shutdown(cx)
        }
    }
}

use held::HeldConnection;
use slots::Slots;
